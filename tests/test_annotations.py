"""Annotation tools: what each of them exports is read, what is written for them comes back the same, and
bad files are answered in one line."""

import base64
import io
import json
import os
import random
import re
import zipfile
import zlib
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from corrmatch.config import IGNORE_INDEX
from corrmatch.data import annotations
from corrmatch.data.annotations import _decode_brush, encode_brush, encode_rle
from corrmatch.data.check import check_data, convert_data
from corrmatch.data.split import make_split
from corrmatch.data.coco import decode_rle, fill_polygon
from corrmatch.data.layouts import find_layout, read_stored
from corrmatch.data.masks import Meaning, map_ids
from corrmatch.use import cli
from corrmatch.use.annotators import (
    AnnotationTool,
    convert_annotations,
    _join_rings,
    open_annotations,
    _simplify_ring,
    trace_mask,
)
from corrmatch.use.cli import main
from corrmatch.files import DataError
from errors_for_tests import refused
from test_coco import mutate
from test_fuzz_readers import damage

W, H = 24, 16
TOOLS = get_args(AnnotationTool)
N_DAMAGED = int(os.environ.get('CORRMATCH_FUZZ', 60))  # of each tool
NAMES = ['background', 'traffic light', 'K\u00f6ter', "<b>it's & \"x\"</b>"]  # names as people give them
FILE = 'p <\u00fc>&\'..\' {}'  # and so do names of images
COLORS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 9]], np.uint8)


