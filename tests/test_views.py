"Fast views: what they make of settings far from the paper's."
import numpy as np
import pytest
from PIL import Image

from corrmatch.data.views import StrongDraw, apply_strong
from corrmatch.engine.views import fast_strong


@pytest.mark.parametrize('factor', [0., 1.5, 60., 128., 129., 129.6, 150., 300., 1000., 1e6, 1e12])
@pytest.mark.parametrize('change', ['brightness', 'contrast'])
def test_any_strength_of_the_colour_jitter(factor, change):
    "Up to a level, as Pillow; beyond 16 bits, too. Of contrast, levels next to the mean grey may differ."
    grays = np.arange(256, dtype=np.uint8).reshape(16, 16)[None].repeat(3, 0)
    factors = (factor, 1., 1.) if change == 'brightness' else (1., factor, 1.)
    order = (0, 1, 2, 3)
    draw = StrongDraw((order, *factors, 0.), False, None)
    naive = apply_strong(Image.fromarray(grays.transpose(1, 2, 0)), draw)
    off = np.abs(fast_strong(grays, draw).astype(int) - np.asarray(naive).transpose(2, 0, 1))
    assert (off > 2).sum() <= (0 if change == 'brightness' else 3*2), off.max()
