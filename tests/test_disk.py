"A disk that is full, and folders that are shared or taken away: one line, nothing half written, no drafts."
import io
import json
import os
import resource
import shutil
import signal
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from corrmatch.use.cli import main
from corrmatch.files import DataError
from corrmatch.training.run_folder import hold_folder, release_folder, run_state
from corrmatch.training.trainer import Trainer
from forks_for_tests import Fork
from runs_for_tests import script, small


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A data set of large noisy images, and a run."
    root = tmp_path_factory.mktemp('disk')
    draw = np.random.default_rng(0)
    for kind in ('images', 'masks'):
        (root/'data'/kind).mkdir(parents=True)
    for i in range(8):
        Image.fromarray(draw.integers(0, 255, (60, 60, 3), dtype=np.uint8)).save(
            root / 'data' / 'images' / f'{i:0100d}.png')
        Image.fromarray(draw.integers(0, 2, (60, 60), dtype=np.uint8)).save(
            root / 'data' / 'masks' / f'{i:0100d}.png')
    Trainer(small(root/'run', steps=2, eval_every=2, toy_labeled=4), quiet=True).fit()
    return root


def files(root): return {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}


COMMANDS = [
    ('predict', 'run', 'data/images', '--out', 'out', '--device', 'cpu'),
    ('pseudo', 'run', 'data/images', '--out', 'out', '--device', 'cpu'),
    ('report', 'run', '--out', 'out/r.html', '--device', 'cpu', '--images', '1'),
    ('check', 'data', '--out', 'out'),
    ('check', 'data', '--out', 'out', '--convert', 'clean'),
    ('split', 'data', '--labels', '2', '--out', 'out'),
    ('export', 'run', '--format', 'safetensors', '--out', 'w.safetensors'),
    ('export', 'run', '--format', 'reference', '--out', 'w.pth'),
    ('export', 'run', '--format', 'onnx', '--out', 'w.onnx'),
    ('export', 'run', '--format', 'export', '--out', 'w.pt2'),
    (
        'explore', 'data/images/' + '0' * 100 + '.png', '--model', 'run', '--out', 'x.html', '--device',
        'cpu'),
    ('table', 'run', '--out', 'table.txt'),
    (
        'train', 'toy', '--crop', '33', '--toy-unlabeled', '8', '--batch-x', '2', '--batch-u', '2',
        '--steps', '2', '--device', 'cpu', '--out', 'new', '--weights=', '--dim', '16', '--stride', '8')]
# a graph takes seconds, and is written by the same line whatever the limit is
CASES = [(c, limit) for c in COMMANDS for limit in (0, 3000) if not limit or c[3] not in ('onnx', 'export')]


@pytest.mark.parametrize(
    'argv, limit', CASES, ids=['_'.join(w for w in c[:4] if '/' not in w)[:24] + f'-{n}' for c, n in CASES])
def test_full_disk(site, tmp_path, monkeypatch, capsys, argv, limit):
    "No file may grow beyond `limit` bytes, as on a disk with so much room."
    place = shutil.copytree(site, tmp_path/'place')
    monkeypatch.chdir(place)
    before = files(place)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        code = main(list(argv))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    said = [l for l in capsys.readouterr().err.splitlines() if l.startswith('corrmatch: ')]
    after = files(place)
    assert not [p for p in after if p.name.endswith('.part') or '.part.' in p.name]
    assert all(after[p] == data for p, data in before.items())
    new = [p for p in after if p not in before]
    for p in new:
        if p.suffix in ('.png', '.jpg'):
            Image.open(p).load()
        if p.suffix == '.json':
            json.loads(p.read_text())
        if p.suffix == '.html':
            assert p.read_text().endswith('</html>\n')
    if code:
        assert code == 1 and len(said) == 1 and 'Traceback' not in said[0], said
    else:
        assert limit == 3000 and argv[0] in ('split', 'table'), 'it fits'


