"From a folder of images without a single mask to a model and back to an annotation tool, as a user types it."
import csv
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corrmatch.data.toy import toy_arrays
from corrmatch.use.label import LabelFolder, _encode_runs, _make_app
from runs_for_tests import SMALL_FLAGS, corrmatch

testclient = pytest.importorskip('starlette.testclient', reason='pip install corrmatch-seg[label]')
CLASSES = 'background,disk,stripes,square,ring'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder `photos` with 16 images and nothing else; their ground truth is kept aside."
    root = tmp_path_factory.mktemp('loop')
    images, masks = toy_arrays(range(16), 81, n_classes=5)
    (root/'photos'/'images').mkdir(parents=True)
    (root/'truth').mkdir()
    for i, (image, mask) in enumerate(zip(images, masks)):
        Image.fromarray(image).save(root/'photos'/'images'/f'p{i:02d}.png')
        Image.fromarray(mask).save(root/'truth'/f'p{i:02d}.png')
    return root


def draw(place, names):
    "Draw the masks of some images through the server of the label page, as the page does."
    folder = LabelFolder(place/'photos', CLASSES)
    page = testclient.TestClient(
        _make_app(folder, token='secret'), base_url='http://127.0.0.1', headers={'X-Token': 'secret'})
    stems = [Path(image['name']).stem for image in page.get('/api/folder').json()['images']]
    for name in names:
        i = stems.index(name)
        mask = np.array(Image.open(place/'truth'/f'{name}.png'))
        version = page.get(f'/api/mask/{i}').headers.get('ETag', '')
        done = page.put(f'/api/mask/{i}', content=_encode_runs(mask), headers={'If-Match': version or '""'})
        assert done.status_code == 200, done.text
        assert np.array_equal(np.array(Image.open(place/'photos'/'masks'/f'{name}.png')), mask)


def test_look_at_a_folder_without_masks(place):
    assert 'corrmatch label' in corrmatch(place, 'check', 'photos', code=1)


def test_label_and_train(place):
    draw(place, [f'p{i:02d}' for i in range(8)])
    corrmatch(place, 'check', 'photos')
    assert 'mIoU' in corrmatch(place, 'train', 'photos', '--labels', '5', '--out', 'runs/one', *SMALL_FLAGS)


def test_suggest_and_correct(place):
    said = corrmatch(place, 'suggest', 'photos', '--run', 'runs/one', '-n', '3', '--device', 'cpu')
    assert 'suggested' in said and (place/'suggested'/'index.html').is_file()
    listed = (place/'suggested'/'suggested.txt').read_text().split()
    names = [Path(name).stem for name in listed]
    assert len(set(names)) == 3 and not set(names) & {f'p{i:02d}' for i in range(8)}
    with open(place/'suggested'/'scores.csv', newline='') as file:
        assert len(list(csv.DictReader(file))) == 8  # every image without a mask has its scores
    draw(place, names)


def test_train_again_with_more_labels(place):
    corrmatch(
        place, 'train', 'photos', '--labels', '8', '--val', 'splits/s0/val.txt',
        '--out', 'runs/two', *SMALL_FLAGS)
    said = corrmatch(place, 'compare', 'runs/one', 'runs/two', '--device', 'cpu')
    found = re.search(r'(\d+) images: two is better on (\d+), worse on (\d+)', said)
    n, better, worse = map(int, found.groups())
    assert 0 < n and better + worse <= n and 'mean difference' in said


def test_predict_and_hand_over(place):
    images = [f'photos/images/p{i:02d}.png' for i in (12, 13)]
    corrmatch(
        place, 'predict', 'runs/two', *images, '--out', 'out', '--annotations', 'cvat', '--device', 'cpu')
    archive, = (place/'out').rglob('*.zip')
    with zipfile.ZipFile(archive) as file:
        names = file.namelist()
        assert 'labelmap.txt' in names
        file.extractall(place/'back')
    drawn = [n for n in names if n.startswith('SegmentationClass/') and n.endswith('.png')]
    assert len(drawn) == 2
    (place/'back'/'images').mkdir()
    for image in images:
        (place/'back'/'images'/Path(image).name).write_bytes((place/image).read_bytes())
    said = corrmatch(place, 'check', 'back')
    assert ' 2 images, 2 masks, 5 classes' in said.splitlines()[0]
