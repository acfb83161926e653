"""Write README.md, and its figures in nbs/readme_files/, from the stored outputs of nbs/index.ipynb.

Usage: python tools/readme.py
Nothing is executed, so the same notebook gives the same bytes. Of nbdev's directives `hide`, `export` and
`hide_line` work as usual; `echo: false` shows a cell's output without its code, and `fig-alt: TEXT` describes
its figure. Links in the notebook start in nbs/ and are rewritten to start where README.md lies.
"""
import posixpath
import re
import warnings
from pathlib import Path

import nbformat
from execnb.nbio import nb2str, read_nb
from nbconvert import MarkdownExporter
from nbdev.processors import (
    FilterDefaults, clean_magics, hide_, hide_line, rm_export, rm_header_dash, strip_ansi)
from traitlets.config import Config

from badges import settings

ROOT = Path(__file__).resolve().parent.parent
FIGURES = 'nbs/readme_files'
EXPLORE = 'In a notebook, `corrmatch.explore('  # stands once in the index
NOTE = '<!-- Generated from nbs/index.ipynb by `make readme`: edit the notebook. -->'


def tag_display(cell):
    "Turn the directives about display into tags and metadata that survive into the exporter."
    if cell.cell_type != 'code':
        return
    if cell.directives_.get('echo:') == ['false']:
        cell.metadata['tags'] = ['output-only']
    if 'fig-alt:' in cell.directives_:
        cell.metadata['alt'] = ' '.join(cell.directives_['fig-alt:'])
    cell['source'] = re.sub(r'^#\| *(echo|fig-alt):.*\n?', '', cell.source, flags=re.M)


class ReadmeProcessors(FilterDefaults):
    "The processors of nbdev that neither execute cells nor need a documentation site."
    def base_procs(self):
        return [strip_ansi, hide_line, rm_header_dash, tag_display, rm_export, hide_, clean_magics]


def from_root(match: re.Match) -> str:
    "Rewrite one markdown link target that is relative to nbs/."
    target = match[1]
    if re.match(r'[a-z]+:|[#/]', target):
        return match[0]
    return f']({posixpath.normpath(posixpath.join("nbs", target))})'


def with_site(text: str, fields: dict) -> str:
    "Point to the explorer on the book's site; with a link, once settings.ini has an address of its own."
    if text.count(EXPLORE) != 1:
        raise ValueError(f'nbs/index.ipynb: "{EXPLORE}" stands {text.count(EXPLORE)} times, not once')
    page = 'an explorer on a photograph'
    if not fields['doc_host'].endswith('//example.org'):
        page = f"[{page}]({fields['doc_host']}{fields['doc_baseurl']}/try.html)"
    note = f'The site of the book, which `make docs` builds into `_docs/`, has {page} for your browser.'
    return text.replace(EXPLORE, f'{note} {EXPLORE}')


def render(root: Path = ROOT) -> tuple[str, dict]:
    "Return the text of README.md and its figures as {path relative to root: bytes}."
    nb = read_nb(root/'nbs'/'index.ipynb')
    ReadmeProcessors()(nb)
    nb.metadata['language_info'] = {'name': 'python'}
    for cell in nb.cells:
        if cell.cell_type == 'markdown':
            cell['source'] = re.sub(r'\]\(([^)\s]+)\)', from_root, cell.source)
    options = Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags={'output-only'}))
    with warnings.catch_warnings(action='ignore'):  # a missing cell id and the like: not of this file
        plain = nbformat.reads(nb2str(nb), 4)
    text, resources = MarkdownExporter(config=options).from_notebook_node(
        plain, resources={'output_files_dir': FIGURES})
    for number, cell in enumerate(nb.cells):
        if alt := cell.metadata.get('alt'):
            text = re.sub(rf'!\[\w+\](?=\({FIGURES}/output_{number}_)', lambda _: f'![{alt}]', text)
    text = with_site(text, settings(root))
    text = re.sub(r'\n{3,}', '\n\n', re.sub(r'[ \t]+$', '', f'{NOTE}\n\n{text.strip()}\n', flags=re.M))
    return text, {path.replace('\\', '/'): data for path, data in resources['outputs'].items()}


def main():
    text, figures = render()
    (ROOT/'README.md').write_text(text, encoding='utf-8')
    (ROOT/FIGURES).mkdir(exist_ok=True)
    for old in (ROOT/FIGURES).iterdir():
        if f'{FIGURES}/{old.name}' not in figures:
            old.unlink()
    for path, data in figures.items():
        (ROOT/path).write_bytes(data)
    print(f'README.md: {len(text.splitlines())} lines, {len(figures)} figures')


if __name__ == '__main__':
    main()
