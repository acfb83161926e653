"""The network against outputs of the reference implementation, and the backbones against torchvision.

`golden/model_r50.npz` and `golden/model_keys.json` were measured on the reference: ResNet-50 with deep stem,
output stride 8, 21 classes, evaluation mode, weights from the recipe below; full-size logits are kept at
every second pixel, 16 of 32 region maps.
"""
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from corrmatch.method.correlation import correlation_rows
from corrmatch.models.deeplab import load_backbone, make_backbone
from corrmatch.models.corrmatch_net import CorrMatchNet
from corrmatch.engine.regions import fast_region_maps

GOLDEN = Path(__file__).parent/'golden'
KEYS = json.loads((GOLDEN/'model_keys.json').read_text())
# behind 50 layers the softmax of dot products magnifies rounding: one thread and two differ by 6e-6 here
SHARP = 1e-4
RECIPE = json.loads((GOLDEN/'model_r50_recipe_check.json').read_text())


def recipe(key, like):
    "The weight called `key`: its values depend on the name alone."
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    shape = tuple(like.shape)
    if key.endswith('num_batches_tracked'):
        values = np.zeros(shape)
    elif len(shape) == 4:
        values = rng.standard_normal(shape)*np.sqrt(2/np.prod(shape[1:]))
    elif key.endswith('running_var'):
        values = rng.uniform(0.8, 1.6, shape)
    elif key.endswith(('running_mean', '.bias')):
        values = 0.1*rng.standard_normal(shape)
    else:
        values = rng.uniform(0.6, 1.1, shape)
    return torch.from_numpy(np.asarray(values)).to(like.dtype)


@pytest.fixture(scope='module')
def golden():
    arrays = np.load(GOLDEN/'model_r50.npz')
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope='module')
def net():
    net = CorrMatchNet(make_backbone('resnet50_deep', stride=8), n_classes=21)
    net.load_state_dict({key: recipe(key, value) for key, value in net.state_dict().items()})
    return net.eval()


@pytest.fixture(scope='module')
def measured(net, golden):
    "All that the tests below compare, from one forward pass."
    with torch.no_grad():
        stages = net.backbone(golden['input'])
        seg = net(golden['input'])
        return dict(stages=stages, low=net.decode(stages[0], stages[3]), proj=net.proj(stages[3]), seg=seg,
                    rows=correlation_rows(seg.f1, seg.f2, golden['index']))


def close(ours, theirs, tolerance=1e-5):
    "Within `tolerance` of the largest value."
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance*theirs.abs().max()


@pytest.mark.parametrize('name', ['resnet50', 'resnet101'])
def test_keys(name):
    with torch.device('meta'):
        net = CorrMatchNet(make_backbone(f'{name}_deep'), n_classes=21)
    parameters = dict(net.named_parameters())
    ours = {
        key: [list(value.shape), 'p' if key in parameters else 'b'] for key, value in net.state_dict().items()
    }
    assert list(ours) == list(KEYS[name]['state_dict'])
    assert ours == KEYS[name]['state_dict']
    assert sum(p.numel() for p in parameters.values()) == KEYS[name]['num_parameters']
    assert sum(p.numel() for p in net.backbone.parameters()) == KEYS[name]['num_parameters_backbone']


def test_recipe(net):
    state = net.state_dict()
    for key, values in RECIPE['first_values'].items():
        assert np.allclose(state[key].flatten()[:4], values, rtol=1e-6)
    total = sum(value.double().abs().sum().item() for value in state.values())
    assert abs(total/RECIPE['sum_of_all_abs_float64'] - 1) < 1e-9


@pytest.mark.parametrize('i', range(4))
def test_stages(measured, golden, i):
    stage = measured['stages'][i]
    assert list(stage.shape) == golden[f'c{i+1}_shape'].tolist()
    close(stage.mean((0, 2, 3)), golden[f'c{i+1}_mean'])
    close(stage.transpose(0, 1).flatten(1).std(1), golden[f'c{i+1}_std'])


def test_logits(measured, golden):
    close(measured['low'], golden['logits_before_upsampling'])
    close(measured['seg'].logits[..., ::2, ::2], golden['out_every_2nd'])


def test_projection(measured, golden):
    assert list(measured['proj'].shape) == golden['proj_shape'].tolist()
    close(measured['proj'].mean((0, 2, 3)), golden['proj_features_mean'])


def test_correlation_rows(measured, golden):
    close(measured['rows'], golden['corr_rows'], SHARP)


def test_propagated_logits(measured, golden):
    close(measured['seg'].logits_corr[..., ::2, ::2], golden['corr_out_every_2nd'], SHARP)


def test_region_maps(measured, golden):
    "Booleans are equal, save where the value is 0.5 to the precision of a 50-layer network."
    theirs = golden['bool_maps']
    ours = fast_region_maps(measured['rows'], feat_size=(13, 13), size=(97, 97))
    fine = torch.nn.functional.interpolate(
        golden['corr_rows'].view(1, -1, 13, 13).double(), (97, 97), mode='bilinear', align_corners=True)
    low = fine.amin((2, 3), keepdim=True)
    high = fine.amax((2, 3), keepdim=True)
    undecided = ((fine-low)/(high-low) - 0.5).abs() < SHARP
    assert undecided.sum() < 100
    assert torch.equal(ours | undecided, theirs | undecided)


def torchvision_stages(net, image):
    "c1..c4 of torchvision's classifier."
    x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
    stages = []
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = layer(x)
        stages.append(x)
    return stages


@pytest.mark.parametrize(
    'name, stride, dilate',
    [
        ('resnet18', 32, (False, False, False)), ('resnet34', 32, (False, False, False)),
        ('resnet50', 32, (False, False, False)), ('resnet50', 16, (False, False, True)),
        ('resnet50', 8, (False, True, True)), ('resnet50', 4, (True, True, True))])
def test_same_as_torchvision(name, stride, dilate):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(replace_stride_with_dilation=dilate).eval()
    ours = make_backbone(name, stride).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.6)
    report = load_backbone(ours, theirs.state_dict())
    assert (report.missing, report.mismatched, report.unexpected) == ((), (), ('fc.weight', 'fc.bias'))
    image = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(ours(image), torchvision_stages(theirs, image)))


@pytest.mark.parametrize('name', ['resnet18', 'resnet50_deep', 'toynet'])
@pytest.mark.parametrize('size', [65, 64])
def test_dilated_is_strided_at_more_places(name, size):
    torch.manual_seed(0)
    coarse = make_backbone(name, 16 if name == 'toynet' else 32).eval()
    image = torch.randn(1, 3, size, size)
    for stride in (4, 8):
        dense = make_backbone(name, stride).eval()
        dense.load_state_dict(coarse.state_dict())
        step = coarse.stride//stride
        with torch.no_grad():
            a = coarse(image)[3]
            b = dense(image)[3][..., ::step, ::step]
        assert (a-b).abs().max() <= 1e-4*a.abs().max()
