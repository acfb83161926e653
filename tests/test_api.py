"The top level of the package: light, small, complete; data to prediction in a few lines."
import ast
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import corrmatch
from corrmatch.use.api import find_lr
from corrmatch.use.predict import explore_image
from errors_for_tests import refused as refused_with
from runs_for_tests import SMALL, environment

ROOT = Path(__file__).resolve().parent.parent
NAMES = [*corrmatch.__all__]
refused = partial(refused_with, error=ValueError)
SMALL = {name: value for name, value in SMALL.items() if not name.startswith('toy_')}


def python(code):
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy():
    code = (
        'import json, sys; before = {*sys.modules}; import corrmatch; '
        'print(json.dumps(sorted({*sys.modules} - before)))')
    new = json.loads(python(code))
    assert [
        name for name in new if name.partition('.')[0] not in {'corrmatch', *sys.stdlib_module_names}] == []
    assert [name for name in new if name.startswith('corrmatch')] == ['corrmatch']


def test_settings_need_no_torch():
    assert python("import sys, corrmatch; corrmatch.preset('toy'); print('torch' in sys.modules)") == 'False'


def test_few_names_and_all_of_them_resolve():
    assert len(NAMES) <= 20 and len(NAMES) == len({*NAMES})
    assert [name for name in dir(corrmatch) if not name.startswith('_')] == sorted(NAMES)
    for name in NAMES:
        assert callable(getattr(corrmatch, name)) and getattr(corrmatch, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'model_zoo'"):
        corrmatch.model_zoo


def test_type_checkers_see_the_same_names():
    "The imports under TYPE_CHECKING are the table that is used when the package runs."
    tree = ast.parse((ROOT/'corrmatch'/'__init__.py').read_text(encoding='utf-8'))
    [block] = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, 'id', '') == 'TYPE_CHECKING']
    seen = {
        alias.name: node.module.removeprefix('corrmatch.').removeprefix('.')
        for node in block.body
        for alias in node.names}
    assert seen == {name: corrmatch._HOMES[name] for name in NAMES}


def test_documented_in_the_notebook_and_the_readme():
    text = (ROOT/'nbs'/'init.ipynb').read_text(encoding='utf-8')
    table = '\n'.join(line for line in text.splitlines() if line.strip().startswith('"| '))
    assert [name for name in NAMES if f'`{name}' not in table] == []


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Twelve smooth images of two classes, ten of them with masks."
    folder = tmp_path_factory.mktemp('data')/'photos'
    draw = np.random.default_rng(0)
    for name in ('images', 'masks'):
        (folder/name).mkdir(parents=True)
    for i in range(12):
        mask = np.zeros((40, 50), np.uint8)
        mask[10:30, 3*i:3*i+12] = 1
        image = np.uint8(draw.integers(60, 90, (40, 50, 3)) + 100*mask[..., None])
        Image.fromarray(image).save(folder/'images'/f'{i:02d}.png')
        if i < 10:
            Image.fromarray(mask).save(folder/'masks'/f'{i:02d}.png')
    return folder


@pytest.fixture(scope='module')
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp('run')/'mine'
    settings = SMALL | dict(backbone='toynet', norm='group', steps=4, weights='')
    made = corrmatch.train(photos, labels=4, out=str(out), quiet=True, **settings)
    assert made == out and (out/'best.pt').is_file()
    return made


def test_check_and_split(photos, tmp_path):
    report = corrmatch.check(photos)
    assert report.ok and len(report.usable) == 10 and 'can be trained on' in str(report)
    assert not corrmatch.check(photos, labels=99).ok, 'what train would refuse, check says'
    made = corrmatch.split(photos, labels=4, out=tmp_path/'lists')
    assert len(made.labeled) == 4 and (tmp_path/'lists'/'4'/'labeled.txt').is_file()
    refused(lambda: corrmatch.check(photos, backgruond='x'), 'backgruond', 'background')


def test_load_predict_save(run, photos, tmp_path):
    model = corrmatch.load(run, device='cpu')
    result = model.predict(photos/'images'/'11.png')
    assert (
        result.image.shape == (40, 50, 3)
        and result.mask.shape == (40, 50)
        and result.confidence.dtype == np.float32)
    assert 0 < result.confidence.min() and result.confidence.max() <= 1
    assert (result.overlay(0) == result.image).all() and result.overlay().shape == (40, 50, 3)
    assert [ax.get_title() for ax in result.show().axes][:3] == ['image', 'classes', 'confidence']
    path = result.save(tmp_path/'new'/'mask.png')
    assert (np.asarray(Image.open(path)) == result.mask).all()
    refused(lambda: result.save(tmp_path/'mask.jpg'), 'mask.jpg', 'mask.png')
    refused(lambda: result.overlay(3), 'alpha=3', 'from 0 to 1')
    refused(lambda: model.predict(photos), 'is a folder')
    share = (result.mask == 0).mean()
    assert f'{model.names[0]} {share:.0%}' in repr(result) and '50x40' in repr(result)
    assert repr(model) == 'LoadedModel(corrmatch, toynet, 2 classes, on cpu)'
    page = dict(run=run, image=photos/'images'/'11.png', device='cpu')
    refused(lambda: explore_image(out=tmp_path/'a.png', **page), 'a.png', '.html')
    assert len(model.names) == model.config.n_classes == 2