def box(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def photo(path, size=(W, H), exif=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([*'/'.join(path.parts[-3:]).encode()]).integers(
        0, 255, (*size[::-1], 3), np.uint8
    )
    image = Image.fromarray(pixels)
    notes = image.getexif()
    if exif:
        notes[0x0112] = exif
    image.save(path, exif=notes)


def note(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, (str, bytes)) else json.dumps(content, ensure_ascii=False)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def check(root, classes=None, **said):
    return check_data(root, classes, progress=None, meaning=Meaning(**said))


def masks_of(root):
    "{name of an image: (h,w) class ids}, and the names of the classes."
    report = check(root)
    table = report.mapping.table
    found = {s.item.name: map_ids(read_stored(s.item, s.size).values, table) for s in report.usable}
    return found, report.mapping.names


def same(root, masks, names=NAMES):
    "Are the masks of a folder these? Tools without an order of classes sort them by name."
    found, given = masks_of(root)
    assert sorted(given) == sorted(names) and len(found) == len(masks)
    table = np.arange(256)
    table[: len(given)] = [names.index(n) for n in given]
    return all((table[found[FILE.format(n)]] == mask).all() for n, mask in enumerate(masks))


def scene(seed):
    "A mask with holes, parts within holes, parts at the border, single pixels and ignored pixels."
    mask = np.zeros((H, W), np.uint8)
    mask[2:14, 2:14] = 1
    mask[4:12, 4:12] = 0  # a hole
    mask[6:10, 6:10] = 2  # and a part in it
    mask[7:9, 7:9] = 3  # that fills the hole of another
    mask[0:5, 18:24] = 3
    mask[15, 0] = mask[13, 20] = 2
    mask[10:16, 15:19] = IGNORE_INDEX
    noisy = np.random.default_rng(seed).random((H, W)) < 0.04 * seed
    mask[noisy] = seed % 4
    return mask


def write(tool, root, masks, tolerance=0.0, names=NAMES):
    "A folder of images and what a tool gets for them, as the tool would hand it back."
    writer = open_annotations(tool, root, names, COLORS, tolerance)
    for n, mask in enumerate(masks):
        photo(root / ('images' if tool == 'yolo' else '') / f'{FILE.format(n)}.png')
        writer.add(f'{FILE.format(n)}.png', mask)
    done = writer.close()
    if tool == 'labelstudio':
        tasks = json.loads(done.read_text())
        for task in tasks:  # the annotator accepts the predictions
            task['annotations'] = task.pop('predictions')
        note(done, tasks)
    return done


# --- the way out and in again


@pytest.mark.parametrize('tool', TOOLS)
def test_out_and_in_is_exact(tmp_path, tool):
    masks = [scene(seed) for seed in range(4)]
    write(tool, tmp_path, masks)
    assert same(tmp_path, masks)
    if tool not in ('labelme', 'labelstudio'):
        assert masks_of(tmp_path)[1] == NAMES


def test_unpacked_masks_of_cvat_are_the_same(tmp_path):
    masks = [scene(seed) for seed in range(4)]
    done = write('cvat', tmp_path, masks)
    zipfile.ZipFile(done).extractall(tmp_path)
    done.unlink()
    assert same(tmp_path, masks)
    values = np.asarray(Image.open(tmp_path / f'SegmentationClass/{FILE.format(0)}.png'))
    assert values.shape == (H, W, 3) and values.max() < 255
    assert (tmp_path / 'ImageSets/Segmentation/default.txt').read_text().splitlines() == [
        FILE.format(n) for n in range(4)
    ]
    objects = np.asarray(Image.open(tmp_path / f'SegmentationObject/{FILE.format(0)}.png')).reshape(-1, 3)
    assert len(np.unique(objects, axis=0)) == 1 + 7  # background and each connected part


@pytest.mark.parametrize('tool', [t for t in TOOLS if t in ('coco', 'labelme', 'yolo')])
def test_tolerance(tmp_path, tool):
    y, x = np.mgrid[:120, :160]
    mask = (np.hypot(x - 70, y - 60) < 45).astype(np.uint8) + (np.hypot(x - 70, y - 60) < 20)
    shares = {}
    points = {}
    for tolerance in (0.0, 1.0):
        root = tmp_path / f'{tolerance}'
        writer = open_annotations(tool, root, ['background', 'a', 'b'], COLORS[:3], tolerance)
        for n in range(2):
            photo(root / f'{n}.png', (160, 120))
            writer.add(f'{n}.png', mask)
        writer.close()
        shares[tolerance] = (masks_of(root)[0]['0'] != mask).mean()
        points[tolerance] = sum(
            len(r) for c in (1, 2) for rings in trace_mask(mask == c, tolerance) for r in rings
        )
    assert shares[0.0] == 0 < shares[1.0] < 0.02 and points[1.0] < points[0.0] / 2


def test_a_first_class_that_is_no_background_is_written(tmp_path):
    masks = [np.full((H, W), n % 2, np.uint8) for n in range(4)]
    for n in range(4):
        masks[n][:4] = 1 - n % 2
    write('coco', tmp_path, masks, names=['sky', 'road', 'car', 'tree'])
    content = json.loads((tmp_path / 'instances.json').read_text())
    assert [c['name'] for c in content['categories']] == ['sky', 'road', 'car', 'tree']
    found, _ = masks_of(tmp_path)
    assert all((found[FILE.format(n)] == masks[n] + 1).all() for n in range(4))


def test_outlines_agree_with_the_library_of_coco(tmp_path):
    coco = pytest.importorskip('pycocotools.mask')
    masks = [scene(seed) for seed in range(3)]
    write('coco-rle', tmp_path, masks)
    content = json.loads((tmp_path / 'instances.json').read_text())
    for a in content['annotations']:
        inside = coco.decode(a['segmentation']).astype(bool)
        left, top, w, h = a['bbox']
        assert inside.sum() == a['area'] and inside[top : top + h, left : left + w].sum() == a['area']
        assert (decode_rle(a['segmentation']) == inside).all()
        counts = encode_rle(inside)
        assert (coco.decode(coco.frPyObjects(counts, H, W)).astype(bool) == inside).all()


@pytest.mark.parametrize('seed', range(20))
def test_every_mask_survives_its_outline(seed):
    random = np.random.default_rng(seed)
    shape = random.integers(1, 24, 2)
    mask = random.random(shape) < random.random()
    parts = trace_mask(mask)
    whole = np.zeros(shape, bool)
    for rings in parts:
        window, inside = fill_polygon(_join_rings(rings), shape[::-1])
        assert not (whole[window] & inside).any()
        whole[window] |= inside
    assert (whole == mask).all()
    for rings in trace_mask(mask, 1.0):
        assert all(len(ring) > 2 for ring in rings)
    assert (_decode_brush(encode_brush(mask), shape[::-1]) == mask).all()
    assert (decode_rle(encode_rle(mask)) == mask).all()


def test_simplified_rings_stay_within_the_tolerance():
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ring = np.stack([50 + 30 * np.cos(angle), 50 + 30 * np.sin(angle)], 1)
    for tolerance in (0.5, 1, 3):
        kept = _simplify_ring(ring, tolerance)
        a, b = kept, np.roll(kept, -1, 0)
        along = ((ring[:, None] - a) * (b - a)).sum(-1) / ((b - a) ** 2).sum(-1)
        away = np.linalg.norm(a + along.clip(0, 1)[..., None] * (b - a) - ring[:, None], axis=-1).min(1)
        assert away.max() <= tolerance + 1e-9 and len(kept) < 60


def test_convert_goes_from_tool_to_tool(tmp_path, capsys):
    masks = [scene(seed) for seed in range(4)]
    write('labelme', tmp_path / 'a', masks)
    assert main(['convert', str(tmp_path / 'a'), '--to', 'yolo', '--out', str(tmp_path / 'b')]) == 0
    assert f'for the annotation tool: {tmp_path}/b/data.yaml' in capsys.readouterr().out
    for n in range(4):
        photo(tmp_path / f'b/images/{FILE.format(n)}.png')
    assert same(tmp_path / 'b', masks)


# --- what the tools themselves write


def square(label, *corners):
    return dict(label=label, points=box(*corners), group_id=None, shape_type='polygon')


def labelme_file(name, *shapes, **changes):
    return (
        dict(
            version='5.4.1',
            flags={},
            shapes=list(shapes),
            imagePath=name,
            imageData=None,
            imageHeight=H,
            imageWidth=W,
        )
        | changes
    )


def labelme(root, n=3, **changes):
    for i in range(n):
        photo(root / f'p{i}.png')
        note(
            root / f'p{i}.json',
            labelme_file(
                f'p{i}.png',
                square('cup', 2, 2, 10, 10),
                square('_background_', 4, 4, 6, 6),
                square('cat', 8, 8, 12, 12),
                **changes,
            ),
        )
    return root


def test_labelme(tmp_path):
    found, names = masks_of(labelme(tmp_path))
    expected = np.zeros((H, W), np.uint8)
    expected[2:10, 2:10], expected[4:6, 4:6], expected[8:12, 8:12] = 2, 0, 1
    assert names == ['background', 'cat', 'cup'] and (found['p1'] == expected).all()
    report = check(tmp_path)
    assert report.ok and report.layout.kind == 'LabelMe outlines'
    assert 'images with outlines: 3' in str(report.layout.account)
    uses = {f.path: f.use for f in report.layout.files}
    assert uses == {f'p{i}.{e}': u for i in range(3) for e, u in (('png', 'image'), ('json', 'annotations'))}


def test_labelme_masks_groups_and_other_shapes(tmp_path):
    labelme(tmp_path)
    buffer = io.BytesIO()
    Image.fromarray(np.array([[255, 0], [255, 255]], np.uint8)).save(buffer, 'PNG')
    mask = dict(
        label='cat',
        points=[[22, 3], [24, 5]],
        shape_type='mask',
        mask=base64.b64encode(buffer.getvalue()).decode(),
    )
    pair = [square('cup', 0, 0, 2, 2) | dict(group_id=1), square('cup', 5, 0, 7, 2) | dict(group_id=1)]
    note(tmp_path / 'p0.json', labelme_file('p0.png', mask, *pair))
    note(
        tmp_path / 'p1.json',
        labelme_file('p1.png', *pair, dict(label='cat', points=[[1, 1], [5, 5]], shape_type='rectangle')),
    )
    report = check(tmp_path)
    assert [s.item.name for s in report.usable] == ['p0', 'p2']
    found, _ = masks_of(tmp_path)
    expected = np.zeros((H, W), np.uint8)
    expected[3, 22] = expected[4, 22:24] = 1
    expected[:2, :2] = expected[:2, 5:7] = 2
    assert (found['p0'] == expected).all()
    assert any(
        'p1.json shape 3 (rectangle)' in f.text and 'without an outline' in f.text for f in report.findings
    )


@pytest.mark.parametrize(
    'image_path', ['..\\images\\p0.png', '../images/p0.png', '../../elsewhere/p0.png', '']
)
def test_labelme_in_a_folder_of_its_own(tmp_path, image_path):
    for i in range(3):
        photo(tmp_path / f'images/p{i}.png')
        path = image_path.replace('p0', f'p{i}')
        note(tmp_path / f'labels/p{i}.json', labelme_file(path, square('cup', 2, 2, 10, 10)))
    assert len(masks_of(tmp_path)[0]) == 3


CVAT = '''<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>dog &amp; cat</name><color>#ff0000</color></label><label><name>cup</name></label>
<label><name>never used</name></label></labels></task></meta>{images}</annotations>'''
CVAT_IMAGE = '''<image id="{i}" name="sub/p{i}.png" width="24" height="16">
<polygon label="cup" source="manual" occluded="0" points="0.0,0.0;10.0,0.0;10.0,10.0;0.0,10.0"
 z_order="2"></polygon>
<mask label="dog &amp; cat" rle="0, 2, 1, 3" left="20" top="12" width="3" height="2" z_order="0"></mask>
<polygon label="dog &amp; cat" points="5,5;15,5;15,15;5,15" z_order="0"></polygon>
<tag label="cup"></tag>{more}</image>'''


def cvat_xml(n=3, more=''):
    return CVAT.format(images=''.join(CVAT_IMAGE.format(i=i, more=more) for i in range(n)))


@pytest.mark.parametrize('packed', [False, True])
def test_cvat_xml(tmp_path, packed):
    for i in range(3):
        photo(tmp_path / f'sub/p{i}.png')
    if packed:
        with zipfile.ZipFile(tmp_path / 'task.zip', 'w') as z:
            z.writestr('annotations.xml', cvat_xml())
    else:
        note(tmp_path / 'annotations.xml', cvat_xml())
    found, names = masks_of(tmp_path)
    expected = np.zeros((H, W), np.uint8)
    expected[5:15, 5:15], expected[:10, :10] = 1, 2
    expected[12, 20:22] = expected[13, 20:23] = 1
    assert names == ['background', 'dog & cat', 'cup'] and (found['p0'] == expected).all()
    assert find_layout(tmp_path).kind == 'CVAT outlines'


def test_cvat_boxes_leave_their_image_unlabeled(tmp_path):
    for i in range(3):
        photo(tmp_path / f'sub/p{i}.png')
    more = '<box label="cup" xtl="1" ytl="1" xbr="4" ybr="4" z_order="0"></box>'
    note(tmp_path / 'annotations.xml', cvat_xml(3).replace('</image></annot', f'{more}</image></annot'))
    report = check(tmp_path)
    assert [s.item.name for s in report.usable] == ['p0', 'p1']
    assert any('sub/p2.png' in f.text and 'without an outline' in f.text for f in report.findings)


def brush_region(inside, *labels):
    return dict(
        type='brushlabels',
        original_width=W,
        original_height=H,
        image_rotation=0,
        from_name='x',
        to_name='y',
        value=dict(format='rle', rle=encode_brush(inside), brushlabels=[*labels]),
    )


def percent_region(label, points):
    scaled = [[x * 100 / W, y * 100 / H] for x, y in points]
    return dict(
        type='polygonlabels',
        original_width=W,
        original_height=H,
        image_rotation=0,
        value=dict(points=scaled, closed=True, polygonlabels=[label]),
    )


def label_studio(image, *results, id=1, **more):
    return dict(
        id=id,
        data=dict(image=image),
        annotations=[dict(id=9, was_cancelled=False, result=[*results])],
        **more,
    )


@pytest.mark.parametrize(
    'address',
    [
        '/data/upload/3/0a1b2c3d-p%20{}.png',
        '/data/local-files/?d=photos/p%20{}.png',
        's3://bucket/x/p%20{}.png',
        's3://bucket[1]/x/p%20{}.png',
        'p {}.png',
    ],
)
def test_label_studio(tmp_path, address):
    inside = scene(1) == 1
    tasks = []
    for i in range(3):
        photo(tmp_path / f'photos/p {i}.png')
        rating = dict(type='choices', value=dict(choices=['good']))
        regions = [brush_region(inside, 'cup'), percent_region('cat', box(0, 0, 4, 4)), rating]
        tasks.append(label_studio(address.format(i), *regions, id=i))
    note(tmp_path / 'project.json', tasks)
    found, names = masks_of(tmp_path)
    expected = np.where(inside, 2, 0)
    expected[:4, :4] = 1
    assert names == ['background', 'cat', 'cup'] and (found['p 2'] == expected).all()


def test_label_studio_brush_png(tmp_path):
    inside = scene(2) == 1
    for i in range(3):
        photo(tmp_path / f'p{i}.png')
        Image.fromarray(inside.astype(np.uint8) * 255).save(
            tmp_path / f'task-{i + 5}-annotation-{i}-by-1-tag-red cup-0.png'
        )
    refused(lambda: check(tmp_path), 'task-5-annotation-0-by-1-tag-red cup-0.png', 'JSON export')
    note(
        tmp_path / 'tasks.json',
        [dict(id=i + 5, data=dict(image=f'/data/upload/1/0a1b2c3d-p{i}.png')) for i in range(3)],
    )
    found, names = masks_of(tmp_path)
    assert (
        names == ['background', 'red cup']
        and [*found] == ['p0', 'p1', 'p2']
        and (found['p1'] == inside).all()
    )


def test_a_task_with_two_annotations(tmp_path):
    labels = [brush_region(scene(0) == c, 'cup') for c in (1, 3)]
    for i in range(2):
        photo(tmp_path / f'p{i}.png')
    tasks = [label_studio(f'p{i}.png', labels[0], id=i) for i in range(2)]
    tasks[0]['annotations'].append(dict(result=[labels[1]]))
    note(tmp_path / 'project.json', tasks)
    refused(lambda: check(tmp_path), 'project.json task 0', '2 annotations', 'ground truth')
    tasks[0]['annotations'][1]['ground_truth'] = True
    note(tmp_path / 'project.json', tasks)
    assert (masks_of(tmp_path)[0]['p0'] == (scene(0) == 3)).all()


def yolo(root, names='names: [dog, "red, cup"]\nnc: 2\n', n=3, split='train'):
    for i in range(n):
        photo(root / f'{split}/images/p{i}.png')
        corners = np.array(box(2, 2, 10, 10)) / (W, H)
        note(
            root / f'{split}/labels/p{i}.txt',
            f'1 {" ".join(map(str, corners.ravel()))}\n0 0 0 0.1 0 0.1 0.2\n',
        )
    if names:
        note(root / 'data.yaml', names)
    return root


def test_yolo_with_splits_and_another_order_in_each(tmp_path):
    yolo(tmp_path, None)
    yolo(tmp_path, None, n=2, split='valid')
    note(tmp_path / 'train/data.yaml', 'names:\n  0: dog\n  1: red, cup\n')
    note(tmp_path / 'valid/data.yaml', 'names:\n- "red, cup"\n- dog\n')
    note(tmp_path / 'train/labels/p2.txt', '')
    report = check(tmp_path)
    assert report.mapping.names == ['background', 'dog', 'red, cup'] and report.layout.kind == 'YOLO outlines'
    found = {
        str(s.item.image.relative_to(tmp_path)): read_stored(s.item, s.size).values for s in report.usable
    }
    assert {str(i.image.relative_to(tmp_path)): i.split for i in report.layout.items if not i.has_mask} == {
        'train/images/p2.png': 'train'
    }
    train, val = (found[f'{split}/images/p0.png'] for split in ('train', 'valid'))
    assert (
        (train[2:10, 3:10] == 2).all()
        and (val[2:10, 3:10] == 1).all()
        and train[0, 0] == 1
        and val[0, 0] == 2
    )
    assert len(make_split(tmp_path, 2, report=report, progress=None).val) == 2


def test_yolo_of_an_upright_photograph(tmp_path):
    yolo(tmp_path)
    for i in range(3):
        photo(tmp_path / f'train/images/p{i}.png', (H, W), exif=6)  # shown as W x H
    report = check(tmp_path)
    assert (
        report.ok
        and {s.mask_size for s in report.usable} == {(W, H)}
        and all(s.turned for s in report.usable)
    )


def test_supervisely(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [255, 255]], np.uint8)).save(buffer, 'PNG')
    bitmap = dict(data=base64.b64encode(zlib.compress(buffer.getvalue())).decode(), origin=[20, 10])
    things = [
        dict(
            classTitle='cup',
            geometryType='polygon',
            points=dict(exterior=box(2, 2, 12, 12), interior=[box(4, 4, 8, 8)]),
        ),
        dict(classTitle='cat', geometryType='bitmap', bitmap=bitmap),
    ]
    note(tmp_path / 'meta.json', dict(classes=[dict(title='cup'), dict(title='cat')]))
    for i in range(3):
        photo(tmp_path / f'ds/img/p{i}.png')
        note(
            tmp_path / f'ds/ann/p{i}.png.json',
            dict(description='', tags=[], size=dict(height=H, width=W), objects=things),
        )
    found, names = masks_of(tmp_path)
    expected = np.zeros((H, W), np.uint8)
    expected[2:12, 2:12], expected[4:8, 4:8] = 1, 0
    expected[10, 21] = expected[11, 20:22] = 2
    assert names == ['background', 'cup', 'cat'] and (found['p0'] == expected).all()


