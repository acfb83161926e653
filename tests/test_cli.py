"""The command line as a user meets it. Most commands run in this process, a few in a new interpreter;
`test_story.py` starts each command in a process of its own."""
import csv
import json

import numpy as np
import pytest
from PIL import Image

from corrmatch.data.toy import toy_arrays
from runs_for_tests import typed as corrmatch, typed_afresh

SMALL = (
    '--crop 33 --batch_x 2 --batch_u 2 --dim 16 --low_dim 8 --regions 8 --steps 4 --eval_every 2 '
    '--log_every 1 '
    '--warmup 0 --device cpu --backbone toynet --stride 8 --norm group --n_classes 6').split()


def one_line(result, *words):
    "A failure is one line without a traceback that holds these words."
    code, _, err = result
    lines = [l for l in err.splitlines() if l.startswith('corrmatch')]
    assert code not in (0, None) and 'Traceback' not in err and len(lines) == 1, err
    for word in words:
        assert word in lines[0], lines[0]


def make_folder(root, n=8, size=49):
    "A small data folder of toy scenes in the images/ masks/ layout."
    images, masks = toy_arrays(range(n+2), size)
    (root/'images').mkdir(parents=True)
    (root/'masks').mkdir()
    for i, (image, mask) in enumerate(zip(images, masks)):
        Image.fromarray(image).save(root/'images'/f's{i}.png')
        Image.fromarray(mask).save(root/'masks'/f's{i}.png')
    (root/'labeled.txt').write_text('\n'.join(f's{i}' for i in range(n//2)))
    (root/'unlabeled.txt').write_text('\n'.join(f's{i}' for i in range(n//2, n)))
    (root/'val.txt').write_text(f's{n}\ns{n+1}\n')
    return root


@pytest.fixture
def data(tmp_path): return make_folder(tmp_path/'data')


def train(data, out, *more, run=corrmatch):
    return run(
        'train', 'toy', '--data', data, '--labeled', 'labeled.txt', '--unlabeled', 'unlabeled.txt', '--out',
        out, *SMALL, *more)


@pytest.mark.parametrize('command', [(), ('demo',), ('train',), ('eval',)])
def test_help_has_units_and_an_example(command):
    code, out, _ = typed_afresh(*command, '--help')
    assert code == 0 and (not command or f'corrmatch {command[0]}' in out)
    if command:
        assert 'example:' in out
    if command == ('train',):
        assert 'pixels' in out and '--lr_multi' in out


@pytest.mark.parametrize('args, words', [
    (('train', 'voc_93'), ('voc_93', 'voc_92')),
    (('train', 'toy', '--lr_mult', '1'), ('--lr_mult', '--lr_multi')),
    (('train', 'toy', '--method', 'corrmach'), ('corrmach', 'corrmatch')),
    (('train', 'toy', '--cutmix', 'other'), ('cutmix', 'other_image')),
    (('train', 'toy', '--tau', '1.5'), ('tau=1.5',)),
    (('train', 'camvid', '--data', '/nowhere'), ('/nowhere', 'no such folder')),
    (('eval', '/nowhere'), ('/nowhere', 'no such checkpoint')), (('trian',), ('trian',)),
    (('train', 'phtos'), ('phtos', 'neither a folder nor a preset')),
    (('train', 'voc_92'), ('--data FOLDER',)),
    (('train', 'toy', '--compile', 'maybe'), ('--compile', 'maybe', 'yes or no')),
    (('eval', 'runs/x', '--device', 'gpu'), ('gpu', 'cuda:N')),
    (('predict', 'runs/x', 'a.png', '--tile', '-3'), ('--tile', '-3', '0 or more')),
    (('table', '--paper', '--out', '/proc/nowhere/x.md'), ('/proc/nowhere/x.md', 'cannot be written'))])
def test_wrong_words_fail_in_one_line(args, words): one_line(corrmatch(*args), *words)


@pytest.mark.parametrize('args', [
    ('check',), ('split', '--labels', '4'), ('train', '--labels', '4'), ('lr-find', '--labels', '4'),
    ('convert', '--to', 'cvat')], ids=lambda args: args[0])
def test_a_file_of_values_that_is_not_there(data, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    result = corrmatch(args[0], data, *args[1:], '--map', 'lost.txt')
    one_line(result, '--map lost.txt: no such file', '`VALUE NAME`', '`order`')
    assert [p.name for p in tmp_path.iterdir()] == ['data']


def test_debug_shows_the_traceback():
    code, _, err = corrmatch('train', 'voc_93', '--debug')
    assert code != 0 and 'Traceback' in err


def test_train_eval_resume(data, tmp_path):
    code, out, err = train(data, tmp_path/'run', run=typed_afresh)
    assert code == 0, err
    assert 'mIoU' in out and f'corrmatch eval {tmp_path/"run"}' in out and '4 labeled, 4 unlabeled' in out
    files = {p.name for p in (tmp_path/'run').iterdir()}
    assert {'config.json', 'metrics.csv', 'val.csv', 'last.pt', 'best.pt', 'pictures'} <= files
    rows = list(csv.DictReader(open(tmp_path/'run'/'metrics.csv')))
    assert [int(r['step']) for r in rows] == [1, 2, 3, 4] and all(np.isfinite(float(r['loss'])) for r in rows)
    assert json.loads((tmp_path/'run'/'config.json').read_text())['crop'] == 33
    code, out, err = typed_afresh('eval', tmp_path/'run', '--checkpoint', 'last')
    assert (
        code == 0
        and f"{float(list(csv.DictReader(open(tmp_path / 'run' / 'val.csv')))[-1]['miou']):.1f}"
        in out.splitlines()[-1]), err
    one_line(train(data, tmp_path/'run'), 'holds a run already')
    one_line(train(data, tmp_path/'run', '--resume', '--lr', '0.5'), 'lr: ')


@pytest.mark.parametrize('method', ['supervised', 'fixmatch', 'unimatch', 'corrmatch'])
def test_every_method_trains(data, tmp_path, method):
    code, _, err = train(data, tmp_path/'run', '--method', method, '--steps', '2')
    assert code == 0, err


@pytest.mark.parametrize('partner', ['same_image', 'other_image', 'in_batch', 'none'])
def test_every_partner_trains(data, tmp_path, partner):
    code, _, err = train(data, tmp_path/'run', '--cutmix', partner, '--steps', '2')
    assert code == 0, err


def damage(data, what):
    "Break a data folder in one way."
    if what == 'empty list':
        (data/'labeled.txt').write_text('\n')
    if what == 'missing list':
        (data/'val.txt').unlink()
    if what == 'id without file':
        (data/'labeled.txt').write_text('s0\ns99\n')
    if what == 'truncated':
        (data/'images'/'s1.png').write_bytes((data/'images'/'s1.png').read_bytes()[:200])
    if what == 'sizes':
        Image.open(data/'masks'/'s1.png').resize((20, 20)).save(data/'masks'/'s1.png')
    if what == 'value':
        mask = np.array(Image.open(data/'masks'/'s1.png'))
        mask[:2, :5] = 77
        Image.fromarray(mask).save(data/'masks'/'s1.png')
    if what == 'absent class':
        (data/'labeled.txt').write_text('s0\n')


@pytest.mark.parametrize(
    'what, words',
    [
        ('empty list', ('labeled.txt', 'empty')), ('missing list', ('val.txt',)),
        ('id without file', ('s99', 'labeled.txt')), ('truncated', ('s1.png',)),
        ('sizes', ('s1.png', '20x20')), ('value', ('s1.png', '77', '10 pixels')),
        ('absent class', ('occur in no mask',))])
def test_bad_data_is_named_before_training(data, tmp_path, what, words):
    damage(data, what)
    one_line(train(data, tmp_path/'run'), *words)
    assert not (tmp_path/'run'/'last.pt').exists()


def test_a_crop_that_cannot_fit_is_refused(data, tmp_path):
    one_line(train(data, tmp_path/'run', '--crop', '20001'), 'crop=20001', 'smaller crop')


def test_broken_images_stop_the_run_with_its_checkpoint(data, tmp_path):
    "The header is whole, so the check before training passes; the body is not."
    for i in (4, 5):
        (data/'images'/f's{i}.png').write_bytes((data/'images'/f's{i}.png').read_bytes()[:-400])
    result = train(data, tmp_path/'run')
    one_line(result, 'cannot be read', 'resume')
    assert (tmp_path/'run'/'last.pt').exists() and 'skipped' in result[1] + result[2]


def test_demo_writes_table_and_images(tmp_path):
    code, out, err = corrmatch('demo', '--out', tmp_path/'demo', '--steps', '3')
    assert code == 0, err
    assert 'of that gap' in out and out.splitlines()[0].split() == [
        'few', 'labels', 'CorrMatch', 'all', 'labels']
    assert {'curves.png', 'propagation.png', 'demo.txt', 'few_labels', 'corrmatch', 'all_labels'} <= {
        p.name for p in (tmp_path / 'demo').iterdir()}


@pytest.mark.parametrize(
    'flags, words',
    [
        (('--regions', '-1'), ('regions=-1', 'at least 0')),
        (('--log_every', '0'), ('log_every=0', 'at least 1')), (('--dim', '-1'), ('dim=-1',)),
        (('--steps', '-5'), ('steps=-5',)), (('--lr', 'nan'), ('lr=nan',)), (('--lr', '-1'), ('lr=-1',)),
        (('--lr_multi', '-1'), ('lr_multi=-1',)), (('--seed', '-1'), ('seed=-1',)),
        (('--workers', '-1'), ('workers=-1',)), (('--region_cut', '7'), ('region_cut=7', 'between 0 and 1')),
        (('--warmup', '-2'), ('warmup=-2',)), (('--cache', '-1'), ('cache=-1',)),
        (('--steps', '0', '--epochs', '0'), ('steps=0 and epochs=0',)), (('--w_s', 'inf'), ('w_s=inf',)),
        (('--labels', '4'), ('--labels is for a data folder', './toy'))])
def test_a_value_that_cannot_work_is_named_before_a_folder_is_made(tmp_path, flags, words):
    one_line(corrmatch('train', 'toy', '--out', tmp_path/'run', *flags), *words)
    assert not (tmp_path/'run').exists()


def test_a_broken_record_is_named(tmp_path):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'config.json').write_text('{"lr"')
    (tmp_path/'run'/'state.json').write_text('{"state": "finished", "step": 1, "steps": 1}')
    (tmp_path/'run'/'val.csv').write_text('step,miou\n1,3.0\n')
    for command in ('table', 'resume'):
        one_line(corrmatch(command, tmp_path/'run'), 'config.json', 'cannot be read')


def test_methods_on_a_folder_of_ones_own_stand_in_one_table(tmp_path):
    folder = make_folder(tmp_path/'data', 12)
    for method in ('supervised', 'corrmatch', 'fixmatch'):
        for seed in range(2 if method == 'corrmatch' else 1):
            code, _, err = corrmatch(
                'train', folder, '--method', method, '--seed', seed, '--backbone', 'toynet', '--weights', '',
                '--crop', '33', '--dim', '16', '--low_dim', '8', '--steps', '2', '--batch_x', '2',
                '--batch_u', '2', '--labels', '4', '--device', 'cpu', '--out',
                tmp_path / 'runs' / f'{method}{seed}')
            assert code == 0, err
    code, out, err = corrmatch('table', tmp_path/'runs')
    assert code == 0, err
    # two seeds of corrmatch on the same lists
    assert sum(m in out for m in ('supervised', 'corrmatch', 'fixmatch')) == 3 and out.count('±') >= 2
