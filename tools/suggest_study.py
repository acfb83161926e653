"""Measure whether suggested images are worth more than random ones, at the same number of labels.

  python tools/suggest_study.py plan                                   which runs
  python tools/suggest_study.py pilot --vocanimals DIR --weights FILE  seed 0: seconds, and what labels bring
  python tools/suggest_study.py run --vocanimals DIR --weights FILE [--out runs/suggest]
  python tools/suggest_study.py collect [--results nbs/results]        write suggest.csv, print the table

The plan, fixed before the first run. Two data sets: the generated world (65 pixels a side, a pool of 400
scenes, 200 others scored), and VOC animals scaled to 160 x 160 pixels (the pool are the 415 images with
precise masks, 433 others are scored). Three rounds of 15 labels. The first 15 are drawn at random and shared
by all strategies of a seed; the network trained on them suggests 15 more, and so on, each strategy for
itself. Each run trains from the start, supervised-only, with the same number of steps. The seeds draw the
first images, the random ones and the weights. The score is the mIoU after the last step on all scored images;
nothing is chosen by it. Reported are mean and deviation over seeds, and the difference to `random` of the
same seed. There are ten seeds, worked through in order. If the time ends before, the clock decides and not
the scores: all seeds that are complete count, at least three.

So that a run takes seconds, the backbone is frozen, its last stage is computed once for every image, and a
run trains two linear layers on its positions, without augmentation. Ground truth is read at the positions
of the features; the score counts every second pixel down and across. Scores are lower than those of full
training.

`run` may be killed and started again, and several times at once, once a core: finished runs are kept.
"""
import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from evidence import lock
from PIL import Image
from torch import nn

from corrmatch.config import IGNORE_INDEX, preset
from corrmatch.data.folders import list_lines
from corrmatch.data.toy import toy_arrays
from corrmatch.data.views import normalize
from corrmatch.files import text_table, write_atomic
from corrmatch.method.pixel import resize
from corrmatch.training.builders import make_model
from corrmatch.training.metrics import ConfusionMatrix
from corrmatch.use.suggest import _choose_rows, _class_uncertainty, _rare_weights
from corrmatch.use.tables import mean_sd

STRATEGIES = ('random', 'uncertainty', 'diverse', 'both')
SEEDS = tuple(range(1, 11))
ROUNDS = 3
LABELS = 15   # a round
WIDTH = 64    # channels between the two convolutions
STEPS = 200   # of Adam
POSITIONS = 512 # a step
RATE = .003
DATA = {
    'generated': dict(n_classes=6, backbone='toynet', weights='toy', stride=4, norm='group'),
    'vocanimals': dict(n_classes=7, backbone='timm:tf_efficientnet_lite0', stride=16)}
SIDE = 160    # pixels, of VOC animals


class Job(NamedTuple):
    "One run of the plan."
    data: str
    seed: int
    round: int     # from 1
    strategy: str  # 'first' in round 1

    @property
    def name(self): return f'{self.data}_s{self.seed}_r{self.round}_{self.strategy}'

    @property
    def before(self):
        "The run that gives the suggestions."
        return self._replace(round=self.round-1, strategy='first' if self.round == 2 else self.strategy)


def make_plan() -> list:
    "All runs, each behind the one it needs; whole seeds of both data sets first."
    return [
        Job(data, seed, number, strategy)
        for seed in SEEDS
        for number in range(1, ROUNDS + 1)
        for data in DATA
        for strategy in (('first',) if number == 1 else STRATEGIES)]


# ------------------------------------------------------------------ images and features

def _read(path, how):
    with Image.open(path) as image:
        return np.asarray(image.resize((SIDE, SIDE), how))


def read_images(data, source):
    "Images (n,h,w,3) and masks (n,h,w) of the pool and of the scored images."
    if data == 'generated':
        return [toy_arrays(numbers, 65) for numbers in (range(10_000, 10_400), range(20_000, 20_200))]
    found = []
    for name in ('train_official.txt', 'val.txt'):
        names = [line for _, line in list_lines(source/name)]
        images = [_read(source/f'images/{n}.jpg', Image.Resampling.BICUBIC) for n in names]
        masks = [_read(source/f'masks/{n}.png', Image.Resampling.NEAREST) for n in names]
        found.append((np.stack(images), np.stack(masks)))
    return found


@torch.no_grad()
def features(model, images):
    "The last stage (n,d,h,w) of images (n,h,w,3), in half precision."
    parts = []
    for start in range(0, len(images), 16):
        batch = torch.from_numpy(images[start:start+16].copy()).permute(0, 3, 1, 2)
        parts.append(model.features(normalize(batch))[1].half())
    return torch.cat(parts)


