"""Large unlabeled sets: shards in webdataset layout, folders and lists of a million names, their caches, and
memory that stays flat."""
import gzip
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch.data import shards as shards_module
from corrmatch.data.folders import FolderSource, Pair, check_source, read_split
from corrmatch.data.batches import StepBatches, make_loader
from corrmatch.data.shards import (
    _LARGE, ListSource, _NameStore, find_shards, _list_folder, _open_list, open_unlabeled,
    spot_check, write_shards)
from errors_for_tests import refused

webdataset = pytest.importorskip(
    'webdataset', reason='the library whose layout is written and read; of the extra `dev`')
IDS = [f'p{i:02d}' for i in range(20)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    "Twenty images of 20x16 with masks, a list of them, and the same in shards of eight."
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    rng, root = np.random.default_rng(0), tmp_path/'data'
    for folder in ('images', 'masks'):
        (root/folder).mkdir(parents=True)
    for name in IDS:
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8)).save(root/'images'/f'{name}.jpg')
        Image.fromarray(rng.integers(0, 3, (16, 20)).astype(np.uint8)).save(root/'masks'/f'{name}.png')
    (root/'list.txt').write_text('\n'.join(IDS))
    write_shards(read_split(root/'list.txt', root), root/'shards', 8)
    return root


def cache_files(root): return sorted((root.parent/'cache'/'corrmatch').iterdir())


# --- a million names

MILLION = '''
import os, sys, time
import numpy as np
from corrmatch.data.folders import LABELED, MIX, UNLABELED, EndlessOrder
from corrmatch.data.shards import open_unlabeled, spot_check
np.sort(np.random.default_rng(0).permutation(10))

def megabytes(key, path='/proc/self/status'):
    return next(int(line.split()[1]) for line in open(path) if line.startswith(key))/1024

n, before, start = 1_000_000, megabytes('VmRSS'), time.process_time()
source = open_unlabeled('list.txt', sys.argv[1])
seconds, opened = time.process_time() - start, megabytes('VmRSS') - before
assert len(source) == n and source.names[123_456] == 'train/n00000123_00456'
assert len(spot_check(range(n))) == 1000
orders = [EndlessOrder(n, 0, UNLABELED), EndlessOrder(n, 0, MIX), EndlessOrder(92, 0, LABELED, n)]
for step in range(1000):
    for place in range(8*step, 8*step + 8):
        drawn = source.names[orders[0][place]], orders[1][place], orders[2][place]
steps, top = megabytes('VmRSS') - before, megabytes('VmHWM') - before
for epoch in range(1, 12): orders[0][n*epoch]
epochs = megabytes('VmRSS') - before
read, write = os.pipe()
if os.fork() == 0:                       # what a worker process would copy
    own = megabytes('Private_Dirty', '/proc/self/smaps_rollup')
    for name in source.names: pass
    os.write(write, str(megabytes('Private_Dirty', '/proc/self/smaps_rollup') - own).encode())
    os._exit(0)
os.wait()
print(seconds, opened, steps, top, epochs, float(os.read(read, 99)))
'''


