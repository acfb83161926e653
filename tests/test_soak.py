"Some training, watched: memory, handles and processes (tools/soak.py runs for an hour by hand)."
import json
import subprocess
import sys

from runs_for_tests import ROOT, environment


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
