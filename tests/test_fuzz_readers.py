"""Damaged bytes of images, masks, lists and class files: read, or refused in one line; CORRMATCH_FUZZ=5000
tries more of them."""
import contextlib
import io
import os
import signal

import numpy as np
import pytest
from PIL import Image

from corrmatch.data.folders import open_image, open_mask, read_classes, read_split
from corrmatch.data.layouts import _find_classes, find_layout
from corrmatch.data.masks import load_image, read_mask
from corrmatch.data.check import check_data, _report_json, report_text

CASES = int(os.environ.get('CORRMATCH_FUZZ', 150))  # of each kind
pytestmark = pytest.mark.filterwarnings('ignore')


@contextlib.contextmanager
def at_most(seconds):
    "Turn a hang into a failure."
    def late(*_): raise AssertionError(f'hangs: more than {seconds} s')
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(read, *args):
    "What a reader returns, or None where it refuses in one line; anything else fails the test."
    with at_most(60):
        try:
            return read(*args)
        except ValueError as e:
            assert str(e).strip() and '\n' not in str(e), repr(e)  # DataError is one


def damage(content, rng):
    "Bytes with one to four changes: flipped, cut off, removed, doubled or put in."
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(data) + 1))
        n = int(rng.integers(1, 9))
        change = rng.integers(0, 6)
        if change == 0:
            data[at:at+1] = bytes([rng.integers(0, 256)])
        elif change == 1:
            del data[max(at, 1):]
        elif change == 2:
            del data[at:at+n]
        elif change == 3:
            data[at:at] = data[at:at+n]
        elif change == 4:
            data[at:at] = rng.bytes(n)
        else:
            data[at:at+n] = rng.choice([b'\0', b'\xff', b'\x7f'])*n
    return bytes(data)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_seeds():
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 4096, (20, 24)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = [encoded(rgb, kind) for kind in ('PNG', 'JPEG', 'TIFF', 'BMP', 'WEBP', 'GIF')]
    return [
        *plain, encoded(rgb, 'JPEG', exif=exif), encoded(rgb.convert('RGBA'), 'PNG'),
        encoded(rgb.convert('CMYK'), 'JPEG'), encoded(deep, 'PNG'), encoded(deep, 'TIFF'),
        encoded(rgb, 'TIFF', compression='tiff_lzw')]


def mask_seeds():
    ids = np.zeros((20, 24), np.uint8)
    ids[4:12, 3:20] = 1
    ids[10:18, 8:22] = 2
    grey = Image.fromarray(ids)
    coloured = Image.fromarray(ids)
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    return [
        encoded(grey, 'PNG'), encoded(coloured, 'PNG'), encoded(coloured, 'PNG', transparency=0),
        encoded(coloured, 'PNG', bits=2), encoded(grey, 'TIFF'), encoded(coloured, 'GIF'),
        encoded(grey, 'BMP'), encoded(Image.fromarray(ids > 0), 'PNG'),
        encoded(coloured.convert('RGB'), 'PNG'), encoded(Image.fromarray(ids.astype(np.uint16) * 300), 'PNG'),
        encoded(coloured.convert('RGBA'), 'PNG'), encoded(Image.fromarray(ids.astype(np.float32)), 'TIFF')]


def damaged(seeds, stream):
    "Damaged copies of the seeds in turn, the first of each undamaged."
    rng = np.random.default_rng(stream)
    for i in range(max(CASES, len(seeds))):
        yield i, seeds[i % len(seeds)] if i < len(seeds) else damage(seeds[i % len(seeds)], rng)


def test_images(tmp_path):
    n_read = 0
    for i, content in damaged(image_seeds(), 1):
        path = tmp_path/f'{i}.png'
        path.write_bytes(content)
        read = outcome(load_image, path)
        opened = outcome(open_image, path)
        outcome(open_image, path, False)
        n_read += read is not None
        if opened is not None:
            assert read is not None and opened.tobytes() == read.tobytes()  # training sees what `check` saw
        path.unlink()
    assert n_read >= len(image_seeds())


def decoded(path):
    "The values of a mask as Pillow decodes it, packed where they are colours."
    with Image.open(path) as image:
        image.load()
    if image.mode in ('LA', 'PA'):
        return np.asarray(image.getchannel(0))
    if len(image.getbands()) < 3:
        return np.asarray(image)
    return np.asarray(image.convert('RGB')).astype(int) @ [65536, 256, 1]


