"""The label page in a real browser: mouse, keyboard, touch, reload, two windows, a folder that cannot be
written, and three scenes labeled from nothing with the correlation brush. Skipped where no browser or no
playwright is installed."""
import contextlib
import http.server
import os
import shutil
import statistics
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch.data.toy import toy_arrays
from corrmatch.use.label import _brush_features, _brush_region, _decode_runs, open_label_page
from runs_for_tests import ROOT

pytest.importorskip('starlette', reason='the server is not installed: pip install corrmatch-seg[label]')
sync_playwright = pytest.importorskip(
    'playwright.sync_api', reason='playwright is not installed: pip install playwright').sync_playwright
pytest.importorskip('scipy', reason='scipy is not installed: pip install scipy')
sys.path.insert(0, str(ROOT/'tools'))
from label_walk import CUTS, MOST, Annotator, scores, worst_area  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason='no chromium, chromium-browser or google-chrome in PATH')

CLASSES = 'background,stripes,checks,dots,zigzag,tiles'
ODD = 'a <b>&ü 1.png'
FLUID = 1000/30  # ms for a frame
SHOTS = os.environ.get('CORRMATCH_SHOTS', '')


@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=['--no-sandbox', '--disable-dev-shm-usage'])
        yield browser
        browser.close()


def scene_folder(root, seeds=(1, 4), size=97, names=(ODD, 'b.png', 'c.png')):
    "A folder of generated scenes without masks, and their ground truth."
    images, masks = toy_arrays(seeds, size)
    (root/'images').mkdir(parents=True)
    for name, image in zip(names, images):
        Image.fromarray(image).save(root/'images'/name)
    return root, masks


@pytest.fixture
def full_features():
    "For a test that looks at the regions of the pretrained network."


@pytest.fixture(autouse=True)
def quick_features(request, monkeypatch):
    "Features of colour and texture alone, but where a test is about the regions themselves."
    def missing(*args): raise ModuleNotFoundError
    if 'full_features' not in request.fixturenames:
        monkeypatch.setattr('corrmatch.use.label.lite0_features', missing)


@pytest.fixture
def opened(browser):
    "Serve a folder and open it; afterwards the page has not complained and asked for nothing elsewhere."
    said, asked, contexts, pages = [], [], [], []
    def go(folder, ready=True, at=None, expected=(), model=None, **options):
        served = at or open_label_page(folder, model, CLASSES).start()
        if not at:
            pages.append(served)
        context = browser.new_context(**{'viewport': dict(width=1200, height=800)} | options)
        contexts.append(context)
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.on('console', lambda m: said.append(m.text) if not any(e in m.text for e in expected) else None)
        page.on('pageerror', lambda e: said.append(str(e)))
        page.on('request', lambda r: asked.append(r.url))
        page.goto(served.url)
        if ready:
            wait(page, '__label.image && __label.image.feats')
        page.served = served
        return page
    yield go
    for context in contexts:
        context.close()
    for served in pages:
        served.stop()
    assert not said, said
    assert not [u for u in asked if not u.startswith(('http://127.0.0.1:', 'blob:', 'data:'))]


def wait(page, text):
    "Wait until an expression holds; the page's policy forbids playwright's own way."
    Annotator(page).wait(text)


def point(page, y, x): return Annotator(page).place((int(y), int(x)))


def click(page, y, x):
    page.mouse.click(*point(page, y, x))
    wait(page, '__label.settled')


def mask_of(folder, name='b'):
    return np.asarray(Image.open(folder/'masks'/f'{name}.png'))


def page_mask(page): return Annotator(page).mask()


def test_region_is_that_of_the_library(full_features, opened, tmp_path):
    folder, _ = scene_folder(tmp_path/'photos', size=161)
    page = opened(folder)
    image = Image.open(folder/'images'/ODD)
    feats = _brush_features(image)
    for pixel in ((40, 60), (120, 120), (10, 150)):
        for edges in (True, False):
            page.evaluate(f'__label.set("edges", {str(edges).lower()})')
            given = page.evaluate(f'[...__label.regionAt({pixel[1]}, {pixel[0]})]')
            drawn = _decode_runs(np.array(given, '<u4').tobytes(), image.size) == 1
            wanted = _brush_region(image, feats, pixel, .5, edges)
            assert wanted.any() and (drawn & wanted).sum() >= .98*(drawn | wanted).sum(), (pixel, edges)


