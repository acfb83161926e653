"The tools that no other test starts still start."
import subprocess
import sys

import torch

from runs_for_tests import ROOT, environment


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
