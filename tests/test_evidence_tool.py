"The runner of the measurements: its plan, its locks, stopping and going on, and what it collects."
import csv
import importlib.util
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from corrmatch.config import preset
from corrmatch.training.run_folder import CsvLog, note_state, run_state
from corrmatch.training.trainer import _SignalFlag, Stopped
from forks_for_tests import Fork
from runs_for_tests import ROOT, small

spec = importlib.util.spec_from_file_location('evidence', ROOT/'tools'/'evidence.py')
evidence = importlib.util.module_from_spec(spec)
sys.modules['evidence'] = evidence
spec.loader.exec_module(evidence)


def configs(out, steps=600):
    return lambda job: evidence.make_config(job, '/images', '/nets/net.pth', out, steps)


def pretend(config, rows=200):
    "Leave what a finished run leaves."
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out/'config.json').write_text(json.dumps(asdict(config) | dict(precision='bf16')))
    metrics = CsvLog(out/'metrics.csv')
    val = CsvLog(out/'val.csv')
    for i in range(1, rows+1):
        metrics.add(step=i, loss=1/i, steps_per_s=2.)
    for step, miou in ((1, 30.+config.seed), (2, 32.+config.seed)):
        val.add(step=step, miou=miou)
    note_state(out, 'finished', step=rows, steps=rows, best=32.)


def test_plan_holds_everything_once():
    jobs = evidence.make_plan(['camvid', 'vocanimals'])
    assert (
        len({j.name for j in jobs})
        == len(jobs)
        == 4 * 3 * 4 + (1 + len(evidence.PARTS) + len(evidence.BEYOND) + len(evidence.TRAINED)) * 3 * 2)
    assert {j.split for j in jobs if j.variant not in evidence.METHODS} == {'1_16'}
    assert [j.variant for j in jobs[:5]] == [*evidence.METHODS, evidence.CEILING] and {
        j.seed for j in jobs[:18]} == {evidence.FIRST_SEED}
    assert [j.name for j in evidence.make_plan(['camvid'], 1, only=['no_fp'])] == ['camvid_1_16_no_fp_s1']
    with pytest.raises(ValueError, match='elephant'):
        evidence.make_plan(['camvid'], only=['elephant'])


def test_scores_of_a_class_with_a_comma_stay_in_their_column(tmp_path, monkeypatch):
    "Scores of best.pt and last.pt on a test list, in a table that a reader of CSV reads."
    names = ['sky, clouds', 'a "tree"']
    nets = [torch.nn.Linear(1, 1) for _ in range(2)]
    config = SimpleNamespace(n_classes=2, evaluation='whole', crop=33)
    monkeypatch.setattr(evidence, 'load_run', lambda *args, **changes: (nets.pop(), config))
    sources = SimpleNamespace(val=[], class_names=names)
    confusion = SimpleNamespace(iou=lambda: torch.tensor([.25, .75]), miou=lambda: .5)
    monkeypatch.setattr(evidence, 'make_datasets', lambda *args, **kw: sources)
    monkeypatch.setattr(evidence, 'evaluate', lambda *args: confusion)
    evidence.score_test(tmp_path, 'data', 'test.txt')
    row = {'miou': '50.0', 'iou_sky, clouds': '25.0', 'iou_a "tree"': '75.0'}
    with open(tmp_path/'test.csv', newline='') as file:
        assert list(csv.DictReader(file)) == [dict(checkpoint=c) | row for c in ('best', 'last')]


def test_only_what_is_named_differs():
    "All runs on the same data share the schedule; a switched-off part leaves the sum of the weights alone."
    config_of = configs('o')
    free = {'method', 'seed', 'out', 'labeled', 'unlabeled'}
    bundles = {
        k
        for m in ('supervised', 'fixmatch', 'unimatch')
        for k, v in asdict(preset('toy', m)).items()
        if v != asdict(preset('toy'))[k]}
    base = asdict(config_of(evidence.Job('camvid', '1_16', 'corrmatch', 0)))
    assert base['threshold'] == 'dynamic'  # the paper's, whatever the preset of these folders has
    for job in evidence.make_plan(['camvid']):
        own = asdict(config_of(job))
        changed = {k for k in own if own[k] != base[k]} - free
        assert changed <= set(evidence.CHANGES.get(job.variant, ())) | (
            set() if job.method == 'corrmatch' else bundles | {'tau'})
        assert sum(v for k, v in own.items() if k.startswith('w_')) == pytest.approx(
            1.5 if job.variant == 'labels_double' else 1)
    assert base['precision'] == 'bf16'  # not settled anew by each run