def test_mouse(opened, tmp_path):
    folder, _ = scene_folder(tmp_path/'photos')
    page = opened(folder)
    assert page.locator('h1').inner_text() == f'images/{ODD}', 'a name is text'
    page.get_by_text('pip install corrmatch-seg[lite]').wait_for()
    click(page, 40, 60)
    first = page_mask(page)
    assert 0 < (first == 1).sum() < first.size and (mask_of(folder, ODD[:-4]) == first).all()
    saved = Image.open(folder/'masks'/f'{ODD[:-4]}.png')
    assert saved.mode == 'P' and saved.size == (97, 97)
    assert (folder/'classes.txt').read_text().splitlines()[1].startswith('stripes ')
    cut = page.evaluate('__label.state.cut')
    page.mouse.wheel(0, -100)
    wait(page, f'__label.state.cut > {cut}')
    page.get_by_role('button', name='Brush').click()
    page.get_by_role('button', name='dots').click()
    page.mouse.move(*point(page, 20, 20))
    page.mouse.down()
    page.mouse.move(*point(page, 20, 50), steps=3)
    page.mouse.up()
    wait(page, '__label.settled')
    assert (mask_of(folder, ODD[:-4])[20, 20:50] == 3).all()
    page.get_by_role('button', name='Polygon').click()
    page.get_by_role('button', name='tiles').click()
    for y, x in ((60, 60), (60, 90), (90, 90)):
        page.mouse.click(*point(page, y, x))
    page.keyboard.press('Enter')
    wait(page, '__label.settled')
    assert mask_of(folder, ODD[:-4])[65, 85] == 5 and mask_of(folder, ODD[:-4])[85, 62] != 5
    page.get_by_role('button', name='Eraser').click()
    click(page, 20, 30)
    assert mask_of(folder, ODD[:-4])[20, 30] == 255
    page.get_by_role('button', name='Fill').click()
    page.get_by_role('button', name='checks').click()
    click(page, 65, 85)
    assert mask_of(folder, ODD[:-4])[70, 88] == 2
    page.get_by_role('button', name='Next').click()
    wait(page, '__label.image && __label.image.index === 1 && __label.image.feats')
    assert '1 of 2 images have labels' in page.locator('.side').inner_text()


def test_undo_and_redo(opened, tmp_path):
    folder, _ = scene_folder(tmp_path/'photos')
    page = opened(folder)
    steps = [page_mask(page)]
    for y, x in ((40, 60), (80, 20), (10, 10)):
        page.keyboard.press(str(len(steps) + 1))
        click(page, y, x)
        steps.append(page_mask(page))
    for wanted in steps[-2::-1]:
        page.keyboard.press('z')
        wait(page, '__label.settled')
        assert (page_mask(page) == wanted).all() and (mask_of(folder, ODD[:-4]) == wanted).all()
    assert page.get_by_role('button', name='Undo').is_disabled()
    for wanted in steps[1:]:
        page.keyboard.press('Shift+Z')
        wait(page, '__label.settled')
        assert (mask_of(folder, ODD[:-4]) == wanted).all()


def test_keyboard_alone(opened, tmp_path):
    folder, _ = scene_folder(tmp_path/'photos')
    page = opened(folder)
    for _ in range(20):
        page.keyboard.press('Tab')
        if page.evaluate('document.activeElement.className') == 'stage':
            break
    style = 'getComputedStyle(document.activeElement).outlineStyle'
    assert page.evaluate(f'document.activeElement.className === "stage" && {style} === "solid"')
    before = page.evaluate('__label.state.cursor')
    for key in ('ArrowRight', 'ArrowDown', 'Shift+ArrowDown'):
        page.keyboard.press(key)
    moved = np.subtract(page.evaluate('__label.state.cursor'), before)
    assert moved.tolist() == [2, 3], 'a feature position is 97/40 pixels, with Shift one pixel'
    for key in ('3', ']', 'Space'):
        page.keyboard.press(key)
    wait(page, '__label.settled')
    assert (mask_of(folder, ODD[:-4]) == 2).sum() > 0 and page.evaluate('__label.state.cut') == .52
    page.keyboard.press('p')
    for keys in (['ArrowRight']*8, ['ArrowDown']*8, ['ArrowLeft']*8):
        page.keyboard.press('Space')
        for key in keys:
            page.keyboard.press(key)
    page.keyboard.press('5')
    page.keyboard.press('Enter')
    wait(page, '__label.settled')
    assert (mask_of(folder, ODD[:-4]) == 4).sum() > 100
    page.keyboard.press('?')
    assert page.get_by_role('dialog').is_visible()
    page.keyboard.press('Escape')
    page.keyboard.press('.')
    wait(page, '__label.image && __label.image.index === 1')
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, button, select')].filter(e => !(e.textContent.trim() || "
        "e.labels?.length || e.ariaLabel)).length")
    assert unnamed == 0


