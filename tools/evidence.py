"""Measure methods and parts on real images.

  python tools/evidence.py plan DATA WEIGHTS [--steps 1500 --seeds 3]       what would run, and how long
  python tools/evidence.py time DATA WEIGHTS                                measure seconds a step for that
  python tools/evidence.py run DATA WEIGHTS [--out runs/evidence]           train what is not finished
  python tools/evidence.py collect DATA WEIGHTS [--out runs/evidence --set evidence]
  python tools/evidence.py renorm DATA WEIGHTS [--out runs/evidence]        batch norm measured anew
  python tools/evidence.py run DATA WEIGHTS --stage wide --steps 900 --out runs/wide
  python tools/evidence.py collect-demo runs/demo_s0 runs/demo_s1 runs/demo_s2 [--results nbs/results]

DATA is --camvid DIR, --vocanimals DIR or both; WEIGHTS is --weights FILE, ImageNet weights of lite0.
`run` may be started several times, once a core: each takes one thread (--threads), since processes with more
threads than there are cores slow each other down. They share the list by file locks. A run that was killed
goes on where it stopped; SIGTERM or Ctrl-C ends it after a finished step and a saved checkpoint. `collect`
puts settings, thinned metrics and scores of finished runs into the tables of nbs/results, without any path of
this machine, and scores the test list where a data set has one.
"""
import argparse
import csv
import fcntl
import gc
import io
import json
import math
import os
import signal
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from corrmatch.config import IGNORE_INDEX, METHODS as BUNDLES, Config, preset
from corrmatch.method.threshold import threshold_of
from corrmatch.method.variants import Variants, soft_votes
from corrmatch.method.correlation import correlation_rows
from corrmatch.training.metrics import evaluate
from corrmatch.models.corrmatch_net import CorrMatchNet
from corrmatch.method.pseudo_labels import confidence, pseudo_label
from corrmatch.method.region import draw_positions, propagate_regions
from corrmatch.files import text_table, write_atomic
from corrmatch.training.run_folder import CsvLog, config_changes, read_csv, refuse_if_running, run_state
from corrmatch.engine.regions import fast_region_maps
from corrmatch.training.builders import eval_pairs, make_batches, make_datasets, to_device
from corrmatch.use.tables import mean_sd
from corrmatch.training.trainer import Stopped, Trainer, load_run

# ------------------------------------------------------------------ the settings, all in one place

# Chosen with seed 0, which is therefore not among the seeds that are reported. Labels of few and of all
# images must lie apart, or no method can show anything: a frozen network with complete ImageNet weights
# parts them within 1000 steps at crop 129. The first 750 steps see supervised-only training: begun after 100
# steps, pseudo-labels name nothing but the large classes and keep the thin ones from being learned.
SETTINGS = dict(  # of every run: one schedule for all methods
    backbone='timm:tf_efficientnet_lite0', freeze=True, crop=129, dim=64, stride=16, rate=2, batch_x=4,
    batch_u=4, cutmix='in_batch',
    kl_inside=False,
    lr=.004, lr_multi=10., scale_min=.5, log_every=10,
    # one type for all: 'auto' is settled by timing on a CPU, and a busy moment would give one run another
    # type than the next
    precision='bf16')
STEPS = 1500    # of each run
WARMUP = 750    # first steps on labeled images alone; half of a run that is shorter than twice this
VALIDATIONS = 4 # of each run, evenly spaced
FIRST_SEED = 1
# what differs between the data sets; `images`: of the validation and the test list, for the estimate of
# time
DATA = {
    'camvid': dict(splits=('1_16', '1_30'), scale_max=1., test='test.txt', images=(101, 233)),
    'vocanimals': dict(splits=('1_16', '1_32'), scale_max=1.2, test='', images=(433, 0))}
METHODS = ('supervised', 'fixmatch', 'unimatch', 'corrmatch')
# supervised with the masks of the whole train list: what labels could bring at most at this schedule
CEILING = 'all_labels'

# The weight of a part that is switched off goes to the term with the nearest target, so that the labeled and
# the unlabeled terms weigh as much as before: x_corr to x (mask), s_corr to s (rewritten labels), w_corr to
# fp (label of the weak view), fp to s.
_NO_PIXEL = dict(w_x=.5, w_x_corr=0., w_s=.1875, w_s_corr=0., w_fp=.1875, w_w_corr=0.)
PARTS = {  # name -> changes of corrmatch
    # nothing trains the correlation head then: its regions come from random projections
    'no_pixel': _NO_PIXEL,
    # the head learns from masks only: regions without pixel propagation of pseudo-labels
    'head_from_labels': dict(w_s=.1875, w_s_corr=0., w_fp=.1875, w_w_corr=0.),
    'no_region': dict(regions=0),
    'no_pixel_no_region': _NO_PIXEL | dict(regions=0),
    'no_fp': dict(w_fp=0., w_s=.25),
    'no_kl': dict(w_kl=0., w_s=.25),
    'fixed_tau': dict(threshold='fixed'),       # at the start value of the dynamic one
    'high_tau': dict(threshold='fixed', tau=.95), # that of FixMatch and UniMatch
    'transposed': dict(transposed=True),
    # in_batch is the setting of all
    'cutmix_same': dict(cutmix='same_image'), 'cutmix_other': dict(cutmix='other_image'),
    'regions_32': dict(regions=32), 'regions_512': dict(regions=512),                      # 128 likewise
    'cut_03': dict(region_cut=.3), 'cut_07': dict(region_cut=.7)}                          # 0.5 likewise
