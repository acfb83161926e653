"The tools that no other test starts still start."
import json
import subprocess
import sys

import numpy as np
import torch
from PIL import Image

from runs_for_tests import ROOT, environment

sys.path.insert(0, str(ROOT/'tools'))
import pascal_smoke  # noqa: E402


def tool(name, *args):
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools' / name), *map(str, args)], env=environment(), capture_output=True,
        text=True, timeout=600)


def test_pretraining_writes_a_backbone(tmp_path):
    done = tool('pretrain_toy.py', '--steps', 2, '--images', 16, '--out', tmp_path/'net.pth')
    assert done.returncode == 0, done.stderr[-2000:]
    ours, shipped = (
        torch.load(p, weights_only=True)
        for p in (tmp_path / 'net.pth', ROOT / 'corrmatch' / 'assets' / 'toynet.pth'))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in shipped.items()}


def test_following_objects_says_what_it_wants():
    done = tool('follow_objects.py', '--help')
    assert done.returncode == 0 and '--' in done.stdout, done.stderr[-2000:]


def test_a_notebook_is_executed_apart_from_others(tmp_path):
    "Settings that one notebook changes do not reach the next."
    asked = 'import matplotlib as m\nm.rcParams["figure.dpi"]'
    cells = dict(a=f'{asked} = 33', b=asked)
    for name, source in cells.items():
        cell = dict(cell_type='code', id='a1', metadata={}, outputs=[], execution_count=None, source=source)
        (tmp_path/f'{name}.ipynb').write_text(
            json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    done = tool('execute.py', tmp_path/'a.ipynb', tmp_path/'b.ipynb')
    assert done.returncode == 0, done.stderr
    [cell] = json.loads((tmp_path/'b.ipynb').read_text())['cells']
    [output] = cell['outputs']
    assert float(''.join(output['data']['text/plain'])) != 33


def test_pascal_smoke_small(tmp_path):
    "The preset's every part but the size: a small network here, the real one by hand."
    found = pascal_smoke.smoke(
        4, tmp_path, 33, 2, 1, tmp_path / 'found.json', backbone='toynet', dim=16, low_dim=8, regions=8,
        device='cpu')
    assert (
        found['faults'] == []
        and found['stopped_and_resumed_at'] == 2
        and {'x', 'x_corr'} <= set(found['losses_seen']))
    assert (
        json.loads((tmp_path / 'found.json').read_text()) == {'crop 33': found}
        and str(tmp_path) not in (tmp_path / 'found.json').read_text())
    masks = [np.asarray(Image.open(p)) for p in sorted((tmp_path/'data'/'SegmentationClass').iterdir())]
    assert masks[0].shape == (375, 500) and len(masks) == 14
    assert set(np.unique(masks[:4])) == {*range(21), 255}