def test_touch_on_a_phone(opened, tmp_path):
    folder, _ = scene_folder(tmp_path/'photos')
    page = opened(
        folder, viewport=dict(width=390, height=844), has_touch=True, is_mobile=True, device_scale_factor=2)
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), 'nothing sticks out'
    page.touchscreen.tap(*point(page, 40, 60))
    wait(page, '__label.settled && __label.image.version')
    assert (mask_of(folder, ODD[:-4]) == 1).sum() > 0
    page.get_by_role('button', name='zigzag').tap()
    page.get_by_role('button', name='Brush').tap()
    page.touchscreen.tap(*point(page, 80, 80))
    wait(page, '__label.settled')
    assert mask_of(folder, ODD[:-4])[80, 80] == 4
    if SHOTS:
        page.screenshot(path=f'{SHOTS}/label_phone.png')


def test_reload_in_the_middle(opened, tmp_path):
    folder, _ = scene_folder(tmp_path/'photos')
    page = opened(folder)
    click(page, 40, 60)
    page.keyboard.press('3')
    page.mouse.click(*point(page, 80, 20))
    wanted = page_mask(page)
    page.on('dialog', lambda dialog: dialog.accept())
    page.reload()  # while the second change is on its way
    wait(page, '__label.image')
    page.locator('select').select_option('0')
    wait(page, '__label.image && __label.image.index === 0')
    assert (page_mask(page) == wanted).all() and (mask_of(folder, ODD[:-4]) == wanted).all()


def test_two_windows(opened, tmp_path):
    folder, _ = scene_folder(tmp_path/'photos')
    one = opened(folder, expected=['409'])
    two = opened(folder, at=one.served, expected=['409'])
    for page, key in ((one, '2'), (two, '4')):
        page.locator('.stage').focus()
        page.keyboard.press(key)
    click(one, 40, 60)
    first = mask_of(folder, ODD[:-4])
    two.mouse.click(*point(two, 40, 60))
    two.get_by_text('changed in another window').wait_for()
    assert (mask_of(folder, ODD[:-4]) == first).all(), 'the first is not overwritten'
    assert two.locator('.saved').inner_text() == 'Not saved'
    two.get_by_role('button', name='Load the other version').click()
    wait(two, '__label.settled')
    assert (page_mask(two) == first).all()
    click(two, 40, 60)
    assert (mask_of(folder, ODD[:-4]) == 3).any(), 'and then it can go on'
    one.keyboard.press('5')
    one.mouse.click(*point(one, 40, 60))
    one.get_by_role('button', name='Overwrite it with mine').click()
    wait(one, '__label.settled')
    assert not (mask_of(folder, ODD[:-4]) == 3).any() and (mask_of(folder, ODD[:-4]) == 4).any()


def test_folder_that_cannot_be_written(opened, tmp_path):
    folder, _ = scene_folder(tmp_path/'photos')
    (folder/'masks').write_text('a file where a folder is needed')
    page = opened(folder, expected=['422'])
    page.get_by_text('Nothing will be saved').wait_for()
    assert page.locator('.saved').inner_text() == 'Not saved'
    page.mouse.click(*point(page, 40, 60))
    page.get_by_role('button', name='Try again').wait_for()
    assert page.locator('.saved').inner_text() == 'Not saved'
    conflict = 'document.querySelector("[data-key=conflict]")'
    page.evaluate(f'{conflict}.dataset.seen = "yes"')
    page.keyboard.press('.')
    wait(page, f'{conflict} && !{conflict}.dataset.seen')  # the page says it once more
    assert page.evaluate('__label.image.index') == 0, 'what is not saved is not left'
    (folder/'masks').unlink()
    page.get_by_role('button', name='Try again').click()
    wait(page, '__label.settled')
    assert mask_of(folder, ODD[:-4]).size and page.locator('.saved').inner_text() == 'Saved'
    assert not page.get_by_text('Nothing will be saved').count()


