"""Options of training that the paper does not have: class weights, Dice, rare classes, limits of a run,
warm-up and search of the learning rate, trackers."""
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from corrmatch.config import PRESETS, preset
from corrmatch.method.losses import dice_loss
from corrmatch.training.run_folder import read_checkpoint, read_csv, run_state
from corrmatch.training.trainer import Trainer, lr_curve
from forks_for_tests import fork_python
from runs_for_tests import script, small

pytestmark = pytest.mark.usefixtures('light_runs')


def weights(folder): return read_checkpoint(folder/'last.pt')['model']


def equal(a, b): return all(torch.equal(v, b[k]) for k, v in a.items())


def stop_after(folder, steps, **changes):
    "Train some steps, write a checkpoint and leave, as a process does that is killed then."
    trainer = Trainer(small(folder, **changes), quiet=True)
    trainer._open(False, False)
    for _, batch in zip(range(steps), trainer._loader()):
        trainer.run_step(batch)
    trainer._save_last()


OFF = dict(
    class_weights='none', dice=0., sampling='uniform', patience=0, time_limit=0., lr_warmup=0, log='csv')


def test_everything_is_off_in_the_presets():
    for name in PRESETS:
        assert {k: getattr(preset(name), k) for k in OFF} == OFF


@pytest.mark.parametrize('seed', range(3))
def test_dice_equals_that_of_a_library(seed):
    losses = pytest.importorskip('segmentation_models_pytorch').losses
    draw = torch.Generator().manual_seed(seed)
    logits = (3*torch.randn(2, 6, 9, 7, generator=draw)).requires_grad_()
    mask = torch.randint(0, 5, (2, 9, 7), generator=draw)  # class 5 occurs nowhere
    mask[torch.rand(mask.shape, generator=draw) < .3] = 255
    ours, theirs = (f(logits, mask) for f in (dice_loss, losses.DiceLoss('multiclass', ignore_index=255)))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_dice_reads_no_value_on_the_host():
    logits, mask = torch.empty(2, 3, 4, 4, device='meta'), torch.empty(2, 4, 4, device='meta').long()
    assert dice_loss(logits, mask, n_valid=mask.sum()).device.type == 'meta'


@pytest.mark.parametrize('changes', [
    dict(class_weights='median', dice=.5, sampling='rare'), dict(class_weights='inverse', ohem=50),
    dict(class_weights='0,1,1,1,9', lr_warmup=4)], ids=['median', 'inverse', 'given'])
def test_options_resume_exactly(tmp_path, changes):
    changes = dict(eval_every=6) | changes
    Trainer(small(tmp_path/'straight', **changes), quiet=True).fit()
    stop_after(tmp_path/'stopped', 3, **changes)
    Trainer(small(tmp_path/'stopped', **changes), quiet=True).fit(resume=True)
    assert equal(weights(tmp_path/'straight'), weights(tmp_path/'stopped'))
    Trainer(small(tmp_path/'plain', eval_every=6), quiet=True).fit()
    assert not equal(weights(tmp_path/'straight'), weights(tmp_path/'plain'))  # and they do something


def test_class_weights_of_micro_steps_add_up(tmp_path):
    "The labeled cross-entropy of a batch is that of its parts, with weights, too."
    terms = []
    for parts in (1, 2):
        config = small(
            tmp_path/f'{parts}', 'supervised', accumulate=parts, class_weights='median', norm='group')
        trainer = Trainer(config, quiet=True)
        terms.append(trainer.run_step(trainer.batches[0]).terms.x)
    torch.testing.assert_close(*terms)


def test_rare_images_come_more_often(tmp_path):
    trainer = Trainer(small(tmp_path/'run', 'supervised', sampling='rare', toy_labeled=8), quiet=True)
    batches = trainer.batches
    drawn = np.bincount([batches.order_x[i] for i in range(4000)], minlength=8)
    expected = 4000*np.array(batches.weights_x)/sum(batches.weights_x)
    assert np.ptp(batches.weights_x) > 0 and np.abs(drawn/expected - 1).max() < .1


