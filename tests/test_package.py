"""What installs and imports: light imports, version, what is inside sdist and wheel, nothing of a developer's
machine in git."""
import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ConfigParser(delimiters=['='])
SETTINGS.read(ROOT/'settings.ini', encoding='utf-8')
SETTINGS = SETTINGS['DEFAULT']
HEAVY = ('torch', 'torchvision', 'matplotlib', 'numpy', 'IPython', 'nbdev')


def run(*command, cwd=ROOT, stderr=False):
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return (done.stdout + (done.stderr if stderr else '')).strip()


@pytest.mark.parametrize('module', ['corrmatch', 'corrmatch.config', 'corrmatch.use.cli'])
def test_import_is_light(module):
    code = f'import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])'
    assert run(sys.executable, '-c', code) == '[]'


def test_version_is_written_once():
    assert run(sys.executable, '-c', 'import corrmatch; print(corrmatch.__version__)') == SETTINGS['version']
    citation = (ROOT/'CITATION.cff').read_text(encoding='utf-8')
    assert f'\nversion: {SETTINGS["version"]}\n' in citation


def test_modules_import_only_what_is_required():
    "Third-party imports at the top of a module are requirements; development tools are none."
    known = {re.split(r'[<>=!~\[]', r)[0].lower() for r in SETTINGS['requirements'].split()} | {
        'corrmatch', *sys.stdlib_module_names}
    known = {{'pillow': 'pil'}.get(name, name) for name in known}
    for path in sorted((ROOT/'corrmatch').rglob('*.py')):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.Import):
                found = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found = [node.module]
            else:
                continue
            assert not {m.split('.')[0].lower() for m in found} - known, (
                f'{path.name} line {node.lineno}: {found} is not in requirements')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Build an sdist from a copy of the tree, and a wheel from the unpacked sdist, offline: (sdist, wheel,
    what was said)."""
    folder = tmp_path_factory.mktemp('build')
    copy = folder/'copy'
    unwanted = shutil.ignore_patterns(
        '.*', '__pycache__', 'runs', 'build', 'dist', '*.egg-info', 'nbs', 'tests')
    shutil.copytree(ROOT, copy, ignore=unwanted)
    build = 'import sys, setuptools.build_meta as b; getattr(b, "build_"+sys.argv[1])(sys.argv[2])'
    said = run(sys.executable, '-c', build, 'sdist', str(folder), cwd=copy, stderr=True)
    [sdist] = folder.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        archive.extractall(
            folder / 'unpacked', **dict(filter='data') if hasattr(tarfile, 'data_filter') else {})
    [source] = (folder/'unpacked').iterdir()
    said += run(sys.executable, '-c', build, 'wheel', str(folder), cwd=source, stderr=True)
    [wheel] = folder.glob('*.whl')
    return sdist, wheel, said


def shipped():
    "Files of the package that must reach the user."
    paths = [
        *(ROOT / 'corrmatch').rglob('*.py'),
        ROOT / 'corrmatch' / 'py.typed',
        *(ROOT / 'corrmatch' / 'assets').glob('*')]
    return {p.relative_to(ROOT).as_posix() for p in paths}


def test_sdist(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', *shipped()} <= names


def test_wheel(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        text = {
            name.rpartition('/')[2]: archive.read(name).decode() for name in names if '.dist-info/' in name}
    assert shipped() <= names
    assert {'.js', '.css', '.pth'} <= {Path(n).suffix for n in names if n.startswith('corrmatch/assets/')}
    assert {n.partition('/')[0] for n in names if '.dist-info/' not in n} == {'corrmatch'}, (
        'only the package is installed')
    assert f'\nName: {SETTINGS["lib_name"]}\nVersion: {SETTINGS["version"]}\n' in text['METADATA']
    assert 'corrmatch = corrmatch.use.cli:main' in text['entry_points.txt'].replace(
        'corrmatch=corrmatch', 'corrmatch = corrmatch')


def test_build_says_no_warning(built):
    "Such as one about a folder of assets that is no package."
    unwanted = [
        line
        for line in built[2].splitlines()
        if re.search(r'warn|deprecat', line, re.I) and 'byte-compiling' not in line]
    assert not unwanted, '\n'.join(unwanted)


def test_index_page(built):
    """What a package index shows: addresses, classifiers, and a description whose links and images lead out
    of the archive."""
    with zipfile.ZipFile(built[1]) as archive:
        [text] = [archive.read(name).decode() for name in archive.namelist() if name.endswith('/METADATA')]
    head, _, body = text.partition('\n\n')
    for name, address in (
        ('Source', SETTINGS['git_url']), ('Documentation', SETTINGS['doc_host'] + SETTINGS['doc_baseurl'])):
        assert f'\nProject-URL: {name}, {address}\n' in head
    assert '\nClassifier: Programming Language :: Python :: 3.11\n' in head
    targets = re.findall(r'\]\(([^)\s]+)\)', body)
    assert len(targets) > 60 and [t for t in targets if not t.startswith(('https://', '#'))] == []
    images = re.findall(r'!\[[^\]]*\]\(([^)\s]+)\)', body)
    raw = f'{SETTINGS["git_url"]}/raw/{SETTINGS["branch"]}'
    places = (f'{raw}/nbs/readme_files/', f'{raw}/docs/static/')
    assert images and all(t.startswith(places) for t in images)
    assert f'({SETTINGS["git_url"]}/blob/{SETTINGS["branch"]}/LICENSE)' in body


def test_addresses_are_written_once():
    "The place of the project stands in settings.ini, in one line; everything else is made of it."
    lines = [
        line
        for line in (ROOT / 'settings.ini').read_text(encoding='utf-8').splitlines()
        if SETTINGS['host'] in line]
    assert lines == [f'host = {SETTINGS["host"]}']
    paths = [ROOT/name for name in ('setup.py', 'README.md', 'CITATION.cff', 'CONTRIBUTING.md', 'Makefile')]
    assert [path.name for path in paths if SETTINGS['host'] in path.read_text(encoding='utf-8')] == []


def test_wheel_installs(built, tmp_path):
    "In an environment of its own, far from the sources; what the wheel requires is borrowed from this one."
    if subprocess.run([sys.executable, '-m', 'pip', '--version'], capture_output=True).returncode:
        pytest.skip('needs pip')
    run(sys.executable, '-m', 'venv', '--without-pip', str(tmp_path/'env'))
    python = tmp_path/'env'/('Scripts' if sys.platform == 'win32' else 'bin')/'python'
    run(
        sys.executable, '-m', 'pip', '--python', str(python), 'install', '--quiet', '--no-deps', '--no-index',
        str(built[1]))
    [site] = (tmp_path/'env').glob('**/site-packages')
    (site/'borrowed.pth').write_text('\n'.join(p for p in sys.path if p.endswith('-packages')))
    assert Path(
        run(str(python), '-c', 'import corrmatch; print(corrmatch.__file__)', cwd=tmp_path)
    ).is_relative_to(site)
    assert 'train' in run(str(python.with_name('corrmatch')), '--help', cwd=tmp_path)
    made = (
        "from corrmatch.config import preset; from corrmatch.training.builders import make_model; "
        "print(make_model(preset('toy'))[1])")
    assert 'backbone weights toy' in run(str(python), '-c', made, cwd=tmp_path), (
        'the small backbone comes with the wheel')


def test_extras():
    "Every extra that a message or a text names exists, and `dev` has them all."
    extras = {key.removeprefix('extra_') for key in SETTINGS if key.startswith('extra_')} | {'all', 'dev'}
    assert {'timm', 'onnx', 'video', 'dev'} <= extras
    paths = [
        *(ROOT / 'corrmatch').rglob('*.py'),
        *(ROOT / 'nbs').rglob('*.ipynb'),
        *(ROOT / 'tools').glob('*.py'),
        ROOT / 'README.md',
        ROOT / 'CONTRIBUTING.md']
    named = {
        name
        for path in paths
        for found in re.findall(r'corrmatch-seg\[([\w,]+)\]', path.read_text(encoding='utf-8'))
        for name in found.split(',')}
    assert 'timm' in named and not named - extras - {'NAME'}, 'named in a text, but not in settings.ini'


def test_all_is_what_users_may_want(built):
    "Every extra but those of developers and the trackers of others, and nothing that only developers need."
    with zipfile.ZipFile(built[1]) as archive:
        [text] = [archive.read(name).decode() for name in archive.namelist() if name.endswith('/METADATA')]
    needs = {}
    for need, extra in re.findall(r'^Requires-Dist: (.+?); extra == "(\w+)"$', text, re.M):
        needs.setdefault(extra, set()).add(need)
    others = ('docs', 'dev', 'all', 'mlflow', 'wandb')
    assert needs['all'] == set().union(*(needs[name] for name in needs if name not in others))
    assert needs['all'] | needs['docs'] < needs['dev']


def tracked():
    "Files in git; the test is skipped where there is no git."
    if not (ROOT/'.git').exists() or not shutil.which('git'):
        pytest.skip('not a git clone')
    return [ROOT/name for name in run('git', '-c', 'safe.directory=*', 'ls-files', '-z').split('\0') if name]


def test_no_path_of_a_machine():
    "A path such as a home folder's tells nothing to anybody else."
    pattern = re.compile(rb'(?<![\w.+/])/(?:home|root|tmp|Users|work|mnt|opt)/[\w.]+')
    found = []
    for path in tracked():
        if not path.is_file() or path.suffix in ('.png', '.npz', '.pth') or ROOT/'tests' in path.parents:
            continue
        found += [
            f'{path.relative_to(ROOT)}: {m.group().decode()}' for m in pattern.finditer(path.read_bytes())]
    assert not found, '\n'.join(found)


def test_git_stays_small():
    sizes = {p.relative_to(ROOT).as_posix(): p.stat().st_size for p in tracked() if p.is_file()}
    assert not {name: size for name, size in sizes.items() if size > 2*2**20}, 'a file over 2 MB'
    assert sum(size for name, size in sizes.items() if name.startswith('corrmatch/assets/')) <= 2**20
    assert sum(size for name, size in sizes.items() if name.startswith('nbs/readme_files/')) <= 300*2**10


def test_golden_files_are_explained():
    "Every file of numbers is named in the README beside it, and all of them stay under 4 MB."
    folder = ROOT/'tests'/'golden'
    files = [p for p in folder.iterdir() if p.name != 'README.md']
    text = (folder/'README.md').read_text(encoding='utf-8')
    assert not [p.name for p in files if f'`{p.name}`' not in text]
    assert sum(p.stat().st_size for p in files) < 4*10**6
