"""The explorer in a real browser: as a file, and as a widget in JupyterLab. Skipped where no browser or no
playwright is installed."""
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from corrmatch.use.explore import explore_view, _read_position, _read_regions, write_explorer
from corrmatch.method.pixel import resize
from corrmatch.data.toy import toy_features, toy_logits, toy_scene
from corrmatch.viz import VERDICT_COLORS, verdict

ROOT = Path(__file__).resolve().parent.parent
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None
pytestmark = [
    pytest.mark.skipif(sync_playwright is None, reason='playwright is not installed: pip install playwright'),
    pytest.mark.skipif(BROWSER is None, reason='no chromium, chromium-browser or google-chrome in PATH')]

POSITIONS = [(24, 64), (80, 40), (10, 5)]  # pixels: two textures, a third one, background
NEAR = 1e-4                                # pixels whose normalised value is this near to the cut may differ
SLOW = 8                                   # an event becomes an image in that many times the work below
WORK = """() => {
    const start = performance.now();
    let sum = 0;
    for (let i = 0; i < 1e6; i++) sum += Math.sqrt(i ^ sum & 7);
    return performance.now() - start + (sum < 0);
}"""
NOTEBOOK = """
from corrmatch.use.explore import explorer, explore_view
from corrmatch.data.toy import toy_features, toy_logits, toy_scene
image, mask = toy_scene(seed=11)
feats, logits = toy_features(mask, stride=4, gain=5.), toy_logits(mask, bonus=6., seed=11)
panel = explorer(image, feats, logits, position=(24, 64))
def answer(change):
    open('position.txt', 'w').write(str(change.new))
    panel.opacity = .35
panel.observe(answer, 'position')
"""


def scene_view(strong=False):
    "A toy scene with smooth, noisy query and key."
    image, mask = toy_scene(seed=11)
    draw = torch.Generator().manual_seed(5 if strong else 1)
    feats = toy_features(mask, stride=4, gain=5., noise=.5)
    f1, f2 = (
        F.avg_pool2d(feats + 0.2 * torch.randn(feats.shape, generator=draw), 3, 1, 1, count_include_pad=False)
        for _ in range(2))
    return explore_view(image**2 if strong else image, (f1, f2), toy_logits(mask, bonus=6., seed=11))


def odd_view():
    "Neither square nor a multiple of a stride, k=21, no logits."
    f1, f2 = torch.randn(2, 1, 21, 7, 11, generator=torch.Generator().manual_seed(0)).unbind(0)
    return explore_view(np.random.default_rng(0).integers(0, 256, (50, 83, 3), dtype=np.uint8), (f1, f2))


