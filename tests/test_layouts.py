"""What every file of a folder counts as: images, masks, visualisations, our own outputs, annotations of other
tools; names in odd spellings."""
import importlib
import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image, features

from corrmatch.config import preset
from corrmatch.data.folders import _OUTPUT_MARK, mark_output, read_classes, read_split
from corrmatch.data.layouts import file_table, _find_classes, find_layout
from corrmatch.data.masks import Meaning
from corrmatch.use.predict import LoadedModel, find_inputs
from corrmatch.data.check import check_data, _report_json, report_text, save_report
from corrmatch.data.settings import _numbers, rehearse
from corrmatch.data.split import make_split
from corrmatch.data.shards import _list_folder, _open_list
from corrmatch.training.builders import make_model
from errors_for_tests import refused


def scene(i, kind='image'):
    "An image (24,32,3), a mask (24,32) of ids 0..2, or the mask in colours."
    rng = np.random.default_rng(i)
    mask = np.zeros((24, 32), np.uint8)
    mask[4:14, 4:20] = 1
    mask[10:20, 12+i % 8:30] = 2
    if kind == 'mask':
        return mask
    paint = np.array([[60, 90, 60], [200, 60, 50], [50, 60, 200]], np.uint8)[mask]
    return paint if kind == 'color' else (paint + rng.integers(0, 40, paint.shape)).astype(np.uint8)


def put(path, i=0, kind='image'):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(i, kind)).save(path)
    return path


