"""Every stored figure: no panel of a prediction, mask or map is a single colour, and verdicts have colours of
their own."""
import base64
import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corrmatch.viz import VERDICT_COLORS, palette

ndimage = pytest.importorskip('scipy.ndimage', reason='needs scipy: the extra dev')
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').rglob('*.ipynb'), key=lambda p: p.name)
LEAST = 36     # pixels: smaller boxes are legends, bars and letters
NEAR = 10      # levels of 256 that compression may change
ALLOWED = {    # cell: why panels of one colour are right there
    '46049533': 'squares of the palette', 'cc47a97b': 'squares of the palette',
    '020ab472': 'squares of the palette',
    '5a367e2e': 'shows how a wrong scale makes an image black', '029f3a1f': 'stacked bars',
    'b83f928e': 'a single position on its grid', '6a656708': 'bars of a plot'}


def panels(image: np.ndarray) -> list:
    "Boxes (top, bottom, left, right) of the panels of a figure (h,w,3) on white: connected and large."
    parts, _ = ndimage.label((image < 245).any(2), np.ones((3, 3)))
    boxes = [(y.start, y.stop, x.start, x.stop) for y, x in ndimage.find_objects(parts)]
    return [b for b in boxes if b[1]-b[0] >= LEAST and b[3]-b[2] >= LEAST]


def is_plain(image: np.ndarray) -> bool:
    "Is a panel (h,w,3) a single colour within its frame?"
    inside = image[4:-4, 4:-4].reshape(-1, 3).astype(int)
    common = np.median(inside, 0)
    same = (np.abs(inside-common).max(1) <= NEAR).mean()
    return same >= (.9999 if common.min() > 240 else .985)  # thin lines on white are a plot


def figures(path: Path):
    "Yield (cell id, image (h,w,3) uint8) of a notebook's stored figures."
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        for output in cell.get('outputs', []):
            for kind in ('image/png', 'image/jpeg'):
                if data := output.get('data', {}).get(kind):
                    figure = Image.open(io.BytesIO(base64.b64decode(''.join(data)))).convert('RGBA')
                    ground = Image.new('RGBA', figure.size, 'white')
                    yield cell['id'], np.asarray(Image.alpha_composite(ground, figure).convert('RGB'))


def plain_panels(image: np.ndarray) -> list:
    "The boxes of the panels that are a single colour."
    return [b for b in panels(image) if is_plain(image[b[0]:b[1], b[2]:b[3]])]


@cache
def plain_cells(path: Path) -> dict:
    "{cell id: boxes of its plain panels}"
    return {cell: boxes for cell, image in figures(path) if (boxes := plain_panels(image))}


def drawn(*arrays, colors=None):
    "A figure of masks, as notebooks store it."
    import matplotlib.pyplot as plt
    from corrmatch.viz import show_mask
    fig, axes = plt.subplots(1, len(arrays), figsize=(2*len(arrays), 2), squeeze=False, layout='constrained')
    for ax, array in zip(axes[0], arrays):
        show_mask(array, 'a mask', ax, colors)
    fig.savefig(stream := io.BytesIO(), format='png', dpi=72)
    plt.close(fig)
    return np.asarray(Image.open(stream).convert('RGB'))


def test_a_plain_panel_is_found():
    two = np.zeros((40, 40), int)
    two[10:20, 10:20] = 1
    speck = np.zeros((40, 40), int)
    speck[10:12, 10:13] = 1
    assert len(panels(drawn(two, two*0, two))) == 3
    for background in (0, 3, 7):
        assert len(plain_panels(drawn(two, np.full_like(two, background), two))) == 1
    assert len(plain_panels(drawn(two, speck))) == 1, 'so is one with a speck'
    assert len(plain_panels(drawn(two*0, two, colors=VERDICT_COLORS))) == 1, 'and a white one'
    assert plain_panels(drawn(two, two)) == []


def test_a_plot_is_no_plain_panel():
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 2, figsize=(5, 2), layout='constrained')
    axes[0].plot([0, 1], [0, 1], lw=.6)
    axes[1].bar([0, 1], [1, 2])
    fig.savefig(stream := io.BytesIO(), format='png', dpi=72)
    plt.close(fig)
    assert plain_panels(np.asarray(Image.open(stream).convert('RGB'))) == []


@pytest.mark.parametrize('path', NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_no_panel_is_a_single_colour(path):
    lines = [
        f'{path.name} cell {cell}: panel at {boxes}'
        for cell, boxes in plain_cells(path).items()
        if cell not in ALLOWED]
    assert not lines, '\n' + '\n'.join(lines)


def test_what_is_allowed_exists():
    found = {cell for path in NOTEBOOKS for cell in plain_cells(path)}
    assert set(ALLOWED) <= found, 'an entry of ALLOWED that no figure needs any more'


def test_verdicts_have_colours_of_their_own():
    classes = np.concatenate([palette(21, name) for name in ('toy', 'pascal', 'cityscapes')]).astype(int)
    for color in VERDICT_COLORS[[1, 2, 4]].astype(int):
        assert np.abs(classes-color).sum(1).min() >= 60, f'{color.tolist()} is near a class colour'
