"""Try the Pascal preset without Pascal's data: train it on generated images, stop it half-way and resume it.

  python tools/pascal_smoke.py --steps 300 --crop 129 --batch 2 --out runs/pascal_smoke [--json FILE]

Afterwards everything that the run left is examined: finite losses, each loss term at work, a moved threshold,
a checkpoint that scores what was noted. The exit status is 1 if a fault was found.
"""
import argparse
import gc
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from corrmatch.config import IGNORE_INDEX, Config, preset
from corrmatch.files import write_atomic
from corrmatch.training.builders import eval_pairs, make_datasets
from corrmatch.training.metrics import evaluate
from corrmatch.training.run_folder import read_csv, run_state
from corrmatch.training.trainer import Stopped, Trainer, load_run
from corrmatch.viz import palette

LISTS = ('splits/pascal/92/labeled.txt', 'splits/pascal/92/unlabeled.txt', 'splits/pascal/val.txt')


def draw_scene(number, colors, rng, h, w):
    "An image and its mask: eight objects of eight classes, with a border of ignored pixels."
    y, x = np.mgrid[:h, :w]
    mask = np.zeros((h, w), np.uint8)
    image = rng.normal(110, 12, (h, w, 1)) + rng.uniform(-30, 30, 3)
    # four images of eight objects show all of 1..20
    for j, c in enumerate((7*number + np.arange(8)) % 20 + 1):
        cy = (j//4 + .5 + rng.uniform(-.1, .1))*h/2
        cx = (j % 4 + .5 + rng.uniform(-.1, .1))*w/4
        distance = np.hypot((y-cy)/(h/4), (x-cx)/(w/8))/rng.uniform(.7, .95)
        wave = np.sin((x*math.cos(c) + y*math.sin(c))/(2 + c % 5))[..., None]
        painted = colors[c] + 40*wave + rng.normal(0, 8, (h, w, 1))
        image = np.where(distance[..., None] < 1, painted, image)
        mask[distance < 1.08] = IGNORE_INDEX
        mask[distance < 1] = c
    return Image.fromarray(image.clip(0, 255).astype(np.uint8)), Image.fromarray(mask)


def paint_voc(folder, sizes=(4, 8, 2), h=375, w=500, seed=0):
    "Write a folder in VOC's layout with 21 classes; its labeled images show every class."
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    colors = palette(256, 'pascal')
    for sub in ('JPEGImages', 'SegmentationClass', 'splits/pascal/92'):
        (folder/sub).mkdir(parents=True, exist_ok=True)
    number = 0
    for path, n in zip(LISTS, sizes):
        lines = []
        for i in range(n):
            image, mask = draw_scene(i, colors, rng, h, w)
            mask.putpalette(colors.ravel().tolist())
            image.save(folder/f'JPEGImages/{number:06d}.jpg', quality=90)
            mask.save(folder/f'SegmentationClass/{number:06d}.png')
            lines.append(f'JPEGImages/{number:06d}.jpg SegmentationClass/{number:06d}.png')
            number += 1
        (folder/path).write_text('\n'.join(lines))


class _StopsHalfway(Trainer):
    "Sends itself a signal, as a scheduler would, in the middle."
    def run_step(self, batch):
        result = super().run_step(batch)
        if self.step == self.steps//2:
            os.kill(os.getpid(), signal.SIGTERM)
        return result


def train_twice(config) -> int:
    "Train until the signal, then resume to the end; the step of the signal, 0 if it came in an earlier call."
    run = Path(config.out)
    stopped_at = 0
    if not (run/'last.pt').exists() and config.steps > 1:
        trainer = _StopsHalfway(config)
        print(trainer.describe(), flush=True)
        try:
            trainer.fit()
        except Stopped:
            stopped_at = trainer.step
        if stopped_at != config.steps//2:
            raise ValueError(f'stopped at step {stopped_at} by another signal; the same command goes on')
        del trainer
        gc.collect()
    if run_state(run)['state'] != 'finished':
        Trainer(config).fit(resume=(run/'last.pt').exists())
        gc.collect()
    return stopped_at


def log_faults(metrics, config, steps) -> list:
    "What is wrong with the log of a finished run."
    losses = {k: v for k, v in metrics.items() if k.startswith('loss_')}
    faults = [
        f'{k} is not finite' for k, v in metrics.items() if k.startswith('loss') and not np.isfinite(v).all()]
    # from random weights nothing is confident at first
    faults += [f'{k} was never at work' for k, v in losses.items() if not (v != 0).any() and steps >= 100]
    if metrics['skipped'][-1]:
        faults.append(f"{metrics['skipped'][-1]:.0f} steps were skipped")
    if config.threshold == 'dynamic' and metrics['tau'][-1] == config.tau:
        faults.append('tau did not move')
    if len(metrics['step']) != len(set(metrics['step'])):
        faults.append('steps were logged twice')
    return faults


def score_faults(out) -> list:
    "Whether best.pt scores what the run noted."
    model, config = load_run(out, 'best.pt')
    pairs = eval_pairs(make_datasets(config, only_val=True).val)
    again = 100*evaluate(model, pairs, config.n_classes, config.evaluation, config.crop).miou()
    stored = read_csv(out/'val.csv')['miou'].max()
    if abs(again - stored) <= .05:
        return []
    return [f'best.pt scores {again:.2f} once more, the run noted {stored:.2f}']


def findings(run, config) -> dict:
    "The numbers of a finished run, and its faults."
    model, recorded = load_run(run, 'last.pt')
    metrics = read_csv(run/'metrics.csv')
    used = [k.removeprefix('loss_') for k, v in metrics.items() if k.startswith('loss_') and (v != 0).any()]
    def ends(name, digits): return [round(float(metrics[name][i]), digits) for i in (0, -1)]
    return dict(
        backbone=config.backbone,
        parameters=sum(p.numel() for p in model.parameters()),
        data='14 generated images of 375x500, 21 classes',
        precision=recorded.precision,
        device='cuda' if torch.cuda.is_available() else 'cpu',
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        seconds_a_step_validations_included=round(float(1/metrics['steps_per_s'][-1]), 2),
        memory_gb=round(float(metrics['memory_gb'].max()), 2),
        losses_seen=used,
        loss=ends('loss', 4),
        tau=ends('tau', 5),
        coverage=ends('coverage_before', 4),
        miou=read_csv(run/'val.csv')['miou'].tolist(),
        faults=log_faults(metrics, recorded, config.steps) + score_faults(run))


def smoke(steps, out, crop=321, batch=8, accumulate=1, json_path='', **changes) -> dict:
    "Train the Pascal preset on generated images and examine what the run left."
    out = Path(out)
    start = time.monotonic()
    if not (out/'data'/LISTS[-1]).exists():
        paint_voc(out/'data')
    config: Config = preset(
        'voc_92', data=str(out/'data'), crop=crop, batch_x=batch, batch_u=batch, accumulate=accumulate,
        steps=steps, eval_every=max(1, steps//2), log_every=max(1, steps//50), save_minutes=5.0,
        out=str(out/'run'), **changes)
    stopped_at = train_twice(config)
    size = dict(steps=steps, crop=crop, batch=f'{batch}+{batch}', accumulate=accumulate)
    found = size | findings(out/'run', config) | dict(stopped_and_resumed_at=stopped_at)
    found['minutes'] = round((time.monotonic() - start)/60, 1)
    if json_path:
        path = Path(json_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        others = json.loads(path.read_text()) if path.exists() else {}
        text = json.dumps(others | {f'crop {crop}': found}, indent=1) + '\n'
        write_atomic(path, text.encode())
    return found


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--crop', type=int, default=321)
    parser.add_argument('--batch', type=int, default=8, help='labeled, and as many unlabeled images a step')
    parser.add_argument(
        '--accumulate', type=int, default=1, help='micro-steps, where memory is short; changes batch norm')
    parser.add_argument('--out', type=Path, default=Path('runs/pascal_smoke'))
    parser.add_argument('--json', default='', help='file for the findings')
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse(argv)
    found = smoke(args.steps, args.out, args.crop, args.batch, args.accumulate, args.json)
    print(json.dumps(found, indent=1))
    return int(bool(found['faults']))


if __name__ == '__main__':
    os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
    try:
        sys.exit(main())
    except ValueError as e:
        sys.exit(f'pascal_smoke: {e}')
    except KeyboardInterrupt as e:
        print(f"pascal_smoke: {e or 'interrupted'}; the same command goes on", file=sys.stderr)
        sys.exit(getattr(e, 'code', 130))
