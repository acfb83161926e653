"""IoU and the evaluation modes against outputs of the reference implementation.

The evaluation modes ran on a stand-in for the network: a linear map of the channels plus a ramp over the
window, so that overlapping windows disagree. `golden/metrics.npz` holds its coefficients, the images and what
came back.
"""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from corrmatch.training.metrics import (
    ConfusionMatrix, center_crop, evaluate, _intersection_union, mean_iou, slide_predict, slide_probs,
    whole_predict, _window_groups)

GOLDEN = Path(__file__).parent/'golden'
ARRAYS = np.load(GOLDEN/'metrics.npz')
INFO = json.loads((GOLDEN/'metrics_info.json').read_text())
IOU_CASES = sorted({name.split('/')[0] for name in ARRAYS.files if name.startswith('iou_')})
SLIDING = [name for name in INFO if INFO[name]['mode'] == 'sliding_window']
MODES = dict(sliding_window='slide', center_crop='center', original='whole')


def case(name):
    return {k.split('/')[1]: torch.as_tensor(ARRAYS[k]) for k in ARRAYS.files if k.startswith(name+'/')}


def pairs_of(name):
    a = case(name)
    return [(a[f'image{j}'], a[f'target{j}']) for j in range(len(INFO[name]['images']))]


def stand_in(name):
    a = case(name)
    def model(image):
        h, w = image.shape[-2:]
        ramp_y = a['uy'][:, None, None]*(torch.arange(h)/max(h-1, 1))[:, None]
        ramp_x = a['ux'][:, None, None]*(torch.arange(w)/max(w-1, 1))
        return torch.einsum('kc,bchw->bkhw', a['W'], image) + a['b'][:, None, None] + ramp_y + ramp_x
    return model


@pytest.mark.parametrize('name', IOU_CASES)
def test_intersection_union(name):
    a = case(name)
    intersection, union, target = _intersection_union(a['pred'], a['target'], int(a['K']))
    assert torch.equal(intersection, a['intersection'])
    assert torch.equal(union, a['union'])
    assert torch.equal(target, a['target_area'])


@pytest.mark.parametrize('name', [name for name in IOU_CASES if 'iou' in case(name)])
def test_mean_iou(name):
    a = case(name)
    k, expected = int(a['K']), a['miou_percent'].item()/100
    matrix = ConfusionMatrix(k).update(a['pred'], a['target'])
    assert torch.allclose(matrix.iou(), a['iou'], rtol=1e-12, atol=0)
    assert matrix.miou() == pytest.approx(expected, rel=1e-12)
    assert mean_iou(a['pred'], a['target'], k) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('name', SLIDING)
def test_sliding_window(name, batch):
    a = case(name)
    crop = INFO[name]['crop_size']
    model = stand_in(name)
    for j, (image, _) in enumerate(pairs_of(name)):
        total = slide_probs(model, image, crop, batch=batch)
        assert (total - a[f'accumulated{j}']).abs().max() <= 1e-5*a[f'accumulated{j}'].max()
        assert torch.equal(total.argmax(1), a[f'pred{j}'])
        assert torch.equal(slide_predict(model, image, crop, batch=batch), a[f'pred{j}'])


@pytest.mark.parametrize('name', SLIDING)
def test_windows(name):
    crop = INFO[name]['crop_size']
    ours = [
        [y1 - y, x1 - x]
        for h, w in INFO[name]['images']
        for group in _window_groups(h, w, crop, int(2 / 3 * crop))
        for y, y1, x, x1 in group]
    assert sorted(ours) == sorted(INFO[name]['windows_hw'])


@pytest.mark.parametrize('name', [name for name in INFO if name not in SLIDING])
def test_whole_and_center_crop(name):
    a = case(name)
    crop = INFO[name]['crop_size']
    model = stand_in(name)
    for j, (image, mask) in enumerate(pairs_of(name)):
        if MODES[INFO[name]['mode']] == 'center':
            image = center_crop(image, crop)
            assert torch.equal(center_crop(mask, crop), a[f'target_cropped{j}'])
        assert torch.equal(whole_predict(model, image), a[f'pred{j}'])


@pytest.mark.parametrize('name', INFO)
def test_evaluate(name):
    info = INFO[name]
    counts = evaluate(stand_in(name), pairs_of(name), info['nclass'], MODES[info['mode']], info['crop_size'])
    assert torch.allclose(counts.iou(), case(name)['iou_class'], rtol=1e-12, atol=0)
    assert 100*counts.miou() == pytest.approx(info['miou'], rel=1e-12)
