"""Compare the pseudo-labels of a run at equal coverage, on unlabeled images whose masks are known but were
not used.

Usage: python tools/quality.py RUN [--data DIR] [--images 50] [--tau 0.85] [--figure FILE.png] [--val]
       [--results nbs/results]

With --val also the scores of the validation list, as `corrmatch eval RUN --checkpoint last --propagated HOW`
gives them. Prints coverage and accuracy of prediction, propagated scores and their mean, what regions add
and rewrite, and what a lower threshold would add instead (corrmatch.training.quality). Without --tau the
threshold of the run's end is taken.
"""
import argparse
import csv
import io
from pathlib import Path

import torch

from corrmatch.files import text_table, write_atomic
from corrmatch.training.builders import eval_pairs, make_datasets
from corrmatch.training.metrics import ConfusionMatrix, fuse_for_inference
from corrmatch.training.quality import draw_quality, quality_text, run_quality
from corrmatch.training.trainer import load_run


@torch.no_grad()
def val_scores(run: Path, data: str = ''):
    "mIoU, 0..1, of the validation list by prediction, propagated scores and their mean; whole images."
    model, config = load_run(run, 'last.pt', **(dict(data=data) if data else {}))
    if config.evaluation != 'whole':
        raise ValueError(f"{run}: evaluation='{config.evaluation}'; use `corrmatch eval` with --propagated")
    model = fuse_for_inference(model)
    tables = {name: ConfusionMatrix(config.n_classes) for name in ('prediction', 'propagated', 'mean')}
    for image, mask in eval_pairs(make_datasets(config, only_val=True).val):
        out = model(image)  # all three from one pass
        probs = out.logits.softmax(1), out.logits_corr.softmax(1)
        for table, scores in zip(tables.values(), (*probs, sum(probs))):
            table.update(scores.argmax(1), mask)
    return {name: table.miou() for name, table in tables.items()}


def keep(path: Path, run: str, quality, val):
    "Put the rows of a run into a table, in place of older ones; without `val` those of the list stay."
    old = []
    if path.exists():
        with open(path, newline='') as file:
            old = list(csv.DictReader(file))
    if not val:
        val = {
            row['what'].split(', ')[1]: row['accuracy'] for row in old
            if row['run'] == run and row['what'].startswith('val mIoU')}
    old = [row for row in old if row['run'] != run]
    rows = [
        dict(run=run, what=what, coverage=coverage, accuracy=accuracy)
        for what, coverage, accuracy in quality.table()]
    rows += [
        dict(run=run, what=f'mIoU, {name}', coverage=1.0, accuracy=score)
        for name, score in quality.scores.items()]
    rows += [
        dict(run=run, what=f'val mIoU, {name}', coverage=1.0, accuracy=score) for name, score in val.items()]
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, ['run', 'what', 'coverage', 'accuracy'], lineterminator='\n')
    writer.writeheader()
    writer.writerows(sorted([*old, *rows], key=lambda row: row['run']))
    write_atomic(path, text.getvalue().encode())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path)
    parser.add_argument('--data', default='', help='data folder, if it has moved since the run')
    parser.add_argument('--images', type=int, default=50)
    parser.add_argument('--tau', type=float)
    parser.add_argument('--figure', type=Path)
    parser.add_argument('--val', action='store_true', help='also score the validation list')
    parser.add_argument('--results', type=Path, help='folder whose quality.csv takes the rows of this run')
    args = parser.parse_args()
    torch.set_num_threads(1)
    changes = dict(data=args.data) if args.data else {}
    quality = run_quality(args.run, 'last.pt', args.images, tau=args.tau, **changes)
    rows = [('', 'coverage', 'accuracy')]
    rows += [(what, f'{coverage:.1%}', f'{accuracy:.1%}') for what, coverage, accuracy in quality.table()]
    print(text_table(rows))
    print(quality_text(quality))
    val = val_scores(args.run, args.data) if args.val else {}
    if val:
        print('validation list:', ', '.join(f'{name} {score:.2%} mIoU' for name, score in val.items()))
    if args.results:
        keep(args.results/'quality.csv', args.run.resolve().name, quality, val)
    if args.figure:
        draw_quality(quality, args.run.name).savefig(args.figure)


if __name__ == '__main__':
    main()
