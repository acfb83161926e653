"""Nothing that comes from outside reads or writes outside of its folder: lines of lists, links, members of
archives, patterns, caches."""
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corrmatch.config import preset
from corrmatch.data.folders import FolderSource, is_path_traversal, parse_line, read_split
from corrmatch.data.shards import ShardSource, _list_folder, _open_list, open_unlabeled
from corrmatch.training.builders import make_datasets
from errors_for_tests import refused

OUTWARD = [
    '/etc/passwd', '../secret.png', 'images/../../secret.png', '..', 'images/..', '//etc/passwd',
    '~/secret.png', '~root/x.png', r'..\secret.png', r'images\..\..\secret.png', r'\secret.png',
    r'\\host\share\x.png']


def png(value=0, size=(4, 3)):
    buffer = io.BytesIO()
    Image.fromarray(np.full(size, value, np.uint8)).save(buffer, 'png')
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path, monkeypatch):
    "A data folder with two images; beside it a private image, a folder of others, and a cache."
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    root = tmp_path/'data'
    for folder in ('data/images', 'data/masks', 'private'):
        (tmp_path/folder).mkdir(parents=True)
    for path in ('data/images/a.png', 'data/images/b.png', 'data/masks/a.png', 'data/masks/b.png'):
        (tmp_path/path).write_bytes(png())
    for path in ('secret.png', 'private/a.png', 'private/b.png'):
        (tmp_path/path).write_bytes(png(7))
    (root/'list.txt').write_text('a\nb\n')
    return root


def write(path, text):
    path.write_text(text)
    return path


# --- what a line of a list says

@pytest.mark.parametrize('path', [p for p in OUTWARD if not p.startswith('~root')])
def test_lines_that_leave_the_folder(root, path):
    assert is_path_traversal(path)
    for line in (path, f'{path} masks/a.png', f'images/a.png {path}', f'images/a.png\t{path}'):
        text = f'images/b.png masks/b.png\n{line}\n'
        for opened in (
            lambda: read_split(write(root / 'x.txt', text), root),
            lambda: read_split(write(root / 'x.txt', text), root, masks=False),
            lambda: _open_list(write(root / 'x.txt', text), root, large=0)):
            refused(opened, 'x.txt line 2', path, 'leaves the data folder', 'relative')


def test_a_tilde_is_a_name(root):
    refused(lambda: read_split(write(root/'x.txt', '~root/x.png masks/a.png'), root), 'line 1', 'no file')


@pytest.mark.parametrize(
    'line', ['images/a\0.png masks/a.png', 'images\0/a.png masks/a.png', '\0', 'images/a.png masks/a.png\0'])
def test_zero_bytes(root, line): refused(lambda: read_split(write(root/'x.txt', line), root), 'line 1')


def test_dots_inside_of_names_are_legal():
    for name in ('a..b', '...a', '..a', 'a/b..', 'a..'):
        assert not is_path_traversal(name) and parse_line(name)[0] == name


# --- where links lead

def sources(root, text, tmp_path):
    "The same list, read as a short and as a long one; both as functions that read its first image and mask."
    path = write(root/'x.txt', text)
    def read(source): return source.read_image(0), source.has_mask(0) and source.read_mask(0)
    return (lambda: read(FolderSource(read_split(path, root, masks=False)))), (
        lambda: read(_open_list(path, root, large=0)))


def make_link(link, target):
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip('this file system has no symbolic links')


OUT = {'image': ('images/x.png', '../../secret.png', 'images/x.png masks/a.png'),
       'image by id': ('images/x.png', '../../secret.png', 'x'),
       'mask': ('masks/x.png', '../../secret.png', 'images/a.png masks/x.png'),
       'absolute': ('images/x.png', '{secret}', 'x'),
       'folder below a folder': ('images/sub', '../../private', 'images/sub/a.png masks/a.png'),
       'the folder above': ('up', '..', 'up/secret.png masks/a.png'),
       'everything': ('all', '/', 'all{secret} masks/a.png')}


@pytest.mark.parametrize('case', OUT)
def test_links_that_lead_out(root, tmp_path, case):
    link, target, line = (text.format(secret=tmp_path/'secret.png') for text in OUT[case])
    make_link(root/link, target)
    for read in sources(root, line, tmp_path):
        refused(read, 'link that leads out', root)


def test_chain_of_links_that_leads_out(root, tmp_path):
    make_link(root/'images'/'x.png', 'y.png')
    make_link(root/'images'/'y.png', tmp_path/'secret.png')
    for read in sources(root, 'x', tmp_path):
        refused(read, 'link that leads out')


def test_link_to_nothing(root, tmp_path):
    make_link(root/'images'/'x.png', 'nothing.png')
    for read in sources(root, 'images/x.png', tmp_path):
        refused(read, 'x.png')


