"""The promised speed-ups: each part of the method against its naive version, on the same input in one run.

  python tools/bench_suite.py [--only regions] [--out nbs/results/bench_cpu.json] [--device cpu]
  python tools/bench_suite.py --steps --device cuda [--out FILE]     whole training steps on a GPU

Each target has one function that returns rows: what was measured, the target, and whether it was reached.
A ratio is naive over ours, so larger is better; a limit is a number that should stay below its target.
The whole suite takes half an hour. The chapter on benchmarks shows the stored results.
"""
import argparse
import copy
import itertools
import os
import subprocess
import sys
import tempfile
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from corrmatch.config import IGNORE_INDEX, preset
from corrmatch.data.batches import CachedSource, StepBatches, _keep_memory, labeled_batch, unlabeled_batch
from corrmatch.data.folders import LABELED, FolderSource, Pair, read_pair, rng_for
from corrmatch.data.toy import toy_arrays
from corrmatch.data.views import apply_strong, apply_view, cutmix_box, draw_strong, draw_view, normalize
from corrmatch.engine.regions import FAST_REGIONS, fast_region_targets
from corrmatch.method.pixel import resize
from corrmatch.method.region import draw_positions, propagate_regions, region_maps
from corrmatch.method.step import train_step
from corrmatch.method.threshold import DynamicThreshold, FixedThreshold
from corrmatch.models.backbones import _PaddedConv, build_backbone
from corrmatch.models.corrmatch_net import CorrMatchNet
from corrmatch.models.deeplab import drop_channels, make_backbone
from corrmatch.training.builders import (
    autocast, make_batches, make_model, make_optimizer, make_datasets, make_threshold, make_weights,
    pick_precision, prepare_model, set_lr, to_device)
from corrmatch.training.metrics import evaluate
from corrmatch.use.bench import (
    _extra_peak, _large_pages, limits, machine, measure, _pixel_jobs, _region_case, _store_result)


# ------------------------------------------------------------------ naive versions: the method line by line


def naive_pixels(
    f1:Tensor,     # (b,k,h',w') query side
    f2:Tensor,     # (b,k,h',w') key side
    logits:Tensor, # (b,k,h,w) at full size
)->tuple:          # propagated logits (b,k,h,w) and the map (b,p,q)
    "Propagate along a correlation map that is held whole."
    corr = ((f1.flatten(2).transpose(1, 2) @ f2.flatten(2))/f1.shape[1]**.5).softmax(-1)
    small = resize(logits.detach(), f1.shape[2:])
    return resize((small.flatten(2) @ corr).view_as(small), logits.shape[2:]), corr


def _naive_pass(model, image, perturb, index):
    "Features, decoder, whole correlation map and the regions of all images."
    (c1, c4), n, size = model.features(image), len(image), image.shape[2:]
    both = [torch.cat([c, drop_channels(c)]) for c in (c1, c4)] if perturb else (c1, c4)
    logits = resize(model.decode(*both), size)
    f1, f2 = model.corr(model.proj(c4))
    logits_corr, corr = naive_pixels(f1, f2, logits[:n])
    return logits[:n], logits[n:], logits_corr, region_maps(corr.detach()[:, index], f1.shape[2:], size)


def _naive_terms(passes, targets, mask_x, tau):
    "The seven losses, each as section 6 of the method has it."
    ((z, z_fp, z_corr, _), (z_s, _, z_corr_s, _)), n = passes, len(mask_x)
    probs_w, conf_w, label_w, valid_w, label_u, keep, keep_out, valid_u = targets
    def ce(logits, label): return F.cross_entropy(logits, label, reduction='none')
    def mean(loss, where, valid): return (loss*where).sum()/valid.sum()
    keep_w = (conf_w >= tau) & valid_w
    return dict(
        x=F.cross_entropy(z[:n], mask_x, ignore_index=IGNORE_INDEX),
        x_corr=F.cross_entropy(z_corr[:n], mask_x, ignore_index=IGNORE_INDEX),
        s=mean(ce(z_s, label_u), keep_out, valid_u), s_corr=mean(ce(z_corr_s, label_u), keep_out, valid_u),
        w_corr=mean(ce(z_corr[n:], label_w), keep_w, valid_w),
        kl=mean(F.kl_div(z_s.log_softmax(1), probs_w, reduction='none').sum(1), keep, valid_u),
        fp=mean(ce(z_fp[n:], label_w), keep_w, valid_w))


