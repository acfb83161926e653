"""What the values of masks and deep images mean: each convention is read as it was meant, or refused by name;
a seeded fuzz says so for many."""
import os

import numpy as np
import pytest
from PIL import Image, ImageFilter

from corrmatch.use.cli import main
from corrmatch.config import IGNORE_INDEX
from corrmatch.data.folders import open_mask, read_split
from corrmatch.files import DataError
from corrmatch.data.masks import Depth, Meaning, _read_map, read_photo
from corrmatch.data.check import check_data, convert_data
from corrmatch.data.settings import auto_config
from corrmatch.data.split import make_split
from corrmatch.viz import palette
from errors_for_tests import refused

N = 10
H = 40
W = 48


def truth(i, k=3):
    "Class ids of scene i: two blocks of other classes on class 0."
    rng = np.random.default_rng(i)
    ids = np.zeros((H, W), np.uint8)
    for c in [1 + i % (k-1), 1 + (i+1) % (k-1)]:
        y, x = rng.integers(0, H-16), rng.integers(0, W-16)
        ids[y:y+14, x:x+12] = c
    return ids


def image(i): return np.random.default_rng(100+i).integers(0, 256, (H, W, 3), np.uint8)


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **kwargs)


def folder(root, encode, n=N, suffix='.png', **kwargs):
    "A data set whose masks are encoded by `encode(ids, i)`."
    for i in range(n):
        save(root/f'images/p{i:02d}.png', image(i))
        save(root/f'masks/p{i:02d}{suffix}', encode(truth(i), i), **kwargs)
    return root


def check(root, *meaning, **kwargs):
    return check_data(root, progress=None, meaning=Meaning(*meaning) if meaning else None, **kwargs)


def learned(root, *meaning, labels=3):
    "Class ids that training reads, {number of the scene: ids}."
    split = make_split(root, labels, progress=None, meaning=Meaning(*meaning) if meaning else None)
    pairs = [p for kind in ('labeled', 'val') for p in read_split(root/split.files[kind], root)]
    return {int(p.name[1:3]): np.asarray(open_mask(p.mask)) for p in pairs}


def agrees(root, table, *meaning):
    "Does training read table[id] wherever the ground truth is id?"
    for i, ids in learned(root, *meaning).items():
        assert (ids == np.array(table)[truth(i)]).all(), f'scene {i}'


def errors(root, *meaning, **kwargs):
    return [f'{f.file}: {f.text}' for f in check(root, *meaning, **kwargs).errors]


# --- conventions that are read

LEVELS = np.array([0, 128, 255], np.uint8)


@pytest.mark.parametrize('encode, table', [
    (lambda m, i: LEVELS[m], [0, 1, 2]),
    (lambda m, i: np.array([0, 127, 255], np.uint8)[m], [0, 1, 2]),
    (lambda m, i: np.array([0, 100, 200], np.uint8)[m], [0, 1, 2]),
    (lambda m, i: ((m > 0)*128).astype(np.uint8), [0, 1, 1]),
    (lambda m, i: ((m > 0)*254).astype(np.uint8), [0, 1, 1]),
    (lambda m, i: ((m > 0)*65535).astype(np.uint16), [0, 1, 1]),
    (lambda m, i: np.array([0, 1, 65535], np.uint16)[m], [0, 1, IGNORE_INDEX]),
    (lambda m, i: np.array([0, 1000, 30000], np.uint16)[m], [0, 1, 2]),
    (lambda m, i: np.dstack([LEVELS[m]]*3), [0, 1, 2]),
    # alpha says what colours say
    (lambda m, i: np.dstack([palette(3, 'pascal')[m], ((m > 0)*255).astype(np.uint8)]), [0, 1, 2]),
], ids=['0 128 255', '0 127 255', '0 100 200', '0 128', '0 254', '0 65535', '65535 ignored', 'far ids',
        'levels as RGB', 'RGBA cutout'])
def test_conventions_that_are_read(tmp_path, encode, table):
    folder(tmp_path, encode)
    assert check(tmp_path, allow_missing=True).ok
    agrees(tmp_path, table)


@pytest.mark.parametrize('dtype', [np.float32, np.int32])
def test_whole_numbers_of_other_types(tmp_path, dtype):
    agrees(folder(tmp_path, lambda m, i: m.astype(dtype), suffix='.tif'), [0, 1, 2])


