"""Views, colour changes, CutMix boxes and normalisation against arrays recorded from the reference
implementation.

golden/transforms.npz holds inputs and outputs, golden/transforms_draws.json the random numbers in the order
in which they were drawn: [function, arguments, value]. `Replay` plays them back through the methods of a
numpy generator that our pipelines call, and checks that each is asked for with the same arguments. Pixels
must be equal; normalised floats agree within 1e-5.
"""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch.config import IGNORE_INDEX
from corrmatch.data.views import (
    StrongDraw, ViewDraw, apply_strong, apply_view, cutmix_box, draw_strong, draw_view, normalize, resized,
    view_valid)

HERE = Path(__file__).parent/'golden'
ARRAYS = np.load(HERE/'transforms.npz')
DRAWS = json.loads((HERE/'transforms_draws.json').read_text())
PIPELINE_CROP = 65


class Replay:
    "A generator that repeats recorded draws and refuses any other."
    def __init__(self, draws):
        self.queue = []
        for function, arguments, value in draws:
            if function == 'ColorJitter.get_params':  # one record for a permutation and four uniform numbers
                self.queue += [('permutation', [4], value[0]), *(('uniform', None, v) for v in value[1:])]
            elif function in ('random.random', 'torch.rand'):
                self.queue.append(('random', [], value))
            elif function == 'random.randint':
                self.queue.append(('integers', arguments, value))
            elif function == 'np.random.randint':
                self.queue.append(('integers', [arguments[0], arguments[1]-1], value))
            elif function == 'np.random.uniform':
                self.queue.append(('uniform', arguments, value))
            else:
                raise AssertionError(f'unknown draw {function}')

    def play(self, method, arguments):
        recorded, expected, value = self.queue.pop(0)
        assert recorded == method
        if expected is not None:
            assert np.allclose(expected, arguments)
        return value

    def random(self): return self.play('random', [])
    def uniform(self, low, high): return self.play('uniform', [low, high])
    def permutation(self, n): return self.play('permutation', [n])
    def integers(self, low, high, endpoint=False):
        return self.play('integers', [low, high if endpoint else high-1])


def cases(prefix): return [name for name in DRAWS if name.startswith(prefix)]


@pytest.fixture
def golden(request):
    """The arrays of a case, its images as PIL, and the replay; every recorded draw must have been used at the
    end."""
    name = request.param
    arrays = {key.split('/')[1]: ARRAYS[key] for key in ARRAYS.files if key.startswith(name+'/')}
    replay = Replay(DRAWS[name])
    arrays |= {f'pil_{key}': Image.fromarray(arrays[key]) for key in ('image', 'mask') if key in arrays}
    yield arrays, replay
    assert not replay.queue, 'recorded draws were left over'


def of(prefix): return pytest.mark.parametrize('golden', cases(prefix), indirect=True)


def normalized(image):
    "A PIL image or (h,w,3) array as a normalised (3,h,w) array."
    return normalize(torch.from_numpy(np.array(image)).permute(2, 0, 1)).numpy()


def assert_close(ours, theirs): assert np.abs(ours-theirs).max() <= 1e-5*np.abs(theirs).max()


def test_all_kinds_are_covered():
    assert all(
        name.startswith(('resize_', 'crop_', 'hflip_', 'blur_', 'cutmix_', 'normalize', 'pipeline_train_'))
        for name in DRAWS)
    assert len(DRAWS) >= 30


@of('resize_')
def test_resize(golden):
    arrays, replay = golden
    image = arrays['pil_image']
    long_side = replay.integers(int(max(image.size)*0.5), int(max(image.size)*2.0), endpoint=True)
    w, h = resized(image.size, long_side)
    assert (h, w) == arrays['mask_out'].shape
    ours, mask = apply_view(image, arrays['pil_mask'], ViewDraw(long_side, 0, 0, False), max(w, h))
    assert np.array_equal(np.asarray(ours)[:h, :w], arrays['image_out'])
    assert np.array_equal(np.asarray(mask)[:h, :w], arrays['mask_out'])


@of('crop_')
def test_pad_and_crop(golden):
    arrays, replay = golden
    image, size = arrays['pil_image'], int(arrays['size'])
    x, y = (replay.integers(0, max(side-size, 0), endpoint=True) for side in image.size)
    draw = ViewDraw(max(image.size), x, y, False)
    ours, mask = apply_view(image, arrays['pil_mask'], draw, size, int(arrays['ignore_value']))
    assert np.array_equal(ours, arrays['image_out'])
    assert np.array_equal(mask, arrays['mask_out'])


@of('hflip_')
def test_flip(golden):
    arrays, replay = golden
    image, flip = arrays['pil_image'], replay.random() < 0.5
    (w, h), side = image.size, max(image.size)
    ours, mask = apply_view(image, arrays['pil_mask'], ViewDraw(side, 0, 0, flip), side)
    columns = slice(side-w, side) if flip else slice(0, w)  # padding was mirrored too
    assert np.array_equal(np.asarray(ours)[:h, columns], arrays['image_out'])
    assert np.array_equal(np.asarray(mask)[:h, columns], arrays['mask_out'])


@of('blur_')
def test_blur(golden):
    arrays, replay = golden
    sigma = replay.uniform(0.1, 2.0) if replay.random() < 0.5 else None
    assert np.array_equal(
        apply_strong(arrays['pil_image'], StrongDraw(None, False, sigma)), arrays['image_out'])


@of('cutmix_')
def test_cutmix_box(golden):
    arrays, replay = golden
    assert np.array_equal(cutmix_box(int(arrays['size']), replay), arrays['box'].astype(bool))


@of('normalize')
def test_normalize(golden):
    arrays, _ = golden
    assert_close(normalized(arrays['image']), arrays['image_out'])
    assert np.array_equal(arrays['mask'].astype(np.int64), arrays['mask_out'])


@of('pipeline_train_l')
def test_labeled_pipeline(golden):
    arrays, replay = golden
    image, mask = arrays['pil_image'], arrays['pil_mask']
    view, view_mask = apply_view(
        image, mask, draw_view(replay, image.size, PIPELINE_CROP), PIPELINE_CROP, IGNORE_INDEX)
    assert_close(normalized(view), arrays['image_out'])
    assert np.array_equal(np.asarray(view_mask).astype(np.int64), arrays['mask_out'])


@of('pipeline_train_u')
def test_unlabeled_pipeline(golden):
    arrays, replay = golden
    image = arrays['pil_image']
    draw = draw_view(replay, image.size, PIPELINE_CROP)
    strong_draw = draw_strong(replay)
    box = cutmix_box(PIPELINE_CROP, replay)
    weak, _ = apply_view(image, None, draw, PIPELINE_CROP)
    assert np.array_equal(weak, arrays['original'])
    if 'weak' in arrays:
        assert_close(normalized(weak), arrays['weak'])
    assert_close(normalized(apply_strong(weak, strong_draw)), arrays['strong'])
    assert np.array_equal(box, arrays['cutmix_box'].astype(bool))
    assert np.array_equal(~view_valid(image.size, draw, PIPELINE_CROP), arrays['ignore_mask'] == IGNORE_INDEX)