def test_roboflow_masks(tmp_path):
    for split in ('train', 'valid'):
        for i in range(3):
            photo(tmp_path / f'{split}/{split}{i}.jpg')
            Image.fromarray(scene(0) % 4 % 3).save(tmp_path / f'{split}/{split}{i}_mask.png')
        note(tmp_path / f'{split}/_classes.csv', 'Pixel Value, Class\n0, background\n1, red cup\n2, cat\n')
    report = check(tmp_path)
    assert report.ok and report.mapping.names == ['background', 'red cup', 'cat']
    assert {f.use for f in report.layout.files if f.path.endswith('csv')} == {'classes'}
    note(tmp_path / 'valid/_classes.csv', 'Pixel Value, Class\n0, background\n1, cat\n2, red cup\n')
    refused(lambda: check(tmp_path), 'valid/_classes.csv', 'another order', 'train/_classes.csv')


def test_coco_with_a_dummy_category_and_ids_that_jump(tmp_path):
    for i in range(3):
        photo(tmp_path / f'p{i}.png')
    flat = [float(v) for xy in box(2, 2, 8, 8) for v in xy]
    content = dict(
        images=[dict(id=10 * i, file_name=f'p{i}.png', width=W, height=H) for i in range(3)],
        categories=[dict(id=0, name='things'), dict(id=7, name='cat'), dict(id=300, name='cup')],
        annotations=[
            dict(id=20 * i + c, image_id=10 * i, category_id=c, iscrowd=0, segmentation=[flat])
            for i in range(3)
            for c in (7, 300)
        ],
    )
    note(tmp_path / '_annotations.coco.json', content)
    assert masks_of(tmp_path)[1] == ['background', 'cat', 'cup']


