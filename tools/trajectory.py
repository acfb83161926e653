"""Ten training steps of this package on the weights, batches, dropped channels and positions of the
reference's ten.

Usage: python tools/trajectory.py [OUT]      (default: nbs/results/trajectory.csv; two minutes)

Inputs and the reference's numbers lie in tests/golden/trajectory_pascal.npz; tests/test_golden_trajectory.py
runs the same steps and compares them in float64. Here they run in float64, and in float32 with two memory
layouts: the reference's (contiguous) and the one this package trains with (channels last). Each loss is
written beside the reference's, a row for each run, step and loss; `reference_other_start` is the reference's
float32 run from weights changed in their last bit.
"""
import csv
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

from corrmatch.config import IGNORE_INDEX, preset
from corrmatch.engine.regions import FAST_REGIONS
from corrmatch.method import step as steps
from corrmatch.models import deeplab as network
from corrmatch.training import builders

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT/'tests'/'golden'/'trajectory_pascal.npz'
N_STEPS = 10
# ours -> the file's
LOSSES = dict(
    x='loss_x', x_corr='loss_x_corr', s='loss_u_s1', s_corr='loss_u_corr_s1', w_corr='loss_u_corr_w',
    kl='loss_u_kl', fp='loss_u_w_fp', total='loss')


class Step(NamedTuple):
    "What one step computed."
    losses: dict       # name -> float
    tau: float
    grad_norm: float   # of all gradients together
    rates: tuple       # learning rate of the backbone and of the rest
    label: np.ndarray  # (2,b,h,w) pseudo-labels before and after region propagation
    keep: np.ndarray   # (2,b,h,w) bool, the pixels kept with them
    label_w: np.ndarray  # (b,h,w) pseudo-labels of the weak view
    conf_w: np.ndarray  # (b,h,w) their confidence


@contextmanager
def default_dtype(dtype: torch.dtype):
    "Make new tensors in this dtype."
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def start_weight(key: str, like: torch.Tensor, tempered) -> torch.Tensor:
    "The weight called `key` at step 0: its values depend on its name and on four numbers of the run."
    rng = np.random.RandomState(zlib.crc32(b'holdout:' + key.encode()))
    shape = tuple(like.shape)
    if key.endswith('num_batches_tracked'):
        values = np.zeros(shape)
    elif len(shape) == 4:
        values = rng.standard_normal(shape)*np.sqrt(2/np.prod(shape[1:]))
    elif key.endswith('running_var'):
        values = rng.uniform(0.8, 1.6, shape)
    elif key.endswith(('running_mean', '.bias')):
        values = 0.1*rng.standard_normal(shape)
    else:
        values = rng.uniform(0.6, 1.1, shape)
    if key == 'classifier.weight':
        values *= tempered('sharper')
    if key == 'classifier.bias':
        values[0] += tempered('background')
    if key.endswith('bn3.weight'):
        values *= tempered('shortcut')
    if key == 'head.b4.gap.2.weight':
        values *= tempered('pooled')
    return torch.from_numpy(np.asarray(values)).to(like.dtype)


def make_batch(golden, step: int) -> dict:
    """The batch of a step, as `corrmatch.data.batches.StepBatches` gives it; keys number the images of both
    passes."""
    batch = {name: torch.from_numpy(golden[f'batch{step % 5}/{name}']) for name in (
        'img_x', 'mask_x', 'img_u_w', 'img_u_s', 'img_mix_w', 'img_mix_s', 'ignore_u', 'ignore_mix', 'box')}
    images = {
        name: batch[f'img_{name}'].permute(0, 3, 1, 2) for name in ('x', 'u_w', 'u_s', 'mix_w', 'mix_s')}
    return dict(image_x=images['x'], mask_x=batch['mask_x'].long(),
                image_u_w=images['u_w'], image_u_s=images['u_s'][None],
                image_mix_w=images['mix_w'], image_mix_s=images['mix_s'][None], box_u=batch['box'][None] == 1,
                valid_u=batch['ignore_u'] != IGNORE_INDEX, valid_mix=batch['ignore_mix'] != IGNORE_INDEX,
                keys_x=torch.tensor([0, 1]), keys_u_w=torch.tensor([2, 3]), keys_u_s=torch.tensor([[4, 5]]))