@pytest.mark.parametrize(
    'size, limit, kept',
    [(2000, 0, 0), (500_000, 200_000, 200_000), (500_000, 0, 0), ('zeros', 450_000, None)])
def test_full_disk_under_fetch(tmp_path, monkeypatch, capsys, size, limit, kept):
    """Neither an archive nor a data set of which a part is missing; what has arrived is kept for the next
    attempt."""
    body = bytes(500_000) if size == 'zeros' else np.random.default_rng(0).bytes(size)
    with zipfile.ZipFile(tmp_path/'served.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('trainannot/a.png', body)
    data = (tmp_path/'served.zip').read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr('urllib.request.urlopen', lambda request, timeout: Answer(data))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        code = main(['fetch', 'camvid', '--data', str(tmp_path/'camvid'), '--base', 'http://mirror'])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    said = [l for l in capsys.readouterr().err.splitlines() if l.startswith('corrmatch: ')]
    assert code == 1 and len(said) == 1 and 'make room' in said[0] and '.zip' in said[0], said
    [left] = [p for p in (tmp_path/'camvid').rglob('*') if p.is_file() and p.name != '.fetch.lock']
    if size == 'zeros':
        assert left.read_bytes() == data and left.suffix == '.zip'
    else:
        assert left.read_bytes() == data[:kept] and left.suffix == '.part'


class Answer(io.BytesIO):
    "What a server sends."
    def __init__(self, data):
        super().__init__(data)
        self.status = 200
        self.headers = {'Content-Length': str(len(data))}


def test_only_one_process_opens_a_folder(tmp_path):
    """Of two that start at the same moment one is refused, while the other still opens the folder and has
    noted no state."""
    (tmp_path/'run').mkdir()
    code = (
        "import time; from corrmatch.training.run_folder import hold_folder; lock = "
        f"hold_folder({str(tmp_path / 'run')!r}); print('held', flush=True); time.sleep(60)")
    other = Fork(['-c', code])
    try:
        assert other.wait_for_line() == 'held\n'
        with pytest.raises(DataError, match='another process begins to train there'):
            Trainer(small(tmp_path/'run'), quiet=True).fit()
        assert run_state(tmp_path/'run')['state'] == 'unknown'
    finally:
        other.kill()
        other.wait()
    release_folder(hold_folder(tmp_path/'run'))  # a killed process holds nothing


def test_two_trainings_in_one_folder(tmp_path):
    "Of two that start at the same time one trains until it is killed, and the other is told so."
    jobs = [dict(out=tmp_path/'run', steps=4000, eval_every=4000)]
    both = [Fork(script(jobs, tmp_path/name)) for name in 'ab']
    try:
        deadline = time.monotonic() + 600
        while all(p.poll() is None for p in both) and time.monotonic() < deadline:
            time.sleep(.01)
    finally:
        for p in both:
            p.kill()
            p.wait()
    assert sorted(p.returncode for p in both) == [-signal.SIGKILL, 1], [p.said() for p in both]
    [said] = [p.said()[1] for p in both if p.returncode == 1]
    assert 'is training there' in said or 'begins to train there' in said, said
    assert 'choose another out=' in said and 'Traceback' not in said, said


@pytest.mark.parametrize('workers', [0, 1])
def test_the_folder_is_deleted_in_the_middle(tmp_path, workers):
    jobs = [
        dict(
            out=tmp_path / 'run', steps=100_000, eval_every=100_000, log_every=1, save_every=5,
            workers=workers)]
    process = Fork(script(jobs, tmp_path/'jobs'), cwd=tmp_path)
    process.wait_for(tmp_path/'run'/'metrics.csv')
    os.rename(tmp_path/'run', tmp_path/'gone')
    kept = set(os.listdir(tmp_path/'gone'))
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 1 and 'cannot be written' in said and 'Traceback' not in said, said[-1500:]
    assert not (tmp_path/'run').exists() and set(os.listdir(tmp_path/'gone')) <= kept
