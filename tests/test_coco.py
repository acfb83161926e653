"""COCO files as tools write them: each image, annotation and file is used, counted as left out, or refused by
name."""
import json
import os
import random

import numpy as np
import pytest
from PIL import Image

from corrmatch.use import api
from corrmatch.use.cli import main
from corrmatch.data.coco import decode_rle, draw_objects, fill_polygon
from corrmatch.config import IGNORE_INDEX
from corrmatch.data.layouts import describe_layout, find_layout
from corrmatch.data.masks import Meaning
from corrmatch.data.check import check_data
from corrmatch.data.split import make_split
from errors_for_tests import refused

W, H = 24, 16
N_MUTATIONS = int(os.environ.get('CORRMATCH_FUZZ', 60))  # of each seed


def box(x0, y0, x1, y1): return [x0, y0, x1, y0, x1, y1, x0, y1]


def outline(id, image, category, *corners):
    return dict(id=id, image_id=image, category_id=category, iscrowd=0, segmentation=[box(*corners)])


def entry(i, **change): return dict(dict(id=i, file_name=f'p{i}.png', width=W, height=H), **change)


def notes(ids=range(4), **change):
    "A sound COCO file: a cat on the left and a dog on the right of each image."
    pairs = [
        outline(10 * i + c, i, c, *where)
        for i in ids
        for c, where in ((1, (2, 2, 8, 10)), (2, (12, 4, 20, 12)))]
    return dict(
        dict(
            images=[entry(i) for i in ids], annotations=pairs,
            categories=[dict(id=1, name='cat'), dict(id=2, name='dog')]),
        **change)


def save(path, size=(W, H), seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.stem.encode()]).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