@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=['--no-sandbox', '--disable-dev-shm-usage'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "Folder with the written explorers."
    folder = tmp_path_factory.mktemp('pages')
    weak = scene_view()
    strong = scene_view(True)
    odd = odd_view()
    write_explorer(
        folder / 'scene.html', weak.image, (weak.f1, weak.f2), logits=weak.logits, strong=strong,
        title='scene', ground_truth=toy_scene(seed=11)[1])
    write_explorer(folder/'raw.html', weak.image, (weak.f1, weak.f2), logits=weak.logits, temperature=.8)
    write_explorer(folder/'odd.html', odd.image, (odd.f1, odd.f2))
    return folder


@pytest.fixture
def opened(browser, pages):
    "Open a written explorer; afterwards nothing may have been asked for or complained about."
    said = []
    asked = []
    contexts = []
    def go(name, **options):
        context = browser.new_context(**{'viewport': dict(width=1200, height=860)} | options)
        contexts.append(context)
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.on('console', lambda m: said.append(m.text))
        page.on('pageerror', lambda e: said.append(str(e)))
        page.on('request', lambda r: asked.append(r.url))
        page.goto((pages/name).as_uri())
        page.wait_for_selector('.cx-stage')
        return page
    yield go
    for context in contexts:
        context.close()
    assert not said, said
    assert [u for u in asked if not u.startswith('file:')] == [] and len(asked) == len(contexts), asked


def place(page, view, position):
    "Point of the page in the middle of a pixel."
    box, (h, w) = page.locator('.cx-stage').bounding_box(), view.image.shape[:2]
    return box['x'] + (position[1]+.5)/w*box['width'], box['y'] + (position[0]+.5)/h*box['height']


def ask(page, text): return page.evaluate(f'__explorer.{text}')


def near_cut(row, size, cut):
    "Pixels (h,w) whose normalised value lies on the cut to four digits."
    fine = F.interpolate(row[None, None].double(), size, mode='bilinear', align_corners=True)[0, 0]
    return ((fine-fine.min())/(fine.max()-fine.min())-cut).abs() < NEAR


def check_row_and_region(page, view, position, cut=.5):
    """Row to single precision; region from the same row bit for bit; the page's own region but for pixels on
    the cut."""
    size = view.image.shape[:2]
    reading = _read_position(view, position, cut)
    row = torch.tensor(ask(page, 'row()')).view(reading.row.shape)
    torch.testing.assert_close(row, reading.row, rtol=2e-5, atol=1e-9)
    column = torch.tensor(ask(page, 'column()')).view(reading.row.shape)
    torch.testing.assert_close(column, reading.column, rtol=2e-5, atol=1e-9)
    given = page.evaluate('row => __explorer.regionOf(row)', reading.row.flatten().double().tolist())
    differs = torch.tensor(given).view(size).bool() != reading.region
    assert not (differs & ~near_cut(reading.row, size, cut)).any()
    assert differs.sum() <= (0 if torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512') else 5), (
        f'{int(differs.sum())} pixels')
    drawn = torch.tensor(ask(page, 'region()')).view(size).bool()
    assert not ((drawn != reading.region) & ~near_cut(reading.row, size, cut)).any()
    return reading, drawn


def check_vote(page, reading, drawn):
    "The vote equals the library's; exactly where the regions are equal."
    vote = ask(page, 'vote')
    off = int((drawn != reading.region).sum())
    assert abs(vote['size']-reading.vote.size) <= off
    assert np.abs(np.subtract(vote['counts'], reading.vote.counts)).sum() <= off
    if off:
        return
    assert (vote['winner'], vote['accepted']) == (reading.vote.winner, reading.vote.accepted)
    assert (vote['confidentShare'], vote['majorityShare']) == (
        reading.vote.confident_share, reading.vote.majority_share)


def check_pixel(page, view, values, position):
    """At full opacity the canvas mixes the greyed image with the colour of the interpolated row, the more of
    it the larger the row is there."""
    import matplotlib.pyplot as plt
    fine = resize(values[None, None], view.image.shape[:2])[0, 0]
    share = float(((fine-fine.min())/(fine.max()-fine.min()))[position])
    image = view.image[position].astype(float)
    under = .7*(.4*image + .6*(image @ [.3, .59, .11]))
    def mixed(level):
        weight = (level/255)**.5
        return (1-weight)*under + weight*255*np.array(plt.get_cmap('viridis')(level)[:3])
    levels = {min(max(int(256*share)+step, 0), 255) for step in (-1, 0, 1)}
    def off():
        seen = ask(page, f'pixel({position[0]}, {position[1]})')[:3]
        return min(np.abs(np.subtract(seen, mixed(level))).max() for level in levels)
    for _ in range(40):  # the canvas is drawn with the next frame
        if off() <= 4:
            return
        page.wait_for_timeout(50)
    assert off() <= 4, share


def test_pointer_row_region_vote_and_pixel(opened):
    page, view = opened('scene.html'), scene_view()
    page.evaluate('__explorer.set("opacity", 1)')
    for position in POSITIONS:
        page.mouse.move(*place(page, view, position))
        assert ask(page, 'state.position') == list(position)
        reading, drawn = check_row_and_region(page, view, position)
        check_vote(page, reading, drawn)
        for seen in (position, (0, 0), (48, 48), (96, 96)):
            check_pixel(page, view, reading.row, seen)
        assert ask(page, 'after') == reading.after


def test_settings_change_what_is_shown(opened):
    page = opened('scene.html')
    view = scene_view()
    position = (24, 64)
    page.mouse.move(*place(page, view, position))
    for cut, tau in ((.5, .85), (.3, .7), (.8, .95), (0., 0.), (1., 1.)):
        page.get_by_label('cut').fill(str(cut))
        page.get_by_label('\u03c4', exact=True).fill(str(tau))
        _, drawn = check_row_and_region(page, view, position, cut)
        check_vote(page, _read_position(view, position, cut, tau), drawn)
    page.get_by_role('button', name='Reset').click()
    page.mouse.move(*place(page, view, position))
    before = page.locator('.cx-words').inner_text()
    page.get_by_role('button', name='transposed').click()
    assert ask(page, 'after') == _read_position(view, position, transposed=True).after
    page.get_by_role('button', name='column').click()
    page.evaluate('__explorer.set("opacity", 1)')
    check_pixel(page, view, _read_position(view, position).column, (40, 80))
    assert page.locator('.cx-words').inner_text() != before
    page.get_by_role('button', name='labels').click()
    page.get_by_role('button', name='strong').click()
    check_row_and_region(page, scene_view(True), position)


def settles(page, check):
    "Repeat a check that a later frame may pass, some seconds long."
    for _ in range(200):
        try:
            return check()
        except AssertionError:
            page.wait_for_timeout(50)
    check()


def finished(page, expression):
    "Wait until an expression of the page is true."
    for _ in range(400):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f'{expression} stays false')


