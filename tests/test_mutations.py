"""Damaged files of a run under the commands that read them: correct work, or one line that names the file.
CORRMATCH_MUTATIONS=5000 tries more."""
import contextlib
import io
import os
import random
import re
import shutil
import signal
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corrmatch.use.cli import main
from corrmatch.files import DataError
from corrmatch.use.predict import load
from corrmatch.use.report import _class_rows, read_run, _run_line, _summary_rows
from corrmatch.training.run_folder import (
    CsvLog, list_runs, read_checkpoint, read_csv, read_record, recorded_config, runs_table)
from corrmatch.training.trainer import Trainer
from mutations import mutate_bytes, mutate_csv, mutate_json, mutate_state
from runs_for_tests import small

N = int(os.environ.get('CORRMATCH_MUTATIONS', 400))  # through the readers; a fifth of it through the commands
SECONDS = 60
FILES = {
    'config.json': mutate_json, 'state.json': mutate_json, 'metrics.csv': mutate_csv, 'val.csv': mutate_csv,
    'skipped.csv': mutate_csv, 'best.pt': mutate_state, 'last.pt': mutate_state, 'before.pt': mutate_state}


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A folder with a data set of a few images, a finished and a stopped run on it, and an image to predict."
    root = tmp_path_factory.mktemp('mutations')
    draw = np.random.default_rng(0)
    for kind in ('images', 'masks'):
        (root/'data'/kind).mkdir(parents=True)
    for i in range(8):
        mask = np.zeros((40, 40), np.uint8)
        mask[10:30, 5+i:25+i] = 1
        image = (60 + 120*mask[..., None] + draw.integers(0, 40, (40, 40, 3))).astype(np.uint8)
        Image.fromarray(image).save(root/'data'/'images'/f'{i}.png')
        Image.fromarray(mask).save(root/'data'/'masks'/f'{i}.png')
    pair = 'images/{0}.png masks/{0}.png\n'
    for name, rows in (('labeled', range(3)), ('unlabeled', range(3, 7)), ('val', [7])):
        (root/'data'/f'{name}.txt').write_text(''.join(map(pair.format, rows)))
    config = dict(
        data=str(root / 'data'), labeled='labeled.txt', unlabeled='unlabeled.txt', val='val.txt', n_classes=2,
        cutmix='other_image', steps=3, eval_every=2, save_every=1)
    trainer = Trainer(small(root/'run', **config), quiet=True)
    trainer.fit()
    (root/'run'/'skipped.csv').write_text('step,names\n1,a b\n')
    return root


class Slow(Exception):
    "A command took longer than it may."


def call(*argv):
    "Exit code, what was said, and the traceback of an exception that came through."
    out = io.StringIO()
    err = io.StringIO()
    fault = ''
    code = None
    def late(*_): raise Slow
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(a) for a in argv])
    except BaseException:
        fault = traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    return code, out.getvalue(), err.getvalue(), fault


def commands(root, run):
    "Each command that reads a run, by name."
    return {
        'runs': ('runs', run.parent),
        'report': ('report', run, '--device', 'cpu', '--images', '1', '--out', root / 'report.html'),
        'eval': ('eval', run, '--device', 'cpu'),
        'eval last': ('eval', run, '--device', 'cpu', '--checkpoint', 'last'),
        'predict': (
            'predict', run, root / 'data' / 'images' / '0.png', '--out', root / 'out', '--device', 'cpu'),
        'resume': ('resume', run, '--device', 'cpu'),
        'table': ('table', run.parent)}


READERS = {
    'config.json': ('runs', 'report', 'resume', 'table'), 'state.json': ('runs', 'report', 'resume', 'table'),
    'metrics.csv': ('report', 'resume'), 'val.csv': ('runs', 'report', 'predict', 'resume', 'table'),
    'skipped.csv': ('resume',), 'best.pt': ('eval', 'predict', 'report'), 'last.pt': ('eval last', 'resume'),
    'before.pt': ('resume',)}


