"""The three palettes against those of the reference implementation: equal bytes."""
from pathlib import Path

import numpy as np
import pytest

from corrmatch.viz import palette

ARRAYS = np.load(Path(__file__).parent/'golden'/'colormap.npz')


@pytest.mark.parametrize('name', ARRAYS.files)
def test_palette(name):
    ours = palette(256, name)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, ARRAYS[name])


@pytest.mark.parametrize('name', ARRAYS.files)
def test_short_palette_is_its_beginning(name):
    assert np.array_equal(palette(7, name), ARRAYS[name][:7])
