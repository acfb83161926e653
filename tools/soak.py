"""Train on the generated world for some minutes and watch what the process holds: memory, file handles, child
processes.

Usage: python tools/soak.py [--minutes 60] [--steps N] [--out FOLDER] [--workers 2]
It ends after so many minutes, or after so many steps. The run validates, saves and logs all the time. Ends
with one JSON line; exit code 1 if memory grew by more than 5 % (and 20 MB) between the first and the last
third, if the number of file handles or threads grew, or if a process, a temporary file or a shared memory
segment is left.
"""
import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from corrmatch.config import preset
from corrmatch.training.run_folder import list_runs
from corrmatch.training.trainer import Stopped, Trainer

ENDLESS = 10**6  # steps that no run reaches
family = {str(os.getpid())}  # this process and its workers, those that have ended too


def shared_segments() -> int:
    "How many segments of shared memory torch has left there for this process or a worker of it."
    names = [name.split('_') for name in os.listdir('/dev/shm') if name.startswith('torch_')]
    return sum(parts[1] in family for parts in names)


def held() -> dict:
    "What this process holds now; memory in MB, of its workers too."
    children = Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()
    family.update(children)
    pages = sum(
        int(Path(f'/proc/{pid}/statm').read_text().split()[1])
        for pid in ['self', *children]
        if Path(f'/proc/{pid}').exists())
    return dict(
        memory=pages * os.sysconf('SC_PAGE_SIZE') / 1e6,
        own=int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6,
        files=len(os.listdir('/proc/self/fd')), threads=threading.active_count(), children=len(children),
        shared=shared_segments())


def watch(samples: list, seconds: float, stop: threading.Event) -> None:
    "Sample until told to stop."
    while not stop.wait(seconds):
        try:
            samples.append(held())
        except (OSError, ValueError):
            pass  # a worker ended between two looks


def end_behind(trainer: Trainer, steps: int, stop: threading.Event) -> None:
    "Send SIGTERM, as a scheduler ends a job, when a run has taken so many steps."
    while not stop.wait(.05):
        if trainer.step >= steps:
            os.kill(os.getpid(), 15)
            return


def verdict(samples: list, before: dict, after: dict, out: Path) -> dict:
    "Compare the first third behind the warm-up with the last third, and before with after."
    rest = samples[len(samples)//10:]
    third = max(len(rest)//3, 1)
    first, last = (
        {k: float(np.median([s[k] for s in part])) for k in rest[0]} for part in (rest[:third], rest[-third:])
    )
    faults = [f"memory grew from {first['own']:.0f} to {last['own']:.0f} MB"] * (
        last['own'] > max(1.05 * first['own'], first['own'] + 20))
    # a validation opens a few
    faults += [
        f'{k} grew from {first[k]:.0f} to {last[k]:.0f}'
        for k in ('files', 'threads')
        if last[k] > first[k] + 3]
    faults += [
        f'{k} left: {before[k]} before, {after[k]} after'
        for k in ('children', 'shared')
        if after[k] > before[k]]
    # fonts and the like are opened once
    faults += [f'file handles left: {before["files"]} before, {after["files"]} after'] * (
        after['files'] > before['files'] + 8)
    faults += [f'temporary file left: {p.name}' for p in out.rglob('.*.part')]
    return dict(first=first, last=last, before=before, after=after, samples=len(samples), faults=faults)


def watched_fit(trainer: Trainer, minutes: float, steps: int) -> list:
    "Train until one of the limits, and sample what the process holds meanwhile."
    samples = []
    stop = threading.Event()
    pause = max(minutes*60/600, .5) if steps == ENDLESS else .2
    spy = threading.Thread(target=watch, args=(samples, pause, stop), daemon=True)
    end = threading.Thread(target=end_behind, args=(trainer, steps, stop), daemon=True)
    timer = threading.Timer(minutes*60, lambda: os.kill(os.getpid(), 15))
    timer.daemon = True
    for thread in (spy, end, timer):
        thread.start()
    try:
        trainer.fit()
    except Stopped:
        pass
    stop.set()
    timer.cancel()
    for thread in (spy, end, timer):
        thread.join()
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=60)
    parser.add_argument('--steps', type=int, default=ENDLESS)
    parser.add_argument('--out', type=Path, default=None)
    parser.add_argument('--workers', type=int, default=2)
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix='soak_'))
    config = preset(
        'toy', steps=ENDLESS, crop=33, warmup=20, eval_every=100, save_every=25, log_every=5,
        workers=args.workers, ema=0.99, out=str(out / 'run'))
    trainer = Trainer(config, quiet=True)
    before = held()
    start = time.monotonic()
    samples = watched_fit(trainer, args.minutes, args.steps)
    time.sleep(1)
    found = verdict(samples, before, held(), out) | dict(
        minutes=round((time.monotonic() - start) / 60, 2), steps=trainer.step, state=list_runs(out)[0].state)
    print(json.dumps(found, indent=1))
    return int(bool(found['faults']))


if __name__ == '__main__':
    sys.exit(main())