def naive_step(
    model:nn.Module,     # CorrMatchNet in training mode
    batch:dict,          # from to_device, with a mix stream and one strong view
    weights,             # LossTerms
    threshold:DynamicThreshold|FixedThreshold, # updated in place
    index:Tensor,        # (m,) positions whose rows become regions
)->tuple:                # total and dict of terms
    "One step as section 4 of the method lists it: nothing skipped, nothing shared, everything in float32."
    n, box = len(batch['image_x']), batch['box_u'][0]
    with torch.no_grad():
        logits_mix = model.eval()(batch['image_mix_w'], correlate=False).logits
    strong = torch.where(box[:, None], batch['image_mix_s'][0], batch['image_u_s'][0])
    weak = _naive_pass(model.train(), torch.cat([batch['image_x'], batch['image_u_w']]), True, index)
    passes = weak, _naive_pass(model, strong, False, index)
    probs_w = weak[0][n:].detach().softmax(1)
    own = *probs_w.max(1), batch['valid_u']
    conf_u, label_u, valid_u = [
        torch.where(box, m, o) for m, o in zip((*logits_mix.softmax(1).max(1), batch['valid_mix']), own)]
    tau = threshold.update(own[0], own[1], valid_u)
    keep = (conf_u >= tau) & valid_u
    regions = weak[3][n:] & (valid_u & ~box)[:, None]
    label_u, keep_out, _ = propagate_regions(label_u, keep, regions, tau)
    terms = _naive_terms(passes, (probs_w, *own, label_u, keep, keep_out, valid_u), batch['mask_x'], tau)
    return sum(getattr(weights, name)*t for name, t in terms.items()), terms


def naive_views(
    source,                  # FolderSource
    index:int,               # of the image
    rng:np.random.Generator, # of its draws
    crop:int,                # pixels
    strong:bool=True,        # also the strong view and the CutMix box
)->list:                     # float views, valid pixels, box
    "Make the views of one image as a naive loader does: decode, resize all of it, crop, jitter, make floats."
    image, mask = read_pair(source, index)
    # 254 marks padding
    weak, weak_mask = apply_view(image, mask, draw_view(rng, image.size, crop), crop, 254)
    views = [weak] + ([apply_strong(weak, draw_strong(rng))] if strong else [])
    floats = [normalize(torch.from_numpy(np.array(view)).movedim(-1, -3)) for view in views]
    return [*floats, np.array(weak_mask) == 254, cutmix_box(crop, rng) if strong else None]


@torch.no_grad()
def naive_evaluate(
    model:nn.Module,    # in eval mode
    pairs,              # images (b,3,h,w) and masks (b,h,w)
    n_classes:int,      # k
    mode:str='whole',   # whole | slide
    crop:int|None=None, # pixels, side of a window
)->np.ndarray:          # (k,3) intersection, prediction and mask pixels of each class
    "One image and one window at a time; probabilities at full size, counts on the host."
    counts = np.zeros((n_classes, 3), np.int64)
    for image, mask in pairs:
        if mode == 'whole':
            label = model(image.contiguous()).logits.softmax(1).argmax(1)
        else:
            step = int(2/3*crop)
            total = torch.zeros(len(image), n_classes, *image.shape[2:], device=image.device)
            for y in range(0, image.shape[2], step):
                for x in range(0, image.shape[3], step):
                    probs = model(image[..., y:y+crop, x:x+crop].contiguous()).logits.softmax(1)
                    total += F.pad(
                        probs,
                        (x, image.shape[3] - x - probs.shape[3], y, image.shape[2] - y - probs.shape[2]))
            label = total.argmax(1)
        label, mask = label.cpu().numpy(), mask.cpu().numpy()
        valid = mask != IGNORE_INDEX
        for c in range(n_classes):
            counts[c] += [((label == c) & (mask == c)).sum(), ((label == c) & valid).sum(), (mask == c).sum()]
    return counts


