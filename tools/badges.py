"""Write the badge that opens a lesson in Colab into each notebook of nbs/start/ and nbs/method/.

Usage: python tools/badges.py
The address of the repository comes from settings.ini: `git_url` if it names owner and repository, else `user`
and `repo`. Run it again after a change of these, or of a notebook's name; a test compares.
"""
import json
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
BADGE = 'c01ab0ad'  # id of the cell


def settings(root: Path = ROOT) -> dict:
    "The fields of settings.ini."
    parser = ConfigParser(delimiters=['='])
    parser.read(root/'settings.ini', encoding='utf-8')
    return dict(parser['DEFAULT'])


def badge(path: Path, fields: dict, root: Path = ROOT) -> str:
    "Markdown of a notebook's badge, with the line that installs the package there."
    parts = urlsplit(fields['git_url']).path.strip('/').split('/')
    owner, repo = parts if len(parts) == 2 else (fields['user'], fields['repo'])
    place = f'{owner}/{repo}/blob/{fields["branch"]}/{path.relative_to(root).as_posix()}'
    package = f'{fields["lib_name"]}[lite] @ git+{fields["git_url"]}'
    return (
        f'[![Open in Colab](../../docs/static/colab.svg)](https://colab.research.google.com/github/{place}) '
        f'There, first run `%pip install -q "{package}" scikit-image` in a cell of its own.')


def write_badge(path: Path, fields: dict):
    "Put the badge behind the promise of a notebook, or renew it."
    book = json.loads(path.read_text(encoding='utf-8'))
    cells = [c for c in book['cells'] if c['id'] != BADGE]
    promise = next(n for n, c in enumerate(cells) if ''.join(c['source']).startswith('>'))
    cells.insert(promise+1, dict(cell_type='markdown', id=BADGE, metadata={}, source=[badge(path, fields)]))
    book['cells'] = cells
    path.write_text(
        json.dumps(book, sort_keys=True, ensure_ascii=False, indent=1) + '\n', encoding='utf-8')


def lessons(root: Path = ROOT) -> list:
    "The notebooks that get a badge."
    return sorted([*(root/'nbs'/'start').glob('*.ipynb'), *(root/'nbs'/'method').glob('*.ipynb')])


if __name__ == '__main__':
    for lesson in lessons():
        write_badge(lesson, settings())
    print(f'{len(lessons())} badges')
