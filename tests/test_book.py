"The rules that every notebook keeps, so that the book stays readable: cells, prose, tests, outputs, imports."
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import badges  # noqa: E402
import readme  # noqa: E402

NOTEBOOKS = sorted((ROOT/'nbs').rglob('*.ipynb'))
NUMBERED = sorted((p for p in NOTEBOOKS if re.match(r'\d', p.name)), key=lambda p: p.name)
LESSONS = [p for p in NUMBERED if p.parent.name == 'method']
# A part of the book is a folder of nbs/ and a subpackage: what its modules may import of the others.
# '' is the root of the package.
# Two modules of a part, or of two parts that name each other, may not import each other in a circle.
PARTS = {
    'start': (), 'method': ('method',), '': ('',), 'data': ('', 'data', 'engine', 'method'),
    'models': ('', 'method', 'models', 'engine'),
    'training': ('', 'method', 'data', 'models', 'training', 'engine'),
    'use': ('', 'method', 'data', 'models', 'training', 'use', 'engine'), 'results': (),
    'engine': ('', 'method', 'data', 'engine')}
ENTRY = {'__init__', '__main__'}  # of the package: they may import anything
ASSERTION = re.compile(r'test_\w+|expect_fail|ExceptionExpected')
WINDOW = 5  # cells after an export in which its assertion stands


def names(paths): return [p.stem for p in paths]


each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=names(NOTEBOOKS))
each_numbered = pytest.mark.parametrize('path', NUMBERED, ids=names(NUMBERED))
each_lesson = pytest.mark.parametrize('path', LESSONS, ids=names(LESSONS))


