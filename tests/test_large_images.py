"Images of many pixels: read in bands, and above Pillow's limit refused by every command with the same words."
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from corrmatch.use.cli import main
from corrmatch.data.masks import StoredMask, map_ids, mask_facts, _solid_pixels
from corrmatch.use.predict import _overlay
from corrmatch.training.trainer import Trainer
from corrmatch.viz import colorize
from runs_for_tests import small

SMALL = [
    '--backbone=toynet', '--weights=', '--crop=33', '--batch-x=2', '--batch-u=2', '--steps=1', '--device=cpu']


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A data set with one image that is larger than the rest, and a run on it."
    root = tmp_path_factory.mktemp('large')
    draw = np.random.default_rng(0)
    for kind in ('images', 'masks'):
        (root/'data'/kind).mkdir(parents=True)
    for i, size in enumerate((30, 30, 30, 30, 30, 600)):
        Image.fromarray(draw.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(
            root / 'data' / 'images' / f'{i}.png')
        Image.fromarray(np.eye(size, dtype=np.uint8)).save(root/'data'/'masks'/f'{i}.png')
    lines = [f'images/{i}.png masks/{i}.png\n' for i in range(6)]
    for name, rows in dict(labeled=lines[1:], unlabeled=lines[1:], val=lines[:1], large=lines[5:]).items():
        (root/'data'/f'{name}.txt').write_text(''.join(rows))
    lists = dict(
        data=str(root / 'data'), labeled='labeled.txt', unlabeled='unlabeled.txt', val='val.txt', n_classes=2)
    Trainer(small(root/'run', steps=1, eval_every=1, **lists), quiet=True).fit()
    return root


@pytest.mark.parametrize(
    'argv',
    [
        ('check', 'data', '--out', 'report'),
        ('train', 'data', '--out', 'new', *SMALL),
        (
            'train', 'camvid', '--data', 'data', '--labeled', 'labeled.txt', '--unlabeled', 'unlabeled.txt',
            '--val', 'val.txt', '--n_classes', '2', '--out', 'new', *SMALL),
        ('predict', 'run', 'data/images/5.png', '--out', 'out', '--device', 'cpu'),
        ('pseudo', 'run', 'data/images/5.png', '--out', 'out', '--device', 'cpu'),
        ('eval', 'run', '--val', 'large.txt', '--device', 'cpu'),
        ('explore', 'data/images/5.png', '--model', 'run', '--out', 'x.html', '--device', 'cpu')],
    ids=lambda argv: '_'.join(argv[:2]).replace('/', '_'))
def test_more_pixels_than_are_read(site, monkeypatch, capfd, argv):
    monkeypatch.chdir(site)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 150_000)
    assert main(list(argv)) == 1
    said = ''.join(capfd.readouterr())
    assert (
        '5.png' in said
        and '360,000 pixels, more than the 300,000 that are read; scale it down or cut it into parts' in said
    ), said
    assert 'Traceback' not in said and 'bomb' not in said


def test_images_near_the_limit_are_read_without_a_word(site, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 200_000)
    assert (
        main(
            [
                'predict', str(site / 'run'), str(site / 'data/images/5.png'), '--out', str(tmp_path / 'out'),
                '--device', 'cpu'])
        == 0)
    assert 'Warning' not in capfd.readouterr().err


def literal_facts(values):
    """Counts of a mask, of its solid pixels, and how often unequal neighbours follow one another, without
    bands."""
    found, ranks, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = ranks.reshape(values.shape)
    steps = np.concatenate([np.abs(np.diff(ranks, axis=axis)).ravel() for axis in (0, 1)])
    inner = np.bincount(ranks[_solid_pixels(values)], minlength=len(found))
    solid = {v: n for v, n in zip(found.tolist(), inner.tolist()) if n}
    return (
        dict(zip(found.tolist(), counts.tolist())), solid,
        (steps[steps > 0] <= 2).sum() / max((steps > 0).sum(), 1))


@pytest.mark.parametrize('top', [3, 2**24])
@pytest.mark.parametrize('size', [(1, 1), (1, 300), (300, 1), (5, 300_001), (1100, 1100)])
def test_facts_from_bands(size, top):
    "The last two are cut into several bands."
    draw = np.random.default_rng(0)
    values = np.repeat(draw.integers(0, top, (size[0]//7+1, size[1])), 7, 0)[:size[0]].astype(np.int32)
    counts, solid, ramp = literal_facts(values)
    facts = mask_facts(StoredMask(values, 'L', None, False), most=10**9)
    assert facts.counts == counts and facts.solid == solid
    assert facts.ramp == (pytest.approx(ramp) if len(counts) >= 32 else 0)


def test_memory_is_a_small_multiple_of_the_pixels():
    values = np.random.default_rng(0).integers(0, 3, (3000, 4000)).astype(np.int32)
    values[0, 0] = 2**20
    mask = values.astype(np.uint8)
    image = np.zeros((*values.shape, 3), np.uint8)
    colors = np.zeros((3, 3), np.uint8)
    for bytes_a_pixel, work in (
        (6, lambda: mask_facts(StoredMask(values, 'L', None, False))),
        (6, lambda: map_ids(values, {0: 0, 1: 1, 2: 2})), (8, lambda: _overlay(image, mask, colors)),
        (14, lambda: colorize(mask, colors))):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < bytes_a_pixel*values.size, (bytes_a_pixel, peak/values.size)
