"Killed, damaged, interrupted, out of space: what a run survives."
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from corrmatch.data.batches import make_loader
from corrmatch.use.cli import main
from corrmatch.files import DataError
from corrmatch.training.run_folder import CsvLog, read_checkpoint, run_state, save_checkpoint
from corrmatch.training.trainer import Trainer
from forks_for_tests import Fork, fork_python, kill_tree, wait_for_file
from runs_for_tests import ROOT, command, environment, script, small

KILLS = 20
pytestmark = pytest.mark.usefixtures('light_runs')


@pytest.fixture(scope='module')
def kills(tmp_path_factory):
    """One line for each SIGKILL: 20 at random moments, spread over its steps, six within the writing of a
    file."""
    folder = tmp_path_factory.mktemp('kills')
    env = environment(PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT/"tests"}')
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tests' / 'kill_lab.py'), str(folder), '0', str(KILLS)], env=env,
        capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize('i', range(KILLS + 6))
def test_a_killed_run_resumes_to_the_same_bits(kills, i):
    assert kills[i]['resumed'] == 0 and kills[i]['equal'] and not kills[i]['left'], kills[i]


def test_the_kills_hit(kills):
    """Most of the random ones came while the run was alive, at different steps; all of the others within the
    writing."""
    assert sum(k['killed'] for k in kills[:KILLS]) >= KILLS*3//4 and len({k['at'] for k in kills}) >= 4
    assert all(k['killed'] for k in kills[KILLS:]) and any(k['drafts'] for k in kills)


def damage(path, how):
    data = path.read_bytes()
    changed = dict(
        cut=data[: len(data) // 2], empty=b'', bit=data[:5000] + bytes([data[5000] ^ 4]) + data[5001:],
        zeros=bytes(len(data)), tail=data[:-3])[how]
    path.write_bytes(changed)


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    "Bytes of a run folder whose last two checkpoints are of steps 4 and 3, and the weights it ends with."
    root = tmp_path_factory.mktemp('stopped')
    Trainer(small(root/'run', save_every=1, eval_every=6), quiet=True).fit()
    final = read_checkpoint(root/'run'/'last.pt')['model']
    cut = Trainer(small(root/'cut', save_every=1, eval_every=6), quiet=True)
    cut._open(False, False)
    for batch in cut._loader():
        cut.run_step(batch)
        cut.save()
        if cut.step == 4:
            break
    return {
        p.name: p.read_bytes() for p in (root / 'cut').iterdir() if p.is_file() and p.name != 'state.json'
    }, final


@pytest.mark.parametrize('how', ['cut', 'empty', 'bit', 'zeros', 'tail', 'gone'])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(tmp_path, stopped, how, capsys):
    files, final = stopped
    (tmp_path/'run').mkdir()
    for name, data in files.items():
        (tmp_path/'run'/name).write_bytes(data)
    if how == 'gone':
        (tmp_path/'run'/'last.pt').unlink()
    else:
        damage(tmp_path/'run'/'last.pt', how)
    trainer = Trainer(small(tmp_path/'run', save_every=1, eval_every=6), quiet=True)
    trainer.fit(resume=True)
    said = capsys.readouterr().out
    assert said.startswith('warning: ') and 'before.pt, step 3' in said and len(said.splitlines()) == 1
    assert all(
        torch.equal(v, final[k]) for k, v in read_checkpoint(tmp_path / 'run' / 'last.pt')['model'].items())


def test_flipped_bits_and_cuts_of_a_checkpoint_are_refused(tmp_path):
    "Each of 200 flips in the weights and each of 50 cuts, before anything is unpickled."
    draw, path = random.Random(0), tmp_path/'last.pt'
    save_checkpoint(tmp_path, dict(model=dict(w=torch.arange(4096.)), step=7, config=dict(lr=.1)))
    data = path.read_bytes()
    start = data.index(torch.arange(4096.).numpy().tobytes())
    for place in draw.sample(range(start, start + 4*4096), 200):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place+1:])
        with pytest.raises(DataError, match='last.pt: damaged or cut off .its checksum does not match'):
            read_checkpoint(path)
    for length in draw.sample(range(len(data)), 50):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match='last.pt: damaged or cut off'):
            read_checkpoint(path)


