"""Kill a small run with SIGKILL at many moments, resume it, and compare with the run that was left alone.

Usage: python kill_lab.py FOLDER SEED KILLS. Prints one JSON line for each kill. Every run is a forked child,
so that torch is imported once.
"""
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from corrmatch.training import run_folder as runfolder
from corrmatch.training.run_folder import CsvLog, read_checkpoint
from corrmatch.training.builders import make_datasets
from corrmatch.training.trainer import Trainer
from runs_for_tests import lighten, small

# a checkpoint at every step: many kills hit the writing
RUN = dict(steps=10, eval_every=5, save_every=1, log_every=1)
TIMES = ('steps_per_s', 'images_per_s', 'memory_gb')


def train(out, sources, resume=False):
    "One run; 0 when it came to its end."
    Trainer(small(out, **RUN), sources, quiet=True).fit(resume=resume)
    return 0


def forked(function, *args, **kwargs):
    "Run a function in a child; return its process number."
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = function(*args, **kwargs)
    finally:
        os._exit(code)


def ended(pid):
    "Wait for a child: its exit code, negative for a signal."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_while_writing(out, sources, place, count):
    """Train, and be killed at the `count`-th time the code comes to a place of `write_atomic`: before, within
    or behind a rename."""
    calls = [0]
    replace = os.replace
    fsync = os.fsync
    def now():
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
    def dying_replace(a, b):
        if place == 'before the rename':
            now()
        replace(a, b)
        if place == 'behind the rename':
            now()
    def dying_fsync(fd):
        # not the second name of a finished checkpoint
        if place == 'half written' and os.fstat(fd).st_nlink == 1:
            if calls[0]+1 == count:
                os.ftruncate(fd, os.fstat(fd).st_size//2)
            now()
        fsync(fd)
    runfolder.os.replace = dying_replace
    runfolder.os.fsync = dying_fsync
    return train(out, sources)


def state(out):
    "Everything that has to be equal in the end."
    logs = {
        name: [{k: v for k, v in row.items() if k not in TIMES} for row in CsvLog(out / name, 10**9).rows]
        for name in ('metrics.csv', 'val.csv')}
    best, last = (read_checkpoint(out/name) for name in ('best.pt', 'last.pt'))
    return logs, [
        best['model'], last['model'], last['optimizer'], last['threshold'], last['best'], last['step']]


def equal(a, b):
    "Bit for bit."
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def resumed(out, sources):
    "Go on as a user would: with --resume where there is a checkpoint."
    return ended(forked(train, out, sources, resume=(out/'last.pt').exists() or (out/'before.pt').exists()))


def steps_logged(out):
    "How many steps stand in the log of a run."
    return max((out/'metrics.csv').read_bytes().count(b'\n')-1, 0) if (out/'metrics.csv').exists() else 0


def wait_for_steps(out, pid, steps):
    "Wait until a run has opened its folder and logged so many steps, or has ended; the time."
    while not ((out/'state.json').exists() and steps_logged(out) >= steps):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(.001)
    return time.monotonic()


def main():
    folder = Path(sys.argv[1])
    seed = int(sys.argv[2])
    kills = int(sys.argv[3])
    torch.set_num_threads(1)
    lighten()
    sources = make_datasets(small('unused'))
    # in this process: what is imported and warmed up here the children need not do again
    train(folder / 'straight', sources)
    expected = state(folder/'straight')
    pid = forked(train, folder/'timed', sources)
    seconds = -wait_for_steps(folder/'timed', pid, 1) + wait_for_steps(folder/'timed', pid, RUN['steps'])
    assert ended(pid) == 0 and equal(expected, state(folder/'timed'))
    rng = random.Random(seed)
    plans = [
        (f'after {step:.3f} steps', step)
        for step in ((i + rng.random()) / kills * (RUN['steps'] - 1) for i in range(kills))]
    plans += [
        (place, rng.randrange(2, 20))
        for place in ('half written', 'before the rename', 'behind the rename') * 2]
    for i, (place, number) in enumerate(plans):
        out = folder/f'run{i}'
        if place.startswith('after'):
            pid = forked(train, out, sources)
            # what the run has done, then a part of a step: a machine that is faster or slower by now does not
            # move the moment
            wait_for_steps(out, pid, int(number))
            time.sleep(number % 1 * seconds/(RUN['steps']-1))
            os.kill(pid, signal.SIGKILL)
        else:
            pid = forked(die_while_writing, out, sources, place, number)
        code = ended(pid)
        drafts = len(list(out.glob('.*.part'))) if out.exists() else 0
        at = read_checkpoint(out/'last.pt')['step'] if (out/'last.pt').exists() else 0
        again = resumed(out, sources) if code else 0
        print(
            json.dumps(
                dict(
                    place=place, killed=code == -signal.SIGKILL, at=at, drafts=drafts, resumed=again,
                    equal=equal(expected, state(out)), left=[p.name for p in out.glob('.*.part')])),
            flush=True)


if __name__ == '__main__':
    main()
