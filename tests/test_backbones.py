"""timm backbones against timm itself and against a network written down from its published table; weights in
and out.

No weights are downloaded: all networks have random ones.
"""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from corrmatch.models.backbones import (
    build_backbone, efficientnet_keys, load_pretrained, load_timm, param_groups, _timm_weights)
from corrmatch.config import preset
from corrmatch.training.checkpoints import (
    _clean_state, compare_state, export_reference_state, load_reference_checkpoint, load_weights, make_card,
    model_card, network_facts, save_weights)
from corrmatch.files import DataError
from corrmatch.models.deeplab import DeepLabV3Plus, ResNet, load_backbone, make_backbone
from corrmatch.models.corrmatch_net import CorrMatchNet
from corrmatch.training.builders import make_model, make_optimizer
from corrmatch.data.views import normalize

timm = pytest.importorskip('timm', reason='needs the extra timm')
KEYS = json.loads((Path(__file__).parent/'golden'/'model_keys.json').read_text())
TINY = [
    ('timm:test_resnet', 8), ('timm:test_convnext', 16), ('timm:test_efficientnet', 8),
    ('timm:test_mambaout', 32), ('timm:test_vit', 16)]


def close(a, b, tolerance=1e-5): assert (a-b).abs().max() <= tolerance*max(1e-6, b.abs().max())