# --- bad input


def test_two_tools_that_disagree_and_two_that_agree(tmp_path):
    labelme(tmp_path)
    flat = [float(v) for xy in box(2, 2, 10, 10) for v in xy]
    content = dict(
        images=[dict(id=1, file_name='p0.png', width=W, height=H)],
        categories=[dict(id=1, name='cup'), dict(id=2, name='cat')],
        annotations=[dict(id=1, image_id=1, category_id=1, segmentation=[flat])],
    )
    note(tmp_path / 'ann.json', content)
    refused(
        lambda: check(tmp_path), 'p0.png has other outlines in', 'ann.json', '*.json', 'keep one of the two'
    )
    (tmp_path / 'p0.json').unlink()
    report = check(tmp_path)
    assert report.layout.kind == 'COCO and LabelMe outlines' and len(report.usable) == 3


def test_masks_count_before_outlines_and_that_is_said(tmp_path):
    labelme(tmp_path / 'images')
    for i in range(3):
        (tmp_path / 'masks').mkdir(exist_ok=True)
        Image.fromarray(scene(0) % 4).save(tmp_path / f'masks/p{i}.png')
    report = check(tmp_path)
    assert report.layout.kind == 'folders'
    assert any('LabelMe JSON' in f.text and 'the masks count' in f.text for f in report.findings)