def test_image_stays_where_the_row_gives_nothing(opened):
    "The weakest pixel of the row keeps the greyed image, whatever the opacity."
    page, view = opened('scene.html'), scene_view()
    page.mouse.move(*place(page, view, (24, 64)))
    fine = resize(_read_position(view, (24, 64)).row[None, None], (97, 97))[0, 0]
    y, x = divmod(int(fine.argmin()), 97)
    page.evaluate('__explorer.set("opacity", 1)')
    finished(page, '__explorer.state.opacity === 1')
    image = view.image[y, x].astype(float)
    wanted = .7*(.4*image + .6*(image @ [.3, .59, .11]))
    def check():
        assert np.abs(ask(page, f'pixel({y}, {x})')[:3] - wanted).max() <= 4
    settles(page, check)


def test_all_regions_make_the_mask_of_the_library(opened):
    page, view = opened('scene.html'), scene_view()
    mask = toy_scene(seed=11)[1]
    before = page.evaluate('[...document.querySelectorAll(".cx-four")].map(e => e.offsetHeight)')
    page.get_by_label('\u03c4', exact=True).fill('0.7')
    page.get_by_role('button', name='new mask').click()
    finished(page, '!!__explorer.run')
    wanted = _read_regions(view, tau=.7)
    run = ask(page, 'run')
    label = torch.tensor(run['label']).view(97, 97)
    kept = torch.tensor(run['kept']).view(97, 97).bool()
    assert before == [0], 'nothing to look at before the first run'
    assert (label != wanted.label).sum() <= 5 and (kept != wanted.keep).sum() <= 5, 'but for pixels on a cut'
    assert (wanted.label != wanted.before).sum() > 500 and run['accepted'] > 50
    found = verdict(wanted.before, label, mask)
    assert np.array_equal(np.array(run['found']).reshape(97, 97), found)
    y, x = (int(v) for v in np.argwhere(found == 1)[0])
    assert ask(page, f'pixel({y}, {x})')[:3] == VERDICT_COLORS[1].tolist(), 'the changes are shown'
    assert '% \u2192 ' in page.locator('.cx-progress').inner_text()
    page.get_by_role('button', name='after').click()
    after = ask(page, f'pixel({y}, {x})')
    page.get_by_role('button', name='before').click()
    assert ask(page, f'pixel({y}, {x})') != after, 'another class, another colour'
    page.get_by_label('\u03c4', exact=True).fill('1')
    finished(page, '!!__explorer.run && __explorer.run.accepted === 0')
    page.get_by_role('button', name='Reset').click()
    assert ask(page, 'run') is None


def check_rows(page, reading):
    "Row, column and the class that arrives are those of the library."
    row = torch.tensor(ask(page, 'row()')).view(reading.row.shape)
    torch.testing.assert_close(row, reading.row, rtol=2e-4, atol=1e-9)
    column = torch.tensor(ask(page, 'column()')).view(reading.row.shape)
    torch.testing.assert_close(column, reading.column, rtol=2e-4, atol=1e-9)
    assert ask(page, 'after') == reading.after