def judge(name, command, result):
    "None, or what is wrong with the answer of a command."
    code, out, err, fault = result
    if fault:
        return (
            'traceback: '
            + fault.strip().splitlines()[-1][:300]
            + '\n'
            + '\n'.join(l for l in fault.splitlines() if 'corrmatch/' in l)[-600:])
    if code not in (0, 1):
        return f'exit code {code}'
    if 'Traceback' in err:
        return 'traceback in stderr'
    said = [l for l in err.splitlines() if l.startswith('corrmatch: ')]
    if code and len(said) != 1 and command != 'predict':
        return f'exit code {code} with {said}'
    if code and len(max(said, key=len, default='')) > 700:
        return f'a message of {len(said[0])} letters: {said[0][:200]}'
    if said and not re.search(r'[;:(]', said[0][11:]):
        return f'no remedy: {said[0]}'
    return None


def damaged(root, place, seed):
    "A copy of the run with one damaged file, the file's name, and the generator for further draws."
    draw = random.Random(seed)
    shutil.rmtree(place, ignore_errors=True)
    run = Path(shutil.copytree(root/'run', place/'runs'/'run'))
    (place/'data').symlink_to(root/'data')
    name = draw.choice(list(FILES))
    path = run/name
    data = path.read_bytes()
    changed = FILES[name](data, draw) if draw.random() < .6 else mutate_bytes(data, draw)
    path.unlink()
    if changed is None:
        path.mkdir()
    else:
        path.write_bytes(changed)
    if name == 'before.pt':
        (run/'last.pt').write_bytes(b'damaged')
    return run, name, draw


def one(root, place, seed):
    "Damage one file of a copy of the run, and let a command read it."
    run, name, draw = damaged(root, place, seed)
    command = draw.choice(READERS[name])
    return name, command, call(*commands(place, run)[command])


def read(run, name):
    "Read a file of a run with what the commands use, without their work."
    if name == 'config.json':
        recorded_config(read_record(run), 'config.json')
    if name.endswith('.pt'):
        recorded_config(read_checkpoint(run/name)['config'], name)
    if name == 'best.pt':
        load(run, device='cpu')
    if name == 'skipped.csv':
        CsvLog(run/name, 10)
    if name in ('metrics.csv', 'val.csv'):
        CsvLog(shutil.copy(run/name, run/'copy.csv'), 10)
        read_csv(run/name)
    log = read_run(run)
    assert (
        runs_table(list_runs(run.parent))
        and _run_line(log)
        and _summary_rows(log)
        and isinstance(_class_rows(log), list))


def test_readers(site, tmp_path):
    "DataError of one line that names the file, or correct work."
    faults, refused = [], 0
    for seed in range(10**6, 10**6 + N):
        run, name, _ = damaged(site, tmp_path/'place', seed)
        try:
            read(run, name)
        except DataError as e:
            refused += 1
            if '\n' in str(e) or len(str(e)) > 700 or not re.search(r'\.(pt|csv|json)', str(e)):
                faults.append(f'seed {seed}, {name}: {str(e)[:300]}')
        except Exception:
            faults.append(
                f'seed {seed}, {name}: ' + ' | '.join(traceback.format_exc().splitlines()[-3:])[:400])
    assert not faults, f'{len(faults)} of {N}:\n' + '\n'.join(faults[:60])
    assert N//4 < refused < N, refused


def test_commands(site, tmp_path):
    faults = []
    codes = Counter()
    n = max(1, N//5)
    for seed in range(n):
        name, command, result = one(site, tmp_path/'place', seed)
        codes[result[0]] += 1
        wrong = judge(name, command, result)
        if wrong:
            faults.append(f'seed {seed}: {name} under {command}: {wrong}')
    assert not faults, f'{len(faults)} of {n}:\n' + '\n'.join(faults[:60])
    assert codes[0] > n//20 and codes[1] > n//5, codes
