"""Faulty data sets: each fault is a one-line DataError that names the file, the value and a remedy; odd but
legal ones pass."""
import io
import os

import numpy as np
import pytest
from PIL import Image

from corrmatch.data.batches import StepBatches, make_loader
from corrmatch.data.folders import (
    FolderSource, Pair, check_source, missing_classes, parse_line, read_classes, read_pair, read_split)
from corrmatch.files import DataError
from errors_for_tests import refused

IDS = ['a', 'b', 'c.d', 'e']


@pytest.fixture
def root(tmp_path):
    "A sound data set: four images of 20x16 with masks of classes 0..2 and some ignored pixels."
    rng = np.random.default_rng(0)
    for folder in ('images', 'masks'):
        (tmp_path/folder).mkdir()
    for name in IDS:
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8)).save(tmp_path/'images'/f'{name}.jpg')
        mask = rng.integers(0, 3, (16, 20)).astype(np.uint8)
        mask[:2] = 255
        Image.fromarray(mask).save(tmp_path/'masks'/f'{name}.png')
    (tmp_path/'train.txt').write_text('\n'.join(IDS))
    (tmp_path/'classes.txt').write_text('sky 1 2 3\ntraffic light 4 5 6\ncar 7 8 9\n')
    return tmp_path


def split(root, text, **kwargs):
    (root/'list.txt').write_bytes(text.encode() if isinstance(text, str) else text)
    return read_split(root/'list.txt', root, **kwargs)


def source(root, **replaced):
    "The sound set with the bytes of some files replaced, as source('masks/a.png'=b'...')."
    for path, content in replaced.items():
        (root/path).write_bytes(content)
    return FolderSource(read_split(root/'train.txt', root))


def encoded(array, kind='png'):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


# --- lists

def test_sound_set_passes(root):
    counts = check_source(source(root), 3)
    assert counts.n_images == 4 and counts.ignored == 4*2*20 and counts.pixels.sum() == 4*14*20
    assert missing_classes(counts) == ''
    assert read_classes(root)[0] == ['sky', 'traffic light', 'car']


def test_missing_folder(root):
    refused(lambda: read_split(root/'train.txt', root/'none'), root/'none', 'check the path')
def test_missing_list(root): refused(lambda: read_split(root/'none.txt', root), 'none.txt', 'check the path')
def test_list_is_a_folder(root): refused(lambda: read_split(root/'images', root), 'images', 'check the path')


@pytest.mark.parametrize('text', ['', '\n', '  \r\n\r\n', '\ufeff'])
def test_empty_list(root, text): refused(lambda: split(root, text), 'list.txt', 'empty')


def test_list_is_no_text(root):
    refused(lambda: split(root, bytes(range(120, 256))), 'list.txt', 'not a text file')


@pytest.mark.parametrize('text', ['a\nb', 'a\r\nb\r\n', '\ufeffa\n\n\nb\n\n', '  a \n\tb'])
def test_odd_but_legal_lists(root, text): assert [p.name for p in split(root, text)] == ['a', 'b']


def test_id_without_file(root):
    refused(
        lambda: split(root, 'a\n\nghost\nb\nspook\n'), 'list.txt line 3', "'ghost'",
        root / 'images' / 'ghost', '2 of 4')


def test_labeled_id_without_mask(root):
    (root/'masks'/'b.png').unlink()
    refused(lambda: read_split(root/'train.txt', root), 'line 2', root/'masks'/'b.png', '1 of 4')
    pairs = read_split(root/'train.txt', root, masks=False)
    assert [p.mask is None for p in pairs] == [False, True, False, False]


def test_unlabeled_needs_no_masks_at_all(root):
    for mask in (root/'masks').iterdir():
        mask.unlink()
    (root/'masks').rmdir()
    unlabeled = FolderSource(read_split(root/'train.txt', root, masks=False))
    assert check_source(unlabeled, 3, masks=False).n_images == 4
    refused(lambda: unlabeled.read_mask(0), 'a.jpg', 'no mask')


def test_named_mask_of_unlabeled_line_may_be_absent(root):
    assert split(root, 'images/a.jpg nowhere/a.png', masks=False) == [Pair(root/'images'/'a.jpg', None, 'a')]


@pytest.mark.parametrize(
    'line',
    [
        '/etc/passwd', '/etc/a.jpg masks/a.png', 'images/a.jpg /etc/a.png', '../images/a.jpg',
        'images/../../a.jpg', 'images/a.jpg ../a.png', '..'])
def test_paths_that_leave_the_folder(root, line):
    refused(lambda: split(root, line), 'line 1', 'leaves the data folder')


def test_dots_inside_of_names_are_legal():
    assert parse_line('a..b') == ('a..b', 'images/a..b', 'masks/a..b.png')


