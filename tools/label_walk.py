"""Label a folder in a browser by a script that knows the ground truth, and count its actions.

  python tools/label_walk.py photos --truth truth [--classes background,cat,cow] [--images 12]
  python tools/label_walk.py photos --truth truth --model runs/one --list suggested/suggested.txt

It opens the label page (chapter 41), and clicks into the largest wrong area of an image with the tool that
serves best there: region, fill or brush. An image is done at 90 % of its pixels and 80 % IoU of its last
class, or after 25 actions. Masks go into the folder, as those of a person do. TRUTH holds a mask of the same
name for each image: class ids, 255 ignored. Needs `.[label]`, playwright, scipy and chromium.
"""
import argparse
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from scipy import ndimage

from corrmatch.use.label import _decode_runs, open_label_page

CUTS = [.2, .3, .4, .5, .6, .7, .8]
ENOUGH = dict(accuracy=.9, iou=.8)
MOST = 25
KEYS = dict(region='r', fill='f', brush='b')


class Action(NamedTuple):
    "One thing to do at a pixel, and what it would make of the mask."
    tool: str
    after: np.ndarray
    cut: float = 0.
    connected: bool = False
    keep: bool = False
    radius: float = 0.
    end: tuple = ()


def scores(mask, truth):
    "Share of correct pixels, and IoU of the last class."
    valid = truth != 255
    last = truth[valid].max()
    inside = (mask == last) & valid
    union = (inside | (truth == last)).sum()
    return dict(
        accuracy=((mask == truth) & valid).sum()/valid.sum(), iou=(inside & (truth == last)).sum()/union)


def worst_area(mask, truth):
    "The largest connected area of one class that is wrong: (its class, distance of its pixels to its edge)."
    largest = 0
    for c in np.unique(truth[truth != 255]):
        parts, _ = ndimage.label((truth == c) & (mask != c))
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        if sizes.max() > largest:
            largest = sizes.max()
            found = int(c), parts == sizes.argmax()
    c, area = found
    return c, ndimage.distance_transform_edt(np.pad(area, 1))[1:-1, 1:-1]


def stroke(shape, start, end, radius):
    "Pixels within a radius of the line from start to end."
    y, x = np.indices(shape)
    start = np.array(start, float)
    along = np.array(end, float) - start
    t = np.clip(((y-start[0])*along[0] + (x-start[1])*along[1])/max((along**2).sum(), 1), 0, 1)
    return np.hypot(y - (start[0] + t*along[0]), x - (start[1] + t*along[1])) <= radius


def far_end(inside, at):
    "The pixel deep in an area that lies farthest from `at`."
    deep = np.argwhere(inside >= .6*inside.max())
    return tuple(map(int, deep[((deep - np.array(at))**2).sum(1).argmax()]))


def actions(page, mask, inside, at, c):
    "What could be done at a pixel."
    def painted(region, keep=False):
        return np.where(region & ((mask == 255) | (not keep)), c, mask)
    regions = page.evaluate(
        '([x, y, cuts]) => cuts.map(cut => {__label.set("cut", cut); return [...__label.regionAt(x, y)];})',
        [at[1], at[0], CUTS])
    for cut, runs in zip(CUTS, regions):
        region = _decode_runs(np.array(runs, '<u4').tobytes(), mask.shape[::-1]) == 1
        parts, _ = ndimage.label(region)
        one = region & (parts == parts[at])
        for keep in (False, True):
            yield Action('region', painted(region, keep), cut, False, keep)
            yield Action('region', painted(one, keep), cut, True, keep)
    parts, _ = ndimage.label(mask == mask[at])
    yield Action('fill', painted(parts == parts[at]))
    for radius in inside.max()*np.array([.7, .9, 1.1, 1.4]):
        for end in (at, far_end(inside, at)):
            if radius >= 1:
                yield Action('brush', painted(stroke(mask.shape, at, end, radius)), radius=radius, end=end)


