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
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from runs_for_tests import ROOT

spec = importlib.util.spec_from_file_location('trajectory', ROOT/'tools'/'trajectory.py')
trajectory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trajectory)

CLOSE = 1e-12  # relative; two summation orders differ by about 1e-14 here


@pytest.fixture(scope='module', params=['pascal', 'active'])
def run(request):
    "The steps that were taken, the run itself and the reference's numbers."
    golden = np.load(trajectory.GOLDEN)
    ours = trajectory.Trajectory(golden, request.param, torch.float64)
    n = len(golden[f'{request.param}/f64/loss'])
    theirs = {name.partition('/')[2]: golden[name] for name in golden if name.startswith(request.param)}
    return SimpleNamespace(n=n, steps=list(ours.run(n)), ours=ours, golden=theirs)


longer_run = pytest.mark.parametrize('run', ['pascal'], indirect=True)  # the file has no more of `active`


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


@longer_run
@pytest.mark.parametrize('kind', ['final', 'momentum'])
def test_weights_and_momentum_after_the_last_step(run, kind):
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


@longer_run
def test_the_stored_table_is_this_run(run):
    "Of the figure in chapter 09: the reference's columns are the file's, ours in float64 is what runs here."
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