@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='memory is measured by /proc')
def test_a_million_names(tmp_path, record_property):
    """Opening the source and drawing 1000 steps takes under 60 MB, 12 epochs take no more, and a worker
    copies nothing."""
    with open(tmp_path/'list.txt', 'w') as file:
        file.writelines(f'train/n{i//1000:08d}_{i%1000:05d}\n' for i in range(1_000_000))
    done = subprocess.run(
        [sys.executable, '-c', MILLION, str(tmp_path)], capture_output=True, text=True, timeout=600,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    figures = dict(
        zip(('seconds', 'opened', 'steps', 'top', 'epochs', 'worker'), map(float, done.stdout.split())))
    for name, value in figures.items():
        record_property(name, round(value, 1))
    print({name: round(value, 1) for name, value in figures.items()})
    assert (
        figures['opened'] < 40 and figures['steps'] < 60 and figures['top'] < 70 and figures['epochs'] < 70
    ), figures
    assert figures['worker'] < 5, figures


def test_store_is_a_sequence():
    names = ['a', '', 'ü/\udcff', 'b'*1000]
    store = _NameStore(iter(names))
    assert (
        list(store) == names
        and store[-2] == names[-2]
        and store[::2] == names[::2]
        and 'a' in store
        and store.index('a') == 0)
    assert list(pickle.loads(pickle.dumps(store))) == names
    assert _NameStore().nbytes == 8 and list(_NameStore()) == []


def test_long_list_equals_short_one(root):
    (root / 'mixed.txt').write_text(
        'images/p00.jpg masks/p00.png\np01\nimages/p02.jpg\nimages/p03 masks/p03.png\nimages/p04.jpg '
        'nowhere/p04.png\n')
    for name in ('list.txt', 'mixed.txt'):
        long = _open_list(root/name, root, large=1)
        short = _open_list(root/name, root)
        assert isinstance(long, ListSource) and isinstance(short, FolderSource)
        assert list(long.names) == short.names
        for i in range(len(short)):
            assert long.where(i)[0].startswith(short.where(i)[0].rpartition('.')[0]) and long.has_mask(
                i) == short.has_mask(i)
            assert np.array_equal(long.read_image(i), short.read_image(i)) and long.image_size(
                i) == short.image_size(i)
            if short.has_mask(i):
                assert np.array_equal(long.read_mask(i), short.read_mask(i))


def test_suffix_in_capitals(root):
    (root/'images'/'p00.jpg').rename(root/'images'/'p00.JPG')
    assert _open_list(root/'list.txt', root, large=1).image_size(0) == (20, 16)


def test_long_list_with_faults(root):
    (root/'bad.txt').write_text('p00\n\np01\nimages/p00.jpg\np01\n' + '\n'.join(IDS[2:]))
    refused(
        lambda: _open_list(root / 'bad.txt', root, large=1), 'bad.txt line 5', 'line 3 already', 'images/p01')
    (root/'bad.txt').write_text('p00\na b c\n')
    refused(lambda: _open_list(root/'bad.txt', root, large=1), 'line 2', '3 fields')
    refused(lambda: _open_list(root/'list.txt', root/'none', large=1), 'none', 'check the path')
    refused(lambda: _open_list(root/'none.txt', root, large=1), 'none.txt', 'check the path')
    (root/'images'/'p03.jpg').write_bytes(b'no image')
    (root/'images'/'p04.jpg').unlink()
    source = _open_list(root/'list.txt', root, large=1)
    refused(lambda: source.read_image(3), 'p03.jpg', 'unreadable')
    refused(lambda: source.read_image(4), 'images/p04', 'no such image')
    refused(lambda: check_source(source, 3, masks=False, decode=False, progress=spot_check), 'p03')


def test_sample_of_a_long_list():
    for n in (1, _LARGE):
        assert spot_check(range(n)) == range(n)
    chosen = spot_check(range(_LARGE+1))
    assert len(chosen) == 1000 and chosen == sorted(set(chosen)) and chosen[-1] <= _LARGE


# --- folders

def test_folder_is_listed_once(root, monkeypatch):
    first = open_unlabeled('images', root)
    assert first.names[:] == IDS and not first.has_mask(0)
    monkeypatch.setattr(shards_module, '_scan', lambda *args: pytest.fail('listed again'))
    again = open_unlabeled('images', root)
    assert again.names[:] == IDS and np.array_equal(again.read_image(7), first.read_image(7))
    assert pickle.loads(pickle.dumps(again)).image_size(0) == (20, 16)


@pytest.mark.parametrize('change', ['add', 'remove', 'nest', 'spoil'])
def test_stale_listing_is_made_again(root, change):
    (root/'images'/'deep'/'er').mkdir(parents=True)
    assert len(_list_folder(root/'images')) == 20
    os.utime(root/'images'/'deep'/'er', ns=(0, 0))
    if change == 'add':
        Image.new('RGB', (2, 2)).save(root/'images'/'deep'/'er'/'x.PNG')
    if change == 'remove':
        (root/'images'/'p00.jpg').unlink()
        os.utime(root/'images', ns=(0, 0))
    if change == 'nest':
        (root/'images'/'deep'/'er').rmdir()
        os.utime(root/'images'/'deep', ns=(0, 0))
    if change == 'spoil':
        [p.write_bytes(p.read_bytes()[:-50]) for p in cache_files(root)]
    assert len(_list_folder(root/'images')) == {'add': 21, 'remove': 19}.get(change, 20)


def test_order_of_a_folder_is_the_same_everywhere(root, monkeypatch):
    for name in ('z/a', 'a/z', 'Z', 'ä'):
        (root/'many'/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (2, 2)).save(root/'many'/f'{name}.png')
    names, scandir = _list_folder(root/'many')[:], os.scandir

    class Backwards:
        def __init__(self, path): self.entries = scandir(path)
        def __enter__(self): return reversed(list(self.entries))
        def __exit__(self, *error): self.entries.close()
    monkeypatch.setattr(os, 'scandir', Backwards)
    assert (
        _list_folder(root / 'many', root / 'other cache')[:]
        == names
        == ['Z.png', 'ä.png', 'a/z.png', 'z/a.png'])


def test_hidden_and_other_files_are_left_out(root):
    for name in ('.hidden.jpg', 'notes.txt', 'my picture.jpg'):
        (root/'images'/name).write_bytes((root/'images'/'p00.jpg').read_bytes())
    source = open_unlabeled('images', root)
    assert source.names[:] == ['my picture', *IDS] and source.image_size(0) == (20, 16)
    (root/'empty').mkdir()
    refused(lambda: open_unlabeled('empty', root), 'empty', 'no image')


# --- shards

def test_shards_equal_the_folder(root):
    packed = open_unlabeled('shards/*.tar', root)
    folder = FolderSource(read_split(root/'list.txt', root))
    assert list(packed.names) == folder.names and len({int(s) for s in packed.rows['shard']}) == 3
    for i in range(20):
        assert np.array_equal(packed.read_image(i), folder.read_image(i)) and np.array_equal(
            packed.read_mask(i), folder.read_mask(i))
        assert packed.image_size(i) == folder.image_size(i) and packed.has_mask(i)
    assert packed.where(9) == (
        f'{root}/shards/shard-000001.tar:p09.jpg', f'{root}/shards/shard-000001.tar:p09.png')
    assert check_source(packed, 3).n_images == 20
    assert pickle.loads(pickle.dumps(packed)).image_size(3) == (20, 16)


def same(a, b):
    "Are two batches equal, tensor by tensor?"
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_from_shards_equal_batches_from_files(root, workers):
    folder = FolderSource(read_split(root/'list.txt', root))
    def batches(unlabeled, n):
        return list(make_loader(StepBatches(folder, unlabeled, 9, 2, 3, seed=0, with_hidden=True), 0, 4, n))
    for ours, files in zip(
        batches(open_unlabeled('shards/*.tar', root), workers), batches(folder, 0), strict=True):
        assert same(ours, files)


def test_webdataset_reads_what_we_write(root):
    paths = [str(p) for p in find_shards('shards/shard-{000000..000002}.tar', root)]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    assert [s['__key__'] for s in samples] == IDS
    for s in samples:
        assert (
            s['jpg'] == (root / 'images' / f"{s['__key__']}.jpg").read_bytes()
            and s['png'] == (root / 'masks' / f"{s['__key__']}.png").read_bytes())


def test_we_read_what_webdataset_writes(root):
    (root/'theirs').mkdir()
    with webdataset.ShardWriter(str(root/'theirs'/'%04d.tar'), maxcount=6, verbose=0, encoder=False) as sink:
        for name in IDS:
            sink.write(
                {
                    '__key__': f'train/{name}', 'jpg': (root / 'images' / f'{name}.jpg').read_bytes(),
                    'json': b'{}', 'seg.png': (root / 'masks' / f'{name}.png').read_bytes()})
    source = open_unlabeled('theirs/*.tar', root)
    folder = FolderSource(read_split(root/'list.txt', root))
    assert list(source.names) == [f'train/{name}' for name in IDS]
    for i in (0, 7, 19):
        assert np.array_equal(source.read_image(i), folder.read_image(i)) and np.array_equal(
            source.read_mask(i), folder.read_mask(i))


@pytest.mark.parametrize('format', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats_and_long_names(root, format):
    key = 'long/'*30 + 'ünicode'
    with tarfile.open(root/'x.tar', 'w', format=format) as tar:
        tar.add(
            root / 'images' / 'p00.jpg',
            f'{key[-80:]}.jpg' if format == tarfile.USTAR_FORMAT else f'{key}.jpg')
    source = open_unlabeled('x.tar', root)
    assert source.names[0] in (key, key[-80:]) and source.image_size(0) == (20, 16)


def test_index_is_made_once_and_again_when_a_shard_changes(root, monkeypatch):
    made, samples = [], shards_module._shard_samples
    monkeypatch.setattr(shards_module, '_shard_samples', lambda path: made.append(path) or samples(path))
    for _ in range(2):
        assert len(open_unlabeled('shards/*.tar', root)) == 20
    assert len(made) == 3 and len(cache_files(root)) == 1
    shard = root/'shards'/'shard-000001.tar'
    with tarfile.open(shard, 'a') as tar:
        tar.add(root/'images'/'p00.jpg', 'extra.jpg')
    assert len(open_unlabeled('shards/*.tar', root)) == 21 and len(made) == 6
    os.utime(shard, ns=(1, 1))
    open_unlabeled('shards/*.tar', root)
    assert len(made) == 9
    cache_files(root)[0].write_bytes(b'PK\3\4 no archive')
    assert len(open_unlabeled('shards/*.tar', root)) == 21 and len(made) == 12 and len(cache_files(root)) == 1


def test_cache_that_cannot_be_written_does_no_harm(root):
    (root.parent/'cache').write_text('a file where the folder should be')
    assert len(open_unlabeled('shards/*.tar', root)) == 20 and len(open_unlabeled('images', root)) == 20


def test_every_cut_of_a_shard_is_noticed(root):
    whole = (root/'shards'/'shard-000002.tar').read_bytes()
    with tarfile.open(root/'shards'/'shard-000002.tar') as tar:
        last = tar.getmembers()[-1]
    content = last.offset_data + -(-last.size//512)*512
    for end in [*range(0, content+1, 512), 100, 700, content-1, content+100]:
        (root/'cut.tar').write_bytes(whole[:end])
        refused(lambda: open_unlabeled('cut.tar', root), 'cut.tar', 'not a whole', 'again')
    (root/'cut.tar').write_bytes(whole[:content] + b'x'*512)
    refused(lambda: open_unlabeled('cut.tar', root), 'cut.tar', f'byte {content}')
    (root/'cut.tar').write_bytes(whole[:content] + bytes(512))
    assert len(open_unlabeled('cut.tar', root)) == 4


def test_unfit_shards(root):
    shard = root/'shards'/'shard-000000.tar'
    (root/'packed.tar').write_bytes(gzip.compress(shard.read_bytes()))
    refused(lambda: open_unlabeled('packed.tar', root), 'packed.tar', 'uncompressed')
    refused(lambda: open_unlabeled('none.tar', root), 'none.tar', 'check the path')
    refused(
        lambda: open_unlabeled('shards/shard-{000000..000009}.tar', root), 'shard-000003.tar',
        'check the path')
    refused(lambda: open_unlabeled('none/*.tar', root), 'none/*.tar', 'no shard')
    (root/'folder.tar').mkdir()
    refused(lambda: open_unlabeled('folder.tar', root), 'folder.tar', 'cannot read')


def test_broken_members_are_named(root):
    source = open_unlabeled('shards/*.tar', root)
    shard = root/'shards'/'shard-000001.tar'
    stat = os.stat(shard)
    data = bytearray(shard.read_bytes())
    row = source.rows[10]
    data[row['image']:row['image']+50] = bytes(50)
    shard.write_bytes(data)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    refused(lambda: source.read_image(10), 'shard-000001.tar:p10.jpg', 'unreadable')
    assert source.read_image(11).size == (20, 16)
    os.truncate(shard, int(row['image']) + 10)
    refused(lambda: source.read_image(10), 'shard-000001.tar:p10.jpg', 'shorter')
    shard.unlink()
    refused(lambda: source.read_mask(10), 'shard-000001.tar:p10.png', 'cannot read')


def test_keys_that_clash_or_hold_dots(root):
    (root/'images'/'a.b.jpg').write_bytes((root/'images'/'p00.jpg').read_bytes())
    (root/'images'/'a_b.jpg').write_bytes((root/'images'/'p00.jpg').read_bytes())
    (root/'dots.txt').write_text('images/a.b.jpg\n')
    write_shards(read_split(root/'dots.txt', root, masks=False), root/'dots')
    assert list(open_unlabeled('dots/*.tar', root).names) == ['a_b']
    (root/'dots.txt').write_text('images/a.b.jpg\nimages/a_b.jpg\n')
    refused(
        lambda: write_shards(read_split(root / 'dots.txt', root, masks=False), root / 'clash'), 'a_b',
        'rename')


def test_every_name_is_read_back(root):
    """Two lines in front mark notes of packing tools, and names that do not print are refused: such names
    change."""
    names = ['__a', 'b\u00a0c', 'd\u3000e', 'f g', 'a']
    for name in names:
        (root/'images'/f'{name}.jpg').write_bytes((root/'images'/'p00.jpg').read_bytes())
    pairs = [Pair(root/'images'/f'{name}.jpg', None, name) for name in names]
    write_shards(pairs, root/'odd')
    assert list(open_unlabeled('odd/*.tar', root).names) == ['_a', 'b_c', 'd_e', 'f g', 'a']
    refused(lambda: write_shards([pairs[0], pairs[0]._replace(name='_a')], root/'twice'), '_a', 'rename')


def test_a_refusal_leaves_no_draft(root):
    pairs = read_split(root/'list.txt', root)
    lost = Pair(root/'images'/'lost.jpg', None, 'lost')
    refused(lambda: write_shards([*pairs[:3], lost], root/'new', 2), lost.image, 'cannot be read', 'restore')
    assert [p.name for p in (root/'new').iterdir()] == ['shard-000000.tar']  # the one that was whole
    assert list(open_unlabeled('new/*.tar', root).names) == IDS[:2]
    (root/'file').write_text('')
    refused(lambda: write_shards(pairs, root/'file'), root/'file', 'is a file', 'another folder')


def test_data_folder_whose_name_looks_like_a_pattern(root):
    there = root.rename(root.parent/'set[1]*')
    assert (
        len(open_unlabeled('shards/*.tar', there)) == 20
        and len(find_shards('shards/shard-{000000..000002}.tar', there)) == 3)
    (there/'shards/shard-000000.tar').rename(there/'shards/x[0].tar')
    assert find_shards('shards/x[0].tar', there) == [there/'shards/x[0].tar']


def test_shards_need_no_other_library(root, monkeypatch):
    monkeypatch.setitem(sys.modules, 'webdataset', None)
    assert len(open_unlabeled('shards/shard-{000000..000001}.tar', root)) == 16
    assert len(write_shards(read_split(root/'list.txt', root), root/'new', 8)) == 3


def test_equal_files_make_equal_shards_and_links_are_followed(root):
    pairs = read_split(root/'list.txt', root)
    (root/'linked').mkdir()
    for p in pairs:
        os.utime(p.image, (0, 10**9))
        (root/'linked'/p.image.name).symlink_to(p.image)
    ours = write_shards(pairs, root/'new', 8)
    theirs = write_shards([p._replace(image=root/'linked'/p.image.name) for p in pairs], root/'links', 8)
    assert [p.read_bytes() for p in ours] == [p.read_bytes() for p in theirs]
    assert [p.read_bytes() for p in ours] == [p.read_bytes() for p in sorted((root/'shards').glob('*.tar'))]


def test_no_handle_stays_open(root):
    source = open_unlabeled('shards/*.tar', root)
    before = (
        len(os.listdir('/proc/self/fd'))
        if Path('/proc/self/fd').exists()
        else pytest.skip('handles are counted by /proc'))
    for i in range(20):
        source.read_image(i)
        source.read_mask(i)
    assert len(os.listdir('/proc/self/fd')) == before