# ------------------------------------------------------------------ targets


TARGETS = {  # name -> (kind, target, unit)
    'regions_many_vs_reference': ('ratio', 20, 'x'), 'regions_few_vs_reference': ('ratio', 20, 'x'),
    'regions_many_vs_naive': ('ratio', 8, 'x'), 'regions_few_vs_naive': ('ratio', 8, 'x'),
    'regions_memory': ('limit', 64, 'MB'),
    'pixels_time': ('ratio', 1, 'x'), 'pixels_memory': ('ratio', 16, 'x'),
    'pixels_gradient': ('limit', 1e-5, 'abs'), 'pixels_201': ('limit', 600, 's'),
    'data_labeled': ('ratio', 3, 'x'), 'data_unlabeled': ('ratio', 3, 'x'), 'data_step': ('ratio', 3, 'x'),
    'import': ('limit', 200, 'ms'), 'help': ('limit', 500, 'ms'),
    'evaluate_whole': ('ratio', 1.5, 'x'), 'evaluate_slide': ('ratio', 1.5, 'x'),
    'curve_bf16': ('limit', 1, 'of seed std'), 'step_auto': ('ratio', 2, 'x'), 'step_fp32': ('ratio', 1, 'x'),
    'step_auto_in_batch': ('ratio', 2, 'x'), 'step_memory': ('ratio', 1, 'x'),
    'backbone_wide_padding': ('ratio', 1.5, 'x')}


SIZES = {  # what the suite runs on; 'tiny' only shows that it runs
    'full': dict(
        side=41, b=4, m=128, long=101, far=201, views=(375, 500), crop=321, backbone='resnet101_deep',
        rounds=5, steps=50, seeds=3),
    'tiny': dict(
        side=9, b=2, m=8, long=13, far=17, views=(60, 80), crop=33, backbone='toynet', rounds=2, steps=3,
        seeds=2)}


def _row(name, value, calls=1, **details):
    "One line of the suite."
    kind, target, unit = TARGETS[name]
    reached = value >= target if kind == 'ratio' else value <= target
    return dict(
        name=name, kind=kind, target=target, value=float(value), unit=unit, reached=bool(reached),
        calls=calls, **details)


def _ratio(name, took, naive, ours):
    "The line of two jobs that took turns; its processor times tell what other programs did to the ratio."
    a, b = took[naive], took[ours]
    return _row(
        name, a['wall'] / b['wall'], b['calls'], naive_s=a['wall'], ours_s=b['wall'],
        ratio_cpu=a['cpu'] / max(b['cpu'], 1e-9))


def suite_regions(
    size:dict,        # of SIZES
    device:str='cpu', # where to run
)->list:              # rows
    "Region maps and votes, when most regions are accepted and when none is."
    rows = []
    for accepted in ('many', 'few'):
        c = _region_case(accepted, size['b'], size['side'], size['m'], device=device)
        def naive(times=1):
            maps = [region_maps(c['rows'], c['side'], c['size']) for _ in range(times)][0]
            propagate_regions(c['label'], c['keep'], maps & c['within'][:, None], .85)
        def ours():
            fast_region_targets(c['rows'], c['side'], c['label'], c['keep'], c['within'], .85, n_classes=21)
        took = measure(
            dict(reference=partial(naive, 3), naive=naive, ours=ours), size['rounds'], device)
        rows += [
            _ratio(f'regions_{accepted}_vs_{other}', took, other, 'ours')
            for other in ('reference', 'naive')]
    tracemalloc.start()
    ours()
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return [*rows, _row('regions_memory', (_extra_peak(ours, device) + numpy_peak)/2**20)]