class Annotator:
    "Does actions at a label page that is open."
    def __init__(self, page):
        self.page = page

    def wait(self, text):
        "Until an expression of the page holds."
        end = time.monotonic() + 120
        while not self.page.evaluate(f'Boolean(window.__label && ({text}))'):
            assert time.monotonic() < end, f'{text} does not come true'
            time.sleep(.02)

    def mask(self):
        "What is labeled, (h,w) uint8."
        size = self.page.evaluate('[__label.image.width, __label.image.height]')
        return _decode_runs(np.array(self.page.evaluate('[...__label.image.runs]'), '<u4').tobytes(), size)

    def place(self, pixel):
        "Where a pixel (y,x) is drawn."
        return self.page.evaluate('([x, y]) => __label.screen(x, y)', [pixel[1], pixel[0]])

    def switch(self, name, value, key):
        "Press a key unless a state of the page has its value already."
        if self.page.evaluate(f'__label.state.{name}') != value:
            self.page.keyboard.press(key)

    def slide(self, label, value):
        "Set a slider."
        self.page.get_by_label(label, exact=True).fill(str(round(float(value), 2)))
        self.page.locator('.stage').focus()

    def do(self, action, at, c):
        "One click or stroke."
        page = self.page
        self.switch('tool', action.tool, KEYS[action.tool])
        self.switch('classId', c, str(c + 1))
        if action.tool == 'region':
            self.switch('connected', action.connected, 'c')
            self.slide('cut', action.cut)
        if action.tool == 'brush':
            self.slide('size of the brush', np.log(action.radius))
        self.switch('keep', action.keep, 'k')
        page.mouse.move(*self.place(at))
        page.mouse.down()
        if action.tool == 'brush':
            page.mouse.move(*self.place(action.end), steps=6)
        page.mouse.up()
        self.wait('__label.settled')

    def label(self, index, truth, from_model):
        "Label one image; the number of actions and the scores."
        if self.page.evaluate('__label.image.index') != index:
            self.page.locator('select').select_option(str(index))
        self.wait(f'__label.image && __label.image.index === {index} && __label.image.feats')
        if from_model:
            self.page.keyboard.press('a')
            time.sleep(.5)
            self.wait("document.querySelector('.wait').textContent === '' && __label.settled")
        done = int(from_model)
        while True:
            mask = self.mask()
            now = scores(mask, truth)
            if done == MOST or all(now[name] >= least for name, least in ENOUGH.items()):
                return dict(actions=done) | now
            c, inside = worst_area(mask, truth)
            at = tuple(map(int, np.unravel_index(inside.argmax(), inside.shape)))
            offered = actions(self.page, mask, inside, at, c)
            best = max(offered, key=lambda action: scores(action.after, truth)['accuracy'])
            self.do(best, at, c)
            done += 1


def walk(url, truth, n_images, from_model):
    "Label the first images of the page at an address; yield their names, numbers of actions and scores."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which('chromium') or shutil.which('google-chrome'),
            args=['--no-sandbox', '--disable-dev-shm-usage'])
        page = browser.new_page(viewport=dict(width=1200, height=800))
        page.goto(url)
        annotator = Annotator(page)
        annotator.wait('__label.image && __label.image.feats')
        names = page.evaluate('__label.folder.images.map(image => image.name)')
        for i, name in enumerate(names[:n_images]):
            mask = np.array(Image.open(truth/f'{Path(name).stem}.png'))
            yield name, annotator.label(i, mask, from_model)
        browser.close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--truth', type=Path, required=True)
    parser.add_argument('--classes')
    parser.add_argument('--model', type=Path)
    parser.add_argument('--list', type=Path)
    parser.add_argument('--images', type=int, default=12, help='at most [12]')
    args = parser.parse_args()
    served = open_label_page(args.folder, args.model, args.classes, args.list).start()
    rows = []
    for name, row in walk(served.url, args.truth, args.images, bool(args.model)):
        rows.append(row)
        print(name, {k: round(float(v), 3) for k, v in row.items()}, flush=True)
    served.stop()
    print(
        f"{sum(row['actions'] for row in rows)} actions for {len(rows)} images,",
        *(f'{name} {np.mean([row[name] for row in rows]):.1%}' for name in ENOUGH))


if __name__ == '__main__':
    main()
