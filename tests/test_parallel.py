"One process, two processes, or micro-steps: the same losses and weights."
import csv
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch

from corrmatch.models.backbones import _timm_backbone
from corrmatch.training.distributed import convert_sync_batchnorm
from corrmatch.training.run_folder import read_checkpoint, read_csv, run_state
from corrmatch.training.trainer import Trainer
from forks_for_tests import fork_python
from runs_for_tests import environment, script, small

pytestmark = pytest.mark.usefixtures('light_runs')
STEPS = dict(steps=10, eval_every=10, log_every=1, batch_x=4, batch_u=4, toy_unlabeled=12)
KINDS = {  # what is compared -> changes of the small run
    'group norm, dynamic tau, partner in the batch': dict(),
    'another image as partner, two strong views': dict(cutmix='other_image', strong_views=2, w_fp=.25),
    # rounding grows with every step through batch norm: a small rate, and no yes-or-no decision about pixels
    # that it could tip
    'batch norm synchronised': dict(
        norm='batch', cutmix='same_image', lr=.002, threshold='fixed', tau=0., regions=0),
    'clip, average, no warm-up': dict(clip=.5, ema=.9, warmup=0),
    'a threshold for each class': dict(threshold='per_class'),
    # with seed 0 a pixel lies on the threshold, and the order of additions decides about it
    'two micro-steps in each process, workers, strong views on the device': dict(
        cutmix='same_image', workers=1, accumulate=2, strong_on_device=True, seed=3),
}
CRASHES = {  # the two of this family: parameters without gradient; buffers changed between two forward passes
    'correlation head unused in the warm-up': dict(w_x_corr=0., warmup=3),
    'each process its own batch norm': dict(sync_bn=False, norm='batch'),
    'decoder unused in the warm-up': dict(w_x=0., warmup=3),
}


def folder(kind): return kind.replace(' ', '_').replace(',', '')


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    "All runs of this file that need two processes, in one start of torchrun."
    root = tmp_path_factory.mktemp('two')
    jobs = [dict(out=root/folder(kind), **STEPS | changes) for kind, changes in (KINDS | CRASHES).items()]
    jobs += [
        dict(out=root / folder(next(iter(KINDS))), **STEPS), dict(out=root / 'after', **STEPS),
        dict(out=root / 'odd', batch_x=3)]
    return root, fork_python(script(jobs, root), processes=2)


def together(out, **changes):
    "Train in this process."
    Trainer(small(out, **STEPS | changes), quiet=True).fit()
    return result(out)


def result(out):
    state = read_checkpoint(out/'last.pt')
    log = read_csv(out/'metrics.csv')
    return state, {k: log[k] for k in log if k.startswith('loss') or k == 'tau'}


def assert_agree(a, b, tolerance=2e-4):
    "Losses, threshold, weights, averages and scores are equal up to the order of additions."
    for k, losses in a[1].items():
        assert torch.allclose(
            torch.tensor(losses), torch.tensor(b[1][k]), rtol=tolerance, atol=tolerance, equal_nan=True), k
    for part in ('model', 'average'):
        for k, v in (a[0][part] or {}).items():
            if 'num_batches' in k or 'n_averaged' in k:
                continue
            assert torch.allclose(v, b[0][part][k], rtol=tolerance, atol=tolerance), (
                k, (v - b[0][part][k]).abs().max())
    assert abs(a[0]['best'] - b[0]['best']) < .5


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "Train a kind in one process and without micro-steps, the first time that it is asked for."
    root = tmp_path_factory.mktemp('alone')
    return cache(lambda kind: together(root/folder(kind), **KINDS[kind] | dict(accumulate=1)))


@pytest.mark.parametrize('kind', KINDS)
def test_two_processes_equal_one(alone, two_processes, kind):
    root, done = two_processes
    assert (root/folder(kind)/'last.pt').exists(), done.stderr[-2000:]
    assert_agree(alone(kind), result(root/folder(kind)), 1e-3 if 'batch norm' in kind else 2e-4)