def test_temperature_of_raw_features(opened):
    page, view = opened('raw.html'), scene_view()
    position = (24, 64)
    page.mouse.move(*place(page, view, position))
    for temperature in (.8, .3, 1.2):
        page.get_by_label('temperature').fill(str(temperature))
        finished(page, '__explorer.ready')
        reading = _read_position(view, position, temperature=temperature)
        settles(page, lambda: check_rows(page, reading))
    assert opened('scene.html').get_by_label('temperature').count() == 0, 'a network has its own scale'


def test_no_logits_and_odd_sizes(opened):
    page, view = opened('odd.html'), odd_view()
    for position in ((0, 0), (49, 82), (20, 33)):
        page.mouse.move(*place(page, view, position))
        check_row_and_region(page, view, position)
    assert ask(page, 'vote') is None and 'there is no vote' in page.locator('.cx-verdict').inner_text()


def test_keyboard(opened):
    page, view = opened('scene.html'), scene_view()
    page.keyboard.press('Tab')
    stage = page.locator('.cx-stage')
    assert (
        stage.evaluate('e => e === document.activeElement && getComputedStyle(e).outlineStyle') == 'solid'
    ), 'focus can be seen'
    start = ask(page, 'state.position')
    for key in ('ArrowRight', 'ArrowRight', 'ArrowDown'):
        page.keyboard.press(key)
    position = ask(page, 'state.position')
    assert np.subtract(position, start).tolist() == [4, 8], 'one feature position is four pixels'
    check_vote(page, *check_row_and_region(page, view, position))
    page.keyboard.press('Enter')
    page.mouse.move(*place(page, view, (80, 40)))
    assert ask(page, 'state.position') == position and ask(page, 'state.pinned')
    page.keyboard.press('Escape')
    page.mouse.move(*place(page, view, (80, 41)))
    assert ask(page, 'state.position') == [80, 41]
    for _ in range(30):
        page.keyboard.press('ArrowUp')
    assert ask(page, 'state.position')[0] == 0, 'the border holds'
    def check():
        assert page.locator('.cx-live').inner_text().startswith('0, '), 'a screen reader is told'
    settles(page, check)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, button')].filter(e => !(e.textContent.trim() || "
        "e.labels?.length)).length")
    assert unnamed == 0


def test_pin_and_unpin_by_click(opened):
    page, view = opened('scene.html'), scene_view()
    page.mouse.click(*place(page, view, (24, 64)))
    page.mouse.move(*place(page, view, (80, 40)))
    assert ask(page, 'state.position') == [24, 64] and ask(page, 'state.pinned')
    page.mouse.click(*place(page, view, (80, 40)))
    assert ask(page, 'state.position') == [80, 40] and ask(page, 'state.pinned'), (
        'a click elsewhere moves the pin')
    page.mouse.click(*place(page, view, (80, 40)))
    assert not ask(page, 'state.pinned')


def test_touch_and_narrow_page(opened, tmp_path):
    page = opened(
        'scene.html', viewport=dict(width=390, height=844), has_touch=True, is_mobile=True,
        device_scale_factor=2)
    view = scene_view()
    for position in POSITIONS:
        page.touchscreen.tap(*place(page, view, position))
        assert np.abs(np.subtract(ask(page, 'state.position'), position)).max() <= 1
        check_vote(page, *check_row_and_region(page, view, ask(page, 'state.position')))
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), 'nothing sticks out'
    page.screenshot(
        path=os.environ.get('CORRMATCH_SHOTS', str(tmp_path)) + '/explorer_phone.png', full_page=True)


def test_time_from_event_to_image(opened, tmp_path, record_property):
    "Drawing is measured by the work that the same browser does in that time: a loaded machine slows both."
    page = opened('scene.html')
    view = scene_view()
    box = page.locator('.cx-stage').bounding_box()
    waits = []
    draws = []
    work = []
    for i in range(60):
        page.mouse.move(
            box['x'] + box['width'] * (0.02 + 0.96 * (i * 7 % 60) / 60),
            box['y'] + box['height'] * (0.02 + 0.96 * (i * 13 % 60) / 60))
        frame = ask(page, 'frame')
        waits.append(frame['end']-frame['event'])
        draws.append(frame['end']-frame['start'])
        work.append(page.evaluate(WORK))
    median = statistics.median(waits)
    draw = statistics.median(draws)
    unit = statistics.median(work)
    record_property('event_to_image_ms', median)
    print(
        f'\n{len(waits)} moves: event to image {median:.1f} ms median, {max(waits):.1f} worst; drawing '
        f'alone {draw:.1f} ms, the work {unit:.1f} ms')
    assert frame['count'] >= 60 and median < SLOW*unit
    page.mouse.move(*place(page, view, (24, 64)))
    page.screenshot(path=os.environ.get('CORRMATCH_SHOTS', str(tmp_path)) + '/explorer_wide.png')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture
def lab(tmp_path):
    "JupyterLab on a loopback port with one notebook; its address."
    pytest.importorskip('jupyterlab', reason='jupyterlab is not installed')
    pytest.importorskip('anywidget', reason='anywidget is not installed')
    cell = lambda n, text: dict(
        cell_type='code', id=f'c{n}', metadata={}, source=text, outputs=[], execution_count=None)
    kernel = dict(name='python3', display_name='python3', language='python')
    book = dict(
        cells=[cell(0, NOTEBOOK + 'panel')], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    (tmp_path/'nb.ipynb').write_text(json.dumps(book))
    port, env = (
        free_port(),
        {
            **os.environ, 'PYTHONPATH': f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            'OMP_NUM_THREADS': '1', 'JUPYTER_CONFIG_DIR': str(tmp_path / 'config'),
            'JUPYTER_DATA_DIR': str(tmp_path / 'data'), 'IPYTHONDIR': str(tmp_path / 'ipython')})
    command = [
        sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}',
        '--ServerApp.port_retries=0', '--ip=127.0.0.1', '--ServerApp.token=', '--ServerApp.password=',
        f'--ServerApp.root_dir={tmp_path}', '--LabApp.news_url=',
        '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    with open(tmp_path/'lab.log', 'w') as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=tmp_path)
    try:
        for _ in range(480):
            if server.poll() is not None:
                break
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api', timeout=1)
                break
            except OSError:
                time.sleep(.25)
        else:
            pytest.fail(f'JupyterLab does not answer: {(tmp_path/"lab.log").read_text()[-2000:]}')
        assert server.poll() is None, (tmp_path/'lab.log').read_text()[-2000:]
        yield f'http://127.0.0.1:{port}'
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def test_widget_in_jupyterlab(browser, lab, tmp_path):
    image, mask = toy_scene(seed=11)
    view = explore_view(image, toy_features(mask, stride=4, gain=5.), toy_logits(mask, bonus=6., seed=11))
    page = browser.new_page(viewport=dict(width=1500, height=1300))
    errors, asked = [], []
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.on('request', lambda r: asked.append(r.url))
    page.goto(f'{lab}/lab/tree/nb.ipynb?reset')
    # the kernel is up: what is run before is lost
    page.get_by_text('| Idle').wait_for(timeout=90_000)
    page.locator('.lm-MenuBar-item', has_text='Run').click()
    page.locator('.lm-Menu-itemLabel', has_text='Run All Cells').first.click()
    page.wait_for_selector('.cx-stage', timeout=90_000)
    page.locator('.cx-stage').scroll_into_view_if_needed()
    for position in POSITIONS:
        page.mouse.move(*place(page, view, position))
        check_vote(page, *check_row_and_region(page, view, ask(page, 'state.position')))
    page.screenshot(path=os.environ.get('CORRMATCH_SHOTS', str(tmp_path)) + '/explorer_lab.png')
    # Python was told the position, and its answer arrived here
    for _ in range(100):
        if ask(page, 'state.opacity') == .35:
            break
        page.wait_for_timeout(50)
    assert ask(page, 'state.opacity') == 0.35 and json.loads((tmp_path / 'position.txt').read_text()) == list(
        POSITIONS[-1])
    page.locator('.cx-stage').focus()
    page.keyboard.press('ArrowDown')
    page.keyboard.press('ArrowRight')
    assert ask(page, 'state.position') == [16, 8], 'keys reach the panel and not the notebook'
    outside = [u for u in asked if not u.startswith((lab, lab.replace('http', 'ws'), 'data:', 'blob:'))]
    page.close()
    assert not errors and not outside, (errors, outside)