@pytest.fixture
def image():
    return torch.randint(
        0, 256, (2, 3, 97, 66), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


# --- networks

@pytest.mark.parametrize('name, stride', TINY)
def test_around_any_backbone(name, stride, image):
    "Shapes, the contract, and a gradient for every parameter."
    torch.manual_seed(0)
    net = CorrMatchNet(build_backbone(name, stride), n_classes=5, dim=16, low_dim=8)
    maps = net.backbone(normalize(image))
    assert [c.shape[1] for c in maps] == net.backbone.channels and net.backbone.stride == stride
    assert maps[-1].shape[2:] == (-(-97//stride), -(-66//stride)) and 24 <= maps[0].shape[2] <= 28
    out = net(normalize(image), perturb=True)
    assert out.logits.shape == out.logits_corr.shape == out.logits_fp.shape == (2, 5, 97, 66)
    (out.logits.square().mean() + out.logits_corr.square().mean() + out.logits_fp.square().mean()).backward()
    without = [k for k, p in net.named_parameters() if p.grad is None]
    assert without == []


def test_stages_are_timms(image):
    "Same features as timm with timm's own normalisation."
    ours = build_backbone('timm:tf_efficientnet_lite0', 8).eval()
    theirs = timm.create_model('tf_efficientnet_lite0', features_only=True, output_stride=8).eval()
    theirs.load_state_dict(ours.net.state_dict())
    cfg = timm.get_pretrained_cfg('tf_efficientnet_lite0')
    assert cfg.mean == (.5, .5, .5)
    with torch.no_grad():
        a = ours(normalize(image))
        b = theirs((image/255 - .5)/.5)
    assert len(b) == len(a)+1
    for x, y in zip(a, b[1:]):
        close(x, y, 1e-4)


def test_patches_are_timms(image):
    "c4 of a transformer is its normalised patch tokens in place; position codes follow the image's size."
    ours = build_backbone('timm:test_vit', 16).eval()
    theirs = timm.create_model('test_vit', num_classes=0, dynamic_img_size=True).eval()
    theirs.load_state_dict(ours.net.state_dict())
    cut = image[..., :96, :64]
    with torch.no_grad():
        a = ours(normalize(cut))[-1]
        tokens = theirs.forward_features((cut/255 - .5)/.5)
    close(a.flatten(2).mT, tokens[:, theirs.num_prefix_tokens:], 1e-4)
    assert a.shape == (2, 64, 6, 4)


def plain_lite(w, x, expand):
    """EfficientNet-Lite written down from its table: blocks of (kernel, stride, expansion, channels), 'same'
    padding of TensorFlow."""
    def conv(x, key, stride=1, groups=1):
        k = w[f'{key}.weight'].shape[-1]
        pad = [max((-(-n//stride)-1)*stride + k - n, 0) for n in (x.shape[3], x.shape[2])]
        return F.conv2d(
            F.pad(x, [p for n in pad for p in (n // 2, n - n // 2)]), w[f'{key}.weight'], None, stride,
            groups=groups)
    def norm(x, key):
        return F.batch_norm(
            x, *[w[f'{key}.{n}'] for n in ('running_mean', 'running_var', 'weight', 'bias')], eps=1e-3)
    x = F.relu6(norm(conv(x, '_conv_stem', 2), '_bn0'))
    n = 0
    for count, stride in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)):
        for i in range(count):
            b, y = f'_blocks.{n}', x
            if f'{b}._expand_conv.weight' in w:
                y = F.relu6(norm(conv(y, f'{b}._expand_conv'), f'{b}._bn0'))
            y = F.relu6(
                norm(conv(y, f'{b}._depthwise_conv', stride if i == 0 else 1, y.shape[1]), f'{b}._bn1'))
            y = norm(conv(y, f'{b}._project_conv'), f'{b}._bn2')
            x, n = (x + y if x.shape == y.shape else y), n+1
    x = F.relu6(norm(conv(x, '_conv_head'), '_bn1')).mean((2, 3))
    return F.linear(x, w['_fc.weight'], w['_fc.bias'])


def lite_weights(seed=0):
    "Random weights under the names of the layout that counts blocks through."
    g = torch.Generator().manual_seed(seed)
    w = {}
    d = 32
    n = 0
    def conv(key, out, d, k): w[f'{key}.weight'] = torch.randn(out, d, k, k, generator=g)*(2/(d*k*k))**.5
    def norm(key, d):
        for name, low in (('weight', .6), ('bias', -.1), ('running_mean', -.1), ('running_var', .8)):
            w[f'{key}.{name}'] = low + torch.rand(d, generator=g)*.5
    conv('_conv_stem', 32, 3, 3)
    norm('_bn0', 32)
    for count, k, expand, out in (
        (1, 3, 1, 16), (2, 3, 6, 24), (2, 5, 6, 40), (3, 3, 6, 80), (3, 5, 6, 112), (4, 5, 6, 192),
        (1, 3, 6, 320)):
        for _ in range(count):
            b, mid = f'_blocks.{n}', d*expand
            if expand > 1:
                conv(f'{b}._expand_conv', mid, d, 1)
                norm(f'{b}._bn0', mid)
            conv(f'{b}._depthwise_conv', mid, 1, k)
            norm(f'{b}._bn1', mid)
            conv(f'{b}._project_conv', out, mid, 1)
            norm(f'{b}._bn2', out)
            d, n = out, n+1
    conv('_conv_head', 1280, 320, 1)
    norm('_bn1', 1280)
    w['_fc.weight'], w['_fc.bias'] = torch.randn(1000, 1280, generator=g)*.03, torch.zeros(1000)
    return w


def test_efficientnet_lite_layout(image):
    "The renamed weights give timm's network the function of the table."
    w = lite_weights()
    net = timm.create_model('tf_efficientnet_lite0').eval()
    renamed = efficientnet_keys(w, net.state_dict())
    loaded = net.load_state_dict(renamed, strict=False)
    assert loaded.unexpected_keys == [] and all(
        k.endswith('num_batches_tracked') for k in loaded.missing_keys)
    x = (image.float() - 127)/128
    with torch.no_grad():
        close(net(x), plain_lite(w, x, 6), 1e-4)
    backbone = build_backbone('timm:tf_efficientnet_lite0', 8)
    report = load_timm(backbone, {k: v.half() for k, v in w.items()})
    # head and classifier
    assert (report.missing, report.mismatched) == ((), ()) and len(report.unexpected) == 7
    close(backbone.net.conv_stem.weight, w['_conv_stem.weight'], 1e-3)


def test_frozen_stays_still(image):
    torch.manual_seed(0)
    net = CorrMatchNet(build_backbone('timm:test_resnet', 8), n_classes=5, dim=16, low_dim=8)
    net.backbone.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.SGD(param_groups(net, .1, 10.), momentum=.9, weight_decay=1e-4)
    for _ in range(2):
        net.train()
        out = net(normalize(image), perturb=True)
        optimizer.zero_grad()
        (out.logits.square().mean() + out.logits_corr.square().mean()).backward()
        optimizer.step()
    moved = {k.split('.')[0] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert 'backbone' not in moved and {'head', 'reduce', 'fuse', 'classifier', 'proj', 'corr'} <= moved
    assert net.backbone.requires_grad_(True) is net.backbone and net.train().backbone.training


def test_groups_without_decay_are_the_references():
    config = preset('toy', dim=16, low_dim=8, weights='', lr_multi=10.)
    model = make_model(config)[0]
    theirs = make_optimizer(model, config).param_groups
    ours = param_groups(model, config.lr, config.lr_multi)
    assert [g['lr'] for g in ours] == [g['lr'] for g in theirs] and len(ours) == 2
    assert all([id(p) for p in a['params']] == [id(p) for p in b['params']] for a, b in zip(ours, theirs))


def test_offline(monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    def refuse(*args, **kwargs): raise ConnectionError('no network')
    monkeypatch.setattr('timm.models._builder.load_pretrained', refuse)
    with pytest.raises(ValueError, match=r'offline\? give a file with weights=PATH') as e:
        _timm_weights('timm:test_vit')
    assert '\n' not in str(e.value)


# --- checkpoints by name

def golden_state(name, corr=True):
    return {
        k: torch.empty(shape, device='meta')
        for k, (shape, _) in KEYS[name]['state_dict'].items()
        if corr or not k.startswith(('corr.', 'proj.'))}


@pytest.mark.parametrize('name', ['resnet50', 'resnet101'])
@pytest.mark.parametrize('corr', [True, False])
def test_reference_and_unimatch_names(name, corr):
    "Measured key lists are told apart by name, and fit without a difference."
    state = _clean_state(
        {'model': {f'module.{k}': v for k, v in golden_state(name, corr).items()}, 'epoch': 3})
    facts = network_facts(state)
    assert facts == (f'{name}_deep', 21, 256, 48, corr)
    with torch.device('meta'):
        net = (CorrMatchNet if corr else DeepLabV3Plus)(build_backbone(facts.backbone), facts.n_classes)
    assert not compare_state(state, net) and list(state) == list(net.state_dict())


def deep(seed, kind=CorrMatchNet):
    torch.manual_seed(seed)
    return kind(ResNet('bottleneck', (1, 1, 1, 1), 8, 'deep'), 5, 16, 8).eval()


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: s,
        lambda s: dict(
            model=s, optimizer=dict(state={0: dict(momentum_buffer=torch.ones(2))}, param_groups=[]), epoch=3,
            previous_best=np.float64(70.1))],
    ids=['bare', 'wrapped'])
def test_round_trip(tmp_path, prefix, wrap):
    a, b = deep(0), deep(1)
    torch.save(wrap(export_reference_state(a, prefix)), tmp_path/'a.pth')
    assert load_reference_checkpoint(tmp_path/'a.pth', b) is b
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_differences_are_listed(tmp_path):
    torch.save(deep(0, DeepLabV3Plus).state_dict(), tmp_path/'unimatch.pth')
    load_reference_checkpoint(tmp_path/'unimatch.pth', deep(1, DeepLabV3Plus))
    with pytest.raises(DataError, match='missing.*corr.conv1.weight'):
        load_reference_checkpoint(tmp_path/'unimatch.pth', deep(1))
    net = deep(1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(DataError):
        load_reference_checkpoint(tmp_path/'unimatch.pth', net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())  # nothing was loaded by halves


class Command:
    def __init__(self, flag): self.flag = flag
    def __reduce__(self): return Path.touch, (self.flag,)


@pytest.mark.parametrize(
    'open_it',
    [
        lambda p: load_reference_checkpoint(p, deep(0)), load_weights,
        lambda p: load_backbone(make_backbone('toynet'), p),
        lambda p: load_pretrained(build_backbone('timm:test_vit', 16), 'timm:test_vit', p)])
def test_pickles_with_code_are_refused(tmp_path, open_it):
    torch.save(dict(model=Command(tmp_path/'ran')), tmp_path/'bad.pth')
    with pytest.raises(ValueError, match='not a file of plain tensors') as e:
        open_it(tmp_path/'bad.pth')
    assert '\n' not in str(e.value) and not (tmp_path/'ran').exists()


# --- weights with a card

def test_weights_files(tmp_path):
    pytest.importorskip('safetensors', reason='needs the extra export')
    config = preset('toy', dim=16, low_dim=8, weights='')
    card = make_card(config, {'mIoU': 50.}, step=10, date='2026-01-31')
    model = make_model(config)[0]
    for name in ('a.safetensors', 'b.safetensors'):
        save_weights(model, tmp_path/name, card)
    assert (tmp_path/'a.safetensors').read_bytes() == (tmp_path/'b.safetensors').read_bytes()
    assert (tmp_path/'a.md').read_text() == model_card(card, 'a.safetensors')
    backbone = make_backbone('toynet', 4, 'group')
    assert load_backbone(backbone, tmp_path/'a.safetensors').missing == ()
    (tmp_path/'cut.safetensors').write_bytes((tmp_path/'a.safetensors').read_bytes()[:5000])
    with pytest.raises(DataError, match='cannot be read'):
        load_weights(tmp_path/'cut.safetensors')


@pytest.mark.parametrize('card', ['', 'null', '[1]', '{"config"', '"words"'])
def test_a_broken_card_is_one_line(tmp_path, card):
    save = pytest.importorskip('safetensors.torch', reason='needs the extra export').save_file
    save({'weight': torch.zeros(2)}, tmp_path/'w.safetensors', {'corrmatch': card})
    torch.save(dict(model={'weight': torch.zeros(2)}, card=card), tmp_path/'w.pth')
    for name in ('w.safetensors', 'w.pth'):
        with pytest.raises(DataError, match=f'^.*{name}: holds no card of this .*bare weights$'):
            load_weights(tmp_path/name)


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    config = preset('toy', dim=16, low_dim=8, weights='')
    model, card = nn.Linear(2, 2), make_card(config)
    save_weights(model, tmp_path/'w.pth', card)
    old = (tmp_path/'w.pth').read_bytes()
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('torch.save', full)
    with pytest.raises(DataError, match='No space left'):
        save_weights(model, tmp_path/'w.pth', card)
    assert (tmp_path / 'w.pth').read_bytes() == old and sorted(p.name for p in tmp_path.iterdir()) == [
        'w.md', 'w.pth']