@pytest.mark.parametrize('kind', CRASHES)
def test_two_processes_run_through(two_processes, kind):
    root, done = two_processes
    assert (root/folder(kind)/'last.pt').exists(), done.stderr[-2000:]
    state, _ = result(root/folder(kind))
    assert state['step'] == 10 and all(torch.isfinite(v).all() for v in state['model'].values())


def test_batch_that_does_not_divide_is_refused(two_processes):
    _, done = two_processes
    assert (
        done.returncode
        and 'batch_x=3 does not divide by 2 processes' in done.stderr
        and 'choose 2 or 4' in done.stderr)


def test_what_the_first_process_refuses_ends_the_other_too(two_processes):
    """Only the first one looks at the folder. The other does not wait for it: the next run of both goes
    through."""
    root, done = two_processes
    assert (
        done.stderr.count('holds a run already')
        == done.stderr.count('the first process refused to go on')
        == 1)
    assert result(root/'after')[0]['step'] == STEPS['steps']


def test_nothing_else_is_said(two_processes):
    "No warning of torch, no traceback: the refusal of the last job is the only line of ours."
    _, done = two_processes
    # DDP's, about the warm-up
    warnings = [
        line
        for line in done.stderr.splitlines()
        if 'Warning' in line and 'find_unused_parameters' not in line]
    assert not warnings


@pytest.mark.parametrize(
    'kind', [k for k, c in KINDS.items() if c.get('norm') != 'batch' and 'accumulate' not in c])
def test_two_micro_steps_equal_one(tmp_path, alone, kind):
    assert_agree(alone(kind), together(tmp_path/'parts', accumulate=2, **KINDS[kind]))


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_shared_batch_norm_keeps_activations_of_timm(device):
    "Torch's own conversion drops them."
    net = _timm_backbone('timm:tf_efficientnet_lite0', 16).eval()
    image = torch.rand(1, 3, 65, 65)
    before = [stage.clone() for stage in net(image)]
    shared = convert_sync_batchnorm(net, torch.device(device)).eval()
    for a, b in zip(before, shared(image), strict=True):
        torch.testing.assert_close(a, b)
    assert {
        type(m).__name__ for m in shared.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    } == {'SharedBatchNorm' if device == 'cpu' else 'SyncBatchNormAct'}


ACCIDENTS = '''
import sys
sys.path.insert(0, "tests")
from runs_for_tests import small
from corrmatch.training.distributed import stop_world
from corrmatch.training.trainer import Trainer
class Unlucky(Trainer):
    "The second process meets a loss that is not a number, and in the other run an unreadable image."
    def _part(self, *args):
        result = super()._part(*args)
        if (self.out.name, self.step, self.world.rank) == ("nan", 1, 1):
            return result._replace(total=result.total*float("nan"))
        return result
    def _loader(self):
        for batch in super()._loader():
            broken = (self.out.name, self.step, self.world.rank) == ("broken", 2, 1)
            yield batch | dict(broken=["x.jpg: unreadable"]) if broken else batch
for name in ("nan", "broken"):
    try: Unlucky(small(f"{sys.argv[1]}/{name}", batch_x=4, batch_u=4), quiet=True).fit()
    except ValueError as e: print(f"refused: {e}")
stop_world()
'''


