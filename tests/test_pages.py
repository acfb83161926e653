"Every HTML page that is written: names from outside stay text, nothing is fetched, nothing runs."
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from runs_for_tests import small

from corrmatch.use.explore import write_explorer
from corrmatch.use.predict import load, predict_files, pseudo_files
from corrmatch.data.check import check_data, save_report
from corrmatch.use.report import read_run, report_page, score_run
from corrmatch.training.trainer import Trainer

PLAIN = {
    'html', 'head', 'meta', 'link', 'title', 'style', 'body', 'h1', 'h2', 'p', 'ul', 'li', 'svg', 'rect',
    'div', 'figure', 'figcaption', 'img', 'a', 'br', 'b', 'table', 'tr', 'td', 'th', 'details', 'summary',
    'pre'}
ATTRIBUTES = {
    'lang', 'charset', 'name', 'content', 'http-equiv', 'rel', 'href', 'class', 'width', 'height',
    'aria-hidden', 'stroke', 'fill', 'alt', 'src', 'id', 'type'}
NASTY = [
    '<img src=x onerror=alert(1)>', '"><script>alert(1)<', 'end<', '{{7*7}}{% raw %}', 'two\nlines',
    "it's \"quoted\"", '<!-- open', '&lt;b&amp;', 'javascript:alert(1)', '\u202e<svg onload=alert(1)>',
    '?a=b#c%41', "' onmouseover='alert(1)"]
CLASSES = [
    '</style><script>alert(2)</script>', '"><img src=x onerror=alert(3)>', '{{7*7}}', 'new\nline', "a'b\"c"]


class Parser(HTMLParser):
    "Tags with their attributes, and the text between them."
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.text.append(data)
    def of(self, tag, attribute): return [a[attribute] for t, a in self.tags if t == tag and attribute in a]


def check_page(page, names, scripts=0):
    "Only known tags and attributes, a strict policy, no address, every name as text."
    found = Parser(page)
    assert {t for t, _ in found.tags} <= PLAIN | ({'main', 'script', 'noscript'} if scripts else set())
    assert {a for _, attributes in found.tags for a in attributes} <= ATTRIBUTES
    assert [t for t, _ in found.tags].count('script') == scripts
    [policy] = [a['content'] for _, a in found.tags if a.get('http-equiv') == 'Content-Security-Policy']
    assert (
        policy.startswith("default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:")
        and 'unsafe' not in policy)
    assert ('script-src' in policy) == bool(scripts) and '*' not in policy and 'http' not in policy
    assert all(src.startswith('data:image/') for src in found.of('img', 'src'))
    assert all(
        re.fullmatch(r'(data:,|(overlays|weak|region)/[\w.%~/-]+)', href)
        for _, a in found.tags
        for href in [a.get('href')]
        if href)
    text = '\n'.join(found.text)
    for name in names:
        assert name in text, name
    assert '49' not in [t.strip() for t in found.text]
    return found


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pages')/'run'
    Trainer(small(folder, steps=2, eval_every=2, toy_labeled=4, log_every=1), quiet=True).fit()
    return folder