def test_error_names_list_and_line(root, tmp_path):
    make_link(root/'images'/'x.png', tmp_path/'secret.png')
    refused(
        lambda: read_split(write(root / 'x.txt', 'a\n\nx\n'), root, masks=False), 'x.txt line 3', 'images/x',
        'put a copy')


def test_links_that_people_use(root, tmp_path):
    "The data folder, a folder directly inside it, and what ends inside of these."
    (tmp_path/'disk'/'deep').mkdir(parents=True)
    (tmp_path/'disk'/'deep'/'c.png').write_bytes(png(3))
    make_link(root/'shelf', tmp_path/'disk')
    make_link(root/'images'/'same.png', 'a.png')
    make_link(root/'images'/'c.png', tmp_path/'disk'/'deep'/'c.png')
    make_link(tmp_path/'linked', root)
    for base in (root, tmp_path/'linked'):
        for line in ('shelf/deep/c.png masks/a.png', 'images/same.png masks/a.png', 'c'):
            for read in sources(base, line, tmp_path):
                assert read()[0].size == (3, 4)


def test_listing_a_folder_stays_inside(root, tmp_path):
    make_link(root/'images'/'x.png', tmp_path/'secret.png')
    (root/'images'/'sub').mkdir()
    make_link(root/'images'/'sub'/'out', tmp_path/'private')       # deeper: not entered
    make_link(root/'images'/'sub'/'loop', root/'images')
    make_link(root/'images'/'up', root)                            # holds the folder: not entered
    assert _list_folder(root/'images')[:] == ['a.png', 'b.png', 'x.png']
    source = open_unlabeled('images', root)
    refused(lambda: source.read_image(2), 'x.png', 'leads out')
    make_link(root/'images'/'shelf', tmp_path/'private')           # directly inside: its owner's decision
    assert _list_folder(root/'images')[3:] == ['shelf/a.png', 'shelf/b.png']


# --- what a shard holds

def info(name, data=b'', **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    return member


def shard(path, *members):
    with tarfile.open(path, 'w') as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return path


def tree(folder):
    return sorted(
        (str(p), p.is_symlink(), p.stat().st_size) for p in folder.rglob('*') if 'cache' not in p.parts)


@pytest.mark.parametrize(
    'name',
    [
        *(p for p in OUTWARD if not p.startswith('~root')),
        './../x.png',
        'images/a\n.png',
        'a\x1b[2J.png',
        'a\0.png',
        '\udcff.png'])
def test_member_names(root, tmp_path, name):
    path = shard(root/'x.tar', (info('ok.png', png()), png()), (info(name, png()), png()))
    before = tree(tmp_path)
    if '\0' in name:
        # the name ends there: no suffix
        assert list(ShardSource([path]).names) == ['ok'] and tree(tmp_path) == before
    else:
        refused(lambda: ShardSource([path]), 'x.tar:', 'such a name')
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    'kind', ['SYMTYPE', 'LNKTYPE', 'CHRTYPE', 'BLKTYPE', 'FIFOTYPE', 'CONTTYPE', 'GNUTYPE_SPARSE'])
def test_member_kinds(root, tmp_path, kind):
    "Links, devices and pipes are refused; CONTTYPE is an old word for a plain file."
    path = shard(
        root / 'x.tar', (info('ok.png', png()), png()),
        (info('x.png', type=getattr(tarfile, kind), linkname='/etc/passwd'), b''))
    before = tree(tmp_path)
    if kind == 'CONTTYPE':
        assert len(ShardSource([path])) == 2
    else:
        refused(lambda: ShardSource([path]), 'x.tar')
    assert tree(tmp_path) == before


def test_link_and_file_of_one_name(root, tmp_path):
    "The classic: a link to a folder outside, then a file that an extractor would write through it."
    path = shard(
        root / 'x.tar', (info('sub', type=tarfile.SYMTYPE, linkname=str(tmp_path / 'private')), b''),
        (info('sub/a.png', png(1)), png(1)))
    refused(lambda: ShardSource([path]), 'x.tar:sub', 'link')
    assert (tmp_path/'private'/'a.png').read_bytes() == png(7)