def make_features(data, out, source, weights):
    "Features and masks of a data set, from the file that the first process makes."
    path = out/f'{data}_features.pt'
    out.mkdir(parents=True, exist_ok=True)
    while not path.exists():
        with lock(out/f'{data}_features.lock') as mine:
            if mine and not path.exists():
                changes = dict(weights=str(weights)) | DATA[data]
                model = make_model(preset('toy', 'supervised', dim=16, **changes))[0].eval()
                (pool, pool_masks), (val, val_masks) = read_images(data, source)
                feats = features(model, pool)
                std, mean = torch.std_mean(feats.float(), (0, 2, 3), keepdim=True)
                def scaled(feats): return ((feats.float() - mean)/(std + 1e-6)).half()
                found = dict(
                    pool=scaled(feats), val=scaled(features(model, val)), pooled=feats.double().mean((2, 3)),
                    pool_masks=torch.from_numpy(pool_masks), val_masks=torch.from_numpy(val_masks))
                write_atomic(path, lambda draft: torch.save(found, draft))
        time.sleep(.2)
    return torch.load(path, weights_only=True)


# ------------------------------------------------------------------ one run

def train(found, labeled, k, seed):
    "Train a head on positions of the labeled images of the pool."
    torch.manual_seed(seed)
    feats = found['pool'][labeled].float()
    masks = found['pool_masks'][labeled, None].float()
    y = F.interpolate(masks, feats.shape[-2:], mode='nearest-exact').flatten().long()
    x = feats.permute(0, 2, 3, 1).flatten(0, 2)[y != IGNORE_INDEX]
    y = y[y != IGNORE_INDEX]
    head = nn.Sequential(nn.Linear(x.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, k))
    optimizer = torch.optim.Adam(head.parameters(), RATE, weight_decay=1e-4)
    for picks in torch.randint(len(y), (STEPS, POSITIONS)):
        optimizer.zero_grad()
        F.cross_entropy(head(x[picks]), y[picks]).backward()
        optimizer.step()
    return head.eval()


