"One process, two processes, or micro-steps: the same losses and weights."
import subprocess
import sys

import pytest
import torch

from corrmatch.runfolder import read_checkpoint, read_csv
from corrmatch.trainer import Trainer
from runs_for_tests import command, environment, small

STEPS = dict(steps=10, eval_every=10, log_every=1, batch_x=4, batch_u=4, toy_unlabeled=12)
KINDS = {  # what is compared -> changes of the small run
    'group norm, dynamic tau, partner in the batch': dict(),
    'another picture as partner, two strong views': dict(cutmix='other_image', strong_views=2, w_fp=.25),
    'batch norm synchronised': dict(norm='batch', cutmix='same_image'),
    'clip, average, no warm-up': dict(clip=.5, ema=.9, warmup=0),
}


def spread(out, processes, **changes):
    "Train in several processes and return the weights and the losses of all steps."
    done = subprocess.run(command(out, torchrun=processes, **STEPS | changes), env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return result(out)


def together(out, **changes):
    "Train in this process."
    Trainer(small(out, **STEPS | changes), quiet=True).fit()
    return result(out)


def result(out):
    state, log = read_checkpoint(out/'last.pt'), read_csv(out/'metrics.csv')
    return state, {k: log[k] for k in log if k.startswith('loss') or k == 'tau'}


def agree(a, b, tolerance=2e-4):
    "Losses, threshold, weights, momentum and scores are equal up to the order of additions."
    for k, losses in a[1].items():
        assert torch.allclose(torch.tensor(losses), torch.tensor(b[1][k]), rtol=tolerance, atol=tolerance, equal_nan=True), k
    for k, v in a[0]['model'].items():
        if k.endswith('num_batches_tracked'): continue
        assert torch.allclose(v, b[0]['model'][k], rtol=tolerance, atol=tolerance), (k, (v - b[0]['model'][k]).abs().max())
    assert abs(a[0]['best'] - b[0]['best']) < .5


@pytest.mark.parametrize('kind', KINDS)
def test_two_processes_equal_one(tmp_path, kind):
    agree(together(tmp_path/'one', **KINDS[kind]), spread(tmp_path/'two', 2, **KINDS[kind]))


@pytest.mark.parametrize('kind', [k for k in KINDS if 'batch norm' not in k])
def test_two_micro_steps_equal_one(tmp_path, kind):
    agree(together(tmp_path/'one', **KINDS[kind]), together(tmp_path/'parts', accumulate=2, **KINDS[kind]))


def test_micro_steps_with_batch_norm_are_another_run(tmp_path):
    "What accumulation cannot make equal, said in notebook 13b: if this fails, the sentence is wrong."
    with pytest.raises(AssertionError):
        agree(together(tmp_path/'one', norm='batch', cutmix='same_image'), together(tmp_path/'parts', norm='batch', cutmix='same_image', accumulate=2))


def test_two_processes_with_micro_steps_and_workers(tmp_path):
    changes = dict(cutmix='same_image', workers=1)
    agree(together(tmp_path/'one', **changes), spread(tmp_path/'both', 2, accumulate=2, **changes))


@pytest.mark.parametrize('changes', [dict(w_x_corr=0.), dict(sync_bn=False, norm='batch')], ids=['head unused in the warm-up', 'own batch norm'])
def test_two_processes_run_through(tmp_path, changes):
    "The two crashes of this family: parameters without gradient, and buffers changed between two forward passes."
    state, losses = spread(tmp_path/'run', 2, **changes | dict(warmup=3))
    assert state['step'] == 10 and all(torch.isfinite(v).all() for v in state['model'].values())


def test_batch_that_does_not_divide_is_refused(tmp_path):
    done = subprocess.run(command(tmp_path/'run', torchrun=2, batch_x=3), env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode and 'batch_x=3 does not divide by 2 processes' in done.stderr and 'choose 2 or 4' in done.stderr


def test_resume_with_another_number_of_processes(tmp_path):
    straight = together(tmp_path/'straight', cutmix='same_image')
    spread(tmp_path/'run', 2, cutmix='same_image', steps=10, save_every=1)
    for name in ('before.pt', 'last.pt'): assert (tmp_path/'run'/name).exists()
    (tmp_path/'run'/'before.pt').replace(tmp_path/'run'/'last.pt')  # as if it had been stopped a step earlier
    resumed = Trainer(small(tmp_path/'run', **STEPS | dict(cutmix='same_image', save_every=1)), quiet=True)
    resumed.fit(resume=True)
    agree(straight, result(tmp_path/'run'))


@pytest.mark.parametrize('shared', [True, False])
def test_shared_batch_norm_equals_one_large_batch(tmp_path, shared):
    "Outputs, gradients and running statistics of two processes against one, and that they differ when nothing is shared."
    code = f'''
import torch, torch.distributed as dist, torch.nn as nn
from corrmatch.parallel import share_batch_norm, start_world, stop_world
world, device, _ = start_world(torch.device("cpu"))
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
x, y = torch.randn(4, 3, 6, 6), torch.randn(4, 2, 4, 4)
alone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)); alone.load_state_dict(net.state_dict())
(alone(x)*y).sum().backward()
if {shared}: share_batch_norm(net, device)
part = slice(2*world.rank, 2*world.rank+2)
(net(x[part])*y[part]).sum().backward()
worst = 0.
for a, b in zip(net.parameters(), alone.parameters()):
    dist.all_reduce(a.grad); worst = max(worst, (a.grad-b.grad).abs().max().item())
for a, b in zip(net.buffers(), alone.buffers()): worst = max(worst, (a-b).abs().max().item())
print("worst", worst)
stop_world()
'''
    (tmp_path/'bn.py').write_text(code)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone', str(tmp_path/'bn.py')],
                          env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    worst = max(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith('worst'))
    assert (worst < 1e-4) == shared
