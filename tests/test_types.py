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
def said(tmp_path_factory):
    """What mypy says of the package and of a user's module, in one run: both need the types of torch. Mypy's
    own folder is kept, so that only what has changed since the last time is checked again."""
    place = tmp_path_factory.mktemp('mypy')
    (place/'code_of_a_user.py').write_text(USER)
    kept = ROOT/'.mypy_cache'
    cache = str(kept if os.access(ROOT, os.W_OK) else place/'cache')
    command = [
        sys.executable, '-m', 'mypy', '--config-file', str(ROOT / 'mypy.ini'), '--cache-dir', cache,
        '--warn-unused-ignores', '-p', 'corrmatch', '-m', 'code_of_a_user']
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600,
        env=os.environ | dict(MYPYPATH=os.pathsep.join([str(ROOT), str(place)])))
    lines = (done.stdout + done.stderr).splitlines()
    assert done.returncode in (0, 1) and 'source files' in lines[-1], lines
    return lines if done.returncode else []


def test_package(said):
    assert (ROOT/'corrmatch'/'py.typed').is_file()
    assert [line for line in said if 'code_of_a_user.py:' not in line and ': error: ' in line] == []


def test_code_of_a_user(said):
    "What the README calls is known to the checker, and a wrong argument is found."
    assert said == []