@contextmanager
def given_draws(golden, step: int):
    "Let the dropped channels and the positions of the regions be those of the file."
    c1, c4, *proj = [torch.from_numpy(golden[f'kept/{name}'][step])
                     for name in ('weak_c1', 'weak_c4', 'weak_proj', 'strong_proj')]
    streams = c1, c4, torch.cat(proj)
    positions = torch.from_numpy(golden['positions'][step])
    with (mock.patch.object(network, 'keep_channels', lambda keys, n, p, stream=0: streams[stream][keys]),
          mock.patch.object(steps, 'draw_positions', lambda n, m, generator=None: positions)):
        yield


class Trajectory:
    "The network, optimizer and threshold of a run on the golden batches."
    def __init__(self, golden, prefix: str, dtype: torch.dtype, layout=torch.channels_last):
        self.golden = golden
        self.dtype = dtype
        self.layout = layout
        def number(name): return float(golden[f'{prefix}/{name}'])
        self.config = preset('voc_92', crop=65, batch_x=2, batch_u=2, steps=N_STEPS, lr=number('lr'),
                             lr_multi=number('lr_multi'), tau=number('thresh_init'), backbone='resnet50_deep')
        with default_dtype(dtype):
            self.model = builders.make_model(self.config)[0]
            self.model.load_state_dict(
                {k: start_weight(k, v, number) for k, v in self.model.state_dict().items()})
            builders.prepare_model(self.model.train(), self.config, 'cpu').to(memory_format=layout)
            self.optimizer = builders.make_optimizer(self.model, self.config)
            self.threshold = builders.make_threshold(self.config)

    def run(self, n: int = N_STEPS):
        "Take n steps of the ten from the start, yield a Step each."
        for step in range(n):
            with default_dtype(self.dtype), given_draws(self.golden, step):
                done = self._step(step)
            yield done

    def _step(self, step):
        builders.set_lr(self.optimizer, step, N_STEPS)
        batch = builders.to_device(make_batch(self.golden, step), torch.device('cpu'))
        if self.layout == torch.contiguous_format:
            batch = {name: t.contiguous() for name, t in batch.items()}
        with mock.patch.object(steps, 'target_metrics', wraps=steps.target_metrics) as watched:
            result = steps.train_step(
                self.model, batch, builders.make_weights(self.config), self.threshold, ops=FAST_REGIONS)
        before, after, targets, *_ = watched.call_args.args
        self.optimizer.zero_grad()
        result.total.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()])
        self.optimizer.step()
        losses = {**result.terms._asdict(), 'total': result.total}
        label, keep = (np.stack([before[i][0].numpy(), after[i][0].numpy()]) for i in (0, 1))
        rates = tuple(group['lr'] for group in self.optimizer.param_groups)
        losses = {name: float(loss.detach()) for name, loss in losses.items()}
        return Step(losses, float(self.threshold.tau), float(norm), rates, label, keep,
                    targets.label_w.numpy(), targets.conf_w.numpy())

    def momentum(self) -> dict:
        "Momentum of every parameter by name."
        return {name: self.optimizer.state[p]['momentum_buffer'] for name, p in self.model.named_parameters()}


def main(out: str = str(ROOT/'nbs'/'results'/'trajectory.csv')):
    golden = np.load(GOLDEN)
    runs = (('f32', 'contiguous', torch.float32, torch.contiguous_format),
            ('f32', 'channels_last', torch.float32, torch.channels_last),
            ('f64', 'channels_last', torch.float64, torch.channels_last))
    with open(out, 'w', newline='') as file:
        table = csv.writer(file, lineterminator='\n')
        table.writerow(['dtype', 'layout', 'step', 'loss', 'reference', 'reference_other_start', 'ours'])
        for short, layout_name, dtype, layout in runs:
            for i, step in enumerate(Trajectory(golden, 'pascal', dtype, layout).run()):
                for name, value in step.losses.items():
                    other = f'pascal/{short}_other_start/{LOSSES[name]}'
                    other_value = golden[other][i] if other in golden else ''
                    reference = golden[f'pascal/{short}/{LOSSES[name]}'][i]
                    table.writerow([short, layout_name, i+1, name, reference, other_value, value])


if __name__ == '__main__':
    main(*sys.argv[1:])