BEYOND = {  # options that are not in the paper (chapter 08), each alone
    'soft_votes': dict(region_votes='soft'), 'seeds_unsure': dict(region_seeds='uncertain'),
    'per_class': dict(threshold='per_class'),
    'teacher_pixel': dict(teacher_pixel=.3), 'teacher_cross': dict(teacher_cross=.3),
    'labels_double': dict(w_x=.5, w_x_corr=.5), 'warm_short': dict(warmup=100),
    # the terms of the head that predicts weigh .625 together, in the other methods 1
    'rate_double': dict(lr=2*SETTINGS['lr']),
    # a high threshold, and the labels' weight on the head that predicts
    'short': dict(threshold='fixed', tau=.95, w_x=.4, w_x_corr=.1)}
# With a frozen backbone nothing that the correlation head learns reaches the features. These train the
# backbone as well, at a quarter of the rate (the head's stays), and leave its batch norm alone: what a batch
# of eight images measures spoils ImageNet's statistics.
_TRAINED = dict(freeze=False, freeze_norm=True, lr=SETTINGS['lr']/4, lr_multi=4*SETTINGS['lr_multi'])
TRAINED = {
    f'trained_{name}': _TRAINED | (PARTS | BEYOND).get(name, {})
    for name in ('supervised', 'fixmatch', 'unimatch', 'corrmatch', 'no_pixel', 'no_region', 'per_class')}
# Before pseudo-labels the terms of CorrMatch's head that predicts weigh a half. These are supervised-only
# training with that step.
BEYOND['supervised_slow'], TRAINED['trained_supervised_slow'] = (
    dict(lr=SETTINGS['lr'] / 2), _TRAINED | dict(lr=SETTINGS['lr'] / 8))
# The runs above have 9x9 positions a crop, the paper has 41x41. These have 25x25, on a shorter schedule,
# and their score is that of the last step. Reported are seeds 1 to 3 of every method, on the first split of
# each data set. One option joins them: a threshold for each class, the best of those that were tried on
# vocanimals at 9x9 positions; it was chosen before the first of its runs at 25x25.
_WIDE = dict(stride=8, rate=4, crop=193, warmup=350)
# One type for all runs of a data set. Those of vocanimals began on processors without bfloat16.
WIDE_PRECISION = dict(vocanimals='fp32', camvid='bf16')
WIDE = {f'wide_{name}': _WIDE for name in (*METHODS, CEILING)} | dict(
    wide_per_class=_WIDE | BEYOND['per_class'])
# Two options of chapter 08 that the comparison at equal coverage (tools/quality.py) suggests, against
# CorrMatch as it is: 9x9 positions a crop, the first split of vocanimals, 1500 steps, seeds 1 to 3, scored
# at the end alone. Fixed before the first of these runs; both are reported, whatever comes out.
OPTIONS = {
    'options_corrmatch': {},
    'options_region_fill': dict(region_fill=True),     # confident pixels keep their label
    'options_teacher_half': dict(teacher_pixel=.5)}    # pseudo-labels: mean of prediction and propagated
OPTIONS = {name: dict(precision='fp32') | changes for name, changes in OPTIONS.items()}
CHANGES = PARTS | BEYOND | TRAINED | WIDE | OPTIONS

# Processor seconds a step and a scored image on one thread of a server CPU (AMD EPYC) that other programs
# kept busy; `time` measures those of another machine. Only for the estimate of a plan of which nothing has
# finished yet.
SECONDS = dict(supervised=.07, fixmatch=.16, unimatch=.21, corrmatch=.25, image=.04)


class Job(NamedTuple):
    "One run of the plan."
    data: str
    split: str
    variant: str  # method, or change of corrmatch
    seed: int
    @property
    def name(self): return f'{self.data}_{self.split}_{self.variant}_s{self.seed}'
    @property
    def method(self):
        name = self.variant.removeprefix('trained_').removeprefix('wide_').removesuffix('_slow')
        if name == CEILING:
            return 'supervised'
        return name if name in METHODS else 'corrmatch'