def test_an_accident_in_one_process_is_known_to_all(tmp_path):
    (tmp_path/'accidents.py').write_text(ACCIDENTS)
    done = fork_python([tmp_path/'accidents.py', tmp_path], processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    state = read_checkpoint(tmp_path/'nan'/'last.pt')
    with open(tmp_path/'nan'/'skipped.csv', newline='') as f:
        skipped = list(csv.DictReader(f))
    assert state['skipped'] == 1 and all(torch.isfinite(v).all() for v in state['model'].values())
    # images of both processes
    assert [row['step'] for row in skipped] == ['1'] and len(skipped[0]['names'].split()) == 8
    assert (
        done.stdout.count('refused: 1 of') == 2
        and 'x.jpg' in done.stdout
        and read_checkpoint(tmp_path / 'broken' / 'last.pt')['step'] == 3)


WORDS = (
    'train toy --steps 12 --eval-every 6 --save-every 5 --warmup 1 --crop 33 --toy-unlabeled 8 --batch-x '
    '4 --batch-u 4 --dim 16 --low-dim 8 '
    '--regions 8 --device cpu --out').split()
KILLED = '''
import os
import signal
import sys
from corrmatch.training import distributed as parallel
from corrmatch.use.cli import main
from corrmatch.training.trainer import Trainer
parallel.stop_world = lambda: None  # all commands of a process in one world
whole_step = Trainer.run_step
def run_step(self, batch):
    "The process with the given rank is killed in the middle of its eighth step."
    if (self.step, self.world.rank) == (7, int(sys.argv[1])):
        self.batches = os.kill(os.getpid(), signal.SIGKILL)
    return whole_step(self, batch)
Trainer.run_step = run_step
sys.exit(max(main(line.split()) for line in sys.argv[2:]))
'''


def test_a_killed_process_ends_the_other_with_one_line(tmp_path):
    "The one that writes is killed. Both go on from the last checkpoint to the same bits."
    (tmp_path/'killed.py').write_text(KILLED)
    start = [
        sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--monitor_interval=2',
        '--standalone', str(tmp_path / 'killed.py')]
    done = subprocess.run(
        [*start, '0', ' '.join([*WORDS, 'run'])], env=environment(), cwd=tmp_path, capture_output=True,
        text=True, timeout=600)
    said = [line for line in done.stderr.splitlines() if line.startswith('corrmatch: ')]
    assert done.returncode and len(said) == 1 and 'resume run' in said[0] and 'killed?' in said[0], (
        done.stderr[-3000:])
    assert (
        'corrmatch/training/trainer.py' not in done.stderr
        and read_checkpoint(tmp_path / 'run' / 'last.pt')['step'] == 6)
    assert run_state(tmp_path/'run')['state'] == 'killed' and not list((tmp_path/'run').glob('.*.part'))
    done = fork_python(
        [tmp_path/'killed.py', '-1', 'resume run', ' '.join([*WORDS, 'whole'])], tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    (state, losses), (whole, log) = result(tmp_path/'run'), result(tmp_path/'whole')
    assert state['step'] == 12 and state['best'] == whole['best']
    for key in log:
        np.testing.assert_array_equal(losses[key], log[key])
    for key, value in whole['model'].items():
        assert torch.equal(state['model'][key], value), key


def test_the_command_line_in_two_processes_ends_well(tmp_path):
    words = (
        'train toy --steps 4 --eval_every 4 --warmup 1 --crop 33 --toy_unlabeled 8 --batch_x 4 '
        '--batch_u 4 --dim 16 --low_dim 8 --regions 8 --device cpu --out').split()
    start = [
        sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone', '-m',
        'corrmatch']
    done = subprocess.run(
        [*start, *words, str(tmp_path / 'run')], env=environment(), capture_output=True, text=True,
        timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        done.stdout.count('score it: corrmatch eval') == 1
        and read_checkpoint(tmp_path / 'run' / 'last.pt')['step'] == 4)


def test_micro_steps_with_batch_norm_are_another_run(tmp_path, alone):
    "What accumulation cannot make equal, said in chapter 33: if this fails, the sentence is wrong."
    kind = 'batch norm synchronised'
    parts = together(tmp_path/'parts', accumulate=2, **KINDS[kind])
    with pytest.raises(AssertionError):
        assert_agree(alone(kind), parts, 1e-2)


def test_resume_with_another_number_of_processes(tmp_path, two_processes):
    root, _ = two_processes
    kind = 'clip, average, no warm-up'
    run = small(root/folder(kind), **STEPS | KINDS[kind] | dict(steps=10))
    stopped = Trainer(small(tmp_path/'run', **STEPS | KINDS[kind] | dict(save_every=6)), quiet=True)
    stopped.fit()
    (tmp_path/'run'/'before.pt').replace(tmp_path/'run'/'last.pt')  # as if it had been stopped at step 6
    assert read_checkpoint(tmp_path/'run'/'last.pt')['step'] == 6
    jobs = [dict(out=tmp_path/'run', resume=True, **STEPS | KINDS[kind] | dict(save_every=6))]
    done = fork_python(script(jobs, tmp_path/'jobs'), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_agree(result(tmp_path/'run'), result(root/folder(kind)))
    assert run.steps == result(tmp_path/'run')[0]['step']


BATCH_NORM = '''
import torch, torch.distributed as dist, torch.nn as nn
from timm.layers import BatchNormAct2d
from corrmatch.training.distributed import convert_sync_batchnorm, start_world, stop_world
world, device, _ = start_world(torch.device("cpu"))
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1),
        BatchNormAct2d(4, act_layer=nn.SiLU), nn.Conv2d(4, 2, 1))
x, y = (torch.randn(4, c, s, s, generator=torch.Generator().manual_seed(c)) for c, s in ((3, 6), (2, 4)))
alone = net()
(alone(x)*y).sum().backward()
for name, part in (("own", net()), ("shared", convert_sync_batchnorm(net(), device))):
    half = slice(2*world.rank, 2*world.rank+2)
    (part(x[half])*y[half]).sum().backward()
    for p in part.parameters(): dist.all_reduce(p.grad)
    grads = [(a.grad, b.grad) for a, b in zip(part.parameters(), alone.parameters())]
    worst = max((a-b).abs().max().item() for a, b in [*grads, *zip(part.buffers(), alone.buffers())])
    if world.first: print(name, worst)
stop_world()
'''


def test_shared_batch_norm_equals_one_large_batch(tmp_path):
    """Outputs, gradients and running statistics of two processes against one, and that they differ when
    nothing is shared."""
    (tmp_path/'bn.py').write_text(BATCH_NORM)
    done = fork_python([tmp_path/'bn.py'], processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    worst = dict(line.split() for line in done.stdout.splitlines())
    assert float(worst['shared']) < 1e-4 < 1e-2 < float(worst['own'])


def test_the_look_ahead_computes_in_the_type_of_the_step(tmp_path):
    trainer = Trainer(
        small(
            tmp_path / 'run', precision='bf16', accumulate=2, cutmix='same_image', batch_x=4, batch_u=4,
            warmup=0),
        quiet=True)
    seen = list()
    trainer.model.classifier.register_forward_hook(lambda module, taken, given: seen.append(given.dtype))
    trainer.run_step(trainer.batches[0])
    # two for the threshold, three for each of the micro-steps
    assert set(seen) == {torch.bfloat16} and len(seen) >= 8


@pytest.mark.parametrize('norm', ['batch', 'group'])
def test_the_look_ahead_predicts_what_the_step_will(tmp_path, norm):
    """The threshold follows the confidences of the micro-steps themselves, whatever the decoder's batch norm
    sees beside the weak views."""
    trainer = Trainer(
        small(tmp_path / 'run', norm=norm, accumulate=2, cutmix='same_image', batch_x=4, batch_u=4, warmup=0),
        quiet=True)
    threshold = trainer.threshold.update
    ahead = []
    later = []
    trainer.threshold.update = lambda conf, label, valid: (ahead.extend(conf), threshold(conf, label, valid))[
        1]
    look = trainer._look_ahead
    def watched(parts):
        known = look(parts)
        update = known.update
        known.update = lambda conf, label, valid: (later.extend(conf), update(conf, label, valid))[1]
        return known
    trainer._look_ahead = watched
    trainer.run_step(trainer.batches[0])
    assert len(ahead) == len(later) == 4 and all(torch.equal(a, b) for a, b in zip(ahead, later))
