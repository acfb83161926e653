"Some training, watched: memory, handles and processes (tools/soak.py runs for an hour by hand)."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runs_for_tests import ROOT, environment

sys.path.insert(0, str(ROOT/'tools'))
import soak  # noqa: E402


@pytest.mark.skipif(not os.path.isdir('/dev/shm'), reason='/dev/shm is of Linux')
def test_only_shared_memory_of_this_process_and_its_workers_counts():
    "Other processes of the machine come and go with theirs."
    before = soak.held()['shared']
    worker = subprocess.Popen(['sleep', '600'])
    # the last one, the first process of the machine, is nobody's child
    names = [f'/dev/shm/torch_{pid}_7_0' for pid in (os.getpid(), worker.pid, 1)]
    try:
        assert soak.held()['children'] >= 1  # it is seen while it lives
        for name in names:
            Path(name).touch()
        worker.kill()
        worker.wait()
        assert soak.held()['shared'] == before + 2
    finally:
        worker.kill()
        for name in names:
            Path(name).unlink(missing_ok=True)


def test_training_leaks_nothing(tmp_path):
    done = subprocess.run(
        [
            sys.executable, str(ROOT / 'tools' / 'soak.py'), '--steps', '125', '--minutes', '20',
            '--out', str(tmp_path), '--workers', '1'],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800)
    assert done.stdout, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found['faults'] == [] and done.returncode == 0, found
    assert found['steps'] >= 125 and found['state'] == 'stopped'
