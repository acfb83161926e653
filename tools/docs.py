"""Build the site of the book: pages from the notebooks' stored outputs, an API reference, the explorer; then
check every link.

Usage: python tools/docs.py [NOTEBOOK ...]      (default: all of nbs/; output: _docs/, open _docs/index.html)
Nothing is executed but the features of one photograph for the explorer. Cells marked `hide` are left out;
directives are not shown; imports and private helpers of the package are folded; `name` in prose links to the
API reference if the package exports that name.
"""
import ast
import getpass
import io
import json
import re
import shutil
import socket
import sys
import time
import tokenize
from collections import Counter
from functools import cached_property, partial
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
# folder of nbs/: caption of the sidebar
PARTS = {
    'start': 'Start here', 'method': 'The method', '': 'Settings and figures', 'data': 'Data',
    'models': 'Models', 'training': 'Training', 'use': 'Use', 'results': 'Results', 'engine': 'Faster forms'}
BESIDE = {
    'CONTRIBUTING.md': 'CONTRIBUTING.md', 'tests/golden/README.md': 'golden.md', 'LICENSE': 'LICENSE.txt',
    'CITATION.cff': 'CITATION.cff', 'docs/static/filmstrip.webp': 'filmstrip.webp',
    'docs/static/label.webp': 'label.webp', 'docs/static/colab.svg': 'colab.svg'}
LONG = 16  # arguments of a class, above which only the list shows them
WIDGET = re.compile(
    r'(?:[VH]Box|GridBox|Tab|Accordion|Explorer|RunViewer|\w*(?:Slider|Button|Dropdown|Widget))\(')
WIDGET_NOTE = (
    '*The controls work when the notebook runs (`make lab`). The figure above shows one setting.*')
EXPLORER = (
    '<iframe class="explorer" src="{up}explorer.html" title="Correlation explorer on a photograph" '
    'loading="lazy"></iframe>')
# notebook: (words of the cell to put it after, text)
EXPLORER_NOTE = {
    'index': (
        'In a notebook, `corrmatch.explore(',
        'On this site: [the explorer on a photograph](try.md).'),
    'use/43_explore': (
        'Try these in the panel:',
        f'### Try it here\n\n{EXPLORER.format(up="../")}\n\nThis is the one-file form. '
        '<a href="../explorer.html">Open it on a page of its own.</a>')}
TRY = f"""# Try it: correlation maps on a photograph

Move over the photograph. The row of the correlation map at that position is drawn over it, and the white
line is the border of the region cut from that row. Press the button *All 128 regions*: they vote in turn, and
you see which pixels of the prediction change.

{EXPLORER.format(up="")}

The features are those of EfficientNet-Lite0, pretrained on ImageNet; nothing was trained with the method. The
prediction knows only the colour of single pixels. Everything is computed in your browser, and nothing is sent
anywhere. <a href="explorer.html">Open it on a page of its own</a>, read [how it works](use/43_explore.ipynb),
or begin with [the method in one sitting](start/01_one_sitting.ipynb).
"""


# ---- the package, read without importing it

def escape(text: str) -> str:
    "Make plain text safe in markdown; pairs of backticks stay code."
    parts = re.split(r'(`[^`]+`)', text)
    return ''.join(p if i % 2 else re.sub(r'([\\*_\[\]<>|$#~`{}])', r'\\\1', p) for i, p in enumerate(parts))


def slug(heading: str) -> str:
    "Name the anchor of a heading as code-hosting sites do."
    return re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')


