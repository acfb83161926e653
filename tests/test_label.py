"The label page without a browser: its folder, its masks, its server."
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from corrmatch.data.check import check_data
from corrmatch.data.folders import ESCAPES_ROOT
from corrmatch.data.toy import toy_arrays
from corrmatch.files import DataError
from corrmatch.use import label as module
from corrmatch.use.label import (
    LabelFolder, _MaskConflict, _brush_features, _decode_runs, _encode_runs, find_images, _make_app,
    open_label_page, _settle_classes)
from runs_for_tests import environment

testclient = pytest.importorskip('starlette.testclient', reason='pip install corrmatch-seg[label]')
CLASSES = 'background,cat,dog'


@pytest.fixture
def photos(tmp_path):
    "Three images of 40 x 30 pixels in a folder with an odd name."
    folder = tmp_path/'my <photos> ü'
    (folder/'images').mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ('a.png', 'b b.jpg', 'ü & <i>.png'):
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), np.uint8)).save(folder/'images'/name)
    return folder


def client(folder, host='127.0.0.1', token='secret', **more):
    app = _make_app(LabelFolder(folder, more.pop('classes', CLASSES), **more), token='secret')
    return testclient.TestClient(app, base_url=f'http://{host}', headers={'X-Token': token})


def square(c=1, size=(30, 40)):
    ids = np.full(size, 255, np.uint8)
    ids[5:15, 5:15] = c
    return ids


def put(page, i, ids, version=''):
    return page.put(f'/api/mask/{i}', content=_encode_runs(ids), headers={'If-Match': f'"{version}"'})


def test_runs_hold_any_mask():
    draw = np.random.default_rng(0)
    for size in ((1, 1), (7, 5), (300, 200)):
        for values in ([255], [0, 1], range(256)):
            mask = draw.choice(np.array(values, np.uint8), size)
            assert (_decode_runs(_encode_runs(mask), size[::-1]) == mask).all()
    for data in (b'abc', b'', _encode_runs(np.zeros((3, 3), np.uint8))):
        with pytest.raises(ValueError):
            _decode_runs(data, (40, 30))


def test_a_mask_is_saved_as_a_palette_png(photos):
    page = client(photos)
    answer = put(page, 1, square(2))
    assert answer.status_code == 200 and answer.json()['share'] == pytest.approx(100/1200, abs=1e-3)
    with Image.open(photos/'masks'/'b b.png') as mask:
        assert mask.mode == 'P' and mask.size == (40, 30) and (np.asarray(mask) == square(2)).all()
        assert mask.getpalette()[:9] == module.palette(3, 'toy').ravel().tolist()
    assert (photos/'classes.txt').read_text().split()[::4] == ['background', 'cat', 'dog']
    answer = page.get('/api/mask/1')
    assert (_decode_runs(answer.content, (40, 30)) == square(2)).all() and len(answer.headers['etag']) > 10
    assert sorted(os.listdir(photos)) == ['classes.txt', 'images', 'masks'], 'nothing else is left behind'
    assert os.listdir(photos/'masks') == ['b b.png']


def test_training_reads_what_was_labeled(photos):
    page = client(photos)
    for i in range(3):
        ids = square(1)
        ids[20:] = 0
        ids[:3] = 2
        assert put(page, i, ids).status_code == 200
    report = check_data(photos)
    assert report.ok and len(report.usable) == 3, str(report)


def test_flat_folder_and_subfolders(tmp_path):
    for name in ('one/x.png', 'one/sub/x.png', 'one/masks/x.png', 'one/overlays/x.png', 'one/x_mask.png'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 6)).save(tmp_path/name)
    images, skipped = find_images(tmp_path/'one')
    assert [i.name for i in images] == ['x.png', 'sub/x.png'] and not skipped
    masks = [i.mask.relative_to(tmp_path/'one').as_posix() for i in images]
    assert masks == ['masks/x.png', 'masks/sub/x.png']