@pytest.mark.parametrize('changes, said', [
    (dict(class_weights='often'), "class_weights='often': write none, inverse, median, or 5 numbers"),
    (dict(dice=-1.), 'dice=-1.0 must be a number and at least 0'),
    (dict(sampling='often'), "sampling='often' is not one of uniform, rare"),
    (dict(patience=-1), 'patience=-1'), (dict(time_limit=-1.), 'time_limit=-1.0'),
    (dict(lr_warmup=-1), 'lr_warmup=-1'), (dict(log='paper'), "log='paper' is not one of csv, tensorboard")])
def test_bad_values(changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        preset('toy', **changes)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('limit', [dict(patience=1), dict(time_limit=1e-9)], ids=lambda d: next(iter(d)))
def test_a_limit_ends_a_run_cleanly_and_resuming_ends_as_without_it(tmp_path, limit):
    Trainer(small(tmp_path/'straight', eval_every=6), quiet=True).fit()
    short = Trainer(small(tmp_path/'short', eval_every=3, **limit), quiet=True)
    if 'patience' in limit:
        short.best = 99.  # which no validation reaches
    short.fit()
    assert short.ended and 0 < short.step < short.steps
    assert short.step == (3 if 'patience' in limit else 1) and run_state(short.out)['state'] == 'finished'
    assert read_csv(short.out/'val.csv')['step'][-1] == short.step
    assert read_checkpoint(short.out/'last.pt')['step'] == short.step
    assert f'ended at step {short.step} of 6' in short.summary()
    Trainer(small(tmp_path/'short', eval_every=3), quiet=True).fit(resume=True)
    assert equal(weights(tmp_path/'straight'), weights(tmp_path/'short'))


def test_a_run_ended_by_a_limit_stays_out_of_tables(tmp_path):
    from corrmatch.use.tables import read_results
    Trainer(small(tmp_path/'short', time_limit=1e-9), quiet=True).fit()
    assert read_results([tmp_path]) == ([], [f'{tmp_path}/short: finished at step 1 of 6'])


def test_the_rate_rises_and_then_follows_the_schedule(tmp_path):
    rates = {}
    for warmup in (0, 3):
        Trainer(small(tmp_path/f'{warmup}', lr_warmup=warmup, log_every=1, eval_every=6), quiet=True).fit()
        rates[warmup] = read_csv(tmp_path/f'{warmup}'/'metrics.csv')['lr']
    np.testing.assert_allclose(rates[3]/rates[0], [1/3, 2/3, 1, 1, 1, 1], rtol=1e-5)


def test_the_rate_finder_leaves_no_folder(tmp_path, monkeypatch, capsys):
    from corrmatch.use.cli import main
    monkeypatch.chdir(tmp_path)
    flags = '--crop 33 --toy-unlabeled 8 --batch-x 4 --batch-u 2 --dim 16 --low-dim 8 --regions 8'
    assert main(f'lr-find toy {flags} --lowest 1e-3 --tries 20'.split()) == 0
    assert 'suggestion after' in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ['lr.png']
    config = small(tmp_path/'run')
    assert lr_curve(config, 1e-3, 10., 12).losses == lr_curve(config, 1e-3, 10., 12).losses


def fake_wandb(calls, fail=False):
    "What is used of wandb, keeping every call."
    def init(**options):
        if fail:
            raise RuntimeError('not logged\nin')
        calls.append(('init', options))
        return SimpleNamespace(
            id=options['id'] or 'r1', finish=lambda: calls.append(('finish',)),
            log=lambda row, step: calls.append(('log', step, row)))
    module = ModuleType('wandb')
    module.init = init
    return module


def test_wandb_gets_every_row_and_goes_on_in_the_same_run(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, 'wandb', fake_wandb(calls))
    Trainer(small(tmp_path/'run', log='wandb', time_limit=1e-9, log_every=1, eval_every=6), quiet=True).fit()
    Trainer(small(tmp_path/'run', log='wandb', log_every=1, eval_every=6), quiet=True).fit(resume=True)
    first, second = [options for name, *rest in calls if name == 'init' for options in rest]
    assert [first['id'], second['id'], first['config']['seed'], first['name']] == [None, 'r1', 0, 'run']
    rows = [rest for name, *rest in calls if name == 'log']
    losses = {step: row['loss'] for step, row in rows if 'loss' in row}
    log = read_csv(tmp_path/'run'/'metrics.csv')
    np.testing.assert_allclose(list(losses.values()), log['loss'], rtol=1e-4)
    assert list(losses) == log['step'].tolist() and calls.count(('finish',)) == 2
    assert any('miou' in row for _, row in rows)


def test_a_tracker_that_is_missing_or_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ImportError, match=r"log='wandb' needs wandb: pip install corrmatch-seg\[wandb\]"):
        Trainer(small(tmp_path/'run', log='wandb'), quiet=True)
    monkeypatch.setitem(sys.modules, 'wandb', fake_wandb([], fail=True))
    with pytest.raises(ValueError, match='cannot be opened .RuntimeError: not logged in'):
        Trainer(small(tmp_path/'run', log='wandb'), quiet=True).fit()


