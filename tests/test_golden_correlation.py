"""Correlation map, sampled rows and propagated scores with gradients, against outputs of the reference."""
from pathlib import Path

import numpy as np
import pytest
import torch

from corrmatch.method.correlation import correlation_map, correlation_rows
from corrmatch.models.corrmatch_net import CorrelationHead
from corrmatch.method.pixel import resize, propagate_logits, propagate_pixels
from corrmatch.engine.pixels import spread_pixels
from corrmatch.engine.regions import fast_region_maps

GOLDEN = Path(__file__).parent/'golden'
CASES = ['nclass5', 'sharp', 'nonintegral']
WEIGHTS = ('conv1_weight', 'conv1_bias', 'conv2_weight', 'conv2_bias')


def load(name):
    "Arrays of one case, and the head with its weights."
    a = {k: torch.as_tensor(v) for k, v in np.load(GOLDEN/f'corr_{name}.npz').items()}
    head = CorrelationHead(a['feature'].shape[1], len(a['conv1_bias']))
    head.load_state_dict({k.replace('_', '.'): a[k] for k in WEIGHTS})
    return a, head


def assert_close(ours, theirs, scale=None):
    "Within 1e-5 of the largest magnitude (or of `scale`)."
    limit = 1e-5*(theirs.abs().max() if scale is None else scale)
    assert ours.shape == theirs.shape and (ours-theirs).abs().max() <= limit


@pytest.mark.parametrize('name', CASES)
def test_map_and_rows(name):
    a, head = load(name)
    f1, f2 = head(a['feature'])
    assert_close(correlation_map(f1, f2), a['corr_map'])
    assert_close(correlation_rows(f1, f2, a['index']), a['sampled_rows'])


@pytest.mark.parametrize('name', CASES)
def test_regions_from_features(name):
    a, head = load(name)
    rows = correlation_rows(*head(a['feature']), a['index'])
    regions = fast_region_maps(rows, a['feature'].shape[2:], a['logits'].shape[2:])
    assert ((regions != a['bool_maps']).sum((2, 3)) <= a['near_half_1e5']).all()


@pytest.mark.parametrize('form', ['map', 'one chunk', 'chunks of 7', 'default'])
@pytest.mark.parametrize('name', CASES)
def test_propagated_and_gradients(name, form):
    a, head = load(name)
    feature = a['feature'].requires_grad_()
    logits = a['logits'].requires_grad_()
    f1, f2 = head(feature)
    small = resize(logits, f1.shape[2:])
    if form == 'map':
        result = propagate_pixels(correlation_map(f1, f2), small.detach())
    else:
        result = spread_pixels(
            f1, f2, small, rows={'one chunk': 10**6, 'chunks of 7': 7, 'default': None}[form])
    assert_close(result, a['propagated'])
    (result*a['grad_out']).sum().backward()
    assert logits.grad is None
    assert_close(feature.grad, a['grad_feature'])
    # A constant added to every key changes no row: the gradient of conv2's bias is rounding noise.
    scale = a['grad_conv1_bias'].abs().max()
    for key, weight in head.named_parameters():
        assert_close(weight.grad, a['grad_'+key.replace('.', '_')], scale if key == 'conv2.bias' else None)


@pytest.mark.parametrize('name', CASES)
def test_full_size(name):
    a, head = load(name)
    f1, f2 = head(a['feature'])
    full = propagate_logits(f1, f2, a['logits'])
    assert_close(full, resize(a['propagated'], a['logits'].shape[2:]))