def test_prediction_of_a_model_as_a_start(opened, tmp_path):
    from corrmatch.config import Config
    from corrmatch.training.builders import make_model
    from corrmatch.use.predict import LoadedModel
    folder, _ = scene_folder(tmp_path/'photos')
    config = Config(
        backbone='toynet', weights='', norm='group', dim=16, low_dim=8, stride=8, n_classes=6, crop=49)
    torch.manual_seed(0)
    names = CLASSES.split(',')
    model = LoadedModel(make_model(config)[0].eval(), config, names, np.zeros((6, 3), np.uint8))
    page = opened(folder, model=model)
    page.keyboard.press('6')
    click(page, 40, 60)
    first = page_mask(page)
    assert (first == 5).any(), 'the brush reads the correlation map of the model'
    said = model.predict(folder/'images'/ODD)
    tau = float(np.quantile(said.confidence, .5))
    page.evaluate(f'__label.set("tau", {tau})')
    page.get_by_role('button', name='Accept all confident').click()
    wait(page, '__label.settled && __label.image.undo.length === 2')
    confident = np.where(said.confidence >= tau, said.mask, 255)
    assert (page_mask(page) == np.where(first == 255, confident, first)).all(), 'what was labeled is kept'
    assert (mask_of(folder, ODD[:-4]) == page_mask(page)).all()


def test_faults_are_shown(opened, tmp_path):
    folder, _ = scene_folder(tmp_path/'photos')
    (folder/'images'/'z.png').write_bytes(b'no image')
    (folder/'masks').mkdir()
    Image.new('L', (5, 4)).save(folder/'masks'/'b.png')
    page = opened(folder, expected=['422'])
    page.get_by_text('z.png: unreadable image').wait_for()
    page.keyboard.press('.')
    page.get_by_text('5x4 pixels, but images/b.png has 97x97').wait_for()
    assert Image.open(folder/'masks'/'b.png').size == (5, 4), 'a mask that does not fit is left alone'


def test_token_is_needed(opened, tmp_path):
    folder, _ = scene_folder(tmp_path/'photos')
    page = opened(folder)
    url = page.served.url
    for address in (url.split('?')[0], url[:-1] + ('a' if url[-1] != 'a' else 'b')):
        answer = page.context.request.get(address)
        assert answer.status == 403 and 'token' in answer.text()
    for path in ('api/folder', 'api/image/0', 'api/mask/0', 'api/features/0'):
        assert page.context.request.get(url.split('?')[0] + path).status == 403
    assert page.context.request.put(url.split('?')[0] + 'api/mask/0', data=b'').status == 403


# ---- three scenes from nothing, with the brush alone ------------------------------

def worst_spot(mask, truth):
    "Centre (y, x) of the largest area of one class that is not labeled so, the class, distances to its rim."
    c, inside = worst_area(mask, truth)
    return np.unravel_index(inside.argmax(), inside.shape), c, inside


def look(page, y, x):
    "The regions that the page would label at a pixel: (cut, region), for a few cuts."
    size = page.evaluate('[__label.image.width, __label.image.height]')
    given = page.evaluate(
        '([x, y, cuts]) => cuts.map(cut => { __label.set("cut", cut); return [...__label.regionAt(x, y)]; })',
        [int(x), int(y), CUTS])
    return [(cut, _decode_runs(np.array(g, '<u4').tobytes(), size) == 1) for cut, g in zip(CUTS, given)]


def label_scene(page, truth, wanted=.9, most=20):
    "Click into the largest wrong area, with the cut and the switch that look best, until enough is correct."
    accuracy = []
    for _ in range(most):
        mask = page_mask(page)
        (y, x), c, _ = worst_spot(mask, truth)
        def correct(region, keep):
            return (np.where(region & ((mask == 255) | (not keep)), c, mask) == truth).mean()
        choices = [
            (correct(region, keep), cut, keep) for cut, region in look(page, y, x) for keep in (False, True)]
        _, cut, keep = max(choices)
        page.get_by_label('cut').fill(str(cut))
        page.get_by_label('keep what is labeled').set_checked(keep)
        page.locator('.stage').focus()
        page.keyboard.press(str(c + 1))
        click(page, y, x)
        accuracy.append((page_mask(page) == truth).mean())
        if accuracy[-1] >= wanted:
            break
    return accuracy


