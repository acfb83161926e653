"""Training steps in float64 against the reference's: losses, threshold, gradients, labels, rates, weights.

`golden/trajectory_pascal.npz` holds two runs with dynamic threshold and plain cross-entropy: ten steps of
`pascal`, which starts at τ = 0.85, and two of `active`, which starts at 0.6, so that regions rewrite more
labels. `tools/trajectory.py` takes the same steps with this package's network, step, optimizer, schedule
and threshold; only dropped channels and region positions are given instead of drawn. The Cityscapes setting
(OHEM, fixed threshold) is not in the file: `test_golden_losses.py` has a single step with OHEM, from the
logits on.
"""
import csv
import importlib.util
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runs_for_tests import ROOT

spec = importlib.util.spec_from_file_location('trajectory', ROOT/'tools'/'trajectory.py')
trajectory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trajectory)

CLOSE = 1e-12  # relative; two summation orders differ by about 1e-14 here


def overlap(side, kernel, stride, padding, dilation):
    "For each place of a kernel along an axis: what it reads, how many positions in front and behind do not."
    n = (side + 2*padding - (kernel-1)*dilation - 1)//stride + 1
    for place in range(kernel):
        shift = place*dilation - padding
        first = max(0, -(shift//stride))
        end = min(n, (side-1-shift)//stride + 1)
        yield slice(first*stride + shift, max(0, (end-1)*stride + shift + 1), stride), first, n-end


def whole_batch_conv(layer, image, weight, bias):
    """What `nn.Conv2d` computes, as one product for all images at each place of the kernel. In float64
    PyTorch takes the images one by one and reads large weights again for each, also where they meet only
    padding."""
    assert layer.groups == 1 and layer.padding_mode == 'zeros'
    rows, columns = (
        list(overlap(*numbers)) for numbers in zip(
            image.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation))
    kernels = iter(weight.permute(2, 3, 0, 1).flatten(0, 1).unbind(0))
    out = None
    for (y, top, bottom), (x, left, right) in product(rows, columns):
        kernel = next(kernels)
        read = image[:, :, y, x]
        if read.numel():
            part = F.pad(F.linear(read.permute(0, 2, 3, 1), kernel), (0, 0, left, right, top, bottom))
            out = part if out is None else out + part
    out = out if bias is None else out + bias
    return out.permute(0, 3, 1, 2)


@pytest.mark.parametrize('kernel, stride, padding, dilation', [
    (1, 1, 0, 1), (1, 2, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 4, 4), (3, 1, 18, 18), (7, 2, 3, 1),
    ((3, 1), (2, 1), (1, 0), 1)])
def test_the_convolution_here_is_pytorchs(kernel, stride, padding, dilation):
    draw = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(3, 5, kernel, stride, padding, dilation).double()
    image = torch.randn(2, 3, 9, 12, generator=draw, dtype=torch.float64, requires_grad=True)
    wanted = layer(image)
    given = torch.randn(wanted.shape, generator=draw, dtype=torch.float64)
    inputs = (image, layer.weight, layer.bias)
    found = whole_batch_conv(layer, image, layer.weight, layer.bias)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)
    for ours, theirs in zip(*(torch.autograd.grad(out, inputs, given) for out in (found, wanted))):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.fixture(scope='module', params=['pascal', 'active'])
def run(request):
    "The steps that were taken, the run itself and the reference's numbers."
    golden = np.load(trajectory.GOLDEN)
    ours = trajectory.Trajectory(golden, request.param, torch.float64)
    n = len(golden[f'{request.param}/f64/loss'])
    theirs = {name.partition('/')[2]: golden[name] for name in golden if name.startswith(request.param)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Conv2d, '_conv_forward', whole_batch_conv)
        steps = list(ours.run(n))
    return SimpleNamespace(n=n, steps=steps, ours=ours, golden=theirs)


def assert_close(ours, theirs, name):
    np.testing.assert_allclose(ours, theirs, rtol=CLOSE, atol=CLOSE*np.abs(theirs).max(), err_msg=name)


@pytest.mark.parametrize('name', trajectory.LOSSES)
def test_losses(run, name):
    assert_close([s.losses[name] for s in run.steps], run.golden[f'f64/{trajectory.LOSSES[name]}'], name)


@pytest.mark.parametrize('name', ['tau', 'grad_norm'])
def test_threshold_and_gradients(run, name):
    assert_close([getattr(s, name) for s in run.steps], run.golden[f'f64/{name}'], name)


def test_every_label_and_every_kept_pixel(run):
    for i, s in enumerate(run.steps):
        for when, label, keep in zip(('before', 'after'), s.label, s.keep):
            assert np.array_equal(label, run.golden[f'labels_{when}'][i]), (i, when)
            assert np.array_equal(keep, run.golden[f'keep_{when}'][i]), (i, when)
        assert np.array_equal(s.label_w, run.golden['label_w'][i])
        stored = run.golden['conf_w_every_2nd'][i]  # in float32
        np.testing.assert_allclose(s.conf_w[:, ::2, ::2], stored, rtol=1e-7)
    assert all((s.label[0] != s.label[1]).any() for s in run.steps[:2])  # regions did rewrite labels
    assert len(run.steps) == run.n


def test_learning_rates(run):
    for column, name in enumerate(('lr_backbone', 'lr_other')):
        assert_close([s.rates[column] for s in run.steps], run.golden[name], name)


@pytest.mark.parametrize('kind', ['final', 'momentum'])
def test_weights_and_momentum_after_the_last_step(run, kind):
    if run.n < trajectory.N_STEPS:
        return  # the file has them after ten steps only
    tensors = run.ours.model.state_dict() if kind == 'final' else run.ours.momentum()
    keys = run.golden[f'{kind}_keys']
    assert set(keys) == {key for key in tensors if not key.endswith('num_batches_tracked')}
    for key, total, sample in zip(keys, run.golden[f'{kind}_abs_sum'], run.golden[f'{kind}_sample']):
        values = tensors[key].detach().double().contiguous().flatten()
        assert_close(values.abs().sum().item(), total, key)
        assert_close(values[np.linspace(0, len(values)-1, 8).astype(int)], sample, key)


def test_float32_stays_float32():
    golden = np.load(trajectory.GOLDEN)
    ours = trajectory.Trajectory(golden, 'pascal', torch.float32)
    step, = ours.run(1)
    assert step.conf_w.dtype == np.float32 and ours.threshold.tau.dtype == torch.float32
    assert {p.dtype for p in ours.model.parameters()} == {torch.float32}
    for name, theirs in trajectory.LOSSES.items():
        np.testing.assert_allclose(
            step.losses[name], golden[f'pascal/f64/{theirs}'][0], rtol=1e-4, err_msg=name)
        assert step.losses[name] != golden[f'pascal/f64/{theirs}'][0], name
    assert torch.get_default_dtype() == torch.float32


def test_the_stored_table_is_this_run(run):
    "Of the figure in chapter 09: the reference's columns are the file's, ours in float64 is what runs here."
    if run.n < trajectory.N_STEPS:
        return  # the table is about the longer run
    with open(ROOT/'nbs'/'results'/'trajectory.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3*trajectory.N_STEPS*len(trajectory.LOSSES)
    for row in rows:
        step, name = int(row['step'])-1, row['loss']
        assert float(row['reference']) == run.golden[f"{row['dtype']}/{trajectory.LOSSES[name]}"][step]
        if row['dtype'] == 'f64':
            assert_close(run.steps[step].losses[name], float(row['ours']), (step, name))
        else:
            assert (
                float(row['reference_other_start'])
                == run.golden[f'f32_other_start/{trajectory.LOSSES[name]}'][step])