def make_plan(data, seeds=3, stage='all', splits=None, only=()) -> list:
    """All runs, those first that say most: methods before their changes, one seed of everything before the
    next."""
    chosen = {
        name: [split for split in DATA[name]['splits'] if not splits or split in splits] for name in data}
    asked = set(splits or ()) - {split for name in data for split in DATA[name]['splits']}
    if asked:
        raise ValueError(
            f"--splits {asked.pop()}: use some of "
            f"{', '.join(dict.fromkeys(split for name in data for split in DATA[name]['splits']))}")
    stages = dict(
        methods=(*METHODS, CEILING), beyond=tuple(BEYOND), parts=tuple(PARTS), trained=tuple(TRAINED),
        wide=tuple(WIDE), options=tuple(OPTIONS))
    jobs = [
        Job(name, split, variant, seed)
        for s in stages
        if stage == s or stage == 'all' and s not in ('wide', 'options')
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
        for name in data
        for split in chosen[name]
        for variant in stages[s]
        if s != 'options' or name == 'vocanimals'
        if variant in METHODS or split == (DATA[name]['splits'] if variant == CEILING else chosen[name])[0]]
    known = [v for s in stages.values() for v in s]
    unknown = set(only) - {*known}
    if unknown:
        raise ValueError(f"--only {unknown.pop()}: use some of {', '.join(known)}")
    return [j for j in jobs if not only or j.variant in only]