def test_images_that_are_missing(tmp_path):
    labelme(tmp_path)
    (tmp_path / 'p0.png').unlink()
    report = check(tmp_path)
    assert [f.file for f in report.errors] == ['p0.png'] and 'add it or take it out' in report.errors[0].text
    for i in (1, 2):
        (tmp_path / f'p{i}.png').unlink()
    photo(tmp_path / 'x.png')
    refused(lambda: check(tmp_path), '3 images (p0.png', 'of which none')


def test_polygons_outside_and_of_two_points(tmp_path):
    labelme(tmp_path)
    note(
        tmp_path / 'p0.json',
        labelme_file('p0.png', square('cup', -5, -5, 4, 4), square('cat', 20, 12, 99, 99)),
    )
    note(
        tmp_path / 'p1.json',
        labelme_file('p1.png', dict(label='cup', points=[[1, 1], [5, 5]], shape_type='polygon')),
    )
    note(tmp_path / 'p2.json', labelme_file('p2.png', square('cup', 90, 90, 99, 99)))
    labelme(tmp_path / 'more', 2)
    report = check(tmp_path)
    names = [s.item.name for s in report.usable]
    assert len(names) == 3 and 'p1' not in names and 'p2' not in names
    p0 = next(
        s for s in report.usable if s.item.image == tmp_path / 'p0.png' or s.item.image.parent == tmp_path
    )
    mask = map_ids(read_stored(p0.item, p0.size).values, report.mapping.table)
    assert (mask[:4, :4] == 2).all() and (mask[12:, 20:] == 1).all() and (mask > 0).sum() == 32
    texts = ' '.join(f.text for f in report.findings)
    assert 'enclose nothing' in texts and 'p1.json shape 1' in texts
    assert 'p2.json shape 1 (polygon) cannot be drawn, it lies outside of the image' in texts


def test_an_image_that_has_changed_since(tmp_path):
    labelme(tmp_path, 5)
    photo(tmp_path / 'p0.png', (W * 2, H * 2))
    photo(tmp_path / 'p1.png', (W, H * 2))
    report = check(tmp_path)
    assert any(f.file == 'p0.png' and 'its outlines are scaled' in f.text for f in report.findings)
    assert [f.file for f in report.errors] == ['p1.png'] and 'another shape' in report.errors[0].text
    assert 'restore the image' in report.errors[0].text


def test_changed_outlines_are_drawn_anew(tmp_path):
    convert_data(check(labelme(tmp_path)), progress=None)
    first = np.asarray(Image.open(tmp_path / 'prepared/masks/p0.png'))
    note(tmp_path / 'p0.json', labelme_file('p0.png', square('cat', 0, 0, 3, 3), square('cup', 5, 5, 9, 9)))
    convert_data(check(tmp_path), progress=None)
    second = np.asarray(Image.open(tmp_path / 'prepared/masks/p0.png'))
    assert (first != second).any() and (second > 0).sum() == 25
    assert (tmp_path / 'classes.txt').read_text().split()[0] == 'background'


@pytest.mark.parametrize(
    'bomb',
    [
        '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]><annotations>&y;</annotations>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>',
        '<!DOCTYPE annotations SYSTEM "http://127.0.0.1:9/x.dtd"><annotations/>',
    ],
)
def test_xml_bombs(tmp_path, bomb):
    photo(tmp_path / 'p0.png')
    note(tmp_path / 'annotations.xml', bomb)
    refused(lambda: check(tmp_path), 'annotations.xml', 'document type', 'export it again')


@pytest.mark.parametrize(
    'name', ['../evil.xml', '/etc/evil.xml', 'a/../../evil.xml', 'C:/evil.xml', '..\\evil.xml']
)
def test_zip_slip(tmp_path, name):
    root = tmp_path / 'data'
    photo(root / 'sub/p0.png')
    with zipfile.ZipFile(root / 'task.zip', 'w') as z:
        z.writestr('annotations.xml', cvat_xml())
        z.writestr(zipfile.ZipInfo(name), 'x')
    before = sorted(tmp_path.rglob('*'))
    refused(lambda: check(root), 'task.zip', 'leads outside', 'do not use this archive')
    assert sorted(tmp_path.rglob('*')) == before