def suite_pixels(
    size:dict,        # of SIZES
    device:str='cpu', # where to run
)->list:              # rows
    "Memory, time and gradients of pixel propagation."
    small = _pixel_jobs(size['side'], 1, device=device)
    jobs = _pixel_jobs(size['long'], size['b'], device=device)
    off = max((x - y).abs().max().item() for x, y in zip(small['whole'](), small['chunked']()))
    whole, chunked = [_extra_peak(jobs[name], device) for name in ('whole', 'chunked')]
    took = measure(jobs, min(3, size['rounds']), device, 300)
    far = measure(dict(far=_pixel_jobs(size['far'], 1, device=device)['chunked']), 1, device)['far']
    return [
        _ratio('pixels_time', took, 'whole', 'chunked'),
        _row('pixels_memory', whole / chunked, naive_mib=whole / 2**20, ours_mib=chunked / 2**20),
        _row('pixels_gradient', off), _row('pixels_201', far['wall'])]


def _data_job(source, ours, half, fast, n):
    "Make a function that returns the next batch of a stream, or of a whole step."
    steps = itertools.count()
    stream = replace(ours, partner='none', labeled=source)
    def views(labeled, unlabeled):
        rng = rng_for(0, LABELED, next(steps), 0)
        return [
            naive_views(source, i % n, rng, ours.crop, strong)
            for strong in [False] * labeled + [True] * unlabeled
            for i in range(n)]
    if not fast:
        return partial(views, *dict(labeled=(1, 0), unlabeled=(0, 1), step=(1, 2))[half])
    if half == 'step':
        return lambda: ours[next(steps)]
    if half == 'labeled':
        return lambda: labeled_batch(ours, ours.order_x, next(steps))
    return lambda: unlabeled_batch(stream, stream.order_u, None, next(steps))


def suite_data(
    size:dict,        # of SIZES
    device:str='cpu', # not used: views are made on the host
)->list:              # rows
    "The naive PIL pipeline against ours, per image and core."
    _keep_memory()  # for both
    (h, w), n = size['views'], 8
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for i, (image, mask) in enumerate(zip(*toy_arrays(range(n), max(h, w)))):
            files = Path(folder)/f'{i}.jpg', Path(folder)/f'{i}.png'
            Image.fromarray(image[:h, :w]).save(files[0], quality=90)
            Image.fromarray(mask[:h, :w]).save(files[1])
            pairs.append(Pair(*files, str(i)))
        source = FolderSource(pairs)
        # as in training: the few labeled images are decoded once
        ours = StepBatches(CachedSource(source), source, size['crop'], n, n, 0)
        jobs = {
            (half, fast): _data_job(source, ours, half, fast, n)
            for half in ('labeled', 'unlabeled', 'step')
            for fast in (False, True)}
        took = measure(jobs, 4*size['rounds'])
    return [
        _ratio(f'data_{half}', took, (half, False), (half, True))
        | dict(ours_ms_an_image=1000 * took[half, True]['wall'] / n)
        for half in ('labeled', 'unlabeled', 'step')]


def suite_backbone(
    size:dict,        # of SIZES
    device:str='cpu', # where to run
)->list:              # rows
    "A pass of lite0 at an output stride of 8, with its wide padding apart and as timm builds it."
    ours = build_backbone('lite0', 8).to(device, memory_format=torch.channels_last).eval()
    plain = copy.deepcopy(ours)
    for layer in plain.modules():
        if isinstance(layer, _PaddedConv):
            layer.__class__ = nn.Conv2d
    image = torch.rand(size['b'], 3, size['crop'], size['crop'], device=device)
    with torch.inference_mode():
        last = plain(image)[-1]
        off = ((ours(image)[-1] - last).abs().max() / last.abs().max()).item()
        took = measure(
            dict(plain=partial(plain, image), ours=partial(ours, image)), size['rounds'], device)
    return [_ratio('backbone_wide_padding', took, 'plain', 'ours') | dict(difference=off)]