def test_list_gives_images_and_order(photos):
    (photos/'next.txt').write_text('images/ü & <i>.png\timages/none.png\nimages/a.png\n')
    for listed in (photos/'next.txt', 'next.txt'):
        images, _ = find_images(photos, listed)
        assert [i.path.name for i in images] == ['ü & <i>.png', 'a.png'] and images[1].mask.name == 'a.png'
    (photos/'next.txt').write_text('../secret.png\n')
    with pytest.raises(DataError, match='leaves the data folder'):
        find_images(photos, 'next.txt')


@pytest.mark.parametrize('note, turned', [(1, False), (6, True), (8, True)])
def test_images_are_turned_as_training_turns_them(tmp_path, note, turned):
    (tmp_path/'images').mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = note
    for name in 'abc':
        image.save(tmp_path/'images'/f'{name}.jpg', exif=exif, quality=95)
    page = client(tmp_path)
    size = tuple(page.get('/api/folder').json()['images'][0]['size'])
    assert size == ((24, 40) if turned else (40, 24))
    with Image.open(io.BytesIO(page.get('/api/image/0').content)) as shown:
        assert shown.size == size and shown.getexif().get(0x0112, 1) == 1, 'no browser turns it again'
    for i in range(3):
        ids = np.zeros(size[::-1], np.uint8)
        ids[:10] = 1
        ids[-10:] = 2
        assert put(page, i, ids).status_code == 200
    report = check_data(tmp_path)
    assert report.ok and len(report.usable) == 3, str(report)


def test_two_programs_do_not_overwrite_each_other(photos):
    one, two = client(photos), client(photos)
    version = put(one, 0, square(1)).json()['version']
    refused = put(two, 0, square(2))
    assert refused.status_code == 409 and 'changed in another window' in refused.text
    assert put(two, 0, square(2), version).status_code == 200
    assert put(one, 0, square(1), version).status_code == 409


def test_of_many_writers_one_wins_each_round(photos):
    """No two masks are alike, so the saved versions are a chain from no mask to the file of today: each is
    overwritten once, and no change is lost without its writer being told."""
    folders = [LabelFolder(photos, CLASSES) for _ in range(4)]
    def write(writer):
        saved = []
        for n in range(6):
            ids = square()
            ids[20:20+writer+1, :n+1] = 2
            _, version = folders[writer].read_mask(0)
            try:
                saved.append((version, folders[writer].save(0, ids, version)))
            except _MaskConflict:
                pass
        return saved
    with ThreadPoolExecutor(4) as pool:
        saved = [pair for pairs in pool.map(write, range(4)) for pair in pairs]
    after = dict(saved)
    chain = ['']
    while chain[-1] in after and len(chain) <= len(saved):
        chain.append(after[chain[-1]])
    assert len(after) == len(saved) >= 6, 'two writers have overwritten the same version'
    assert len(chain) == len(saved) + 1 and chain[-1] == folders[0].version(0)


def test_a_kill_leaves_the_old_or_the_new_mask(photos):
    "A process that is killed while it saves leaves a whole mask."
    folder = LabelFolder(photos, CLASSES)
    def write(started):
        version = ''
        for n in range(10**6):
            version = folder.save(0, np.full((30, 40), n % 3, np.uint8), version)
            if n > 20:
                started.set()
    context = multiprocessing.get_context('fork')
    started = context.Event()
    worker = context.Process(target=write, args=(started,))
    worker.start()
    assert started.wait(60)
    worker.kill()
    worker.join()
    ids, version = LabelFolder(photos).read_mask(0)
    assert version and len(np.unique(ids)) == 1 and ids[0, 0] < 3


