"""How much of a backbone a file of weights fills: said in numbers, refused below 95 % unless told, whatever
the names stand under."""
import pytest
import torch

from corrmatch.models.backbones import build_backbone, load_pretrained
from corrmatch.config import preset
from corrmatch.models.deeplab import load_backbone, loaded_share, make_backbone
from corrmatch.training.builders import make_model

timm = pytest.importorskip('timm')


def state_of(name, seed=0):
    torch.manual_seed(seed)
    return make_backbone(name).state_dict()


def load(name, state, **options):
    backbone = make_backbone(name)
    return load_pretrained(backbone, name, state, **options), backbone


@pytest.mark.parametrize(
    'prefix',
    ['', 'module.', 'backbone.', 'module.backbone.', 'backbone.body.', 'model.encoder.', 'student.net.'])
@pytest.mark.parametrize(
    'wrap', [lambda s: s, lambda s: dict(state_dict=s), lambda s: dict(model=s, epoch=3)])
def test_names_below_any_prefix(prefix, wrap):
    "As they lie in checkpoints of classification, segmentation and detection."
    state = state_of('resnet18')
    others = {
        'fc.weight': torch.zeros(10, 512), 'backbone.fpn.inner.weight': torch.zeros(2, 2, 1, 1),
        'head.layer1.weight': torch.zeros(3)}
    report, backbone = load('resnet18', wrap({prefix+k: v for k, v in state.items()} | others))
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())
    assert (report.missing, report.mismatched, report.share) == ((), (), 1.) and len(report.unexpected) == 3
    assert repr(report).startswith(f'loaded {len(state)} tensors (100 % of the backbone)\n')


def test_of_two_networks_in_a_file_the_whole_one_is_taken():
    whole = state_of('resnet18', 1)
    part = {k: v for k, v in state_of('resnet18', 2).items() if k.startswith('layer1')}
    report, backbone = load(
        'resnet18',
        {f'teacher.{k}': v for k, v in part.items()} | {f'student.{k}': v for k, v in whole.items()})
    assert all(torch.equal(v, whole[k]) for k, v in backbone.state_dict().items()) and len(
        report.unexpected) == len(part)


def test_a_little_missing_is_told_and_loaded():
    state = state_of('resnet18')
    for key in ('layer4.1.bn2.bias', 'layer4.1.bn2.weight'):
        del state[key]
    report, _ = load('resnet18', state)
    assert repr(report).splitlines()[0] == "loaded 118 of 120 tensors, 99.9 % of the backbone's parameters"
    assert 0.999 < report.share < 1
    state = {k: v for k, v in state_of('resnet18').items() if not k.endswith('num_batches_tracked')}
    # older files do not count batches
    assert repr(load('resnet18', state)[0]) == 'loaded 100 tensors (100 % of the backbone)'


WITHOUT_A_STAGE = {k: v for k, v in state_of('resnet18').items() if not k.startswith('layer4.1')}


@pytest.mark.parametrize(
    'name, state, words',
    [
        ('resnet18', WITHOUT_A_STAGE, ('57.7 %', 'layer4.1.conv1.weight is missing', 'allow_partial')),
        (
            'resnet18', state_of('resnet18') | {'conv1.weight': torch.zeros(64, 4, 7, 7)},
            ('conv1.weight has another shape', 'allow_partial')),
        (
            'resnet18', {k: v for k, v in state_of('resnet18').items() if 'bn' not in k},
            ('is missing', 'allow_partial')),
        ('resnet50_deep', state_of('resnet50'), ('the first convolution', 'allow_partial')),
        ('resnet101_deep', state_of('resnet101'), ('the first convolution', 'allow_partial')),
        ('resnet50', state_of('resnet50_deep'), ('the first convolution', 'allow_partial')),
        ('resnet50', state_of('resnet34'), ('only', 'give weights of the same ResNet')),
        (
            'resnet18', state_of('resnet50'),
            ('only', 'of 20 convolutions', '%', 'has another shape', 'give weights of the same ResNet')),
        (
            'resnet18', {'fc.weight': torch.zeros(1000, 512), 'fc.bias': torch.zeros(1000)},
            ('only 0 of 20', '0.0 %', 'conv1.weight is missing')),
        ('resnet18', {}, ('only 0 of 20',))])
def test_weights_of_another_network(tmp_path, name, state, words):
    torch.save(state, tmp_path/'w.pth')
    with pytest.raises(ValueError) as e:
        load(name, str(tmp_path/'w.pth'))
    message = str(e.value)
    assert '\n' not in message and str(tmp_path/'w.pth') in message
    for word in words:
        assert word in message, message


def test_told_to_go_on():
    report, backbone = load('resnet18', WITHOUT_A_STAGE, partial=True)
    assert report.missing and torch.equal(
        backbone.layer3[0].conv1.weight, WITHOUT_A_STAGE['layer3.0.conv1.weight'])
    assert report.share == loaded_share(backbone, WITHOUT_A_STAGE) < .95
    # the loader itself takes what fits
    assert load_backbone(make_backbone('resnet18'), WITHOUT_A_STAGE).share == report.share


def test_the_setting_of_a_run(tmp_path):
    torch.save(WITHOUT_A_STAGE, tmp_path/'w.pth')
    config = preset('camvid', data='x', backbone='resnet18', weights=str(tmp_path/'w.pth'))
    with pytest.raises(ValueError, match='allow_partial'):
        make_model(config)
    text = make_model(
        preset('camvid', data='x', backbone='resnet18', weights=str(tmp_path / 'w.pth'), allow_partial=True)
    )[1]
    assert 'loaded 108 of 118 tensors' in text and "% of the backbone's parameters" in text
    assert '(100 % of the backbone)' in make_model(preset('toy'))[1]


def test_timm_networks():
    torch.manual_seed(0)
    state = timm.create_model('test_resnet').state_dict()
    backbone = build_backbone('timm:test_resnet', 8)
    report = load_pretrained(backbone, 'timm:test_resnet', {f'module.{k}': v for k, v in state.items()})
    assert report.share == 1 and '(100 % of the backbone)' in repr(report)
    part = {k: v for k, v in state.items() if not k.startswith('layer4')}
    with pytest.raises(
        ValueError, match=r"% of the backbone's parameters; \S*layer4\S* is missing.*allow_partial"):
        load_pretrained(backbone, 'timm:test_resnet', part)
    assert load_pretrained(backbone, 'timm:test_resnet', part, partial=True).share < .95
    with pytest.raises(ValueError, match='tensors fit this backbone .*give weights of the same network'):
        load_pretrained(backbone, 'timm:test_resnet', state_of('resnet18'), partial=True)
