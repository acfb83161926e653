"""Scoring reads masks as training did, or refuses them by name; classes that the ground truth does not show
are told apart."""
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch.use.cli import main
from corrmatch.config import preset
from corrmatch.files import DataError
from corrmatch.training.metrics import ConfusionMatrix
from corrmatch.data.settings import auto_config
from corrmatch.training.reading import _MappedSource, _run_masks, open_val, spaced
from corrmatch.use.report import _class_rows, read_run, score_run
from corrmatch.training.builders import make_datasets
from corrmatch.training.trainer import ABSENT, Trainer, absent_text, iou_table, load_run
from errors_for_tests import refused

pytestmark = pytest.mark.usefixtures('no_drawing')
SMALL = dict(
    backbone='toynet', weights='', crop=33, steps=2, batch_x=2, batch_u=2, device='cpu', stride=8, dim=16,
    low_dim=8, regions=4)
COLORS = np.array([[0, 0, 255], [10, 20, 30], [200, 0, 0]], np.uint8)
CITY = np.array([7, 26, 11], np.uint8)  # label ids of road, car, building


def scene(seed, k=3, size=48):
    "A photo with rectangles, and its class ids 0..k-1."
    rng = np.random.default_rng(seed)
    ids = np.zeros((size, size), np.uint8)
    for c in range(1, k):
        ids[(y := rng.integers(0, size//2)):y+size//3, (x := rng.integers(0, size//2)):x+size//3] = c
    ids[0, :k] = range(k)  # every class in every mask
    return (60*ids[..., None] + rng.integers(0, 60, (size, size, 3))).astype(np.uint8), ids


ENCODINGS = dict(
    binary=(2, lambda ids: ids * 255), levels=(3, lambda ids: ids * 100),
    bits=(2, lambda ids: ids.astype(bool)), colors=(3, lambda ids: COLORS[ids]), ids=(3, lambda ids: ids),
    deep=(3, lambda ids: ids.astype(np.uint16)))


def fill(folder, encoding, n=8, k=None):
    "A data folder whose masks are encoded in some way; the class ids."
    classes, encode = ENCODINGS[encoding]
    truth = []
    for part in ('images', 'masks'):
        (folder/part).mkdir(parents=True)
    for i in range(n):
        photo, ids = scene(i, k or classes)
        Image.fromarray(photo).save(folder/f'images/p{i}.png')
        Image.fromarray(encode(ids)).save(folder/f'masks/p{i}.png')
        truth.append(ids)
    (folder/'raw.txt').write_text(''.join(f'images/p{i}.png masks/p{i}.png\n' for i in range(n)))
    return truth


def run_folder(folder, config, classes=(), masks=None):
    "What a run folder tells about the data."
    folder.mkdir(parents=True)
    (folder/'config.json').write_text(json.dumps(dict(data=config.data)))
    (folder / 'data.json').write_text(
        json.dumps(
            dict(
                lists={}, classes=list(classes) or [f'class {c}' for c in range(config.n_classes)],
                masks=masks)))
    return folder


def record(data, n, val='raw.txt'): return preset('camvid', data=str(data), n_classes=n, val=val, weights='')


# --- the meaning of listed masks

@pytest.mark.parametrize('encoding', ENCODINGS)
def test_originals_mean_what_they_meant_in_training(tmp_path, encoding):
    truth = fill(tmp_path/'d', encoding)
    config, _ = auto_config(tmp_path/'d', **SMALL)
    val = open_val(tmp_path/'none', record(tmp_path/'d', config.n_classes)).sources.val
    assert config.n_classes == len(np.unique(truth))
    for i in range(len(val)):
        assert np.array_equal(val.read_mask(i), truth[i])
    learned = make_datasets(config).labeled
    for i, name in enumerate(learned.names):
        assert np.array_equal(learned.read_mask(i), val.read_mask(val.names.index(name)))


def test_cityscapes_label_ids(tmp_path):
    for i in range(4):
        photo, ids = scene(i)
        for part, name, array in (
            ('leftImg8bit', '_leftImg8bit', photo), ('gtFine', '_gtFine_labelIds', CITY[ids])):
            path = tmp_path/'d'/part/('val' if i > 2 else 'train')/'a'/f'a_{i}{name}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    auto_config(tmp_path/'d', allow_missing=True, **SMALL)
    for kind in ('labelIds', 'labelTrainIds'):
        (tmp_path / 'd' / f'{kind}.txt').write_text(
            f'leftImg8bit/val/a/a_3_leftImg8bit.png gtFine/val/a/a_3_gtFine_{kind}.png\n')
        val = open_val(tmp_path/'none', record(tmp_path/'d', 19, f'{kind}.txt')).sources.val
        assert np.array_equal(val.read_mask(0), np.array([0, 13, 2])[scene(3)[1]]), kind


def test_another_folder_is_read_with_the_meaning_of_the_run(tmp_path):
    "No conversion was ever made in the other folder; the run remembers."
    truth = fill(tmp_path/'other', 'binary')
    run = run_folder(
        tmp_path / 'run', record(tmp_path / 'd', 2), masks=dict(kind='binary', table=[[0, 0], [255, 1]]))
    val = open_val(run, record(tmp_path/'other', 2)).sources.val
    assert all(np.array_equal(val.read_mask(i), truth[i]) for i in range(len(val)))


@pytest.mark.parametrize(
    'encoding, masks, words',
    [
        (
            'binary', dict(kind='levels', table=[[0, 0], [128, 1]]),
            ('masks/p0.png', 'value 255', 'levels: 0 is class 0', 'corrmatch check')),
        (
            'ids', dict(kind='binary', table=[[0, 0], [255, 1]]),
            ('masks/p0.png', 'value 1', 'corrmatch check')),
        (
            'colors', dict(kind='binary', table=[[0, 0], [255, 1]]),
            ('masks/p0.png', 'holds colours', 'corrmatch check')),
        (
            'colors', dict(kind='colours', table=[[0x0A141E, 0], [0xC80000, 1]]),
            ('masks/p0.png', 'colour 0 0 255', 'corrmatch check')),
        (
            'binary', dict(kind='colours', table=[[0, 0], [255, 1]]),
            ('masks/p0.png', 'holds values', 'corrmatch check')),
        ('colors', None, ('masks/p0.png', 'holds colours')),
        ('levels', None, ('masks/p0.png', 'value 100')),
        ('binary', None, ('raw.txt', 'only 0 and 255', 'corrmatch check')),
        (
            'binary', dict(kind='binary', table=[[0, 0], [65535, 1], [255, 255]]),
            ('raw.txt', 'only background and ignored pixels', 'corrmatch check'))])
def test_masks_that_do_not_fit_are_refused(tmp_path, encoding, masks, words):
    fill(tmp_path/'other', encoding)
    run = run_folder(tmp_path/'run', record(tmp_path/'d', 2), masks=masks)
    refused(lambda: open_val(run, record(tmp_path/'other', 2)), *words)


def test_one_bad_mask_among_good_ones_is_found_before_scoring(tmp_path):
    fill(tmp_path/'d', 'binary')
    auto_config(tmp_path/'d', **SMALL)
    mask = np.asarray(Image.open(tmp_path/'d/masks/p6.png')).copy()
    mask[5, 5] = 7
    Image.fromarray(mask).save(tmp_path/'d/masks/p6.png')
    refused(lambda: open_val(tmp_path/'none', record(tmp_path/'d', 2)), 'masks/p6.png', 'value 7 in 1 pixel')
    Image.fromarray(mask[:40]*0).save(tmp_path/'d/masks/p6.png')
    refused(
        lambda: open_val(tmp_path / 'none', record(tmp_path / 'd', 2)), 'masks/p6.png', '48x40 pixels',
        '48x48')


def test_a_folder_with_a_note_of_its_own_follows_it(tmp_path):
    "Its classes are those of the run, its values are its own."
    truth = fill(tmp_path/'other', 'binary')
    auto_config(tmp_path/'other', **SMALL)
    names = [line.split()[0] for line in (tmp_path/'other/classes.txt').read_text().splitlines()]
    run = run_folder(
        tmp_path / 'run', record(tmp_path / 'd', 2), names, dict(kind='levels', table=[[0, 0], [9, 1]]))
    assert np.array_equal(open_val(run, record(tmp_path/'other', 2)).sources.val.read_mask(3), truth[3])


def test_classes_of_another_folder(tmp_path):
    fill(tmp_path/'other', 'ids')
    run = run_folder(tmp_path/'run', record(tmp_path/'d', 3), ['sky', 'road', 'car'])
    config = record(tmp_path/'other', 3)
    assert open_val(run, config).sources.class_names == ['sky', 'road', 'car']
    def classes(*names):
        (tmp_path/'other/classes.txt').write_text(''.join(f'{n} {i} 0 0\n' for i, n in enumerate(names)))
    classes('sky', 'car', 'road')
    refused(lambda: open_val(run, config), 'classes.txt', 'another order', 'sky, car, road')
    classes('sky', 'road')
    refused(lambda: open_val(run, config), 'classes.txt', 'names 2 classes', 'the run has 3')
    classes('sky', 'road', 'bus')
    opened = open_val(run, config)
    assert 'names other classes' in opened.note and opened.sources.class_names[2] == 'bus'


# --- images that were converted

def test_converted_images_are_found_by_their_originals(tmp_path):
    fill(tmp_path/'d', 'ids')
    for i in range(8):
        deep = np.random.default_rng(i).integers(0, 4096, (48, 48)).astype(np.uint16)
        Image.fromarray(deep).save(tmp_path/f'd/images/p{i}.png')
    auto_config(tmp_path/'d', **SMALL)
    val = open_val(tmp_path/'none', record(tmp_path/'d', 3)).sources.val
    for i, name in enumerate(val.names):
        assert np.array_equal(
            val.read_image(i), Image.open(tmp_path / f'd/prepared/images/{name}.png').convert('RGB'))
    Image.fromarray(deep).save(tmp_path/'d/images/p0.png', compress_level=0)  # its copy is of yesterday
    refused(
        lambda: open_val(tmp_path / 'none', record(tmp_path / 'd', 3)), 'images/p0.png', 'corrmatch check',
        '--convert')


def test_turned_images(tmp_path):
    "A mask drawn on the turned image: with and without a converted copy."
    for part in ('images', 'masks'):
        (tmp_path/'d'/part).mkdir(parents=True)
    for i in range(5):
        photo, ids = scene(i)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(photo[:32]).save(tmp_path/f'd/images/p{i}.jpg', exif=exif, quality=95)
        Image.fromarray(np.rot90(ids[:32], -1)).save(tmp_path/f'd/masks/p{i}.png')
    (tmp_path/'d/raw.txt').write_text(''.join(f'images/p{i}.jpg masks/p{i}.png\n' for i in range(5)))
    shown = [open_val(tmp_path/'none', record(tmp_path/'d', 3)).sources.val]
    auto_config(tmp_path/'d', **SMALL)
    shown.append(open_val(tmp_path/'none', record(tmp_path/'d', 3)).sources.val)
    assert (tmp_path/'d/prepared/images/p0.png').is_file()
    for val in shown:
        assert val.image_size(0) == val.read_image(0).size == val.read_mask(0).size == (32, 48)
    assert np.array_equal(shown[0].read_image(0), shown[1].read_image(0))


def test_copies_made_elsewhere_are_not_taken(tmp_path):
    "Two originals of one size and time: the copy is told by its name, or not used."
    fill(tmp_path/'d', 'ids', 2)
    (tmp_path/'d/prepared/images').mkdir(parents=True)
    for name in ('p0', 'p9'):
        Image.new('RGB', (48, 48), (9, 9, 9)).save(tmp_path/f'd/prepared/images/{name}.png')
    found = (tmp_path/'d/images/p0.png').stat()
    stamps = {
        f'prepared/images/{name}.png': [found.st_size, found.st_mtime_ns, False] for name in ('p0', 'p9')}
    (tmp_path / 'd/prepared/mapping.json').write_text(
        json.dumps(dict(kind='ids', table=[[0, 0], [1, 1], [2, 2]], packed=False, meaning={}, stamps=stamps)))
    val = open_val(tmp_path/'none', record(tmp_path/'d', 3)).sources.val
    assert val.read_image(0).getpixel((0, 0)) == (9, 9, 9) and val.read_image(1).getpixel((40, 40)) != (
        9, 9, 9)


# --- nothing to score

def test_masks_that_are_all_ignored(tmp_path):
    fill(tmp_path/'d', 'ids')
    for i in (6, 7):
        Image.fromarray(np.full((48, 48), 255, np.uint8)).save(tmp_path/f'd/masks/p{i}.png')
    lines = (tmp_path/'d/raw.txt').read_text().splitlines(keepends=True)
    (tmp_path/'d/void.txt').write_text(''.join(lines[6:]))
    (tmp_path/'d/lab.txt').write_text(''.join(lines[:6]))
    refused(
        lambda: open_val(tmp_path / 'none', record(tmp_path / 'd', 3, 'void.txt')), 'void.txt', 'every pixel',
        '2 masks')
    config = preset(
        'camvid', data=str(tmp_path / 'd'), labeled='lab.txt', unlabeled='lab.txt', val='void.txt',
        n_classes=3, **SMALL)
    refused(lambda: Trainer(config, quiet=True), "val='void.txt'", 'every pixel of its 2 masks is ignored')
    void = preset(
        'camvid', data=str(tmp_path / 'd'), labeled='void.txt', unlabeled='lab.txt', val='lab.txt',
        n_classes=3, allow_missing=True, **SMALL)
    refused(lambda: Trainer(void, quiet=True), "labeled='void.txt'", 'nothing can be learned')


# --- classes that the ground truth does not show

def test_two_means():
    # 2 never occurs, 3 is only predicted
    matrix = ConfusionMatrix(4).update(torch.tensor([0, 1, 1, 3]), torch.tensor([0, 1, 0, 1]))
    assert matrix.present().tolist() == [True, True, False, False]
    assert matrix.miou_over('all') == matrix.miou() == pytest.approx((1/2 + 1/3)/4)
    assert matrix.miou_over('present') == pytest.approx((1/2 + 1/3)/2)
    assert matrix.miou('skip') == pytest.approx((1/2 + 1/3)/3)  # as it was: a predicted class counts
    lines = iou_table({'best': matrix}, ['a', 'b', 'c', 'd']).splitlines()
    assert [line.split()[-1] for line in lines] == ['best', '50.0', '33.3', ABSENT, ABSENT, '41.7', '20.8']
    assert [
        line.split()[-1] for line in iou_table({'best': matrix}, list('abcd'), 'present').splitlines()[-2:]
    ] == ['20.8', '41.7']
    whole = ConfusionMatrix(2).update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert 'present' not in iou_table({'best': whole}, ['a', 'b']) and absent_text([]) == ''


def absent_run(folder, **changes):
    "A run whose validation masks show two of three classes."
    fill(folder/'d', 'ids')
    for i in (6, 7):
        ids = scene(i)[1]
        Image.fromarray(ids*(ids < 2)).save(folder/f'd/masks/p{i}.png')
    lines = (folder/'d/raw.txt').read_text().splitlines(keepends=True)
    (folder/'d/val.txt').write_text(''.join(lines[6:]))
    (folder/'d/lab.txt').write_text(''.join(lines[:6]))
    config = preset(
        'camvid', data=str(folder / 'd'), labeled='lab.txt', unlabeled='lab.txt', val='val.txt', n_classes=3,
        out=str(folder / 'run'), eval_every=1, **SMALL | changes)
    trainer = Trainer(config, quiet=True)
    trainer.fit()
    return trainer


def test_absent_classes_in_training_and_after(tmp_path, capsys):
    trainer = absent_run(tmp_path, miou='present')
    assert "warning: val='val.txt': occurs in no validation mask: class 2" in capsys.readouterr().out
    with open(tmp_path/'run/val.csv') as f:
        rows = list(csv.DictReader(f))
    assert all(r['iou_class 2'] == '' for r in rows)
    for r in rows:
        assert float(r['miou']) == pytest.approx(
            (float(r['iou_class 0']) + float(r['iou_class 1'])) / 2, abs=2e-3)
    assert trainer.best == pytest.approx(max(float(r['miou']) for r in rows), abs=1e-3)
    said = trainer.summary()
    table = {line.split('  ')[0]: line.split()[-2:] for line in said.splitlines()}
    assert table['class 2'] == [ABSENT, ABSENT] and 'occurs in no validation mask: class 2' in said
    assert float(table['mIoU'][1]) == pytest.approx(1.5*float(table['mIoU, all classes'][1]), abs=.02)
    shown = {r[0]: r[1:] for r in _class_rows(read_run(tmp_path/'run'))}
    assert shown['class 2'] == (ABSENT,) * 3 and float(shown['mIoU, all classes'][1]) == pytest.approx(
        float(shown['mean'][1]) * 2 / 3, abs=0.1)
    assert score_run(tmp_path/'run', device='cpu').config.miou == 'present'


def test_eval_of_one_image_and_of_absent_classes(tmp_path, capsys):
    absent_run(tmp_path)
    (tmp_path/'d/one.txt').write_text('images/p7.png masks/p7.png\n')
    capsys.readouterr()
    means = {}
    for flags in ((), ('--miou', 'present')):
        assert main(['eval', str(tmp_path/'run'), '--val', 'one.txt', '--device', 'cpu', *flags]) == 0
        said = capsys.readouterr().out
        assert (
            'on 1 image ' in said
            and re.search(rf'^class 2 +{ABSENT}$', said, re.M)
            and 'occurs in no validation mask: class 2' in said)
        means[flags] = [
            float(re.search(rf'^{name} +(\S+)$', said, re.M)[1])
            for name in ('mIoU', 'mIoU, (?:present|all) classes')]
    assert means[()] == means['--miou', 'present'][::-1] and means[()][1] == pytest.approx(
        1.5 * means[()][0], abs=0.2)
    with pytest.raises(SystemExit):
        main(['eval', str(tmp_path/'run'), '--miou', 'some'])


def test_one_validation_image(tmp_path, capsys):
    "Train, stop half-way, resume, eval, report."
    fill(tmp_path/'d', 'ids')
    lines = (tmp_path/'d/raw.txt').read_text().splitlines(keepends=True)
    (tmp_path/'d/val.txt').write_text(lines[7])
    (tmp_path/'d/lab.txt').write_text(''.join(lines[:7]))
    config = preset(
        'camvid', data=str(tmp_path / 'd'), labeled='lab.txt', unlabeled='lab.txt', val='val.txt',
        n_classes=3, out=str(tmp_path / 'run'), eval_every=1, save_every=1, **SMALL)
    assert 0 <= (best := Trainer(config, quiet=True).fit()) <= 100
    (tmp_path/'run/before.pt').replace(tmp_path/'run/last.pt')  # as if it had been stopped at step 1
    run = str(tmp_path/'run')
    assert main(['resume', run]) == 0 and load_run(tmp_path/'run', 'last.pt')[1].val == 'val.txt'
    with open(tmp_path/'run/val.csv') as f:
        rows = list(csv.DictReader(f))
    assert [r['step'] for r in rows] == ['1', '2'] and max(float(r['miou']) for r in rows) == pytest.approx(
        best, abs=1e-3)
    capsys.readouterr()
    assert main(['eval', run, '--device', 'cpu']) == 0
    said = capsys.readouterr().out
    assert 'on 1 image ' in said and float(re.search(r'^mIoU +(\S+)$', said, re.M)[1]) == pytest.approx(
        best, abs=0.06)
    assert main(['report', run, '--device', 'cpu', '--out', str(tmp_path/'r.html')]) == 0
    assert 'All 1 validation images' in (tmp_path/'r.html').read_text()


def test_eval_scores_originals_like_their_copies(tmp_path, capsys):
    """The whole way: train on a folder of 0 and 255, score the list it was validated on and the same masks as
    they were given."""
    fill(tmp_path/'d', 'binary')
    assert (
        main(
            [
                'train',
                str(tmp_path / 'd'),
                '--out',
                str(tmp_path / 'run'),
                *[f'--{k}={v}' for k, v in SMALL.items()]])
        == 0)
    config = load_run(tmp_path/'run')[1]
    masks = [line.split() for line in (tmp_path/'d'/config.val).read_text().splitlines()]
    (tmp_path / 'd/given.txt').write_text(
        ''.join(f'{image} masks/{Path(mask).name}\n' for image, mask in masks))
    assert all(mask.startswith('prepared/') for _, mask in masks)
    capsys.readouterr()
    tables = []
    for flags in ((), ('--val', 'given.txt')):
        assert main(['eval', str(tmp_path/'run'), '--device', 'cpu', *flags]) == 0
        tables.append(capsys.readouterr().out.splitlines()[1:])
    assert tables[0] == tables[1] and len(tables[0]) >= 4


def test_reader_by_hand(tmp_path):
    "`spaced` and `_MappedSource` as notebooks use them."
    truth = fill(tmp_path/'d', 'binary', 3)
    plain = make_datasets(record(tmp_path/'d', 2), only_val=True).val
    val = _MappedSource(plain, tmp_path/'d', _run_masks(dict(kind='binary', table=[[0, 0], [255, 1]]), 2), 2)
    assert len(val) == 3 and np.array_equal(val.read_mask(2), truth[2]) and spaced(10, 4) == [0, 3, 6, 9]
    with pytest.raises(DataError, match='value 255'):
        _MappedSource(plain, tmp_path/'d', _run_masks(dict(kind='x', table=[[0, 0]]), 2), 2).read_mask(0)
