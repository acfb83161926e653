"A small run in a process of its own, for tests that kill, damage and spread it. Usage: python runs_for_tests.py OUT [FIELD=VALUE ...] [--resume]"
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = dict(crop=33, toy_unlabeled=8, batch_x=2, batch_u=2, dim=16, low_dim=8, stride=8, regions=8, steps=6, eval_every=2, log_every=2,
             warmup=1, device='cpu', weights='', scale_lr=False)


def small(out, method='corrmatch', **changes):
    "The record of a run of some steps on pictures of 33 pixels."
    from corrmatch.config import preset
    return preset('toy', method, **SMALL | dict(out=str(out)) | changes)


def command(out, *arguments, torchrun=0, **changes):
    "Command line that trains such a run in `torchrun` processes; 0: without torchrun."
    start = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={torchrun}', '--standalone'] if torchrun else [sys.executable]
    return [*start, str(Path(__file__).resolve()), str(out), *[f'{k}={json.dumps(v)}' for k, v in changes.items()], *arguments]


def environment(**more):
    "One thread, and this tree first on the path."
    return os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='') | more


def main():
    out, *rest = sys.argv[1:]
    from corrmatch.parallel import stop_world
    from corrmatch.trainer import Trainer
    changes = {k: json.loads(v) for k, v in (a.split('=', 1) for a in rest if not a.startswith('--'))}
    losses = changes.pop('losses', None)
    trainer = Trainer(small(out, **changes), quiet=True)
    try: trainer.fit(resume='--resume' in rest, force='--force' in rest)
    except KeyboardInterrupt as e: return getattr(e, 'code', 130)
    except ValueError as e:
        print(f'error: {e}', file=sys.stderr)
        return 1
    finally: stop_world()
    return 0


if __name__ == '__main__': sys.exit(main())
