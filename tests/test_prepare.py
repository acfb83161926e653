"Data sets in every layout, and broken in many ways: what check, split and a run without preset make of them."
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from corrmatch.config import IGNORE_INDEX
from corrmatch.data import check as check_module
from corrmatch.data.folders import FolderSource, read_classes, read_split
from corrmatch.files import DataError
from corrmatch.data.layouts import find_layout
from corrmatch.data.masks import _CITYSCAPES_IDS, VOC_NAMES, map_ids
from corrmatch.data.check import (
    check_data, convert_data, _check_page, _report_json, report_text, save_report)
from corrmatch.data.settings import auto_config
from corrmatch.data.split import _choose_images, make_split
from corrmatch.viz import palette

K = 4  # classes of the generated masks


def scene(i, w=20, h=16):
    "An image and its mask: background, and two rectangles of the classes 1..3; class 3 is rare."
    rng = np.random.default_rng(i)
    mask = np.zeros((h, w), np.uint8)
    for c in {int(rng.integers(1, 3)), 3 if i % 7 == 0 else 1}:
        y, x = rng.integers(0, h-5), rng.integers(0, w-5)
        mask[y:y+5, x:x+5] = c
    return rng.integers(0, 256, (h, w, 3), np.uint8), mask


def put(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kwargs)


def fill(root, n=28, n_masks=24, change=lambda mask: mask, folders=('images', 'masks'), suffix='png'):
    for i in range(n):
        image, mask = scene(i)
        put(root/folders[0]/f's{i:02d}.{suffix}', image)
        if i < n_masks:
            put(root/folders[1]/f's{i:02d}.png', change(mask))
    return root


def check(root, **kwargs): return check_data(root, progress=None, **kwargs)


def kinds(report, level='error'): return sorted(f.kind for f in report.findings if f.level == level)


def masks_of(root, split):
    "Class ids by name, as training reads the lists of a split."
    out = {}
    for name in ('labeled', 'val'):
        source = FolderSource(read_split(root/split.files[name], root))
        out |= {n: np.asarray(source.read_mask(i)) for i, n in enumerate(source.names)}
        for i in range(len(source)):
            assert source.read_image(i).size == source.read_mask(i).size
    return out


# --- reading ---

def test_sound_folder(tmp_path):
    report = check(fill(tmp_path))
    assert (
        report.ok
        and len(report.usable) == 24
        and report.mapping.kind == 'ids'
        and len(report.mapping.names) == K)
    assert kinds(report) == kinds(report, 'warning') == [] and kinds(report, 'note') == ['classes', 'no mask']
    want = np.array([np.bincount(scene(i)[1].ravel(), minlength=K)/320 for i in range(24)])
    assert np.allclose(report.shares, want)


