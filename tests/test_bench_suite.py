"The suite of promised speed-ups: its naive versions give what ours give, and every part runs."
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from fastcore.test import ExceptionExpected, test_close as close, test_eq as equal
from PIL import Image

from corrmatch.config import preset
from corrmatch.data.folders import LABELED, FolderSource, Pair, rng_for
from corrmatch.data.toy import toy_arrays
from corrmatch.engine.regions import FAST_REGIONS
from corrmatch.method.correlation import correlation_map
from corrmatch.method.region import draw_positions
from corrmatch.method.step import train_step
from corrmatch.method.threshold import FixedThreshold
from corrmatch.training.builders import make_batches, make_datasets, make_model, make_weights, to_device
from corrmatch.training.metrics import evaluate

sys.path.append(str(Path(__file__).resolve().parents[1]/'tools'))
import bench_suite as suite  # noqa: E402

TINY = preset(
    'toy', crop=33, toy_labeled=4, toy_unlabeled=4, steps=4, warmup=0, batch_x=2, batch_u=2, dim=16,
    low_dim=8, stride=8, weights='', cutmix='same_image')
SIZE = suite.SIZES['tiny']


@pytest.fixture(scope='module')
def batch(): return to_device(make_batches(TINY, make_datasets(TINY))[0], torch.device('cpu'))


def test_naive_step_has_the_terms_of_ours(batch):
    net = make_model(TINY)[0].train()
    weights = make_weights(TINY)
    tau = 0.2
    index = draw_positions(25, 16, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    total, terms = suite.naive_step(net, batch, weights, FixedThreshold(tau), index)
    torch.manual_seed(1)
    ours = train_step(
        net, batch, weights, FixedThreshold(tau), regions=16, generator=torch.Generator().manual_seed(0),
        ops=FAST_REGIONS)
    close(
        [float(t.detach()) for t in terms.values()],
        [float(getattr(ours.terms, name).detach()) for name in terms], eps=1e-4)
    close(total.detach(), ours.total.detach(), eps=1e-4)


def test_naive_pixels_have_the_map_of_ours():
    f1 = torch.randn(2, 3, 5, 5)
    f2 = torch.randn(2, 3, 5, 5)
    z = torch.randn(2, 3, 33, 33)
    close(suite.naive_pixels(f1, f2, z)[1], correlation_map(f1, f2), eps=1e-6)


def test_naive_views(tmp_path):
    some = [tmp_path/name for name in ('a.jpg', 'a.png')]
    for file, array in zip(some, toy_arrays([0], 49)):
        Image.fromarray(array[0]).save(file)
    weak, strong, padding, box = suite.naive_views(
        FolderSource([Pair(*some, 'a')]), 0, rng_for(0, LABELED, 0, 0), 33)
    equal([weak.shape, strong.shape, padding.shape, box.shape], [(3, 33, 33)]*2 + [(33, 33)]*2)
    equal(weak.dtype, torch.float32)


@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_naive_evaluation_counts_the_same(batch, mode):
    net = make_model(TINY)[0].eval()
    pairs = [
        (batch['image_x'], batch['mask_x']), (batch['image_u_w'][..., :29], batch['mask_x'][..., :29])]
    counts = suite.naive_evaluate(net, pairs, 5, mode, 24)
    confusion = evaluate(net, pairs, 5, mode, 24)
    equal(counts[:, 0].tolist(), confusion.matrix.diagonal().tolist())
    equal(counts[:, 1].tolist(), confusion.matrix.sum(0).tolist())


def test_rows_and_targets():
    equal(suite._row('import', 150.)['reached'], True)
    equal(suite._row('data_labeled', 2.9)['reached'], False)
    row = suite._ratio(
        'data_labeled', dict(a=dict(wall=3.0, cpu=2.0, calls=5), b=dict(wall=1.0, cpu=1.0, calls=5)),
        'a', 'b')
    equal((row['value'], row['ratio_cpu'], row['reached'], row['target']), (3., 2., True, 3))
    equal(set(suite.SIZES['full']), set(suite.SIZES['tiny']))


def test_parts_run():
    found = {row['name']: row for row in suite.suite_pixels(SIZE) + suite.suite_regions(SIZE)}
    equal(len(found), 9)
    assert found['pixels_gradient']['reached']
    assert found['regions_memory']['value'] < 64
    found = suite.suite_evaluate(dict(SIZE, views=(33, 33), rounds=1))
    equal([row['name'] for row in found], ['evaluate_whole', 'evaluate_slide'])
    found = suite.suite_step(dict(SIZE, rounds=1))
    equal([row['name'] for row in found], ['step_fp32', 'step_auto', 'step_auto_in_batch', 'step_memory'])
    equal(len(suite.loss_curve(0, None, 2)), 2)


def test_start_row():
    found = {row['name']: row for row in suite.suite_start(dict(SIZE, rounds=1))}
    equal(list(found), ['import', 'help'])
    assert found['import']['value'] < found['help']['value']


def test_backbone_with_its_padding_apart():
    row, = suite.suite_backbone(dict(SIZE, rounds=1))
    equal((row['name'], row['target']), ('backbone_wide_padding', 1.5))
    assert row['difference'] < 1e-5 and row['naive_s'] > 0


def test_suite_keeps_the_rows_of_other_parts():
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        target = f'{folder}/new/b.json'
        for part in ('data', 'pixels', 'pixels'):  # measured again: replaces its own rows only
            suite.run_suite(only=part, size='tiny', out=target, say=lines.append)
        stored = json.loads(Path(target).read_text())['suite']
    equal(
        [row['name'] for row in stored['rows']],
        [
            'data_labeled', 'data_unlabeled', 'data_step', 'pixels_time', 'pixels_memory',
            'pixels_gradient', 'pixels_201'])
    equal({row['part'] for row in stored['rows']}, {'data', 'pixels'})
    assert all(
        {'name', 'value', 'target', 'reached', 'calls', 'unit'} <= row.keys() for row in stored['rows'])
    assert sum('target' in line for line in lines) == 11
    with ExceptionExpected(ValueError, 'use one of regions'):
        suite.run_suite(only='speed')


def test_steps_of_a_gpu_on_this_cpu():
    rows = suite.gpu_steps(17, 2, 'cpu', ('naive fp32', 'bf16'), 'toynet', 1)
    equal([row['kind'] for row in rows], ['naive fp32', 'bf16'])
    assert rows[0]['operations'] > rows[1]['operations']*.9 and rows[0]['steps_s'] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu_table(): equal(suite.gpu_table()[0]['kind'], 'naive fp32')