def test_resume_of_a_finished_run(run):
    before = (run/'best.pt').read_bytes()
    assert corrmatch.resume(run, quiet=True, device='cpu') == run and (run/'best.pt').read_bytes() == before
    refused(lambda: corrmatch.resume(run, quiet=True, lr=.5), 'lr', 'force')


def test_predict_writes_what_the_command_writes(run, photos, tmp_path):
    done = corrmatch.predict(run, photos/'images', tmp_path/'a', quiet=True, device='cpu')
    model = corrmatch.load(run, device='cpu')
    again = corrmatch.predict(
        model, [photos / 'images' / '00.png', photos / 'images' / '01.png'], tmp_path / 'b', quiet=True)
    assert [done.n, again.n] == [12, 2] and done.look.is_file()
    assert (tmp_path/'a'/'masks'/'00.png').read_bytes() == (tmp_path/'b'/'masks'/'00.png').read_bytes()


def test_explore(run, photos):
    panel = corrmatch.explore(run, photos/'images'/'00.png', device='cpu', position=(20, 10))
    assert panel.position == [20, 10] and panel.meta['names'] == corrmatch.load(run).names and panel.reading()
    assert (
        max(corrmatch.load(run).explore(photos / 'images' / '00.png', longest=25).meta['views'][0]['size'])
        == 25)


def test_explore_needs_a_correlation_head(tmp_path):
    run = corrmatch.train(
        'toy', 'supervised', toy_unlabeled=8, out=str(tmp_path / 'run'), quiet=True,
        **SMALL | dict(steps=2, regions=0))
    refused(
        lambda: corrmatch.explore(run, np.zeros((40, 40, 3), np.uint8), device='cpu'), 'supervised',
        'method=corrmatch')


@pytest.mark.parametrize('call, words', [
    (lambda: corrmatch.train('phtos'), ('phtos', 'neither a folder nor a preset')),
    (lambda: corrmatch.train('voc_93'), ('voc_93', "did you mean 'voc_92'")),
    (lambda: corrmatch.train('voc_92'), ('voc_92', 'data=FOLDER')),
    (lambda: corrmatch.train('toy', step=3), ('step', "did you mean 'steps'")),
    (lambda: corrmatch.train('toy', name='x'), ('name', 'unknown setting')),
    (lambda: find_lr('toy', name='x'), ('name', 'unknown setting')),
    (lambda: corrmatch.train('toy', freeze='no'), ("freeze='no'", 'must be True or False')),
    (lambda: corrmatch.train('toy', crop=65.5), ('crop=65.5', 'must be a whole number')),
    (lambda: corrmatch.train('toy', steps='100'), ("steps='100'", 'must be a whole number')),
    (lambda: corrmatch.train('toy', tau=None), ('tau=None', 'must be a number')),
    (lambda: corrmatch.train('toy', n_classes=9), ('n_classes=9', 'generated world has 6')),
    (lambda: corrmatch.train('toy', n_classes=1), ('n_classes=1', 'at least 2')),
    (lambda: corrmatch.train('toy', labels=4), ('labels=4', 'is for a data folder')),
    (lambda: corrmatch.train('.', labels=3, labeled='x.txt'), ("labels=3 and labeled='x.txt'", 'of the two')),
    (lambda: find_lr('toy', tries=8), ('tries=8', '10 steps at least')),
    (lambda: corrmatch.train('toy', ignore=0), ('ignore', 'is for a data folder')),
    (lambda: corrmatch.resume('nowhere'), ('nowhere', 'give a run folder')),
    (lambda: corrmatch.load('nowhere'), ('nowhere', 'check the path')),
    (lambda: corrmatch.predict('nowhere', 'a.png'), ('nowhere', 'check the path')),
    (lambda: corrmatch.list_backbones('nothing*'), ('nothing*', 'convnext'))])
def test_faults_are_one_line(call, words): refused(call, *words)


def test_load_from_the_hub(run, tmp_path, monkeypatch):
    "The file that the hub's client hands over is opened like any other; its faults are one line."
    from corrmatch.training.checkpoints import release
    hub = pytest.importorskip('huggingface_hub')
    release(run, tmp_path/'model.safetensors')
    monkeypatch.setattr(
        hub, 'hf_hub_download', lambda repo, name: str(tmp_path / name) if repo == 'us/net' else 1 / 0)
    assert corrmatch.load('hf:us/net', device='cpu').config.n_classes == 2
    refused(lambda: corrmatch.load('hf:us/none'), 'hf:us/none', 'check the name')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ImportError, match=r'corrmatch-seg\[hub\]'):
        corrmatch.load('hf:us/net')


def test_tables():
    presets = corrmatch.list_presets()
    backbones = corrmatch.list_backbones()
    assert {p.name for p in presets} >= {'toy', 'voc_92', 'cityscapes_1_16'} and len(
        str(presets).splitlines()) == len(presets) + 1
    for row in backbones:
        from corrmatch.models.backbones import build_backbone
        size = sum(p.numel() for p in build_backbone(row.name, int(row.strides.split()[0])).parameters())
        assert row.parameters == f'{size/1e6:.1f}', 'the same number as of the network itself'
    assert corrmatch.list_backbones('test_vit')[0].weights.startswith('timm')