class Cell:
    "One cell: its text without directives, whether it is exported, its syntax tree."
    def __init__(self, number, cell):
        self.number = number
        self.kind = cell['cell_type']
        self.outputs = cell.get('outputs', [])
        source = ''.join(cell['source'])
        self.source = ''.join(l for l in source.splitlines(keepends=True) if not l.startswith('#|'))
        self.directives = {
            l[2:].split()[0] for l in source.splitlines() if l.startswith('#|') and l[2:].split()}
        self.exported = bool(self.directives & {'export', 'exports', 'exporti'})
        python = ''.join(l for l in self.source.splitlines(keepends=True) if not l.startswith(('%', '!')))
        self.tree = ast.parse(python) if self.kind == 'code' else ast.Module([], [])
        self.flows = flows(self.tree)
        self.asserts = asserts(self.tree)

    def public(self):
        "Functions and classes that this cell adds to the package's interface."
        if not self.exported:
            return []
        return [
            n
            for n in self.tree.body
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')]


@cache
def read(path):
    return [Cell(i, c) for i, c in enumerate(json.loads(path.read_text(encoding='utf-8'))['cells'])]


def used(node):
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {
        n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def used_in(nodes): return set().union(*map(used, nodes))


def is_patch(node):
    "Is it a method that `patch` puts into a class?"
    return 'patch' in used_in(node.decorator_list)


def flows(tree):
    "Pairs (names read, names made or changed by them) of a cell's statements, functions and classes."
    pairs = []
    for n in ast.walk(tree):
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            pairs.append((used(n), {n.name}))
        elif isinstance(n, ast.Assign):
            pairs.append((used(n.value), used_in(n.targets)))
        elif isinstance(n, (ast.AugAssign, ast.NamedExpr)):
            pairs.append((used(n.value), used(n.target)))
        elif isinstance(n, (ast.For, ast.comprehension)):
            pairs.append((used(n.iter), used(n.target)))
        elif isinstance(n, ast.withitem) and n.optional_vars:
            pairs.append((used(n.context_expr), used(n.optional_vars)))
        elif isinstance(n, ast.Expr) and isinstance(n.value, ast.Call):
            pairs.append((used(n.value.func), used(n.value)))  # for its effect
    return pairs


def asserts(tree):
    "Does a cell hold a statement that fails when something is wrong?"
    return any(
        isinstance(n, ast.Assert) or isinstance(n, ast.Name) and ASSERTION.fullmatch(n.id)
        for n in ast.walk(tree))


def is_asserted(name, callers, near):
    "Does a cell of `near` that makes assertions use `name`, a result of it, or a function that calls it?"
    known, before = {name}, set()
    while known != before:
        before = set(known)
        for cell in (*callers, *near):
            known.update(*[made for read, made in cell.flows if read & before])
    return any(cell.asserts and used(cell.tree) & known for cell in near)


def arguments_of(node, is_method=False):
    "Arguments of a function, without the first one of a method."
    a = node.args
    arguments = [x for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if x is not None]
    return arguments[1:] if is_patch(node) or is_method else arguments


def comment_lines(source):
    "Numbers of the lines that hold a comment."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


def declares_only(node):
    "Is it a class of named fields, or a protocol?"
    if not isinstance(node, ast.ClassDef):
        return False
    return bool(used_in(node.bases) & {'NamedTuple', 'Protocol'}) or not any(
        isinstance(n, ast.FunctionDef) for n in node.body)


def faults(lines): assert not lines, '\n' + '\n'.join(lines)


def module_of(path):
    "The module that a notebook exports to, '' for none."
    found = re.search(r'#\| *default_exp ([\w.]+)', path.read_text(encoding='utf-8'))
    return found[1] if found else ''


def imports_of(node, name):
    "Modules of the package that an import statement in a module of it names, relative or in full."
    if isinstance(node, ast.Import):
        full = [alias.name for alias in node.names]
    else:
        base = ['corrmatch', *name.split('.')][:-node.level] if node.level else []
        full = ['.'.join([*base, *filter(None, [node.module])])]
        full += [f'{full[0]}.{alias.name}' for alias in node.names]
        full = full[1:] if all(is_module(one) for one in full[1:]) else full[:1]
    return {one.partition('.')[2] for one in full if one.partition('.')[0] == 'corrmatch'}


def is_module(full): return (ROOT/full.replace('.', '/')).with_suffix('.py').is_file()


def package_imports():
    "{module: modules of the package that it imports, also within functions}"
    package, found = ROOT/'corrmatch', {}
    for path in package.rglob('*.py'):
        name = '.'.join(path.relative_to(package).with_suffix('').parts)
        if name == '_modidx' or not path.stat().st_size:
            continue
        found[name] = set()
        for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(n, (ast.Import, ast.ImportFrom)):
                found[name] |= imports_of(n, name)
    return found


@pytest.mark.parametrize('line, found', [
    ('from .b import c', {'data.b'}), ('from ..viz import c', {'viz'}), ('from .. import viz', {'viz'}),
    ('from corrmatch.use.cli import main', {'use.cli'}), ('from corrmatch.use import cli', {'use.cli'}),
    ('import corrmatch.use.cli as c', {'use.cli'}), ('import corrmatch', {''}),
    ('from corrmatch import load', {''}), ('from corrmatch_seg import x', set()),
    ('import torch, corrmatch.viz', {'viz'})])
def test_every_way_to_import_a_module_is_seen(line, found):
    assert imports_of(ast.parse(line).body[0], 'data.a') == found


def part_of(module): return module.rpartition('.')[0]


def test_chapters_are_numbered_once():
    assert (ROOT/'nbs'/'index.ipynb').is_file() and len(LESSONS) >= 8
    assert [int(p.name[:2]) for p in NUMBERED] == list(range(1, len(NUMBERED) + 1)), (
        'numbers without gaps, letters and repetitions')
    modules = [m for p in NUMBERED if (m := module_of(p))]
    assert [m for m, n in Counter(modules).items() if n > 1] == [], 'two notebooks export one module'


def test_a_part_is_a_folder_and_a_subpackage():
    assert {p.parent.name.replace('nbs', '') for p in NUMBERED} == set(PARTS)
    lines = []
    for path in NUMBERED:
        module = module_of(path)
        folder = path.parent.name.replace('nbs', '')
        exports = any(c.exported for c in read(path))
        if exports and part_of(module) != folder:
            lines.append(f'{path.name} lies in {folder!r} and exports corrmatch.{module}')
        if exports and module.rpartition('.')[2] != path.stem.partition('_')[2]:
            lines.append(f'{path.name}: its module is called {module}')
    faults(lines)
    folders = [p.parent.name for p in NUMBERED]
    assert [f for n, f in enumerate(folders) if n == 0 or folders[n - 1] != f] == [
        'start', 'method', 'nbs', 'data', 'models', 'training', 'use', 'results', 'engine']


def test_correlation_is_read_early():
    assert [p.stem for p in NUMBERED].index('04_correlation') < 5


def test_arrows_point_downward():
    imports = package_imports()
    lines = [
        f'corrmatch.{m} imports corrmatch.{other}'
        for m, others in imports.items()
        if m not in ENTRY
        for other in sorted(others)
        if part_of(other) not in PARTS[part_of(m)]]
    faults(lines)


def test_the_method_is_closed():
    allowed = {'torch', 'einops', 'numpy', 'typing', 'types', 'collections', 'dataclasses', 'math'}
    lines = []
    for path in (ROOT/'corrmatch'/'method').glob('*.py'):
        for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = (
                [a.name for a in n.names]
                if isinstance(n, ast.Import)
                else [n.module]
                if isinstance(n, ast.ImportFrom) and not n.level
                else [])
            lines += [f'{path.name}: imports {name}' for name in names if name.split('.')[0] not in allowed]
    faults(lines)


def test_no_circle():
    left = {m: {o for o in others if o != m} for m, others in package_imports().items() if m not in ENTRY}
    while free := [m for m, others in left.items() if not others & left.keys()]:
        for m in free:
            del left[m]
    assert not left, f'modules that import each other: {left}'


def test_index_lists_every_notebook():
    text = '\n'.join(c.source for c in read(ROOT/'nbs'/'index.ipynb') if c.kind == 'markdown')
    faults(
        [
            f'index.ipynb does not name {p.name}'
            for p in NUMBERED
            if f'({p.relative_to(ROOT / "nbs").as_posix()})' not in text])


@each_notebook
def test_links_between_notebooks(path):
    lines = []
    for cell in read(path):
        if cell.kind != 'markdown':
            continue
        for target in re.findall(r'\]\(([^)\s:#]+\.ipynb)', cell.source):
            if not (path.parent/target).is_file():
                lines.append(f'{path.name} cell {cell.number}: {target} does not exist')
    faults(lines)


@each_numbered
def test_opens_with_heading_and_promise(path):
    cells = read(path)
    first = json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source']
    assert re.fullmatch(r'#\| *default_exp [\w.]+', ''.join(first).strip()), (
        'the first cell is `#| default_exp NAME`')
    opening = '\n'.join(c.source for c in cells[1:4] if c.kind == 'markdown')
    assert re.search(r'^# \S', opening, re.M), 'a heading follows'
    assert re.search(r'^> \S', opening, re.M), 'and a one-line promise'


def test_lessons_open_in_colab():
    "The badge of each lesson, its address made of settings.ini: `python tools/badges.py` writes it."
    fields = badges.settings()
    paths = badges.lessons()
    assert len(paths) >= 9
    for path in paths:
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        found = [n for n, c in enumerate(cells) if c['id'] == badges.BADGE]
        assert len(found) == 1 and found[0] <= 4, f'{path.name}: no badge under the promise'
        assert ''.join(cells[found[0]]['source']) == badges.badge(path, fields), path.name
    assert (ROOT/'docs'/'static'/'colab.svg').is_file()


def test_readme_leads_to_the_site():
    "Its explorer page is named, and linked as soon as the host in settings.ini is no placeholder."
    fields = badges.settings() | dict(doc_host='https://book.example.net')
    linked = readme.with_site(f'A. {readme.EXPLORE}', fields)
    assert f"(https://book.example.net{fields['doc_baseurl']}/try.html)" in linked
    plain = readme.with_site(readme.EXPLORE, badges.settings())
    assert plain in (ROOT/'README.md').read_text(encoding='utf-8')
    assert "folder/'try.md'" in (ROOT/'tools'/'docs.py').read_text(encoding='utf-8')


def test_badge_follows_the_address_of_the_repository():
    fields = badges.settings() | dict(git_url='https://github.com/someone/fork', branch='dev')
    text = badges.badge(ROOT/'nbs'/'method'/'04_correlation.ipynb', fields)
    assert '/github/someone/fork/blob/dev/nbs/method/04_correlation.ipynb)' in text
    assert 'git+https://github.com/someone/fork"' in text


@each_lesson
def test_length_and_prose(path):
    cells = read(path)
    share = sum(c.kind == 'markdown' for c in cells)/len(cells)
    assert 35 <= len(cells) <= 110, f'{len(cells)} cells'
    assert .25 <= share <= .6, f'{share:.0%} of the cells are prose'


@each_lesson
def test_closes_with_comparison_and_exercises(path):
    headings = [
        c.source.strip().lower() for c in read(path) if c.kind == 'markdown' and c.source.startswith('#')]
    for wanted in ('paper', 'exercises'):
        assert any(wanted in h for h in headings), f'no heading with "{wanted}"'


@each_notebook
def test_size_and_outputs(path):
    assert path.stat().st_size <= 500*1024, f'{path.stat().st_size//1024} KB'
    lines = []
    for cell in read(path):
        for output in cell.outputs:
            where = f'{path.name} cell {cell.number}'
            text = ''.join(output.get('text', [])) + ''.join(
                str(v) for k, v in output.get('data', {}).items() if 'image/' not in k)
            if output['output_type'] == 'error':
                lines.append(f'{where}: a stored error')
            if output.get('name') == 'stderr' or re.search(r'\w*Warning\b', text):
                lines.append(f'{where}: a warning')
            if re.search(r'(?<![\w.])/(home|root|tmp|var|work|opt|usr|Users)/\w', text):
                lines.append(f'{where}: an absolute path')
            if 'application/vnd.jupyter.widget-view+json' in output.get('data', {}):
                lines.append(f'{where}: a widget, blank on a page')
    faults(lines)


@each_numbered
def test_outputs_are_stored(path):
    shown = [c for c in read(path) if c.outputs]
    assert shown, 'run `make nbs`: no cell has an output'


@each_notebook
def test_cell_ids_are_unique(path):
    ids = Counter(c.get('id') for c in json.loads(path.read_text(encoding='utf-8'))['cells'])
    assert None not in ids and max(ids.values()) == 1


@each_notebook
def test_imports(path):
    "No star imports; what a notebook shows or tests may come from any chapter."
    faults([f'{path.name} cell {cell.number}: star import' for cell in read(path) for n in ast.walk(cell.tree)
            if isinstance(n, ast.ImportFrom) and any(a.name == '*' for a in n.names)])


LONGEST_BODY = 25  # lines of a function, without signature, comments of arguments and docstring


def body_lines(node):
    "Lines of code in the body of a function."
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    lines = []
    for path in sorted([*(ROOT/'corrmatch').rglob('*.py'), *(ROOT/'tools').glob('*.py')]):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.FunctionDef) and body_lines(node) > LONGEST_BODY:
                lines.append(f'{path.relative_to(ROOT)}: {node.name} has {body_lines(node)} lines')
    faults(lines)


def test_style_of_the_code():
    "Lines of 110 characters, one statement a line, no unused name: what ruff.toml asks for."
    pytest.importorskip('ruff', reason='needs ruff, of the extra `dev`')
    done = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise'], cwd=ROOT,
        capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def module_trees():
    "Yield (module, its syntax tree) of the package."
    for path in sorted((ROOT/'corrmatch').rglob('*.py')):
        module = '.'.join(path.relative_to(ROOT/'corrmatch').with_suffix('').parts)
        if module not in ENTRY | {'_modidx'}:
            yield module, ast.parse(path.read_text(encoding='utf-8'))


def defined_names(tree):
    "Names without an underscore that a module defines: what it offers, and what only its siblings need."
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not is_patch(node):
            found.add(node.name)
        if isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return {name for name in found if not name.startswith('_')}


def offered_names(tree):
    "The names in `__all__` of a module; those of cells marked `exporti` are not in it."
    return [
        name
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__'
        for name in ast.literal_eval(node.value)]


def exported_names():
    "{name without an underscore: modules that define it}"
    found = {}
    for module, tree in module_trees():
        for name in defined_names(tree):
            found.setdefault(name, []).append(module)
    return found


def test_few_public_names():
    "At most 300 names are offered; what only other modules of the package need is marked `exporti`."
    offered = {module: offered_names(tree) for module, tree in module_trees()}
    total = sum(map(len, offered.values()))
    assert 200 < total <= 300, total
    for module, tree in module_trees():
        assert not [name for name in offered[module] if name.startswith('_')], module


def test_a_public_name_means_one_thing():
    faults(
        [f'{name}: {", ".join(modules)}' for name, modules in exported_names().items() if len(modules) > 1])


def test_few_packed_assignments():
    "Tuples that are packed to save a line: at most 1.5 in a hundred lines of the package."
    packed = lines = 0
    for path in (ROOT/'corrmatch').rglob('*.py'):
        if path.name == '_modidx.py':
            continue
        text = path.read_text(encoding='utf-8')
        lines += sum(bool(line.strip()) and not line.strip().startswith('#') for line in text.splitlines())
        packed += sum(
            isinstance(n, ast.Assign)
            and isinstance(n.targets[0], ast.Tuple)
            and isinstance(n.value, ast.Tuple)
            for n in ast.walk(ast.parse(text)))
    assert packed <= .015*lines, f'{packed} in {lines} lines'


def test_no_conditional_inside_another():
    "No `a if b else c if d else e`, in no cell and in no tool."
    trees = [(f'{path.name} cell {cell.number}', cell.tree) for path in NOTEBOOKS for cell in read(path)]
    tools = sorted((ROOT/'tools').glob('*.py'))
    trees += [(path.name, ast.parse(path.read_text(encoding='utf-8'))) for path in tools]
    faults([
        f'{where}: {ast.unparse(node)}'
        for where, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.IfExp)
        and (isinstance(node.body, ast.IfExp) or isinstance(node.orelse, ast.IfExp))])