@pytest.fixture
def album(tmp_path):
    (tmp_path/'album').mkdir()
    draw = np.random.default_rng(0)
    for name in NASTY:
        Image.fromarray(draw.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(
            tmp_path / 'album' / f'{name}.png')
    (tmp_path/'album'/'</ul><script>alert(4)'.replace('/', '')).with_suffix('.png').write_bytes(b'broken')
    return tmp_path/'album'


def named(run):
    opened = load(run, device='cpu')
    opened.names = CLASSES
    return opened


def predicted(run, album, out):
    return predict_files(named(run), [album], out, quiet=True).look


def pseudo(run, album, out):
    return pseudo_files(named(run), [album], out, tau=.2, quiet=True).look


def checked(root, out):
    for kind in ('images', 'masks'):
        (root/kind).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i, name in enumerate(NASTY):
        Image.fromarray(draw.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(root/'images'/f'{name}.png')
        if i:
            Image.fromarray(draw.integers(0, 5, (40, 60 - i // 11), dtype=np.uint8)).save(
                root / 'masks' / f'{name}.png')
    (root/'masks'/'<b onclick=x>.png').write_bytes(b'broken')
    return save_report(check_data(root, progress=None), out)[2]


def reported(run, out):
    log = read_run(run)
    log = log._replace(
        names=CLASSES, config=replace(log.config, data=NASTY[0], weights=NASTY[1], labeled=CLASSES[0]))
    log = log._replace(
        val={
            k if not k.startswith('iou_') else f'iou_{c}': v
            for (k, v), c in zip(log.val.items(), ['', '', *CLASSES])})
    scored = score_run(run, most=3, device='cpu')
    out.write_text(report_page(log, scored), encoding='utf-8')
    return out


def explored(out):
    f = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(1, 5, 20, 20, generator=torch.Generator().manual_seed(1))
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    return write_explorer(out, image, f, logits=logits, names=CLASSES, title=CLASSES[0])


def test_predict_page(run, album, tmp_path):
    found = check_page(predicted(run, album, tmp_path/'out').read_text(encoding='utf-8'), [*NASTY, *CLASSES])
    links = found.of('a', 'href')
    assert len(links) == len(NASTY) and all(link.startswith('overlays/') for link in links)
    assert 'overlays/%7B%7B7%2A7%7D%7D%7B%25%20raw%20%25%7D.jpg' in links


def test_pseudo_page(run, album, tmp_path):
    found = check_page(pseudo(run, album, tmp_path/'out').read_text(encoding='utf-8'), [*NASTY, *CLASSES])
    assert len(found.of('a', 'href')) == len(NASTY)


def test_check_page(tmp_path):
    root = tmp_path/'<img src=x>{{7*7}}'
    page = checked(root, tmp_path/'out').read_text(encoding='utf-8')
    check_page(page, [*NASTY, root.name, '<b onclick=x>.png'])


def test_run_report(run, tmp_path):
    check_page(reported(run, tmp_path/'r.html').read_text(encoding='utf-8'), [*CLASSES, NASTY[0]])
    log = read_run(shutil.copytree(run, tmp_path/'"><script>alert(1)<{{7*7}}'))
    check_page(report_page(log, '<b>gone</b> {{7*7}}'), ['"><script>alert(1)<{{7*7}}', '<b>gone</b> {{7*7}}'])


def test_explorer(tmp_path):
    page = explored(tmp_path/'x.html').read_text(encoding='utf-8')
    found = check_page(page, [CLASSES[0]], scripts=2)
    assert page.count('</script>') == 2 and not found.of('script', 'src')


def test_pages_in_a_browser(run, album, tmp_path):
    "No dialog, no request, no complaint; images are seen, names are read."
    sync_playwright = pytest.importorskip(
        'playwright.sync_api', reason='playwright is not installed').sync_playwright
    browser_path = next(
        filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if browser_path is None:
        pytest.skip('no chromium, chromium-browser or google-chrome in PATH')
    pages = {
        'predict': predicted(run, album, tmp_path / 'p'), 'pseudo': pseudo(run, album, tmp_path / 'q'),
        'explore': explored(tmp_path / 'x.html'),
        'check': checked(tmp_path / '<img src=x onerror=alert(1)>', tmp_path / 'c'),
        'report': reported(run, tmp_path / 'r.html')}
    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=browser_path, args=['--no-sandbox', '--disable-dev-shm-usage'])
        for name, path in pages.items():
            said, asked = [], []
            page = browser.new_page()
            page.on('dialog', lambda d: (said.append(d.message), d.dismiss()))
            page.on('console', lambda m: said.append(m.text))
            page.on('pageerror', lambda e: said.append(str(e)))
            page.on('request', lambda r: asked.append(r.url))
            page.goto(path.as_uri())
            if name == 'explore':
                page.wait_for_selector('.cx-stage')
            page.wait_for_timeout(200)
            assert not said and asked == [path.as_uri()], (name, said, asked)
            assert page.evaluate('[...document.images].every(i => i.complete && i.naturalWidth > 0)')
            shown = page.evaluate('document.body.textContent')
            for text in {
                'predict': [*NASTY, *CLASSES], 'pseudo': [*NASTY, *CLASSES], 'check': NASTY,
                'report': CLASSES, 'explore': CLASSES[:1]}[name]:
                assert text in shown, (name, text)
            if name == 'check':
                assert page.title() == 'Data report: <img src=x onerror=alert(1)>'
            if name == 'explore':
                assert page.title() == CLASSES[0]
            if name == 'predict':
                with page.expect_navigation():
                    page.locator('figure a').first.click()
                assert page.url.startswith('file:') and '/overlays/' in page.url
            page.close()
        browser.close()
