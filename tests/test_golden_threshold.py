"""The dynamic threshold against numbers of the reference implementation.

golden/threshold.npz: 20 consecutive updates for three settings on the same logits. Logits are stored as
float16 and masks as uint8 where that is exact; nothing else was changed.
"""
from pathlib import Path

import numpy as np
import pytest
import torch

from corrmatch.method.pseudo_labels import confidence, pseudo_label
from corrmatch.method.threshold import DynamicThreshold, class_confidence

GOLDEN = np.load(Path(__file__).parent/'golden'/'threshold.npz')
RUNS = ('default', 'fast', 'no_ignore_mask')


def steps(run):
    "Yield confidence, label, valid of every update."
    logits = torch.from_numpy(GOLDEN['logits'].astype(np.float32))
    ignore = torch.from_numpy(GOLDEN['ignore_mask'].astype(np.int64))
    for z, i in zip(logits, ignore):
        yield (
            confidence(z), pseudo_label(z),
            torch.ones_like(i, dtype=torch.bool) if run == 'no_ignore_mask' else i != 255)


def make(run):
    return DynamicThreshold(
        float(GOLDEN[f'{run}/init']), float(GOLDEN[f'{run}/momentum']),
        n_classes=GOLDEN['logits'].shape[2])


@pytest.mark.parametrize('run', RUNS)
def test_threshold_sequence(run):
    threshold = make(run)
    got = np.array([float(threshold.update(*maps)) for maps in steps(run)])
    np.testing.assert_allclose(got, GOLDEN[f'{run}/threshold'], rtol=0, atol=1e-6)


@pytest.mark.parametrize('run', RUNS)
def test_mean_top_confidence(run):
    for maps, expected in zip(steps(run), GOLDEN[f'{run}/new_global'], strict=True):
        top, present = class_confidence(*maps, GOLDEN['logits'].shape[2])
        assert bool(present.any()) != bool(np.isnan(expected))
        if present.any():
            assert abs(float(top.sum()/present.sum()) - expected) <= 1e-6


@pytest.mark.parametrize('run', ['default', 'fast'])  # without an ignore mask a class is always left
def test_no_class_left_keeps_tau(run):
    threshold, before = make(run), None
    kept = 0
    for maps, expected in zip(steps(run), GOLDEN[f'{run}/new_global']):
        after = threshold.update(*maps)
        if np.isnan(expected) and before is not None:
            assert torch.equal(before, after)
            kept += 1
        before = after
    assert kept


def one_rank(rank, folder, out):
    "Feed one of the two images of every update to each of two processes."
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    threshold = make('default')
    taus = torch.stack([threshold.update(*(m[rank:rank+1] for m in maps)) for maps in steps('default')])
    torch.save(taus, f'{out}/{rank}.pt')
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.spawn(one_rank, (str(tmp_path), str(tmp_path)), nprocs=2)
    for rank in range(2):
        np.testing.assert_allclose(
            torch.load(tmp_path / f'{rank}.pt').numpy(), GOLDEN['default/threshold'], rtol=0, atol=1e-6)