def test_length_below_zero(root):
    header = bytearray(info('x.png').tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b'\xff'*4 + (-512).to_bytes(8, 'big', signed=True)
    header[148:156] = b' '*8
    header[148:156] = b'%06o\0 ' % sum(header)
    (root/'x.tar').write_bytes(bytes(header) + bytes(1024))
    refused(lambda: ShardSource([root/'x.tar']), 'x.tar', 'not a whole')


def test_length_beyond_the_file(root):
    header = info('x.png', size=1 << 40).tobuf(tarfile.GNU_FORMAT)
    (root/'x.tar').write_bytes(header + bytes(1024))
    refused(lambda: ShardSource([root/'x.tar']), 'x.tar', 'not a whole')


def test_list_of_shards(root, tmp_path):
    shard(tmp_path/'out.tar', (info('x.png', png()), png()))
    for line in ('../out.tar', str(tmp_path/'out.tar'), 'a/../../out.tar', r'..\out.tar'):
        refused(
            lambda: open_unlabeled('x.txt', write(root / 'x.txt', line + '\n').parent), 'line 1', line,
            'leaves the data folder')
    make_link(root/'y.tar', tmp_path/'out.tar')
    refused(
        lambda: open_unlabeled('x.txt', write(root / 'x.txt', 'y.tar\n').parent), 'line 1', 'y.tar',
        'leaves the data folder')
    assert len(open_unlabeled('y.tar', root)) == 1     # named by the user, not by a list


# --- nothing is run, nothing is written elsewhere

@pytest.mark.parametrize(
    'name',
    [
        'pipe:touch {mark} #.tar', '$(touch {mark}).tar', '`touch {mark}`.tar', '; touch {mark};.tar',
        '| touch {mark}', 'http://localhost:9/x.tar', 'file://x.tar', '{{a..b}}`touch {mark}`.tar', '-x.tar'])
def test_names_reach_no_shell(root, tmp_path, name):
    name = name.format(mark=tmp_path/'mark')
    refused(lambda: open_unlabeled(name, root))
    refused(
        lambda: make_datasets(
            preset('voc_92', data=str(root), labeled='list.txt', unlabeled=name, val='list.txt')))
    assert not (tmp_path/'mark').exists()


class Trap:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.mkdir, (str(self.mark),)


def test_cache_runs_no_code(root, tmp_path):
    shard(root/'x.tar', (info('x.png', png()), png()))
    open_unlabeled('x.tar', root)
    open_unlabeled('images', root)
    files = sorted((tmp_path/'cache'/'corrmatch').iterdir())
    assert len(files) == 2
    for content in (pickle.dumps(Trap(tmp_path/'mark')), npz(Trap(tmp_path/'mark'))):
        for file in files:
            file.write_bytes(content)
        assert len(open_unlabeled('x.tar', root)) == 1 and len(open_unlabeled('images', root)) == 2
    assert not (tmp_path/'mark').exists()


def npz(value):
    buffer = io.BytesIO()
    np.savez(
        buffer,
        **{
            key: np.array([value], object)
            for key in ('stamps', 'rows', 'blob', 'ends', 'suffixes', 'folders', 'folder_ends')})
    return buffer.getvalue()


AUDIT = '''
import sys
from corrmatch.files import DataError
from corrmatch.data.shards import open_unlabeled
seen = []
FORBIDDEN = 'os.system', 'os.exec', 'os.posix_spawn', 'os.symlink', 'os.link', 'os.chmod'
def hook(event, args):
    if event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+'):
        if isinstance(args[0], (str, bytes)):
            seen.append(('write', str(args[0])))
    elif event.split('.')[0] in ('subprocess', 'socket', 'shutil') or event in FORBIDDEN:
        seen.append((event, str(args)))
    elif event in ('os.mkdir', 'os.rename'):
        seen.append((event, str(args[1] if event == 'os.rename' else args[0])))
sys.addaudithook(hook)
root, cache = sys.argv[1:]
for name in ('x.tar', 'hostile.tar', 'images', 'list.txt'):
    try:
        source = open_unlabeled(name, root, cache, large=0)
        for i in range(len(source)): source.read_image(i)
    except DataError as e: print('refused', name)
for event, what in seen: print(event, what)
'''


def test_what_the_system_sees(root, tmp_path):
    "Of all that opening and reading asks of the system, only the cache files are written."
    shard(root/'x.tar', (info('x.png', png()), png()))
    shard(root/'hostile.tar', (info('ok.png', png()), png()), (info('../../x.png', png()), png()))
    done = subprocess.run(
        [sys.executable, '-c', AUDIT, str(root), str(tmp_path / 'cache')], capture_output=True, text=True,
        timeout=600, env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == 'refused hostile.tar' and len(lines) > 3
    for line in lines[1:]:
        assert line.split(' ', 1)[1].startswith(str(tmp_path/'cache')), line


def test_a_relative_data_folder_is_the_one_of_the_current_place(tmp_path, monkeypatch):
    "Also after a change of the folder that the process runs in."
    for name in ('a', 'b'):
        (tmp_path/name/'data'/'images').mkdir(parents=True)
        monkeypatch.chdir(tmp_path/name)
        line = str(tmp_path/name/'data'/'images'/'x.png')
        assert parse_line(line, root=Path('data')) == ('x', 'images/x.png', None)