def logits_of(head, feats):
    "Logits (b,k,h,w) of features (b,d,h,w)."
    return head(feats.float().permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def score(head, found, k):
    "mIoU in percent over every second pixel, down and across, of the scored images."
    confusion = ConfusionMatrix(k)
    for start in range(0, len(found['val']), 16):
        mask = found['val_masks'][start:start+16, ::2, ::2]
        logits = logits_of(head, found['val'][start:start+16])
        confusion.update(resize(logits, mask.shape[-2:]).argmax(1), mask.long())
    return 100*confusion.miou()


@torch.no_grad()
def suggestions(head, found, labeled, strategies, seed):
    "The 15 rows of the pool that each strategy would label next, as `corrmatch suggest` computes them."
    probs = logits_of(head, found['pool']).double().softmax(1)
    shares = F.one_hot(probs.argmax(1), probs.shape[1]).double().mean((1, 2)).numpy()
    feats = F.normalize(found['pooled'], dim=1).numpy()
    value = _class_uncertainty(probs).numpy() @ _rare_weights(shares[labeled].mean(0))
    free = np.setdiff1d(np.arange(len(feats)), labeled)
    def chosen(strategy):
        rows = _choose_rows(value[free], feats[free], feats[labeled], LABELS, strategy, seed).rows
        return free[rows].tolist()
    return {strategy: chosen(strategy) for strategy in strategies}


def do(job, out, found):
    "Label, train, score, and note what each strategy would label next."
    k = DATA[job.data]['n_classes']
    if job.round == 1:
        labeled = np.random.default_rng(job.seed).permutation(len(found['pool']))[:LABELS].tolist()
    else:
        before = json.loads((out/f'{job.before.name}.json').read_text())
        labeled = before['labeled'] + before['next'][job.strategy]
    assert len(set(labeled)) == LABELS*job.round
    head = train(found, labeled, k, job.seed)
    wanted = STRATEGIES if job.round == 1 else (job.strategy,)*(job.round < ROUNDS)
    following = suggestions(head, found, labeled, wanted, 100*job.seed + job.round)
    counts = torch.bincount(found['pool_masks'][labeled].flatten().long(), minlength=256)[:k]
    result = dict(
        labeled=labeled, next=following, miou=round(float(score(head, found, k)), 3),
        rarest=round(100*float(counts.min()/counts.sum()), 3))
    write_atomic(out/f'{job.name}.json', json.dumps(result))
    return result


def run_all(jobs, out, source, weights):
    "Work through the plan; jobs that another process holds, or that wait for one, are come back to."
    found = {data: make_features(data, out, source, weights) for data in dict.fromkeys(j.data for j in jobs)}
    while left := [job for job in jobs if not (out/f'{job.name}.json').exists()]:
        moved = False
        for job in left:
            if job.round > 1 and not (out/f'{job.before.name}.json').exists():
                continue
            with lock(out/f'{job.name}.lock') as mine:
                if mine and not (out/f'{job.name}.json').exists():
                    print(f"{job.name}: {do(job, out, found[job.data])['miou']:.2f}", flush=True)
                    moved = True
        if not moved:
            time.sleep(2)


def pilot(data, out, source, weights):
    "With seed 0, which is not reported: do more labels bring more, and how long does a run take?"
    found = make_features(data, out, source, weights)
    k = DATA[data]['n_classes']
    print(f'{data}: features {tuple(found["pool"].shape)}, {time.process_time():.0f} s so far', flush=True)
    order = np.random.default_rng(0).permutation(len(found['pool'])).tolist()
    for n in (LABELS, LABELS*ROUNDS, len(order)):
        times = [time.process_time()]
        head = train(found, order[:n], k, 0)
        times.append(time.process_time())
        miou = score(head, found, k)
        times.append(time.process_time())
        suggestions(head, found, order[:LABELS], STRATEGIES, 0)
        times.append(time.process_time())
        spent = ', '.join(f'{t:.1f}' for t in np.diff(times))
        print(f'{data}: {n} labels: {miou:.2f}; {spent} s to train, score, suggest', flush=True)


# ------------------------------------------------------------------ the table

FIELDS = ('data', 'seed', 'round', 'labels', 'strategy', 'miou', 'rarest')


def collect(jobs, out) -> list:
    "One row a run, of the seeds whose runs on a data set are all finished."
    rows = []
    open_seeds = {(j.data, j.seed) for j in jobs if not (out/f'{j.name}.json').exists()}
    for job in jobs:
        if (job.data, job.seed) not in open_seeds:
            result = json.loads((out/f'{job.name}.json').read_text())
            rows.append(job._asdict() | dict(
                labels=LABELS*job.round, miou=result['miou'], rarest=result['rarest']))
    return rows


def score_of(rows, data, seed, number, strategy):
    "mIoU of one run; the first round is shared."
    wanted = (data, seed, number, 'first' if number == 1 else strategy)
    keys = ('data', 'seed', 'round', 'strategy')
    return next((r['miou'] for r in rows if tuple(r[k] for k in keys) == wanted), None)


def summary(rows) -> str:
    "Mean and deviation over seeds, and of the difference to random."
    table = [['data', 'labels', 'strategy', 'mIoU', 'minus random']]
    for data in DATA:
        for number in range(1, ROUNDS + 1):
            for strategy in STRATEGIES:
                pairs = [[score_of(rows, data, s, number, k) for k in (strategy, 'random')] for s in SEEDS]
                pairs = [p for p in pairs if None not in p]
                if not pairs:
                    continue
                m, sd = mean_sd([a for a, _ in pairs])
                d, dsd = mean_sd([a - b for a, b in pairs])
                found = f'{m:.2f} ± {sd:.2f}', f'{d:+.2f} ± {dsd:.2f}'
                table.append([data, str(LABELS*number), strategy, *found])
    return text_table(table, (0, 2))


def write_rows(rows, path):
    "The file of results, sorted."
    rows = sorted(rows, key=lambda r: (r['data'], r['seed'], r['round'], r['strategy']))
    with open(path, 'w', newline='') as f:
        table = csv.DictWriter(f, FIELDS, extrasaction='ignore', lineterminator='\n')
        table.writeheader()
        table.writerows(rows)


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('command', choices=('plan', 'pilot', 'run', 'collect'))
    parser.add_argument('--vocanimals', type=Path, metavar='DIR')
    parser.add_argument(
        '--weights', default='', metavar='FILE', help='ImageNet weights of EfficientNet-lite0')
    parser.add_argument('--out', type=Path, default=Path('runs/suggest'))
    parser.add_argument('--only', choices=tuple(DATA), help='one data set')
    parser.add_argument('--results', type=Path, default=Path('nbs/results'))
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse(argv)
    torch.set_num_threads(1)
    jobs = [job for job in make_plan() if job.data == (args.only or job.data)]
    if args.command in ('pilot', 'run') and any(j.data == 'vocanimals' for j in jobs):
        if not (args.vocanimals and args.vocanimals.is_dir() and args.weights):
            raise ValueError('give --vocanimals DIR and --weights FILE, or --only generated')
    if args.command == 'plan':
        print('\n'.join(job.name for job in jobs))
    elif args.command == 'pilot':
        for data in dict.fromkeys(job.data for job in jobs):
            pilot(data, args.out, args.vocanimals, args.weights)
    elif args.command == 'run':
        run_all(jobs, args.out, args.vocanimals, args.weights)
    else:
        rows = collect(jobs, args.out)
        write_rows(rows, args.results/'suggest.csv')
        print(summary(rows))
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except ValueError as e:
        sys.exit(f'suggest_study: {e}')