def test_changed_classes(photos):
    put(client(photos), 0, square(2))
    assert client(photos, classes=None).get('/api/mask/0').status_code == 200
    more = client(photos, classes=f'{CLASSES},bird')
    assert put(more, 1, square(3)).status_code == 200
    assert (photos/'classes.txt').read_text().split()[::4] == ['background', 'cat', 'dog', 'bird']
    for wrong in ('background,cat', 'background,cow,dog', 'cat,background,dog'):
        with pytest.raises(DataError, match='classes.txt: the classes are .*would change what ids mean'):
            LabelFolder(photos, wrong)
    (photos/'classes.txt').write_text('background\ncow\ndog\n')
    with pytest.raises(DataError, match='a.png: was drawn with the classes background, cat, dog.*put'):
        LabelFolder(photos)
    (photos/'classes.txt').unlink()
    with pytest.raises(DataError, match='a.png: was drawn with the classes'):
        LabelFolder(photos, 'background,cat')


@pytest.mark.parametrize('names', ['a,,b', 'a\nb,c', 'a,a', '#a,b', ['x\x00y'], [str(i) for i in range(300)]])
def test_names_that_no_class_can_have(tmp_path, names):
    with pytest.raises(DataError, match='^classes: '):
        _settle_classes(tmp_path, names)


def test_names_from_a_file_or_a_model(tmp_path):
    (tmp_path/'names').write_text('sky\nbig tree\n')
    assert _settle_classes(tmp_path, tmp_path/'names')[0] == ['sky', 'big tree']
    assert _settle_classes(tmp_path, None, ['x', 'y'])[0] == ['x', 'y']
    with pytest.raises(DataError, match='say which classes there are with --classes .* or write that file'):
        _settle_classes(tmp_path)


@pytest.mark.parametrize('mode', ['P', 'L'])
def test_masks_of_other_programs(photos, mode):
    (photos/'masks').mkdir()
    Image.fromarray(square(1)).convert(mode).save(photos/'masks'/'a.png') if mode == 'L' else None
    if mode == 'P':
        image = Image.fromarray(square(1))
        image.putpalette([7]*768)
        image.save(photos/'masks'/'a.png')
    page = client(photos)
    answer = page.get('/api/mask/0')
    assert (_decode_runs(answer.content, (40, 30)) == square(1)).all()
    assert page.get('/api/folder').json()['images'][0]['share'] == 1
    assert put(page, 0, square(2), answer.headers['etag'].strip('"')).status_code == 200


@pytest.mark.parametrize('make, message', [
    (lambda path: Image.new('L', (5, 4)).save(path), '5x4 pixels, but images/a.png has 40x30: the image'),
    (lambda path: Image.new('L', (40, 30), 9).save(path), 'value 9 in 1200 pixels is none of the 3 classes'),
    (lambda path: Image.new('RGB', (40, 30)).save(path), 'a mask is an 8-bit grey or palette PNG'),
    (lambda path: path.write_bytes(b'nonsense'), 'unreadable image')])
def test_a_mask_that_cannot_be_kept_is_left_alone(photos, make, message):
    (photos/'masks').mkdir()
    path = photos/'masks'/'a.png'
    make(path)
    before = path.read_bytes()
    page = client(photos)
    answer = page.get('/api/mask/0')
    assert answer.status_code == 422 and message in answer.text and 'a.png' in answer.text, answer.text
    version = LabelFolder(photos, CLASSES).version(0)
    assert put(page, 0, square(), version).status_code == 422 and path.read_bytes() == before


def test_bad_folders_and_images(photos, tmp_path):
    (photos/'images'/'cut.png').write_bytes((photos/'images'/'a.png').read_bytes()[:2000])
    (photos/'images'/'no.png').write_bytes(b'')
    images, skipped = find_images(photos)
    assert [i.path.name for i in images] == ['a.png', 'b b.jpg', 'cut.png', 'ü & <i>.png']
    assert len(skipped) == 1 and 'no.png: unreadable image' in skipped[0] and 'remove it' in skipped[0]
    answer = client(photos).get('/api/image/2')
    assert answer.status_code == 422 and 'cut.png: unreadable or cut short' in answer.text
    (tmp_path/'empty').mkdir()
    with pytest.raises(DataError, match='empty: holds no images'):
        LabelFolder(tmp_path/'empty', CLASSES)
    with pytest.raises(DataError, match='no such folder'):
        LabelFolder(tmp_path/'nowhere', CLASSES)


