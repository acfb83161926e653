"Speed without seconds: what a step asks of the device, what it holds, and that the bench runs."
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from corrmatch.engine import regions as regions_module
from corrmatch.engine.regions import FAST_REGIONS, fast_region_maps, fast_region_targets
from corrmatch.use import bench
from corrmatch.use.bench import _extra_peak, _pixel_jobs, _region_case
from corrmatch.config import preset
from corrmatch.files import DataError
from corrmatch.training.builders import make_weights
from corrmatch.method.region import propagate_regions, region_maps
from corrmatch.method.step import train_step
from corrmatch.training.builders import (
    autocast, make_batches, make_model, make_optimizer, make_datasets, make_threshold, pick_precision,
    prepare_model, to_device)

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT/'tools'))
from bench_suite import TARGETS  # noqa: E402
CPU = torch.device('cpu')
TINY = preset(
    'toy', crop=33, toy_labeled=3, toy_unlabeled=4, steps=4, warmup=0, batch_x=2, batch_u=2, dim=16,
    low_dim=8, stride=8, weights='', cutmix='same_image', regions=8)


@pytest.fixture(scope='module')
def batches():
    sources = make_datasets(TINY)
    return lambda **changes: to_device(make_batches(replace(TINY, **changes), sources)[0], CPU)


def step(batch, dtype=None, prepare=False, **changes):
    "One step of the tiny network: total, gradient of the classifier."
    config = replace(TINY, **changes)
    torch.manual_seed(1)
    model = make_model(config)[0].train()
    if prepare:
        prepare_model(model, config, CPU)
    sgd = make_optimizer(model, config)
    with autocast(CPU, dtype):
        result = train_step(
            model, batch, make_weights(config), make_threshold(config), regions=8,
            generator=torch.Generator().manual_seed(0))
    result.total.backward()
    sgd.step()
    return result.total.detach(), model.classifier.weight.grad.clone(), model


class NoQuestions(TorchDispatchMode):
    "Fails on every operation that would make the host wait for a GPU."
    asked = (
        '_local_scalar_dense', 'nonzero', 'equal', 'masked_select', 'is_nonzero', '_unique2', 'unique_dim',
        'repeat_interleave')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.asked, name
        if name in ('index', 'index_put', 'index_put_'):
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), 'a boolean index'
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    'changes',
    [
        {}, dict(cutmix='in_batch', kl_inside=False), dict(strong_views=2),
        dict(norm='batch', threshold='fixed')])
def test_a_step_asks_the_device_nothing(batches, changes, monkeypatch):
    "On the CPU the regions vote in NumPy; here they take the path of other devices."
    monkeypatch.setattr(regions_module, '_cut_on_cpu', regions_module._cut_on_device)
    def on_device(rows, feat_size, label, keep, within, tau, cut=.5, n_classes=256):
        maps = fast_region_maps(rows, feat_size, label.shape[1:], cut) & within[:, None]
        return regions_module._propagate_on_device(label, keep, maps, torch.as_tensor(tau), n_classes)
    ops = FAST_REGIONS._replace(region_targets=on_device)
    batch = batches(**changes)
    with pytest.raises(AssertionError, match='_local_scalar_dense'), NoQuestions():
        batch['image_x'].sum().item()
    config = replace(TINY, **changes)
    model = make_model(config)[0].train()
    sgd = make_optimizer(model, config)
    guard = make_threshold(config)
    weights = make_weights(config)
    with NoQuestions():
        result = train_step(
            model, batch, weights, guard, regions=8, generator=torch.Generator().manual_seed(0), ops=ops)
        result.total.backward()
    sgd.step()
    assert torch.isfinite(result.total)


def test_bf16_is_close_and_losses_stay_float32(batches):
    batch = batches()
    (full, grad, _), (half, grad_half, _) = step(batch), step(batch, torch.bfloat16)
    assert half.dtype == grad_half.dtype == torch.float32
    assert abs(half/full - 1) < .03
    assert torch.cosine_similarity(grad.flatten(), grad_half.flatten(), 0) > .98


def test_layout_changes_nothing_but_rounding(batches):
    (a, grad_a, _), (b, grad_b, model) = step(batches()), step(batches(), prepare=True)
    assert model.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-3, atol=1e-4)


HEADERS = Path(sysconfig.get_path('include'), 'Python.h').exists()


@pytest.mark.skipif(
    not shutil.which(os.environ.get('CXX') or 'g++') or not HEADERS,
    reason='no C++ compiler, or no header files of Python')
def test_compiled_network(batches):
    """The same keys and the same scores up to rounding; forward only, since each graph takes the compiler
    some seconds."""
    plain, compiled = [
        prepare_model(make_model(TINY)[0], replace(TINY, compile=c), CPU).eval() for c in (False, True)]
    assert list(plain.state_dict()) == list(compiled.state_dict())
    with torch.no_grad():
        scores = [model.predict_logits(batches()['image_x']) for model in (plain, compiled)]
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-4)


