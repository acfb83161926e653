"""Check that corrmatch/ is what the notebooks export, and README.md what nbs/index.ipynb shows.

Usage: python tools/sync.py
Runs `nbdev_export` in a temporary copy of nbs/ and settings.ini and compares every module byte for byte;
a module that no notebook exports is named too. Nothing in the tree is changed. Exit code 1 if anything
differs.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import readme

ROOT = Path(__file__).resolve().parent.parent


def exported(root: Path = ROOT) -> dict:
    "Export all notebooks of `root` into a copy and return {path of a module: bytes}."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copy(root/'settings.ini', copy)
        for path in (root/'nbs').rglob('*.ipynb'):
            target = copy/path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}  # with it nbdev_export does nothing
        subprocess.run(
            [sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()'], cwd=copy,
            env=env, check=True)
        return modules(copy)


def modules(root: Path) -> dict:
    "Read the Python files of the package: {path relative to `root`: bytes}."
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted((root / 'corrmatch').rglob('*.py'))}


def stored_readme(root: Path = ROOT) -> dict:
    "Read README.md and its figures: {path relative to `root`: bytes}."
    paths = [root/'README.md', *sorted((root/readme.FIGURES).glob('*'))]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def differences(made: dict, stored: dict, origin: str) -> list:
    "Say in one line a file how `stored` differs from what was `made`."
    lines = [f'{path}: missing' for path in made.keys()-stored.keys()]
    lines += [f'{path}: {origin} does not make this file; delete it' for path in stored.keys()-made.keys()]
    lines += [
        f'{path}: differs from {origin}' for path in made.keys() & stored.keys() if made[path] != stored[path]
    ]
    return sorted(lines)


def main() -> int:
    text, figures = readme.render()
    code = differences(exported(), modules(ROOT), 'the notebooks\' export')
    page = differences({'README.md': text.encode(), **figures}, stored_readme(), 'nbs/index.ipynb')
    for lines, remedy in ((code, 'make export'), (page, 'make readme')):
        if lines:
            print(*lines, f'-> edit the notebook, not the file; then `{remedy}`\n', sep='\n', file=sys.stderr)
    if not code and not page:
        print('In sync: corrmatch/ with the notebooks, README.md with nbs/index.ipynb')
    return int(bool(code or page))


if __name__ == '__main__':
    sys.exit(main())
