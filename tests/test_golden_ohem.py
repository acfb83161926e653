"""OHEM cross-entropy against numbers of the reference implementation.

golden/ohem.npz: scores, mask, settings, selected pixels, loss and gradient of eleven cases. Of each
gradient every second row and third column is stored, with the sum of all absolute values.
"""
from pathlib import Path

import numpy as np
import pytest
import torch

from corrmatch.method.losses import hard_pixels, ohem_ce, supervised_ce

GOLDEN = np.load(Path(__file__).parent/'golden'/'ohem.npz')
CASES = [name.split('/')[0] for name in GOLDEN if name.endswith('/pred')]
EMPTY = ('all_ignored', 'all_ignored_min_kept_0')


def load(case):
    "Return logits, mask and settings of one case."
    logits = torch.from_numpy(GOLDEN[f'{case}/pred'].astype(np.float32)).requires_grad_()
    mask = torch.from_numpy(GOLDEN[f'{case}/target'].astype(np.int64))
    weight = (
        torch.from_numpy(GOLDEN[f'{case}/class_weight'].astype(np.float32))
        if f'{case}/class_weight' in GOLDEN
        else None)
    settings = dict(thresh=float(GOLDEN[f'{case}/thresh']), min_kept=int(GOLDEN[f'{case}/min_kept']))
    return logits, mask, settings, dict(weight=weight, reduction=str(GOLDEN[f'{case}/reduction']))


@pytest.mark.parametrize('case', CASES)
def test_selected_pixels(case):
    logits, mask, settings, _ = load(case)
    after = mask.masked_fill(~hard_pixels(logits, mask, **settings), 255)
    assert np.array_equal(after.numpy(), GOLDEN[f'{case}/target_after'])


@pytest.mark.parametrize('case', [c for c in CASES if c not in EMPTY])
def test_loss_and_gradient(case):
    logits, mask, settings, more = load(case)
    loss = ohem_ce(logits, mask, **settings, **more)
    loss.backward()
    np.testing.assert_allclose(loss.item(), GOLDEN[f'{case}/loss'], rtol=1e-5)
    grad = logits.grad.double()
    np.testing.assert_allclose(grad.abs().sum(), GOLDEN[f'{case}/grad_abs_sum'], rtol=1e-5)
    expected = GOLDEN[f'{case}/grad'].astype(np.float32)
    np.testing.assert_allclose(grad[..., ::2, ::3], expected, rtol=0, atol=1e-5*float(grad.abs().max()))


@pytest.mark.parametrize('case', EMPTY)
def test_all_ignored_is_zero_by_choice(case):
    "The reference returns NaN when nothing is labeled; ours returns 0. Both have a zero gradient."
    logits, mask, settings, more = load(case)
    assert np.isnan(GOLDEN[f'{case}/loss'])
    loss = ohem_ce(logits, mask, **settings, **more)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any() and not GOLDEN[f'{case}/grad'].any() and GOLDEN[f'{case}/grad_abs_sum'] == 0


def test_no_selection_is_plain_cross_entropy():
    logits, mask, _, _ = load('typical')
    for min_kept in (0, mask.numel() + 1):
        torch.testing.assert_close(
            ohem_ce(logits, mask, min_kept=min_kept), supervised_ce(logits, mask), rtol=1e-6, atol=0)
