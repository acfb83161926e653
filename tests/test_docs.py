"""The site: what a page shows of a notebook, the API reference, formulas, the checks of links. All pages:
`make docs` (half a minute)."""
import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').rglob('*.ipynb'))
sys.path.insert(0, str(ROOT/'tools'))
import docs  # noqa: E402


def code(source, *outputs):
    return dict(
        cell_type='code', id='c', source=source, metadata={}, execution_count=None, outputs=list(outputs))


def prose(source): return dict(cell_type='markdown', id='m', source=source, metadata={})


def value(**data):
    return dict(
        output_type='execute_result', execution_count=None, metadata={},
        data={k.replace('_', '/'): v for k, v in data.items()})


def page(*cells):
    "What the site shows of some cells of a notebook that exports to `region`."
    nb = dict(
        cells=[code('#| default_exp method.region'), *cells], metadata=dict(widgets={}), nbformat=4,
        nbformat_minor=5)
    names = {
        '': {'method.region', 'method.pixel'}, 'cut': ['method.region'], 'spread': ['method.pixel'],
        'cut_rows': ['method.pixel'], 'Pair': ['data.folders'], 'two_homes': ['a', 'b']}
    return docs.site_notebook(nb, '06_region', names)['cells']


def test_hidden_cells_and_directives_are_not_shown():
    cells = page(
        prose('# Shapes'), code('#| hide\nsecret()'), code('#| exports\ndef f(): pass'),
        code('x = 1\ny = 2 #| hide_line\nx'), code('#| hide_output\n1', value(text_plain='1')))
    assert [c['source'] for c in cells] == ['# Shapes', 'def f(): pass', 'x = 1\nx', '1']
    assert cells[-1]['outputs'] == []


@pytest.mark.parametrize(
    'source, tags',
    [
        ('#| export\nimport torch\nfrom x import y', ['hide-input']),
        ('#| export\ndef _helper(): pass', ['hide-input']), ('#| export\nclass Head: pass', []),
        ('#| exports\ndef _shown(): pass', []), ('import torch', []),
        ('#| echo: false\nplot()', ['remove-input'])])
def test_plumbing_is_folded(source, tags):
    [cell] = page(code(source))
    assert cell['metadata']['tags'] == tags


def test_widgets_become_a_note_and_figures_keep_a_description():
    _, widget, record, figure = page(
        prose('## A vote'), code('panel', value(text_plain="VBox(children=(FloatSlider(value=1.0),))")),
        code('vote', value(text_plain='Vote(size=4)')),
        code('#| fig-alt: two\nfig', value(image_png='aGk=', text_plain='<Figure>')))
    assert widget['outputs'][0]['data'].keys() == {'text/markdown'}
    assert record['outputs'][0]['data'] == {'text/plain': 'Vote(size=4)'}
    assert figure['metadata']['mystnb']['image']['alt'] == 'two' and widget['metadata']['mystnb']['image'][
        'alt'].endswith('“A vote”')


@pytest.mark.parametrize('text, shown', [
    ('use `cut` here', 'use {py:obj}`~corrmatch.method.region.cut` here'),          # this notebook's own
    # a plain word may be a command
    ('`spread` and `cut_rows`', '`spread` and {py:obj}`~corrmatch.method.pixel.cut_rows`'),
    ('`two_homes`, `Pair`', '`two_homes`, {py:obj}`~corrmatch.data.folders.Pair`'),
    ('`corrmatch.method.pixel`', '{py:mod}`corrmatch.method.pixel`'), ('# on `cut`', '# on `cut`'),
    ('[`cut`](x.ipynb)', '[`cut`](x.ipynb)'),
    ('```py\n`cut`\n```', '```py\n`cut`\n```'), ('[license](../LICENSE)', '[license](LICENSE.txt)')])
def test_names_in_prose_link_to_the_reference(text, shown): assert page(prose(text))[0]['source'] == shown


def test_arguments_are_those_that_fastcore_reads():
    from fastcore.docments import docments
    n = 0
    for name in ('method.region', 'method.losses', 'training.metrics', 'training.builders', 'use.explore',
                 'data.views'):
        module = docs.Module(ROOT/'corrmatch'/f'{name.replace(".", "/")}.py')
        live = importlib.import_module(f'corrmatch.{name}')
        for public in module.public:
            node = module.nodes.get(public)
            if type(node).__name__ != 'FunctionDef':
                continue
            ours = {
                key or 'return': comment
                for key, _, _, comment in docs.arguments(module, node, False)
                if not key.startswith('*')}
            theirs = {
                k: v.docment or ''
                for k, v in docments(getattr(live, public), full=True, returns=True).items()
                if k in ours}
            # fastcore needs an annotation to see it
            theirs['return'] = theirs.get('return') or ours.get('return')
            assert {k: v for k, v in ours.items() if v} == {k: v for k, v in theirs.items() if v}, public
            n += 1
    assert n > 25


def test_reference_shows_methods_records_and_their_places():
    module = docs.Module(ROOT/'corrmatch'/'training'/'metrics.py')
    nb = json.loads((ROOT/'nbs'/'training'/'32_metrics.ipynb').read_text())
    text = '\n'.join(docs.entry(module, 'ConfusionMatrix', docs.cell_places('training/32_metrics', nb)))
    assert '{py:class} ConfusionMatrix(n_classes, ignore_index=IGNORE_INDEX, device=None)' in text
    assert (
        '{py:method} update(label, mask)' in text
        and '{py:method} merge(other)' in text
        and 'self' not in text)
    assert '](../training/32_metrics.ipynb#' in text
    record = '\n'.join(docs.entry(docs.Module(ROOT/'corrmatch'/'method'/'losses.py'), 'LossTerms', {}))
    assert 'LossTerms(x=0.0, ' in record and 'labeled images against their masks' in record