class Module:
    "One module of the package: its public names in order, each with signature, arguments and comments."
    def __init__(self, path: Path, package: Path = ROOT/'corrmatch'):
        self.name = '.'.join(path.relative_to(package).with_suffix('').parts)
        text = path.read_text(encoding='utf-8')
        self.tree = ast.parse(text)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        self.comments = {
            t.start[0]: t.string.lstrip('# ').strip() for t in tokens if t.type == tokenize.COMMENT}
        self.alone = {n for n, line in enumerate(text.splitlines(), 1) if line.lstrip().startswith('#')}
        self.cells = {int(m.start()): m[1] for m in re.finditer(r'^# %% \S+ #(\w+)', text, re.M)}
        self.starts = [0, *(m.end() for m in re.finditer('\n', text))]

    def comment(self, line: int) -> str:
        "The comment at the end of a line, or on the lines above it that hold nothing else."
        if line in self.comments:
            return self.comments[line]
        above = []
        while line-1 in self.alone:
            line -= 1
            above.insert(0, self.comments[line])
        return ' '.join(above)

    @cached_property
    def public(self) -> list:
        return next((ast.literal_eval(n.value) for n in self.tree.body
                     if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'), [])

    @cached_property
    def nodes(self) -> dict:
        "Top-level definitions by name; of an `if`, a `try` and the like those inside count too."
        found, todo = {}, list(self.tree.body)
        while todo:
            node = todo.pop(0)
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                if not is_patch(node):
                    found[node.name] = node
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    for name in ast.walk(target):
                        if isinstance(name, ast.Name):
                            found.setdefault(name.id, node)
            elif isinstance(node, (ast.If, ast.Try)):
                todo += [*node.body, *node.orelse]
        return found

    def patched(self, name: str) -> list:
        "Methods that `patch` adds to a class."
        return [
            n
            for n in self.tree.body
            if isinstance(n, ast.FunctionDef)
            and is_patch(n)
            and (hint := n.args.args[0].annotation) is not None
            and ast.unparse(hint).strip("'\"") == name]

    def cell(self, node) -> str:
        "The id of the notebook cell that a definition comes from."
        place = self.starts[node.lineno-1]
        return next((cell for start, cell in sorted(self.cells.items(), reverse=True) if start < place), '')


def is_patch(node) -> bool: return any('patch' in ast.unparse(d) for d in getattr(node, 'decorator_list', []))


def written(annotation):
    "A type as it is written; one in quotes is looked up later and shown without them."
    return annotation and ast.unparse(annotation).strip("'")


def arguments(module: Module, node: ast.FunctionDef, skip_first: bool) -> list:
    """List (name as written, type, default, comment) of a function's arguments and, named '', of what it
    returns."""
    a, rows = node.args, []
    positional = [*a.posonlyargs, *a.args]
    defaults = [None]*(len(positional)-len(a.defaults)) + a.defaults
    listed = [(arg.arg, arg, default) for arg, default in zip(positional, defaults)][skip_first:]
    if a.vararg:
        listed.append(('*'+a.vararg.arg, a.vararg, None))
    elif a.kwonlyargs:
        listed.append(('*', None, None))
    listed += [(arg.arg, arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg:
        listed.append(('**'+a.kwarg.arg, a.kwarg, None))
    ends = [(default or arg).end_lineno if arg else 0 for _, arg, default in listed]
    for i, (name, arg, default) in enumerate(listed):
        last_on_line = ends[i] and ends[i] not in ends[i+1:]
        rows.append(
            (
                name, arg and written(arg.annotation), default and ast.unparse(default),
                module.comment(ends[i]) if last_on_line else ''))
    after = max([*ends, node.lineno]) + (1 if any(ends) else 0)
    lines = [node.returns.end_lineno] if node.returns else range(after, node.body[0].lineno)
    comment = next((module.comments[l] for l in lines if l in module.comments and l not in ends), '')
    if node.returns or comment:
        rows.append(('', written(node.returns), None, comment))
    return rows


def fields(module: Module, node: ast.ClassDef) -> list:
    "List the annotated fields of a record as `arguments` does."
    return [
        (
            n.target.id, ast.unparse(n.annotation), n.value and ast.unparse(n.value),
            module.comment(n.end_lineno))
        for n in node.body
        if isinstance(n, ast.AnnAssign) and not n.target.id.startswith('_')]


def signature(rows: list) -> str:
    return ', '.join(name if default is None else f'{name}={default}' for name, _, default, _ in rows if name)


def described(rows: list) -> list:
    "Definition list of arguments: name and type, then the comment."
    lines = []
    for name, kind, default, comment in rows:
        if name == '*' or not (comment or kind):
            continue
        term = f'**{escape(name)}**' if name else '*returns*'
        if kind:
            term += f' : `{kind}`'
        if default is not None:
            term += f' = `{default}`'
        lines += [term, f': {escape(comment) or "—"}', '']
    return lines


def directive(kind: str, head: str, body: list, fence: str) -> list:
    return [f'{fence}{{py:{kind}}} {head}', '', *body, fence, '']


def data_entry(module: Module, name: str, node: ast.Assign, link: list) -> list:
    "Markdown of a public constant: a short value, and its comment."
    value = ast.unparse(node.value)
    comment = escape(module.comments.get(node.end_lineno, ''))
    told = [f'`{value}`'] if len(value) < 70 else []
    if comment:
        told.append(comment)
    return directive('data', name, [': '.join(told), '', *link], '``````')


def method_entry(module: Module, node: ast.FunctionDef) -> list:
    "Markdown of a public method."
    decorators = [ast.unparse(d) for d in node.decorator_list]
    own = arguments(module, node, skip_first='staticmethod' not in decorators)
    body = [escape(ast.get_docstring(node)), '', *described(own)]
    if any('property' in d for d in decorators):
        return directive('property', node.name, body, '`````')
    return directive('method', f'{node.name}({signature(own)})', body, '`````')


def class_entry(module: Module, name: str, node: ast.ClassDef, link: list) -> list:
    "Markdown of a public class with its public methods."
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    init = next((m for m in methods if m.name == '__init__'), None)
    rows = arguments(module, init, skip_first=True) if init else fields(module, node)
    body = [escape(ast.get_docstring(node) or ''), '']
    if node.bases:
        body += [f'A kind of `{", ".join(map(ast.unparse, node.bases))}`.', '']
    body += described(rows) + link
    for m in methods + module.patched(name):
        if not m.name.startswith('_') and ast.get_docstring(m):
            body += method_entry(module, m)
    return directive('class', f'{name}({signature(rows)})' if 0 < len(rows) <= LONG else name, body, '``````')


def entry(module: Module, name: str, where: dict) -> list:
    "Markdown of one public name."
    node = module.nodes.get(name)
    if node is None:
        return []
    page, heading, anchor = where.get(module.cell(node), ('', '', ''))
    link = [f'Developed in [{escape(page)}: {escape(heading)}](../{page}.ipynb#{anchor})', ''] if page else []
    if isinstance(node, ast.Assign):
        return data_entry(module, name, node, link)
    if isinstance(node, ast.ClassDef):
        return class_entry(module, name, node, link)
    rows = arguments(module, node, skip_first=False)
    body = [escape(ast.get_docstring(node) or ''), '', *described(rows), *link]
    return directive('function', f'{name}({signature(rows)})', body, '``````')


def api_page(module: Module, promise: str, where: dict) -> str:
    "Markdown of one module's page."
    lines = [
        f'# {escape("corrmatch." + module.name)}', '', promise, '',
        f'```{{py:module}} corrmatch.{module.name}', '```', '']
    for name in module.public:
        lines += entry(module, name, where)
    return '\n'.join(lines)


def api_index(modules: list, promises: dict) -> str:
    "Markdown of the page that lists all modules and their names."
    lines = [
        '# API reference',
        '',
        'Every public name of the package, in the order of the book: arguments with their shapes and '
        'units, and the place that develops it. '
        'All names are also in the <a href="../genindex.html">alphabetical index</a>.',
        '',
        '```{toctree}',
        ':hidden:',
        '',
        *(m.name for m in modules),
        '```',
        '']
    for m in modules:
        names = ' · '.join(f'{{py:obj}}`~corrmatch.{m.name}.{n}`' for n in m.public if n in m.nodes)
        lines += [f'**{{py:mod}}`corrmatch.{m.name}`** {promises.get(m.name, "")}', '', names, '']
    return '\n'.join(lines)


# ---- notebooks to pages

def directives(source: str) -> dict:
    "The directives at the head of a code cell: {name: value}."
    found = re.findall(r'^# ?\|\s*([\w-]+):?[ \t]*(.*)$', source, re.M)
    return {name: value.strip() for name, value in found}


def default_exp(nb: dict) -> str:
    "The module that a notebook exports to."
    return next(
        (d['default_exp'] for c in nb['cells'] if 'default_exp' in (d := directives(''.join(c['source'])))),
        '')


def is_plumbing(source: str) -> bool:
    "Does an exported cell hold only imports and private names?"
    def private(node):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            return node.name.startswith('_')
        if isinstance(node, ast.Assign):
            return all(getattr(t, 'id', '_').startswith('_') for t in node.targets)
        return isinstance(node, (ast.Import, ast.ImportFrom, ast.Try))
    try:
        return all(map(private, ast.parse(source).body))
    except SyntaxError:
        return False


def linked(text: str, names: dict, own: str) -> str:
    "Link `name` in prose to the API reference; `names` is {name: its modules}."
    def link(match):
        word = match[1]
        if word.startswith('corrmatch.') and word[10:] in names['']:
            return f'{{py:mod}}`{word}`'
        modules = names.get(word, ())
        module = None
        if own in modules:
            module = own
        elif len(modules) == 1 and re.search(r'_|[A-Z]', word):
            module = modules[0]
        return f'{{py:obj}}`~corrmatch.{module}.{word}`' if module else match[0]
    parts = re.split(r'(^ *```.*?^ *```|^#.*?$|\[[^\]]*\]\([^)]*\)|\$\$.*?\$\$)', text, flags=re.M | re.S)
    return ''.join(
        p if i % 2 else re.sub(r'(?<![`\\}])`([\w.]+)`(?!`)', link, p) for i, p in enumerate(parts))


def site_links(text: str, up: str = '') -> str:
    "Let links that leave nbs/ point to the copies beside the pages; `up` leads from the page to nbs/."
    for path, copy in BESIDE.items():
        text = text.replace(f']({up}../{path})', f']({up}{copy})')
    return text


def site_cell(cell: dict, names: dict, own: str, heading: str, up: str = ''):
    "One cell as the site shows it, or None."
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
        return dict(cell, source=linked(site_links(source, up), names, own), metadata={})
    if cell['cell_type'] != 'code':
        return None
    marks = directives(source)
    source = re.sub(r'^# ?\|.*\n?', '', source, flags=re.M)
    source = re.sub(r'^.*# ?\| ?hide_line.*\n?', '', source, flags=re.M).strip('\n')
    if 'hide' in marks or not source.strip():
        return None
    outputs = [] if 'hide_output' in marks else [site_output(o) for o in cell.get('outputs', [])]
    tags = []
    if marks.get('echo') == 'false' or 'hide_input' in marks:
        tags.append('remove-input')
    elif {'export', 'exporti'} & marks.keys() and is_plumbing(source):
        tags.append('hide-input')
    for flag, note in (
        ('cuda', '# needs a GPU: no output is stored'), ('slow', '# takes long: no output is stored')):
        if flag in marks:
            source = f'{note}\n{source}'
    alt = marks.get('fig-alt') or f'Figure of the section “{heading}”'
    return dict(
        cell, source=source, outputs=outputs, metadata=dict(tags=tags, mystnb=dict(image=dict(alt=alt))))


def site_output(output: dict) -> dict:
    "An output without what only a running notebook can show."
    data = output.get('data', {})
    if not data:
        return output
    if data.keys() == {'text/plain'} and WIDGET.match(''.join(data['text/plain'])):
        data = {'text/markdown': WIDGET_NOTE}
    return dict(output, data={k: v for k, v in data.items() if 'widget' not in k}, metadata={})


def headings(cells: list):
    "Yield each cell with the text of the heading above it."
    heading, fenced = '', False
    for cell in cells:
        if cell['cell_type'] == 'markdown':
            for line in ''.join(cell['source']).splitlines():
                fenced ^= line.lstrip().startswith('```')
                if not fenced and (m := re.match(r'#+\s+(.*)', line)):
                    heading = m[1].strip()
        yield cell, heading


def site_notebook(nb: dict, stem: str, names: dict) -> dict:
    "A notebook as the site shows it."
    own, cells = default_exp(nb), []
    after, note = EXPLORER_NOTE.get(stem, ('', ''))
    for cell, heading in headings(nb['cells']):
        if shown := site_cell(cell, names, own, heading, '../'*stem.count('/')):
            cells.append(shown)
        if after and cell['cell_type'] == 'markdown' and after in ''.join(cell['source']):
            cells.append(dict(cell_type='markdown', id='explorer-note', metadata={}, source=note))
    meta = dict(
        kernelspec=dict(name='python3', display_name='Python 3', language='python'),
        language_info=dict(name='python'))
    return dict(nb, cells=cells, metadata=meta)


def promise(nb: dict) -> str:
    "The one-line promise under a notebook's title."
    text = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown')
    return next(iter(re.findall(r'^> (.+)$', text, re.M)), '')


def cell_places(stem: str, nb: dict) -> dict:
    "{id of a code cell: (page, heading above it, that heading's anchor)}"
    return {c.get('id', ''): (stem, h, slug(h)) for c, h in headings(nb['cells']) if c['cell_type'] == 'code'}


def title(nb: dict) -> str:
    "A notebook's first heading."
    text = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown')
    return next(iter(re.findall(r'^# (.+)$', text, re.M)), '')


def contents(books: dict) -> str:
    "The table of contents of {page: notebook}, which the site shows at the side."
    chapters = sorted(
        (s for s in books if re.match(r'\d', s.rpartition('/')[2])), key=lambda s: s.rpartition('/')[2])
    groups = {'Overview': ['corrmatch <self>', 'Try it on a photograph <try>']}
    for folder, caption in PARTS.items():
        members = [s for s in chapters if s.rpartition('/')[0] == folder]
        groups[caption] = [f'{s.rpartition("/")[2].split("_")[0]} · {title(books[s])} <{s}>' for s in members]
    groups['Reference'] = [
        *(s for s in books if s not in chapters and s != 'index'),
        'api/index',
        'golden',
        'CONTRIBUTING']
    trees = [
        f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(members) + '\n```'
        for caption, members in groups.items()
        if members]
    return '\n\n'.join(trees)


def names_of(modules: list) -> dict:
    "{public name: modules that define it}; under '' the names of the modules."
    names = {'': {m.name for m in modules}}
    for m in modules:
        for name in m.public:
            if name in m.nodes:
                names.setdefault(name, []).append(m.name)
    return names


def write_api(folder: Path, modules: list, promises: dict, where: dict):
    "Write a page for each module, and the page that lists them."
    folder.mkdir()
    for m in modules:
        text = api_page(m, promises.get(m.name, ''), where)
        (folder/f'{m.name}.md').write_text(text, encoding='utf-8')
    (folder/'index.md').write_text(api_index(modules, promises), encoding='utf-8')


def write_beside(folder: Path, root: Path):
    "Write the pages that are neither notebooks nor made of the package."
    (folder/'try.md').write_text(TRY, encoding='utf-8')
    for path, copy in BESIDE.items():
        data = (root/path).read_bytes()
        if copy == 'CONTRIBUTING.md':
            data = data.replace(b'](tests/golden/README.md)', b'](golden.md)')
        (folder/copy).write_bytes(data)


def read_books(root: Path, stems: list) -> dict:
    "{page: content} of the notebooks of these names, or of all, in the order of their names."
    paths = sorted((root/'nbs').rglob('*.ipynb'), key=lambda p: p.name)
    return {
        p.relative_to(root/'nbs').with_suffix('').as_posix(): json.loads(p.read_text(encoding='utf-8'))
        for p in paths
        if not stems or p.stem in {*stems, 'index'}}


def write_pages(folder: Path, root: Path = ROOT, stems: list = ()) -> list:
    "Write everything that sphinx reads; return the notebooks' names."
    books = read_books(root, stems)
    modules = [Module(p, root/'corrmatch') for p in sorted((root/'corrmatch').rglob('[a-z]*.py'))]
    owners = {default_exp(nb) for nb in books.values()}
    modules = [m for m in modules if m.public and (m.name in owners or not stems)]
    names = names_of(modules)
    where = {}
    promises = {}
    for stem, nb in books.items():
        where |= cell_places(stem, nb)
        promises[default_exp(nb)] = promise(nb)
        page = site_notebook(nb, stem, names)
        if stem == 'index':
            page['cells'].append(
                dict(cell_type='markdown', id='contents', metadata={}, source=contents(books)))
        (folder/f'{stem}.ipynb').parent.mkdir(exist_ok=True)
        (folder/f'{stem}.ipynb').write_text(json.dumps(page), encoding='utf-8')
    order = [*promises]
    modules.sort(key=lambda m: order.index(m.name) if m.name in order else len(order))
    write_api(folder/'api', modules, promises, where)
    write_beside(folder, root)
    return list(books)


def write_scene(path: Path):
    "Write the explorer on a photograph with pretrained features."
    from corrmatch.models.pretrained import EXAMPLE_CLASSES, example_photo, example_prediction, lite0_features
    from corrmatch.use.explore import write_explorer
    photo = example_photo('astronaut', 480)
    write_explorer(
        path, photo.image, lite0_features(photo.image), logits=example_prediction(photo.image),
        names=EXAMPLE_CLASSES, tau=0.7, temperature=0.8, position=(403, 375), title=photo.credit)


# ---- checks of what was built

class Page(HTMLParser):
    "Anchors, references, loaded resources and visible text of one HTML file."
    def __init__(self, path: Path):
        super().__init__()
        self.ids = Counter()
        self.links = []
        self.loads = []
        self.text = []
        self.within = []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag in ('style', 'script', 'math', 'pre'):
            self.within.append(tag)
        if tag in ('p', 'div', 'pre', 'td', 'li'):
            self.text.append('\n')
        if a.get('id'):
            self.ids[a['id']] += 1
        if tag == 'a' and a.get('name'):
            self.ids[a['name']] += 1
        if tag in ('a', 'area') and a.get('href') is not None:
            self.links.append(a['href'])
        elif (
            tag == 'link'
            and a.get('href')
            and not {'next', 'prev', 'index', 'search', 'canonical'} & set(a.get('rel', '').split())):
            self.loads.append(a['href'])
        elif tag == 'link' and a.get('href'):
            self.links.append(a['href'])
        elif tag in ('form', 'object'):
            self.loads += [v for k in ('action', 'data') if (v := a.get(k))]
        elif tag != 'a':
            self.loads += [v for k in ('src', 'poster') if (v := a.get(k))]
        self.loads += [s.split()[0] for s in (a.get('srcset') or '').split(', ') if s.strip()]
        self.loads += css_loads(a.get('style') or '')

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if self.within and self.within[-1] == tag:
            self.within.pop()

    def handle_data(self, data):
        inside = self.within[-1] if self.within else ''
        if inside == 'style':
            self.loads += css_loads(data)
        elif inside != 'script':
            self.text.append(data)
        if 'math' in self.within and '\\' in data:
            self.text.append(f'\\unread maths {data}')
        if 'pre' not in self.within and re.search(r'\|\n\| *:?--', data):
            self.text.append(f'\\table as text: {data.strip().splitlines()[0]}\n')


def css_loads(text: str) -> list:
    "What a style sheet loads."
    return [u.strip('\'" ') for u in re.findall(r'url\(([^)]+)\)', text)] + re.findall(
        r'@import\s+[\'"]([^\'"]+)', text)


def machine_marks(root: Path = ROOT) -> list:
    "Texts that would tell where the site was built."
    marks = [str(root), sys.prefix, str(Path.home()), socket.gethostname(), getpass.getuser()]
    return [m for m in dict.fromkeys(marks) if len(m) > 5 and m not in ('/usr', 'localhost')]


def missing(source: Path, target: str, folder: Path, pages: dict) -> str | None:
    "Say why a page or style sheet `source` of a folder cannot reach a target; None where it can."
    parts = urlsplit(target)
    if parts.scheme == 'data':
        return None
    if parts.scheme or parts.netloc:
        return 'external'
    path = (source.parent/unquote(parts.path)).resolve() if parts.path else source.resolve()
    if path.is_dir():
        path = path/'index.html'
    if not path.is_file() or not path.is_relative_to(folder.resolve()):
        return 'no such file'
    page = pages.get(path)
    if page and parts.fragment and unquote(parts.fragment) not in page.ids:
        return 'no such anchor'
    return None


def link_faults(page: Page, reach) -> list:
    "List the links and loaded resources of a page that lead nowhere; `reach` says why a target does not."
    faults = []
    for target in page.links:
        if (what := reach(target)) and what != 'external':
            faults.append(f'link {target}: {what}')
        if urlsplit(target).scheme not in ('', 'http', 'https', 'mailto'):
            faults.append(f'link {target}: of a scheme that does not belong here')
    return faults + [f'loads {target}: {what}' for target in page.loads if (what := reach(target))]


def text_faults(page: Page, personal: re.Pattern) -> list:
    "List what a page shows and should not: places on one machine, directives, raw tables, raw formulas."
    text = ''.join(page.text)
    return [
        *(f'shows {m}, a place on one machine' for m in sorted(set(personal.findall(text)))),
        *(f'shows the directive {m.strip()}' for m in re.findall(r'^# ?\| ?\w.*$', text, re.M)),
        *(m.strip() for m in re.findall(r'\\(?:unread maths|table as text).*', text))]


def check_site(folder: Path, marks: list = ()) -> list:
    "List what is wrong with the pages of a folder, one line each."
    pages = {p: Page(p) for p in sorted(folder.rglob('*.html'))}
    personal = re.compile(
        '|'.join([*map(re.escape, marks), r'/home/\w+', r'/root\b', r'/Users/\w+', r'/tmp/\w+']))
    faults = []
    found = {p.resolve(): page for p, page in pages.items()}
    for path, page in pages.items():
        own = link_faults(page, partial(missing, path, folder=folder, pages=found))
        own += [f'two elements have the id {i}' for i, n in page.ids.items() if n > 1]
        own += text_faults(page, personal)
        faults += [f'{path.relative_to(folder)}: {fault}' for fault in own]
    for path in sorted(folder.rglob('*.css')):
        for target in css_loads(path.read_text(encoding='utf-8')):
            if what := missing(path, target, folder, found):
                faults.append(f'{path.relative_to(folder)}: loads {target}: {what}')
    return faults


# ---- all of it

def build(out: Path = ROOT/'_docs', work: Path = ROOT/'_proc', stems: list = (), scene=write_scene) -> int:
    """Write the site of all or some notebooks into a folder, which is emptied first; return sphinx's exit
    code: 0 without a warning."""
    from sphinx.cmd.build import build_main
    for folder in (out, work):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ('pages', 'beside'):
        (work/name).mkdir(parents=True)
    write_pages(work/'pages', stems=stems)
    scene(work/'beside'/'explorer.html')
    return build_main(
        [
            '-q', '-b', 'html', '-W', '--keep-going', '-j', '2', '-c', str(ROOT / 'docs'), '-d',
            str(work / 'read'), '-D', f'html_extra_path={work / "beside"}', str(work / 'pages'), str(out)])


def main(stems: list) -> int:
    start = time.time()
    absent = [m for m in ('sphinx', 'myst_nb', 'furo', 'latex2mathml') if find_spec(m) is None]
    if absent:
        sys.exit(f'{", ".join(absent)}: not installed; run `make docs`, or pip install corrmatch-seg[docs]')
    code = build(stems=[Path(s).stem for s in stems])
    faults = check_site(ROOT/'_docs', machine_marks())
    print(*faults, sep='\n', end='\n' if faults else '', file=sys.stderr)
    print(
        f'_docs/index.html: {len(list((ROOT / "_docs").rglob("*.html")))} pages, {len(faults)} faults, '
        f'{time.time() - start:.0f} s')
    return int(bool(code or faults))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
