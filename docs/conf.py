"""Settings of the site. tools/docs.py writes the pages and calls sphinx.

Nothing here or there is fetched by the browser of a reader.
"""
import re

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.util import logging

project = 'corrmatch'
author = 'The corrmatch authors'
copyright = '2026 ' + author
extensions = ['myst_nb']
exclude_patterns = []

# notebooks: stored outputs only
nb_execution_mode = 'off'
nb_output_stderr = 'remove'
nb_render_markdown_format = 'myst'  # tables that a cell makes are tables
nb_code_prompt_show = 'Imports and helpers'
nb_code_prompt_hide = 'Imports and helpers'
myst_enable_extensions = ['deflist', 'dollarmath']
myst_heading_anchors = 4
suppress_warnings = ['myst.header']  # a page may begin below level one

# looks
smartquotes = False  # h' is a height, not a quotation
html_theme = 'furo'
html_title = 'corrmatch'
html_static_path = ['static']
html_css_files = ['book.css']
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = 'mathml'
pygments_style = 'friendly'
add_module_names = False
python_use_unqualified_type_names = True


GAP = '<mspace width="0.17em"/>'
SPELLED = {  # what the converter does not read: how it reads the same
    r'\\arg\b': r'\\operatorname{arg}',
    r'\\setminus\b': r'\\smallsetminus',  # its other sign is in few fonts
    r'\\[Bb]ig+[lr]?\\l(floor|ceil)': r'\\left\\l\1',
    r'\\[Bb]ig+[lr]?\\r(floor|ceil)': r'\\right\\r\1',
}


def mathml(tex: str, display: str) -> str:
    "Turn LaTeX into MathML, which browsers draw by themselves."
    source = re.sub(r'\\text\{[^{}]*\}', lambda m: m[0].replace(r'\_', '_'), tex)
    for pattern, other in SPELLED.items():
        source = re.sub(pattern, other, source)
    text = convert(source, display=display)
    text = re.sub('(?<=</m[ni]>)(?=<mi>(?:ln|log|exp)</mi>)', GAP, text)      # 2 ln 2, not 2ln2
    text = re.sub('(<mi>(?:ln|log)</mi>)(?=<m(?:[in]|sub|frac))', rf'\1{GAP}', text)
    # sizes |K|/|S| without gaps
    text = re.sub('<mo[^>]*>&#x0007C;</mo>', '<mo stretchy="false" lspace="0" rspace="0">|</mo>', text)
    if '\\' in text:
        logging.getLogger(__name__).warning(f'not understood as maths: {tex}')
    return text


def inline_math(writer, node):
    writer.body.append(mathml(node.astext(), 'inline'))
    raise SkipNode


def block_math(writer, node):
    writer.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer(
        'mathml', inline_renderers=(inline_math, None), block_renderers=(block_math, None))
