"""Do the features of a backbone follow objects? Measured on real photographs, without any training.

Usage: python tools/follow_objects.py DATA --efficientnet FILE [--resnet18 FILE] [--images 60] [--out
nbs/results/follow_objects.json]

DATA holds `val.txt`, `images/`, `masks/` (or `IMAGE MASK` lines). Of each image the central part is cut to
SIZE x SIZE. For each backbone, stage and seed: mean over images of the mean gain of their positions
(`corrmatch.models.pretrained.follow_gain`) over the class's area (`area`), and over rows of equal distances
among pairs at least APART positions apart (`rings`), the latter also of object positions (class > 0) alone
(`object`). Pretrained weights have no seed, so their spread is over the draw of images alone; each seed
draws other images and another random network. Random networks get batch statistics of the same images, as
in training. Writes numbers only.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from corrmatch.models.backbones import build_backbone, load_pretrained
from corrmatch.models.pretrained import _ring_index, follow_gain, similar_positions
from corrmatch.config import IGNORE_INDEX
from corrmatch.data.folders import FolderSource, read_split
from corrmatch.data.views import normalize

# pixels of the cut; positions a side at which stages are compared (stride 8); positions
SIZE = 257
BINS = 33
APART = 6


def draw_images(source, seed, n):
    "n normalised cuts (n,3,SIZE,SIZE) that show an object, and the class of each position (n,BINS*BINS)."
    images, labels = [], []
    for i in np.random.default_rng(seed).permutation(len(source)):
        image = source.read_image(int(i))
        mask = source.read_mask(int(i))
        scale = SIZE/min(image.size)
        size = [max(SIZE, round(side*scale)) for side in image.size]
        left, top = [(side-SIZE)//2 for side in size]
        box = left, top, left+SIZE, top+SIZE
        mask = np.asarray(mask.resize(size, Image.NEAREST).crop(box))
        label = mask[::8, ::8].ravel()
        if ((label > 0) & (label != IGNORE_INDEX)).mean() < .05:
            continue
        images.append(np.asarray(image.resize(size, Image.BILINEAR).crop(box).convert('RGB')))
        labels.append(label)
        if len(images) == n:
            break
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return normalize(x), torch.from_numpy(np.stack(labels)).long()


def stages(backbone, images, calibrate):
    "Maps of every stage at BINS x BINS positions, image by image."
    if calibrate:
        norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for m in norms:
            m.momentum = None
        backbone.train()
        with torch.no_grad():
            for part in images.split(8):
                backbone(part)
    backbone.eval()
    for image in images.split(1):
        with torch.no_grad():
            yield [
                F.interpolate(c, (BINS, BINS), mode='bilinear', align_corners=True) for c in backbone(image)]


def score(corrs, labels):
    "Mean over images of the mean gain: over area, over rings, over rings at object positions."
    gains = []
    for corr, label in zip(corrs, labels):
        area = follow_gain(corr, label[None])[0]
        rings = follow_gain(corr, label[None], (BINS, BINS), APART)[0]
        gains.append(
            (
                area.nanmean().item(), rings.nanmean().item(),
                rings[(label > 0) & (label != IGNORE_INDEX)].nanmean().item()))
    return np.mean(gains, 0)


def nearness(sigma):
    "A map whose rows depend on distance alone."
    scores = -_ring_index(BINS, BINS).float().square()/(2*sigma**2)
    return scores.fill_diagonal_(-torch.inf).softmax(1)[None]


def measure(nets, images, labels, temperature, seed):
    "Yield (name, gains) for maps of colours, of distances, and of the stages of all networks."
    def rows_of(maps): return (similar_positions(feats, temperature) for feats in maps)
    small = F.interpolate(images, (BINS, BINS), mode='bilinear', align_corners=True)
    yield 'colours', score(rows_of(small.split(1)), labels)
    yield 'distance', score([nearness(2.)]*len(labels), labels)
    for name, weights in nets.items():
        for kind in ('random', 'pretrained'):
            torch.manual_seed(seed)
            net = build_backbone(name, 8)
            if kind == 'pretrained':
                load_pretrained(net, name, weights)
            by_stage = list(zip(*stages(net, images, kind == 'random')))
            for i, maps in enumerate(by_stage[:3 if name == 'resnet18' else 4]):
                yield f'{name} {kind} c{i+1}', score(rows_of(maps), labels)


def summed_up(values):
    "Mean and standard deviation over the seeds of the three gains, by name."
    return {
        f'{name}_{kind}': round(float(x), 2)
        for kind, found in (('mean', np.mean(values, 0)), ('sd', np.std(values, 0, ddof=1)))
        for name, x in zip(('area', 'rings', 'object'), found)}


def arguments():
    "What the command line says."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path)
    parser.add_argument('--efficientnet', help='weights of timm:tf_efficientnet_lite0')
    parser.add_argument('--resnet18', help='weights of resnet18; the last stage may be missing')
    parser.add_argument('--images', type=int, default=60)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--temperature', type=float, default=.1)
    parser.add_argument('--out', type=Path)
    return parser.parse_args()


def main():
    a = arguments()
    source = FolderSource(read_split(a.data/'val.txt', a.data, True))
    nets = {
        name: weights
        for name, weights in (('timm:tf_efficientnet_lite0', a.efficientnet), ('resnet18', a.resnet18))
        if weights}
    found = {}
    for seed in range(a.seeds):
        images, labels = draw_images(source, seed, a.images)
        for key, gains in measure(nets, images, labels, a.temperature, seed):
            percent = [100*float(v) for v in gains]
            found.setdefault(key, []).append(percent)
            print(seed, key, round(percent[1], 1), flush=True)
    rows = {key: summed_up(values) for key, values in found.items()}
    result = dict(
        images=a.images, seeds=a.seeds, temperature=a.temperature, size=SIZE, positions=BINS, apart=APART,
        data=a.data.name, percent=rows)
    print(json.dumps(result, indent=1))
    if a.out:
        a.out.write_text(json.dumps(result, indent=1)+'\n')


if __name__ == '__main__':
    main()
