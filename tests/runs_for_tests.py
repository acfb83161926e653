"""Small runs in processes of their own, for tests that kill, damage and spread them. Usage: python
runs_for_tests.py JOBS.json"""
import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = dict(
    crop=33, toy_unlabeled=8, batch_x=2, batch_u=2, dim=16, low_dim=8, stride=8, regions=8, steps=6,
    eval_every=2, log_every=2, warmup=1, device='cpu', weights='', scale_lr=False)

SMALL_FLAGS = (  # of a run from the command line
    '--crop', '49', '--dim', '16', '--low_dim', '8', '--backbone', 'toynet', '--weights', 'toy', '--steps',
    '4', '--eval_every', '2', '--batch_x', '2', '--batch_u', '2', '--regions', '8', '--norm', 'group',
    '--stride', '8', '--device', 'cpu')


def small(out, method='corrmatch', **changes):
    "The record of a run of some steps on images of 33 pixels."
    from corrmatch.config import preset
    return preset('toy', method, **SMALL | dict(out=str(out)) | changes)


def lighten(replace=setattr):
    """Make runs of some steps in this process cheap: they validate on 12 scenes of the generated world
    instead of 100, write a small file in the place of a drawing, and count the memory of equal steps once."""
    from corrmatch.files import write_atomic
    from corrmatch.training import builders, trainer
    def small_image(self, model):
        path = self.out/'pictures'/f'step_{self.step:06d}.png'
        write_atomic(path, lambda part: Path(part).write_bytes(b'not drawn'))
    count_once = cache(trainer._activation_bytes)
    replace(builders, '_TOY_VAL', builders._TOY_VAL[:12])
    replace(trainer.Trainer, '_draw', small_image)
    replace(trainer, '_activation_bytes', lambda config: count_once(dataclasses.replace(config, out='')))


def environment(**more):
    "One thread, and this tree first on the path."
    return os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='') | more


def typed(*words, cwd=ROOT):
    "Exit code, standard output and standard error of a command that runs in this process."
    from corrmatch.use.cli import main
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as e:  # of the parser
            code = e.code or 0
        except Exception:
            traceback.print_exc()
            code = 1
    return code, out.getvalue(), err.getvalue()


def typed_apart(*words, cwd=ROOT):
    "The same in a process of its own, forked from one that has imported torch."
    from forks_for_tests import fork_python
    done = fork_python(['-m', 'corrmatch', *words], cwd)
    return done.returncode, done.stdout, done.stderr


def typed_afresh(*words, cwd=ROOT):
    "The same in a new interpreter."
    done = subprocess.run(
        [sys.executable, '-m', 'corrmatch', *map(str, words)], cwd=cwd, env=environment(),
        capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


def corrmatch(place, *words, code=0, run=typed):
    "Type a command; its output."
    found, out, err = run(*words, cwd=place)
    assert found == code and 'Traceback' not in err, f'{words}: {found}\n{out[-1500:]}\n{err[-1500:]}'
    return out + err


def script(jobs, folder):
    "This file and a list of jobs, each a dict with `out`, changes of the small run, and perhaps `resume`."
    folder.mkdir(parents=True, exist_ok=True)
    path = folder/'jobs.json'
    path.write_text(json.dumps([job | dict(out=str(job['out'])) for job in jobs]))
    return [str(Path(__file__).resolve()), str(path)]


def command(jobs, folder, processes=0):
    "Command line for a list of jobs; in torchrun's processes if any."
    start = (
        [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={processes}', '--standalone']
        if processes
        else [sys.executable])
    return [*start, *script(jobs, folder)]


def work(out, resume=False, force=False, **changes):
    "Train one small run; the exit code of the command line."
    from corrmatch.training.trainer import Trainer
    try:
        Trainer(small(out, **changes), quiet=True).fit(resume=resume, force=force)
    except KeyboardInterrupt as e:
        return getattr(e, 'code', 130)
    except ValueError as e:
        print(f'error: {e}', file=sys.stderr)
        return 1
    return 0


def main():
    from corrmatch.training.distributed import stop_world
    lighten()
    codes = [work(**job) for job in json.loads(Path(sys.argv[1]).read_text())]
    stop_world()
    return max(codes)


if __name__ == '__main__':
    sys.exit(main())
