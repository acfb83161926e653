"""Folders as people keep them: class files, lists of splits, COCO files and odd images; each fault is one
line that says where."""
import json

import numpy as np
import pytest
from PIL import Image

from corrmatch.data.coco import draw_objects
from corrmatch.data.layouts import _find_classes, find_layout
from corrmatch.data.masks import load_image, read_photo, rgb_bytes
from errors_for_tests import refused


def put(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8), value, np.uint8)).save(path)
    return path


def wrote(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- names of classes

@pytest.mark.parametrize('name, text, line, form', [
    ('classes.txt', 'sky 1 2 3\nroad 128 64\ncar 4 5 6\n', 'line 2: `road 128 64`', 'name R G B'),
    ('classes.txt', 'sky 1 2 3\n\nroad 1 2 x\n', 'line 3', 'name R G B'),
    ('classes.txt', 'sky 1 2 3\nroad 1 2 256\n', 'line 2', '0..255'),
    ('classes.txt', 'sky\nroad 1 2 3\n', 'line 2', 'a colour, or none'),
    ('label_colors.txt', '1 2 3 sky\nroad 128 64\n4 5 6 car\n', 'line 2: `road 128 64`', 'R G B name'),
    ('label_colors.txt', '1 2 3\n4 5 6 car\n', 'line 1', 'R G B name'),
    ('class_dict.csv', 'name,r,g,b\nsky,1,2,3\nroad,1,2\n', 'line 3: `road,1,2`', 'name,r,g,b'),
    ('class_dict.csv', 'name,r,g,b\nsky,1,2,3\nroad,a,b,c\n', 'line 3', 'name,r,g,b'),
    ('class_dict.csv', 'name,r,g,b\nsky,1,2,3\nroad\n', 'line 3', 'a colour, or none'),
    ('class_dict.csv', 'sky,1,2\nroad,1,2,3\n', 'line 1: `sky,1,2`', 'name,r,g,b'),
    ('class_dict.csv', 'sky\nroad,1,2,3\n', 'line 2', 'a colour, or none'),
    ('class_dict.csv', f'sky,{"9"*5000},2,3\n', 'line 1', 'name,r,g,b'),
    ('class_dict.csv', 'name,r,g,b\n', 'names no class', 'name,r,g,b'),
    ('class_dict.csv', b'name,r,g,b\n\xff\xfe,1,2,3\n', 'cannot be read', 'name,r,g,b'),
    ('labelmap.txt', 'sky:1,2,3::\nroad:1,2::\n', 'line 2', 'name:R,G,B::'),
    ('labelmap.txt', 'sky:1,2,3::\nroad\n', 'line 2', 'a colour, or none')])
def test_faulty_class_files(tmp_path, name, text, line, form):
    refused(lambda: _find_classes(wrote(tmp_path/name, text)), name, line, form)


@pytest.mark.parametrize(
    'name, text',
    [
        ('class_dict.csv', 'name\nsky\nsea\n'), ('class_dict.csv', 'name,r,g,b\nsky,,,\nsea,,,\n'),
        ('class_dict.csv', 'sky\nsea\n'), ('class_dict.csv', 'sky,,,\nsea,,,\n'),
        ('class_dict.csv', 'Class Name,notes\nsky\nsea\n'), ('class_dict.csv', 'art,R,G,B\nsky\nsea\n'),
        ('classes.txt', '# mine\nsky\nsea\n'), ('labelmap.txt', 'sky:::\nsea:::\n')])
def test_names_alone(tmp_path, name, text):
    assert _find_classes(wrote(tmp_path/name, text))[:2] == (['sky', 'sea'], None)


def test_csv_without_header_keeps_its_first_class(tmp_path):
    names, colors, _ = _find_classes(
        wrote(tmp_path / 'class_dict.csv', '\ufeffsky, 1, 2, 3, 1\nsea, 4, 5, 6, 0\n'))
    assert names == ['sky', 'sea'] and colors.tolist() == [[1, 2, 3], [4, 5, 6]]
    found = _find_classes(wrote(tmp_path/'names.csv', 'background\ncat\ndog\n'))
    assert found == (['background', 'cat', 'dog'], None, 'names.csv')


def test_headers_of_csv_in_other_words(tmp_path):
    headers = ('Label,R,G,B', 'category_name,red,green,blue', 'Klasse,rot,gruen,blau', '#class', 'name;x')
    for header in headers:
        found = _find_classes(wrote(tmp_path/'class_dict.csv', f'{header}\nsky,1,2,3\nsea,4,5,6\n'))
        assert found[0] == ['sky', 'sea'], header


# --- lists

@pytest.fixture
def twins(tmp_path):
    "Images 0 and 1 in two folders, 2 in one of them."
    for name in ('A/0', 'A/1', 'B/0', 'B/1', 'B/2'):
        for role in ('images', 'masks'):
            put(tmp_path/f'{role}/{name}.png')
    return tmp_path


def splits(root): return {i.name: i.split for i in find_layout(root).items if i.split}


@pytest.mark.parametrize(
    'entry, name',
    [
        ('A/0', 'A/0'), ('images/A/0.png', 'A/0'), ('masks/B/0.png', 'B/0'),
        ('/data/elsewhere/A/0.jpg', 'A/0'), ('./images/B/1.png\tmasks/B/1.png', 'B/1'),
        ('images\\A\\1.png', 'A/1'), ('2', '2')])
def test_entries_of_lists(twins, entry, name):
    wrote(twins/'val.txt', entry)
    assert splits(twins) == {name: 'val'}


def test_ambiguous_entry(twins):
    wrote(twins/'val.txt', 'A/0\n\n1\n')
    refused(lambda: find_layout(twins), 'val.txt line 3', '`1` fits several')


def test_list_beside_its_images(tmp_path):
    for name in ('A', 'B'):
        put(tmp_path/name/'images/0.png'), put(tmp_path/name/'masks/0.png')
    wrote(tmp_path/'A/val.txt', '0')
    assert splits(tmp_path) == {'A/0': 'val'}


def test_list_of_something_else_is_left_alone(twins):
    wrote(twins/'test.txt', '1\nnotes\non\nthis\n')
    assert splits(twins) == {}


# --- COCO

SQUARE = [[1, 1, 4, 1, 4, 4, 1, 4]]


def notes(*names, category=7):
    "A COCO file with one object an image."
    return dict(
        images=[dict(id=i, file_name=n) for i, n in enumerate(names)],
        categories=[dict(id=3, name='cat'), dict(id=7, name='cup')],
        annotations=[
            dict(id=10 + i, image_id=i, category_id=category, area=9, iscrowd=0, segmentation=SQUARE)
            for i in range(len(names))])


def coco(root, **files):
    for path, data in files.items():
        wrote(root/path, json.dumps(data))
    return {
        (i.name, i.split): (i.image.relative_to(root).as_posix(), [o['class'] for o in i.objects])
        for i in find_layout(root).items}


def test_equal_file_names_beside_their_files(tmp_path):
    for split in ('train', 'valid', 'test'):
        put(tmp_path/split/'0.png')
    found = coco(
        tmp_path,
        **{
            f'{s}/_annotations.coco.json': notes('0.png', category=3 if s == 'train' else 7)
            for s in ('train', 'valid', 'test')})
    assert found == {
        ('train/0', 'train'): ('train/0.png', [1]), ('valid/0', 'val'): ('valid/0.png', [2]),
        ('test/0', 'test'): ('test/0.png', [2])}


def test_equal_file_names_below_folders_of_splits(tmp_path):
    for path in ('train2017/0.png', 'val2017/0.png', 'val2017/1.png'):
        put(tmp_path/path)
    found = coco(
        tmp_path,
        **{
            'annotations/instances_train2017.json': notes('0.png'),
            'annotations/instances_val2017.json': notes('0.png', '1.png')})
    assert {k: v[0] for k, v in found.items()} == {
        ('train2017/0', 'train'): 'train2017/0.png', ('val2017/0', 'val'): 'val2017/0.png',
        ('val2017/1', 'val'): 'val2017/1.png'}


def test_equal_stems(tmp_path):
    for path in ('images/0.png', 'images/0.jpg'):
        put(tmp_path/path)
    assert sorted(n for n, _ in coco(tmp_path, **{'all.json': notes('0.png', '0.jpg')})) == [
        'images/0.jpg', 'images/0.png']


def test_unique_names_stay_short(tmp_path):
    for path in ('pictures/0.png', 'pictures/a/1.png'):
        put(tmp_path/path)
    assert coco(tmp_path, **{'notes/all.json': notes('0.png', 'a/1.png')}) == {
        ('0', ''): ('pictures/0.png', [1]), ('a/1', ''): ('pictures/a/1.png', [1])}


def test_file_name_that_fits_two_images(tmp_path):
    for path in ('a/0.png', 'b/0.png'):
        put(tmp_path/path)
    refused(lambda: coco(tmp_path, **{'all.json': notes('0.png')}), 'all.json', 'a/0.png and b/0.png')


@pytest.mark.parametrize('name', ['../../0.png', '/etc/0.png', 'a/../../0.png', '..\\0.png'])
def test_file_name_that_climbs_out(tmp_path, name):
    put(tmp_path/'d/0.png')
    refused(
        lambda: coco(tmp_path / 'd', **{'n/all.json': notes(name)}), 'all.json', name,
        'leaves the data folder')


def test_one_image_in_two_files(tmp_path):
    put(tmp_path/'images/0.png')
    assert coco(tmp_path, **{'train.json': notes('0.png'), 'val.json': notes('0.png')}) == {
        ('0', 'val'): ('images/0.png', [1])}
    refused(
        lambda: coco(tmp_path, **{'val.json': notes('0.png', category=3)}), 'val.json', 'images/0.png',
        'train.json')


@pytest.mark.parametrize(
    'part, field',
    [
        ('images', 'file_name'), ('images', 'id'), ('annotations', 'image_id'),
        ('annotations', 'category_id'), ('categories', 'name')])
@pytest.mark.parametrize('value', ['lost', None, []])
def test_missing_fields(tmp_path, part, field, value):
    put(tmp_path/'images/0.png')
    data = notes('0.png')
    if value == 'lost':
        del data[part][0][field]
    else:
        data[part][0][field] = value
    refused(
        lambda: coco(tmp_path, **{'all.json': data}), 'all.json', f'has no {field}',
        data[part][0].get('id', ''))


def test_unknown_category_and_too_many(tmp_path):
    put(tmp_path/'images/0.png')
    refused(
        lambda: coco(tmp_path, **{'all.json': notes('0.png', category=99)}), 'all.json', 'annotation 10',
        'category 99')
    many = notes('0.png') | dict(categories=[dict(id=i, name=str(i)) for i in range(255)])
    many['annotations'] = [many['annotations'][0] | dict(id=i, category_id=i) for i in range(255)]
    refused(lambda: coco(tmp_path, **{'all.json': many}), 'all.json', '255 categories', '254')
    many['annotations'].pop()
    assert coco(tmp_path, **{'all.json': many}) == {('0', ''): ('images/0.png', [*range(1, 255)])}


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_area_null():
    pytest.importorskip('pycocotools')
    outer = dict(segmentation=[[0, 0, 8, 0, 8, 6, 0, 6]], area=48)
    inner = dict(segmentation=SQUARE, area=None)
    assert draw_objects((inner | {'class': 2}, outer | {'class': 1}), (8, 6))[2, 2] == 2


# --- images

def test_image_above_the_limit(tmp_path):
    huge = wrote(tmp_path/'huge.ppm', b'P5 20000 10000 255 ')
    text = refused(
        lambda: load_image(huge), 'huge.ppm', '200,000,000 pixels', '178,956,970', 'scale it down or cut it')
    assert 'bomb' not in text and 'cut short' not in text


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16', 'I', 'F'])
def test_bytes_of_every_mode(tmp_path, mode):
    got = rgb_bytes(Image.new(mode, (8, 6)))
    assert got.shape == (6, 8, 3) and got.dtype == np.uint8


def test_sixteen_bits_are_scaled(tmp_path):
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8)*1300
    Image.fromarray(deep).save(tmp_path/'deep.png')
    for got in (rgb_bytes(Image.fromarray(deep)), read_photo(tmp_path/'deep.png')):
        assert (got[..., 1] == deep >> 8).all()
