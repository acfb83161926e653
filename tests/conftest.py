"""Long files first, so that two processes end at about the same time; a fixture for tests of training that
look at no image."""
import logging

import pytest

from runs_for_tests import lighten

LONG = (
    'test_survival', 'test_soak', 'test_parallel', 'test_browser', 'test_label_browser', 'test_story',
    'test_trainer', 'test_cli', 'test_bench', 'test_region_kernel')


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture
def no_drawing(monkeypatch):
    "Runs write no images, which takes most of the time of a run of some steps."
    from corrmatch.training.trainer import Trainer
    monkeypatch.setattr(Trainer, '_draw', lambda self, model: None)


@pytest.fixture(scope='module')
def light_runs():
    "Runs validate on few scenes and draw nothing, as those of `runs_for_tests.py` in other processes do."
    with pytest.MonkeyPatch.context() as patch:
        lighten(patch.setattr)
        yield


@pytest.fixture
def heard():
    "The messages of the package; pytest's own capture of logging is off (pyproject.toml)."
    class Listener(logging.Handler):
        def emit(self, record): lines.append(record.getMessage())
    lines = []
    listener = Listener(logging.WARNING)
    log = logging.getLogger('corrmatch')
    log.addHandler(listener)
    yield lines
    log.removeHandler(listener)