def test_zip_bombs_and_broken_archives(tmp_path, monkeypatch):
    photo(tmp_path / 'p0.png')
    note(tmp_path / 'broken.zip', b'PK\x03\x04 and no more')
    refused(lambda: check(tmp_path), 'no readable mask')
    monkeypatch.setattr(annotations, '_MOST', 2**20)
    with zipfile.ZipFile(tmp_path / 'huge.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('annotations.xml', bytes(3 * 2**20))
    refused(lambda: check(tmp_path), 'huge.zip', '3 MB', 'unpack it')


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(shapes=7), ('p0.json', 'no list of shapes')),
        (dict(imageWidth='wide'), ('p0.json', "'wide'")),
        (dict(imageWidth=10**9), ('p0.json', 'correct width')),
        (dict(shapes=[square('', 0, 0, 3, 3)]), ('p0.json shape 1', 'no label')),
        (dict(shapes=[square(None, 0, 0, 3, 3)]), ('p0.json shape 1', 'no label')),
        (dict(shapes=[square('#1', 0, 0, 3, 3)]), ("'#1'", 'letters and digits')),
        (
            dict(shapes=[square('cup', 0, 0, 3, 3) | dict(shape_type='mask', mask='%')]),
            ('p0.json shape 1', 'mask cannot be read'),
        ),
        (dict(imagePath='../../p9.png'), ('p9.png', 'leaves the data folder')),
    ],
)
def test_faults_of_labelme(tmp_path, change, words):
    labelme(tmp_path)
    note(tmp_path / ('q.json' if 'imagePath' in change else 'p0.json'), labelme_file('p0.png') | change)
    refused(lambda: check(tmp_path), *words)


@pytest.mark.parametrize(
    'old, new, words',
    [
        ('label="cup" source', 'source', ('p0.png polygon 1', 'no label')),
        ('0.0,0.0;10.0', '0.0,abc;10.0', ('p0.png polygon 1', 'no numbers')),
        ('0, 2, 1, 3', '0, 2, 1', ('p0.png mask 2', '3x2')),
        ('0, 2, 1, 3', '0, -2, 8', ('mask 2', '3x2')),
        ('0, 2, 1, 3', ', '.join([str(2**62)] * 4 + ['6']), ('mask 2', '3x2')),
        ('"utf-8"', '"gbk"', ('annotations.xml', 'no complete XML', 'multi-byte')),
        ('"utf-8"', '"foo"', ('annotations.xml', 'no complete XML', 'foo')),
        ('left="20"', 'left="x"', ('mask 2', "'x'")),
        ('left="20"', 'left="99"', ('mask 2', 'covers no pixel')),
        ('</annotations>', '', ('annotations.xml', 'no complete XML')),
        ('<version>', '<track/><version>', ('of a video', 'CVAT for images 1.1')),
        ('name="sub/p0.png"', 'name="../sub/p0.png"', ('leaves the data folder',)),
    ],
)
def test_faults_of_cvat(tmp_path, old, new, words):
    for i in range(3):
        photo(tmp_path / f'sub/p{i}.png')
    note(tmp_path / 'annotations.xml', cvat_xml().replace(old, new, 1))
    refused(lambda: check(tmp_path), *words)


def stained(region, **change):
    return region | change