def note(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def folder(root, content=None, n=4, **sizes):
    "A data folder of n images and one COCO file."
    for i in range(n):
        save(root/f'images/p{i}.png', sizes.get(f'p{i}', (W, H)))
    note(root/'ann.json', notes() if content is None else content)
    return root


def check(root, classes=None, **said):
    return check_data(root, classes, progress=None, meaning=Meaning(**said))


def mask_of(root, name='p0'):
    item = next(i for i in find_layout(root).items if i.name == name)
    with Image.open(item.image) as image:
        return draw_objects(item.objects, image.size)


def warned(report, *words):
    texts = [f.text for f in report.findings if f.level == 'warning' and all(str(w) in f.text for w in words)]
    assert len(texts) == 1, [f.text for f in report.findings]
    return texts[0]


def changed(index, **change):
    "A sound file with one annotation changed; None takes a field out."
    content = notes()
    content['annotations'][index].update(change)
    content['annotations'][index] = {k: v for k, v in content['annotations'][index].items() if v is not None}
    return content


# --- the command

def test_the_option_reaches_check_split_and_train(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path/'d', notes(range(3), images=[entry(i) for i in range(6)]), n=6)
    for command, n in (('check d', '3'), ('check d --unannotated background', '6')):
        assert main(command.split()) == 0 and f'usable images with a mask: {n};' in capsys.readouterr().out
    main('split d --labels 2 --seed 1 --unannotated background'.split())
    assert '2 labeled, 2 unlabeled, 2 val' in capsys.readouterr().out
    started = []
    monkeypatch.setattr(api, '_run', lambda config, *more: started.append((config, more[-1])))
    assert main('train d --unannotated background --weights='.split()) == 0
    [(config, text)] = started
    assert 'with only background: 3' in text and 'lists: ' in text and config.n_classes == 3


# --- images and files

def test_sound_file(tmp_path):
    report = check(folder(tmp_path))
    assert (
        report.ok
        and [f.kind for f in report.findings] == ['conversion']
        and report.mapping.names == ['background', 'cat', 'dog'])
    assert report.layout.account._asdict() == dict(
        files=1, passed=0, outlined=4, background=0, unannotated=0, bare=0, unlisted=0, missing=0, drawn=8,
        crowds=0, boxes=0, strangers=0)
    expected = np.zeros((H, W), np.uint8)
    expected[2:10, 2:8], expected[4:12, 12:20] = 1, 2
    assert (mask_of(tmp_path) == expected).all()


def test_images_that_no_file_names_are_unlabeled_and_counted(tmp_path):
    report = check(folder(tmp_path, n=9))
    a = report.layout.account
    assert a.outlined + a.unlisted == len(report.scans) == 9 and 'in no COCO file: 5' in describe_layout(
        report.layout)
    split = make_split(tmp_path, 2, report=report, progress=None)
    assert {f'p{i}' for i in range(4, 9)} <= {*split.unlabeled} and not {*split.labeled} & {
        f'p{i}' for i in range(4, 9)}


@pytest.mark.parametrize(
    'form',
    [
        dict(segmentation=[]), dict(segmentation=None, bbox=[2, 2, 6, 8]), dict(segmentation=[[]]),
        dict(segmentation={}), dict(segmentation=None, keypoints=[3, 3, 2], num_keypoints=1),
        dict(segmentation=dict(size=[H, W], counts=[]))])
def test_one_object_without_outline_keeps_its_image_from_training(tmp_path, form):
    report = check(folder(tmp_path, changed(3, **form)))
    text = 'enclose nothing' if form['segmentation'] == [[]] else 'without an outline'
    assert 'annotation 12 of p1.png' in next(f.text for f in report.findings if text in f.text)
    assert [s.item.name for s in report.usable] == [
        'p0', 'p2', 'p3'] and report.layout.account.bare == report.layout.account.boxes == 1


def test_boxes_alone_are_refused_with_the_reason(tmp_path):
    content = notes()
    for a in content['annotations']:
        a.update(segmentation=[], bbox=[0, 0, 5, 5])
    refused(lambda: check(folder(tmp_path, content)), 'no readable mask', 'without an outline', 8)


@pytest.mark.parametrize('unannotated, n', [('unlabeled', 2), ('background', 4)])
def test_images_without_annotations(tmp_path, unannotated, n):
    content = notes(range(2), images=[entry(i) for i in range(4)])
    report = check(folder(tmp_path, content), unannotated=unannotated)
    assert len(report.usable) == n and report.ok
    if unannotated == 'unlabeled':
        warned(report, 'images without annotations', 2, 'p2.png', '--unannotated background')
    else:
        assert not mask_of_item(report, 'p3').any()
    assert len(make_split(tmp_path, 1, meaning=Meaning(unannotated=unannotated), progress=None).val) >= 1


def mask_of_item(report, name):
    scan = next(s for s in report.scans if s.item.name == name)
    return draw_objects(scan.item.objects, scan.size)


def test_unannotated_is_one_of_two_and_for_coco_alone(tmp_path):
    with pytest.raises(ValueError, match='choose unlabeled or background'):
        find_layout(folder(tmp_path/'a'), unannotated='no')
    save(tmp_path/'b/images/0.png')
    save(tmp_path/'b/masks/0.png')
    refused(lambda: find_layout(tmp_path/'b', unannotated='background'), 'unannotated=background', 'COCO')


def test_missing_images_are_named_with_a_hint(tmp_path):
    content = notes(range(6))
    content['images'][4]['file_name'], content['images'][5]['file_name'] = 'P0.JPG', 'gone/far.png'
    report = check(folder(tmp_path, content))
    assert {f.file: f.level for f in report.errors} == {'P0.JPG': 'error', 'gone/far.png': 'error'}
    assert (
        'images/p0.png is there' in report.findings[0].text
        and report.layout.account.missing == 2
        and len(report.usable) == 4)


def test_no_image_is_there(tmp_path):
    refused(
        lambda: check(folder(tmp_path, notes(range(20, 22)))),
        'ann.json', '2 images (p20.png', 'of which none')


def test_annotations_of_unknown_images(tmp_path):
    report = check(folder(tmp_path, notes(range(6), images=[entry(i) for i in range(4)])))
    warned(report, 'annotations of images that the file does not define', 4, 'annotation 41 of image 4')
    refused(
        lambda: check(folder(tmp_path, notes(range(7, 9), images=[entry(i) for i in range(4)]))),
        'none of its annotations')


def test_many_files_of_any_name(tmp_path):
    for i in range(13):
        save(tmp_path/f'images/p{i}.png')
        note(
            tmp_path / 'ann' / ('p0.json', 'result.json', 'train_3.json', f't{i}.coco.json')[min(i, 3)],
            notes([i]))
    layout = find_layout(tmp_path)
    assert layout.account.files == layout.account.outlined == 13 and layout.account.drawn == 26


@pytest.mark.parametrize(
    'broken, words',
    [
        (json.dumps(notes())[:-20].encode(), 'no complete JSON'),
        (b'', 'empty'),
        (b'{', 'no complete JSON'),
        (b'\xff\xfe\x00', 'no'),
        (
            json.dumps(notes(categories=[dict(id=1, name='K\u00f6ter')]), ensure_ascii=False).encode(
                'latin-1'),
            'save it as UTF-8')])
@pytest.mark.parametrize('name', ['z.json', 'a.json'])
def test_a_broken_file_beside_a_sound_one(tmp_path, broken, words, name):
    note(folder(tmp_path)/name, broken)
    refused(lambda: find_layout(tmp_path), name, words)


def test_a_broken_file_alone(tmp_path):
    refused(
        lambda: find_layout(folder(tmp_path, json.dumps(notes())[:-20].encode())), 'ann.json',
        'no complete JSON')


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32'])
def test_encodings(tmp_path, encoding):
    content = notes(categories=[dict(id=1, name='猫'), dict(id=2, name='dog')])
    assert find_layout(folder(tmp_path, json.dumps(content, ensure_ascii=False).encode(encoding))).classes[
        0] == ['background', '猫', 'dog']


def test_other_json_is_not_taken(tmp_path):
    root = folder(tmp_path)
    for name, content in dict(
        settings=dict(theme='dark'),
        images=dict(images=['p0.png']), via={'_via_settings': {}}, number=7, list=[1, 2]).items():
        note(root/f'{name}.json', content)
    assert check(root).ok and find_layout(root).account.files == 1 and find_layout(root).remarks == ()
    (root/'ann.json').unlink()
    refused(lambda: check(root), 'no readable mask', 'VIA JSON', 'COCO format')


def test_files_without_outlines_are_passed_over_and_said(tmp_path):
    root = folder(tmp_path)
    others = dict(
        captions=notes(annotations=[dict(id=1, image_id=1, caption='a cat')]),
        image_info={k: v for k, v in notes().items() if k != 'annotations'},
        panoptic=notes(annotations=[dict(image_id=1, file_name='1.png', segments_info=[])]),
        person_keypoints=notes(), found=[dict(image_id=1, category_id=1, bbox=[1, 1, 2, 2], score=0.5)])
    for name, content in others.items():
        note(root/f'{name}_val.json', content)
    remarks = find_layout(root).remarks
    assert sorted(file for _, _, file, _ in remarks) == sorted(f'{name}_val.json' for name in others)
    assert all('passed over' in text for *_, text in remarks) and find_layout(root).account.passed == 5
    for name in ('ann', 'person_keypoints_val'):
        (root/f'{name}.json').unlink()
    refused(lambda: check(root), 'no readable mask', 'passed over')


def test_instances_count_before_other_files(tmp_path):
    note(folder(tmp_path)/'instances_default.json', notes(range(2)))
    layout = find_layout(tmp_path)
    assert layout.account.outlined == 2 and layout.account.unlisted == 2
    assert layout.remarks == (('warning', 'files', 'ann.json', 'passed over: instances_default.json counts'),)


def test_masks_beside_a_coco_file_are_refused(tmp_path):
    save(folder(tmp_path)/'masks/p1.png')
    refused(lambda: check(tmp_path), 'ann.json', 'masks/p1.png', '--masks FOLDER')


def test_panoptic_images_of_the_download_are_passed_over(tmp_path):
    save(folder(tmp_path)/'annotations/panoptic_val2017/p1.png')
    assert (
        check(tmp_path).ok
        and len(find_layout(tmp_path).items) == 4
        and 'passed over' in find_layout(tmp_path).remarks[0][3])


def test_lists_name_the_splits(tmp_path):
    (folder(tmp_path)/'val.txt').write_text('p1\nimages/p3.png\n')
    assert [i.split for i in find_layout(tmp_path).items] == ['', 'val', '', 'val']


# --- names of images

@pytest.mark.parametrize(
    'name',
    [
        './images/p0.png', 'images\\p0.png', '.\\images\\p0.png', 'images//p0.png', 'x/../images/p0.png',
        '{root}/images/p0.png'])
def test_forms_of_file_name(tmp_path, name):
    content = notes()
    content['images'][0]['file_name'] = name.format(root=tmp_path.resolve())
    if '..' in name:
        refused(lambda: find_layout(folder(tmp_path, content)), 'leaves the data folder')
    else:
        assert find_layout(folder(tmp_path, content)).account.outlined == 4


def test_another_folder_of_the_same_base_name_is_said(tmp_path):
    content = notes()
    content['images'][2]['file_name'] = 'seq7/p2.png'
    warned(check(folder(tmp_path, content)), 'only by their base name', 'seq7/p2.png as images/p2.png')


def test_one_file_with_two_ids(tmp_path):
    content = notes()
    content['images'][3]['file_name'] = 'images/p0.png'
    refused(lambda: find_layout(folder(tmp_path, content)), 'images 0 and 3 are both images/p0.png')


def test_a_file_that_lists_an_image_without_annotations_says_nothing(tmp_path):
    root = folder(tmp_path, notes(range(2), images=[entry(i) for i in range(4)]))
    note(root/'b.json', notes(range(2, 4), images=[entry(i) for i in range(4)]))
    for unannotated in ('unlabeled', 'background'):
        assert find_layout(root, unannotated=unannotated).account.outlined == 4


# --- ids and categories

def test_ids_as_text_and_floats(tmp_path):
    content = json.loads(json.dumps(notes()))
    for a in content['annotations']:
        a.update(image_id=str(a['image_id']), category_id=float(a['category_id']), iscrowd=False)
    for i in content['images']:
        i.update(width=str(W), height=float(H))
    content['annotations'][0]['segmentation'] = [
        [str(v) for v in content['annotations'][0]['segmentation'][0]]]
    report = check(folder(tmp_path/'a', content))
    assert report.ok and (report.shares == check(folder(tmp_path/'b')).shares).all()


@pytest.mark.parametrize(
    'mark, ignored',
    [(1, True), (True, True), ('1', True), (0, False), ('0', False), (False, False), (None, False)])
def test_crowds(tmp_path, mark, ignored):
    assert (IGNORE_INDEX in mask_of(folder(tmp_path, changed(0, iscrowd=mark)))) is ignored
    assert find_layout(tmp_path).account.crowds == ignored


@pytest.mark.parametrize(
    'name', ['background', '_background_', '__Background__', 'BACKGROUND', ' background '])
@pytest.mark.parametrize('used', [False, True])
def test_background_is_class_0(tmp_path, name, used):
    content = notes(categories=[dict(id=0, name=name), dict(id=1, name='cat'), dict(id=2, name='dog')])
    if used:
        content['annotations'] += [outline(99, 0, 0, 3, 3, 6, 6)]
    report = check(folder(tmp_path, content))
    assert report.ok and report.mapping.names == ['background', 'cat', 'dog']
    assert (mask_of(tmp_path)[4, 4] == 1) is not used


def test_a_group_of_roboflow_is_no_class_but_a_used_one_is(tmp_path):
    content = notes(
        categories=[
            dict(id=0, name='pets', supercategory='none'), dict(id=1, name='cat', supercategory='pets'),
            dict(id=2, name='dog', supercategory='pets')])
    assert find_layout(folder(tmp_path, content)).classes[0] == ['background', 'cat', 'dog']
    content['annotations'][0]['category_id'] = 0
    assert find_layout(folder(tmp_path, content)).classes[0] == ['background', 'pets', 'cat', 'dog']


def test_files_number_their_categories_differently(tmp_path):
    root = folder(tmp_path, notes(range(2)))
    content = notes(range(2, 4), categories=[dict(id=40, name='dog'), dict(id=90, name='cat')])
    for a in content['annotations']:
        a['category_id'] = {1: 90, 2: 40}[a['category_id']]
    note(root/'b.json', content)
    for name in ('p0', 'p3'):
        assert mask_of(root, name)[4, 4] == 1 and mask_of(root, name)[6, 14] == 2
    note(root/'b.json', content | dict(categories=[*content['categories'], dict(id=7, name='Cat')]))
    assert find_layout(root).classes[0] == ['background', 'cat', 'dog']  # no outline uses it
    note(
        root / 'b.json',
        content
        | dict(
            categories=[*content['categories'], dict(id=7, name='Cat')],
            annotations=[*content['annotations'], outline(99, 2, 7, 0, 0, 5, 5)]))
    refused(lambda: find_layout(root), 'ann.json', 'categories differ', 'lacks Cat')


def test_unused_categories_are_said_and_kept_on_request(tmp_path):
    content = notes(
        categories=[
            dict(id=5, name='emu'), dict(id=2, name='dog'), dict(id=1, name='cat'), dict(id=0, name='ant')])
    # a box is nothing to learn from
    content['annotations'][0].update(category_id=5, segmentation=[], bbox=[1, 1, 4, 4])
    report = check(folder(tmp_path, content))
    assert report.ok and report.mapping.names == ['background', 'cat', 'dog']
    warned(report, 'no class of their own', 'ant, emu', '--classes FILE')
    (tmp_path/'all.txt').write_text('background\nant\ncat\ndog\nemu\n')
    assert (
        check(tmp_path, classes=tmp_path / 'all.txt').mapping.names
        == ['background', 'ant', 'cat', 'dog', 'emu']
        and mask_of(tmp_path, 'p1')[4, 4] == 1)


@pytest.mark.parametrize(
    'entries, words',
    [
        (((1, 'cat'), (2, 'cat')), 'called cat'), (((1, 'cat'), ('1', 'dog')), 'have the id 1'),
        (((1, ''), (2, 'dog')), 'name'), (((1, 'a\0b'), (2, 'dog')), 'name'),
        (((1, '#cat'), (2, 'dog')), 'name')])
def test_faulty_categories(tmp_path, entries, words):
    refused(
        lambda: find_layout(folder(tmp_path, notes(categories=[dict(id=i, name=n) for i, n in entries]))),
        'ann.json', words)


def test_class_file_orders_the_classes_or_is_refused(tmp_path):
    (folder(tmp_path)/'classes.txt').write_text('background\ndog\ncat\n')
    assert find_layout(tmp_path).classes[0] == ['background', 'dog', 'cat'] and mask_of(tmp_path)[4, 4] == 2
    (tmp_path/'mine.txt').write_text('background\ncat\n')
    refused(lambda: find_layout(tmp_path, tmp_path/'mine.txt'), 'other classes', 'dog')
    refused(lambda: find_layout(tmp_path, 7), 'classes=7', '3 classes')


def test_a_list_of_categories_is_missing(tmp_path):
    content = notes()
    del content['categories']
    refused(lambda: find_layout(folder(tmp_path, content)), 'ann.json', 'no list of categories')


# --- sizes

def test_outlines_of_resized_images_are_scaled(tmp_path):
    small = check(folder(tmp_path/'a', n=4, p1=(W//2, H//2), p2=(W*3, H*3), p3=(W*2 + 1, H*2)))
    text = warned(small, 'its outlines are scaled', f'{W}x{H}', f'{W//2}x{H//2}', 3)
    assert small.ok and np.abs(small.shares - small.shares[0]).max() < .01, text


@pytest.mark.parametrize('size', [(W, W), (W, H//2), (W + 4, H)])
def test_other_shapes_are_refused(tmp_path, size):
    report = check(folder(tmp_path, p2=size))
    assert [(f.file, f.kind) for f in report.errors] == [('images/p2.png', 'unreadable')]
    for word in (f'{W}x{H}', f'{size[0]}x{size[1]}', 'restore the image'):
        assert word in report.errors[0].text


def turned(path, note_value):
    exif = Image.Exif()
    exif[0x0112] = note_value
    save(path, (H, W), exif=exif)


@pytest.mark.parametrize('note_value, ok', [(6, True), (8, True), (5, True), (1, False), (3, False)])
@pytest.mark.parametrize('unannotated', ['unlabeled', 'background'])
def test_images_annotated_upright(tmp_path, note_value, ok, unannotated):
    content = notes(annotations=[a for a in notes()['annotations'] if a['image_id'] != 3])
    for a in content['annotations'][:2]:
        a['segmentation'] = [box(0, 0, 5, 3)]
    folder(tmp_path, content)
    for i in range(4):
        turned(tmp_path/f'images/p{i}.png', note_value)
    report = check(tmp_path, unannotated=unannotated)
    assert report.ok is ok and all(s.turned is ok for s in report.scans if s.item.objects)
    if not ok:
        assert {f.kind for f in report.errors} >= {'size'}


def test_run_lengths_of_resized_images(tmp_path):
    content = notes()
    for a in content['annotations']:
        a['segmentation'] = as_runs(draw_objects(({**a, 'class': 1},), (W, H)) == 1)
    report = check(folder(tmp_path, content, p1=(W//2, H//2), p2=(W*2, H*2)))
    assert report.ok and np.abs(report.shares - report.shares[0]).max() < .01
    content['annotations'][0]['segmentation']['size'] = [W, H]
    assert f'drawn for {H}x{W}' in check(folder(tmp_path, content)).errors[0].text


def test_edited_annotations_are_drawn_anew(tmp_path):
    def masks():
        split = make_split(tmp_path, 2, progress=None)
        return [np.asarray(Image.open(p)) for p in sorted((split.root/'prepared/masks').iterdir())]
    folder(tmp_path)
    before, content = masks(), notes()
    for a in content['annotations']:
        a['segmentation'] = [box(a['category_id']*8, 0, a['category_id']*8 + 3, 3)]
    note(tmp_path/'ann.json', content)
    assert all((a != b).any() for a, b in zip(before, masks()))


def test_ids_with_underscores_are_no_numbers(tmp_path):
    names = {0: '1_11', 1: '11_1', 2: '111', 3: ' +7 '}
    content = notes()
    for entries, key in ((content['images'], 'id'), (content['annotations'], 'image_id')):
        for one in entries:
            one[key] = names[one[key]]
    content['annotations'][-1]['image_id'] = 7
    report = check(folder(tmp_path, content))
    assert report.ok and len(report.usable) == 4


def test_sizes_that_are_not_numbers(tmp_path):
    for width in ('wide', -3, float('nan'), [5], 10**30, 10**400):
        refused(
            lambda: find_layout(folder(tmp_path, notes(images=[entry(0, width=width)]))), 'ann.json',
            'image 0', 'width')
    warned(
        check(folder(tmp_path, notes(images=[entry(i, width=None, height=0) for i in range(4)]))),
        'without width and height', 4)


# --- outlines

@pytest.mark.parametrize(
    'polygon, words',
    [
        ([1, 1, 5, 1, 5], 'odd number'), ([1, 1, float('nan'), 1, 5, 5], 'not finite'),
        ([1, 1, float('inf'), 1, 5, 5], 'not finite'), (['a', 1, 5, 1, 5, 5], 'not numbers'),
        ([1, 1, None, 1, 5, 5], 'not finite'), (box(40, 40, 50, 50), 'outside'),
        ([1, 1, 10**400, 1, 5, 5], 'not numbers'), (box(-9, 2, -3, 8), 'outside'),
        (dict(size=[H, W], counts=[1]), 'not numbers')])
def test_outlines_that_cannot_be_drawn(tmp_path, polygon, words):
    report = check(folder(tmp_path, changed(2, segmentation=[polygon])))
    assert (
        [f.file for f in report.errors] == ['images/p1.png']
        and 'annotation 11' in report.errors[0].text
        and words in report.errors[0].text)
    assert len(report.usable) == 3


@pytest.mark.parametrize(
    'runs',
    [
        dict(size=[H, W], counts=[5]), dict(size=[H, W], counts='~~'),
        dict(size=[H, W], counts=[-1, H * W + 1]), dict(counts=[H * W]), 'abc', 5,
        dict(size=[H, W], counts=[H * W]), dict(size=[10**6, 10**6], counts=[10**12]),
        dict(size='big', counts=[3]), dict(size=[H, W], counts='é')])
def test_run_lengths_that_cannot_be_drawn(tmp_path, runs):
    report = check(folder(tmp_path, changed(2, segmentation=runs)))
    assert [f.file for f in report.errors] == ['images/p1.png'] and 'annotation 11' in report.errors[0].text


@pytest.mark.parametrize('polygon', [[1, 1, 5, 5], [1, 1], [1, 1, 5, 5, 9, 9], [3, 3]*4])
def test_flat_polygons(tmp_path, polygon):
    report = check(folder(tmp_path/'alone', changed(2, segmentation=[polygon])))
    warned(report, 'enclose nothing', 1, 'annotation 11 of p1.png')
    assert 'p1' not in [s.item.name for s in report.usable]
    report = check(folder(tmp_path/'beside', changed(2, segmentation=[polygon, box(2, 2, 8, 10)])))
    warned(report, 'enclose nothing', 1, 'annotation 11 of p1.png')
    assert (report.shares == report.shares[0]).all() and len(report.usable) == 4


def test_coordinates_between_0_and_1(tmp_path):
    content = notes()
    for a in content['annotations']:
        a['segmentation'] = [[v/W for v in a['segmentation'][0]]]
    refused(lambda: find_layout(folder(tmp_path, content)), 'ann.json', 'between 0 and 1')


@pytest.mark.parametrize('form', [box(2, 2, 8, 10), [[2, 2], [8, 2], [8, 10], [2, 10]]])
def test_forms_of_polygons(tmp_path, form):
    plain = mask_of(folder(tmp_path/'a'))
    for name, segmentation in (('b', [form]), ('c', form if isinstance(form[0], int) else [form])):
        assert (mask_of(folder(tmp_path/name, changed(0, segmentation=segmentation))) == plain).all()


@pytest.mark.parametrize('area', [None, 0, 10**6, -1, 'large'])
@pytest.mark.parametrize('small_first', [True, False])
def test_the_smaller_object_is_in_front(tmp_path, area, small_first):
    pair = [dict(outline(1, 0, 1, 0, 0, W, H), area=1), dict(outline(2, 0, 2, 4, 4, 9, 9), area=area)]
    mask = mask_of(folder(tmp_path, notes(annotations=pair[::-1] if small_first else pair)))
    assert (mask == 2).sum() == 25 and (mask == 1).sum() == W*H - 25


def test_what_is_cut_off_does_not_count_as_area():
    "A large object of which a corner is in the image lies in front of a smaller one that shows more."
    corner = dict(segmentation=[box(-500, -500, 2, 2)], **{'class': 1})
    inside = dict(segmentation=[box(0, 0, 6, 6)], **{'class': 2})
    for order in ((corner, inside), (inside, corner)):
        assert (draw_objects(order, (W, H))[:2, :2] == 1).all()


# --- against COCO's own library

def as_runs(mask):
    flat = np.asarray(mask, np.uint8).T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    counts = np.diff([0, *edges, flat.size]).tolist()
    return dict(size=list(mask.shape), counts=counts)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_run_lengths_equal_those_of_the_library():
    rle = pytest.importorskip('pycocotools.mask')
    rng = np.random.default_rng(0)
    for i in range(200):
        h, w = rng.integers(1, 60, 2)
        mask = (rng.random((h, w)) < rng.choice([0, .02, .5, .98, 1])).repeat(rng.integers(1, 5), 0)
        code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        for counts in (code['counts'], code['counts'].decode()):
            assert (decode_rle(dict(size=code['size'], counts=counts)) == mask).all()
        assert (decode_rle(as_runs(mask)) == mask).all()


def distance(centres, points):
    "Distance of each centre from the border of a polygon."
    a, b = points[None], np.roll(points, -1, 0)[None]
    share = (((centres[:, None] - a)*(b - a)).sum(-1)/((b - a)**2).sum(-1)).clip(0, 1)[..., None]
    return np.linalg.norm(centres[:, None] - a - share*(b - a), axis=-1).min(1)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_polygons_differ_from_those_of_the_library_at_the_border_alone():
    rle = pytest.importorskip('pycocotools.mask')
    rng = np.random.default_rng(1)
    for _ in range(100):
        w, h = rng.integers(8, 80, 2).tolist()
        angles = np.sort(rng.uniform(0, 2*np.pi, rng.integers(3, 20)))
        radius = rng.uniform(.2, .8, 2)
        points = np.stack([w/2 + w*radius[0]*np.cos(angles), h/2 + h*radius[1]*np.sin(angles)], 1)
        theirs = rle.decode(rle.merge(rle.frPyObjects([points.ravel().tolist()], h, w))).astype(bool)
        ours = np.zeros((h, w), bool)
        window, inside = fill_polygon(points, (w, h))
        ours[window] = inside
        centres = np.argwhere(theirs != ours)[:, ::-1] + .5
        assert not len(centres) or distance(centres, points).max() < 1


# --- mutations

JUNK = [
    None,
    True,
    False,
    0,
    1,
    -1,
    7,
    2.5,
    1e30,
    float('nan'),
    float('inf'),
    '',
    'x',
    '1',
    '..',
    'p0.png',
    '/etc/passwd',
    'a\0b',
    'a\nb',
    [],
    {},
    [[]],
    [1],
    [[1, 2]],
    {'a': 1},
    [0, 0, 9, 0, 9, 9],
    dict(size=[H, W], counts=[1, 2]),
    10**30,
    10**400,
    '1_1',
    'background',
    [None],
    'ö' * 300]


def places(thing, path=()):
    "Every place in a JSON object."
    yield path
    for key, value in (
        thing.items() if isinstance(thing, dict) else enumerate(thing) if isinstance(thing, list) else ()):
        yield from places(value, (*path, key))


def mutate(rng, content):
    "Change a sound file at one to three places; bytes."
    for _ in range(rng.randint(1, 3)):
        found = [p for p in places(content) if p]
        if not found:
            break
        path = rng.choice(found)
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        move = rng.choice(('junk', 'junk', 'drop', 'twice', 'swap'))
        if move == 'drop':
            del parent[path[-1]]
        elif move == 'twice' and isinstance(parent, list):
            parent.append(parent[path[-1]])
        elif move == 'swap' and isinstance(parent, list):
            parent.reverse()
        else:
            parent[path[-1]] = json.loads(json.dumps(rng.choice(JUNK)))
    raw = bytearray(json.dumps(content).encode())
    if rng.random() < .1:
        raw = raw[:rng.randrange(len(raw))]
    if rng.random() < .1:
        raw[rng.randrange(len(raw) or 1):][:1] = bytes([rng.randrange(256)])
    if raw and rng.random() < .1:
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


@pytest.mark.parametrize('seed', range(6))
def test_mutated_files_are_read_or_refused_in_one_line(tmp_path, seed):
    rng, read = random.Random(seed), 0
    folder(tmp_path)
    for i in range(N_MUTATIONS):
        content = notes()
        content['annotations'][1]['segmentation'] = as_runs(np.arange(W)[None].repeat(H, 0) // 3 == 1)
        raw = mutate(rng, json.loads(json.dumps(content)))
        (tmp_path/'ann.json').write_bytes(raw)
        try:
            report = check(tmp_path, unannotated=rng.choice(('unlabeled', 'background')))
        except ValueError as e:
            assert '\n' not in str(e), raw
        else:
            read += 1
            a = report.layout.account
            assert all('\n' not in f.text for f in report.findings), raw
            if a:
                assert (
                    a.outlined + a.background + a.unannotated + a.bare + a.unlisted == len(report.scans) == 4
                ), raw
    assert read > N_MUTATIONS//10


def test_no_category_takes_the_place_of_background(tmp_path):
    "What no outline covers is class 0; ignoring it is another thing, and is done."
    root = folder(tmp_path, notes())
    refused(
        lambda: check(root, background='dog'), 'in outlines the background is what none of them covers',
        '--classes FILE')
    report = check(root, ignore=(0,))
    assert not report.ok and report.mapping.table[0] == 255 and 'background' in report.errors[0].text


def test_faults_of_all_images_name_one(tmp_path):
    root = folder(tmp_path, notes(images=[entry(i, width=W, height=2*H) for i in range(4)]))
    refused(lambda: check(root), 'p0.png: was annotated with', 'another shape')