def test_links_out_of_the_folder_are_not_followed(photos, tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path/'secret.png')
    (photos/'images'/'link.png').symlink_to(tmp_path/'secret.png')
    images, skipped = find_images(photos)
    assert 'link.png' not in [i.path.name for i in images] and ESCAPES_ROOT in skipped[0]
    (photos/'masks').mkdir()
    (photos/'masks'/'a.png').symlink_to(tmp_path/'new.png')
    images, skipped = find_images(photos)
    assert 'a.png' not in [i.path.name for i in images] and len(skipped) == 2


def test_a_folder_that_cannot_be_written(photos, monkeypatch):
    page = client(photos)
    def full(*args): raise DataError('masks/a.png: cannot be written (No space left on device); free space')
    monkeypatch.setattr(module, 'write_file', full)
    answer = put(page, 0, square())
    assert answer.status_code == 422 and 'No space left' in answer.text
    monkeypatch.undo()
    assert page.get('/api/folder').json()['problem'] == ''
    (photos/'masks').write_text('')
    assert 'masks: masks cannot be saved here' in page.get('/api/folder').json()['problem']
    assert put(page, 0, square()).status_code == 422 and page.get('/api/mask/0').status_code == 200


def test_only_the_token_and_this_machine(photos):
    assert client(photos).get('/?token=secret').status_code == 200
    for path in ('/', '/?token=', '/?token=Secret', '/?token=secret%00'):
        assert client(photos).get(path).status_code == 403
    paths = ['/api/folder', '/api/image/0', '/api/mask/0', '/api/features/0', '/api/prediction/0']
    for path in paths:
        for token in ('', 'x', 'secrets'):
            assert client(photos, token=token).get(path).status_code == 403
        for host in ('evil.example', '127.0.0.1.evil.example', '0.0.0.0', '[::1]'):
            assert client(photos, host).get(path).status_code == 400
    assert put(client(photos, token='x'), 0, square()).status_code == 403
    assert put(client(photos, 'evil.example'), 0, square()).status_code == 400
    assert not (photos/'masks').exists()
    policy = client(photos).get('/?token=secret').headers['content-security-policy']
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and 'unsafe' not in policy


def test_nothing_but_the_listed_images(photos):
    page = client(photos)
    for path in (
        '/api/image/3', '/api/image/-1', '/api/image/0.0', '/api/image/..%2f..%2fetc%2fpasswd',
        '/assets/page.css', '/assets/..%2f..%2ffiles.py', '/images/a.png', '/classes.txt'):
        assert page.get(path).status_code == 404, path
    strange = _encode_runs(np.full((30, 40), 7, np.uint8))
    for data, code in ((b'', 422), (b'abcd'*5000, 413), (strange, 422)):
        assert page.put('/api/mask/0', content=data, headers={'If-Match': '""'}).status_code == code
    assert page.put('/api/mask/9', content=b'').status_code == 404 and not (photos/'masks').exists()
    assert page.post('/api/mask/0').status_code == 405


def test_features_without_the_extra_name_it(photos, monkeypatch):
    def missing(*args): raise ModuleNotFoundError('timm')
    monkeypatch.setattr(module, 'lite0_features', missing)
    meta = json.loads(client(photos).get('/api/features/0').headers['x-meta'])
    assert meta['source'] == 'colour and texture' and 'pip install corrmatch-seg[lite]' in meta['note']
    assert meta['grid'] == [30, 40] and meta['channels'] == 16
    assert meta['sides'] == 1, 'query and key are the same features, which travel once'


