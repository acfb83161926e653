"The exported package passes a type checker, by itself and in the code of somebody who uses it."
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('mypy') is None, reason='needs mypy, of the extra `dev`')

USER = '''
import torch
from corrmatch.config import preset
from corrmatch.training.metrics import ConfusionMatrix
from corrmatch.method.threshold import DynamicThreshold
from corrmatch.training.trainer import Trainer

text: str = Trainer(preset('toy', steps=50)).fit().summary()
score: float = ConfusionMatrix(3).update(torch.zeros(2), torch.zeros(2)).miou()
tau: torch.Tensor = DynamicThreshold(n_classes=3).tau
preset(name=3)  # type: ignore[arg-type]
'''


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    "Mypy's own folder, so that only what has changed since the last time is checked again."
    kept = ROOT/'.mypy_cache'
    return str(kept if os.access(ROOT, os.W_OK) else tmp_path_factory.mktemp('mypy'))


def check(cache, *arguments):
    command = [
        sys.executable, '-m', 'mypy', '--config-file', str(ROOT / 'mypy.ini'), '--cache-dir', cache,
        '--warn-unused-ignores', *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600,
        env=os.environ | dict(MYPYPATH=str(ROOT)))
    assert done.returncode == 0, done.stdout + done.stderr


def test_package(cache):
    assert (ROOT/'corrmatch'/'py.typed').is_file()
    check(cache, '-p', 'corrmatch')


def test_code_of_a_user(cache, tmp_path):
    "What the README calls is known to the checker, and a wrong argument is found."
    (tmp_path/'user.py').write_text(USER)
    check(cache, str(tmp_path/'user.py'))