def test_the_options_differ_from_corrmatch_in_one_field_each():
    jobs = evidence.make_plan(['camvid', 'vocanimals'], stage='options')
    assert {(j.data, j.split) for j in jobs} == {('vocanimals', '1_16')} and len(jobs) == 9
    config_of = configs('o')
    base = asdict(config_of(evidence.Job('vocanimals', '1_16', 'options_corrmatch', 2)))
    assert base['eval_every'] == base['steps'] and base['precision'] == 'fp32'
    changed = {}
    for job in jobs:
        own = asdict(config_of(job))
        changed[job.variant] = {k: v for k, v in own.items() if v != base[k]} | dict(seed=0, out='')
    assert changed == dict(
        options_corrmatch=dict(seed=0, out=''), options_region_fill=dict(seed=0, out='', region_fill=True),
        options_teacher_half=dict(seed=0, out='', teacher_pixel=.5))


def test_finished_runs_are_left_alone_and_others_done_once(tmp_path):
    jobs = evidence.make_plan(['camvid'], 1, only=['supervised', 'corrmatch', 'no_fp'])
    config_of = configs(tmp_path)
    done = []
    pretend(config_of(jobs[0]))
    def train(config):
        done.append(config.out)
        pretend(config)
    assert evidence.run_jobs(jobs, config_of, train, say=lambda t: None) == []
    assert done == [config_of(j).out for j in jobs[1:]]
    evidence.run_jobs(jobs, config_of, train, say=lambda t: None)
    assert len(done) == len(jobs) - 1


def test_other_settings_in_the_same_place_are_refused(tmp_path):
    job, = evidence.make_plan(['camvid'], 1, only=['no_fp'])
    pretend(configs(tmp_path, 300)(job))
    (_, reason), = evidence.run_jobs([job], configs(tmp_path), pytest.fail, say=lambda t: None)
    assert 'other settings' in reason and 'steps: 300 -> 600' in reason


def test_a_failure_does_not_end_the_list(tmp_path):
    jobs = evidence.make_plan(['camvid'], 1, only=['supervised', 'no_fp'])
    config_of = configs(tmp_path)
    def train(config):
        if 'no_fp' in config.out:
            raise ValueError('bad luck')
        pretend(config)
    failed = evidence.run_jobs(jobs[::-1], config_of, train, say=lambda t: None)
    assert [(j.variant, r) for j, r in failed] == [('no_fp', 'bad luck')]
    assert sum(run_state(config_of(j).out)['state'] == 'finished' for j in jobs) == len(jobs) - 1


WORKER = '''
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_evidence_tool import evidence, configs, pretend
def train(config):
    print(Path(config.out).name, flush=True)
    Path({out!r}, 'begun').touch()
    time.sleep({nap})
    pretend(config)
jobs = evidence.make_plan(['camvid'], 2, 'methods', ['1_16'])
evidence.run_jobs(jobs, configs({out!r}), train, say=lambda t: None)
'''


def worker(out, nap):
    return Fork(['-c', WORKER.format(tests=str(ROOT/'tests'), out=str(out), nap=nap)])


def test_two_runners_share_the_list_and_a_killed_one_frees_its_run(tmp_path):
    dead = worker(tmp_path, 60)  # takes the first run and is killed in it
    dead.wait_for(tmp_path/'begun')
    with evidence.lock(tmp_path/'.locks'/'camvid_1_16_supervised_s1') as mine:
        assert not mine
    dead.kill()
    begun = dead.communicate()[0].split()
    other, mine = worker(tmp_path, .6), []
    def train(config):
        mine.append(Path(config.out).name)
        time.sleep(.6)
        pretend(config)
    evidence.run_jobs(
        evidence.make_plan(['camvid'], 2, 'methods', ['1_16']), configs(tmp_path), train, say=lambda t: None)
    done = mine + other.communicate(timeout=600)[0].split()
    assert begun == ['camvid_1_16_supervised_s1'] and begun[0] in done
    assert len(done) == len(set(done)) == 10  # four methods and the ceiling