def test_minus_one_is_ignored(tmp_path):
    agrees(
        folder(tmp_path, lambda m, i: m.astype(np.int32) - (m == 2) * np.int32(3), suffix='.tif'),
        [0, 1, IGNORE_INDEX])


@pytest.mark.parametrize('void', [-9999, -128])
def test_marks_of_missing_data_are_ignored_and_named(tmp_path, void):
    folder(tmp_path, lambda m, i: np.where(m == 2, np.int32(void), m), suffix='.tif')
    agrees(tmp_path, [0, 1, IGNORE_INDEX])
    report = check(tmp_path)
    assert report.mapping.names == ['class 0', 'class 1']
    assert any(f'negative values {void} are taken for missing data' in f.text for f in report.findings)
    assert not any('negative' in f.text for f in check(tmp_path, (void,)).findings)


def test_only_missing_data(tmp_path):
    folder(tmp_path, lambda m, i: np.full(m.shape, -9999, np.int32), suffix='.tif')
    refused(lambda: check(tmp_path), 'every pixel of every mask is ignored')


def test_missing_data_may_be_a_class(tmp_path):
    folder(tmp_path/'d', lambda m, i: np.where(m == 2, np.int32(-9999), m), suffix='.tif')
    (tmp_path/'map.txt').write_text('0 a\n1 b\n-9999..-9998 c\n')
    agrees(tmp_path/'d', [0, 1, 2], (), str(tmp_path/'map.txt'))


def test_ignored_numbers_are_no_blues(tmp_path):
    colors = np.array([[90, 90, 90], [0, 0, 255], [0, 255, 0]], np.uint8)
    folder(tmp_path/'d', lambda m, i: colors[m])
    refused(lambda: check(tmp_path/'d', (255,)), '--ignore 255', 'colours', '--map FILE', '`R G B ignore`')
    (tmp_path/'map.txt').write_text('90 90 90 grey\n0 0 255 ignore\n0 255 0 green\n')
    agrees(tmp_path/'d', [0, IGNORE_INDEX, 1], (), str(tmp_path/'map.txt'))
    (tmp_path/'named.txt').write_text('90 90 90 grey\n0 0 255 blue\n0 255 0 green\n')
    refused(lambda: check(tmp_path/'d', (255,), str(tmp_path/'named.txt')), '--ignore 255', '`R G B ignore`')


def test_numbers_that_are_ignored_in_colours(tmp_path):
    colors = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 0]], np.uint8)
    folder(tmp_path/'d', lambda m, i: colors[m])
    found = [f.text for f in check(tmp_path/'d', (255,)).findings]
    assert any('--ignore 255: no mask holds this value' in text for text in found)
    agrees(tmp_path/'d', [IGNORE_INDEX, 0, 1], (0,))
    folder(tmp_path/'grey', lambda m, i: np.dstack([np.array([0, 1, 7], np.uint8)[m]]*3))
    agrees(tmp_path/'grey', [0, 1, IGNORE_INDEX], (7,))


@pytest.mark.parametrize('line, words', [
    ('9..3 cat', 'LOW is above HIGH'), ('1..99999999999999999999 cat', 'more than 65536 values'),
    (f'1..{"9"*5000} cat', 'is not `VALUE NAME`'), (f'{"9"*5000} cat', 'is not `VALUE NAME`'),
    ('0..9 cat', 'value 0 has a class already')], ids=['reversed', 'wide', 'long', 'one long', 'twice'])
def test_ranges_that_mean_nothing(tmp_path, line, words):
    (tmp_path/'map.txt').write_text(f'0 background\n{line}\n')
    refused(lambda: _read_map(tmp_path/'map.txt'), 'map.txt line 2', words)


def test_palettes_in_another_order(tmp_path):
    "Every file orders its palette by its own colours, as programs that optimise palettes do."
    def encode(m, i):
        order = np.random.default_rng(i).permutation(3)
        found = Image.fromarray(order.argsort()[m].astype(np.uint8))
        found.putpalette(np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[order].tobytes())
        return found
    report = check(folder(tmp_path, encode))
    assert report.ok and any('palettes differ' in f.text for f in report.findings)
    agrees(tmp_path, [0, 2, 1])  # colours are numbered by value: black, green, red
    agrees(tmp_path, [0, 2, 1])  # and again, with the class file that was written