def supervised_steps(steps): return min(WARMUP, steps//2)


def make_config(job, folder, weights, out, steps):
    "The record of a run."
    lists = {k: f'splits/{job.split}/{k}.txt' for k in ('labeled', 'unlabeled')}
    if job.variant.endswith(CEILING):
        lists['labeled'] = 'train.txt'
    # the presets of these folders have a threshold for each class
    papers = {} if 'threshold' in BUNDLES[job.method] else dict(threshold='dynamic')
    changes = (
        SETTINGS
        | papers
        | dict(scale_max=DATA[job.data]['scale_max'], warmup=supervised_steps(steps))
        | CHANGES.get(job.variant, {})
        | (dict(precision=WIDE_PRECISION[job.data]) if job.variant in WIDE else {}))
    eval_every = steps if job.variant in OPTIONS | WIDE else -(-steps // VALIDATIONS)
    return preset(
        job.data, job.method, data=str(folder), weights=str(weights), steps=steps, eval_every=eval_every,
        seed=job.seed, out=str(Path(out) / job.name), **lists, **changes)


# ------------------------------------------------------------------ what the pseudo-labels are worth, before
# and after each propagation

@torch.no_grad()
def pseudo_label_counts(model, source, rows, tau, config, device='cpu', taus=None):
    """Pixels by true class over some images whose hidden masks are known, and what became of their regions.

    Whole unlabeled images in evaluation mode, so that the numbers of different steps and runs are about the
    same pixels. `taus`: a threshold for each class. What the labeled images of a step would say is left out
    of the labels here."""
    counts = defaultdict(lambda: torch.zeros(config.n_classes, dtype=torch.long))
    regions = np.zeros(5, np.int64)
    was_training = model.training
    model.eval()
    for image, mask in eval_pairs(source, device, rows):
        regions += _count_image(counts, model, image, mask.cpu(), tau, config, taus)
    model.train(was_training)
    return dict(counts), dict(
        zip(('drawn', 'accepted', 'correct', 'pixels', 'pixels_correct'), regions.tolist()))


def _count_image(counts, model, image, mask, tau, config, taus):
    "Add the pixels of one image to `counts`; what became of its regions, as _judge_regions has it."
    out = model(image) if isinstance(model, CorrMatchNet) else None
    logits = (
        Variants(teacher_pixel=config.teacher_pixel).teacher(out, image[:0, 0])
        if out
        else model.predict_logits(image))
    label = pseudo_label(logits).cpu()
    conf = confidence(logits).cpu()
    keep = conf >= threshold_of(torch.tensor(tau) if taus is None else taus.cpu(), label)
    judged = mask != IGNORE_INDEX
    def add(name, classes, where):
        counts[name] += torch.bincount(classes[where], minlength=config.n_classes)
    add('ground_truth', mask, judged)
    add('correct', mask, judged & (label == mask))
    stages = [('included', label, keep)]
    decided = 0
    if out:
        add('correct_pixel', mask, judged & (pseudo_label(out.logits_corr).cpu() == mask))
    if out and config.regions:
        after, decided = _after_regions(out, image, mask, label, conf, keep, tau, config)
        stages.append(('after', *after))
    for name, y, kept in stages:
        add(name, mask, judged & kept)                      # pixels of this true class in the loss
        add(f'{name}_correct', mask, judged & kept & (y == mask))
        add(f'{name}_named', y, judged & kept)              # pixels in the loss as this class
    return decided


def _after_regions(out, image, mask, label, conf, keep, tau, config):
    "Labels and kept pixels after region propagation, and what became of the regions."
    n = out.f1.shape[-2]*out.f1.shape[-1]
    index = draw_positions(n, config.regions, torch.Generator().manual_seed(0)).to(image.device)
    rows = correlation_rows(out.f1, out.f2, index)
    shapes = fast_region_maps(rows, out.f1.shape[-2:], image.shape[-2:], config.region_cut).cpu()
    found = 0
    if config.region_votes == 'soft':
        label_out, keep_out = soft_votes(label, conf, keep, shapes, tau**2, config.n_classes)
    else:
        label_out, keep_out, decided = propagate_regions(label, keep, shapes, tau)
        found = _judge_regions(shapes[0], decided[0], mask[0], config.n_classes)
    if config.region_fill:
        label_out = torch.where(keep, label, label_out)
    return (label_out, keep_out), found


def _judge_regions(shapes, decided, mask, k):
    """Drawn, accepted, accepted with the class that most of their pixels have, pixels of accepted ones, and
    how many of these are correct."""
    found = np.array([int(shapes.flatten(1).any(1).sum()), 0, 0, 0, 0])
    for shape, c in zip(shapes, decided.tolist()):
        inside = mask[shape & (mask != IGNORE_INDEX)]
        if c < 0 or not len(inside):
            continue
        found[1:] += (
            1, int(torch.bincount(inside, minlength=k).argmax() == c), len(inside), int((inside == c).sum()))
    return found


class Watched(Trainer):
    "A trainer that also writes at every validation what its pseudo-labels are worth."
    watch, logs = 16, None  # images

    def validate(self):
        "Score, then count."
        confusion = super().validate()
        source = self.sources.unlabeled
        if confusion is None:
            return None  # cut short by a signal
        if source is None:
            source = self.sources.val  # supervised opens no unlabeled list: its counts are of other images
        if not self.watch or not source.has_mask(0):
            return confusion
        rows = np.linspace(0, len(source)-1, min(self.watch, len(source))).round().astype(int).tolist()
        tau = float(self.threshold.tau)
        counts, regions = pseudo_label_counts(
            self.model, source, rows, tau, self.config, self.device, getattr(self.threshold, 'taus', None))
        if self.logs is None:
            self.logs = [CsvLog(self.out/name, self.step) for name in ('pseudo_labels.csv', 'regions.csv')]
        for c, name in enumerate(self.sources.class_names):
            self.logs[0].add(
                step=self.step, tau=round(tau, 5), name=name,
                **{n: int(counts[n][c]) if n in counts else '' for n in COUNTED})
        if regions['drawn']:
            self.logs[1].add(step=self.step, tau=round(tau, 5), **regions)
        return confusion


COUNTED = (
    'ground_truth', 'correct', 'correct_pixel', 'included', 'included_correct', 'included_named', 'after',
    'after_correct', 'after_named')


# ------------------------------------------------------------------ running

class StopFlag:
    "Notices SIGINT and SIGTERM, also one that a trainer took note of in its last step and had no use for."
    def __enter__(self):
        self.read, self.write = os.pipe()
        for fd in (self.read, self.write):
            os.set_blocking(fd, False)
        self.old_fd = signal.set_wakeup_fd(self.write, warn_on_full_buffer=False)
        self.old = signal.signal(signal.SIGTERM, self._stop)
        return self

    def _stop(self, number, frame): raise Stopped(number, f'stopped by signal {number}')

    def check(self):
        "Raise if a signal has come since."
        try:
            numbers = os.read(self.read, 64)
        except BlockingIOError:
            return
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop(number, None)

    def __exit__(self, *error):
        signal.signal(signal.SIGTERM, self.old)
        signal.set_wakeup_fd(self.old_fd)
        os.close(self.read)
        os.close(self.write)


# a loader process that is ended is no reason to stop
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


@contextmanager
def lock(path):
    """Yield whether this process alone holds a file; the system gives it back when the process dies, however
    it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def is_finished(config) -> bool:
    "Is the run of a record there and whole? Raise ValueError if another run is there."
    folder = Path(config.out)
    if run_state(folder)['state'] != 'finished':
        return False
    def plain(record):  # how often a run was scored changes nothing that it learned
        return {
            k: v for k, v in record.items() if k not in ('precision', 'weights', 'eval_every')} | dict(
            weights=Path(record['weights']).name)
    changed = config_changes(
        plain(asdict(Config()) | json.loads((folder / 'config.json').read_text())), plain(asdict(config)))
    if changed:
        raise ValueError(
            f'{folder}: finished with other settings ({"; ".join(changed)}); choose another --out or move '
            'it away')
    return True


def train(config, watch=16):
    "Start a run, or go on with it."
    trainer = Watched(config)
    trainer.watch = watch
    print(trainer.describe(), flush=True)
    trainer.fit(resume=any((trainer.out/name).exists() for name in ('last.pt', 'before.pt')))


def score_test(folder, data_folder, name, device='cpu'):
    "Score best.pt and last.pt of a run on a test list; keep the result in its folder."
    path = Path(folder)/'test.csv'
    if path.exists():
        return
    rows, before = [], None
    for checkpoint in ('best', 'last'):
        model, config = load_run(folder, f'{checkpoint}.pt', device, data=str(data_folder), val=name)
        weights = list(model.state_dict().values())
        if before and all(map(torch.equal, before, weights)):  # the best one is the last one
            rows.append(rows[0] | dict(checkpoint=checkpoint))
            break
        before = weights
        sources = make_datasets(config, only_val=True)
        confusion = evaluate(
            model, eval_pairs(sources.val, device), config.n_classes, config.evaluation, config.crop)
        ious = (100*confusion.iou()).tolist()
        rows.append(
            dict(checkpoint=checkpoint, miou=round(100 * confusion.miou(), 3))
            | {f'iou_{n}': round(v, 3) for n, v in zip(sources.class_names, ious)})
    _write_rows(path, rows)


@torch.no_grad()
def measure_norms(model, images):
    """Measure the batch norm statistics of the trained layers anew: the mean over some batches, all of which
    weigh alike."""
    model.train()  # a frozen backbone stays as it is
    norms = [(m, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    for m, _ in norms:
        m.reset_running_stats()
        m.momentum = None
    for image in images:
        model(image)
    for m, momentum in norms:
        m.momentum = momentum
    return model.eval()


def renorm(folder, data_folder, steps=60) -> dict:
    """Validation scores of a finished run as it is, and with batch norm statistics of nothing but labeled
    crops."""
    model, config = load_run(folder, 'last.pt', data=str(data_folder))
    sources = make_datasets(config)
    device = torch.device('cpu')
    def score():
        return round(
            100
            * evaluate(
                model.eval(), eval_pairs(sources.val), config.n_classes, config.evaluation, config.crop
            ).miou(),
            3)
    batches = make_batches(config, sources)
    as_trained = score()
    measure_norms(model, (to_device(batches[i], device)['image_x'] for i in range(steps)))
    return dict(as_trained=as_trained, labeled_crops=score())


def run_jobs(jobs, config_of, train=train, after=None, say=print) -> list:
    "Do every run that is neither finished nor somebody else's; return (job, reason) of those that failed."
    failed, number = [], len(jobs)
    with StopFlag() as flag:
        for i, job in enumerate(jobs, 1):
            config = config_of(job)
            with lock(Path(config.out).parent/'.locks'/job.name) as mine:
                if not mine:
                    continue
                try:
                    if not is_finished(config):
                        refuse_if_running(config.out)
                        say(f'[{i}/{number}] {job.name}')
                        train(config)
                    if after:
                        after(job, config)
                except (ValueError, OSError, RuntimeError) as e:
                    failed.append((job, str(e).splitlines()[0] if str(e) else type(e).__name__))
                    say(f'[{i}/{number}] {job.name} failed: {failed[-1][1]}')
            gc.collect()
            flag.check()
    return failed


# ------------------------------------------------------------------ how long

def measured_seconds(jobs, config_of) -> dict:
    "Wall seconds a step, validations included, of finished runs, by variant."
    found = defaultdict(list)
    for job in jobs:
        folder = Path(config_of(job).out)
        if run_state(folder)['state'] != 'finished' or not (folder/'metrics.csv').exists():
            continue
        rate = read_csv(folder/'metrics.csv').get('steps_per_s', np.zeros(0))
        if len(rate) and rate[-1] > 0:
            found[job.data, job.variant].append(1/rate[-1])
    return {key: mean_sd(v)[0] for key, v in found.items()}


def estimate(job, steps, known, seconds=SECONDS) -> float:
    "Seconds of a run: as finished runs of its kind, else by the measured step."
    test = 2*DATA[job.data]['images'][1]*seconds['image']
    if (job.data, job.variant) in known:
        return steps*known[job.data, job.variant] + test
    # the mix stream's forward pass; more regions
    factor = {'cutmix_same': 1.15, 'cutmix_other': 1.15, 'regions_512': 1.1}.get(job.variant, 1)
    warm = supervised_steps(steps)
    return (
        warm * seconds['supervised']
        + (steps - warm) * seconds[job.method] * factor
        + VALIDATIONS * (DATA[job.data]['images'][0] + 16 * 2) * seconds['image']
        + test)


def print_plan(jobs, config_of, steps, seconds) -> None:
    "One line a data set, split and variant, then the sums."
    known = measured_seconds(jobs, config_of)
    total = 0.
    left = 0.
    shared = SETTINGS | dict(steps=steps, warmup=supervised_steps(steps), validations=VALIDATIONS)
    print('settings of all runs: ' + ', '.join(f'{k}={v}' for k, v in shared.items()))
    rows = [['data', 'split', 'variant', 'state of each seed', 'hours each', 'changes']]
    for key in dict.fromkeys(j[:3] for j in jobs):
        runs = [j for j in jobs if j[:3] == key]
        states = [run_state(config_of(j).out)['state'].replace('unknown', '-') for j in runs]
        each = estimate(runs[0], steps, known, seconds)/3600
        total += each*len(runs)
        left += each*sum(s != 'finished' for s in states)
        changes = ' '.join(f'{k}={v}' for k, v in CHANGES.get(key[2], {}).items())
        rows.append([*key, ' '.join(states), f'{each:.2f}', changes])
    print(text_table(rows, (0, 1, 2, 3, 5)))
    print(
        f'{len(jobs)} runs, about {total:.1f} core hours, {left:.1f} of them to do: {left / 2:.1f} h for '
        'two runners on two free cores (one thread each)')
    print(
        'hours: by finished runs of the same kind where there are any, else by processor seconds '
        + ', '.join(f'{k} {v}' for k, v in seconds.items()))


def time_steps(config_of, data, steps=3) -> dict:
    "Processor seconds a step of each method and of scoring an image, on one data set."
    seconds = {}
    for method in METHODS:
        trainer = Trainer(
            replace(config_of(Job(data, DATA[data]['splits'][0], method, 0)), warmup=0), quiet=True)
        trainer.model.train()
        took = []
        for i in range(steps + 1):
            before = time.process_time()
            trainer.run_step(trainer.batches[i])
            took.append(time.process_time() - before)
        seconds[method] = round(float(np.median(took[1:])), 2)
    before = time.process_time()
    evaluate(
        trainer.model.eval(), eval_pairs(trainer.sources.val, 'cpu', range(4)), trainer.config.n_classes,
        trainer.config.evaluation, trainer.config.crop)
    return seconds | dict(image=round((time.process_time() - before)/4, 3))


# ------------------------------------------------------------------ collecting

def thin(rows, n=60) -> list:
    "At most n rows, evenly spaced, the first and the last among them."
    if len(rows) <= n:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows)-1, n).round().astype(int)]


# One table a kind, a row for each run, or for each run and step. `set` tells plans with different schedules
# apart, `run` is DATA_SPLIT_VARIANT_sSEED.
KEYS = ('set', 'run')
TABLES = dict(
    runs='settings of each run, and its state',
    scores='mIoU of each validation (list val, at a step) and on the test list (list test, checkpoint '
           'best or last)',
    classes='IoU of each class of the same',
    curves='losses, threshold, coverage and accuracy of pseudo-labels at some sixty steps',
    pseudo_labels='pixels of each class at each validation, before and after region propagation',
    regions='regions drawn, accepted and correct at each validation')


def _read_rows(path):
    with open(path, newline='') as f:
        return list(csv.DictReader(f))


def _write_rows(path, rows):
    "Write rows that may lack some of the columns."
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def run_rows(folder, key) -> dict:
    """The rows that a run folder adds to each table, without a path or a name of this machine; `key`: (set,
    run)."""
    folder, facts = Path(folder), run_state(folder)
    record = json.loads((folder/'config.json').read_text())
    record |= {k: Path(record[k]).name for k in ('data', 'weights', 'out')}
    own = dict(zip(KEYS, key))
    rows = {name: [] for name in TABLES}
    rows['runs'] = [own | {k: facts[k] for k in ('state', 'step', 'best')} | record]
    def scored(path, place, column):
        for row in _read_rows(path) if path.exists() else ():
            where = own | {'list': place, 'at': row[column]}
            rows['scores'].append(where | dict(miou=row['miou']))
            rows['classes'] += [
                where | {'class': name[4:], 'iou': v} for name, v in row.items() if name.startswith('iou_')]
    scored(folder/'val.csv', 'val', 'step')
    scored(folder/'test.csv', 'test', 'checkpoint')
    for name, file in (('curves', 'metrics'), ('pseudo_labels', 'pseudo_labels'), ('regions', 'regions')):
        path = folder/f'{file}.csv'
        found = _read_rows(path) if path.exists() else []
        rows[name] = [own | row for row in (thin(found) if name == 'curves' else found)]
    return rows


def collect_runs(folders, results):
    "Put the rows of finished runs, {(set, run): folder}, in the place of older rows of the same runs."
    results = Path(results)
    results.mkdir(parents=True, exist_ok=True)
    made = {key: run_rows(folder, key) for key, folder in folders.items()}
    for name in TABLES:
        path = results/f'{name}.csv'
        old = _read_rows(path) if path.exists() else []
        rows = [row for row in old if tuple(row[k] for k in KEYS) not in made or row.get('list') in RENORMED]
        rows += [row for found in made.values() for row in found[name]]
        if rows:
            rows.sort(key=lambda row: tuple(row[k] for k in KEYS))  # stable: steps and classes stay in order
            _write_rows(path, rows)


def collect_demos(folders, results):
    "Put the scores of several demos into the tables, and the logs of their CorrMatch runs."
    results = Path(results)
    found = [row for folder in folders for row in _read_rows(Path(folder)/'demo.csv')]
    own = [{'set': 'demo', 'run': f"{row['run']}_s{row['seed']}"} | {'list': 'val', 'at': 'last'}
           for row in found]
    scores = [where | dict(miou=row['miou']) for where, row in zip(own, found)]
    classes = [where | {'class': name, 'iou': value} for where, row in zip(own, found)
               for name, value in row.items() if name not in ('seed', 'run', 'miou')]
    logs = [{'set': 'demo', 'run': f'CorrMatch_s{s}'} | row for s, folder in enumerate(folders)
            for row in _read_rows(Path(folder)/'corrmatch'/'metrics.csv')]
    for name, rows in (('scores', scores), ('classes', classes), ('curves', logs)):
        path = results/f'{name}.csv'
        others = [row for row in _read_rows(path) if row['set'] != 'demo'] if path.exists() else []
        _write_rows(path, sorted([*others, *rows], key=lambda row: tuple(row[k] for k in KEYS)))


# lists of such rows in scores.csv
RENORMED = dict(val_as_trained='as_trained', val_labeled_crops='labeled_crops')


def add_renormed(found, results):
    """Put scores with batch norm statistics measured anew, {(set, run): {as_trained, labeled_crops}}, beside
    the others."""
    path = Path(results)/'scores.csv'
    rows = [
        r for r in _read_rows(path) if r['list'] not in RENORMED or tuple(r[k] for k in KEYS) not in found]
    rows += [dict(zip(KEYS, key)) | {'list': place, 'at': 'last', 'miou': scores[name]}
             for key, scores in found.items() for place, name in RENORMED.items()]
    _write_rows(path, sorted(rows, key=lambda row: tuple(row[k] for k in KEYS)))


def summary(results, chosen='evidence') -> str:
    "Mean and deviation over seeds of the collected runs of one set, by data, split and variant."
    scores = [r for r in _read_rows(Path(results)/'scores.csv') if r['set'] == chosen]
    groups = defaultdict(list)
    for run in dict.fromkeys(r['run'] for r in scores):
        data, *split, variant_seed = run.split('_', 3)
        variant, _, _ = variant_seed.rpartition('_s')
        val = [float(r['miou']) for r in scores if r['run'] == run and r['list'] == 'val']
        test = {r['at']: float(r['miou']) for r in scores if r['run'] == run and r['list'] == 'test'}
        row = max(val), val[-1], test.get('best', math.nan), test.get('last', math.nan)
        groups[data, '_'.join(split), variant].append(row)

    def text(values):
        if any(math.isnan(v) for v in values):
            return ''
        m, sd = mean_sd([float(v) for v in values])
        return f'{m:.2f}' + (f' ± {sd:.2f}' if not math.isnan(sd) else '')
    order = [*METHODS, CEILING, *CHANGES]
    rows = [['data', 'split', 'variant', 'n', 'best', 'last', 'test best', 'test last']]
    for key in sorted(groups, key=lambda k: (k[0], k[1], order.index(k[2]) if k[2] in order else len(order))):
        rows.append([*key, str(len(groups[key])), *map(text, zip(*groups[key]))])
    return text_table(rows, (0, 1, 2))


# ------------------------------------------------------------------ the command line

def add_plan_options(sub):
    "The options that say which runs are meant, and on what data."
    for data in DATA:
        sub.add_argument(
            f'--{data}', type=Path, metavar='DIR',
            help='folder of the data set; without it its runs are left out')
    sub.add_argument('--weights', default='', metavar='FILE', help='ImageNet weights of EfficientNet-lite0')
    sub.add_argument('--out', type=Path, default=Path('runs/evidence'))
    sub.add_argument('--steps', type=int, default=STEPS)
    sub.add_argument('--seeds', type=int, default=3)
    sub.add_argument(
        '--stage', default='all', choices=('methods', 'beyond', 'parts', 'trained', 'wide', 'options', 'all'))
    def words(text): return text.split(',')
    sub.add_argument(
        '--splits', type=words, metavar='LIST',
        help='such as 1_16,1_32; changes of a method take the first one, all labels are for 1_16 alone [all]')
    sub.add_argument(
        '--only', type=words, default=(), metavar='LIST', help='variants, such as corrmatch,no_region')
    sub.add_argument(
        '--watch', type=int, default=16,
        help='unlabeled images whose pseudo-labels are judged at each validation; 0: none')


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    for name in COMMANDS:
        sub = commands.add_parser(name)
        add_plan_options(sub)
        if name in ('time', 'run', 'renorm'):
            sub.add_argument('--threads', type=int, default=1, help='of the processor, for each process [1]')
        if name in ('collect', 'renorm'):
            sub.add_argument('--results', type=Path, default=Path('nbs/results'))
            sub.add_argument(
                '--set', default='evidence',
                help='name of the plan in the tables: evidence, evidence_long, wide')
    sub = commands.add_parser('collect-demo')
    sub.add_argument('demos', type=Path, nargs='+', help='folders of corrmatch demo, one a seed, in order')
    sub.add_argument('--results', type=Path, default=Path('nbs/results'))
    return parser.parse_args(argv)


class Request(NamedTuple):
    "What a command works on."
    args:argparse.Namespace
    folders:dict # data set -> its folder
    jobs:list
    config_of:object # Job -> Config

    def finished(self) -> list:
        "The jobs whose runs have come to their end."
        found = [(job, Path(self.config_of(job).out)) for job in self.jobs]
        return [job for job, out in found
                if (out/'config.json').exists() and is_finished(self.config_of(job))]

    def score_tests(self, job, config):
        "Score the test list, where the data set has one."
        if name := DATA[job.data]['test']:
            score_test(config.out, self.folders[job.data], name)


def time_command(request) -> int:
    timed = request.args.out/'seconds.json'
    timed.parent.mkdir(parents=True, exist_ok=True)
    timed.write_text(json.dumps(time_steps(request.config_of, next(iter(request.folders)))))
    print(timed.read_text())
    return 0


def plan_command(request) -> int:
    timed = request.args.out/'seconds.json'
    seconds = SECONDS | (json.loads(timed.read_text()) if timed.exists() else {})
    print_plan(request.jobs, request.config_of, request.args.steps, seconds)
    return 0


def run_command(request) -> int:
    failed = run_jobs(
        request.jobs, request.config_of, lambda c: train(c, request.args.watch), request.score_tests)
    for job, reason in failed:
        print(f'failed: {job.name}: {reason}')
    left = sum(run_state(request.config_of(job).out)['state'] != 'finished' for job in request.jobs)
    print(f'{len(request.jobs)-left} of {len(request.jobs)} runs finished')
    return int(bool(failed))


def renorm_command(request) -> int:
    found = {}
    for job in request.finished():
        found[job.name] = renorm(request.config_of(job).out, request.folders[job.data])
        print(job.name, found[job.name], flush=True)
    scores = {(request.args.set, name): scores for name, scores in found.items()}
    add_renormed(scores, request.args.results)
    return 0


def collect_command(request) -> int:
    args = request.args
    done = request.finished()
    for job in done:
        request.score_tests(job, request.config_of(job))
    collect_runs({(args.set, job.name): request.config_of(job).out for job in done}, args.results)
    print(summary(args.results, args.set) if done else 'no finished run yet')
    print(f'{len(done)} of {len(request.jobs)} runs are finished and stand in {args.results}')
    return 0


COMMANDS = dict(
    plan=plan_command, time=time_command, run=run_command, collect=collect_command, renorm=renorm_command)


def main(argv=None) -> int:
    args = parse(argv)
    if args.command == 'collect-demo':
        collect_demos(args.demos, args.results)
        return 0
    folders = {name: getattr(args, name) for name in DATA if getattr(args, name)}
    if not folders:
        raise ValueError(f"give a data set: {' or '.join(f'--{name} DIR' for name in DATA)}")
    for name, folder in folders.items():
        if args.command != 'plan' and not folder.is_dir():
            raise ValueError(f'--{name} {folder}: no such folder')
    if args.command in ('time', 'run', 'renorm'):
        torch.set_num_threads(args.threads)
    jobs = make_plan(list(folders), args.seeds, args.stage, args.splits, args.only)
    def config_of(job): return make_config(job, folders[job.data], args.weights, args.out, args.steps)
    return COMMANDS[args.command](Request(args, folders, jobs, config_of))


if __name__ == '__main__':
    os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
    try:
        sys.exit(main())
    except ValueError as e:
        sys.exit(f'evidence: {e}')
    except KeyboardInterrupt as e:
        print(f"evidence: {e or 'interrupted'}; the same command goes on", file=sys.stderr)
        sys.exit(getattr(e, 'code', 130))
