"""What the explorer promises outside of a lesson: light imports, a page that contains all it needs, odd
images and sizes."""
import base64
import json
import re
import zlib
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch.method.correlation import correlation_map
from corrmatch.use.explore import (
    _confidence_steps, explore_view, explorer_html, _grid_position, _pack_views, _read_position,
    write_explorer)
from corrmatch.use.predict import _as_image, _scaled
from corrmatch.engine.regions import fast_region_maps


def random_image(h=40, w=56, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def features(k=5, h=6, w=8, seed=0):
    return torch.randn(2, 1, k, h, w, generator=torch.Generator().manual_seed(seed)).unbind(0)


def scores(k=3, h=40, w=56, seed=0):
    return 3*torch.randn(1, k, h, w, generator=torch.Generator().manual_seed(seed))


def contents(page):
    "Meta, state and bytes of a page."
    found = json.loads(
        re.search(r'<script type="application/json" id="contents">(.*?)</script>', page, re.S)[1])
    return found['meta'], found['state'], zlib.decompress(base64.b64decode(found['data']))


def test_page_is_closed():
    "No address of anything outside, and hashes that fit script and style."
    page = explorer_html(
        random_image(), features(), logits=scores(), title='</script><b>&"', names=['a', '</script>', 'c'])
    assert page.count('</script>') == 2 and '<b>' not in page
    assert not re.search(r'https?:|//[a-z]+\.|\b(?:fetch|import|eval|XMLHttpRequest|WebSocket)\(', page)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    assert "default-src 'none'" in policy and 'unsafe' not in policy
    for text in (
        re.search(r'<style>(.*?)</style>', page, re.S)[1],
        re.search(r'<script type="module">(.*?)</script>', page, re.S)[1]):
        assert f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'" in policy
    meta, state, _ = contents(page)
    assert meta['names'][1] == '</script>' and state['tau'] == .85


def test_page_is_the_same_each_time():
    pages = {explorer_html(random_image(), features(), logits=scores()) for _ in range(2)}
    assert len(pages) == 1


def test_typical_page_is_small(tmp_path):
    "A photograph of 513 pixels, 21 classes, stride 8."
    y, x = np.mgrid[:385, :513]
    smooth = np.stack([128+100*np.sin(x/40), 128+100*np.cos(y/30), 128+60*np.sin((x+y)/50)], 2)
    photo = (smooth + np.random.default_rng(0).normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
    low = 4*torch.randn(1, 21, 13, 17, generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.interpolate(low, (385, 513), mode='bilinear', align_corners=True)
    assert write_explorer(tmp_path/'x.html', photo, features(21, 49, 65), logits=logits).stat().st_size < 2e6


def test_a_failed_write_keeps_the_old_page(tmp_path):
    path = write_explorer(tmp_path/'x.html', random_image(), features())
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write_explorer(path, random_image(), features(), logits=scores(h=39))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['x.html']


@pytest.mark.parametrize(
    'size, grid', [((40, 56), (6, 8)), ((33, 33), (1, 1)), ((1, 1), (1, 1)), ((7, 90), (1, 12))])
def test_any_size(size, grid):
    image, (f1, f2), logits = random_image(*size), features(5, *grid), scores(3, *size)
    view = explore_view(image, (f1, f2), logits)
    corr = correlation_map(f1, f2)
    for position in ((0, 0), (size[0]-1, size[1]-1), (size[0]//2, size[1]//2)):
        reading = _read_position(view, position)
        y, x = _grid_position(position, size, grid)
        assert torch.equal(reading.region, fast_region_maps(corr[:, [y*grid[1]+x]], grid, size)[0, 0])
        assert reading.vote.size == int(reading.region.sum())
    explorer_html(image, (f1, f2), logits=logits, position=(10**6, -5))


def test_constant_row_gives_an_empty_region_and_no_vote():
    reading = _read_position(explore_view(random_image(), torch.zeros(1, 4, 6, 8), scores()), (3, 3))
    assert not reading.region.any() and reading.vote.winner == -1 and not reading.vote.accepted


def test_equality_with_tau_counts_as_confident():
    steps = _confidence_steps(torch.tensor([[.85, .95, 1., 0.]]))
    assert steps.tolist() == [[8500, 9500, 10000, 0]]


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', '1'])
def test_images_of_all_modes(tmp_path, mode):
    path = tmp_path/('x.jpg' if mode == 'CMYK' else 'x.png')
    Image.fromarray(random_image()).convert(mode).save(path)
    image = _as_image(path)
    assert image.shape == (40, 56, 3) and image.dtype == np.uint8


@pytest.mark.parametrize('longest, wanted', [(513, (40, 56)), (28, (20, 28)), (2, (1, 2))])
def test_large_images_are_scaled_down(tmp_path, longest, wanted):
    Image.fromarray(random_image()).save(tmp_path/'x.png')
    assert _scaled(_as_image(tmp_path/'x.png'), longest).shape[:2] == wanted


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(source=torch.zeros(2, 4, 6, 8)), 'one image'),
        (dict(source=(torch.zeros(4, 6, 8), torch.zeros(4, 6, 9))), 'one shape'),
        (dict(source=torch.nn.Linear(2, 2)), 'correlation head'), (dict(tau=1.5), '0..1'),
        (dict(names=['a']), 'one of each'), (dict(image=np.zeros((4, 5))), 'shape'),
        (dict(temperature=0), 'temperature=0'),
        (dict(ground_truth=np.zeros((4, 5))), 'one class id a pixel')])
def test_errors_are_one_line(arguments, words):
    known = dict(image=random_image(), source=features(), logits=scores()) | arguments
    with pytest.raises(ValueError, match=words) as error:
        explorer_html(**known)
    assert '\n' not in str(error.value)


def test_two_views_share_what_is_equal():
    view = explore_view(random_image(), features(), scores())
    meta, blob = _pack_views({'weak': view, 'strong': view._replace(image=random_image(seed=1))})
    weak, strong = (v['arrays'] for v in meta['views'])
    assert weak['image'] != strong['image']
    assert max(start+length for v in (weak, strong) for start, length, _ in v.values()) <= len(blob)