def test_palettes_that_nobody_can_compare(tmp_path):
    def encode(m, i):
        found = Image.fromarray((m > 0).astype(np.uint8))
        found.putpalette([0, 0, 0, *([255, 0, 0] if i % 2 else [0, 255, 0])])
        return found
    refused(lambda: check(folder(tmp_path, encode)), 'palettes differ', 'index 1', '--map FILE')
    (tmp_path/'colors.txt').write_text('0 0 0 background\n255 0 0 red\n0 255 0 green\n')
    assert check(tmp_path, (), str(tmp_path/'colors.txt')).mapping.names == ['background', 'red', 'green']
    (tmp_path/'indices.txt').write_text('0 background\n1 thing\n')
    assert check(tmp_path, (), str(tmp_path/'indices.txt')).mapping.names == ['background', 'thing']


# --- what is refused, and what the user may say

def blurred(m, i): return Image.fromarray((m > 0).astype(np.uint8)*255).filter(ImageFilter.GaussianBlur(1.5))


@pytest.mark.parametrize(
    'encode, words',
    [
        (blurred, ('10 of 10 masks cannot be trusted', 'soft edges', '--map FILE')),
        (
            lambda m, i: (
                Image.fromarray((m > 0).astype(np.uint8) * 255)
                .resize((W * 3, H * 3), Image.Resampling.BICUBIC)
                .resize((W, H), Image.Resampling.BILINEAR)),
            ('soft edges',)),
        (
            lambda m, i: Image.fromarray(palette(3, 'pascal')[m]).filter(ImageFilter.GaussianBlur(1)),
            ('soft edges',)),
        (
            lambda m, i: ((m > 0) * (255 if i % 2 else 1)).astype(np.uint8),
            ('0 and 1 in 5 masks', '0 and 255 in 5 masks', '--ignore 255')),
        (
            lambda m, i: np.where((m == 1) & (i > 4), 255, np.array([0, 90, 200])[m]).astype(np.uint8),
            ('is 255 a class or ignored?', '--ignore 255', '--classes 4')),
        (
            lambda m, i: np.dstack([np.full((H, W, 3), 255, np.uint8), (m > 0).astype(np.uint8) * 255]),
            ('no readable mask', 'alpha channel')),
        (
            lambda m, i: Image.merge(
                'LA', [Image.new('L', (W, H), 7), Image.fromarray((m > 0).astype(np.uint8) * 255)]),
            ('alpha channel',)),
        (lambda m, i: np.full((H, W), 255, np.uint8), ('hold only 255',)),
        (
            lambda m, i: (m.astype(np.int32) * 1000 + np.arange(H)[:, None] // 4).astype(np.int32),
            ('values', '--map FILE'))],
    ids=[
        'blur', 'resized', 'smoothed colours', 'mixed binary', 'a 255 among levels', 'alpha', 'grey alpha',
        'all ignored', 'instance ids'])
def test_what_is_refused(tmp_path, encode, words):
    folder(tmp_path, encode, suffix='.tif')
    refused(lambda: check(tmp_path), *words)


@pytest.mark.parametrize('array, suffix, words', [
    (np.full((H, W), .37, np.float32), '.tif', 'values such as 0.37'),
    (np.full((H, W), np.nan, np.float32), '.tif', 'NaN'),
    (np.full((H, W), 1e20, np.float32), '.tif', 'no class ids')], ids=['probabilities', 'NaN', 'huge'])
def test_float_masks(tmp_path, array, suffix, words):
    folder(tmp_path, lambda m, i: m)
    (tmp_path/'masks/p04.png').unlink()
    save(tmp_path/f'masks/p04{suffix}', array)
    assert [words in e and e.startswith('masks/p04.tif') for e in errors(tmp_path)] == [True]


def test_jpeg_masks_of_few_values(tmp_path):
    refused(
        lambda: check(folder(tmp_path, lambda m, i: m, suffix='.jpg', quality=95)), 'a JPEG mask',
        'masks/p00.jpg')
    with pytest.raises(DataError, match='a JPEG mask'):
        open_mask(tmp_path/'masks/p00.jpg')


def test_pages(tmp_path):
    folder(
        tmp_path, lambda m, i: Image.fromarray(m), suffix='.tif', save_all=True,
        append_images=[Image.fromarray(truth(0))])
    refused(lambda: check(tmp_path), 'no readable mask', '2 pages')
    with pytest.raises(DataError, match='2 pages'):
        open_mask(tmp_path/'masks/p00.tif')


def test_one_bad_mask_among_good_ones(tmp_path):
    "A soft, a stray, a coloured and an all-ignored mask are named; classes stay as they are."
    folder(tmp_path, lambda m, i: m)
    save(tmp_path/'masks/p01.png', blurred(truth(1), 1))
    stray = truth(2)
    stray[0, 0] = 77
    save(tmp_path/'masks/p02.png', stray)
    save(tmp_path/'masks/p03.png', palette(3, 'pascal')[truth(3)])
    save(tmp_path/'masks/p04.png', np.full((H, W), 255, np.uint8))
    report = check(tmp_path)
    assert [f.file for f in report.errors] == ['masks/p01.png', 'masks/p02.png', 'masks/p03.png'] and len(
        report.mapping.names) == 3
    assert [f.file for f in report.findings if f.kind == 'empty'] == ['masks/p04.png'] and len(
        report.usable) == 6


def test_a_stray_id_next_to_the_classes_is_no_class(tmp_path):
    folder(tmp_path, lambda m, i: m)
    stray = truth(5)
    stray[3, 3] = 3
    save(tmp_path/'masks/p05.png', stray)
    assert [e[:47] for e in errors(tmp_path)] == ['masks/p05.png: value 3 in 1 pixel is no class (']
    assert check(tmp_path, classes=4).ok, 'unless the user counts it'


def test_a_rare_class_in_one_mask_is_a_class(tmp_path):
    folder(tmp_path, lambda m, i: m)
    rare = truth(5)
    rare[:8, :8] = 3
    save(tmp_path/'masks/p05.png', rare)
    assert len(check(tmp_path).mapping.names) == 4


@pytest.mark.parametrize('first, flags, table', [
    (lambda m, i: m+1, dict(ignore=(0,)), [0, 1, 2]),
    (lambda m, i: np.array([0, 7, 8], np.uint8)[m], dict(map='order'), [0, 1, 2]),
    (lambda m, i: m, dict(ignore=(0,)), [IGNORE_INDEX, 0, 1])
], ids=['ids from 1', 'ids with gaps', 'zero ignored'])
def test_the_message_proposes_the_flag(tmp_path, first, flags, table):
    folder(tmp_path, first)
    found = errors(tmp_path)
    assert ['--ignore 0' in f or '--map order' in f for f in found] == [True]*(table[0] == 0), found
    meaning = (flags.get('ignore', ()), flags.get('map', ''))
    agrees(tmp_path, table, *meaning)
    agrees(tmp_path, table)  # what was said is remembered
    assert any('as at the last conversion' in f.text for f in check(tmp_path).findings)


def test_ranges_make_soft_masks_usable(tmp_path):
    folder(tmp_path/'d', blurred)
    (tmp_path/'map.txt').write_text('0..99 background\n100..155 ignore\n156..255 thing\n')
    for i, ids in learned(tmp_path/'d', (), str(tmp_path/'map.txt')).items():
        sure = ids != IGNORE_INDEX
        assert .5 < sure.mean() < 1 and (ids == (truth(i) > 0))[sure].mean() > .97
    config, text = auto_config(tmp_path/'d', progress=None, weights='')
    assert config.n_classes == 2 and 'as map.txt says' in text


def test_background_by_name(tmp_path):
    folder(tmp_path, lambda m, i: np.array([[200, 0, 0], [0, 0, 9], [0, 90, 0]], np.uint8)[m])
    assert check(tmp_path, (), '', 'color_c80000').mapping.names[0] == 'color_c80000'
    agrees(tmp_path, [0, 1, 2], (), '', 'color_c80000')
    agrees(tmp_path, [0, 1, 2])
    refused(lambda: check(tmp_path, (), '', 'road'), 'no class has this name', 'color_')


def test_never_none_one_or_too_many_classes(tmp_path):
    report = check(folder(tmp_path/'one', lambda m, i: m*0))
    assert not report.ok and 'one class alone (class 0)' in report.errors[0].text
    many = lambda m, i: np.kron(
        np.arange(30 * i, 30 * i + 30, dtype=np.int32).reshape(5, 6), np.ones((8, 8), np.int32))
    refused(lambda: check(folder(tmp_path/'many', many, suffix='.tif')), 'at most 254 classes', '--map FILE')


def test_messages_stay_short(tmp_path):
    folder(tmp_path, lambda m, i: m)
    (tmp_path/'classes.txt').write_text(''.join(f'class_{c}\n' for c in range(130)))
    text = errors(tmp_path)[-1]
    assert '127 of 130' in text and len(text) < 400


# --- what can be read and still looks wrong is said; what nobody can know is asked

def two_kinds(first, second): return lambda m, i: (second if i % 2 else first)(m)


def binary(value, dtype=np.uint8): return lambda m: ((m > 0)*value).astype(dtype)


def dotted(value, files, base=lambda m: m):
    "Two pixels of a value in some files."
    def encode(m, i):
        out = base(m).copy()
        if i < files:
            out[[3, 30], [5, 40]] = value
        return out
    return encode


def red(m, i=0): return np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[m]


@pytest.mark.parametrize(
    'encode, words',
    [
        (
            two_kinds(binary(255), binary(65535, np.uint16)),
            ('0 and 255 in 5 masks', '0 and 65535 in 5 masks', '--ignore 65535')),
        (two_kinds(binary(1), binary(65535, np.uint16)), ('0 and 1 in 5 masks', '0 and 65535 in 5 masks')),
        (dotted(1, 4, binary(255)), ('255 in large areas', '1 in specks of 8 pixels', '--ignore 255')),
        (dotted(254, 4, binary(255)), ('255 in large areas', '254 in specks of 8 pixels')),
        (lambda m, i: np.array([0, 1, 254], np.uint8)[m], ('--map order',)),
        (lambda m, i: np.array([0, 300, 301], np.uint16)[m], ('--map order', '--map FILE')),
        (lambda m, i: Image.fromarray(red(m)).convert('LAB'), ('a mask in LAB colours',))],
    ids=['255 and 65535', '1 and 65535', 'specks of 1', 'specks of 254', '0 1 254', '0 300 301', 'LAB'])
def test_what_nobody_can_know_is_asked(tmp_path, encode, words):
    suffix = '.tif' if 'LAB' in words[0] else '.png'
    refused(lambda: check(folder(tmp_path, encode, suffix=suffix)), *words)


def warned(root, *meaning): return [f.text for f in check(root, *meaning).findings if f.level == 'warning']


@pytest.mark.parametrize(
    'encode, words',
    [
        (dotted(3, 3), 'value 3: only specks and lines, 6 pixels in 3 masks, such as masks/p00.tif'),
        (dotted((90, 9, 200), 2, red), 'colour 90 9 200: only specks and lines'),
        (two_kinds(red, lambda m: red(m) // 255 * 254), 'almost equal'),
        (
            lambda m, i: (
                Image.fromarray(m).resize((W * 2, H * 2), Image.Resampling.BILINEAR).resize((W * 2, H * 2))),
            'nearest neighbour'),
        (lambda m, i: m.astype(np.int32) - 1, 'of value -1')],
    ids=['slips in several masks', 'slips in colour', 'two reds', 'ids interpolated', 'much ignored'])
def test_what_looks_odd_is_said(tmp_path, encode, words):
    grown = 'neighbour' in words
    folder(tmp_path, encode, suffix='.tif')
    if grown:
        for i in range(N):
            save(tmp_path/f'images/p{i:02d}.png', np.kron(image(i), np.ones((2, 2, 1), np.uint8)))
    assert any(words in text for text in warned(tmp_path)), warned(tmp_path)


def lines(width):
    "Thin lines as a class: vessels, cracks, roads."
    def encode(m, i):
        out = np.zeros((H, W), np.uint8)
        for k in range(4):
            out[np.arange(H), (np.arange(H)+9*k+i) % W] = 1
        return out if width == 1 else np.maximum(out, np.roll(out, 1, 1))
    return encode


def rims(m, i):
    "Objects with a border of one pixel as a class of its own, as for cells."
    inner = np.array(Image.fromarray(m).filter(ImageFilter.MinFilter(3)))
    return ((m > 0)*1 + (inner > 0)).astype(np.uint8)


@pytest.mark.parametrize(
    'encode',
    [
        lines(1),
        lines(2),
        rims,
        lambda m, i: np.where(
            np.array(Image.fromarray(m).filter(ImageFilter.MaxFilter(3))) != m, 255, m).astype(np.uint8),
        lambda m, i: (
            np.random.default_rng(i)
            .integers(0, 150, (H // 4, W // 4))
            .astype(np.uint8)
            .repeat(4, 0)
            .repeat(4, 1)),
        lambda m, i: np.where(np.random.default_rng(i).random((H, W)) < 0.002, np.roll(m, 3, 1), m).astype(
            np.uint8)],
    ids=['lines of 1', 'lines of 2', 'rims', 'void borders', 'many small classes', 'ragged'])
def test_sound_masks_are_not_doubted(tmp_path, encode):
    report = check(folder(tmp_path, encode), allow_missing=True)
    said = [
        f.text
        for f in report.findings
        if any(w in f.text for w in ('specks', 'neighbour', 'alike', 'soft edges'))]
    assert report.ok and not said


def test_what_is_ignored_is_ignored_in_every_layout(tmp_path):
    "Also where a layout or a file says what values mean; a value that no mask holds is said."
    folder(tmp_path/'d', lambda m, i: m)
    (tmp_path/'map.txt').write_text('0 background\n1 cat\n2 dog\n')
    agrees(tmp_path/'d', [0, IGNORE_INDEX, 2], (1,), str(tmp_path/'map.txt'))
    for part, old in (('JPEGImages', 'images'), ('SegmentationClass', 'masks')):
        (tmp_path/'voc').mkdir(exist_ok=True)
        (tmp_path/'d'/old).rename(tmp_path/'voc'/part)
    report = check(tmp_path/'voc', (0,), allow_missing=True)
    assert (
        report.layout.kind == 'VOC' and report.mapping.table[0] == IGNORE_INDEX and not report.mapping.as_is)
    assert any('--ignore 77: no mask holds this value' in text for text in warned(tmp_path/'voc', (77,)))


def test_class_files_that_do_not_fit(tmp_path):
    "What train refuses, check refuses."
    for name, names, encode, words, ignore in [
        (
            'more', 'abc', lambda m, i: ((m > 0) * 255).astype(np.uint8), 'names other classes (a, b, c: 3)',
            ()),
        ('one', 'a', lambda m, i: ((m > 0) * 255).astype(np.uint8), 'names other classes (a: 1)', ()),
        ('first', 'zabc', lambda m, i: m + 1, 'names other classes (z, a, b, c: 4)', (0,))]:
        root = folder(tmp_path/name, encode)
        (root/'classes.txt').write_text(''.join(f'{c}\n' for c in names))
        assert any(words in e for e in errors(root, ignore)), name
        with pytest.raises(DataError, match='names other classes'):
            make_split(root, 3, progress=None, meaning=Meaning(ignore))


@pytest.mark.parametrize(
    'shift, names, words',
    [(1, 'abc', 'count from 1 are read with --ignore 0'), (0, 'ab', 'name class 0 as well')])
def test_one_name_too_few(tmp_path, shift, names, words):
    folder(tmp_path, lambda m, i: m+shift)
    (tmp_path/'classes.txt').write_text(''.join(f'{c}\n' for c in names))
    refused(lambda: check(tmp_path), words)


# --- images of more than 8 bits

def deep_folder(root, make, suffix='.tif'):
    folder(root, lambda m, i: m)
    for i in range(N):
        (root/f'images/p{i:02d}.png').unlink()
        save(root/f'images/p{i:02d}{suffix}', make(i))
    return root


@pytest.mark.parametrize('make, depth, middle', [
    (lambda i: (image(i)[..., 0].astype(np.uint16) << 4)//(1+i % 2), Depth(0, 4095), 128),
    (lambda i: image(i)[..., 0].astype(np.uint16) << 8, Depth(0, 65535), 128),
    (lambda i: image(i)[..., 0]/np.float32(255), Depth(0, 1), 127),
    (lambda i: image(i)[..., 0].astype(np.float32)*10, Depth(0, 2550), 127),
    (lambda i: image(i)[..., 0].astype(np.int32)*10 - 1000, Depth(-1000, 1550), 127)
], ids=['12 in 16', '16', 'floats 0..1', 'floats beyond', 'negative'])
def test_one_range_for_the_data_set(tmp_path, make, depth, middle):
    report = check(deep_folder(tmp_path, make))
    assert report.ok and report.depth == depth and any('become 0 to 255' in f.text for f in report.findings)
    convert_data(report, None, None)
    for i in range(N):
        wanted = (make(i).astype(np.float64) - depth.low)/(depth.high-depth.low)*255
        assert (
            np.abs(np.asarray(Image.open(tmp_path / f'prepared/images/p{i:02d}.png'))[..., 0] - wanted).max()
            <= 1.01)
    config, _ = auto_config(tmp_path, progress=None, weights='')
    assert config.depth == str(depth)


def test_an_extreme_value_asks_for_a_range(tmp_path):
    def make(i): return image(i)[..., 0].astype(np.float32) - (i == 3)*np.eye(H, W, dtype=np.float32)*99999
    (found,) = errors(deep_folder(tmp_path, make))
    assert '--depth LOW:HIGH' in found and 'images/p03.tif reaches from -99' in found
    assert check(tmp_path, depth=Depth(0, 255)).ok
    assert main(['check', str(tmp_path), '--depth', '0:255', '--out', str(tmp_path.parent/'rep')]) == 0


@pytest.mark.parametrize(
    'make, level, words',
    [
        (lambda i: image(i)[..., 0].astype(np.uint16) * (64 if i % 2 else 1), 'error', 'half of them span'),
        (
            lambda i: image(i)[..., 0].astype(np.uint16) * (1 if i == 4 else 64), 'warning',
            '1 of them span less than a sixteenth'),
        (
            lambda i: np.where(image(i)[..., 0] < 80, np.float32(-9999), image(i)[..., 0]), 'error',
            'reaches from -9999')],
    ids=['half of 8 bits', 'one of 8 bits', 'a value for no data'])
def test_images_that_would_be_one_grey_are_named(tmp_path, make, level, words):
    found = [(f.level, f.text) for f in check(deep_folder(tmp_path, make)).findings if f.kind == 'depth']
    assert [level] == [f for f, _ in found] and words in found[0][1] and 'images/p' in found[0][1]


def tiff(bands):
    "A TIFF of 8 bits and some bands, written by hand."
    data = np.random.default_rng(0).integers(0, 255, H*W*bands, np.uint8).tobytes()
    end = 8 + H*W*bands
    more = np.array([8]*bands, '<u2').tobytes() + bytes(2*(bands-3))
    tags = [
        (256, 3, 1, W), (257, 3, 1, H), (258, 3, bands, end), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8),
        (277, 3, 1, bands), (278, 3, 1, H), (279, 4, 1, len(data)),
        (338, 3, bands - 3, end + 2 * bands if bands > 5 else 0)]
    body = b''.join(
        np.array([t, k], '<u2').tobytes() + np.array([n, v], '<u4').tobytes() for t, k, n, v in tags)
    return (
        b'II*\0'
        + np.array([end + len(more)], '<u4').tobytes()
        + data
        + more
        + np.array([len(tags)], '<u2').tobytes()
        + body
        + bytes(4))


@pytest.mark.parametrize('bands', [4, 6])
def test_bands_that_are_dropped_are_said(tmp_path, bands):
    folder(tmp_path, lambda m, i: m)
    (tmp_path/'images/p03.png').unlink()
    (tmp_path/'images/p03.tif').write_bytes(tiff(bands))
    found = [f for f in check(tmp_path).findings if f.kind == 'bands']
    assert [f.file for f in found] == [
        'images/p03.tif'] and f'has {bands} bands, of which the first three' in found[0].text


def test_nan_in_all_images_names_one(tmp_path):
    refused(
        lambda: check(deep_folder(tmp_path, lambda i: np.full((H, W), np.nan, np.float32))),
        'images/p00.tif: NaN')


def test_nan_has_no_brightness(tmp_path):
    def make(i): return np.where(np.eye(H, W) * (i == 2) > 0, np.nan, image(i)[..., 0]/255).astype(np.float32)
    assert [e.startswith('images/p02.tif: NaN') for e in errors(deep_folder(tmp_path, make))] == [True]


def test_bands_beyond_four_are_named(tmp_path):
    "A TIFF of six bands, written by hand."
    def entry(tag, kind, n, value):
        return (
            tag.to_bytes(2, 'little')
            + kind.to_bytes(2, 'little')
            + n.to_bytes(4, 'little')
            + value.to_bytes(4, 'little'))
    data = bytes(6*4)
    tags = [
        (256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
        (277, 3, 1, 6), (278, 3, 1, 2), (279, 4, 1, 24)]
    body = (
        b'II*\0'
        + (8 + len(data)).to_bytes(4, 'little')
        + data
        + len(tags).to_bytes(2, 'little')
        + b''.join(entry(*t) for t in tags)
        + bytes(4))
    (tmp_path/'bands.tif').write_bytes(body)
    refused(lambda: read_photo(tmp_path/'bands.tif'), 'bands.tif', 'bands')


def test_pages_of_an_image_are_said(tmp_path):
    folder(tmp_path, lambda m, i: m)
    (tmp_path/'images/p00.png').unlink()
    save(tmp_path/'images/p00.tif', image(0), save_all=True, append_images=[Image.fromarray(image(1))])
    report = check(tmp_path)
    assert report.ok and [f.text for f in report.findings if f.kind == 'pages'][0].startswith('has 2 pages')


# --- many, at random: what is learned is what the files say, or it is refused

def conventions(rng):
    "A random way to store ids, and the ids that training must read (None: to be refused or named)."
    k = 3
    colors = rng.permutation(
        np.array([[r, g, b] for r in (0, 90, 200) for g in (0, 130) for b in (0, 60, 250)], np.uint8))[:k]
    levels = np.sort(rng.choice(np.arange(6, 250, 12), k-1, replace=False))
    return {
        'ids': lambda m, i: m, 'ids 16': lambda m, i: m.astype(np.uint16),
        'float ids': lambda m, i: m.astype(np.float32),
        'binary': lambda m, i: ((m > 0) * 255).astype(np.uint8),
        'levels': lambda m, i: np.array([0, *levels], np.uint8)[m], 'colours': lambda m, i: colors[m],
        'rgba': lambda m, i: np.dstack([colors[m], np.full(m.shape, 255, np.uint8)]),
        'grey colours': lambda m, i: np.dstack([m] * 3)}


FAULTS = {
    'none': lambda a, rng: a,
    'blur': lambda a, rng: np.asarray(Image.fromarray(a).filter(ImageFilter.GaussianBlur(1))),
    'resize': lambda a, rng: np.asarray(
        Image.fromarray(a)
        .resize((W // 2, H // 2), Image.Resampling.BILINEAR)
        .resize((W, H), Image.Resampling.BILINEAR)),
    'speck': lambda a, rng: put_speck(a, rng),
    'cut': lambda a, rng: a[:-5]}


def put_speck(a, rng):
    a = a.copy()
    a[rng.integers(H), rng.integers(W)] = 201
    return a


ROUNDS = int(os.environ.get('CORRMATCH_FUZZ', 60))


@pytest.mark.parametrize('seed', range(ROUNDS))
def test_learned_is_what_the_files_say(tmp_path, seed):
    rng = np.random.default_rng(seed)
    name, encode = list(conventions(rng).items())[seed % 8]
    fault = list(FAULTS)[seed//8 % len(FAULTS)]
    victims = (
        set(rng.choice(N, int(rng.choice([1, 2, N])), replace=False).tolist()) if fault != 'none' else set())
    suffix = '.tif' if name == 'float ids' else '.png'
    stored = {}
    for i in range(N):
        array = encode(truth(i), i)
        if i in victims and array.dtype == np.uint8:
            array = FAULTS[fault](array, rng)
        save(tmp_path/f'images/p{i:02d}.png', image(i))
        save(tmp_path/f'masks/p{i:02d}{suffix}', array)
        stored[i] = array if array.ndim == 2 else array[..., :3] @ np.array([1, 256, 65536])
    try:
        report = check(tmp_path)
    except DataError as e:
        assert victims, f'{name} without a fault: {e}'
        return
    if not victims:
        assert report.ok, (name, report.errors)
    named = {f.file for f in report.errors}
    try:
        read = learned(tmp_path)
    except DataError:
        return
    assert not {f'masks/p{i:02d}{suffix}' for i in read} & named, 'a faulty mask is learned from'
    meant = {}
    for i, ids in read.items():
        for value, c in set(zip(stored[i].ravel().tolist(), ids.ravel().tolist())):
            assert c == meant.setdefault(value, c), (
                f'{name}, {fault}: value {value} is class {c} in scene {i} and class {meant[value]} elsewhere'
            )
    assert len(set(meant.values())) == len(meant), f'{name}, {fault}: classes fall together: {meant}'