@pytest.mark.parametrize(
    'text, line', [('a\nb\na', 3), ('images/a.jpg masks/a.png\nimages/a.jpg masks/b.png', 2)])
def test_duplicates(root, text, line):
    refused(lambda: split(root, text), f'line {line}', 'line 1 already', 'remove')


def test_three_fields(root):
    refused(lambda: split(root, 'images/my a.jpg masks/a.png'), 'line 1', '3 fields', 'tab')


def test_image_alone_in_a_labeled_list(root):
    refused(lambda: split(root, 'images/a.jpg'), 'line 1', 'names no mask', 'IMAGE MASK')
    assert split(root, 'images/a.jpg', masks=False)[0].mask is None


def test_blanks_with_a_tab(root):
    for old, new in (('images/a.jpg', 'images/my a.jpg'), ('masks/a.png', 'masks/my a.png')):
        (root/old).rename(root/new)
    assert split(root, 'images/my a.jpg\tmasks/my a.png')[0].name == 'my a'


def test_suffix_in_capitals_and_several_suffixes(root):
    (root/'images'/'a.jpg').rename(root/'images'/'a.JPG')
    (root/'images'/'b.png').write_bytes(b'')
    (root/'images'/'e').mkdir()
    assert [p.image.name for p in read_split(root / 'train.txt', root)] == [
        'a.JPG', 'b.jpg', 'c.d.jpg', 'e.jpg']


def test_each_folder_is_listed_once(root, monkeypatch):
    (root/'many').mkdir()
    for i in range(500):
        (root/'many'/f'{i}.jpg').touch()
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, 'scandir', lambda path: listed.append(str(path)) or scandir(path))
    assert len(split(root, '\n'.join(f'many/{i}.jpg masks/a.png' for i in range(500)))) == 500
    assert sorted(os.path.basename(p) for p in listed if str(p) != str(root)) == ['many', 'masks']


@pytest.mark.parametrize(
    'line', ['car', 'car 1 2', 'car 1 2 256', 'car 1 2 -3', 'car r g b', '1 2 3', f'car 1 2 {"9"*5000}'])
def test_bad_classes(root, line):
    (root/'classes.txt').write_text(f'sky 0 0 0\n{line}\n')
    refused(lambda: read_classes(root), 'classes.txt line 2', line, 'name R G B')


def test_classes_are_optional(root):
    (root/'classes.txt').unlink()
    assert read_classes(root) is None


# --- images and masks

@pytest.mark.parametrize('kind', ['jpeg', 'png', 'bmp', 'webp', 'tiff'])
@pytest.mark.parametrize('share', [0, 0.02, 0.5, 0.97])
def test_truncated_image(root, kind, share):
    content = encoded(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8), kind)
    set_ = source(root, **{'images/b.jpg': content[:int(share*len(content))]})
    refused(lambda: check_source(set_, 3), root/'images'/'b.jpg', 'unreadable', 'replace')
    refused(lambda: check_source(set_, 3, masks=False), root/'images'/'b.jpg')


@pytest.mark.parametrize('content', [b'', b'<html>404</html>', bytes(1000)])
def test_not_an_image(root, content):
    set_ = source(root, **{'images/b.jpg': content})
    refused(lambda: check_source(set_, 3), 'b.jpg', 'unreadable')
    # headers are enough for this
    refused(lambda: check_source(set_, 3, masks=False, decode=False), 'b.jpg', 'unreadable')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ['jpeg', 'png', 'bmp', 'webp', 'tiff', 'gif'])
def test_damaged_bytes_never_raise_anything_else(root, kind):
    rng = np.random.default_rng(2)
    content = np.frombuffer(encoded(rng.integers(0, 256, (24, 24, 3), np.uint8), kind), np.uint8)
    for _ in range(200):
        damaged = content[:rng.integers(1, len(content)+1)].copy()
        damaged[rng.integers(0, len(damaged), 4)] = rng.integers(0, 256, 4)
        try:
            source(root, **{'images/b.jpg': damaged.tobytes()}).read_image(1)
        except DataError as e:
            assert 'b.jpg' in str(e) and '\n' not in str(e)


def test_sixteen_bit_image(root):
    set_ = source(root, **{'images/b.jpg': encoded(np.full((16, 20), 40_000, np.uint16))})
    refused(lambda: check_source(set_, 3), 'b.jpg', 'I;16', '8 bits')


@pytest.mark.parametrize(
    'array, mode',
    [
        (np.zeros((16, 20, 3), np.uint8), 'RGB'), (np.zeros((16, 20), bool), '1'),
        (np.zeros((16, 20), np.uint16), 'I;16')])
def test_mask_without_class_ids(root, array, mode):
    refused(
        lambda: check_source(source(root, **{'masks/b.png': encoded(array)}), 3), 'b.png', f'mode {mode}',
        'class ids')