def wrote(path, text='x'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def fill(root, image='images/p{}.jpg', mask='masks/p{}.png', n=6, n_masks=None):
    for i in range(n):
        put(root/image.format(i), i)
        if i < (n if n_masks is None else n_masks):
            put(root/mask.format(i), i, 'mask')
    return root


def pairs(root, **options):
    found = find_layout(root, **options).items
    return {
        i.image.relative_to(root).as_posix(): i.mask and i.mask.relative_to(root).as_posix() for i in found}


def uses(layout): return {f.path: f.use for f in layout.files}


def remarks(layout, kind):
    return [(level, file, text) for level, k, file, text in layout.remarks if k == kind]


def adds_up(root, layout):
    on_disk = sorted(p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file())
    assert [f.path for f in layout.files] == on_disk
    assert sum(n for _, n, *_ in file_table(layout)) == len(on_disk)


def check(root, **options): return check_data(root, progress=None, **options)


# --- layouts: an image and its mask, in many ways

LAYOUTS = [
    ('images/p{}.jpg', 'masks/p{}.png'), ('img_dir/train/p{}.jpg', 'ann_dir/train/p{}.png'),
    ('images/p{}.jpg', 'masks/p{}.jpg.png'), ('images/p{}.jpg', 'masks/mask_p{}.png'),
    ('images/p{}.jpg', 'masks/p{}_Mask.png'), ('images/p{}.jpg', 'masks/p{}_MASK.png'),
    ('images/p{}.jpg', 'labels_png/p{}.png'), ('images/image_{}.jpg', 'gt/gt_{}.png'),
    ('images/IMG_{}.JPG', 'masks/img_{}.png'), ('images/img{:03}.jpg', 'masks/mask{}.png'),
    ('training/image_2/00{}_10.png', 'training/semantic/00{}_10.png'),
    ('ds0/img/p{}.jpg', 'ds0/masks_machine/p{}.jpg.png'), ('train_images/p{}.jpg', 'train_masks/p{}.png'),
    ('images_train/p{}.jpg', 'masks_train/p{}.png'), ('imgs/p{}.jpg', 'Labels/p{}.png'),
    ('p{}.jpg', 'p{}.jpg.png'), ('p{}.jpg', 'mask_p{}.png'), ('image_1/p{}.jpg', 'gt_1/p{}.png'),
    ('p{}.jpg', 'p{}_color.png'), ('JPEGImages/p{}.jpg', 'SegmentationClassPNG/p{}.png'),
    ('images/p{}.jpg', 'RGB_color_image_masks/p{}.png'),
    ('training/images/2{}_training.tif', 'training/1st_manual/2{}_manual1.png'),
    ('Image_0{}L.jpg', 'Image_0{}L_1stHO.png'), ('Original/p{}.png', 'Ground_Truth/p{}.png'),
    ('images/caf\u00e9{}.jpg', 'masks/cafe\u0301{}.png')]


@pytest.mark.parametrize(
    'image, mask', LAYOUTS, ids=[f'{a} {b}'.encode('ascii', 'replace').decode() for a, b in LAYOUTS])
def test_pairs_of_usual_names(tmp_path, image, mask):
    fill(tmp_path, image, mask, n=4)
    layout = find_layout(tmp_path)
    assert pairs(tmp_path) == {image.format(i): mask.format(i) for i in range(4)}
    adds_up(tmp_path, layout)


@pytest.mark.parametrize(
    'image, mask', [('images/train_{}.jpg', 'masks/test_{}.png'), ('images/a{}.jpg', 'masks/b{}.png')])
def test_names_that_are_no_pair(tmp_path, image, mask):
    fill(tmp_path, image, mask, n=3)
    refused(lambda: find_layout(tmp_path), image.format(0), mask.format(0), 'no name pairs')


def test_what_was_paired_by_less_than_the_name_is_said(tmp_path):
    layout = find_layout(fill(tmp_path, 'images/image_{}.jpg', 'gt/gt_00{}.png', n=3))
    (level, file, text), = remarks(layout, 'names')
    assert (
        (level, file) == ('warning', 'images/image_0.jpg')
        and 'gt/gt_000.png' in text
        and 'paired so: 3' in text)


def test_ambiguous_cores_stay_apart(tmp_path):
    fill(tmp_path, n=2)
    for name in ('images/a_7.jpg', 'images/A-07.jpg'):
        put(tmp_path/name)
    put(tmp_path/'masks/a7.png', 7, 'mask')
    assert [p.name for p in find_layout(tmp_path).orphan_masks] == ['a7.png']


def test_kitti_with_both_cameras_and_colours(tmp_path):
    fill(tmp_path, 'training/image_2/{}_10.png', 'training/semantic/{}_10.png', n=3)
    fill(tmp_path, 'training/image_3/{}_10.png', 'training/semantic_rgb/{}_10.png', n=3)
    assert {k: v for k, v in pairs(tmp_path).items() if v} == {
        f'training/image_2/{i}_10.png': f'training/semantic/{i}_10.png' for i in range(3)}
    assert uses(find_layout(tmp_path))['training/semantic_rgb/0_10.png'] == 'visualisation'


def test_supervisely(tmp_path):
    fill(tmp_path, 'ds/img/p{}.jpg', 'ds/masks_machine/p{}.jpg.png', n=3)
    for i in range(3):
        put(tmp_path/f'ds/masks_human/p{i}.jpg.png', i)
        wrote(tmp_path/f'ds/ann/p{i}.jpg.json', '{"description": "", "tags": [], "objects": []}')
    layout = find_layout(tmp_path)
    assert all(i.mask.parent.name == 'masks_machine' for i in layout.items) and len(layout.items) == 3
    assert (
        uses(layout)['ds/masks_human/p0.jpg.png'] == 'visualisation'
        and uses(layout)['ds/ann/p0.jpg.json'] == 'annotations')


# --- masks in two folders

def test_two_folders_of_masks(tmp_path):
    fill(tmp_path)
    for i in range(6):
        put(tmp_path/f'labels/p{i}.png', i+1, 'mask')
    refused(lambda: find_layout(tmp_path), 'masks/p0.png', 'labels/p0.png', '--masks masks', '--masks labels')
    for folder in ('masks', 'labels'):
        assert set(pairs(tmp_path, masks=folder).values()) == {f'{folder}/p{i}.png' for i in range(6)}
    layout = find_layout(tmp_path, masks='labels')
    assert uses(layout)['masks/p0.png'] == 'other mask' and len(layout.items) == 6
    adds_up(tmp_path, layout)
    refused(
        lambda: find_layout(tmp_path, masks='truth'), "masks='truth'", 'no file lies in a folder of that name'
    )


def test_masks_in_a_folder_of_any_name(tmp_path):
    fill(tmp_path, 'images/p{}.jpg', 'by_anna/v2/p{}.png')
    assert set(pairs(tmp_path, masks='by_anna/v2').values()) == {f'by_anna/v2/p{i}.png' for i in range(6)}


def test_voc_keeps_its_order(tmp_path):
    fill(tmp_path, 'JPEGImages/p{}.jpg', 'SegmentationClass/p{}.png')
    for i in range(6):
        put(tmp_path/f'SegmentationClassAug/p{i}.png', i, 'mask')
    assert {v.split('/')[0] for v in pairs(tmp_path).values()} == {'SegmentationClassAug'}


def test_drive_has_fields_of_view_and_a_second_annotator(tmp_path):
    fill(tmp_path, 'training/images/2{}_training.tif', 'training/1st_manual/2{}_manual1.png', n=3)
    for i in range(3):
        put(tmp_path/f'training/mask/2{i}_training_mask.gif', i, 'mask')
        put(tmp_path/f'training/2nd_manual/2{i}_manual2.png', i, 'mask')
        put(tmp_path/f'test/images/0{i}_test.tif', i)
        put(tmp_path/f'test/mask/0{i}_test_mask.gif', i, 'mask')
    layout = find_layout(tmp_path)
    assert (
        sorted(i.name for i in layout.items if i.mask) == [f'2{i}_training' for i in range(3)]
        and len(layout.items) == 6)
    found = uses(layout)
    assert (
        found['test/mask/00_test_mask.gif'] == 'visualisation'
        and found['training/2nd_manual/20_manual2.png'] == 'other mask')
    adds_up(tmp_path, layout)


# --- several masks an image

@pytest.mark.parametrize(
    'names',
    [
        ('masks/p{}_cat.png', 'masks/p{}_dog.png'), ('masks/cat/p{}.png', 'masks/dog/p{}.png'),
        ('masks/p{}-0.png', 'masks/p{}-1.png')])
def test_one_mask_a_class(tmp_path, names):
    for i in range(3):
        put(tmp_path/f'images/p{i}.jpg', i)
        for name in names:
            put(tmp_path/name.format(i), i, 'mask')
    refused(
        lambda: find_layout(tmp_path), names[0].format(0), names[1].format(0), 'one mask a class', 'merge')


def test_further_masks_make_an_image_unlabeled(tmp_path):
    fill(tmp_path, 'b ({}).png', 'b ({})_mask.png', n=4)
    put(tmp_path/'b (2)_mask_1.png', 2, 'mask')
    layout = find_layout(tmp_path)
    assert {i.name: i.has_mask for i in layout.items} == {
        'b (0)': True, 'b (1)': True, 'b (2)': False, 'b (3)': True}
    assert remarks(layout, 'further mask')[0][:2] == ('error', 'b (2)_mask_1.png')
    adds_up(tmp_path, layout)


def test_folders_below_the_masks_are_no_classes(tmp_path):
    for i, name in enumerate(('cat', 'cat', 'dog', 'dog')):
        put(tmp_path/f'images/p{i}.jpg', i)
        put(tmp_path/f'masks/{name}/p{i}.png', i, 'mask')
    assert 'masks/cat and masks/dog' in remarks(find_layout(tmp_path), 'classes')[0][2]


# --- visualisations

VISUAL = [
    'overlays/p{}.jpg', 'vis/p{}.png', 'visualization/p{}.png', 'masks_color/p{}.png', 'color_masks/p{}.png',
    'labels_vis/p{}.png', 'SegmentationClassVisualization/p{}.jpg', 'predictions/p{}.png',
    'preds/deep/p{}.png', 'images/p{}_overlay.png', 'images/p{}_vis.png', 'images/p{}_pred.png',
    'images/p{}_prob.png', 'images/p{}-overlay.jpg', 'p{}_parts_1.png', 'depth/p{}.png', 'FOV/p{}.png',
    'images/p{}_FOV.png', 'masks/p{}_color.png', 'out/p{}_prediction.png']


@pytest.mark.parametrize('name', VISUAL)
def test_visualisations_are_no_images(tmp_path, name):
    fill(tmp_path, n=6, n_masks=4)
    for i in range(6):
        put(tmp_path/name.format(i), i, 'color')
    layout = find_layout(tmp_path)
    assert (
        pairs(tmp_path) == {f'images/p{i}.jpg': f'masks/p{i}.png' if i < 4 else None for i in range(6)}
        if 'depth' not in name
        else len([i for i in layout.items if i.mask]) == 4)
    assert uses(layout)[name.format(1)] == 'visualisation' and remarks(layout, 'visualisation')
    assert '--include' in remarks(layout, 'visualisation')[0][2]
    adds_up(tmp_path, layout)
    again = find_layout(tmp_path, include=[name.replace('{}', '*')])
    assert len(again.items) == 12 and {
        i.image.relative_to(tmp_path).as_posix() for i in again.items if not i.mask
    } >= {name.format(i) for i in range(6)}


def test_split_lists_no_visualisation(tmp_path):
    fill(tmp_path, n=8)
    for i in range(8):
        put(tmp_path/f'previews/p{i}.jpg', i+50)
        put(tmp_path/f'seg_colored/p{i}.png', i, 'color')
    split = make_split(tmp_path, 3, progress=None)
    assert {
        line.split('/')[0] for line in (tmp_path / split.files['unlabeled']).read_text().splitlines()
    } == {'images'}
    assert (
        len(
            make_split(
                tmp_path, 3, out=tmp_path / 'lists', progress=None, meaning=Meaning(include=('previews/*',))
            ).unlabeled)
        == len(split.unlabeled) + 8)


@pytest.mark.parametrize(
    'name',
    [
        'images/holiday_color_fest.jpg', 'images/p7_night.jpg', 'camera_b/p7.jpg', 'unlabeled/p1.jpg',
        'extra/p2.jpg', 'images/overlay.jpg', 'images/x_overlay.jpg', 'color/p9.jpg'])
def test_images_that_only_look_like_it(tmp_path, name):
    fill(tmp_path)
    put(tmp_path/name, 9)
    assert name in pairs(tmp_path)


def test_masks_in_colours_count_where_there_are_no_others(tmp_path):
    fill(tmp_path, mask='labels_colored/p{}.png')
    assert set(pairs(tmp_path).values()) == {f'labels_colored/p{i}.png' for i in range(6)}


# --- our own outputs

def test_reports_and_runs_inside_of_the_data(tmp_path):
    fill(tmp_path)
    save_report(check(tmp_path), tmp_path/'runs/check_d')
    assert (tmp_path/'runs/check_d'/_OUTPUT_MARK).is_file()
    put(tmp_path/'runs/old/pictures/000100.png')
    wrote(tmp_path/'runs/old/config.json', '{}')
    wrote(tmp_path/'runs/old/metrics.csv')   # an older version: no mark
    put(tmp_path/'shares.png')
    wrote(tmp_path/'report.json', '{}')
    wrote(tmp_path/'report.html')                                       # written into the data folder itself
    put(tmp_path/'clean/images/p0.jpg')
    wrote(tmp_path/'clean/mapping.json', '[]')
    layout = find_layout(tmp_path)
    assert set(pairs(tmp_path)) == {f'images/p{i}.jpg' for i in range(6)}
    found = uses(layout)
    for path in (
        'runs/check_d/shares.png', 'runs/old/pictures/000100.png', 'shares.png', 'clean/images/p0.jpg'):
        assert found[path] == 'own output', path
    assert {level for level, *_ in remarks(layout, 'own output')} == {'warning'}
    adds_up(tmp_path, layout)


@pytest.mark.parametrize(
    'names',
    [
        ('index.html', 'table.csv', 'masks/p0.png', 'overlays/p0.jpg', 'confidence/p0.png'),
        ('index.html', 'shares.csv', 'weak/p0.png', 'region/p0.png')])
@pytest.mark.parametrize('marked', [True, False])
def test_predictions_inside_of_the_data(tmp_path, names, marked):
    fill(tmp_path)
    if marked:
        mark_output(tmp_path/'out', 'predictions')
    for name in names:
        put(tmp_path/'out'/name, 1, 'mask') if name.endswith(('png', 'jpg')) else wrote(tmp_path/'out'/name)
    layout = find_layout(tmp_path)
    assert len(layout.items) == 6 and all(uses(layout)[f'out/{n}'] == 'own output' for n in names)


def test_a_folder_with_data_gets_no_mark(tmp_path):
    mark_output(fill(tmp_path)/'images', 'report')
    assert not (tmp_path/'images'/_OUTPUT_MARK).exists() and len(find_layout(tmp_path).items) == 6


def test_a_second_check_after_a_split_says_nothing_of_prepared(tmp_path):
    fill(tmp_path)
    for i in range(6):
        Image.fromarray((scene(i, 'mask') > 0).astype(np.uint8)*255).save(tmp_path/f'masks/p{i}.png')
    make_split(tmp_path, 2, progress=None)
    layout = find_layout(tmp_path)
    assert (tmp_path/'prepared').is_dir() and len(layout.items) == 6 and not remarks(layout, 'own output')
    adds_up(tmp_path, layout)


# --- a folder as unlabeled set follows the same rule

def test_folder_of_unlabeled_images(tmp_path, monkeypatch, heard):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    root = fill(tmp_path/'d', n=3)
    for name in (
        'overlays/p0.jpg', 'images/p0_overlay.png', 'images/p0.png', 'images/p1_mask.png', 'images/ok_7.jpg',
        'prepared/images/p0.png'):
        put(root/name)
    save_report(check_data(fill(tmp_path/'e'), progress=None), root/'runs/check')
    names = _list_folder(root)[:]
    assert names == ['images/ok_7.jpg', 'images/p0.jpg', 'images/p1.jpg', 'images/p2.jpg']
    assert 'masks, visualisations or outputs are no images' in ' '.join(heard)
    assert _list_folder(root/'overlays')[:] == ['p0.jpg']      # named itself: the user's word


# --- what is not read is named

@pytest.mark.parametrize(
    'name, word',
    [
        ('images/a.heic', 'HEIC'), ('images/a.HEIF', 'HEIC'), ('b.CR2', 'raw photograph'),
        ('images/c.dng', 'raw photograph'), ('d.svg', 'vectors'), ('e.psd', 'image editor'),
        ('scans/f.dcm', 'medical'), ('scans/g.nii.gz', 'medical'), ('h.jxl', 'JPEG XL')])
def test_formats_that_are_not_read(tmp_path, name, word):
    wrote(fill(tmp_path)/name)
    layout = find_layout(tmp_path)
    (level, file, text), = remarks(layout, 'unsupported')
    assert (level, file) == ('warning', name) and word in text
    adds_up(tmp_path, layout)
    assert word in report_text(check(tmp_path))


def test_nothing_but_heic(tmp_path):
    for i in range(3):
        wrote(tmp_path/f'images/{i}.heic')
    refused(lambda: find_layout(tmp_path), 'images/0.heic', 'HEIC', '3')


@pytest.mark.skipif(not features.check('avif'), reason='this Pillow has no AVIF')
def test_avif_is_read_through_copies(tmp_path):
    fill(tmp_path)
    Image.fromarray(scene(9)).save(tmp_path/'images/new.avif')
    layout = find_layout(tmp_path)
    assert 'images/new.avif' in pairs(tmp_path) and 'AVIF' in next(
        f.why for f in layout.files if f.path.endswith('avif'))
    assert make_split(tmp_path, 2, progress=None).unlabeled.count('new') == 1


EMPTY = '{"version": "5.0", "flags": {}, "shapes": [], "imagePath": "p.jpg"}'
NOTES = {  # file, its text, and words of the answer
    'labelme': ('images/p{}.json', EMPTY, ('LabelMe outlines', '--unannotated background')),
    'yolo': ('labels/p{}.txt', '0 0.1 0.1 0.5 0.1 0.5 0.5\n', ('labels: outlines of YOLO', 'add data.yaml')),
    'yolo boxes': (
        'labels/p{}.txt', '0 0.1 0.1 0.5 0.1\n1 .5 .5 1 1', ('YOLO text (boxes)', 'boxes are no outlines')),
    'via': (
        'via_region_data.json', '{"p0.jpg1": {"filename": "p0.jpg", "size": 1, "regions": []}}',
        ('VIA JSON', 'COCO format')),
    'via csv': ('via.csv', 'filename,file_size,region_shape_attributes\n', ('VIA CSV', 'COCO format')),
    'cvat': (
        'annotations.xml', '<?xml version="1.0"?><annotations><version>1.1</version></annotations>',
        ('annotations.xml: names no image', 'export it again')),
    'cityscapes': (
        'gtFine/train/ulm/p{}_gtFine_polygons.json', '{}', ('Cityscapes', 'csCreateTrainIdLabelImgs')),
    'panoptic': (
        'panoptic.json', json.dumps(dict(images=[], annotations=[dict(segments_info=[])])),
        ('panoptic', 'panoptic2semantic_segmentation.py')),
    'voc': (
        'Annotations/p{}.xml', '<annotation><folder/></annotation>', ('VOC XML', 'boxes are no outlines'))}


@pytest.mark.parametrize('case', NOTES)
def test_annotations_without_masks_are_named(tmp_path, case):
    name, text, words = NOTES[case]
    for i in range(3):
        put(tmp_path/f'images/p{i}.jpg', i)
        wrote(tmp_path/name.format(i), text)
    message = refused(lambda: check(tmp_path), *words)
    assert 'masks/' not in message


def test_arrays_as_masks_are_named(tmp_path):
    for i in range(3):
        put(tmp_path/f'images/p{i}.jpg', i)
        wrote(tmp_path/f'masks/p{i}.npy')
    refused(lambda: check(tmp_path), 'masks/p0.npy', 'PNG of class ids')


def test_outlines_beside_masks_are_said(tmp_path):
    for i in range(6):
        wrote(fill(tmp_path)/f'images/p{i}.json', EMPTY)
    (level, _, text), = remarks(find_layout(tmp_path), 'annotations')
    assert level == 'warning' and 'LabelMe JSON' in text and 'the masks count' in text


# --- the table adds up

def voc(root):
    fill(root, 'VOC2012/JPEGImages/p{}.jpg', 'VOC2012/SegmentationClass/p{}.png', n_masks=4)
    for i in range(6):
        wrote(root/f'VOC2012/Annotations/p{i}.xml', '<annotation/>')
        put(root/f'VOC2012/SegmentationObject/p{i}.png', i, 'mask')
    wrote(root/'VOC2012/ImageSets/Segmentation/train.txt', 'p0\np1')
    wrote(root/'VOC2012/ImageSets/Segmentation/val.txt', 'p2\np3')
    wrote(root/'VOC2012/ImageSets/Main/cat_train.txt', 'p0 1')


def cityscapes(root):
    fill(root, 'leftImg8bit/train/ulm/ulm_{}_leftImg8bit.png', 'gtFine/train/ulm/ulm_{}_gtFine_labelIds.png')
    for tail in ('color.png', 'instanceIds.png', 'labelTrainIds.png'):
        for i in range(6):
            put(root/f'gtFine/train/ulm/ulm_{i}_gtFine_{tail}', i, 'mask')
    for i in range(6):
        wrote(root/f'gtFine/train/ulm/ulm_{i}_gtFine_polygons.json', '{}')
    wrote(root/'license.txt', 'free')


def coco(root):
    for i in range(3):
        put(root/f'train2017/{i}.jpg', i)
    wrote(
        root / 'annotations/instances_train2017.json',
        json.dumps(
            dict(
                images=[dict(id=i, file_name=f'{i}.jpg', width=32, height=24) for i in range(3)],
                categories=[dict(id=3, name='cat')],
                annotations=[
                    dict(
                        id=i, image_id=i, category_id=3, area=9, iscrowd=0,
                        segmentation=[[1, 1, 8, 1, 8, 8, 1, 8]])
                    for i in range(3)])))


def cvat(root):
    fill(root, 'JPEGImages/p{}.jpg', 'SegmentationClass/p{}.png')
    for i in range(6):
        put(root/f'SegmentationObject/p{i}.png', i, 'mask')
    wrote(
        root / 'labelmap.txt',
        '# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,1,1::\ndog:2,2,2::\n')
    wrote(root/'ImageSets/Segmentation/default.txt', 'p0\np1')


def labelme(root):
    fill(root, 'JPEGImages/p{}.jpg', 'SegmentationClass/p{}.png')
    for i in range(6):
        put(root/f'SegmentationClassVisualization/p{i}.jpg', i)
        wrote(root/f'SegmentationClassNpy/p{i}.npy')
    wrote(root/'class_names.txt', '__ignore__\n_background_\ncat\ndog\n')


def messy(root):
    fill(root)
    for name in (
        '.DS_Store', '.git/objects/aa/bb', 'notes.md', 'archive.zip', 'clip.mp4', 'Thumbs.db',
        '__MACOSX/images/._p0.jpg', 'downloads/a.tar'):
        wrote(root/name)
    put(root/'images/p0.png', 3)
    put(root/'masks/ghost.png', 3, 'mask')
    put(root/'instance_masks/p0.png', 1, 'mask')


@pytest.mark.parametrize('make', [voc, cityscapes, coco, cvat, labelme, messy])
def test_the_table_adds_up(tmp_path, make):
    pytest.importorskip('pycocotools') if make is coco else None
    make(tmp_path)
    layout = find_layout(tmp_path)
    adds_up(tmp_path, layout)
    report = check(tmp_path)
    table = json.loads(_report_json(report))['files']
    n = len(layout.files)
    assert sum(row['files'] for row in table) == n and f'files in all: {n}' in report_text(report)


def test_a_linked_folder_is_counted_where_it_is_read(tmp_path):
    fill(tmp_path/'disk', n=3)
    root = fill(tmp_path/'d', n=3)
    (root/'more').symlink_to(tmp_path/'disk/images')
    (root/'loop').symlink_to(root)
    layout = find_layout(root)
    assert sum(n for _, n, *_ in file_table(layout)) == 9 == len(layout.files)


# --- links to files

def test_links_that_lead_out_are_left_out_in_the_words_of_training(tmp_path):
    root = fill(tmp_path/'d')
    put(tmp_path/'store/q.jpg', 7)
    (root/'images/q.jpg').symlink_to(tmp_path/'store/q.jpg')
    (root/'images/again.jpg').symlink_to(root/'images/p0.jpg')
    words = (
        'is a link that leads out of the data folder; put a copy there, or link the folder it lies in '
        'directly inside')
    report = check(root)
    assert not report.ok and [(f.file, words in f.text) for f in report.errors] == [('images/q.jpg', True)]
    wrote(tmp_path/'list.txt', 'images/q.jpg')
    refused(lambda: read_split(tmp_path/'list.txt', root, masks=False), words)
    assert 'images/again.jpg' in pairs(root)
    assert 'q' not in make_split(root, 2, progress=None).unlabeled


def test_nothing_but_links(tmp_path):
    fill(tmp_path/'store')
    for part in ('images', 'masks'):
        (tmp_path/'d'/part).mkdir(parents=True)
        for p in (tmp_path/'store'/part).iterdir():
            (tmp_path/'d'/part/p.name).symlink_to(p)
    refused(lambda: check(tmp_path/'d'), 'leads out of the data folder', 'directly inside')


def test_a_folder_linked_deep_inside(tmp_path):
    root = fill(tmp_path/'d')
    fill(tmp_path/'store')
    (root/'images/more').symlink_to(tmp_path/'store/images')
    layout = find_layout(root)
    assert len(layout.items) == 6 and remarks(layout, 'link')[0][:2] == ('error', 'images/more')


# --- names

@pytest.mark.parametrize('first, second', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_unicode_forms_pair_and_are_found_by_lists(tmp_path, first, second):
    image = unicodedata.normalize(first, 'images/Stra\u00dfe \u00e9{}.jpg')
    mask = unicodedata.normalize(second, 'masks/Stra\u00dfe \u00e9{}.png')
    fill(tmp_path, image, mask)
    assert pairs(tmp_path) == {image.format(i): mask.format(i) for i in range(6)}
    for form in ('NFC', 'NFD'):
        text = '\n'.join(f'{image.format(i)}\t{mask.format(i)}' for i in range(2))
        wrote(tmp_path/'val.txt', unicodedata.normalize(form, text))
        assert [p.image.exists() and p.mask.exists() for p in read_split(tmp_path / 'val.txt', tmp_path)] == [
            True, True]
        assert _open_list(tmp_path/'val.txt', tmp_path, large=0).read_image(1).size == (32, 24)
        assert sum(i.split == 'val' for i in find_layout(tmp_path).items) == 2


def test_folder_in_another_form(tmp_path):
    fill(
        tmp_path, unicodedata.normalize('NFD', 'Stra\u00dfe \u00e9/images/p{}.jpg'),
        unicodedata.normalize('NFD', 'Stra\u00dfe \u00e9/masks/p{}.png'), n=2)
    wrote(
        tmp_path / 'l.txt',
        unicodedata.normalize('NFC', 'Stra\u00dfe \u00e9/images/p0.jpg\tStra\u00dfe \u00e9/masks/p0.png'))
    assert read_split(tmp_path/'l.txt', tmp_path)[0].image.is_file()


@pytest.mark.parametrize('folder', ['images', 'masks', os.fsdecode(b'caf\xe9')])
def test_names_that_are_no_text(tmp_path, folder):
    fill(tmp_path)
    try:
        put(tmp_path/folder/os.fsdecode(b'caf\xe9.png'), 3, 'mask')
    except OSError:
        pytest.skip('this file system takes no such names')
    report = check(tmp_path)
    assert len(report.scans) == 6 and report.ok
    finding, = [f for f in report.findings if f.kind == 'name']
    assert 'caf\\udce9' in finding.file and 'rename' in finding.text
    adds_up(tmp_path, report.layout)
    save_report(report, tmp_path/'out')
    make_split(tmp_path, 2, progress=None)


# --- lists

@pytest.mark.parametrize(
    'line, header',
    [
        ('{root}/images/p1.jpg {root}/masks/p1.png', ''), ('images\\p1.jpg masks\\p1.png', ''),
        ('images/p1.jpg,masks/p1.png', ''), ('images/p1.jpg, masks/p1.png', 'image,mask\n'),
        ('"images/p1.jpg","masks/p1.png"', 'filename,label\n'),
        ('images/p1.jpg;masks/p1.png', 'image;mask\n'), ('images/p1.JPG masks/P1.PNG', ''),
        ('images/p1.jpg\tmasks/p1.png', 'image_path\tmask_path\n')])
def test_entries_that_are_understood(tmp_path, line, header):
    root = fill(tmp_path/'d')
    wrote(root/'val.txt', header + line.format(root=root) + '\n')
    pair, = read_split(root/'val.txt', root)
    assert (pair.image, pair.mask, pair.name) == (
        root / 'images/p1.jpg', root / 'masks/p1.png', pair.name) and pair.name.lower() == 'p1'
    assert _open_list(root/'val.txt', root, large=0).read_mask(0).size == (32, 24)
    assert [i.name for i in find_layout(root).items if i.split == 'val'] == ['p1']


@pytest.mark.parametrize(
    'line',
    [
        '{other}/images/p1.jpg {root}/masks/p1.png', '{root}/../x.jpg {root}/masks/p1.png',
        '{root}2/images/p1.jpg {root}/masks/p1.png'])
def test_absolute_paths_that_leave_the_folder(tmp_path, line):
    root = fill(tmp_path/'d')
    fill(tmp_path/'d2'), put(tmp_path/'x.jpg')
    wrote(root/'val.txt', line.format(root=root, other=tmp_path/'d2'))
    refused(lambda: read_split(root/'val.txt', root), 'line 1', 'leaves the data folder')


def test_capitals_that_fit_two_files(tmp_path):
    root = fill(tmp_path)
    put(root/'images/A.jpg'), put(root/'images/a.jpg')
    wrote(root/'l.txt', 'images/a.JPG')
    refused(lambda: read_split(root/'l.txt', root, masks=False), 'line 1', 'no file')
    wrote(root/'l.txt', 'images/A.jpg')
    assert read_split(root/'l.txt', root, masks=False)[0].image.name == 'A.jpg'


@pytest.mark.parametrize('encoding, word', [('utf-16', 'UTF-16'), ('latin-1', 'not a text file in UTF-8')])
def test_lists_and_classes_in_other_encodings(tmp_path, encoding, word):
    root = fill(tmp_path)
    wrote(root/'val.txt', 'images/p\u00e9.jpg\n'.encode(encoding))
    refused(lambda: read_split(root/'val.txt', root), 'val.txt', word, 'save it as UTF-8')
    (level, file, text), = remarks(find_layout(root), 'list')
    assert (level, file) == ('error', 'val.txt') and 'save it as UTF-8' in text
    for name in ('classes.txt', 'class_dict.csv', 'labelmap.txt'):
        wrote(root/name, 'caf\u00e9\nsea\n'.encode(encoding))
        refused(lambda: _find_classes(root), name, 'save it as UTF-8')
        (root/name).unlink()


# --- names of classes

def test_names_alone_are_read_by_all(tmp_path):
    wrote(fill(tmp_path)/'classes.txt', '# mine\nbackground\ntraffic light\ndog\n')
    names, colors = read_classes(tmp_path)
    assert (
        names == ['background', 'traffic light', 'dog']
        and colors.shape == (3, 3)
        and colors[0].tolist() == [0, 0, 0])
    report = check(tmp_path)
    assert report.ok and report.mapping.names == names and (report.mapping.colors == colors).all()


@pytest.mark.parametrize(
    'text, names',
    [
        ('__ignore__\n_background_\ncat\ndog\n', ['_background_', 'cat', 'dog']),
        ('_background_\ncat\ndog', ['_background_', 'cat', 'dog'])])
def test_class_names_of_labelme(tmp_path, text, names):
    fill(tmp_path, 'JPEGImages/p{}.jpg', 'SegmentationClass/p{}.png')
    mask = scene(0, 'mask')
    mask[0] = 255
    Image.fromarray(mask).save(tmp_path/'SegmentationClass/p0.png')
    wrote(tmp_path/'class_names.txt', text)
    report = check(tmp_path)
    assert report.ok and report.mapping.names == names and report.ignored > 0
    make_split(tmp_path, 2, progress=None)
    assert read_classes(tmp_path)[0] == names


# --- numbers of a run, and the bar within a large image

@pytest.mark.parametrize(
    'size, crop',
    [
        ((3000, 160), 161), ((160, 3000), 161), ((320, 240), 257), ((640, 320), 321), ((900, 300), 289),
        ((4000, 40), 65)])
def test_the_crop_of_very_wide_images_follows_the_short_side(size, crop):
    assert _numbers([size]*5, 5, 20)['crop'][0] == crop


def test_a_bar_within_one_image(monkeypatch):
    moved = []

    class Bar:
        def __init__(self, *args, total=None, disable=None, **kwargs): moved.append(('total', total, disable))
        def __enter__(self): return self
        def __exit__(self, *error): pass
        def update(self, n): moved.append(n)

    monkeypatch.setattr(importlib.import_module('corrmatch.use.predict'), 'tqdm', Bar)
    config = preset('toy', 'supervised', crop=33)
    predictor = LoadedModel(
        make_model(config)[0].eval(), config, [str(c) for c in range(config.n_classes)],
        np.zeros((config.n_classes, 3), np.uint8), tile=48)
    predictor.predict(np.zeros((200, 60, 3), np.uint8))
    assert moved[0] == ('total', 200, True) and sum(moved[1:]) == 200 and len(moved) > 4


# --- neighbours of these kinds

@pytest.mark.parametrize(
    'image, mask',
    [
        ('imagesTr/case_{:03}_0000.png', 'labelsTr/case_{:03}.png'),
        ('701_StillsRaw_full/a_{}.png', 'LabeledApproved_full/a_{}_L.png'),
        ('default/p{}.png', 'defaultannot/p{}.png'),
        ('Training_Data/S_{}.jpg', 'Part1_GroundTruth/S_{}_segmentation.png'),
        ('images/p{}.jpg', 'images/p{}_mask.png'), ('benign/b ({}).png', 'benign/b ({})_mask.png')])
def test_pairs_of_further_names(tmp_path, image, mask):
    fill(tmp_path, image, mask)
    assert pairs(tmp_path) == {image.format(i): mask.format(i) for i in range(6)}
    adds_up(tmp_path, find_layout(tmp_path))


def test_channels_in_files_of_their_own_are_refused(tmp_path):
    fill(tmp_path, 'imagesTr/c_{:03}_0000.png', 'labelsTr/c_{:03}.png')
    for i in range(6):
        put(tmp_path/f'imagesTr/c_{i:03}_0001.png', i)
    put(tmp_path/'imagesTs/c_077_0000.png', 77)
    report = check(tmp_path)
    assert [f.kind for f in report.errors] == ['channel'] and 'merge the channels' in report.errors[0].text
    assert {i.name: i.split for i in report.layout.items}['c_077'] == 'test'


def test_frames_of_several_scenes_share_names(tmp_path):
    for n, scene_ in enumerate(('kitchen', 'garden', 'patient1', 'patient2')):
        for i in range(3):
            put(tmp_path/f'{scene_}/{i:03}.png', 10*n + i)
            if scene_ in ('kitchen', 'patient1'):
                put(tmp_path/f'{scene_}/{i:03}_mask.png', i, 'mask')
    assert len(pairs(tmp_path)) == 12 and sum(m is not None for m in pairs(tmp_path).values()) == 6


@pytest.mark.parametrize(
    'name',
    [
        'images/overlay_p{}.jpg', 'images/p{}_drawn.png', 'images/p{}_annotated.jpg', 'p{}.overlay.png',
        'images/p{}_superpixels.png', 'output/p{}_out.png', 'images/p{}_mask_1.png', 'images/p{}_mask.png',
        'instance/p{}.png', 'training/obj_map/p{}.png', 'visuals/p{}.png'])
def test_further_visualisations(tmp_path, name):
    top = 'training/' if name.startswith('training') else ''
    fill(tmp_path, f'{top}images/p{{}}.jpg', f'{top}masks/p{{}}.png')
    for i in range(6):
        put(tmp_path/name.format(i), i, 'mask' if 'mask' in name else 'color')
    assert set(pairs(tmp_path)) == {f'{top}images/p{i}.jpg' for i in range(6)}
    adds_up(tmp_path, find_layout(tmp_path))


def test_images_with_masks_of_their_own_are_images_whatever_their_name(tmp_path):
    names = ['p0', 'p0_mask', 'p0_overlay', 'p0_out', 'p0_label_2']
    for i, name in enumerate(names):
        put(tmp_path/f'images/{name}.jpg', i)
        put(tmp_path/f'masks/{name}.png', i, 'mask')
    assert set(pairs(tmp_path)) == {f'images/{n}.jpg' for n in names} and None not in pairs(tmp_path).values()


def test_names_with_a_word_added_are_said(tmp_path):
    fill(tmp_path)
    for i in range(3):
        put(tmp_path/f'images/p{i}_flipped.jpg', i+30)
    (level, file, text), = [r for r in remarks(find_layout(tmp_path), 'names')]
    assert (
        level == 'warning'
        and file == 'images/p0_flipped.jpg'
        and '`flipped`' in text
        and '3 in number' in text)


def test_a_folder_that_may_hold_the_masks_is_named(tmp_path):
    fill(tmp_path, 'shots/a{}.png', 'gts_of_all/b{}x.png')
    refused(lambda: find_layout(tmp_path), 'gts_of_all', '--masks gts_of_all')


def test_links_in_a_circle_and_to_nothing(tmp_path):
    fill(tmp_path)
    for name in ('circle', 'images/circle.jpg'):
        (tmp_path/name).symlink_to((tmp_path/name).name)
    (tmp_path/'images/gone.jpg').symlink_to('none.jpg')
    report = check(tmp_path)
    assert len(report.layout.files) == 15 and [(f.kind, f.file) for f in report.errors] == [
        ('unreadable', f'images/{n}.jpg') for n in ('circle', 'gone')]
    _list_folder(tmp_path)


def test_a_name_that_no_list_can_hold_is_a_fault_of_its_file(tmp_path):
    fill(tmp_path)
    put(tmp_path/'images/a\nb.jpg', 9)
    put(tmp_path/'masks/a\nb.png', 9, 'mask')
    report = check(tmp_path)
    assert [f.kind for f in report.errors] == ['name'] and 'rename' in report.errors[0].text
    assert all('\na' not in line and '\nb' not in line for line in (report_text(report),))
    assert len(make_split(tmp_path, 2, progress=None, report=report).labeled) == 2


@pytest.mark.parametrize(
    'unlabeled, val, words',
    [
        ('images/p4.jpg\nimages/zz.jpg\n', '', 'no file for'), ('\n', '', 'is empty'),
        ('images/p4.jpg\nimages/p4.jpg\n', '', 'stands in line 1 already'),
        ('images/p5.jpg\n', '', 'a score on what was learned'),
        ('images/p4.jpg\n', 'images/zz.jpg masks/zz.png\n', 'no file for')])
def test_check_refuses_lists_that_training_refuses(tmp_path, unlabeled, val, words):
    fill(tmp_path)
    wrote(tmp_path/'splits/s0/2/labeled.txt', 'images/p0.jpg masks/p0.png\nimages/p1.jpg masks/p1.png\n')
    wrote(tmp_path/'splits/s0/2/unlabeled.txt', unlabeled)
    wrote(tmp_path/'splits/s0/val.txt', val or 'images/p5.jpg masks/p5.png\n')
    assert [words in f.text for f in rehearse(check(tmp_path))] == [True]


@pytest.mark.parametrize('text, level', [('p0\np77\np1\n', 'warning'), ('p88\np99\n', 'warning')])
def test_lines_that_name_no_image_are_said(tmp_path, text, level):
    wrote(fill(tmp_path)/'train.txt', text)
    assert [(l, 'name no image' in t) for l, _, t in remarks(find_layout(tmp_path), 'list')] == [
        (level, True)]


@pytest.mark.parametrize(
    'text, names',
    [
        ('0: sky\n1: cat\n2: dog\n', 'sky cat dog'), ('1,cat\n0,sky\n2,dog\n', 'sky cat dog'),
        ('sky=0\ndog=2\ncat=1', 'sky cat dog'), ('0 sky\n1 cat\n2 dog\n', 'sky cat dog'),
        ('class 0\nclass 1\n', 'class 0|class 1'), ('sky,1,2,3\ncat,4,5,6\n', 'sky cat'),
        ('sky\ncat\n', 'sky cat')])
def test_classes_with_numbers(tmp_path, text, names):
    wrote(tmp_path/'classes.txt', text)
    expected = names.split('|') if '|' in names else names.split()
    assert _find_classes(tmp_path)[0] == expected and read_classes(tmp_path)[0] == expected


@pytest.mark.parametrize(
    'text, word',
    [
        ('1: sky\n2: cat\n', '0 to 1'), ('0: sky\n0: cat\n', '0 to 1'), ('sky\nsky\n', 'names two classes'),
        ('sky 1 2 3\nsky 4 5 6\n', 'names two classes'), ('1 2 3 sky\n4 5 6 cat\n', 'behind the name')])
def test_classes_that_nobody_can_number(tmp_path, text, word):
    wrote(tmp_path/'classes.txt', text)
    refused(lambda: _find_classes(tmp_path), 'classes.txt', word)


def test_predictions_below_the_images_are_not_predicted_again(tmp_path, heard):
    fill(tmp_path)
    for name in ('masks/p0.png', 'overlays/p0.jpg'):
        put(tmp_path/'images/out'/name)
    for name in ('index.html', 'table.csv'):
        wrote(tmp_path/'images/out'/name)
    found = find_inputs([tmp_path/'images'])
    assert (
        sorted(i.path.name for i in found) == [f'p{i}.jpg' for i in range(6)]
        and 'images/out: written by this package' in ' '.join(heard))


def test_drawings_of_unlabeled_images_are_none_either(tmp_path):
    fill(tmp_path, n_masks=4)
    for i in range(6):
        put(tmp_path/f'debug/p{i}.png', i, 'color')
    assert set(pairs(tmp_path)) == {f'images/p{i}.jpg' for i in range(6)}
