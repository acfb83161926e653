"Every slider stands under a stored image of its first state, and a cell below moves it and looks."
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parent.parent/'nbs'
# views, tau, lambda and its start, pixel, seed and tau
WANTED = {'16_views', '02_pseudo_labels', '03_threshold', '04_correlation', '06_region'}


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


def source(cell): return ''.join(cell['source'])


def panels(path):
    "Numbers of the cells that end on a box of sliders and an image."
    return [
        i
        for i, c in enumerate(cells(path))
        if c['cell_type'] == 'code'
        and re.match(r'widgets\.[HV]Box\(', source(c).strip().splitlines()[-1] if source(c).strip() else '')]


WITH_PANELS = [p for p in sorted(NBS.rglob('*.ipynb')) if panels(p)]


def test_instruments_are_there(): assert WANTED <= {p.stem for p in WITH_PANELS}


@pytest.mark.parametrize('path', WITH_PANELS, ids=lambda p: p.stem)
def test_a_static_frame_stands_above(path):
    "A stored widget is blank on a page."
    for i in panels(path):
        above = [o for c in cells(path)[max(i-3, 0):i] for o in c.get('outputs', [])]
        assert any(kind.startswith('image/') for o in above for kind in o.get('data', {})), (
            f'no image above cell {i}')


@pytest.mark.parametrize('path', WITH_PANELS, ids=lambda p: p.stem)
def test_a_cell_below_moves_it(path):
    for i in panels(path):
        below = source(cells(path)[i+1])
        assert re.search(r'\.value(, \w+\.value)* = ', below) and 'assert' in below, (
            f'nobody moves the sliders of cell {i}')