def plain_discs(truth, clicks):
    "Accuracy of as many dabs of an ordinary round brush, each as large as fits into the largest wrong area."
    mask = np.full(truth.shape, 255)
    rows, columns = np.indices(truth.shape)
    for _ in range(clicks):
        (y, x), c, inside = worst_spot(mask, truth)
        near = np.hypot(rows-y, columns-x)
        radii = inside[y, x]*np.array([.9, 1., 1.2, 1.5, 2.])
        mask = max((np.where(near < r, c, mask) for r in radii), key=lambda m: (m == truth).mean())
    return (mask == truth).mean()


def test_three_scenes_with_the_brush_alone_and_training(
    full_features, opened, tmp_path, record_property, no_drawing):
    names = ('a.png', 'b.png', 'c.png')
    folder, truths = scene_folder(tmp_path/'photos', (0, 1, 4), 129, names)
    page = opened(folder)
    clicks = []
    for i, truth in enumerate(truths):
        page.locator('select').select_option(str(i))
        wait(page, f'__label.image && __label.image.index === {i} && __label.image.feats')
        accuracy = label_scene(page, truth)
        assert accuracy[-1] >= .9, (names[i], accuracy)
        assert (mask_of(folder, names[i][0]) == truth).mean() == accuracy[-1], 'and so says the file'
        clicks.append(len(accuracy))
        plain = plain_discs(truth, len(accuracy))
        print(f'\n{names[i]}: {len(accuracy)} clicks, {accuracy[-1]:.3f} of the pixels; discs: {plain:.3f}')
        assert plain < accuracy[-1]
        if SHOTS:
            page.screenshot(path=f'{SHOTS}/label_scene{i}.png')
    record_property('clicks', clicks)
    assert sum(clicks) <= 36, clicks
    import corrmatch
    report = corrmatch.check(folder, allow_missing=True)
    assert report.ok, str(report)
    lists = tmp_path/'lists'
    lists.mkdir()
    for name, some in (('labeled', 'a b'), ('unlabeled', 'a b'), ('val', 'c')):
        lines = [f'images/{stem}.png masks/{stem}.png' for stem in some.split()]
        (lists/f'{name}.txt').write_text('\n'.join(lines) + '\n')
    settings = dict(
        crop=49, dim=16, low_dim=8, backbone='toynet', weights='toy', steps=2, eval_every=2, batch_x=2,
        batch_u=2, regions=8, norm='group', stride=8, device="cpu", workers=0, allow_missing=True)
    run = corrmatch.train(
        folder, out=str(tmp_path/'run'), quiet=True, labeled=str(lists/'labeled.txt'),
        unlabeled=str(lists/'unlabeled.txt'), val=str(lists/'val.txt'), **settings)
    assert (run/'last.pt').is_file()


def frame_intervals(page, box, moves=120):
    "Milliseconds between the frames that the browser shows while the pointer moves, sorted."
    page.evaluate("""() => {
        window.__shown = [];
        const note = now => { window.__shown.push(now); window.__next = requestAnimationFrame(note); };
        window.__next = requestAnimationFrame(note);
    }""")
    for i in range(moves):
        x, y = (.1 + .8*(i*step % moves)/moves for step in (7, 13))
        page.mouse.move(box['x'] + box['width']*x, box['y'] + box['height']*y)
    shown = page.evaluate('() => { cancelAnimationFrame(window.__next); return window.__shown; }')
    assert len(shown) > 10, 'the page draws while the pointer moves'
    return sorted(np.diff(shown).tolist())


def test_the_scripted_annotator(opened, tmp_path):
    "The script of tools/label_walk.py labels a scene as well as it says, and the page has saved that."
    folder, masks = scene_folder(tmp_path, seeds=(1,), names=('a.png',))
    done = Annotator(opened(folder)).label(0, masks[0].astype(np.uint8), from_model=False)
    assert 1 < done['actions'] < MOST and done['accuracy'] >= .9 and done['iou'] >= .8
    wrong = np.where(masks[0] == 0, 1, masks[0])
    assert scores(wrong, masks[0])['accuracy'] == (masks[0] != 0).mean()
    assert scores(mask_of(tmp_path, 'a'), masks[0])['accuracy'] == done['accuracy']