def test_no_flipped_bit_of_a_checkpoint_changes_what_is_read(tmp_path):
    """Headers of the zip file hold bits that say nothing, and one for which torch would take the weights from
    anywhere."""
    path, weight = tmp_path/'last.pt', torch.arange(1., 7)
    save_checkpoint(tmp_path, dict(model=dict(w=weight), step=7, config=dict(lr=.1)))
    draw = random.Random(0)
    data = path.read_bytes()
    refused = 0
    attributes = [m.start() + 38 for m in re.finditer(b'PK\x01\x02', data)]
    places = [(i, draw.randrange(8)) for i in range(len(data))] + list(
        itertools.product(attributes, range(8)))
    for place, bit in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place+1:])
        try:
            state = read_checkpoint(path)
        except DataError:
            refused += 1
        else:
            assert torch.equal(state['model']['w'], weight) and (state['step'], state['config']) == (
                7, dict(lr=0.1)), (place, bit)
    assert refused > len(data)//2 and len(attributes) > 4


def test_both_checkpoints_damaged(tmp_path, stopped):
    (tmp_path/'run').mkdir()
    for name in ('last.pt', 'before.pt'):
        (tmp_path/'run'/name).write_bytes(stopped[0][name][:999])
    with pytest.raises(DataError, match='before.pt'):
        Trainer(small(tmp_path/'run'), quiet=True).fit(resume=True)


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_of_two_processes_stops_both_behind_a_saved_step(tmp_path, number, code):
    jobs = [
        dict(out=tmp_path / 'run', steps=4000, eval_every=4000, log_every=1, workers=1, batch_x=4, batch_u=4)]
    process = subprocess.Popen(
        command(jobs, tmp_path, 2), env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        wait_for_file(tmp_path/'run'/'metrics.csv', process)
        os.kill(json.loads((tmp_path/'run'/'state.json').read_text())['pid'], number)
        _, said = process.communicate(timeout=600)
    finally:
        kill_tree(process)
    # torchrun ends what still lives when the first one has left: -15, its work was done
    codes = set(re.findall(r'exitcode +: (-?\d+)', said))
    assert process.returncode and str(code) in codes <= {str(code), '-15'}, said[-2000:]
    step = read_checkpoint(tmp_path/'run'/'last.pt')['step']
    assert (
        0 < step < 4000
        and run_state(tmp_path / 'run')['state'] == 'stopped'
        and run_state(tmp_path / 'run')['step'] == step)


@pytest.mark.parametrize('processes', [0, 2])
def test_a_signal_to_the_whole_group_leaves_the_loaders_alone(tmp_path, processes):
    """As torchrun, `timeout` and `docker stop` send it: to the processes that make batches, too, while a step
    still needs them."""
    jobs = [
        dict(out=tmp_path / 'run', steps=4000, eval_every=4000, log_every=1, workers=2, batch_x=4, batch_u=4)]
    process = subprocess.Popen(
        command(jobs, tmp_path, processes), env=environment(), stderr=subprocess.PIPE, text=True,
        start_new_session=True) if processes else Fork(script(jobs, tmp_path))
    try:
        wait_for_file(tmp_path/'run'/'metrics.csv', process)
        if processes:
            process.send_signal(signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=600)
    finally:
        kill_tree(process)
    state = run_state(tmp_path/'run')
    assert (
        state['state'] == 'stopped'
        and 0 < state['step'] == read_checkpoint(tmp_path / 'run' / 'last.pt')['step'] < 4000), said[-2000:]
    assert processes or process.returncode == 143


def test_a_signal_while_loader_processes_start(monkeypatch):
    "It comes before a process can ignore it: here at the first thing that torch does in one."
    trainer = Trainer(small('unused', workers=2), quiet=True)
    parent, threads = os.getpid(), torch.set_num_threads
    def early(n):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
        threads(n)
    monkeypatch.setattr(torch, 'set_num_threads', early)
    assert len(list(make_loader(trainer.batches, 0, 4, workers=2))) == 4


@pytest.mark.parametrize('step', [2, 6])
def test_a_validation_cut_short_by_a_signal_is_made_up_for(tmp_path, step, monkeypatch):
    Trainer(small(tmp_path/'straight'), quiet=True).fit()
    cut = Trainer(small(tmp_path/'run'), quiet=True)
    read = []
    source = type(cut.sources.val)
    image = source.read_image
    def reading(self, i):
        if self is cut.sources.val and cut.step == step:
            if not read:
                os.kill(os.getpid(), signal.SIGTERM)
            read.append(i)
        return image(self, i)
    monkeypatch.setattr(source, 'read_image', reading)
    with pytest.raises(KeyboardInterrupt, match=f'stopped at step {step} of 6'):
        cut.fit()
    assert 0 < len(read) < len(cut.sources.val) and read_checkpoint(tmp_path/'run'/'last.pt')['step'] == step
    read.clear()
    with pytest.raises(KeyboardInterrupt, match=f'stopped at step {step} of 6'):
        cut.fit(resume=True)  # once more, while it is made up for
    Trainer(small(tmp_path/'run'), quiet=True).fit(resume=True)
    last = read_checkpoint(tmp_path/'run'/'last.pt')
    assert last['best'] == read_checkpoint(tmp_path/'straight'/'last.pt')['best']
    rows = [CsvLog(tmp_path/name/'val.csv', 10**9).rows for name in ('straight', 'run')]
    assert rows[0] == rows[1] and [r['step'] for r in rows[0]] == ['2', '4', '6']
    a, b = (read_checkpoint(tmp_path/name/'best.pt')['model'] for name in ('straight', 'run'))
    assert all(torch.equal(a[k], b[k]) for k in a) and run_state(tmp_path/'run')['state'] == 'finished'


def test_a_second_signal_leaves_at_once(tmp_path):
    "The first one waits for a step that hangs; the second does not."
    code = '''
import signal, sys, time
sys.path.insert(0, "tests")
from runs_for_tests import small
from corrmatch.training.trainer import Trainer
t = Trainer(small(sys.argv[1], steps=50), quiet=True)
def hang(batch):
    print("hanging", flush=True)
    while not t.asked_to_stop():
        time.sleep(.01)
    print("noticed", flush=True)
    time.sleep(600)
t.run_step = hang
t.fit()
'''
    process = Fork(['-c', code, tmp_path/'run'])
    assert process.wait_for_line() == 'hanging\n'
    process.send_signal(signal.SIGTERM)
    assert process.wait_for_line(1) == 'noticed\n' and process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == -signal.SIGTERM


STARTER = '''
import sys
sys.path.insert(0, "tests")
from forks_for_tests import Fork
nest = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
fork = Fork(["-c", nest])
print(fork.pid, fork.wait_for_line())
'''


def is_alive(pid):
    "A zombie, which nobody has asked for its exit code, is not."
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='/proc is of Linux')
def test_a_forked_process_does_not_outlive_the_tests():
    "Neither the process, which has a session of its own, nor what it has started."
    done = subprocess.run(
        [sys.executable, '-c', STARTER], cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=600)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2 and done.returncode == 0, done.stderr[-2000:]
    deadline = time.monotonic() + 60
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(.01)
    assert not any(map(is_alive, pids))