@pytest.mark.parametrize('size', [(20, 16), (16, 19), (32, 40)])
def test_sizes_differ(root, size):
    set_ = source(root, **{'masks/b.png': encoded(np.zeros(size, np.uint8))})
    refused(
        lambda: check_source(set_, 3), root / 'masks' / 'b.png', f'{size[1]}x{size[0]}',
        root / 'images' / 'b.jpg', '20x16', 'same size')


def test_value_outside_of_the_classes(root):
    mask = np.zeros((16, 20), np.uint8)
    mask[3, :7], mask[4, :2] = 17, 200
    set_ = source(root, **{'masks/b.png': encoded(mask)})
    refused(
        lambda: check_source(set_, 3), root / 'masks' / 'b.png', 'value 17 in 7 pixels', '1 more', '0..2',
        '255', 'n_classes')
    assert check_source(source(root, **{'masks/b.png': encoded(np.minimum(mask, 2))}), 3).n_images == 4


def test_ignored_value_is_a_setting(root):
    refused(lambda: check_source(source(root), 3, ignore_index=254), 'value 255 in 40 pixels')


def test_palette_masks_count_their_ids(root):
    mask = Image.fromarray(np.full((16, 20), 2, np.uint8))
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    buffer = io.BytesIO()
    mask.save(buffer, 'png')
    assert check_source(source(root, **{'masks/a.png': buffer.getvalue()}), 3).pixels[2] >= 320


def test_class_that_never_occurs(root):
    message = missing_classes(check_source(source(root), 5), ['sky', 'light', 'car', 'bus', 'dog'])
    assert (
        '2 of 5' in message and '3 (bus), 4 (dog)' in message and '4 masks' in message and '\n' not in message
    )


def test_progress_wraps_the_indices(root):
    seen = []
    check_source(source(root), 3, progress=lambda indices: (seen.append(i) or i for i in indices))
    assert seen == [0, 1, 2, 3]


# --- faults that appear during training

def batches(root, **kwargs):
    return StepBatches(source(root), source(root), crop=9, batch_x=2, batch_u=2, seed=0, **kwargs)


@pytest.mark.parametrize('partner', ['same_image', 'other_image', 'in_batch', 'none'])
def test_image_that_breaks_in_training(root, partner):
    made = batches(root, partner=partner)
    assert made[0]['broken'] == []
    (root/'images'/'b.jpg').unlink()
    after = [made[step] for step in range(8)]
    lines = [line for batch in after for line in batch['broken']]
    assert lines and all('b.jpg' in line and '\n' not in line for line in lines)
    for batch in after:
        assert batch['image_x'].shape == batch['image_u_w'].shape == (2, 3, 9, 9)
        assert 'b' not in batch['names_x'] + batch['names_u'] + batch.get('names_mix', [])


def test_mask_that_breaks_in_training(root):
    made = batches(root)
    Image.new('L', (5, 5)).save(root/'masks'/'b.png')
    lines = [line for step in range(8) for line in made[step]['broken']]
    assert lines and all('b.png' in line and '5x5' in line for line in lines)


def test_hidden_masks_never_stop_training(root):
    made = StepBatches(source(root), source(root), 9, 2, 2, seed=0, with_hidden=True)
    before = made[0]['mask_u']
    unlabeled_only = StepBatches(
        source(root), FolderSource([p._replace(mask=root / 'lost.png') for p in source(root).pairs]), 9, 2, 2,
        seed=0, with_hidden=True)
    assert (
        (before != 255).any()
        and (unlabeled_only[0]['mask_u'] == 255).all()
        and unlabeled_only[0]['broken'] == [])


@pytest.mark.parametrize('workers', [0, 1])
def test_everything_breaks(root, workers):
    made = batches(root)
    for image_file in (root/'images').iterdir():
        image_file.unlink()
    refused(lambda: next(iter(make_loader(made, 0, 1, workers=workers))), 'in a row cannot be read', '.jpg')


def test_empty_source(): refused(lambda: StepBatches(FolderSource([]), None, 9, 2, 0, seed=0), '0 images')


def test_bad_settings(root):
    with pytest.raises(ValueError, match='not one of same_image'):
        batches(root, partner='twin')
    with pytest.raises(ValueError, match='two unlabeled'):
        batches(root, partner='in_batch', positions_u=(1,))


def test_source_without_masks_as_labeled(root):
    pairs = read_split(root/'train.txt', root, masks=False)
    bare = FolderSource([p._replace(mask=None) for p in pairs])
    refused(lambda: check_source(bare, 3), 'a.jpg', 'no mask')
    refused(lambda: read_pair(bare, 1), 'b.jpg', 'no mask')
