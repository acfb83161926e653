"""One training step, from the logits of its passes to loss and gradients, against the reference.

golden/losses_*.npz: inputs, intermediate maps (mid/), loss terms (loss/) and gradients of the total
(grad/). Scores are stored as float16 and masks as uint8 where that is exact; of each gradient every second
row and third column is stored, with the sum of all absolute values; images are kept in one case only.
"""
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from corrmatch.method.losses import (
    METHOD_WEIGHTS, StepLogits, StepTargets, corrmatch_loss, ohem_ce, supervised_ce, total_loss)
from corrmatch.method.pseudo_labels import confidence, cutmix, pseudo_label
from corrmatch.engine.regions import fast_propagate_regions
from corrmatch.method.region import clear_regions
from corrmatch.method.threshold import DynamicThreshold

FILES = sorted((Path(__file__).parent/'golden').glob('losses_*.npz'))
TERMS = dict(
    x='loss_x', x_corr='loss_x_corr', s='loss_u_s1', s_corr='loss_u_corr_s1', w_corr='loss_u_corr_w',
    kl='loss_u_kl', fp='loss_u_w_fp')
LEAVES = ('preds', 'preds_fp', 'preds_corr', 'pred_u_s1', 'pred_u_s1_corr')


def load(path):
    "Read a case as float32, int64 and bool tensors; scalars stay numpy."
    wide = {np.dtype(np.float16): np.float32, np.dtype(np.uint8): np.int64}
    return {
        k: torch.from_numpy(v.astype(wide.get(v.dtype, v.dtype))) if v.ndim else v
        for k, v in np.load(path).items()}


def run_step(d):
    "Do stages 4 to 8 of a step; return every intermediate map, the terms, the total and the leaves."
    leaves = {k: d[k].clone().requires_grad_() for k in LEAVES}
    b = len(d['mask_x'])
    box = d['cutmix_box'] == 1
    mid = {}
    (x, w), (_, fp_w), (corr_x, corr_w) = (leaves[k].split(b) for k in LEAVES[:3])
    conf_w, label_w = mid['conf_u_w'], mid['mask_u_w'] = confidence(w), pseudo_label(w)
    mid['conf_u_w_mix'], mid['mask_u_w_mix'] = confidence(d['pred_u_w_mix']), pseudo_label(d['pred_u_w_mix'])
    conf_u = mid['conf_u_w_cutmixed1'] = cutmix(mid['conf_u_w_mix'], conf_w, box)
    label_u = mid['labels_before_region'] = cutmix(mid['mask_u_w_mix'], label_w, box)
    ignore = mid['ignore_mask_cutmixed1'] = cutmix(d['ignore_mask_mix'], d['ignore_mask'], box)
    valid, valid_u = d['ignore_mask'] != 255, ignore != 255
    threshold = DynamicThreshold(float(d['thresh_init']), float(d['momentum']), n_classes=int(d['nclass']))
    tau = mid['threshold'] = threshold.update(conf_w, label_w, valid_u)
    keep = mid['conf_filter'] = (conf_u >= tau) & valid_u
    regions = mid['corr_map_masked'] = clear_regions(d['corr_map'][b:], valid_u, box)
    label_out, keep_out = mid['labels_after_region'], mid['conf_filter_after_region'] = (
        fast_propagate_regions(label_u, keep, regions, tau))
    logits = StepLogits(x, corr_x, w, fp_w, corr_w, leaves['pred_u_s1'], leaves['pred_u_s1_corr'])
    targets = StepTargets(d['mask_x'], label_w, conf_w, valid, label_out, keep, keep_out, valid_u, tau)
    mid['mask_ratio'] = targets.keep_w.sum()/valid.sum()
    min_kept = int(d['ohem_min_kept'])
    supervised = (
        partial(ohem_ce, thresh=float(d['ohem_thresh']), min_kept=min_kept) if min_kept else supervised_ce)
    terms = corrmatch_loss(logits, targets, METHOD_WEIGHTS['corrmatch'], supervised)
    total = total_loss(terms, METHOD_WEIGHTS['corrmatch'])
    total.backward()
    return mid, terms, total, leaves


@pytest.fixture(scope='module', params=FILES, ids=lambda p: p.stem)
def case(request):
    d = load(request.param)
    return d, *run_step(d)


def test_every_intermediate_map(case):
    d, mid = case[:2]
    expected = {k[4:]: v for k, v in d.items() if k.startswith('mid/')}
    assert set(mid) == set(expected) - {'img_u_s1_cutmixed'}
    for name, got in mid.items():
        got = got.detach().numpy()
        want = np.asarray(expected[name])
        if want.dtype.kind == 'f':
            np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=name)
        else:
            assert np.array_equal(got, want), name


def test_every_loss(case):
    d, _, terms, total, _ = case
    for name, golden in TERMS.items():
        np.testing.assert_allclose(
            getattr(terms, name).item(), d[f'loss/{golden}'], rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(
        (terms.s_corr + terms.w_corr).item() / 2, d['loss/loss_u_corr'], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(total.item(), d['loss/total'], rtol=1e-5)


def test_every_gradient(case):
    d, leaves = case[0], case[4]
    for name, leaf in leaves.items():
        grad = leaf.grad.double()
        np.testing.assert_allclose(
            grad.abs().sum(), d[f'grad/{name}_abs_sum'], rtol=1e-5, atol=1e-9, err_msg=name)
        scale = max(float(grad.abs().max()), 1e-9)
        np.testing.assert_allclose(
            grad[..., ::2, ::3], d[f'grad/{name}'], rtol=0, atol=1e-5 * scale, err_msg=name)


def test_silent_halves(case):
    "The weak logits only teach, and the perturbed copies of labeled images are not used."
    d, leaves = case[0], case[4]
    b = len(d['mask_x'])
    assert not leaves['preds'].grad[b:].any() and not leaves['preds_fp'].grad[:b].any()


def test_mixed_images():
    d = load(next(p for p in FILES if p.stem == 'losses_nothing_confident'))
    mixed = cutmix(d['img_u_s1_mix'], d['img_u_s1'], d['cutmix_box'] == 1)
    assert torch.equal(mixed, d['mid/img_u_s1_cutmixed'])