def hover_frames(page, moves):
    "Move the pointer: the milliseconds that the page takes for each frame, and whether it follows edges."
    page.bring_to_front()
    box = page.locator('.stage').bounding_box()
    drawn = []
    for i in range(moves):
        x, y = (.1 + .8*(i*step % moves)/moves for step in (7, 13))
        page.mouse.move(box['x'] + box['width']*x, box['y'] + box['height']*y)
        drawn.append(page.evaluate('[__label.frame.end - __label.frame.start, __label.frame.edges]'))
    return drawn


def test_hover_on_twelve_megapixels(opened, tmp_path, record_property):
    """A frame takes about as long as in a small image, in the same browser by turns; edges wait for a pointer
    at rest if time is short."""
    image = Image.fromarray(toy_arrays([1], 97)[0][0])
    pages = {}
    for name, size in dict(small=(400, 300), large=(4000, 3000)).items():
        (tmp_path/name/'images').mkdir(parents=True)
        image.resize(size, Image.Resampling.BILINEAR).save(tmp_path/name/'images'/f'{name}.jpg')
        pages[name] = opened(tmp_path/name)
        pages[name].evaluate('__label.set("edges", false)')
        hover_frames(pages[name], 20)
    drawn = {name: [] for name in pages}
    for _ in range(4):
        for name, page in pages.items():
            drawn[name] += [ms for ms, _ in hover_frames(page, 30)]
    small, large = (statistics.median(times) for times in drawn.values())
    record_property('frame_ms', large)
    print(f'\na frame takes {large:.1f} ms at 12 megapixels, {small:.1f} ms at 0.1 (median)')
    assert large < 4*small
    page = pages['large']
    page.evaluate('__label.set("edges", true)')
    hover_frames(page, 20)
    frames = hover_frames(page, 60)
    followed = [ms for ms, edges in frames if edges]
    print(f'{len(followed)} of {len(frames)} frames follow edges: {max(followed, default=0):.1f} ms at most')
    assert len(followed) < 30 or statistics.median(followed) < FLUID
    box = page.locator('.stage').bounding_box()
    between = frame_intervals(page, box)
    half, most = (between[int(len(between)*share)] for share in (.5, .9))
    record_property('interval_ms', half)
    rate = 1000*len(between)/sum(between)
    print(f'{rate:.0f} frames a second, one every {half:.1f} ms (median), {most:.1f} ms (nine of ten)')
    wait(page, '__label.frame.edges')
    click(page, 1500, 2000)
    mask = mask_of(tmp_path/'large', 'large')
    assert mask.shape == (3000, 4000) and 0 < (mask == 1).sum() < mask.size


@pytest.fixture
def closing():
    "What a test opens is closed behind it, whether it has failed or not."
    with contextlib.ExitStack() as stack:
        yield stack


def test_in_the_frame_of_a_notebook(browser, tmp_path, closing):
    "The same page is shown in a frame of a page of this machine, as JupyterLab is, and of no other."
    import corrmatch
    folder, _ = scene_folder(tmp_path/'photos')
    shown = corrmatch.label(folder, classes=CLASSES)
    closing.callback(shown.stop)
    class Lab(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'<!doctype html>' + shown._repr_html_().encode())
        def log_message(self, *args): pass
    lab = closing.enter_context(http.server.ThreadingHTTPServer(('127.0.0.1', 0), Lab))
    threading.Thread(target=lab.serve_forever, daemon=True).start()
    closing.callback(lab.shutdown)
    page = closing.enter_context(browser.new_page())
    page.goto(f'http://localhost:{lab.server_port}/')
    frame = page.frames[1]
    frame.wait_for_selector('.stage')
    wait(frame, '__label.image && __label.image.feats')
    page.frame_locator('iframe').locator('.stage').click()
    wait(frame, '__label.image.version && __label.settled')
    assert (mask_of(folder, ODD[:-4]) == 1).any()
    with page.expect_console_message(lambda said: 'frame-ancestors' in said.text):
        page.goto(f'http://elsewhere.localhost:{lab.server_port}/')
    assert not page.frames[1].evaluate('Boolean(window.__label)')
    with page.expect_event('requestfailed'):
        page.goto('data:text/html,' + shown._repr_html_().replace('#', '%23'))
    assert not page.frames[1].evaluate('Boolean(window.__label)')
