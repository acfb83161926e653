"""Compare the pseudo-labels of a run at equal coverage, on unlabeled images whose masks are known but were
not used.

Usage: python tools/quality.py RUN [--data DIR] [--images 50] [--tau 0.85] [--figure FILE.png]
       [--results nbs/results]

Prints coverage and accuracy of prediction, propagated scores and their mean, what regions add and rewrite,
and what a lower threshold would add instead (corrmatch.training.quality). Without --tau the threshold of the
run's end is taken.
"""
import argparse
import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from corrmatch.files import text_table, write_atomic
from corrmatch.models.corrmatch_net import CorrMatchNet
from corrmatch.training.builders import eval_pairs, make_datasets
from corrmatch.training.quality import draw_quality, label_quality
from corrmatch.training.run_folder import read_csv
from corrmatch.training.trainer import load_run


def measure(run: Path, data: str = '', images: int = 50, tau: float | None = None, device: str = 'cpu'):
    "LabelQuality of a run folder on evenly spaced images of its unlabeled list."
    model, config = load_run(run, 'last.pt', device, **(dict(data=data) if data else {}))
    if not isinstance(model, CorrMatchNet):
        raise ValueError(f'{run}: method={config.method} has no correlation map; choose a run of corrmatch')
    source = make_datasets(replace(config, labeled=config.labeled)).unlabeled
    rows = np.linspace(0, len(source)-1, min(images, len(source))).round().astype(int).tolist()
    known = [i for i in rows if source.has_mask(i)]
    if not known:
        raise ValueError(f'{run}: none of its unlabeled images has a mask to judge by')
    if tau is None:
        tau = float(read_csv(Path(run)/'metrics.csv')['tau'][-1])
    return label_quality(
        model, eval_pairs(source, device, known), config.n_classes, tau, config.regions or 128,
        config.region_cut)


def keep(path: Path, run: str, quality):
    "Put the rows of a run into a table, in place of older ones."
    old = []
    if path.exists():
        with open(path, newline='') as file:
            old = [row for row in csv.DictReader(file) if row['run'] != run]
    rows = [
        dict(run=run, what=what, coverage=coverage, accuracy=accuracy)
        for what, coverage, accuracy in quality.table()]
    rows += [
        dict(run=run, what=f'mIoU, {name}', coverage=1.0, accuracy=score)
        for name, score in quality.scores.items()]
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, ['run', 'what', 'coverage', 'accuracy'], lineterminator='\n')
    writer.writeheader()
    writer.writerows([*old, *rows])
    write_atomic(path, text.getvalue().encode())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path)
    parser.add_argument('--data', default='', help='data folder, if it has moved since the run')
    parser.add_argument('--images', type=int, default=50)
    parser.add_argument('--tau', type=float)
    parser.add_argument('--figure', type=Path)
    parser.add_argument('--results', type=Path, help='folder whose quality.csv takes the rows of this run')
    args = parser.parse_args()
    torch.set_num_threads(1)
    quality = measure(args.run, args.data, args.images, args.tau)
    rows = [('', 'coverage', 'accuracy')]
    rows += [(what, f'{coverage:.1%}', f'{accuracy:.1%}') for what, coverage, accuracy in quality.table()]
    print(text_table(rows))
    print(', '.join(f'{name} {score:.1%} mIoU' for name, score in quality.scores.items()))
    if args.results:
        keep(args.results/'quality.csv', args.run.resolve().name, quality)
    if args.figure:
        draw_quality(quality, args.run.name).savefig(args.figure)


if __name__ == '__main__':
    main()