def wide(packed):
    "A brush mask whose values have 9 bits."
    bits = ''.join(f'{v:08b}' for v in packed)
    bits = bits[:32] + f'{8:05b}' + bits[37:53] + '111' + f'{4 * W * H - 1:016b}' + '1' * 9
    bits += '0' * (-len(bits) % 8)
    return [*int(bits, 2).to_bytes(len(bits) // 8, 'big')]


BRUSH = brush_region(scene(0) == 1, 'cup')


@pytest.mark.parametrize(
    'region, words',
    [
        (stained(BRUSH, image_rotation=90), ('region 1', 'rotated image')),
        (stained(BRUSH, original_width=None), ('region 1', 'size of its image')),
        (stained(BRUSH, original_width=W + 1), ('region 1', 'another size')),
        (
            stained(BRUSH, value=BRUSH['value'] | dict(rle=BRUSH['value']['rle'][:-30])),
            ('region 1', 'damaged'),
        ),
        (stained(BRUSH, value=BRUSH['value'] | dict(rle='abc')), ('region 1', 'damaged')),
        (stained(BRUSH, value=BRUSH['value'] | dict(rle=10**12)), ('region 1', 'damaged')),
        (
            stained(BRUSH, value=BRUSH['value'] | dict(rle=wide(BRUSH['value']['rle']))),
            ('region 1', 'damaged'),
        ),
        (
            stained(percent_region('cup', []), value=dict(points=[[10**400, 0]], polygonlabels=['cup'])),
            ('region 1', 'cannot be read'),
        ),
        (stained(BRUSH, value=BRUSH['value'] | dict(brushlabels=['a', 'b'])), ('region 1', '2 labels')),
        (stained(BRUSH, value=BRUSH['value'] | dict(brushlabels=[' '])), ('region 1', 'no label')),
    ],
)
def test_faults_of_label_studio(tmp_path, region, words):
    photo(tmp_path / 'p0.png')
    note(tmp_path / 'project.json', [label_studio('p0.png', region)])
    refused(lambda: check(tmp_path), 'project.json task 1', *words)


@pytest.mark.parametrize(
    'line, names, words',
    [
        ('2 0 0 1 0 1 1', 'names: [a, b]', ('p0.txt line 1', 'class 2', '2 are named')),
        ('0 0 0 1 0 1', 'names: [a, b]', ('p0.txt line 1', 'pairs of coordinates')),
        ('0 0 0 100 0 100 100', 'names: [a, b]', ('p0.txt line 1', 'fractions')),
        ('0 0 0 1 0 1 nan', 'names: [a, b]', ('p0.txt line 1',)),
        ('0 0 0 1 0 1 1', 'names: {0: a, 2: b}', ('data.yaml', '`names` cannot be read')),
        (
            '0 0 0 1 0 1 1',
            'names: !!python/object/apply:os.system [ls]',
            ('data.yaml', '`names` cannot be read'),
        ),
        ('0 0 0 1 0 1 1', 'names: ["a\\q", b]', ('data.yaml', '`names` cannot be read')),
        ('0 0 0 1 0 1 1', 'names:\n- "a\\U00110000"\n- b', ('data.yaml', '`names` cannot be read')),
        ('0 0 0 1 0 1 1', f'names:\n  {"9" * 5000}: a', ('data.yaml', '`names` cannot be read')),
        ('0 0 0 1 0 1 1', 'nc: 2', ('train/labels', 'add data.yaml')),
    ],
)
def test_faults_of_yolo(tmp_path, line, names, words):
    yolo(tmp_path, names)
    note(tmp_path / 'train/labels/p0.txt', line)
    refused(lambda: check(tmp_path), *words)


@pytest.mark.parametrize(
    'text, name',
    [
        (r'"caf\xE9"', 'caf\u00e9'),  # as yaml.dump writes it
        (r'"\U0001F600"', '\U0001f600'),
        (r'"\ud83d\ude00"', '\U0001f600'),  # as json.dumps writes it
        (r'"a\_b"', 'a\u00a0b'),
        (r'"a\\xE9"', r'a\xE9'),
        (r"'a\xE9'", r'a\xE9'),
        (r'"a\"b\/"', 'a"b/'),
    ],
)
def test_escapes_in_names_of_yolo(text, name):
    for form in (f'names:\n- {text}\n- b', f'names: [{text}, b]', f'names:\n  0: {text}\n  1: b'):
        assert annotations._yaml_names(form, 'data.yaml') == [name, 'b']


def test_faults_of_supervisely(tmp_path):
    photo(tmp_path / 'ds/img/p0.png')
    for points in (
        box(2, 2, 12, 12),
        dict(exterior=[[10**400, 0], [1, 1], [2, 0]]),
        dict(exterior=[[float('nan'), 0], [1, 1], [2, 0]]),
        dict(exterior=box(2, 2, 12, 12), interior=5),
    ):
        things = [dict(classTitle='cup', geometryType='polygon', points=points)]
        note(tmp_path / 'ds/ann/p0.png.json', dict(size=dict(height=H, width=W), objects=things))
        refused(lambda: check(tmp_path), 'p0.png.json object 1 (polygon)', 'its points are no')


def test_numbers_too_long_for_python(tmp_path):
    labelme(tmp_path)
    note(tmp_path / 'p0.json', labelme_file('p0.png', square('cup', 10**400, 0, 3, 3)))
    report = check(tmp_path)
    assert [f.file for f in report.errors] == ['p0.png'] and 'not numbers' in report.errors[0].text
    refused(lambda: annotations._labelmap(f'a:{"9" * 5000},0,0::', 'labelmap.txt'), 'labelmap.txt line 1')


JUNK_WORDS = (
    '', '0', '1', '0.5', 'cup', '-1', '9' * 5000, '1e400', 'nan', '1_1', '\u0663', '\0', '\n', '"', '\\x',
    '&#0;', '[', '//[', 'x' * 300)  # fmt: skip


def damage_text(rng, text):
    "A text with one to three numbers, words or marks replaced or dropped, perhaps cut off; bytes."
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice((r'[\d.]+', r'[\d.]+', r'[\w.]+', r'[^\w\s]'))
        start, end = rng.choice([m.span() for m in re.finditer(kind, text)] or [(0, 0)])
        text = text[:start] + rng.choice(JUNK_WORDS) + text[end:]
    if rng.random() < 0.1:
        text = text[: rng.randrange(len(text) + 1)]
    return text.encode()


def broken(rng, content):
    "A text, or JSON content, with some damage; bytes."
    if isinstance(content, str):
        return damage_text(rng, content)
    return mutate(rng, json.loads(json.dumps(content)))


def sound_files():
    "{name of the tool: (files of texts or JSON contents, the images)} of sound folders."
    bitmap = io.BytesIO()
    Image.fromarray(np.full((2, 2), 255, np.uint8)).save(bitmap, 'PNG')
    packed = base64.b64encode(zlib.compress(bitmap.getvalue())).decode()
    inner = base64.b64encode(bitmap.getvalue()).decode()
    mask = dict(label='cat', points=[[2, 3], [4, 5]], shape_type='mask', mask=inner)
    things = [
        dict(classTitle='cup', geometryType='polygon', points=dict(exterior=box(2, 2, 9, 9), interior=[])),
        dict(classTitle='cat', geometryType='bitmap', bitmap=dict(data=packed, origin=[2, 3])),
    ]
    task = label_studio('/data/upload/p0.png', BRUSH, percent_region('cat', box(1, 1, 9, 9)))
    outlined = dict(size=dict(height=H, width=W), objects=things)
    return {
        'labelme': ({'p0.json': labelme_file('p0.png', square('cup', 2, 2, 9, 9), mask)}, 'p0.png'),
        'cvat': ({'annotations.xml': cvat_xml(1)}, 'sub/p0.png'),
        'labelstudio': ({'project.json': [task]}, 'p0.png'),
        'yolo': (
            {'labels/p0.txt': '1 0 0 0.1 0 0.1 0.2\n' * 4, 'data.yaml': 'names: ["a", \'b\', c]\n'},
            'images/p0.png',
        ),
        'supervisely': (
            {'ds/ann/p0.png.json': outlined, 'meta.json': dict(classes=[dict(title='cup')])},
            'ds/img/p0.png',
        ),
    }


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('tool', ['labelme', 'cvat', 'labelstudio', 'yolo', 'supervisely'])
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path, tool):
    rng = random.Random(tool)
    files, image = sound_files()[tool]
    photo(tmp_path / image)
    n_read = 0
    for _ in range(N_DAMAGED):
        for name, content in files.items():
            note(tmp_path / name, content)
        name = rng.choice([*files])
        raw = broken(rng, files[name])
        note(tmp_path / name, raw)
        try:
            report = check(tmp_path)
        except DataError as e:
            assert '\n' not in str(e), raw
            assert any(where in str(e) for where in (str(tmp_path), *files)), (str(e), raw)
        else:
            n_read += 1
            assert all('\n' not in f.text for f in report.findings), raw
    assert n_read > N_DAMAGED // 20


@pytest.mark.filterwarnings('ignore')
def test_damaged_archives_are_read_or_refused_in_one_line(tmp_path):
    rng = np.random.default_rng(0)
    write('cvat', tmp_path, [scene(0)])
    path = next(tmp_path.glob('*.zip'))
    sound = path.read_bytes()
    for _ in range(N_DAMAGED):
        path.write_bytes(damage(sound, rng))
        try:
            check(tmp_path)
        except DataError as e:
            assert '\n' not in str(e) and str(tmp_path) in str(e), repr(e)


def test_classes_of_yolo_under_the_name_of_ours(tmp_path):
    yolo(tmp_path, None)
    note(tmp_path / 'classes.txt', 'dog\nred cup\n')
    refused(lambda: check(tmp_path), 'rename', 'classes.txt')
    (tmp_path / 'classes.txt').rename(tmp_path / 'obj.names')
    assert masks_of(tmp_path)[1] == ['background', 'dog', 'red cup']


# --- writing


def test_what_cannot_be_written_is_refused(tmp_path):
    refused(lambda: open_annotations('cvat', tmp_path, ['background', 'a:b'], COLORS), "'a:b'", 'colon')
    refused(lambda: open_annotations('coco', tmp_path, ['a', 'a '], COLORS), 'two classes')
    refused(lambda: open_annotations('coco', tmp_path, ['background', 'ignore'], COLORS), 'ignored pixels')
    with pytest.raises(ValueError, match='tolerance=-1'):
        open_annotations('coco', tmp_path, NAMES, COLORS, -1)
    for tool in TOOLS:
        writer = open_annotations(tool, tmp_path / tool, NAMES, COLORS)
        for image in ('../p.png', '/tmp/p.png', 'a/../../p.png'):
            refused(lambda: writer.add(image, scene(0)), 'leaves the folder')
        refused(lambda: writer.add('p\nq.png', scene(0)), r"'p\nq.png'", 'rename the file')
        refused(lambda: writer.add('p.png', scene(0) * 0 + 9), 'class id 9')
    assert [*tmp_path.iterdir()] == []


def test_a_folder_is_not_overwritten(tmp_path):
    refused(
        lambda: convert_annotations(labelme(tmp_path), tmp_path, 'labelme', quiet=True),
        'the data folder itself',
    )


def test_names_are_escaped(tmp_path):
    write('labelstudio', tmp_path, [scene(0)])
    view = (tmp_path / 'labelstudio.xml').read_text()
    assert '<b>' not in view and '&lt;b&gt;' in view
    write('yolo', tmp_path / 'y', [scene(0)], names=['background', 'a: b', 'c # d', 'e"\n- f'])
    assert masks_of_names(tmp_path / 'y') == ['a: b', 'c # d', 'e" - f']


def masks_of_names(root):
    from corrmatch.data.annotations import _yaml_names

    return _yaml_names((root / 'data.yaml').read_text(), 'data.yaml')[:3]


def test_the_command_line_offers_the_same_tools():
    assert get_args(cli._Tool) == TOOLS


# --- predictions


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
    from corrmatch.training.trainer import Trainer
    from corrmatch.use.predict import load
    from runs_for_tests import small

    folder = tmp_path_factory.mktemp('annotations') / 'run'
    Trainer(small(folder, steps=2, eval_every=2, toy_labeled=4), quiet=True).fit()
    return load(folder, device='cpu')


@pytest.mark.parametrize('tool', TOOLS)
def test_predictions_go_to_every_tool(tmp_path, opened, tool):
    from corrmatch.use.predict import predict_files

    photo(tmp_path / 'in/sub/a.png', (40, 33))
    photo(tmp_path / 'in/b.png', (40, 33), exif=6)
    done = predict_files(opened, [tmp_path / 'in'], tmp_path / 'out', quiet=True, annotations=tool)
    assert done.annotations.exists() and f'for the annotation tool: {done.annotations}' in done.text
    assert tmp_path / 'out/annotations' in (done.annotations, done.annotations.parent)


def test_predictions_and_pseudo_labels_come_back(tmp_path, opened):
    from corrmatch.use.predict import predict_files, pseudo_files

    for n in range(3):
        photo(tmp_path / f'in/{n}.png', (40, 33))
    predict_files(opened, [tmp_path / 'in'], tmp_path / 'out', quiet=True, annotations='coco')
    done = pseudo_files(
        opened, [tmp_path / 'in'], tmp_path / 'pseudo', tau=0.3, quiet=True, annotations='labelme'
    )
    for kind, folder in (
        (tmp_path / 'out/masks', tmp_path / 'out/annotations'),
        (tmp_path / 'pseudo/region', done.annotations),
    ):
        for n in range(3):
            photo(folder / f'{n}.png', (40, 33))
        layout = find_layout(folder)
        place = {name: n for n, name in enumerate(layout.classes[0])}
        table = np.array(
            [place.get(name, 0) for name in opened.names] + [0] * (255 - len(opened.names)) + [255], np.uint8
        )
        for item in layout.items:
            wanted = table[np.asarray(Image.open(kind / f'{item.name}.png'))]
            found = read_stored(item).values if item.has_mask else np.zeros((33, 40))
            assert (found == wanted).all()


def test_videos_are_refused(tmp_path, opened):
    from corrmatch.use.predict import predict_files

    note(tmp_path / 'in/clip.mp4', b'x')
    refused(
        lambda: predict_files(opened, [tmp_path / 'in'], tmp_path / 'out', quiet=True, annotations='coco'),
        'clip.mp4',
        'annotation tools take images',
    )
    assert not (tmp_path / 'out').exists()
