"""The poly schedule against two runs of the reference implementation, both parameter groups."""
import json
from pathlib import Path

import pytest

from corrmatch.training.builders import lr_after_step, lr_in_force

RUNS = json.loads((Path(__file__).parent/'golden'/'lr.json').read_text())


@pytest.mark.parametrize('run', RUNS, ids=lambda run: f'lr{run["lr"]}x{run["lr_multi"]}')
@pytest.mark.parametrize('group', ['backbone', 'other'])
def test_learning_rate(run, group):
    base = run['lr']*(run['lr_multi'] if group == 'other' else 1)
    total = run['total_iters']
    for step in range(total):
        assert lr_in_force(base, step, total) == pytest.approx(
            run[f'lr_used_by_step_{group}'][step], rel=1e-12)
        assert lr_after_step(base, step, total) == pytest.approx(
            run[f'lr_after_step_{group}'][step], rel=1e-12)


def test_first_two_steps_run_at_the_full_rate():
    assert lr_in_force(0.01, 0, 50) == lr_in_force(0.01, 1, 50) == 0.01
    assert lr_in_force(0.01, 2, 50) == lr_after_step(0.01, 1, 50) < 0.01
