"""Downloads over a bad line: a server on this computer that cuts, stalls, lies and fails; nothing wrong ever
gets a final name."""
import errno
import fcntl
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import corrmatch.data.fetch as F
from corrmatch.config import IGNORE_INDEX
from corrmatch.data.folders import read_split
from corrmatch.data.fetch import (
    _Remote, download, _fetch_camvid, _fetch_cityscapes, _fetch_pets, _fetch_sbd, _fetch_splits, _fetch_voc,
    unpack)
from corrmatch.data.layouts import find_layout
from corrmatch.training.run_folder import hold_folder
from errors_for_tests import refused
from runs_for_tests import environment

BODY = np.random.default_rng(0).bytes(300_000)
QUICK = dict(wait=.01, timeout=60, tries=4)
PATIENCE = 2  # seconds, where a server that sends nothing more has to be left


def sha(data): return f'sha256:{hashlib.sha256(data).hexdigest()}'


class Server:
    "Bodies by path; per path a list of faults, one a request, then good answers."
    def __init__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'
            def log_message(self, *args): pass
            def do_GET(self): outer.answer(self)

        self.bodies = {}
        self.faults = {}
        self.asked = []
        self.pause = .06  # seconds between the parts of a slow answer
        self.over = threading.Event()
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        self.base = f'http://127.0.0.1:{self.http.server_port}/'
        threading.Thread(target=self.http.serve_forever, args=(.02,), daemon=True).start()

    def answer(self, h):
        path = h.path[1:]
        body = self.bodies.get(path)
        fault = self.faults[path].pop(0) if self.faults.get(path) else None
        wanted = h.headers.get('Range')
        self.asked.append((path, wanted))
        if body is None:
            fault = 404
        start = int(wanted[6:-1]) if wanted and fault != 'no ranges' else 0
        if fault is None and start >= len(body):
            fault = 416
        if isinstance(fault, int):
            h.send_response(fault)
            h.send_header('Content-Length', '0')
            h.end_headers()
            return
        h.send_response(206 if start else 200)
        told = start + 10 if fault == 'wrong start' else start
        if start:
            h.send_header('Content-Range', f'bytes {told}-{len(body)-1}/{len(body)}')
        if fault != 'no length':
            h.send_header('Content-Length', str(len(body)-start))
        else:
            h.send_header('Connection', 'close')
        h.end_headers()
        rest = body[start:]
        if fault == 'flip':
            rest = bytes([rest[0] ^ 1]) + rest[1:]
        if fault == 'slow':
            for i in range(6):
                h.wfile.write(rest[i*len(rest)//6:(i+1)*len(rest)//6])
                h.wfile.flush()
                time.sleep(self.pause)
        elif fault in ('cut', 'stall'):
            h.wfile.write(rest[:len(rest)//2])
            h.wfile.flush()
            if fault == 'stall':
                self.over.wait()
        else:
            h.wfile.write(rest)
        h.close_connection = True


@pytest.fixture
def server():
    s = Server()
    s.bodies['a.bin'] = BODY
    yield s
    s.over.set()
    s.http.shutdown()
    s.http.server_close()


def left(folder): return sorted(p.name for p in folder.iterdir())


# --- one file ---

@pytest.mark.parametrize(
    'faults, requests',
    [
        ([], 1), (['cut'], 2), (['cut', 'cut', 'cut'], 4), (['stall'], 2), ([500], 2), ([503, 'cut', 429], 4),
        (['slow'], 1), (['cut', 'slow'], 2), (['cut', 'no ranges'], 2), (['cut', 'wrong start'], 3),
        (['no length'], 1)],
    ids=str)
def test_faults_that_pass(server, tmp_path, faults, requests):
    "A slow answer takes longer than the timeout, but no part of it does."
    server.faults['a.bin'] = list(faults)
    server.pause = .3*PATIENCE
    timeout = PATIENCE if {'stall', 'slow'} & set(faults) else QUICK['timeout']
    path = download(server.base + 'a.bin', tmp_path/'a.bin', sha(BODY), **QUICK | dict(timeout=timeout))
    assert path.read_bytes() == BODY and len(server.asked) == requests and left(tmp_path) == ['a.bin']


def test_goes_on_in_another_process(server, tmp_path):
    server.faults['a.bin'] = ['cut']
    url = server.base + 'a.bin'
    refused(
        lambda: download(url, tmp_path / 'a.bin', sha(BODY), **QUICK | dict(tries=1)), url,
        '150000 of 300000', 'a.bin.part', 'again')
    assert left(tmp_path) == ['a.bin.part'] and server.asked == [('a.bin', None)]
    download(url, tmp_path/'a.bin', sha(BODY), **QUICK)
    assert server.asked[1:] == [('a.bin', 'bytes=150000-')] and left(tmp_path) == ['a.bin']


def test_stopped_before_the_name_was_given(server, tmp_path):
    "All bytes had arrived: the server answers 416, and the hash decides."
    (tmp_path/'a.bin.part').write_bytes(BODY)
    download(server.base + 'a.bin', tmp_path/'a.bin', sha(BODY), **QUICK)
    assert left(tmp_path) == ['a.bin']
    (tmp_path/'c.bin.whole').write_bytes(BODY)
    download(server.base + 'a.bin', tmp_path/'c.bin', sha(BODY), **QUICK).unlink()
    (tmp_path/'b.bin.part').write_bytes(BODY + b'more')
    refused(lambda: download(server.base + 'a.bin', tmp_path/'b.bin', sha(BODY), **QUICK), 'expected sha256')
    assert left(tmp_path) == ['a.bin']


def test_part_of_another_version(server, tmp_path):
    (tmp_path/'a.bin.part').write_bytes(bytes(1000))
    refused(lambda: download(server.base + 'a.bin', tmp_path/'a.bin', sha(BODY), **QUICK), 'it was removed')
    assert left(tmp_path) == []
    assert download(server.base + 'a.bin', tmp_path/'a.bin', sha(BODY), **QUICK).read_bytes() == BODY


def test_wrong_hash_never_gets_the_name(server, tmp_path):
    server.faults['a.bin'] = ['flip']
    refused(
        lambda: download(server.base + 'a.bin', tmp_path / 'a.bin', sha(BODY), **QUICK),
        server.base + 'a.bin', '300000 bytes', 'run the command again')
    assert left(tmp_path) == []


def test_wrong_file_of_that_name_is_replaced(server, tmp_path):
    (tmp_path/'a.bin').write_bytes(b'old')
    assert download(server.base + 'a.bin', tmp_path/'a.bin', sha(BODY), **QUICK).read_bytes() == BODY
    server.asked.clear()
    download(server.base + 'a.bin', tmp_path/'a.bin', sha(BODY), **QUICK)
    assert server.asked == []


@pytest.mark.parametrize(
    'faults, words',
    [
        ([404], ['404 Not Found', 'base=URL']), ([403], ['403']),
        ([500] * 4, ['500', '4 times', 'not written']), (['stall'] * 2, ['sends nothing more', 'kept in'])],
    ids=str)
def test_faults_that_stay(server, tmp_path, faults, words):
    server.faults['a.bin'] = list(faults)
    timeout = PATIENCE if 'stall' in faults else QUICK['timeout']
    limits = QUICK | dict(tries=len(faults), timeout=timeout)
    refused(
        lambda: download(server.base + 'a.bin', tmp_path / 'a.bin', sha(BODY), **limits),
        server.base + 'a.bin', *words)
    assert not (tmp_path/'a.bin').exists() and len(server.asked) == len(faults)


@pytest.mark.parametrize('total, shown', [(4*10**6, '4'), (None, '?')])
def test_progress_of_a_transfer_becomes_lines(monkeypatch, capsys, total, shown):
    "Without a terminal a line every ten seconds; here a chunk of a megabyte takes six."
    now = iter(range(0, 600, 6))
    monkeypatch.setattr(F, 'time', SimpleNamespace(monotonic=lambda: next(now)))
    chunks = [bytes(10**6)]*3
    assert list(F._follow_bytes(chunks, 'voc.tar', total, 10**6)) == chunks
    assert capsys.readouterr() == ('', f'voc.tar: 3 of {shown} MB\n')


def test_progress_of_a_transfer_on_a_terminal(monkeypatch):
    "A bar, which is gone when the connection breaks."
    def broken():
        yield bytes(10**6)
        raise F._Again('the connection broke')

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, 'stderr', terminal)
    with pytest.raises(F._Again):
        list(F._follow_bytes(broken(), 'voc.tar', 4*10**6, 10**6))
    assert 'voc.tar:  25%' in terminal.getvalue() and '1.00M/4.00M' in terminal.getvalue()
    assert terminal.getvalue().endswith('\r')


def test_nobody_there_and_odd_addresses(tmp_path):
    refused(
        lambda: download('http://127.0.0.1:9/a', tmp_path / 'a', **QUICK), 'no connection',
        'check the connection')
    for url in ('file:///etc/hosts', 'ftp://x/y', '/etc/hosts'):
        refused(lambda: download(url, tmp_path/'a'), 'not a web address')
    (tmp_path/'file').write_text('x')
    refused(
        lambda: download('http://127.0.0.1:9/a', tmp_path / 'file' / 'a', **QUICK),
        'is a file where a folder is needed')


# --- archives ---

def tar_of(files, mode='w:gz', **links):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return buffer.getvalue()


def zip_of(files, link=None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as z:
        for name, data in files.items():
            z.writestr(name, data)
        if link:
            info = zipfile.ZipInfo('link')
            info.external_attr = 0o120777 << 16
            z.writestr(info, link)
    return buffer.getvalue()


@pytest.mark.parametrize(
    'data',
    [
        tar_of({'a.txt': b'x', '../evil.txt': b'x'}), tar_of({'a.txt': b'x'}, link='/etc'),
        tar_of({'a.txt': b'x'}, link='../../up'), zip_of({'a.txt': b'x', '../evil.txt': b'x'}),
        zip_of({'/evil.txt': b'x'}), zip_of({'a.txt': b'x'}, link='/etc'), zip_of({'C:/evil.txt': b'x'}),
        zip_of({'~/evil.txt': b'x'}), zip_of({'..\\evil.txt': b'x'}),
        tar_of({'a.txt': bytes(9000)})[:70], zip_of({'a.txt': bytes(9000)})[:300], b'', b'<html>'],
    ids=[
        'tar_up', 'tar_link_root', 'tar_link_up', 'zip_up', 'zip_root', 'zip_link', 'zip_drive', 'zip_home',
        'zip_up_on_windows', 'tar_cut', 'zip_cut', 'empty', 'html'])
def test_evil_and_broken_archives(tmp_path, data):
    (tmp_path/'x.archive').write_bytes(data)
    refused(lambda: unpack(tmp_path/'x.archive', tmp_path/'in'/'out'), 'x.archive')
    assert left(tmp_path/'in') == [] and left(tmp_path) == ['in', 'x.archive']


def test_good_archives(tmp_path):
    for n, data in enumerate(
        (tar_of({'d/a.txt': b'x'}), tar_of({'d/a.txt': b'x'}, 'w'), zip_of({'d/a.txt': b'x'}))):
        (tmp_path/f'{n}.archive').write_bytes(data)
        assert (unpack(tmp_path/f'{n}.archive', tmp_path/str(n))/'d/a.txt').read_bytes() == b'x'
        refused(lambda: unpack(tmp_path/f'{n}.archive', tmp_path/str(n)), 'exists already')


# --- data sets ---

def png(array, palette=None):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, 'PNG')
    return buffer.getvalue()


def mask(i): return np.random.default_rng(i).integers(0, 5, (12, 14)).astype(np.uint8)


def image(i): return np.random.default_rng(i).integers(0, 256, (12, 14, 3)).astype(np.uint8)


def serve(server, name, data, fault='cut'):
    server.bodies[name], server.faults[name] = data, [fault]
    return _Remote(f'https://example.org/far/away/{name}', sha(data))


def test_published_lists(server, tmp_path):
    lists = {
        f'{family}/{n}/{kind}.txt': ''.join(f'J/{i}.jpg S/{i}.png\n' for i in range(n)).rstrip('\n').encode()
        for family in ('pascal', 'cityscapes')
        for n in (2, 5)
        for kind in ('labeled', 'unlabeled')}
    server.bodies |= {f'lists/{n}': data for n, data in lists.items()}
    for n, name in enumerate(lists):
        server.faults[f'lists/{name}'] = [['cut'], [500], ['slow'], []][n % 4]
    hashes = {n: hashlib.sha256(data).hexdigest() for n, data in lists.items()}
    kwargs = dict(base=server.base + 'lists/', hashes=hashes, **QUICK)
    assert len(_fetch_splits(tmp_path, **kwargs)) == 8
    assert {n: (tmp_path/'splits'/n).read_bytes() for n in lists} == lists
    server.asked.clear()
    _fetch_splits(tmp_path, **kwargs)
    assert server.asked == []
    (tmp_path/'splits/pascal/2/labeled.txt').write_text('edited')
    server.bodies['lists/pascal/2/labeled.txt'] = b'changed at the source'
    refused(lambda: _fetch_splits(tmp_path, **kwargs), 'pascal/2/labeled.txt', 'the source has changed')
    assert (tmp_path/'splits/pascal/2/labeled.txt').read_text() == 'edited'


def test_hashes_of_the_published_lists():
    names = {**F._PASCAL_LISTS, **F._CITYSCAPES_LISTS}
    assert (
        len(names) == 35
        and len(set(names.values())) == 35
        and all(len(h) == 64 and set(h) <= set('0123456789abcdef') for h in names.values()))
    assert {n.rpartition('/')[2] for n in names} == {
        'labeled.txt', 'unlabeled.txt', 'val.txt', 'train_aug.txt'} and F._SPLITS_BASE.endswith('/splits/')


def voc_files():
    files = {f'VOCdevkit/VOC2012/JPEGImages/{i}.jpg': png(image(i)) for i in range(7)}
    files |= {f'VOCdevkit/VOC2012/SegmentationClass/{i}.png': png(mask(i)) for i in (0, 1, 2)}
    return files | {
        'VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt': b'0\n1\n',
        'VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt': b'2\n'}


def test_voc_and_sbd(server, tmp_path):
    voc = serve(server, 'voc.tar', tar_of(voc_files(), 'w'))
    sbd = serve(
        server,
        'sbd.tgz',
        tar_of(
            {f'benchmark_RELEASE/dataset/cls/{i}.mat': bytes([i]) for i in range(1, 6)}
            | {
                'benchmark_RELEASE/dataset/train.txt': b'1\n2\n3\n',
                'benchmark_RELEASE/dataset/val.txt': b'4\n5\n'}))
    refused(lambda: _fetch_sbd(tmp_path, sbd, server.base), 'corrmatch fetch voc')
    assert '7 images, 3 masks' in _fetch_voc(tmp_path, voc, server.base, **QUICK)
    own = (tmp_path/'SegmentationClass/1.png').read_bytes()

    def read(path): return mask(100 + path.read_bytes()[0])
    assert '5 training images, 2 with masks of VOC, 3 of SBD' in _fetch_sbd(
        tmp_path, sbd, server.base, 5, read, None, **QUICK)
    pairs = read_split(tmp_path/'train_aug.txt', tmp_path)
    assert [p.name for p in pairs] == ['0', '1', '3', '4', '5'], 'val is never trained on'
    assert (tmp_path/'SegmentationClass/1.png').read_bytes() == own, "VOC's own mask is kept"
    written = Image.open(tmp_path/'SegmentationClass/4.png')
    assert written.mode == 'P' and (np.asarray(written) == mask(104)).all()
    refused(
        lambda: _fetch_sbd(tmp_path, sbd, server.base, 10582, read, None),
        'make 5 training images, not 10582')
    layout = find_layout(tmp_path)
    assert layout.kind == 'VOC' and [i.split for i in layout.items] == [
        'train', 'train', 'val', 'train', 'train', 'train']


def test_sbd_needs_scipy_or_reads_it(tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(F.importlib.util, 'find_spec', lambda name: None)
        refused(
            lambda: F._read_sbd(tmp_path/'a.mat'), 'need scipy: pip install corrmatch-seg[voc]',
            error=ValueError)
    pytest.importorskip('scipy')
    from scipy.io import savemat
    savemat(tmp_path/'a.mat', {'GTcls': {'Boundaries': np.zeros((2, 2)), 'Segmentation': mask(1)}})
    assert (F._read_sbd(tmp_path/'a.mat') == mask(1)).all()
    (tmp_path/'b.mat').write_bytes(b'nonsense')
    refused(lambda: F._read_sbd(tmp_path/'b.mat'), 'b.mat')


def test_camvid(server, tmp_path):
    sides = ['train']*40 + ['val']*2 + ['test']*2
    masks = {f'{i:02d}': np.where(mask(i) == 4, 11, mask(i)).astype(np.uint8) for i in range(44)}
    files = {f'repo-1/CamVid/{s}/{i:02d}.png': png(image(i)) for i, s in enumerate(sides)}
    files |= {f'repo-1/CamVid/{s}annot/{i:02d}.png': png(masks[f'{i:02d}']) for i, s in enumerate(sides)}
    archive = serve(server, 'camvid.zip', zip_of(files))
    refused(lambda: _fetch_camvid(tmp_path/'x', archive, server.base, **QUICK), 'not the known 701')
    line = _fetch_camvid(tmp_path/'y', archive, server.base, F._content_hash(masks), **QUICK)
    assert '40 train, 2 val, 2 test' in line
    got = np.asarray(Image.open(tmp_path/'y/masks/03.png'))
    assert ((got == IGNORE_INDEX) == (mask(3) == 4)).all()
    sets = [
        set((tmp_path / f'y/splits/{n}/labeled.txt').read_text().split())
        for n in ('1_30', '1_16', '1_8', '1_4')]
    assert [len(s) for s in sets] == [1, 2, 5, 10] and sets[0] < sets[1] < sets[2] < sets[3]
    assert len(read_split(tmp_path/'y/splits/1_4/labeled.txt', tmp_path/'y')) == 10


def test_pets(server, tmp_path):
    trimap = np.array([[1, 2, 3]*4]*6, np.uint8)
    photos = serve(
        server, 'images.tar.gz', tar_of({f'images/{n}.jpg': png(image(0)[:6, :12]) for n in 'abc'}))
    notes = serve(
        server,
        'annotations.tar.gz',
        tar_of(
            {f'annotations/trimaps/{n}.png': png(trimap) for n in 'abc'}
            | {
                'annotations/trimaps/._a.png': b'junk',
                'annotations/trainval.txt': b'# comment\na 1 1 1\nb 2 2 1\n'.replace(b'# comment\n', b''),
                'annotations/test.txt': b'c 1 1 2\n'}))
    assert '2 train, 1 test' in _fetch_pets(tmp_path, (photos, notes), server.base, None, **QUICK)
    assert np.asarray(Image.open(tmp_path/'masks/b.png'))[0, :3].tolist() == [2, 0, IGNORE_INDEX]
    assert [i.split for i in find_layout(tmp_path).items] == ['train', 'train', 'test']
    again = lambda: _fetch_pets(tmp_path, (photos, notes), server.base, None, **QUICK)
    assert 'are there' in again()
    for lost in ('images/b.jpg', 'masks/c.png', 'test.txt'):
        (tmp_path/lost).unlink()
        assert '2 train, 1 test' in again() and (tmp_path/lost).is_file() and 'are there' in again()


def test_cityscapes_explains_itself(tmp_path):
    line = _fetch_cityscapes(tmp_path)
    assert 'gtFine_trainvaltest.zip' in line and 'needs a login' in line
    (tmp_path/'gtFine_trainvaltest.zip').write_bytes(zip_of({'other/a.txt': b'x'}))
    refused(lambda: _fetch_cityscapes(tmp_path), 'holds no gtFine')
    refused(lambda: F.fetch('mnist', tmp_path), 'choose voc', error=ValueError)


# --- two at a time ---

HOLD = '''
import sys, time
from pathlib import Path
from corrmatch.data.fetch import _alone_in
with _alone_in(Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
'''


def test_a_second_fetch_is_sent_away_and_death_frees_the_folder(server, tmp_path):
    "The lock belongs to the process: a killed one leaves nothing to clear away."
    lists = {f'pascal/{n}.txt': f'{n}\n'.encode() for n in ('a', 'b')}
    for name, body in lists.items():
        server.bodies[name] = body
    def splits():
        return F.fetch(
            'splits', tmp_path, server.base, families=('pascal',),
            hashes={n: sha(b)[7:] for n, b in lists.items()}, **QUICK)
    other = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert other.stdout.readline() == 'held\n'
        refused(splits, tmp_path, 'another fetch is at work there', f'process {other.pid}', '--data')
        assert server.asked == [] and left(tmp_path) == ['.fetch.lock']
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert '2 lists' in splits() and (tmp_path/'splits/pascal/a.txt').read_bytes() == b'a\n'


@pytest.mark.parametrize('error', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, error):
    "There a fetch goes on without one, and a run folder is opened."
    def flock(*args): raise OSError(error, os.strerror(error))
    monkeypatch.setattr(fcntl, 'flock', flock)
    with F._alone_in(tmp_path):
        pass
    assert hold_folder(tmp_path) is None


def test_the_lock_is_given_back_behind_an_error_and_a_folder_in_its_place_is_named(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            with F._alone_in(tmp_path):
                1/0
    (tmp_path/'other'/'.fetch.lock').mkdir(parents=True)
    refused(lambda: F._alone_in(tmp_path/'other').__enter__(), tmp_path, 'cannot be written')


def test_archives_are_kept_or_removed(server, tmp_path):
    voc = serve(server, 'voc.tar', tar_of(voc_files(), 'w'))
    size = f'{len(server.bodies["voc.tar"])/1e6:.1f} MB'
    kept = F.fetch('voc', tmp_path/'a', server.base, source=voc, **QUICK)
    assert (
        kept.splitlines()[-1].startswith(f'{tmp_path}/a/downloads: keeps the archives, {size}')
        and (tmp_path / 'a/downloads/voc.tar').is_file())
    gone = F.fetch('voc', tmp_path/'b', server.base, remove_archives=True, source=voc, **QUICK)
    assert 'removed' in gone and left(tmp_path / 'b') == [
        '.fetch.lock', 'ImageSets', 'JPEGImages', 'SegmentationClass']
    n = len(server.asked)
    assert (
        F.fetch('voc', tmp_path / 'b', server.base, source=voc, **QUICK).count('\n') == 0
        and len(server.asked) == n), 'what is there is not fetched again'


def test_archives_of_others_are_not_removed(tmp_path):
    (tmp_path/'downloads').mkdir()
    for part, tail in (('gtFine', 'gtFine_labelIds'), ('leftImg8bit', 'leftImg8bit')):
        (tmp_path / f'downloads/{part}_trainvaltest.zip').write_bytes(
            zip_of({f'{part}/train/ulm/ulm_0_{tail}.png': png(mask(0))}))
    assert 'are there' in F.fetch('cityscapes', tmp_path, remove_archives=True)
    assert left(tmp_path/'downloads') == ['gtFine_trainvaltest.zip', 'leftImg8bit_trainvaltest.zip']


def test_only_names_that_fetching_makes_are_removed(tmp_path):
    ours = [
        'VOCtrainval_11-May-2012.tar.part', 'benchmark.tgz', 'images.tar.gz.whole', 'annotations.tar.gz',
        'bb68b64.zip', 'annotations/a.txt', '.sbd.part/b.txt', 'gone.zip']
    theirs = ['thesis.pdf', 'coco/images/1.jpg', 'train2017.zip', 'images.tar.gz.backup']
    for name in ours + theirs:
        (tmp_path/'downloads'/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'downloads'/name).write_bytes(bytes(50_000))
    text = F.fetch('cityscapes', tmp_path, remove_archives=True)
    assert 'removed, 0.3 MB' in text and left(tmp_path / 'downloads') == [
        'coco', 'gone.zip', 'images.tar.gz.backup', 'thesis.pdf', 'train2017.zip']


@pytest.mark.parametrize('lost', ['val.txt', 'images/03.png', 'masks/41.png', 'splits/1_8/unlabeled.txt'])
def test_classes_alone_are_not_camvid(server, tmp_path, lost):
    sides = ['train']*40 + ['val']*2
    files = {
        f'repo-1/CamVid/{s}{tail}/{i:02d}.png': png(f(i))
        for i, s in enumerate(sides)
        for tail, f in (('', image), ('annot', mask))}
    archive = serve(
        server,
        'camvid.zip',
        zip_of(
            files
            | {'repo-1/CamVid/test/50.png': png(image(50)), 'repo-1/CamVid/testannot/50.png': png(mask(50))}))
    again = lambda: _fetch_camvid(tmp_path, archive, server.base, '', **QUICK)
    again()
    assert 'is there' in again()
    (tmp_path/lost).unlink()
    assert '40 train' in again() and (tmp_path/lost).is_file() and 'is there' in again()


def test_a_folder_with_other_classes_is_left_alone(server, tmp_path):
    (tmp_path/'classes.txt').write_text('road 1 2 3\ntree 4 5 6\n')
    for call in (_fetch_camvid, _fetch_pets):
        refused(
            lambda: call(tmp_path, base=server.base, **QUICK), 'classes.txt', 'another data set',
            'choose another folder')
    assert server.asked == [] and left(tmp_path) == ['classes.txt']


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path/'file').write_text('x')
    for place in ('file', 'file/below'):
        refused(lambda: F.fetch('pets', tmp_path/place), tmp_path/place, 'choose another folder')
