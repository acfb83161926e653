"The commands as a new user types them, one after another, on a plain folder with broken files."
import json

import numpy as np
import pytest
from PIL import Image

from corrmatch.data.toy import toy_arrays
from corrmatch.use.cli import _COMMANDS
from runs_for_tests import SMALL_FLAGS, corrmatch, typed, typed_apart


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder `photos` with 26 images and masks side by side in two folders, five of them broken in
    different ways; and `clean` with eight images, six masks and nothing broken."""
    root = tmp_path_factory.mktemp('story')
    for kind in ('images', 'masks'):
        (root/'clean'/kind).mkdir(parents=True)
    for i, (image, mask) in enumerate(zip(*toy_arrays(range(30, 38), 49, n_classes=5))):
        Image.fromarray(image).save(root/'clean'/'images'/f'{i}.png')
        if i < 6:
            Image.fromarray(mask).save(root/'clean'/'masks'/f'{i}.png')
    photos = root/'photos'
    (photos/'images').mkdir(parents=True)
    (photos/'masks').mkdir()
    for i, (image, mask) in enumerate(zip(*toy_arrays(range(26), 81, n_classes=5))):
        Image.fromarray(image).save(photos/'images'/f'p{i:02d}.jpg', quality=92)
        Image.fromarray(mask).save(photos/'masks'/f'p{i:02d}.png')
    # cut off
    (photos / 'images' / 'p00.jpg').write_bytes((photos / 'images' / 'p00.jpg').read_bytes()[:700])
    (photos/'images'/'p01.jpg').write_text('not an image')
    # of another size
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(photos / 'masks' / 'p02.png')
    # a value that is no class
    Image.fromarray(np.full((81, 81), 77, np.uint8)).save(photos / 'masks' / 'p03.png')
    (photos/'masks'/'p04.png').write_bytes(b'')
    for folder in (photos, root/'clean'):
        (folder / 'classes.txt').write_text(
            'background 0 0 0\ndisk 230 159 0\nstripes 86 180 233\nsquare 0 158 115\nring 240 228 66\n')
    return root


def test_check_names_the_five(place):
    said = corrmatch(place, 'check', 'photos', '--out', 'report', code=1)
    for name in ('p00', 'p01', 'p02', 'p03', 'p04'):
        assert name in said, name
    assert (place/'report'/'report.html').is_file() and json.loads((place/'report'/'report.json').read_text())


def test_split_leaves_them_out(place):
    said = corrmatch(place, 'split', 'photos', '--labels', '6', '--seed', '0')
    lists = [p for p in (place/'photos'/'splits').rglob('labeled.txt')]
    assert len(lists) == 1 and 'background' in said
    assert not any(f'p0{i}' in lists[0].read_text() for i in range(5))


def test_train_on_the_folder(place):
    said = corrmatch(place, 'train', 'photos', '--labels', '6', '--out', 'runs/mine', *SMALL_FLAGS)
    assert 'mIoU' in said and 'corrmatch eval runs/mine' in said and '5 classes' in said


def test_resume_a_finished_run_says_so_or_goes_on(place):
    assert 'mIoU' in corrmatch(place, 'resume', 'runs/mine')


def test_runs_and_eval(place):
    listed = corrmatch(place, 'runs', 'runs')
    assert 'finished' in listed and '4/4' in listed
    assert 'mIoU' in corrmatch(place, 'eval', 'runs/mine', '--device', 'cpu')


@pytest.mark.parametrize(
    'words, made',
    [
        (('report', 'runs/mine', '--device', 'cpu'), 'runs/mine/report.html'),
        (
            (
                'predict', 'runs/mine', 'photos/images/p05.jpg', 'photos/images/p06.jpg', '--out',
                'predictions', '--device', 'cpu'),
            'predictions/index.html'),
        (
            (
                'pseudo', 'runs/mine', 'photos/images/p05.jpg', '--out', 'pseudo', '--tau', '0.3', '--device',
                'cpu'),
            'pseudo/shares.csv'),
        (
            (
                'explore', 'photos/images/p05.jpg', '--model', 'runs/mine', '--out', 'p05.html', '--device',
                'cpu'),
            'p05.html'),
        (('export', 'runs/mine', '--format', 'safetensors', '--out', 'mine.safetensors'), 'mine.safetensors'),
    ],
    ids=lambda x: x[0] if isinstance(x, tuple) else '')
def test_use_the_run(place, words, made):
    corrmatch(place, *words)
    assert (place/made).is_file() and (place/made).stat().st_size > 0


def test_a_broken_image_is_named_and_the_others_are_predicted(place):
    said = corrmatch(
        place, 'predict', 'runs/mine', 'photos/images', '--out', 'all', '--device', 'cpu', code=1)
    assert 'p00.jpg' in said and 'p01.jpg' in said and len(list((place/'all').rglob('p*.png'))) >= 24


@pytest.mark.parametrize(
    'words, said',
    [
        (('fetch', 'cityscapes'), 'cityscapes'), (('fetch', 'elephants'), 'elephants'),
        (('compare', 'runs/none', 'runs/mine'), 'runs/none'),
        (('export', 'runs/none', '--format', 'onnx'), 'runs/none'), (('resume', 'runs/none'), 'runs/none'),
        (('split', 'photos', '--labels', '0'), 'labels')])
def test_failures_are_one_line(place, words, said):
    code, out, err = typed(*words, cwd=place)
    assert code == 1 or words == ('fetch', 'cityscapes')
    assert said in (out + err).lower() and 'Traceback' not in err and len(err.strip().splitlines()) <= 1


# command -> exit code, its words, what it says; those that take minutes are asked for what they refuse
STARTS = {
    'demo': (1, '--photos nowhere', 'nowhere'),
    'check': (0, 'clean --out report_clean', 'can be trained on'),
    'label': (1, 'nowhere --no-open', 'nowhere: no such folder'),
    'split': (0, 'clean --labels 3 --out lists', 'labeled'),
    'fetch': (0, 'cityscapes', 'cityscapes'),
    'train': (0, f'clean --labels 3 --out runs/apart {" ".join(SMALL_FLAGS)}', 'mIoU'),
    'resume': (0, 'runs/mine', 'mIoU'),
    'eval': (0, 'runs/mine --device cpu', 'mIoU'),
    'runs': (0, 'runs', 'finished'),
    'lr-find': (0, f'clean --labels 3 --tries 12 {" ".join(SMALL_FLAGS)}', 'suggestion after'),
    'suggest': (0, 'clean --run runs/mine -n 2 --device cpu', 'suggested'),
    'compare': (0, 'runs/mine runs/mine --device cpu', 'mean difference'),
    'predict': (0, 'runs/mine clean/images/0.png --device cpu', 'predictions'),
    'pseudo': (0, 'runs/mine clean/images/0.png --device cpu', 'pseudo'),
    'convert': (0, 'clean --to labelme', 'annotation tool'),
    'export': (0, 'runs/mine --format safetensors', 'runs/mine.safetensors'),
    'report': (0, 'runs/mine --device cpu --images 1 --judged 0', 'report.html'),
    'explore': (0, 'clean/images/0.png --model runs/mine --out 0.html --device cpu', '0.html'),
    'bench': (2, '--device gpu', "'gpu' is no device"),
    'table': (0, 'runs/mine', 'corrmatch')}


def test_no_command_is_left_out(): assert STARTS.keys() == _COMMANDS.keys()


@pytest.mark.parametrize('command', STARTS)
def test_each_command_in_a_process_of_its_own(place, command):
    code, words, said = STARTS[command]
    assert said in corrmatch(place, command, *words.split(), code=code, run=typed_apart)