@pytest.mark.parametrize('swallowed', [False, True])
def test_a_signal_ends_the_list(tmp_path, swallowed):
    "Also one that comes in the last step of a run, where the trainer has no more use for it."
    jobs = evidence.make_plan(['camvid'], 1, only=['supervised', 'no_fp'])
    config_of = configs(tmp_path)
    begun = []
    def train(config):
        begun.append(config.out)
        if swallowed:
            with _SignalFlag():
                os.kill(os.getpid(), signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        pretend(config)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as e:
        evidence.run_jobs(jobs, config_of, train, say=lambda t: None)
    assert e.value.code == 143 and len(begun) == 1 and signal.getsignal(signal.SIGTERM) is before
    assert (run_state(begun[0])['state'] == 'finished') == swallowed


def test_train_goes_on_and_counts_what_pseudo_labels_are_worth(tmp_path):
    config = small(tmp_path/'run', steps=4, tau=.2)
    class Interrupted(evidence.Watched):
        def run_step(self, batch):
            if self.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().run_step(batch)
    whole = small(tmp_path/'whole', steps=4, tau=.2)
    evidence.train(whole, watch=3)
    original = evidence.Watched
    evidence.Watched = Interrupted
    interrupted = small(tmp_path/'run', steps=6, tau=.2)
    try:
        with pytest.raises(Stopped):
            evidence.train(interrupted, watch=3)
    finally:
        evidence.Watched = original
    evidence.train(interrupted, watch=3)
    rows = list(csv.DictReader((tmp_path/'run'/'pseudo_labels.csv').read_text().splitlines()))
    assert [r['step'] for r in rows] == [s for s in '246' for _ in range(config.n_classes)]
    for r in rows:
        n = {k: int(v) for k, v in r.items() if k in evidence.COUNTED}
        assert (
            max(n['correct'], n['included'], n['after']) <= n['ground_truth']
            and n['included_correct'] <= min(n['included'], n['included_named'], n['correct'])
            and n['included'] <= n['after'])
    # three images, nothing ignored
    assert sum(int(r['ground_truth']) for r in rows if r['step'] == '2') == 3 * 33 * 33
    regions = list(csv.DictReader((tmp_path/'run'/'regions.csv').read_text().splitlines()))
    assert len(regions) == 3 and all(
        int(r['correct']) <= int(r['accepted']) <= int(r['drawn']) for r in regions)
    plain = small(tmp_path/'plain', steps=4, tau=.2)
    evidence.Trainer(plain, quiet=True).fit()
    states = [torch.load(tmp_path/name/'last.pt', weights_only=True)['model'] for name in ('whole', 'plain')]
    assert all(torch.equal(a, b) for a, b in zip(*[s.values() for s in states]))  # watching changes nothing


def test_counts_by_hand():
    "A model that is sure of the left half and right there, unsure of the rest."
    class Model(torch.nn.Module):
        def predict_logits(self, image):
            logits = torch.zeros(1, 3, 4, 6)
            logits[:, 1, :, :3], logits[:, 2, :, 3:] = 9., .1
            return logits
    class Source:
        def read_image(self, i): return np.zeros((4, 6, 3), np.uint8)
        def read_mask(self, i): return np.array([[1, 1, 1, 0, 0, 255]]*4, np.uint8)
    counts, regions = evidence.pseudo_label_counts(Model(), Source(), [0], .85, preset('toy', n_classes=3))
    assert counts['ground_truth'].tolist() == [8, 12, 0] and counts['correct'].tolist() == [0, 12, 0]
    assert (
        counts['included'].tolist()
        == counts['included_correct'].tolist()
        == counts['included_named'].tolist()
        == [0, 12, 0])
    assert regions['drawn'] == 0 and 'correct_pixel' not in counts


def test_regions_judged_by_hand():
    mask = torch.tensor([[0, 0, 1], [1, 1, 255]])
    shapes = torch.tensor(
        [[[1, 1, 0], [0, 0, 0]], [[0, 1, 1], [1, 1, 1]], [[1, 1, 0], [1, 0, 0]], [[0] * 3] * 2]).bool()
    found = evidence._judge_regions(shapes, torch.tensor([0, 1, 1, -1]), mask, 2)
    assert found.tolist() == [3, 3, 2, 2+4+3, 2+3+1]


def test_norms_are_measured_anew_but_for_frozen_layers():
    """The mean over the batches given, each of which counts alike; momentum and the mode for prediction are
    back afterwards."""
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = torch.nn.BatchNorm2d(1)
            self.own = torch.nn.BatchNorm2d(1)
        def train(self, mode=True):
            super().train(mode)
            self.frozen.eval()
            return self
        def forward(self, x): return self.own(x) + self.frozen(x)
    net = Net()
    net.own.running_mean.fill_(9.)
    evidence.measure_norms(net, [torch.full((2, 1, 3, 3), 1.), torch.full((4, 1, 3, 3), 2.)])
    assert net.own.running_mean.item() == pytest.approx(1.5) and net.frozen.running_mean.item() == 0
    assert net.own.momentum == .1 and not net.own.training


def test_collected_files_name_no_place(tmp_path):
    jobs = evidence.make_plan(['vocanimals'], 2, only=['no_fp', 'corrmatch'], splits=['1_32'])
    config_of = configs(tmp_path/'runs')
    for job in jobs:
        pretend(config_of(job))
    folders = {('small', job.name): config_of(job).out for job in jobs}
    results = tmp_path/'results'
    evidence.collect_runs(folders, results)
    texts = {p.name: p.read_text() for p in results.iterdir()}
    for text in texts.values():
        assert (
            str(tmp_path) not in text and '/images' not in text and '/nets' not in text and 'pid' not in text)
    rows = [r for r in csv.DictReader(texts['curves.csv'].splitlines()) if r['run'] == jobs[0].name]
    assert len(rows) == 60 and (rows[0]['step'], rows[-1]['step']) == ('1', '200')
    evidence.collect_runs(folders, results)                                   # again: nothing is added
    assert {p.name: p.read_text() for p in results.iterdir()} == texts
    line = next(l for l in evidence.summary(results, 'small').splitlines() if 'corrmatch' in l).split()
    assert line == ['vocanimals', '1_32', 'corrmatch', '2', '33.50', '±', '0.71', '33.50', '±', '0.71']
    evidence.add_renormed({('small', jobs[0].name): dict(as_trained=30., labeled_crops=29.)}, results)
    evidence.collect_runs(folders, results)                                   # they stay
    assert [
        r['miou']
        for r in csv.DictReader((results / 'scores.csv').read_text().splitlines())
        if r['at'] == 'last'] == ['30.0', '29.0']
    from corrmatch.use.tables import table_of
    assert 'corrmatch, w_s=0.25, w_fp=0.0' in table_of([tmp_path/'runs'], vary=('w_s', 'w_fp'))


def test_thin():
    assert evidence.thin(list(range(5)), 9) == [0, 1, 2, 3, 4] and evidence.thin(list(range(101)), 5) == [
        0, 25, 50, 75, 100]


def test_plan_is_printed_with_hours(tmp_path, capsys):
    job = evidence.make_plan(['camvid'], 1)[0]
    pretend(configs(tmp_path)(job))
    assert (
        evidence.main(
            ['plan', '--camvid', '/images', '--weights', 'net.pth', '--out', str(tmp_path), '--seeds', '1'])
        == 0)
    shown = capsys.readouterr().out
    assert 'precision=bf16' in shown and f"{len(evidence.make_plan(['camvid'], 1))} runs, about" in shown
    line = next(l for l in shown.splitlines() if 'supervised' in l and '1_16' in l)
    assert 'finished' in line and float(line.split()[-1]) == pytest.approx(
        (evidence.STEPS * 0.5 + 2 * 233 * evidence.SECONDS['image']) / 3600, abs=0.006)