def test_compile_without_a_compiler(monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler and 'no-such-compiler'"):
        prepare_model(make_model(TINY)[0], replace(TINY, compile=True), CPU)


@pytest.mark.skipif(not shutil.which('g++'), reason='no C++ compiler')
def test_compile_without_headers(monkeypatch, tmp_path):
    monkeypatch.setattr('sysconfig.get_path', lambda name: str(tmp_path))
    with pytest.raises(ValueError, match='python3-dev'):
        prepare_model(make_model(TINY)[0], replace(TINY, compile=True), CPU)


def test_precision():
    """What is asked for is taken; small networks are never timed, so that their runs do not depend on a stop-
    watch."""
    model = make_model(TINY)[0]
    before = torch.get_rng_state()
    assert [pick_precision(p, CPU, model) for p in ('auto', 'fp32', 'bf16')] == [None, None, torch.bfloat16]
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match='use auto, fp32 or bf16'):
        pick_precision('int8', CPU)


def test_memory_of_pixel_propagation():
    """A guard that counts bytes: held whole the map costs at least ten times as much, and chunks grow with N,
    not with its square."""
    small, large = _pixel_jobs(41, 1), _pixel_jobs(61, 1)
    chunked = [_extra_peak(jobs['chunked']) for jobs in (small, large)]
    assert _extra_peak(large['whole']) > 4*chunked[1]
    assert chunked[1] < 1.6*(61/41)**2*chunked[0]


def test_work_of_regions():
    """A guard that counts: the fast version allocates less than 64 MB where the naive one takes hundreds,
    with equal results."""
    case = _region_case('many', b=2)
    maps = region_maps(case['rows'], case['side'], case['size'])
    def ours():
        return fast_region_targets(
            case['rows'], case['side'], case['label'], case['keep'], case['within'], 0.85)
    assert (
        _extra_peak(ours)
        < 64 * 2**20
        < _extra_peak(lambda: region_maps(case['rows'], case['side'], case['size'])))
    label, keep, _ = propagate_regions(case['label'], case['keep'], maps, .85)
    assert torch.equal(ours()[0], label) and torch.equal(ours()[1], keep)


def test_bench_writes_json(tmp_path, monkeypatch):
    limits = bench.limits
    monkeypatch.setattr(bench, 'limits', lambda device, size: limits(device, 128))
    lines, out = [], tmp_path/'new'/'bench.json'
    bench.run_bench(out=str(out), sides=(9,), batches=(1,), regions=(8,), say=lines.append)
    stored = json.loads(out.read_text())['bench']
    assert {'cpu', 'cores', 'threads', 'torch', 'gpu'} <= stored['machine'].keys()
    assert stored['limits']['bandwidth'] > 0


def test_bench_refuses_a_file_before_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, 'limits', None)
    (tmp_path/'notes.txt').write_text('not of this command')
    for out, why in (
        (tmp_path/'notes.txt', 'holds no results'), (tmp_path, 'is a folder'),
        (tmp_path/'notes.txt'/'b.json', 'is a file where a folder is needed')):
        with pytest.raises(DataError, match=why):
            bench.run_bench(out=str(out))
    assert [p.name for p in tmp_path.iterdir()] == ['notes.txt']


def test_an_interrupted_write_leaves_the_stored_results(tmp_path, monkeypatch):
    path = tmp_path/'b.json'
    bench._store_result(path, 'suite', dict(rows=[dict(part='a')]))
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.replace', full)
    with pytest.raises(DataError, match='No space left'):
        bench._store_result(path, 'bench', dict(rows=[dict(part='b')]))
    assert json.loads(path.read_text()) == dict(suite=dict(rows=[dict(part='a')]))


def test_stored_results_answer_every_promise():
    "The file behind the notebook's tables has one row for each target, measured at full size."
    stored = json.loads((ROOT/'nbs'/'results'/'bench_cpu.json').read_text())
    assert stored['suite']['size'] == 'full'
    assert {row['name'] for row in stored['suite']['rows']} == set(TARGETS)
    assert {row['over'] for row in stored['bench']['rows']} == {'positions', 'batch', 'regions'}
    shown = (ROOT/'nbs'/'use'/'51_bench.ipynb').read_text()
    reached = sum(row['reached'] for row in stored['suite']['rows'])
    assert f"'{reached} of {len(TARGETS)} targets reached'" in shown
    for row in stored['suite']['rows']:
        assert f"{row['name']:28}{row['value']:10.3g}" in shown, row['name']


def test_help_needs_no_torch():
    "What makes the start slow is not imported; test_api.py looks at `import corrmatch`."
    code = ['-X', 'importtime', '-m', 'corrmatch', '--help']
    done = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, timeout=600,
        env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert done.returncode == 0
    loaded = {
        line.split('|')[-1].strip().split('.')[0]
        for line in done.stderr.splitlines()
        if line.startswith('import time:')}
    assert 'corrmatch' in loaded and not loaded & {'torch', 'torchvision', 'matplotlib', 'numpy', 'IPython'}