def test_mlflow_gets_settings_and_rows(tmp_path, monkeypatch):
    calls = []
    module = ModuleType('mlflow')
    def start_run(run_id, run_name):
        calls.append(('start', run_id))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or 'm1'))
    module.start_run = start_run
    module.log_params = lambda settings: calls.append(('params', settings))
    module.log_metrics = lambda row, step: calls.append(('row', step))
    module.end_run = lambda: calls.append(('end',))
    monkeypatch.setitem(sys.modules, 'mlflow', module)
    Trainer(small(tmp_path/'run', log='mlflow', time_limit=1e-9, log_every=1, eval_every=6), quiet=True).fit()
    Trainer(small(tmp_path/'run', log='mlflow', log_every=1, eval_every=6), quiet=True).fit(resume=True)
    assert [c for c in calls if c[0] == 'start'] == [('start', None), ('start', 'm1')]
    assert [c[0] for c in calls].count('params') == 1 and calls[-1] == ('end',)
    assert {step for name, *rest in calls if name == 'row' for step in rest} == {1, 2, 3, 4, 5, 6}


def test_tensorboard_writes_only_when_asked(tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    for log in ('csv', 'tensorboard'):
        Trainer(small(tmp_path/log, log=log, eval_every=6), quiet=True).fit()
    assert not list((tmp_path/'csv').glob('*tfevents*'))
    events = accumulator.EventAccumulator(str(tmp_path/'tensorboard')).Reload()
    losses = [event.value for event in events.Scalars('loss')]
    np.testing.assert_allclose(losses, read_csv(tmp_path/'tensorboard'/'metrics.csv')['loss'], rtol=1e-5)
    assert [event.step for event in events.Scalars('miou')] == [6]


def test_two_processes_end_together_and_go_on(tmp_path):
    "A limit ends both, a rare order and class weights are the same in both, and resuming changes nothing."
    shared = dict(
        batch_x=4, batch_u=4, steps=4, eval_every=4, sampling='rare', class_weights='median', dice=.5,
        lr_warmup=2)
    limited = dict(out=tmp_path/'limited', time_limit=1e-9, **shared)
    jobs = [
        dict(out=tmp_path/'straight', **shared), limited, dict(out=tmp_path/'limited', resume=True, **shared)]
    done = fork_python(script(jobs, tmp_path), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_csv(tmp_path/'limited'/'val.csv')['step'].tolist() == [1, 4]
    assert equal(weights(tmp_path/'straight'), weights(tmp_path/'limited'))
