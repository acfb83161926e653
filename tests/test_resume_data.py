"""A run goes on with the data that it was started with, or says what has changed; a batch that cannot be
trained is never chosen, and refused early."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from corrmatch.use.cli import main
from corrmatch.config import preset
from corrmatch.data.settings import auto_config
from corrmatch.data.folders import read_conversion
from corrmatch.training.run_folder import data_changes, _list_mark, read_data_record
from corrmatch.training.trainer import Trainer
from errors_for_tests import refused

pytestmark = pytest.mark.usefixtures('no_drawing')
SMALL = dict(
    backbone='toynet', weights='', crop=33, batch_x=2, batch_u=2, device='cpu', n_classes=2, norm='group',
    stride=8, dim=16, low_dim=8, regions=4)


def photo(path, seed, flat=False):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(
        rng.integers(0, 2, (40, 40)).astype(np.uint8)
        if flat
        else rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(path)


@pytest.fixture
def data(tmp_path):
    "Twelve photographs, six with masks, and lists."
    for i in range(12):
        photo(tmp_path/f'd/images/p{i:02d}.png', i)
    for i in range(6):
        photo(tmp_path/f'd/masks/p{i:02d}.png', i, True)
    for i in range(3):
        photo(tmp_path/f'd/more/m{i}.png', 50+i)
    for name, rows in dict(lab=range(4), val=(4, 5)).items():
        (tmp_path / f'd/{name}.txt').write_text(
            ''.join(f'images/p{i:02d}.png masks/p{i:02d}.png\n' for i in rows))
    (tmp_path/'d/unl.txt').write_text(''.join(f'images/p{i:02d}.png\n' for i in range(6, 12)))
    return tmp_path/'d'


def config_of(data, **changes):
    lists = dict(labeled='lab.txt', unlabeled='unl.txt', val='val.txt')
    return preset(
        'camvid', data=str(data),
        **SMALL | lists | dict(out=str(data.parent / 'run'), steps=2, eval_every=9, save_every=1) | changes)


def start(data, **changes):
    "A run of one step of two."
    config = config_of(data, **changes)
    trainer = Trainer(config, quiet=True)
    trainer._open(False, False)
    trainer.run_step(trainer.batches[0])
    trainer.save()
    trainer._note('stopped')
    return config


def go_on(config, force=False): return Trainer(config, quiet=True).fit(resume=True, force=force)


def edit(path, change):
    lines = path.read_text().splitlines()
    path.write_text('\n'.join(change(lines)) + '\n')


@pytest.mark.parametrize(
    'name, change, words',
    [
        ('unl', lambda lines: [*lines, 'images/p00.png'], ('unlabeled: 6 images -> 7 images',)),
        ('unl', lambda lines: lines[::-1], ('unlabeled: 6 images -> 6 other images',)),
        ('lab', lambda lines: lines[:3], ('labeled: 4 images -> 3 images',)),
        ('val', lambda lines: lines[:1], ('val: 2 images -> 1 images',)),
        (
            'lab', lambda lines: [lines[0].replace('masks/p00', 'masks/p01'), *lines[1:]],
            ('labeled: 4 images -> 4 other images',))])
def test_changed_lists_are_refused(data, name, change, words):
    config = start(data)
    edit(data/f'{name}.txt', change)
    refused(lambda: go_on(config), 'have changed', '--force', *words)
    go_on(config, force=True)
    assert not data_changes(read_data_record(data.parent/'run'), read_data_record(data.parent/'run'))
    assert (
        read_data_record(data.parent / 'run')['lists'][dict(unl='unlabeled', lab='labeled', val='val')[name]][
            'lines']
        == len((data / f'{name}.txt').read_text().split('\n')) - 1)


def test_a_folder_of_unlabeled_images_that_grew(data):
    config = start(data, unlabeled='more')
    photo(data/'more/m9.png', 9)
    refused(lambda: go_on(config), 'unlabeled: 3 images -> 4 images')


def test_the_same_lists_written_differently(data):
    "Ids instead of paths, another end of line, a mark at the start: the same images."
    config = start(data)
    (data / 'lab.txt').write_text(
        '﻿' + ''.join(f'p{i:02d}\r\n' for i in range(4)), encoding='utf-8', newline='')
    go_on(config)


def test_a_folder_that_moved(data):
    config = start(data)
    shutil.move(data, data.parent/'elsewhere')
    go_on(replace(config, data=str(data.parent/'elsewhere')))


def test_classes_and_masks_that_changed(data):
    config = start(data)
    (data/'classes.txt').write_text('a 0 0 0\nb 9 9 9\n')
    refused(lambda: go_on(config), 'classes: class 0, class 1 -> a, b')
    (data/'classes.txt').unlink()
    record = read_data_record(data.parent/'run')
    (data/'prepared').mkdir()
    (data / 'prepared/mapping.json').write_text(
        '{"kind": "levels", "table": [[0, 0], [9, 1]], "packed": false, "meaning": {}, "stamps": {}}')
    (data.parent / 'run/data.json').write_text(
        json.dumps(record | dict(masks=dict(kind='binary', table=[[0, 0], [255, 1]]))))
    refused(lambda: go_on(config), 'masks: binary -> levels')


def test_a_run_without_a_record_goes_on_with_a_note(data, capsys):
    config = start(data)
    (data.parent/'run/data.json').unlink()
    Trainer(config).fit(resume=True)
    assert 'holds no record of its lists' in capsys.readouterr().out
    assert read_data_record(data.parent/'run')['lists']['labeled']['lines'] == 4


@pytest.mark.parametrize(
    'text',
    [
        '', '{', '[]', '{"lists": 3, "classes": [], "masks": null}',
        '{"lists": {"val": {}}, "classes": [], "masks": null}', '{"lists": {}, "classes": 3, "masks": null}',
        '{"lists": {}, "classes": [], "masks": {"kind": "x"}}', '\udcff'])
def test_damaged_records(data, tmp_path, text):
    (tmp_path/'data.json').write_bytes(text.encode('utf-8', 'surrogateescape'))
    refused(lambda: read_data_record(tmp_path), 'data.json', 'remove it')


def test_settings_are_told_before_lists(data):
    config = start(data)
    edit(data/'unl.txt', lambda lines: lines[:3])
    with pytest.raises(ValueError, match='other settings.*lr'):
        go_on(replace(config, lr=9.))


def test_resume_on_the_command_line(data, capsys):
    start(data)
    edit(data/'unl.txt', lambda lines: lines[:5])
    assert main(['resume', str(data.parent/'run')]) == 1
    assert 'unlabeled: 6 images -> 5 images' in capsys.readouterr().err
    assert main(['resume', str(data.parent/'run'), '--force']) == 0


def test_a_run_that_is_resumed_keeps_its_lists(data, monkeypatch):
    "Masks that were drawn in between join the next run, not the one that was stopped."
    from corrmatch.use.api import train
    monkeypatch.chdir(data.parent)
    settings = dict(SMALL, steps=2, eval_every=1, quiet=True)
    del settings['n_classes']
    run = train('d', **settings)
    before = json.loads((run/'config.json').read_text())
    for i in range(6, 9):
        photo(data/f'masks/p{i:02d}.png', i, True)
    assert train('d', resume=True, **settings) == run
    assert json.loads((run/'config.json').read_text()) == before
    second = json.loads((train('d', out='second', **settings)/'config.json').read_text())
    assert [before['labeled'], second['labeled']] == [f'splits/s0/{n}/labeled.txt' for n in (4, 7)]
    assert second['val'] == before['val']


def test_marks_of_shards(tmp_path):
    class Shards:
        def __len__(self): return 2
        def where(self, i): return f'{tmp_path}/a.tar:s{i}.jpg', f'{tmp_path}/a.tar:s{i}.png'
    class Moved(Shards):
        def where(self, i): return f'x/a.tar:s{i}.jpg', f'x/a.tar:s{i}.png'
    assert _list_mark(Shards(), tmp_path) == _list_mark(Moved(), 'x') != _list_mark(Shards(), 'x')
    assert read_conversion(tmp_path/'prepared/mapping.json') is None


# --- batches of one

@pytest.mark.parametrize(
    'method, more', [('supervised', {}), ('unimatch', {}), ('corrmatch', dict(warmup=1))])
def test_one_label_trains(data, method, more):
    config, text = auto_config(
        data, method, labels=1, out=str(data.parent / 'run'), steps=2, progress=None,
        **{k: v for k, v in SMALL.items() if k not in ('batch_x', 'n_classes', 'norm')} | more)
    assert config.batch_x == 2 and config.norm == 'batch' and 'twice a step' in text
    Trainer(config, quiet=True).fit()


@pytest.mark.parametrize('changes, words', [
    (dict(method='supervised', batch_x=1), ('batch_x=1', 'set batch_x=2')),
    (dict(batch_x=1, batch_u=2, warmup=1), ('batch_x=1', 'set batch_x=2')),
    (dict(batch_x=4, batch_u=1), ('batch_u=1', 'set batch_u=2')),
    (dict(method='supervised', batch_x=4, accumulate=4), ('batch_x=4', 'set batch_x=8'))])
def test_batches_of_one_are_refused_before_the_run_begins(data, changes, words):
    method = changes.pop('method', 'corrmatch')
    config = preset(
        'camvid', method, data=str(data), out=str(data.parent / 'run'), labeled='lab.txt',
        unlabeled='unl.txt', val='val.txt', **SMALL | dict(norm='batch', steps=2) | changes)
    with pytest.raises(ValueError, match='batch of one') as e:
        Trainer(config, quiet=True).fit()
    assert not (data.parent/'run').exists() and '\n' not in str(e.value)
    for word in (*words, "norm='group'"):
        assert word in str(e.value)


def test_a_lone_labeled_image_beside_unlabeled_ones_trains(data):
    Trainer(config_of(data, batch_x=1, norm='batch'), quiet=True).fit()
    Trainer(config_of(data, batch_x=1, batch_u=1, out=str(data.parent/'group')), quiet=True).fit()
