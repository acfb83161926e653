"""The fast views against the naive ones on equal draws and as distributions; batches that depend on nothing
but seed and step.

Tolerances, in grey levels of 255: weak views 0.3 on average and 8 at most, masks equal; strong views 1 on
average over draws, 3 for any one view; the device's strong views 1 on average and 12 at most beside the fast
ones. Images are generated with hard edges, the worst case.
"""
import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.fx.experimental.proxy_tensor import make_fx

from corrmatch.data.batches import CachedSource, StepBatches, StepLoader, add_strong, make_loader
from corrmatch.engine.views import fast_strong, fast_view, strong_numbers, strong_on_device
from corrmatch.data.folders import ArraySource, FolderSource, Pair, rng_for
from corrmatch.files import DataError
from corrmatch.data.toy import toy_arrays
from corrmatch.data.views import (
    StrongDraw, ViewDraw, apply_strong, apply_view, draw_strong, draw_view, resized)

IMAGES, MASKS = toy_arrays(range(12), size=97)
N_DRAWS = 240


def scene(size, seed=0):
    "An image of blocks, edges and noise with a mask of as many values."
    rng = np.random.default_rng(seed)
    w, h = size
    blocks = rng.integers(0, 256, (max(h//9, 1)+1, max(w//9, 1)+1, 3)).repeat(9, 0).repeat(9, 1)[:h, :w]
    noisy = np.clip(blocks + rng.normal(0, 8, blocks.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy), Image.fromarray(rng.integers(0, 256, (h, w), dtype=np.uint8))


def last(planes): return planes.transpose(1, 2, 0)
def off(a, b): return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int))


# --- equal draws

@pytest.mark.parametrize('size', [(160, 120), (120, 160), (97, 97), (61, 23)])
@pytest.mark.parametrize('crop', [33, 65])
def test_weak_views_agree_pixel_by_pixel(size, crop):
    image, mask = scene(size)
    means = []
    for i in range(60):
        draw = draw_view(rng_for(0, 1, i), size, crop)
        (fast, fast_mask), (plain, plain_mask) = (
            fast_view(image, mask, draw, crop, 255), apply_view(image, mask, draw, crop, 255))
        assert fast.shape == (3, crop, crop) and fast.dtype == fast_mask.dtype == np.uint8
        assert np.array_equal(fast_mask, plain_mask)
        d = off(last(fast), plain)
        means.append(d.mean())
        assert d.max() <= 2
    assert np.mean(means) < 0.05


@pytest.mark.parametrize(
    'size, long_side',
    [((1, 1), 1), ((1, 1), 7), ((9, 1), 40), ((3, 200), 33), ((50, 40), 500), ((300, 200), 3)])
def test_odd_sizes(size, long_side):
    image, mask = scene(size)
    for place in (0, max(max(resized(size, long_side))-5, 0)):
        draw = ViewDraw(
            long_side, min(place, max(resized(size, long_side)[0] - 5, 0)),
            min(place, max(resized(size, long_side)[1] - 5, 0)), True)
        (fast, fast_mask), (plain, plain_mask) = (
            fast_view(image, mask, draw, 5), apply_view(image, mask, draw, 5))
        assert np.array_equal(fast_mask, plain_mask) and off(last(fast), plain).max() <= 2


def test_palette_masks_keep_their_ids():
    image, mask = scene((40, 30))
    colored = mask.copy()
    colored.putpalette(list(range(256))*3)
    draw = draw_view(rng_for(0, 1, 0), image.size, 33)
    assert np.array_equal(fast_view(image, colored, draw, 33)[1], apply_view(image, mask, draw, 33)[1])


def test_strong_views_agree():
    view = scene((65, 65))[0]
    planes = np.asarray(view).transpose(2, 0, 1)
    means = [
        off(last(fast_strong(planes, d)), apply_strong(view, d)).mean()
        for d in (draw_strong(rng_for(0, 1, i)) for i in range(120))]
    assert np.mean(means) < 1 and np.max(means) < 3


@pytest.mark.parametrize('strength', [0.2, 1.0, 3.0])
def test_any_strength_of_jitter(strength):
    view = scene((65, 65))[0]
    planes = np.asarray(view).transpose(2, 0, 1)
    for i in range(30):
        draw = draw_strong(rng_for(2, 1, i), *([strength*0.5]*3), hue=0.5, p_jitter=1, sigma_max=4)
        assert off(last(fast_strong(planes, draw)), apply_strong(view, draw)).mean() < 6


def test_whole_batch_on_the_device_agrees():
    views = [np.asarray(scene((65, 65), i)[0]).transpose(2, 0, 1) for i in range(24)]
    draws = [draw_strong(rng_for(3, 1, i)) for i in range(24)]
    rows = torch.from_numpy(np.stack([strong_numbers(d) for d in draws]))
    made = strong_on_device(torch.from_numpy(np.stack(views)), rows)
    assert made.dtype == torch.uint8
    for ours, view, draw in zip(made, views, draws):
        d = off(ours, fast_strong(view, draw))
        assert d.mean() < 1 and d.max() <= 12


def test_device_work_has_one_graph():
    "No branch, shape or number depends on values: the traced graph of one batch serves another."
    views = torch.from_numpy(
        np.stack([np.asarray(scene((33, 33), i)[0]).transpose(2, 0, 1) for i in range(6)]))
    rows = [
        torch.from_numpy(np.stack([strong_numbers(draw_strong(rng_for(s, 1, i))) for i in range(6)]))
        for s in (0, 1)]
    graph = make_fx(strong_on_device)(views, rows[0])
    assert torch.equal(graph(views.flip(0), rows[1]), strong_on_device(views.flip(0), rows[1]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_device_work_never_waits():
    views = torch.zeros(4, 3, 65, 65, dtype=torch.uint8)
    rows = torch.from_numpy(np.stack([strong_numbers(draw_strong(rng_for(0, 1, i))) for i in range(4)]))
    views, rows = views.cuda(), rows.cuda()
    torch.cuda.set_sync_debug_mode('error')
    try:
        strong_on_device(views, rows)
    finally:
        torch.cuda.set_sync_debug_mode('default')


# --- equal distributions

def describe(view):
    "Brightness, its spread, saturation, two hue bins and the energy of fine detail."
    v = view.astype(np.float32)
    chroma = v.max(0) - v.min(0)
    hues = [((v[c] >= v.max(0)) & (chroma > 20)).mean() for c in (0, 2)]
    return [
        v.mean(), v.std(), chroma.mean(), *hues, np.abs(np.diff(v, axis=-1)).mean(),
        np.abs(np.diff(v, axis=-2)).mean()]


def views(fast, seed, crop=49):
    image, rows = scene((80, 60))[0], []
    for i in range(N_DRAWS):
        rng = rng_for(seed, 1, i)
        draw = draw_view(rng, image.size, crop)
        colours = draw_strong(rng)
        rows.append(
            describe(
                fast_strong(fast_view(image, None, draw, crop)[0], colours)
                if fast
                else np.asarray(apply_strong(apply_view(image, None, draw, crop)[0], colours)).transpose(
                    2, 0, 1)))
    return np.array(rows)


def test_statistics_of_views_agree():
    plain = views(False, 0)
    shared = views(True, 0)
    fresh = views(True, 1)
    assert (np.abs(shared-plain).mean(0) < 0.06*plain.std(0)).all()
    assert (np.abs(shared.mean(0)-plain.mean(0)) < 0.03*plain.std(0)).all()                      # no bias
    z = (plain.mean(0)-fresh.mean(0))/np.sqrt((plain.var(0)+fresh.var(0))/N_DRAWS)
    assert (np.abs(z) < 4).all()
    assert (np.abs(np.log(plain.std(0)/fresh.std(0))) < 0.35).all()


# --- batches

def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def batches(labeled=None, unlabeled=None, **kwargs):
    source = ArraySource(IMAGES, MASKS)
    return StepBatches(labeled or source, unlabeled or source, 33, 4, 4, 0, **kwargs)


@pytest.mark.parametrize(
    'options', [{}, dict(fast=False), dict(device_strong=True, n_strong=2), dict(partner='other_image')])
def test_workers_do_not_change_batches(options):
    here, there = (list(make_loader(batches(**options), 0, 5, workers)) for workers in (0, 2))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize('options', [{}, dict(fast=False), dict(device_strong=True)])
def test_shares_of_a_step_make_the_step(options):
    whole = batches(n_strong=2, **options)[3]
    for rank, places in enumerate(((0, 2), (1, 3))):
        part = batches(n_strong=2, positions_x=places, positions_u=places, **options)[3]
        for key, value in part.items():
            if not isinstance(value, torch.Tensor):
                continue
            axis = 1 if key in ('image_u_s', 'image_mix_s', 'box_u', 'draws_u', 'draws_mix') else 0
            assert torch.equal(value, whole[key].movedim(axis, 0)[rank::2].movedim(0, axis)), key


def test_naive_and_fast_batches_are_the_same_batches():
    plain = batches(fast=False)[2]
    fast = batches()[2]
    device = add_strong(batches(device_strong=True)[2])
    assert plain.keys() == fast.keys() == device.keys()
    for key in plain:
        if not isinstance(plain[key], torch.Tensor):
            assert plain[key] == fast[key] == device[key]
        elif not key.startswith('image_'):
            assert torch.equal(plain[key], fast[key]) and torch.equal(plain[key], device[key])
        else:
            assert (
                plain[key].shape == fast[key].shape
                and off(plain[key], fast[key]).mean() < 2
                and off(fast[key], device[key]).mean() < 2)


class Counting(ArraySource):
    def __init__(self, *args):
        super().__init__(*args)
        self.images_read, self.masks_read = 0, 0
    def read_image(self, i):
        self.images_read += 1
        return super().read_image(i)
    def read_mask(self, i):
        self.masks_read += 1
        return super().read_mask(i)


@pytest.mark.parametrize(
    'partner, reads', [('same_image', 4), ('other_image', 8), ('in_batch', 4), ('none', 4)])
def test_images_are_read_as_often_as_needed(partner, reads):
    x, u = Counting(IMAGES, MASKS), Counting(IMAGES, MASKS)
    batches(x, u, partner=partner)[0]
    assert (x.images_read, x.masks_read) == (4, 4)
    # hidden masks: not asked for, not read
    assert (u.images_read, u.masks_read) == (reads, 0)
    batches(x, u, partner=partner, with_hidden=True)[0]
    assert u.masks_read == reads


def test_cache_reads_once_and_changes_nothing():
    x = Counting(IMAGES, MASKS)
    cached, plain = batches(CachedSource(x)), batches()
    assert all(same(cached[i], plain[i]) for i in range(8))
    assert x.images_read == x.masks_read == 12


def test_cache_keeps_its_limit():
    x = Counting(IMAGES, MASKS)
    cached = CachedSource(x, limit=3*97*97*4/1e6)
    for _ in range(2):
        for i in range(5):
            cached.read_image(i)
    assert x.images_read == 5+2 and cached.left < 97*97*4


# --- the loader

class Broken(ArraySource):
    def read_image(self, i): raise DataError(f'image {i}: unreadable; replace it')


class Dying(ArraySource):
    def read_image(self, i): os._exit(9)


def children(): return multiprocessing.active_children()


def test_worker_error_is_one_line_and_ends_all_workers():
    with pytest.raises(DataError) as caught:
        list(make_loader(batches(unlabeled=Broken(IMAGES, MASKS)), 0, 9, workers=2))
    assert str(caught.value).startswith('20 images in a row cannot be read') and '\n' not in str(
        caught.value)
    assert children() == []


def test_killed_worker_is_one_line_and_ends_all_workers():
    with pytest.raises(DataError, match='a loader process died') as caught:
        list(make_loader(batches(unlabeled=Dying(IMAGES, MASKS)), 0, 9, workers=2))
    assert '\n' not in str(caught.value) and children() == []


def test_leaving_early_ends_all_workers():
    loader = make_loader(batches(), 0, 500, workers=2)
    assert isinstance(loader, StepLoader) and len(loader) == 500
    for _ in loader:
        break
    assert children() == []
    with pytest.raises(KeyError):
        for _ in loader:
            raise KeyError
    del loader
    assert children() == []


def test_images_on_disk(tmp_path):
    "JPEG and PNG files go through both pipelines alike."
    image, mask = scene((120, 90))
    image.save(tmp_path/'a.jpg', quality=95)
    mask.point(lambda v: v % 3).save(tmp_path/'a.png')
    source = FolderSource([Pair(tmp_path/'a.jpg', tmp_path/'a.png', 'a')])
    plain, fast = (batches(source, source, fast=fast)[0] for fast in (False, True))
    assert torch.equal(plain['mask_x'], fast['mask_x']) and off(plain['image_x'], fast['image_x']).max() <= 8


def test_unchanged_draw_changes_nothing():
    view = np.asarray(scene((20, 20))[0]).transpose(2, 0, 1)
    assert np.array_equal(fast_strong(view, StrongDraw(None, False, None)), view)
