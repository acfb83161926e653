"""Region masks and region propagation against outputs of the reference (booleans and labels: equal)."""
from pathlib import Path

import numpy as np
import pytest
import torch

from corrmatch.engine import regions as regions_module
from corrmatch.method.region import propagate_regions

GOLDEN = Path(__file__).parent/'golden'
REGION = np.load(GOLDEN/'region.npz')
CASES = sorted({name.split('/')[0] for name in REGION.files})
PATHS = {
    'cpu': regions_module._propagate_on_cpu, 'device': regions_module._propagate_on_device,
    'public': regions_module.fast_propagate_regions, 'lesson': lambda *args: propagate_regions(*args)[:2]}


def case(name):
    return {k.split('/')[1]: torch.as_tensor(REGION[k]) for k in REGION.files if k.startswith(name+'/')}


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('name', CASES)
def test_propagate_regions(name, path):
    a = case(name)
    before = [a[k].clone() for k in ('labels_in', 'filter_in', 'maps')]
    label, keep = PATHS[path](a['labels_in'], a['filter_in'], a['maps'], a['threshold'])
    assert torch.equal(label, a['labels_out']) and label.dtype == torch.int64
    assert torch.equal(keep, a['filter_out']) and keep.dtype == torch.bool
    assert all(torch.equal(a[k], b) for k, b in zip(('labels_in', 'filter_in', 'maps'), before)), (
        'an input was changed')


@pytest.mark.parametrize('name', CASES)
def test_tau_as_float(name):
    a = case(name)
    label, keep = regions_module.fast_propagate_regions(
        a['labels_in'], a['filter_in'], a['maps'], float(a['threshold']))
    assert torch.equal(label, a['labels_out']) and torch.equal(keep, a['filter_out'])


@pytest.mark.parametrize('path', ['cpu', 'device'])
@pytest.mark.parametrize('name', ['nclass5', 'sharp', 'nonintegral'])
def test_region_maps(name, path):
    a = {k: torch.as_tensor(v) for k, v in np.load(GOLDEN/f'corr_{name}.npz').items()}
    size = a['logits'].shape[2:]
    regions = torch.empty_like(a['bool_maps'])
    cut = {'cpu': regions_module._cut_on_cpu, 'device': regions_module._cut_on_device}[path]
    for rows, out in zip(a['sampled_rows'], regions):
        cut(rows.view(-1, *a['feature'].shape[2:]), out, 0.5)
    differ = (regions != a['bool_maps']).sum((2, 3))
    assert (differ <= a['near_half_1e5']).all(), 'only pixels within 1e-5 of the cut may differ'
    if path == 'cpu':
        public = regions_module.fast_region_maps(a['sampled_rows'], a['feature'].shape[2:], size)
        assert torch.equal(public, regions)


@pytest.mark.parametrize('seed', range(6))
def test_all_paths_agree(seed):
    g = torch.Generator().manual_seed(seed)
    b = 2
    m = 40
    h = 19+seed
    w = 27
    blobs = torch.nn.functional.interpolate(torch.randn(b, m+2, 5, 5, generator=g), (h, w), mode='bilinear')
    label = (blobs[:, 0]*2+2).round().clamp(0, 4).long()
    keep = blobs[:, 1] > -0.7
    regions = blobs[:, 2:] > 0.3
    tau = torch.tensor(0.4+0.08*seed)
    expected, *others = (PATHS[name](label, keep, regions, tau) for name in ('lesson', 'cpu', 'device'))
    for other in others:
        assert all(torch.equal(x, y) for x, y in zip(expected, other, strict=True))