FULL = '''
import resource, signal, sys
sys.path.insert(0, "tests")
from runs_for_tests import work
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),)*2)
sys.exit(work(sys.argv[1], resume=True, save_every=1, steps=8, eval_every=8, force=True))
'''


def test_a_full_disk_keeps_the_checkpoint(tmp_path, stopped):
    """No file may grow beyond half a checkpoint: one line of error, the old checkpoints as they were, and the
    run goes on when there is room."""
    (tmp_path/'run').mkdir()
    for name, data in stopped[0].items():
        (tmp_path/'run'/name).write_bytes(data)
    done = fork_python(['-c', FULL, tmp_path/'run', len(stopped[0]['last.pt'])//2])
    assert (
        done.returncode == 1
        and 'cannot be written' in done.stderr
        and 'free space' in done.stderr
        and 'Traceback' not in done.stderr)
    assert (tmp_path / 'run' / 'last.pt').read_bytes() == stopped[0]['last.pt'] and not list(
        (tmp_path / 'run').glob('.*.part'))
    assert run_state(tmp_path/'run')['state'] in ('failed', 'unknown')
    Trainer(small(tmp_path/'run', save_every=1, eval_every=6), quiet=True).fit(resume=True)
    assert all(
        torch.equal(v, stopped[1][k])
        for k, v in read_checkpoint(tmp_path / 'run' / 'last.pt')['model'].items())


@pytest.mark.skipif(
    os.geteuid() != 0 or not sys.platform.startswith('linux'),
    reason='mounting a small tmpfs needs root on Linux')
def test_a_full_tmpfs(tmp_path):
    "The real thing: a disk of one megabyte."
    disk = tmp_path/'disk'
    disk.mkdir()
    if subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(disk)], capture_output=True).returncode:
        pytest.skip('mount is not allowed here')
    try:
        trainer = Trainer(small(disk/'run', dim=64, save_every=1), quiet=True)
        with pytest.raises(DataError, match='No space left on device.*free space'):
            trainer.fit()
        assert not list((disk/'run').glob('.*.part'))
    finally:
        subprocess.run(['umount', str(disk)], check=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('not a folder')
    with pytest.raises(DataError, match='choose another out='):
        Trainer(small(tmp_path/'file'/'run'), quiet=True).fit()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_folder_of_somebody_else(tmp_path):
    (tmp_path/'closed').mkdir(mode=0o500)
    with pytest.raises(DataError, match='choose another out='):
        Trainer(small(tmp_path/'closed'/'run'), quiet=True).fit()


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    jobs = [dict(out=tmp_path/'run', steps=4000, eval_every=4000, log_every=1)]
    process = Fork(script(jobs, tmp_path))
    try:
        process.wait_for(tmp_path/'run'/'state.json')
        with pytest.raises(DataError, match='is training there'):
            Trainer(small(tmp_path/'run', steps=4000), quiet=True).fit(resume=True)
    finally:
        process.kill()
        process.wait()
    assert run_state(tmp_path/'run')['state'] == 'killed'


def test_changed_settings_are_named_and_refused_unless_forced(tmp_path):
    Trainer(small(tmp_path/'run', steps=2), quiet=True).fit()
    changed = small(tmp_path/'run', steps=2, lr=.5, workers=2, log_every=1)
    with pytest.raises(ValueError, match=r'other settings \(lr: 0.02 -> 0.5\)'):
        Trainer(changed, quiet=True).fit(resume=True)
    forced = Trainer(changed, quiet=True)
    forced.fit(resume=True, force=True)
    assert {group['base'] for group in forced.optimizer.param_groups} == {.5, .5*changed.lr_multi}
    with pytest.raises(DataError, match='does not fit these settings .*dim: 16 -> 8'):
        Trainer(small(tmp_path/'run', steps=2, dim=8), quiet=True).fit(resume=True, force=True)


def test_a_run_of_epochs_resumes_by_its_folder_alone(tmp_path, capsys):
    config = small(tmp_path/'run', steps=0, epochs=1)
    started = Trainer(config, quiet=True)
    started._open(False, False)
    for batch in itertools.islice(started._loader(), 2):
        started.run_step(batch)
    started.save()
    started._note('stopped')
    record = json.loads((tmp_path/'run'/'config.json').read_text())
    assert started.steps == record['steps'] == 4 and main(['resume', str(tmp_path / 'run')]) == 0, (
        capsys.readouterr().err)
    assert (
        read_checkpoint(tmp_path / 'run' / 'last.pt')['step'] == 4
        and run_state(tmp_path / 'run')['state'] == 'finished')
    old = read_checkpoint(tmp_path/'run'/'last.pt')
    old['config'] |= dict(steps=0)  # as runs wrote that counted their epochs anew each time
    save_checkpoint(tmp_path/'run', old)
    Trainer(config, quiet=True).fit(resume=True)
    assert (
        main(['resume', str(tmp_path / 'run'), '--lr', '0.3']) == 1
        and 'lr: 0.02 -> 0.3' in capsys.readouterr().err)
    assert main(['resume', str(tmp_path/'run'), '--lr', '0.3', '--force']) == 0


def test_a_run_from_before_a_field_existed_goes_on(tmp_path, monkeypatch):
    config = small(tmp_path/'run', steps=2)
    Trainer(config, quiet=True).fit()
    state = read_checkpoint(tmp_path/'run'/'last.pt')
    del state['config']['teacher_cross']
    monkeypatch.setattr('corrmatch.training.trainer.read_latest', lambda *args: state)
    Trainer(config, quiet=True).fit(resume=True)
    with pytest.raises(ValueError, match='teacher_cross: 0.0 -> 0.2'):
        Trainer(small(tmp_path/'run', steps=2, teacher_cross=.2), quiet=True).fit(resume=True)


def test_deterministic_gives_the_same_bits_twice(tmp_path):
    try:
        runs = [
            Trainer(small(tmp_path / str(i), deterministic=True, norm='batch'), quiet=True) for i in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs:
        run.fit()
    a, b = (read_checkpoint(r.out/'last.pt')['model'] for r in runs)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.filterwarnings('ignore:This DataLoader will create 4 worker')
@pytest.mark.parametrize('workers', [0, 2, 4])
def test_any_number_of_workers_gives_the_same_bits(tmp_path, workers):
    for name, n in (('a', 0), ('b', workers)):
        Trainer(small(tmp_path/name, workers=n, steps=4), quiet=True).fit()
    a, b = (read_checkpoint(tmp_path/n/'last.pt')['model'] for n in 'ab')
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_checkpoint_that_is_overdue_is_written(tmp_path):
    trainer = Trainer(small(tmp_path/'run', steps=3, eval_every=3, save_minutes=1e-9), quiet=True)
    steps, save = [], trainer.save
    trainer.save = lambda name='last.pt', model=None: (steps.append((name, trainer.step)), save(name, model))
    trainer.fit()
    assert [s for n, s in steps if n == 'last.pt'] == [1, 2, 3]