def test_every_notebook_has_its_place():
    books = {
        p.relative_to(ROOT / 'nbs').with_suffix('').as_posix(): json.loads(p.read_text()) for p in NOTEBOOKS}
    text = docs.contents(books)
    listed = re.findall(r'<([\w/]+)>|^(main|init)$', text, re.M)
    assert sorted(a or b for a, b in listed if a != 'self') == sorted(books.keys()-{'index'} | {'try'})
    places = [
        text.index(part)
        for part in (
            'Start here', '01 · ', 'The method', '02 · ', 'Data', 'Models', 'Training', 'Use', 'Results',
            'Faster forms')]
    assert places == sorted(places)


def test_every_formula_becomes_mathml():
    for name in ('sphinx', 'latex2mathml'):
        pytest.importorskip(name, reason='formulas need the docs extra: make docs')
    mathml = runpy.run_path(str(ROOT/'docs'/'conf.py'))['mathml']
    n = 0
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())['cells']:
            if cell['cell_type'] != 'markdown':
                continue
            prose = re.sub(r'```.*?```|`[^`]*`', '', ''.join(cell['source']), flags=re.S)
            for block, inline in re.findall(r'\$\$(.+?)\$\$|\$([^$\n]+)\$', prose, re.S):
                assert '\\' not in mathml(block or inline, 'inline'), (path.name, block or inline)
                n += 1
    assert n > 100
    assert 'mspace' in mathml(r'2\ln 2', 'inline')


def test_checks_find_each_fault(tmp_path):
    (tmp_path/'a.html').write_text('''<h1 id="top">x</h1><a href="#top">ok</a><a href="b.html#there">ok</a><a href="https://example.org">ok</a>
        <a href="c.html">1</a><a href="b.html#nowhere">2</a><img src="gone.png"><a href="javascript:x()">5</a>
        <img src="data:,"><pre>| c |
| --- |</pre><p>| a | b |
| --- | --- |
| 1 | 2 |</p>
        <script src="https://cdn.example.org/x.js"></script><link rel="stylesheet" href="//fonts.example.org/f.css"><style>b{background:url(http://example.org/b.png)}</style>
        <p>see /home/someone/x and /somewhere/secret</p><pre>#| export</pre><p id="top"></p><iframe src="https://example.org/"></iframe><script>"/home/script"</script>''')
    (tmp_path/'b.html').write_text('<p id="there"></p>')
    (tmp_path / 's.css').write_text(
        '@font-face{src:url("https://example.org/f.woff")} a{background:url(data:,)}')
    assert sorted(docs.check_site(tmp_path, ['/somewhere/secret'])) == sorted(
        [
            'a.html: link c.html: no such file', 'a.html: link b.html#nowhere: no such anchor',
            'a.html: loads gone.png: no such file',
            'a.html: link javascript:x(): of a scheme that does not belong here',
            'a.html: loads https://cdn.example.org/x.js: external',
            'a.html: loads //fonts.example.org/f.css: external',
            'a.html: loads http://example.org/b.png: external', 'a.html: two elements have the id top',
            'a.html: shows /home/someone, a place on one machine',
            'a.html: shows /somewhere/secret, a place on one machine',
            'a.html: shows the directive #| export', 'a.html: loads https://example.org/: external',
            'a.html: \\table as text: | a | b |', 's.css: loads https://example.org/f.woff: external'])


@pytest.mark.filterwarnings('ignore')  # of sphinx about its extensions
def test_a_small_site(tmp_path):
    "Two notebooks and the index, whose links to the other notebooks lead nowhere here."
    for name in ('sphinx', 'myst_nb', 'furo', 'latex2mathml'):
        pytest.importorskip(name, reason='the site needs the docs extra: make docs')
    docs.build(
        tmp_path / 'out', tmp_path / 'work', ['06_region', '43_explore'],
        scene=lambda path: path.write_text('<p>scene</p>'))
    faults = [
        f
        for f in docs.check_site(tmp_path / 'out', docs.machine_marks())
        if re.match(r'(method/06_region|use/43_explore|api/[\w.]+|genindex|search)\.html|_static', f)]
    assert [f for f in faults if not re.search(r'link (\.\./|#)?[\w./]*ipynb', f)] == []
    shapes = (tmp_path/'out'/'method'/'06_region.html').read_text()
    assert (
        '<math' in shapes
        and 'mathjax.js' not in shapes.lower()
        and '<img' in shapes
        and 'api/method.region.html#corrmatch.method.region.' in shapes)
    assert (
        'src="../explorer.html"' in (tmp_path / 'out' / 'use' / '43_explore.html').read_text()
        and (tmp_path / 'out' / 'explorer.html').is_file()
        and 'src="explorer.html"' in (tmp_path / 'out' / 'try.html').read_text())
    assert 'href="../method/06_region.html#' in (tmp_path/'out'/'api'/'method.region.html').read_text()
    assert 'corrmatch.method.region' in (tmp_path/'out'/'searchindex.js').read_text()
