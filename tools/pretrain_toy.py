"""Pretrain the small backbone that the demo starts from, on the toy module's *other* world.

Usage: python tools/pretrain_toy.py --out corrmatch/assets/toynet.pth [--steps 6500] [--images 3000]

The other world has fourteen textures, none of which occurs in the demo's world. The network learns to tell
them apart; its backbone is kept, in half precision (0.6 MB). About ten minutes on one CPU core.
"""
import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from corrmatch.config import preset
from corrmatch.data.folders import ArraySource
from corrmatch.method.losses import supervised_ce
from corrmatch.training.metrics import evaluate
from corrmatch.training.builders import eval_pairs, make_model, make_optimizer, set_lr, to_device
from corrmatch.data.toy import _OTHER_TEXTURES, toy_arrays
from corrmatch.files import write_atomic
from corrmatch.training.trainer import _step_seed
from corrmatch.data.batches import StepBatches, make_loader


def source(first, n, size, n_classes):
    "Scenes of the other world."
    images, masks = toy_arrays(
        range(first, first + n), size, n_classes=n_classes, textures=_OTHER_TEXTURES, spread=0.3)
    return ArraySource(images, masks)


def train(config, images, steps):
    "The network of a configuration after so many labeled steps."
    batches = StepBatches(
        images, None, config.crop, config.batch_x, 0, config.seed, (config.scale_min, config.scale_max))
    model = make_model(config)[0].train()
    optimizer = make_optimizer(model, config)
    for step, batch in enumerate(tqdm(make_loader(batches, 0, steps), total=steps)):
        torch.manual_seed(_step_seed(config.seed, step))
        set_lr(optimizer, step, steps)
        batch = to_device(batch, torch.device('cpu'))
        loss = supervised_ce(model(batch['image_x']).logits, batch['mask_x'])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='file to write')
    parser.add_argument('--steps', type=int, default=6500, help='training steps of 16 images [6500]')
    parser.add_argument('--images', type=int, default=3000, help='training scenes [3000]')
    parser.add_argument('--seed', type=int, default=0, help='of weights and draws [0]')
    args = parser.parse_args()
    n_classes = len(_OTHER_TEXTURES)+1
    config = preset(
        'toy', 'supervised', n_classes=n_classes, stride=8, rate=1, weights='', lr=0.05, lr_multi=1.0,
        batch_x=16, seed=args.seed)
    images = source(500_000, args.images, config.crop, n_classes)
    held_out = source(900_000, 100, config.crop, n_classes)
    model = train(config, images, args.steps)
    confusion = evaluate(model, eval_pairs(held_out, batch=20), n_classes)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.backbone.state_dict().items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, lambda p: torch.save(state, p))
    print(
        f'{args.out}: {args.out.stat().st_size / 1e6:.2f} MB; mIoU on held-out scenes of the other world '
        f'{100 * confusion.miou():.1f}')


if __name__ == '__main__':
    main()
