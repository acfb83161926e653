"The ten questions of index.ipynb are answered, and every link to a heading of a notebook leads to one."
import json
import re
from functools import cache
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parent.parent/'nbs'
NOTEBOOKS = sorted(NBS.rglob('*.ipynb'))
LINK = re.compile(r'\]\(([\w./]+\.ipynb)#([^)\s]+)\)')


def prose(path):
    "Text of the markdown cells."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


def anchor(heading):
    "The name under which pages make a heading known: lower case, no punctuation, hyphens for spaces."
    return re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')


@cache
def anchors(path): return {anchor(h) for h in re.findall(r'^#+ +(.+)$', prose(path), re.M)}


def section(path, heading):
    "Text between a heading and the next one of its level."
    return prose(path).split(f'\n## {heading}\n')[1].split('\n## ')[0]


def test_anchor():
    assert (
        anchor('One τ, three decisions') == 'one-τ-three-decisions'
        and anchor('Seven of ten: `a_b`?') == 'seven-of-ten-a_b')


def test_there_are_ten_and_each_is_answered_somewhere():
    questions = re.split(r'^(?=\d+\. )', section(NBS/'index.ipynb', 'Ten questions'), flags=re.M)[1:]
    assert [int(q.split('.')[0]) for q in questions] == list(range(1, 11))
    for q in questions:
        question, answer = q.split('<details><summary>Answer</summary>')
        assert re.fullmatch(r'\d+\. \*\*[^*]+\?\*\*\s+', question), q
        answer, rest = answer.split('</details>')
        assert LINK.search(answer) and len(LINK.sub('', answer).split()) > 8 and not rest.strip(), q


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_links_to_headings_lead_somewhere(path):
    links = [(path.parent/name, part) for name, part in LINK.findall(prose(path))]
    wrong = [f'{name}#{part}' for name, part in links if not name.is_file() or part not in anchors(name)]
    assert not wrong, wrong
