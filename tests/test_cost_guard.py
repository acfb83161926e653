"""The cost of regions and of propagated scores, in operations and bytes and not in seconds.

Each guard is also held against the plain version of what it guards: a guard that lets that pass is no
guard.
"""
import tracemalloc
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from corrmatch.engine import regions as regions_module
from corrmatch.method import region
from corrmatch.method.correlation import correlation_map, correlation_rows
from corrmatch.engine.pixels import spread_pixels
from corrmatch.method.pixel import propagate_pixels

WAITS = {
    '_local_scalar_dense', 'item', 'is_nonzero', 'nonzero', 'masked_select', '_unique2', 'unique_dim',
    'unique_consecutive', 'equal', 'bincount'}


class Watch(TorchDispatchMode):
    "Count operations, the largest tensor they make, and the bytes of their results that are alive at once."
    def __init__(self):
        super().__init__()
        self.ops = Counter()
        self.largest = Counter()
        self.live = 0
        self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.ops[func.overloadpacket.__name__] += 1
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.see(t)
        return out

    def see(self, t):
        storage = t.untyped_storage()
        size, key = storage.nbytes(), storage._cdata
        self.largest[t.dtype] = max(self.largest[t.dtype], size//t.element_size())
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.known.discard(key)
        self.live -= size


def watched(run, *args, **kwargs):
    with Watch() as watch:
        run(*args, **kwargs)
    return watch


def extra_bytes(run, *args):
    "Peak of what NumPy (by tracemalloc) and tensors (by Watch) hold beyond the inputs."
    tracemalloc.start()
    watch = watched(run, *args)
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return watch.peak + numpy_peak, watch


# ---- scores spread along the map ----

def plain_spread(f1, f2, values): return propagate_pixels(correlation_map(f1, f2), values)


def spread_cost(spread, side, **kwargs):
    "Watch forward and backward of one image on a side x side grid."
    draw = torch.Generator().manual_seed(0)
    f1, f2, values = (torch.randn(1, 6, side, side, generator=draw) for _ in range(3))
    f1.requires_grad_(), f2.requires_grad_()
    return watched(lambda: spread(f1, f2, values, **kwargs).square().sum().backward())


def assert_linear(spread, **kwargs):
    "Four times the positions must not take much more than four times the memory, and no N x N tensor."
    small, large = (spread_cost(spread, side, **kwargs) for side in (24, 48))
    assert large.largest[torch.float32] < 48**4/8, 'a tensor of the size of the map'
    assert large.peak / small.peak < 4.5, (
        f'memory grows by {large.peak / small.peak:.1f} for four times the positions')


def test_spread_memory_is_linear():
    assert_linear(spread_pixels, rows=16)


def test_spread_default_stays_in_its_budget():
    assert spread_cost(spread_pixels, 64).largest[torch.float32] <= 2**20
    assert spread_cost(spread_pixels, 64).peak < spread_cost(plain_spread, 64).peak/8


def test_guard_catches_the_whole_map():
    with pytest.raises(AssertionError, match='size of the map'):
        assert_linear(plain_spread)


def test_rows_are_computed_alone():
    f1 = torch.randn(2, 6, 40, 40)
    f2 = torch.randn(2, 6, 40, 40)
    index = torch.arange(0, 1500, 100)
    one = watched(correlation_rows, f1, f2, index)
    assert one.largest[torch.float32] <= 2*15*1600
    assert watched(lambda: correlation_map(f1, f2)[:, index]).largest[torch.float32] >= 2*1600**2


# ---- regions on the CPU ----

B = 2
M = 48
SIDE = 25
SIZE = 193


def region_case(share=.8):
    "Smooth rows and labels; a larger `share` keeps more pixels."
    draw = torch.Generator().manual_seed(1)
    waves = torch.nn.functional.interpolate(
        torch.randn(B, M + 2, 5, 5, generator=draw), (SIDE, SIDE), mode='bilinear', align_corners=True)
    rows = (4*waves[:, 2:]).flatten(2).softmax(2)
    fine = torch.nn.functional.interpolate(waves[:, :2], (SIZE, SIZE), mode='bilinear', align_corners=True)
    label = (fine[:, 0] > .8).long()
    keep = fine[:, 1] < fine[:, 1].quantile(share)
    within = torch.ones_like(keep)
    within[:, 20:60, 40:90] = False
    return rows, (SIDE, SIDE), label, keep, within, torch.tensor(.7)


def plain_targets(rows, feat_size, label, keep, within, tau):
    regions = region.clear_regions(region.region_maps(rows, feat_size, label.shape[1:]), within, ~within)
    return region.propagate_regions(label, keep, regions, tau)[:2]


def assert_lean(run, case):
    "No float image of the regions, few operations, and less memory than one image's regions take as bytes."
    memory, watch = extra_bytes(run, *case)
    pixels = M*SIZE**2
    assert max(watch.largest[d] for d in (torch.float32, torch.float64, torch.bool)) < pixels, (
        'an image of all regions')
    assert memory < 1.5*pixels + 40*SIZE**2, f'{memory/1e6:.1f} MB'
    assert sum(watch.ops.values()) < B*150, f'{sum(watch.ops.values())} operations'


@pytest.mark.parametrize('share', [.95, .5])
def test_regions_are_lean_and_equal(share):
    case = region_case(share)
    assert_lean(regions_module.fast_region_targets, case)
    for ours, theirs in zip(regions_module.fast_region_targets(*case), plain_targets(*case)):
        assert torch.equal(ours, theirs)


def test_guard_catches_float_images():
    with pytest.raises(AssertionError, match='image of all regions'):
        assert_lean(plain_targets, region_case())


def test_only_outlines_are_computed():
    rows, feat_size, label = region_case()[:3]
    seen = []
    original = regions_module._block_values
    def counted(maps, corner, side):
        seen.append(len(corner)*side**2)
        return original(maps, corner, side)
    regions_module._block_values = counted
    try:
        regions_module._cut_packed(rows[0], feat_size, label.shape[1:])
    finally:
        regions_module._block_values = original
    assert 0 < sum(seen) < M*SIZE**2/4


def test_a_vote_counts_words_and_not_pixels(monkeypatch):
    "The gate is judged for all regions at once; each vote touches one bit a pixel and class."
    counted = []
    monkeypatch.setattr(np, 'bitwise_count', lambda x, f=np.bitwise_count: counted.append(x.size) or f(x))
    regions_module.fast_region_targets(*region_case(.95))
    words = (-(-SIZE//8))**2
    assert max(counted) <= M*words and len(counted) <= B*(2+M)


# ---- what a GPU is asked to do ----

def device_cut(case):
    regions = torch.empty(B, M, SIZE, SIZE, dtype=torch.bool)
    for maps, out in zip(case[0].view(B, M, SIDE, SIDE), regions):
        regions_module._cut_on_device(maps, out, .5)
    return regions


def assert_never_waits(run, *args):
    waits = WAITS & set(watched(run, *args).ops)
    assert not waits, f'the host would wait for {sorted(waits)}'


def test_device_path_never_waits():
    case = region_case()
    assert_never_waits(device_cut, case)
    assert_never_waits(regions_module._propagate_on_device, case[2], case[3], device_cut(case), case[5], 6)


def test_guard_catches_a_waiting_loop():
    case = region_case()
    with pytest.raises(AssertionError, match='would wait'):
        assert_never_waits(region.propagate_regions, case[2], case[3], device_cut(case), case[5])


def test_device_cut_holds_a_part_at_a_time(monkeypatch):
    interpolate, sizes = torch.nn.functional.interpolate, []
    def counted(*args, **kwargs):
        values = interpolate(*args, **kwargs)
        sizes.append(values.numel())
        return values
    monkeypatch.setattr(regions_module.F, 'interpolate', counted)
    regions_module._cut_on_device(torch.rand(40, 13, 13), torch.empty(40, 801, 801, dtype=torch.bool), .5)
    assert max(sizes) <= 2**24 and len(sizes) > 1


def test_device_loop_grows_with_regions_only():
    case = region_case()
    regions = device_cut(case)
    some, all_ = (
        sum(
            watched(
                regions_module._propagate_on_device, case[2], case[3], regions[:, :m], case[5], 6
            ).ops.values())
        for m in (12, 48))
    assert all_ <= 4*some