def test_few_files_of_results():
    files = [p.name for p in (ROOT/'nbs'/'results').rglob('*') if p.is_file() and p.suffix != '.ipynb']
    assert len(files) <= 15, f'{len(files)} files'


OUT = {  # words that the book does not use, and what it says instead
    r'pictures?': 'image', r'labels alone': 'supervised-only', r'look-?alikes?': 'similar positions',
    r'likeness': 'similarity', r'whisper\w*': 'gives a small weight', r'(un)?taught': 'trained',
    r'literal(ly)?': 'naive', r'hopeless': 'should abort', r'from cheap to dear': 'from cheap to expensive',
    r'[Ww]ho(ever)? (halves|reads|wants|finds|counts|needs|looks|knows)': 'if you'}
ALLOWED = re.compile(
    r'`[^`]*`|"[^"\n]*"|\[[^\]]*\]\([^)]*\)|typing\.Literal|Literal\[|ast\.literal_eval|'
    r'import Literal\w*|, Literal\b|Literal,')



def prose_of(path):
    "Yield (cell, text) of what a reader reads: prose, comments and docstrings."
    for cell in read(path):
        if cell.kind == 'markdown':
            yield cell.number, cell.source
            continue
        comments = re.findall(r'#(?!\|)(.*)$', cell.source, re.M)
        docs = [
            ast.get_docstring(n) or ''
            for n in ast.walk(cell.tree)
            if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        yield cell.number, '\n'.join(comments + docs)


@each_notebook
def test_words_of_the_field(path):
    lines = []
    for number, text in prose_of(path):
        text = ALLOWED.sub('', text)
        for word, instead in OUT.items():
            if found := re.search(rf'\b{word}\b', text):
                lines.append(f'{path.name} cell {number}: "{found[0]}"; say {instead}')
    faults(lines)


@each_notebook
def test_every_export_has_an_assertion(path):
    cells, lines = read(path), []
    for cell in cells:
        end = cell.number+1+WINDOW
        near = [c for c in cells[cell.number+1:end] if not c.exported]
        callers = [c for c in cells[:end] if c.exported]
        for node in cell.public():
            if not declares_only(node) and not is_asserted(node.name, callers + near, near):
                lines.append(
                    f'{path.name} cell {cell.number}: {node.name} has no assertion within {WINDOW} cells')
    faults(lines)


@each_notebook
def test_no_output_of_a_former_version(path):
    "A cell that does not end in a value has no stored value."
    lines = [
        f'{path.name} cell {cell.number}: {output["data"].get("text/plain")}'
        for cell in read(path)
        for output in cell.outputs
        if output['output_type'] == 'execute_result'
        and not (cell.tree.body and isinstance(cell.tree.body[-1], ast.Expr))]
    faults(lines)


@each_notebook
def test_docstrings(path):
    lines = []
    for cell in read(path):
        for node in cell.public():
            text = ast.get_docstring(node)
            if not text:
                lines.append(f'{path.name} cell {cell.number}: {node.name} has no docstring')
            elif '\n' in text:
                lines.append(
                    f'{path.name} cell {cell.number}: the docstring of {node.name} is longer than a line')
    faults(lines)


@each_notebook
def test_each_argument_is_described(path):
    "Every argument of a public function stands on a line of its own that ends in a comment."
    lines = []
    for cell in read(path):
        comments = comment_lines(cell.source) if cell.exported else ()
        for node in cell.public():
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = arguments_of(node)
            shared = [line for line, n in Counter(x.lineno for x in arguments).items() if n > 1]
            for x in arguments:
                if x.lineno not in comments or x.lineno in shared or (x.lineno == node.lineno):
                    lines.append(
                        f'{path.name} cell {cell.number}: {node.name}({x.arg}) has no line and comment of '
                        'its own')
    faults(lines)


def public_functions(tree, public):
    "Yield (function or method that a module offers, its arguments)."
    for node in tree.body:
        is_function = isinstance(node, ast.FunctionDef)
        if is_function and (node.name in public or is_patch(node) and not node.name.startswith('_')):
            yield node, arguments_of(node)
        for method in node.body if isinstance(node, ast.ClassDef) and node.name in public else ():
            if isinstance(method, ast.FunctionDef) and re.match(r'__init__$|[^_]', method.name):
                yield method, arguments_of(method, 'staticmethod' not in used_in(method.decorator_list))


def tells_the_result(node):
    "Has a function a return type that names what its containers hold?"
    if node.returns is None:
        return False
    held = {id(n.value) for n in ast.walk(node.returns) if isinstance(n, ast.Subscript)}
    return not any(
        isinstance(n, ast.Name) and n.id in ('tuple', 'list', 'dict', 'set') and id(n) not in held
        for n in ast.walk(node.returns))


def test_public_functions_have_types():
    "At least 97 % of the arguments have a type and a comment, and of the results a type."
    public = exported_names()
    arguments = {}
    results = {}
    for path in sorted((ROOT/'corrmatch').rglob('*.py')):
        module = '.'.join(path.relative_to(ROOT/'corrmatch').with_suffix('').parts)
        text = path.read_text(encoding='utf-8')
        comments = comment_lines(text)
        names = {name for name, modules in public.items() if module in modules}
        for node, own in public_functions(ast.parse(text), names):
            where = f'{module} line {node.lineno}: {node.name}'
            for x in own:
                arguments[f'{where}({x.arg})'] = x.annotation is not None and x.lineno in comments
            if node.name != '__init__':
                results[where] = tells_the_result(node)
    assert len(arguments) > 1200 and len(results) > 400
    for found in (arguments, results):
        lacking = [name for name, is_told in found.items() if not is_told]
        assert len(lacking) <= .03*len(found), '\n'.join(lacking)


def test_links_of_the_readme_lead_to_files():
    links = [
        t.split('#')[0]
        for t in re.findall(r'\]\(([^)\s]+)\)', (ROOT / 'README.md').read_text())
        if not t.startswith(('http', '#', 'mailto'))]
    assert len(links) > 30 and [t for t in links if not (ROOT/t).exists()] == []