def break_five(root):
    "Five faults, one a file."
    whole = (root/'images/s01.png').read_bytes()
    (root/'images/s01.png').write_bytes(whole[:len(whole)//2])         # cut short
    put(root/'masks/s02.png', scene(2)[1][::2, ::2])                   # another size
    put(root/'masks/s03.png', palette(K)[scene(3)[1]])                 # in colours
    stray = scene(4)[1]
    stray[0, :3] = 99
    put(root/'masks/s04.png', stray)                                   # a value that is no class
    (root/'masks/s05.png').write_text('<html>not found</html>')        # no image at all


def test_five_faults(tmp_path):
    break_five(fill(tmp_path))
    report = check(tmp_path)
    assert not report.ok and kinds(report) == ['mode', 'size', 'unreadable', 'unreadable', 'values']
    assert len(report.usable) == 19
    text = report_text(report)
    for name in ('images/s01.png', 'masks/s02.png', 'masks/s03.png', 'masks/s04.png', 'masks/s05.png'):
        assert f'error: {name}: ' in text
    assert 'value 99 in 3 pixels' in text and '10x8' in text and 'cannot be trained on' in text
    split = make_split(tmp_path, 6, progress=None)
    assert 'left out as faulty: 5' in split.text
    assert not {f's0{i}' for i in range(1, 6)} & {*split.labeled, *split.unlabeled, *split.val}
    assert check(convert_data(report, tmp_path/'clean', None)).ok


@pytest.mark.parametrize('make, word', [
    (lambda p: p.write_bytes(b''), 'is empty'), (lambda p: p.write_bytes(p.read_bytes()[:-30]), 'unreadable'),
    (lambda p: p.write_bytes(p.read_bytes()[:60] + bytes(40) + p.read_bytes()[100:]), 'unreadable'),
    (lambda p: (p.unlink(), p.symlink_to('nowhere.png')), 'no such file')
], ids=['empty', 'cut', 'garbled', 'dead link'])
def test_unreadable_images(tmp_path, make, word):
    make(fill(tmp_path)/'images/s01.png')
    report = check(tmp_path)
    assert (
        kinds(report) == ['unreadable']
        and report.errors[0].file == 'images/s01.png'
        and word in report.errors[0].text)
    assert '\n' not in report.errors[0].text and str(tmp_path) not in report.errors[0].text


@pytest.mark.parametrize('step', ['load_image', 'read_stored', 'mask_facts'])
def test_a_file_too_large_for_the_memory_is_named(tmp_path, monkeypatch, step):
    "A MemoryError has no text; its file is still an error, and no unlabeled image."
    real = getattr(check_module, step)

    def scarce(first, *rest):
        if 's03' in str(rest[0] if step == 'mask_facts' else first):
            raise MemoryError
        return real(first, *rest)

    monkeypatch.setattr(check_module, step, scarce)
    report = check(fill(tmp_path))
    file = 'images/s03.png' if step == 'load_image' else 'masks/s03.png'
    assert [(f.kind, f.file) for f in report.errors] == [('unreadable', file)]
    assert 'does not fit into memory' in report.errors[0].text and not report.ok
    monkeypatch.setattr(check_module, 'read_photo', mock.Mock(side_effect=MemoryError))  # no thumbnails then
    assert len(report.usable) == 23 and file in _check_page(report)


def test_masks_and_images_without_partner(tmp_path):
    put(fill(tmp_path)/'masks/ghost.png', scene(0)[1])
    report = check(tmp_path)
    assert report.ok and kinds(report, 'warning') == ['orphan mask']
    assert [f.file for f in report.findings if f.kind == 'orphan mask'] == ['masks/ghost.png']


def test_duplicates_by_content(tmp_path):
    fill(tmp_path)
    put(tmp_path/'images/s09.png', scene(3)[0], compress_level=0)   # other bytes, same pixels
    put(tmp_path/'images/s10.png', scene(20)[0])
    (tmp_path/'val.txt').write_text('s03\ns04\n')
    found = {f.kind: f for f in check(tmp_path).findings}
    assert {'leak', 'duplicate'} <= set(found) and 's03' in found['leak'].file and 's09' in found['leak'].text
    split = make_split(tmp_path, 6, progress=None)
    assert (
        split.val == ['s03', 's04']
        and 's09' not in split.labeled + split.unlabeled
        and 'kept out of training: 1' in split.text)


def test_no_masks_at_all(tmp_path):
    with pytest.raises(DataError, match='no readable mask.*corrmatch label .* --classes background,NAME'):
        check(fill(tmp_path, n_masks=0))
    (tmp_path/'classes.txt').write_text('ground\ncat\n')
    with pytest.raises(DataError, match='corrmatch label [^ ]*`'):
        check(tmp_path)
    (tmp_path/'other').mkdir()
    with pytest.raises(DataError, match='holds no images'):
        check(tmp_path/'other')


def test_progress_becomes_lines(tmp_path, capsys):
    fill(tmp_path, 520, 4)
    check_data(tmp_path)
    assert 'read: 520 of 520' in capsys.readouterr().err


# --- mask modes ---

def colored(mask): return palette(21, 'pascal')[mask]


@pytest.mark.parametrize(
    'change, kind, n',
    [
        (lambda m: m, 'ids', K), (lambda m: m.astype(np.uint16), 'ids', K),
        (lambda m: ((m > 0) * 255).astype(np.uint8), 'binary', 2), (lambda m: m > 0, 'binary', 2),
        (lambda m: (m * 60).astype(np.uint8), 'levels', K), (lambda m: colored(m), 'colours', 21),
        (lambda m: np.dstack([colored(m), np.full(m.shape, 255, np.uint8)]), 'colours', 21),
        (lambda m: np.array([[9, 9, 9], [200, 0, 10], [0, 3, 0], [1, 1, 250]], np.uint8)[m], 'colours', K),
        (lambda m: np.dstack([m] * 3), 'grey colours', K)],
    ids=[
        'grey', '16 bit', '0 and 255', '1 bit', 'levels', 'VOC colours', 'RGBA', 'unknown colours',
        'grey as RGB'])
def test_mask_modes(tmp_path, change, kind, n):
    "Whatever the masks look like, training reads the class ids; asked again, it finds the same."
    fill(tmp_path, change=change)
    report = check(tmp_path, allow_missing=n == 21)  # of VOC's classes four occur
    assert report.ok and (report.mapping.kind, len(report.mapping.names)) == (kind, n)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*.png')}
    split = make_split(tmp_path, 6, progress=None)
    assert {p: p.read_bytes() for p in before} == before, 'originals are not touched'
    ids = masks_of(tmp_path, split)
    order = (
        [0, 1, 2, 3]
        if kind != 'colours' or n == 21
        else list(map(report.mapping.table.get, (0x090909, 0xC8000A, 0x000300, 0x0101FA))))
    for name, got in ids.items():
        truth = scene(int(name[1:]))[1]
        assert (got == (truth > 0 if kind == 'binary' else np.array(order)[truth])).all()
    again = check(tmp_path, allow_missing=n == 21)
    assert (
        again.ok and again.mapping.table == report.mapping.table and np.allclose(again.shares, report.shares))
    lists = {n: (tmp_path/p).read_bytes() for n, p in split.files.items()}
    assert {
        n: (tmp_path / p).read_bytes() for n, p in make_split(tmp_path, 6, progress=None).files.items()
    } == lists
    classes = read_classes(tmp_path)
    assert classes is None or len(classes[0]) == n


def test_palette_masks(tmp_path):
    fill(tmp_path)
    for p in (tmp_path/'masks').iterdir():
        image = Image.fromarray(np.asarray(Image.open(p)))
        image.putpalette(palette(256, 'pascal').tobytes())
        image.save(p)
    report = check(tmp_path)
    assert report.ok and report.mapping.as_is and {s.mask_mode for s in report.usable} == {'P'}


def test_given_colours(tmp_path):
    colors = np.array([[7, 7, 7], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    fill(tmp_path, change=lambda m: colors[m])
    names = tmp_path/'elsewhere.csv'
    names.write_text(
        'name,r,g,b\n' + ''.join(f'c{c},{r},{g},{b}\n' for c, (r, g, b) in enumerate(colors[::-1])))
    report = check(tmp_path, classes=names)
    assert (
        report.mapping.table[0x0000C8] == 0
        and report.mapping.names == ['c0', 'c1', 'c2', 'c3']
        and 'elsewhere.csv' in report.mapping.text)
    put(tmp_path/'masks/s00.png', np.full((16, 20, 3), 77, np.uint8))
    assert 'colour 77 77 77' in check(tmp_path, classes=names).errors[0].text
    with pytest.raises(DataError, match='no such file'):
        check(tmp_path, classes='lost.txt')


def test_photograph_as_mask(tmp_path):
    fill(tmp_path, change=lambda m: np.random.default_rng(0).integers(0, 256, (*m.shape, 3), np.uint8))
    with pytest.raises(DataError, match='24 of 24 masks cannot be trusted, the first is masks/s00.png'):
        check(tmp_path)


def test_given_number_of_classes(tmp_path):
    report = check(fill(tmp_path), classes=3)
    assert {f.kind for f in report.errors} == {'values'} and 'value 3 in' in report.errors[0].text
    assert [f.text[:40] for f in check(tmp_path, classes=6).errors] == [
        '2 of 6 classes occur in no usable mask (']
    assert check(tmp_path, classes=6, allow_missing=True).ok


# --- images ---

def test_deep_transparent_and_grey_images(tmp_path):
    fill(tmp_path)
    deep = scene(1)[0][..., 0].astype(np.uint16)
    put(tmp_path/'images/s01.png', deep*257)
    put(tmp_path/'images/s02.png', np.dstack([scene(2)[0], np.full((16, 20), 9, np.uint8)]))
    put(tmp_path/'images/s03.png', scene(3)[0][..., 0])
    (tmp_path/'images/s04.png').unlink()
    put(tmp_path/'images/s04.tiff', scene(4)[0])
    report = check(tmp_path)
    assert (
        report.ok
        and len(report.usable) == 24
        and kinds(report, 'warning') == ['conversion', 'depth'])
    convert_data(report, None, None)
    assert sorted(p.name for p in (tmp_path/'prepared').rglob('*.*')) == ['mapping.json', 's01.png']
    assert (np.asarray(Image.open(tmp_path/'prepared/images/s01.png'))[..., 0] == deep).all()


def test_turned_photograph(tmp_path):
    "The mask was drawn on the image as cameras show it."
    fill(tmp_path)
    note = Image.Exif()
    note[0x0112] = 6
    image = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    put(tmp_path/'images/s01.png', np.rot90(image), exif=note)
    put(tmp_path/'masks/s01.png', np.ones((20, 16), np.uint8))
    report = check(tmp_path)
    assert report.ok
    convert_data(report, None, None)
    assert (np.asarray(Image.open(tmp_path/'prepared/images/s01.png')) == image).all()


@pytest.mark.parametrize(
    'witness, turned', [(6, True), (0, False)], ids=['a size asks for it', 'no size tells'])
def test_notes_that_no_size_can_check(tmp_path, witness, turned):
    """Upside down (3) or square: what the other masks of the set ask for decides, and if none does, the
    report says so."""
    fill(tmp_path)
    def noted(name, image, mask, note):
        exif = Image.Exif()
        exif[0x0112] = note
        put(tmp_path/f'images/{name}.png', image, exif=exif)
        put(tmp_path/f'masks/{name}.png', mask)
    image, mask = scene(1)
    noted('s01', np.rot90(image, 2), mask, 3)
    noted('s02', np.rot90(image[:, :16]), mask[:, :16], 6)        # square
    if witness:
        noted('s03', np.rot90(image), mask, witness)
    report = check(tmp_path)
    found = [f for f in report.findings if f.kind == 'orientation']
    assert report.ok and [s.item.name for s in report.scans if s.turned] == (
        ['s01', 's02', 's03'] if turned else [])
    assert (
        found == []
        if turned
        else len(found) == 1 and found[0].file == 'images/s01.png' and ': 2 such images' in found[0].text)
    convert_data(report, None, None)
    assert not turned or all(
        (np.asarray(Image.open(tmp_path / f'prepared/images/{n}.png')) == i).all()
        for n, i in (('s01', image), ('s02', image[:, :16])))


def test_no_usable_mask_still_gives_a_report(tmp_path):
    report = check(fill(tmp_path, change=lambda m: m[::2, ::2]))
    assert (
        report.usable == []
        and 'mask has 10x8 pixels' in report_text(report)
        and 'class 3' in _check_page(report))


def test_copies_of_test_images_and_palettes(tmp_path):
    "A copy of a test image must not train; equal indices with another palette are no copy."
    fill(tmp_path)
    put(tmp_path/'images/s09.png', scene(3)[0])
    (tmp_path/'test.txt').write_text('s03\ns04\n')
    for i in (10, 11):
        image = Image.fromarray(scene(5)[1])
        image.putpalette(bytes([20*i])*768)
        image.save(tmp_path/f'images/s{i}.png')
    report = check(tmp_path)
    assert not any('s10' in f.file + f.text for f in report.findings)
    split = make_split(tmp_path, 6, report=report, progress=None)
    assert (
        's09' not in split.labeled + split.unlabeled
        and 'kept out of training: 1' in split.text
        and {'s10', 's11'} <= {*split.labeled, *split.unlabeled, *split.val})


# --- layouts ---

def test_side_by_side_and_blanks(tmp_path):
    for i in range(12):
        image, mask = scene(i)
        put(tmp_path/f'my photos/a {i}.jpg', image)
        if i < 10:
            put(tmp_path/f'my photos/a {i}_mask.png', mask)
    assert find_layout(tmp_path).kind == 'side by side'
    split = make_split(tmp_path, 4, progress=None)
    assert '\t' in (tmp_path/split.files['labeled']).read_text()
    assert (
        len(read_split(tmp_path / split.files['unlabeled'], tmp_path, masks=False))
        == len(split.unlabeled)
        == 5)
    assert len(masks_of(tmp_path, split)) == 7


@pytest.mark.parametrize('linking', [True, False], ids=['links', 'copies'])
def test_blanks_of_every_kind(tmp_path, monkeypatch, linking):
    """No-break and ideographic blanks end a field like any other; names without them stay distinct, and
    originals as they were."""
    if not linking:
        monkeypatch.setattr('os.link', lambda *args: (_ for _ in ()).throw(OSError('no links')))
    fill(tmp_path/'data', 12, 10)
    lone = ['a b', 'a\u00a0b', 'a\u202fb', 'a\u3000b', 'a_b']
    for i, name in enumerate([*lone, 'c\u00a0d']):
        put(tmp_path/f'data/images/{name}.png', scene(50+i)[0])
    put(tmp_path/'data/masks/c\u00a0d.png', scene(55)[1])
    before = {p: p.read_bytes() for p in (tmp_path/'data').rglob('*.png')}
    for out in (None, tmp_path/'clean'):
        for _ in range(2):
            root = convert_data(report := check(tmp_path/'data'), out, None)
        paths = [report.converted[n][0] for n in lone]
        assert len(set(paths)) == 5 and not any(c.isspace() for p in paths for c in p)
        for i, p in enumerate(paths):
            assert (np.asarray(Image.open(root/p)) == scene(50+i)[0]).all()
    assert {p: p.read_bytes() for p in before} == before
    split = make_split(tmp_path/'data', 5, progress=None)
    read = [
        read_split(tmp_path / 'data' / split.files[n], tmp_path / 'data', masks=False)
        for n in ('labeled', 'unlabeled', 'val')]
    assert (
        sum(map(len, read)) == 18
        and [p.mask for part in read for p in part if p.name == 'c\u00a0d'][0] is not None)


def test_a_source_replaced_by_an_older_file_is_converted_again(tmp_path):
    make_split(fill(tmp_path, change=colored), 6, progress=None)
    put(tmp_path/'masks/s05.png', colored(scene(6)[1]))
    os.utime(tmp_path/'masks/s05.png', (0, 0))
    convert_data(check(tmp_path), None, None)
    assert (np.asarray(Image.open(tmp_path/'prepared/masks/s05.png')) == scene(6)[1]).all()


def test_split_folders(tmp_path):
    for side in ('train', 'valid'):
        fill(tmp_path, 10, 10, folders=(f'{side}/images', f'{side}/labels'))
    report = check(tmp_path)
    assert {s.item.split for s in report.usable} == {'train', 'val'} and len(report.usable) == 20
    assert {f.kind for f in report.findings} >= {'leak'}, 'both folders hold the same images'


def test_voc(tmp_path):
    root = tmp_path/'VOCdevkit/VOC2012'
    fill(root, 12, 10, folders=('JPEGImages', 'SegmentationClass'), suffix='jpg')
    put(root/'SegmentationObject/s01.png', scene(1)[1])
    sets = root/'ImageSets/Segmentation'
    sets.mkdir(parents=True)
    (sets/'train.txt').write_text('\n'.join(f's{i:02d}' for i in range(7)))
    (sets/'val.txt').write_text('s07\ns08\ns09\n')
    layout = find_layout(tmp_path)
    assert (
        layout.kind == 'VOC' and len(layout.items) == 10 and layout.n_ignored == 2 and not layout.orphan_masks
    )
    assert check(tmp_path).mapping.names == list(VOC_NAMES)
    split = make_split(tmp_path, 4, progress=None)
    assert split.val == ['s07', 's08', 's09'] and len(split.unlabeled) == 3


def test_cityscapes_from_the_raw_download(tmp_path):
    back = np.array([c for c in _CITYSCAPES_IDS], np.uint8)
    for i, (side, town) in enumerate([('train', 'ulm')]*8 + [('val', 'bonn')]*3):
        image, mask = scene(i)
        put(tmp_path/f'leftImg8bit/{side}/{town}/{town}_{i:02d}_leftImg8bit.png', image)
        ids = back[mask]
        ids[0] = 4  # static: ignored
        for tail in ('labelIds', 'color', 'instanceIds'):
            put(tmp_path/f'gtFine/{side}/{town}/{town}_{i:02d}_gtFine_{tail}.png', ids)
    split = make_split(tmp_path, 3, progress=None)
    line = (tmp_path/split.files['labeled']).read_text().splitlines()[0]
    assert line.endswith('_gtFine_labelTrainIds.png') and line.startswith('leftImg8bit/train/ulm/'), (
        'the form of the published lists')
    for mask in masks_of(tmp_path, split).values():
        assert set(np.unique(mask)) <= {0, 1, 2, 3, IGNORE_INDEX} and (mask[0] == IGNORE_INDEX).all()
    again = check(tmp_path, allow_missing=True)
    assert (
        again.ok
        and again.mapping.as_is
        and len(again.mapping.names) == 19
        and again.mapping.names[0] == 'road')


def test_segnet_camvid(tmp_path):
    for i in range(9):
        side = 'train' if i < 6 else 'val'
        put(tmp_path/f'{side}/{i}.png', scene(i)[0])
        put(tmp_path/f'{side}annot/{i}.png', np.where(scene(i)[1] == 1, 11, scene(i)[1]).astype(np.uint8))
    for _ in range(2):  # the second time its own classes.txt is there
        report = check(tmp_path, allow_missing=True)
        assert (
            report.ok
            and report.layout.kind == 'CamVid/SegNet'
            and report.mapping.table[11] == IGNORE_INDEX
            and len(report.mapping.names) == 11)
        make_split(tmp_path, 3, progress=None)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_coco(tmp_path):
    pytest.importorskip('pycocotools')
    from pycocotools import mask as rle
    notes = dict(
        images=[], annotations=[],
        categories=[dict(id=5, name='dog'), dict(id=2, name='cat'), dict(id=90, name='cup')])
    for i in range(8):
        image, mask = scene(i)
        put(tmp_path/f'train2017/{i:012d}.jpg', image)
        notes['images'].append(dict(id=i, file_name=f'{i:012d}.jpg', width=20, height=16))
        for c, category in ((1, 2), (2, 5), (3, 90)):
            if not (mask == c).any():
                continue
            code = rle.encode(np.asfortranarray((mask == c).astype(np.uint8)))
            notes['annotations'].append(
                dict(
                    id=10 * i + c, image_id=i, category_id=category, iscrowd=0, area=int((mask == c).sum()),
                    segmentation=dict(size=code['size'], counts=code['counts'].decode())))
    (tmp_path/'annotations').mkdir()
    path = tmp_path/'annotations/instances_train2017.json'
    path.write_text(json.dumps(notes))
    report = check(tmp_path)
    assert (
        report.ok
        and report.layout.kind == 'COCO'
        and report.mapping.names == ['background', 'cat', 'dog', 'cup'])
    split = make_split(tmp_path, 3, progress=None)
    for name, got in masks_of(tmp_path, split).items():
        assert (got == scene(int(name))[1]).all()
    notes['annotations'][0]['segmentation'] = dict(size=[9, 9], counts=[40, 41])
    notes['images'].append(dict(id=99, file_name='lost.jpg', width=20, height=16))
    path.write_text(json.dumps(notes))
    assert sorted('drawn for 9x9' in f.text or 'no such file' in f.text for f in check(tmp_path).errors) == [
        True, True]


# --- splits ---

def test_splits_are_nested_balanced_and_stable(tmp_path):
    fill(tmp_path, 70, 63)
    report = check(tmp_path)
    splits = {n: make_split(tmp_path, n, report=report, progress=None) for n in (4, 8, 16, 32)}
    sizes = sorted(splits)
    for small, large in zip(sizes, sizes[1:]):
        assert (
            set(splits[small].labeled) < set(splits[large].labeled) and splits[small].val == splits[large].val
        )
    row = {s.item.name: i for i, s in enumerate(report.usable)}
    for s in splits.values():
        assert (report.shares[[row[n] for n in s.labeled]].sum(0) > 0).all() and (
            report.shares[[row[n] for n in s.val]].sum(0) > 0).all()
        assert (
            not set(s.labeled) & set(s.val)
            and not set(s.unlabeled) & {*s.labeled, *s.val}
            and len(s.labeled + s.unlabeled + s.val) == 70)
    all_shares = report.shares.mean(0)
    chosen = report.shares[[row[n] for n in splits[16].labeled]].mean(0)
    assert np.abs(chosen - all_shares).max() < .02
    assert make_split(tmp_path, 8, seed=1, report=report, progress=None).labeled != splits[8].labeled


def test_split_bytes_do_not_depend_on_the_machine(tmp_path):
    "A fixed choice: were the order to change, everybody's lists would."
    shares = np.array([np.bincount(scene(i)[1].ravel(), minlength=K)/320 for i in range(24)])
    names = [f's{i:02d}' for i in range(24)]
    assert _choose_images(shares, names, 6) == [21, 12, 22, 13, 16, 1]
    turn = np.random.default_rng(0).permutation(24)
    assert [turn[i] for i in _choose_images(shares[turn], [names[i] for i in turn], 6)] == [
        21, 12, 22, 13, 16, 1]


def test_split_refusals(tmp_path):
    fill(tmp_path)
    report = check(tmp_path)
    for labels, words in ((0, 'ask for 1 to'), (1, 'ask for at least'), (99, 'ask for 1 to')):
        with pytest.raises(DataError, match=words):
            make_split(tmp_path, labels, report=report, progress=None)
    with pytest.raises(DataError, match='val=0'):
        make_split(tmp_path, 5, val=0, report=report, progress=None)


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write everywhere')
def test_folder_without_write_permission(tmp_path):
    fill(tmp_path).chmod(0o555)
    try:
        with pytest.raises(DataError, match='cannot be written'):
            make_split(tmp_path, 5, progress=None)
    finally:
        tmp_path.chmod(0o755)


def test_lists_in_another_folder(tmp_path):
    root = fill(tmp_path/'data')
    split = make_split(root, 5, out=tmp_path/'lists', progress=None)
    assert all(os.path.isabs(p) for p in split.files.values()) and not (root/'splits').exists()
    assert len(read_split(split.files['labeled'], root)) == 5


# --- reports ---

def test_report_is_escaped_self_contained_and_stable(tmp_path):
    root = fill(tmp_path/'data')
    put(root/'masks/<script>alert(1).png', scene(0)[1])
    put(root/'images/<i>&".png', scene(0)[0][:8])
    put(root/'masks/<i>&".png', scene(0)[1])
    report = check(root)
    page = _check_page(report)
    assert (
        '<script' not in page
        and '&lt;i&gt;&amp;&#34;.png' in page
        and '://' not in page
        and 'src="data:image/jpeg;base64' in page)
    assert str(tmp_path) not in page + _report_json(report) + report_text(report)
    files = save_report(report, tmp_path/'out')
    first = [f.read_bytes() for f in files]
    assert [f.read_bytes() for f in save_report(check(root, workers=1), tmp_path/'out')] == first
    assert json.loads(files[1].read_text())['ok'] is False


# --- runs without a preset ---

def test_auto_config(tmp_path):
    fill(tmp_path, change=colored)
    config, text = auto_config(tmp_path, labels=6, progress=None, weights='', seed=3)
    # seeds share their lists
    assert (config.n_classes, config.crop, config.labeled, config.seed) == (
        21, 65, 'splits/s0/6/labeled.txt', 3)
    assert read_classes(tmp_path)[0] == list(VOC_NAMES) and 'lists: 6 labeled, 17 unlabeled, 5 val' in text
    from corrmatch.training.builders import make_datasets
    sources = make_datasets(config)
    assert (
        len(sources.labeled) == 6 and len(sources.unlabeled) == 17 and sources.class_names == list(VOC_NAMES))
    assert set(np.unique(np.asarray(sources.labeled.read_mask(0)))) <= set(range(K))


def test_auto_config_takes_lists_that_are_there(tmp_path):
    make_split(fill(tmp_path), 5, progress=None)
    make_split(tmp_path, 9, progress=None)
    config, text = auto_config(tmp_path, progress=None, weights='', crop=97)
    assert (
        config.labeled == 'splits/s0/9/labeled.txt'
        and 'choose with labeled=LIST' in text
        and 'crop=97: given' in text)
    given, _ = auto_config(
        tmp_path, progress=None, weights='', labeled='splits/s0/5/labeled.txt',
        unlabeled='splits/s0/5/unlabeled.txt', val='splits/s0/val.txt')
    assert given.labeled == 'splits/s0/5/labeled.txt' and given.val == 'splits/s0/val.txt'
    with pytest.raises(DataError, match='holds no val.txt; name the validation list, too: val=LIST'):
        auto_config(tmp_path, progress=None, weights='', labeled='splits/s0/5/labeled.txt')


def names_in(root, path): return {Path(line.split()[0]).stem for line in (root/path).read_text().splitlines()}


def test_a_val_list_alone_keeps_its_images_out_of_training(tmp_path):
    fill(tmp_path)
    put(tmp_path/'images/s27.png', scene(1)[0])                 # a copy of a val image
    (tmp_path/'own.txt').write_text('s01\ns02\ns03\n')
    config, _ = auto_config(tmp_path, progress=None, weights='', labels=8, val='own.txt')
    assert config.val == 'own.txt'
    taught = names_in(tmp_path, config.labeled) | names_in(tmp_path, config.unlabeled)
    assert (
        not taught & {'s01', 's02', 's03', 's27'}
        and len(taught) == 24
        and len(names_in(tmp_path, config.labeled)) == 8)
    put(tmp_path/'masks/s05.png', scene(5)[1][::2])
    (tmp_path/'bad.txt').write_text('s05\n')
    with pytest.raises(DataError, match='bad.txt: names no image'):
        auto_config(tmp_path, progress=None, weights='', labels=8, val='bad.txt')


def test_a_val_list_alone_against_the_lists_that_are_there(tmp_path):
    "Lists found in the folder are used with another val only if they share no image with it."
    fill(tmp_path)
    split = make_split(tmp_path, 5, progress=None)
    (tmp_path/'own.txt').write_text(f'{split.labeled[0]}\n{split.val[0]}\n')
    config, text = auto_config(tmp_path, progress=None, weights='', val='own.txt')
    assert (
        'passed over because they share images with val: 1' in text
        and config.labeled == 'splits/s0-own/22/labeled.txt')
    assert not names_in(tmp_path, config.labeled) & {split.labeled[0], split.val[0]}
    (tmp_path/'own.txt').write_text(f'{split.val[0]}\n{split.val[1]}\n')
    assert (
        auto_config(tmp_path, progress=None, weights='', val='own.txt')[0].labeled == split.files['labeled'])


def draw(root, *numbers):
    "Masks for more of the scenes."
    for i in numbers:
        put(root/f'masks/s{i:02d}.png', scene(i)[1])


def test_new_masks_join_the_labeled_images(tmp_path):
    "Those that were drawn since the lists were made; not hidden ones, and no copy of a validation image."
    split = make_split(fill(tmp_path, 34), 5, progress=None)
    before = {kind: (tmp_path/path).read_bytes() for kind, path in split.files.items()}
    removed, *kept = (tmp_path/split.files['labeled']).read_text().splitlines(True)
    (tmp_path/split.files['labeled']).write_text(''.join(kept))  # the user takes one out
    draw(tmp_path, 24, 25, 26)
    put(tmp_path/'images/s27.png', scene(int(split.val[0][1:]))[0])
    draw(tmp_path, 27)
    assert rehearsed(tmp_path)
    config, text = auto_config(tmp_path, progress=None, weights='')
    new = {'s24', 's25', 's26'}
    assert names_in(tmp_path, config.labeled) == {*split.labeled} - {removed.split('/')[1][:3]} | new
    assert names_in(tmp_path, config.unlabeled) == {*split.unlabeled} - new
    assert config.val == split.files['val'] and (tmp_path/config.val).read_bytes() == before['val']
    assert (tmp_path/split.files['unlabeled']).read_bytes() == before['unlabeled']
    line = next(line for line in text.splitlines() if line.startswith('lists: '))
    assert '3 new masks join the labeled images (splits/s0/7)' in line
    assert line.endswith(' '.join(f'--{kind} {path}' for kind, path in split.files.items()))
    old, _ = auto_config(tmp_path, progress=None, weights='', **split.files)
    assert old.labeled == split.files['labeled']
    draw(tmp_path, 28)
    again, _ = auto_config(tmp_path, progress=None, weights='')
    assert names_in(tmp_path, again.labeled) == names_in(tmp_path, config.labeled) | {'s28'}


def rehearsed(root):
    "Does check say that a training starts, and does it leave the folder alone?"
    from corrmatch.data.settings import rehearse
    before = sorted(root.rglob('*'))
    return rehearse(check(root)) == [] and sorted(root.rglob('*')) == before


def test_every_image_that_is_left_gets_a_mask(tmp_path):
    make_split(fill(tmp_path, 26), 19, progress=None)
    draw(tmp_path, 24, 25)
    config, text = auto_config(tmp_path, progress=None, weights='')
    assert config.labeled == config.unlabeled == 'splits/s0/21/labeled.txt' and 'no unlabeled list' in text


def test_lists_in_another_folder_grow_as_well(tmp_path):
    root = fill(tmp_path/'data', 28, 12)
    first, _ = auto_config(root, progress=None, weights='', lists=tmp_path/'lists')
    draw(root, 24, 25, 26)
    second, _ = auto_config(root, progress=None, weights='', lists=tmp_path/'lists')
    assert second.val == first.val and not (root/'splits').exists()
    sizes = [len(names_in(root, config.labeled)) for config in (first, second)]
    assert sizes == [8, 11] and names_in(root, first.labeled) < names_in(root, second.labeled)


def test_lists_of_others_are_left_alone(tmp_path):
    "Without a record of the masks that were there, nobody knows which ones are new."
    split = make_split(fill(tmp_path), 5, progress=None)
    (tmp_path/'splits/s0/5/known_masks.txt').unlink()
    draw(tmp_path, 24, 25)
    config, text = auto_config(tmp_path, progress=None, weights='')
    assert config.labeled == split.files['labeled'] and '16 more images have a mask' in text


@pytest.mark.parametrize('n, n_val', [(4, 1), (6, 2), (12, 4), (18, 4), (24, 5)])
def test_validation_images_of_few_masks(tmp_path, n, n_val):
    for i in range(n):
        image, mask = scene(i)
        put(tmp_path/f'images/s{i:02d}.png', image)
        put(tmp_path/f'masks/s{i:02d}.png', np.where(mask == 3, 2, mask).astype(np.uint8))
    report = check(tmp_path)
    config, _ = auto_config(tmp_path, progress=None, weights='', allow_missing=True)
    rows = {s.item.name: row for s, row in zip(report.usable, report.shares)}
    assert len(names_in(tmp_path, config.val)) == n_val
    shown = sum(rows[name] for name in names_in(tmp_path, config.labeled))
    assert (shown > 0).tolist() == (report.shares.sum(0) > 0).tolist()


def test_classes_without_names(tmp_path):
    fill(tmp_path)
    told, = (f for f in check(tmp_path).findings if f.kind == 'classes')
    assert told.level == 'note' and 'classes.txt' in told.text
    (tmp_path/'classes.txt').write_text('ground\ncat\ndog\ncow\n')
    assert not [f for f in check(tmp_path).findings if f.kind == 'classes']


def test_val_is_not_changed_under_older_sets(tmp_path):
    "Images that are labeled in an older set must not become val of it."
    fill(tmp_path)
    old = make_split(tmp_path, 5, progress=None)
    for i in range(30, 60):
        put(tmp_path/f'images/s{i}.png', scene(i)[0])
        put(tmp_path/f'masks/s{i}.png', scene(i)[1])
    before = (tmp_path/old.files['val']).read_bytes()
    with pytest.raises(
        DataError, match='val.txt: names other images than this split needs, and 5 beside it'):
        make_split(tmp_path, 9, progress=None)
    assert (tmp_path/old.files['val']).read_bytes() == before and not (tmp_path/'splits/s0/9').exists()
    assert make_split(tmp_path, 5, progress=None).val != old.val, (
        'the only set is made anew together with its val')
    make_split(tmp_path, 9, progress=None)
    assert make_split(tmp_path, 9, seed=1, progress=None).files['val'] == 'splits/s1/val.txt'


def test_found_sets_that_overlap_val_are_passed_over(tmp_path):
    fill(tmp_path)
    small = make_split(tmp_path, 5, progress=None)
    large = make_split(tmp_path, 9, progress=None)
    only = next(n for n in large.labeled if n not in small.labeled)
    with open(tmp_path/'splits/s0/val.txt', 'a') as f:
        f.write(f'images/{only}.png masks/{only}.png\n')
    config, text = auto_config(tmp_path, progress=None, weights='')
    assert config.labeled == 'splits/s0/5/labeled.txt' and 'share images with val: 1' in text


def test_unlabeled_images_given_as_a_folder_or_shards(tmp_path):
    from corrmatch.data.shards import write_shards
    make_split(fill(tmp_path/'data'), 5, progress=None)
    (tmp_path/'data/list.txt').write_text(''.join(f's{i:02d}\n' for i in range(20)))
    write_shards(read_split(tmp_path/'data/list.txt', tmp_path/'data'), tmp_path/'data/shards', 10)
    for name, n in (('shards/*.tar', 20), ('images', 28), ('list.txt', 20)):
        for more in ({}, dict(labeled='splits/s0/5/labeled.txt', val='splits/s0/val.txt')):
            config, text = auto_config(
                tmp_path / 'data', progress=None, weights='', unlabeled=name, epochs=8, **more)
            assert (
                config.unlabeled == name
                and config.steps == n
                and f'8 passes over {n} unlabeled images' in text)


def test_auto_config_looks_at_the_values_of_val(tmp_path):
    split = make_split(fill(tmp_path, change=colored), 6, progress=None)
    (tmp_path/'own.txt').write_text('s01\ns02\n')
    lists = dict(labeled=split.files['labeled'], unlabeled=split.files['unlabeled'])
    for val in (lists, {}):
        with pytest.raises(DataError, match='own.txt: names masks/s01.png, which training cannot read'):
            auto_config(tmp_path, progress=None, weights='', val='own.txt', **val)


def test_auto_config_after_a_conversion(tmp_path):
    split = make_split(fill(tmp_path, change=colored), 6, progress=None)
    config, _ = auto_config(tmp_path, progress=None, weights='')
    assert config.labeled == split.files['labeled'] and config.n_classes == 21
    (tmp_path/'own.txt').write_text('s01\ns02\n')
    with pytest.raises(DataError, match='own.txt: names masks/s01.png, which training cannot read'):
        auto_config(
            tmp_path, progress=None, weights='', labeled='own.txt', unlabeled='own.txt', val='own.txt')


def test_auto_config_with_every_image_labeled(tmp_path):
    config, text = auto_config(fill(tmp_path, 24, 24), progress=None, weights='', method='supervised')
    assert (
        config.method == 'supervised'
        and config.unlabeled == config.labeled
        and 'serve as unlabeled too' in text)
    # now with the lists that the first call made
    again, text = auto_config(tmp_path, progress=None, weights='', method='supervised')
    assert again == config and 'serve as unlabeled too' in text


def test_map_ids_ignores_what_it_does_not_know():
    assert map_ids(np.array([[0, 9], [1, 70000]]), {0: 0, 1: 2}).tolist() == [
        [0, IGNORE_INDEX], [2, IGNORE_INDEX]]


def test_a_conversion_goes_to_a_folder_of_its_own(tmp_path):
    mine = fill(tmp_path/'mine', change=colored)
    other = fill(tmp_path/'other')
    before = {p: p.read_bytes() for p in other.rglob('*') if p.is_file()}
    with pytest.raises(DataError, match='is not empty, and no earlier conversion'):
        convert_data(check(mine), other, progress=None)
    assert before == {p: p.read_bytes() for p in other.rglob('*') if p.is_file()}
    for _ in range(2):
        convert_data(check(mine), tmp_path/'new', progress=None)  # a conversion may be repeated


def test_colours_of_converted_masks(tmp_path):
    "They are those of the classes; ignored pixels are light grey, as in all masks that are written."
    fill(tmp_path/'old', change=lambda mask: np.where(mask == 3, 255, mask).astype(np.uint8))
    report = check(tmp_path/'old')
    root = convert_data(report, tmp_path/'new', progress=None)
    mask = scene(0)[1]
    with Image.open(root/'masks/s00.png') as found:
        assert (np.asarray(found) == np.where(mask == 3, IGNORE_INDEX, mask)).all()
        painted = np.asarray(found.convert('RGB'))
    assert (painted[mask == 3] == 224).all() and (painted[mask == 1] == report.mapping.colors[1]).all()


def test_given_classes_and_the_folders_own_do_not_go_apart(tmp_path):
    fill(tmp_path)
    (tmp_path/'names.txt').write_text('\n'.join(f'n{i} {i} 0 0' for i in range(K)))
    (tmp_path/'classes.txt').write_text('\n'.join(f'old{i} {i} 0 0' for i in range(K)))
    with pytest.raises(DataError, match='classes.txt: names other classes'):
        auto_config(tmp_path, progress=None, weights='', classes=tmp_path/'names.txt')
    (tmp_path/'classes.txt').unlink()
    with pytest.raises(DataError, match='occur in no usable mask'):
        auto_config(tmp_path, progress=None, weights='', classes=K+3)
    assert not (tmp_path/'classes.txt').exists()  # a wrong guess leaves nothing behind


def test_a_mask_that_is_a_jpeg_is_named(tmp_path):
    fill(tmp_path)
    for i, path in enumerate(sorted((tmp_path/'masks').glob('*.png'))):
        noise = np.random.default_rng(i).integers(0, 9, np.asarray(Image.open(path)).shape)
        Image.fromarray((np.asarray(Image.open(path)) * 20 + noise).astype(np.uint8)).save(
            path.with_suffix('.jpg'))
        path.unlink()
    with pytest.raises(DataError, match='a JPEG mask'):
        check(tmp_path)