def test_masks_are_what_pillow_decodes_or_refused(tmp_path):
    n_read = 0
    for i, content in damaged(mask_seeds(), 2):
        path = tmp_path/f'{i}.png'
        path.write_bytes(content)
        stored = outcome(read_mask, path)
        trained = outcome(open_mask, path)
        n_read += stored is not None
        if stored is not None:
            assert np.array_equal(stored.values, decoded(path))
        if trained is not None:
            assert stored is not None and np.array_equal(np.asarray(trained), stored.values)
        path.unlink()
    assert n_read >= len(mask_seeds()) - 1


LINES = [
    'images/a.jpg masks/a.png', 'images/b.jpg,masks/b.png', 'a', 'images/a.jpg',
    '"images/b.jpg";"masks/b.png"', 'images\\a.jpg\tmasks\\a.png', '../a.jpg', '/images/a.jpg', 'image,mask',
    'caf\u00e9', 'cafe\u0301', '', ' ', '#', '\0', '~/a.png', 'images/./a.jpg', 'images/../images/a.jpg',
    'x' * 5000]
ENCODINGS = ('utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'latin-1', 'utf-32')


def texts(lines, stream):
    "Texts of some of these lines, in several encodings, mostly damaged."
    rng = np.random.default_rng(stream)
    for i in range(CASES):
        chosen = [lines[j] for j in rng.integers(0, len(lines), rng.integers(0, 6))]
        text = rng.choice(['\n', '\r\n', '\r']).join(chosen).encode(str(rng.choice(ENCODINGS)), 'replace')
        yield i, damage(text, rng) if i % 3 else text


@pytest.fixture
def folder(tmp_path):
    for name in 'abcd':
        for kind, seed in (('images', image_seeds()[1]), ('masks', mask_seeds()[0])):
            (tmp_path/kind).mkdir(exist_ok=True)
            (tmp_path/kind/f'{name}.{"jpg" if kind == "images" else "png"}').write_bytes(seed)
    return tmp_path


def test_lists(folder):
    n_read = 0
    for _, content in texts(LINES, 3):
        (folder/'train.txt').write_bytes(content)
        for masks in (True, False):
            found = outcome(read_split, folder/'train.txt', folder, masks)
            n_read += bool(found)
            for pair in found or ():
                assert pair.image.resolve().is_relative_to(folder.resolve()) and pair.image.is_file()
                assert not masks or pair.mask.is_file()
        outcome(find_layout, folder)
    assert n_read


CLASSES = [
    'sky', 'big cat', 'road 1 2 3', 'sea,4,5,6', '0: cat', '1: dog', '0 1 2 tree', 'cat:1,2,3::',
    'name,r,g,b', '# comment', '__ignore__', '', 'caf\u00e9', '300 1 2', 'a 1 2 300', 'x 1.5 2 3',
    '\u0663 1 2 3', '1', '{"a": 1}', '"a\nb",1,2,3', '\0', '__background__', 'bell\u00b2 \u00b2 1 2',
    'y' * 5000]


@pytest.mark.parametrize(
    'name', ['classes.txt', 'label_colors.txt', 'class_dict.csv', 'labelmap.txt', 'class_names.txt'])
def test_class_files(tmp_path, name):
    n_read = 0
    for i, content in texts(CLASSES, sum(name.encode())):
        (tmp_path/name).write_bytes(content)
        found = outcome(_find_classes, tmp_path)
        if name == 'classes.txt':
            outcome(read_classes, tmp_path)
        if not found:
            continue
        n_read += 1
        assert all(found[0]) and (found[1] is None or found[1].shape == (len(found[0]), 3))
    assert n_read


def test_a_folder_with_damaged_files_gets_a_report(folder):
    "check_data never fails otherwise than in one line, and its table counts every file."
    rng = np.random.default_rng(5)
    images = image_seeds()
    masks = mask_seeds()
    for i in range(max(10, CASES//10)):
        victim = rng.choice(['images/a.jpg', 'masks/a.png', 'train.txt', 'classes.txt', 'notes.json'])
        seed = {
            'i': images[i % len(images)], 'm': masks[i % len(masks)], 't': b'a\nb\n', 'c': b'x\ny\nz\n',
            'n': b'{"images": [], "annotations": [], "categories": []}'}[victim[0]]
        before = (folder/victim).read_bytes() if (folder/victim).exists() else None
        (folder/victim).write_bytes(damage(seed, rng))
        report = outcome(lambda: check_data(folder, workers=1, progress=None))
        if report:
            assert (
                len(report.layout.files) == sum(p.is_file() for p in folder.rglob('*'))
                and report_text(report)
                and _report_json(report))
        if before is None:
            (folder/victim).unlink()
        else:
            (folder/victim).write_bytes(before)