def suite_start(
    size:dict,        # of SIZES
    device:str='cpu', # not used
)->list:              # rows
    "Milliseconds of `import corrmatch` beyond an empty Python, and of `corrmatch --help`."
    env = os.environ | dict(PYTHONPATH=str(Path(str(sys.modules['corrmatch'].__file__)).parents[1]))
    def run(*command):
        return partial(subprocess.run, [sys.executable, *command], check=True, capture_output=True, env=env)
    took = measure(
        dict(empty=run('-c', ''), load=run('-c', 'import corrmatch'), help=run('-m', 'corrmatch', '--help')),
        2 * size['rounds'] + 1)
    return [
        _row('import', 1000 * (took['load']['wall'] - took['empty']['wall']), took['load']['calls']),
        _row('help', 1000 * took['help']['wall'], took['help']['calls'])]


def _network(size, device):
    "The network of the suite, in the layout it was made in."
    torch.manual_seed(0)
    return CorrMatchNet(make_backbone(size['backbone'], 8), 21).to(device)


def _step_batch(size, device, in_batch=False):
    "Random views of one step, laid out as the batches are."
    g = torch.Generator().manual_seed(0)
    n = size['b']
    c = size['crop']
    def views(*lead): return torch.randn(*lead, c, c, 3, generator=g).movedim(-1, -3).to(device)
    box = torch.zeros(1, n, c, c, dtype=torch.bool)
    box[:, ::2, c//4:c//2, c//4:c//2] = True
    valid = torch.ones(n, c, c, dtype=torch.bool)
    mask = torch.randint(21, (n, c, c), generator=g)
    batch = dict(
        image_x=views(n), mask_x=mask.to(device), image_u_w=views(n), image_u_s=views(1, n),
        valid_u=valid.to(device), box_u=box.to(device))
    return (
        batch
        if in_batch
        else batch | dict(image_mix_w=views(n), image_mix_s=views(1, n), valid_mix=batch['valid_u']))


def suite_evaluate(
    size:dict,        # of SIZES
    device:str='cpu', # where to run
)->list:              # rows
    "Whole images and sliding windows; the network is laid out anew in every call of ours."
    (h, w), model, rows = size['views'], _network(size, device).eval(), []
    g = torch.Generator().manual_seed(0)
    pairs = [
        (
            torch.randn(1, h, w, 3, generator=g).permute(0, 3, 1, 2).to(device),
            torch.randint(21, (1, h, w), generator=g).to(device))
        for _ in range(6)]
    for mode in ('whole', 'slide'):
        some = pairs if mode == 'whole' else pairs[:2]
        crop = size['crop']*2//3
        took = measure(
            dict(
                naive=lambda: naive_evaluate(model, some, 21, mode, crop),
                ours=lambda: evaluate(model, some, 21, mode, crop)),
            min(3, size['rounds']),
            device,
            240)
        rows.append(_ratio(f'evaluate_{mode}', took, 'naive', 'ours'))
    return rows


def _our_step(model, optimizer, batch, dtype, device):
    "Forward, backward and update."
    with autocast(device, dtype):
        result = train_step(
            model, batch, make_weights(preset('voc_92')), FixedThreshold(0.06).to(device),
            generator=torch.Generator().manual_seed(0), ops=FAST_REGIONS)
    optimizer.zero_grad()
    result.total.backward()
    optimizer.step()


def _naive_update(model, optimizer, batch):
    "The same for the naive step."
    n = batch['image_x'].shape[2]//8 + 1
    total, _ = naive_step(
        model, batch, make_weights(preset('voc_92')), FixedThreshold(0.06).to(batch['image_x'].device),
        draw_positions(n * n, 128, torch.Generator().manual_seed(0)))
    optimizer.zero_grad()
    total.backward()
    optimizer.step()


def suite_step(
    size:dict,        # of SIZES
    device:str='cpu', # where to run
)->list:              # rows
    "A whole training step; naive and ours in blocks, because both together would not fit into memory."
    model = _network(size, device).train()
    rounds = min(2, size['rounds'])
    config = preset('voc_92')
    naive = _step_batch(size, device)
    batch = _step_batch(size, device)
    naive = {k: v.contiguous() for k, v in naive.items()}
    sgd = torch.optim.SGD(model.parameters(), config.lr, momentum=.9, weight_decay=1e-4)
    job = partial(_naive_update, model, sgd, naive)
    peaks = [_extra_peak(job, device)]
    took = measure(dict(naive=job), rounds, device, 600, warm=0)
    model, sgd = prepare_model(model, config, device), make_optimizer(model, config)
    dtype = pick_precision('auto', device, model)
    lone = _step_batch(size, device, in_batch=True)
    jobs = dict(
        fp32=partial(_our_step, model, sgd, batch, None, device),
        auto=partial(_our_step, model, sgd, batch, dtype, device),
        in_batch=partial(_our_step, model, sgd, lone, dtype, device))
    peaks.append(_extra_peak(jobs['auto'], device))
    took |= measure(jobs, rounds, device, 600)
    rows = [
        _ratio(name, took, 'naive', mine)
        for name, mine in (('step_fp32', 'fp32'), ('step_auto', 'auto'), ('step_auto_in_batch', 'in_batch'))]
    return [row | dict(auto=str(dtype)) for row in rows] + [
        _row('step_memory', peaks[0] / peaks[1], naive_gib=peaks[0] / 2**30, ours_gib=peaks[1] / 2**30)]


def loss_curve(
    seed:int,               # of weights and draws
    dtype:torch.dtype|None, # of the convolutions
    steps:int=50,           # to run
)->list:                    # totals
    "Train the toy network for a while."
    config = preset('toy', seed=seed, steps=steps, warmup=0, toy_unlabeled=40)
    batches = make_batches(config, make_datasets(config))
    model = make_model(config)[0].train()
    sgd = make_optimizer(prepare_model(model, config, 'cpu'), config)
    guard = make_threshold(config)
    totals = []
    for step in range(steps):
        torch.manual_seed(step)
        set_lr(sgd, step, steps)
        with autocast('cpu', dtype):
            result = train_step(
                model, to_device(batches[step], torch.device('cpu')), make_weights(config), guard,
                regions=config.regions, cut=config.region_cut, generator=torch.Generator().manual_seed(step),
                kl_inside=config.kl_inside, ops=FAST_REGIONS)
        sgd.zero_grad()
        result.total.backward()
        sgd.step()
        totals.append(result.total.detach())
    return torch.stack(totals).tolist()


def suite_curve(
    size:dict,        # of SIZES
    device:str='cpu', # not used: the toy world runs on the CPU
)->list:              # rows
    "Distance of float32 and bfloat16 at the end of short runs, in units of the spread over seeds."
    curves = {
        (seed, name): loss_curve(seed, dtype, size['steps'])
        for seed in range(size['seeds'])
        for name, dtype in (('fp32', None), ('bf16', torch.bfloat16))}
    last = {key: np.mean(curve[-10:]) for key, curve in curves.items()}
    apart = np.mean([abs(last[s, 'bf16'] - last[s, 'fp32']) for s in range(size['seeds'])])
    spread = np.std([last[s, 'fp32'] for s in range(size['seeds'])], ddof=1)
    return [
        _row(
            'curve_bf16', apart / spread, size['seeds'],
            curves={f'{s}_{n}': c for (s, n), c in curves.items()})]


SUITE = dict(
    regions=suite_regions, pixels=suite_pixels, data=suite_data, start=suite_start, evaluate=suite_evaluate,
    curve=suite_curve, step=suite_step, backbone=suite_backbone)


def _line(row):
    "One row as text."
    name = row['name']
    mark = 'reached' if row['reached'] else 'NOT reached'
    sign = '>=' if row['kind'] == 'ratio' else '<='
    return (
        f"{name:28} {row['value']:10.4g} {row['unit']:12} target {sign} {row['target']:<6g} {mark:12} "
        f"median of {row['calls']}")


def run_suite(
    device:str='cpu', # cpu | cuda | cuda:N
    only:str='',      # a part: regions, pixels, data, start, evaluate, curve, step or backbone; empty: all
    out:str='',       # JSON file to write; an existing one keeps its other rows
    size:str='full',  # full | tiny
    say=print,        # called with each line
)->dict:              # machine, rows
    "Measure every promise and print one line each."
    if only and only not in SUITE:
        raise ValueError(f"only='{only}': use one of {', '.join(SUITE)}")
    _large_pages()
    result:dict = dict(machine=machine(device), size=size, rows=[])
    say(f"{result['machine']}")
    for name, part in SUITE.items():
        if only not in ('', name):
            continue
        say(f'... {name}')
        rows = [
            row | dict(part=name, torch=result['machine']['torch']) for row in part(SIZES[size], device)]
        for row in rows:
            say(_line(row))
        result['rows'] += rows
        if out:
            _store_result(out, 'suite', result)
    return result


def gpu_steps(
    crop:int=321,        # pixels
    b:int=8,             # labeled and unlabeled images, each
    device:str='cuda',   # where to run
    kinds=('naive fp32', 'bf16', 'bf16 compiled'), # what to time
    backbone:str='resnet101_deep', # of make_backbone
    rounds:int=10,       # timed steps
)->list:                 # one dict a kind
    "Steps a second, operations and memory of whole training steps."
    rows = []
    size = dict(SIZES['full'], crop=crop, b=b, backbone=backbone)
    for kind in kinds:
        model = _network(size, device).train()
        config = preset('voc_92', compile='compiled' in kind)
        batch = _step_batch(size, device)
        if kind == 'naive fp32':
            job = partial(
                _naive_update, model, torch.optim.SGD(model.parameters(), 0.001, momentum=0.9),
                {n: t.contiguous() for n, t in batch.items()})
        else:
            job = partial(
                _our_step, prepare_model(model, config, device), make_optimizer(model, config), batch,
                torch.bfloat16 if 'bf16' in kind else None, device)
        job()
        with FlopCounterMode(display=False) as counter:
            job()
        took = measure(dict(job=job), rounds, device, 30)['job']
        peak = _extra_peak(job, device)
        rows.append(
            dict(
                kind=kind, crop=crop, batch=b, steps_s=1 / took['wall'], operations=counter.get_total_flops(),
                peak_gib=peak / 2**30, calls=took['calls']))
    return rows


def gpu_table(
    device:str='cuda', # where to run
    say=print,         # called with each line
)->list:               # rows of gpu_steps, with the share of the measured rate
    "Whole steps at crop 321 and 801, and the largest batch at 801 that fits."
    rate = limits(device, 8192)
    rows = gpu_steps(device=device) + gpu_steps(801, 2, device, ('bf16', 'bf16 compiled'))
    b = 2
    while True:
        try:
            more = gpu_steps(801, 2*b, device, ('bf16',))
        except torch.OutOfMemoryError:
            break
        b, rows = 2*b, rows + more
    for row in rows:
        row['share'] = row['operations']*row['steps_s']/rate['fp32' if 'fp32' in row['kind'] else 'bf16']
        say(
            f"{row['kind']:15} crop {row['crop']} {row['batch']}+{row['batch']}: {row['steps_s']:.2f} "
            f"steps/s, {row['share']:.0%} of the measured rate, {row['peak_gib']:.1f} GiB")
    return rows


def main():
    "Read the command line and measure."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu', help='cpu | cuda | cuda:N')
    parser.add_argument('--only', default='', choices=['', *SUITE], help='one part of the suite')
    parser.add_argument('--size', default='full', choices=list(SIZES), help='tiny only shows that it runs')
    parser.add_argument('--steps', action='store_true', help='whole training steps on a GPU instead')
    parser.add_argument('--out', default='', help='JSON file to write; other results in it are kept')
    args = parser.parse_args()
    if args.steps:
        rows = [row | dict(part='steps') for row in gpu_table(args.device)]
        if args.out:
            _store_result(args.out, 'steps', dict(machine=machine(args.device), rows=rows))
    else:
        run_suite(args.device, args.only, args.out, args.size)


if __name__ == '__main__':
    main()