def test_a_port_that_no_machine_has(photos):
    for port in (-1, 80000):
        with pytest.raises(DataError, match=f'^port={port}: give a number from 0 to 65535$'):
            open_label_page(photos, classes=CLASSES, port=port)


def test_without_the_server_one_line(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    with pytest.raises(ImportError, match=r'pip install corrmatch-seg\[label\]'):
        open_label_page(photos, classes=CLASSES)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run of two steps on generated images."
    import corrmatch
    root = tmp_path_factory.mktemp('labeled')
    (root/'images').mkdir()
    (root/'masks').mkdir()
    for i, (image, mask) in enumerate(zip(*toy_arrays(range(8), 65, n_classes=3))):
        Image.fromarray(image).save(root/'images'/f'{i}.png')
        Image.fromarray(mask).save(root/'masks'/f'{i}.png')
    (root/'classes.txt').write_text('background\nstripes\nchecks\n')
    return corrmatch.train(
        root, out=str(root/'run'), quiet=True, labels=3, crop=33, dim=16, low_dim=8, backbone='toynet',
        weights='', steps=2, eval_every=2, batch_x=2, batch_u=2, regions=4, norm='group', stride=8,
        device='cpu', workers=0, allow_missing=True)


def test_a_run_gives_regions_classes_and_a_start(run, photos):
    from corrmatch.use.predict import load
    model = load(run, device='cpu')
    folder = LabelFolder(photos, None, otherwise=model.names)
    assert folder.names == ['background', 'stripes', 'checks']
    page = testclient.TestClient(
        _make_app(folder, model, 'secret'), base_url='http://127.0.0.1', headers={'X-Token': 'secret'})
    said = page.get('/api/folder').json()
    assert said['model'] == str(run) and said['cut'] == model.config.region_cut and said['tau'] == model.tau
    meta = json.loads(page.get('/api/features/0').headers['x-meta'])
    assert meta['sides'] == 2 and str(run) in meta['source'] and not meta['note']
    everything = _decode_runs(page.get('/api/prediction/0?tau=0').content, (40, 30))
    wanted = model.predict(photos/'images'/'a.png')
    assert (everything == wanted.mask).all()
    confident = _decode_runs(page.get('/api/prediction/0?tau=.5').content, (40, 30))
    assert ((confident == 255) == (wanted.confidence < .5)).all()
    other = testclient.TestClient(
        _make_app(LabelFolder(photos, 'checks,background'), model, 'secret'), base_url='http://127.0.0.1',
        headers={'X-Token': 'secret'})
    ids = _decode_runs(other.get('/api/prediction/0?tau=0').content, (40, 30))
    assert (ids == np.array([1, 255, 0], np.uint8)[wanted.mask]).all(), 'classes are matched by their names'


def test_a_run_without_a_correlation_head_says_so(run, photos, monkeypatch):
    def missing(*args): raise ModuleNotFoundError
    monkeypatch.setattr(module, 'lite0_features', missing)
    from corrmatch.use.predict import load
    model = load(run, device='cpu')
    model.model = model.model.backbone
    found = _brush_features(Image.open(photos/'images'/'a.png'), model)
    assert 'has no correlation head' in found.note


def test_command(photos):
    "The command prints an address that answers, and ends with Ctrl+C."
    words = [sys.executable, '-m', 'corrmatch', 'label', str(photos), '--classes', CLASSES, '--no-open']
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True,
        # a shell lets its background jobs, such as this suite may be one, ignore Ctrl+C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        url = process.stdout.readline().strip()
        assert url.startswith('http://127.0.0.1:') and len(url.split('token=')[1]) >= 32
        for _ in range(100):
            try:
                assert b'label.js' in urllib.request.urlopen(url, timeout=5).read()
                break
            except urllib.error.HTTPError:  # it is there, and refuses
                raise
            except OSError:
                time.sleep(.1)
        else:
            pytest.fail(f'nothing answers at {url}')
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 130 and 'Traceback' not in err, err
    finally:
        process.kill()
        process.wait()
