"""Which image to label next: right values, the four strategies, folders of every kind, lists that other
commands read, pages that run nothing."""
import csv
import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch.config import preset
from corrmatch.data.folders import read_split
from corrmatch.data.toy import toy_arrays
from corrmatch.training.builders import make_model
from corrmatch.use.cli import main
from corrmatch.use.predict import LoadedModel
from corrmatch.use.suggest import (
    _choose_rows, _class_uncertainty, _greedy_centres, _nearest_distance, _rare_weights, suggest)
from corrmatch.viz import palette
from errors_for_tests import refused

ROOT = Path(__file__).resolve().parents[1]
NAMES = ['background', 'stripes', 'checks', 'dots', 'zigzag']


def paint(folder, n=10, masks=4, seed=0):
    "A folder of n scenes, the first with masks."
    images, ids = toy_arrays(range(seed, seed + n), 33, n_classes=5)
    for sub in ('images', 'masks'):
        (folder/sub).mkdir(parents=True, exist_ok=True)
    for i, (image, mask) in enumerate(zip(images, ids)):
        Image.fromarray(image).save(folder/f'images/s{i}.png')
        if i < masks:
            Image.fromarray(mask).save(folder/f'masks/s{i}.png')
    (folder/'classes.txt').write_text('\n'.join(NAMES))
    return folder


def model_for(folder, **lists):
    "A network with random heads on the shipped backbone, as a run on this folder would leave it."
    config = preset('toy', 'supervised', data=str(folder or ''), device='cpu', dim=16, stride=8, **lists)
    return LoadedModel(make_model(config)[0].eval(), config, NAMES, palette(5, 'toy'))


@pytest.fixture
def photos(tmp_path): return paint(tmp_path/'photos')


# ------------------------------------------------------------------ numbers

def test_uncertainty_is_the_mean_of_one_minus_margin():
    probs = torch.rand(3, 5, 6, 7, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    found = _class_uncertainty(probs)
    ordered = probs.sort(1).values
    undecided = 1 - ordered[:, -1] + ordered[:, -2]
    torch.testing.assert_close(found.sum(1), undecided.mean((1, 2)))
    for c in range(5):
        wanted = (undecided*(probs.argmax(1) == c)).mean((1, 2))
        torch.testing.assert_close(found[:, c], wanted)


def test_rare_classes_weigh_more():
    shares = np.array([.64, .32, .04])
    weights = _rare_weights(shares)
    assert np.allclose(weights, [.25, 8**-.5, 1])
    assert np.all(np.diff(weights[np.argsort(shares)]) < 0)


def test_greedy_centres_agrees_with_a_search_of_every_step():
    rng = np.random.default_rng(0)
    feats, labeled, value = rng.normal(size=(12, 3)), rng.normal(size=(2, 3)), rng.random(12)
    chosen = _greedy_centres(feats, labeled, value, 5)
    taken = list(labeled)
    for row, score in zip(*chosen):
        scores = [v*min(np.linalg.norm(f - t) for t in taken) for f, v in zip(feats, value)]
        assert row == int(np.argmax(scores)) and score == pytest.approx(max(scores))
        taken.append(feats[row])
    assert len({*chosen.rows}) == 5


def test_twins_are_not_both_chosen():
    feats = np.array([[0., 1.], [0., 1.], [1., 0.], [.7, .7]])
    none = np.zeros((0, 2))
    value = np.array([1., .99, .5, .4])
    assert _choose_rows(value, feats, none, 2, 'uncertainty').rows == [0, 1]
    assert _choose_rows(value, feats, none, 2, 'both').rows == [0, 2]
    assert _nearest_distance(feats, none).tolist() == [2]*4
    everything = _choose_rows(value, feats, none, 9, 'both')
    assert sorted(everything.rows) == [0, 1, 2, 3] and everything.scores[-1] == 0


# ------------------------------------------------------------------ folders

@pytest.mark.parametrize('strategy', ['random', 'uncertainty', 'diverse', 'both'])
def test_strategies_suggest_unlabeled_images_only(photos, tmp_path, strategy):
    model = model_for(photos)
    found = suggest(photos, model, 4, strategy, out=tmp_path/'out', quiet=True)
    again = suggest(photos, model, 4, strategy, out=tmp_path/'again', quiet=True)
    assert found.names == again.names and found.list_file.read_bytes() == again.list_file.read_bytes()
    assert (tmp_path/'out/scores.csv').read_bytes() == (tmp_path/'again/scores.csv').read_bytes()
    pairs = read_split(found.list_file, photos, masks=False)
    assert [p.image.name for p in pairs] == [name.removeprefix('images/') for name in found.names]
    assert len({*found.names}) == 4 and not {p.name for p in pairs} & {'s0', 's1', 's2', 's3'}
    assert (found.n_free, found.n_labeled) == (6, 4)


def test_uncertainty_ranks_by_value(photos, tmp_path):
    found = suggest(photos, model_for(photos), 3, 'uncertainty', out=tmp_path/'out', quiet=True)
    rows = list(csv.DictReader((tmp_path/'out/scores.csv').read_text().splitlines()))
    values = {row['image']: float(row['value']) for row in rows}
    assert found.names == sorted(values, key=values.get, reverse=True)[:3]
    assert [row['rank'] for row in rows] == ['1', '2', '3', '', '', '']
    assert all(float(row['value']) <= float(row['uncertainty']) for row in rows)


def test_lists_of_the_run_and_hidden_masks(tmp_path):
    photos = paint(tmp_path/'photos', masks=10)
    (photos/'labeled.txt').write_text('s0\ns1')
    (photos/'unlabeled.txt').write_text('\n'.join(f's{i}' for i in range(2, 9)))
    (photos/'val.txt').write_text('s8\ns9')
    model = model_for(photos, labeled='labeled.txt', unlabeled='unlabeled.txt')
    found = suggest(photos, model, 20, 'diverse', out=tmp_path/'out', quiet=True)
    assert sorted(found.names) == [f'images/s{i}.png' for i in range(2, 8)]
    assert found.n_labeled == 2
    (photos/'masks/s5.png').unlink()  # now the masks say what is labeled
    found = suggest(photos, model, 20, 'diverse', out=tmp_path/'out', quiet=True)
    assert found.names == ['images/s5.png'] and found.n_labeled == 7


def test_a_folder_without_any_mask_and_a_run_on_the_generated_world(tmp_path):
    photos = paint(tmp_path/'photos', masks=0)
    model = model_for('', toy_labeled=3)
    found = suggest(photos, model, 2, out=tmp_path/'out', quiet=True)
    assert (len(found.names), found.n_free, found.n_labeled) == (2, 10, 3)


def test_names_with_blanks_and_markup(photos, tmp_path):
    for old, new in (('s8', 'a b'), ('s9', '<b>x&y')):
        (photos/f'images/{old}.png').rename(photos/f'images/{new}.png')
    found = suggest(photos, model_for(photos), 9, out=tmp_path/'out', quiet=True)
    images = {p.image.name for p in read_split(found.list_file, photos, masks=False)}
    assert {'a b.png', '<b>x&y.png'} <= images
    page = found.look.read_text(encoding='utf-8')
    assert '<b>x' not in page and '&lt;b&gt;x&amp;y' in page and "default-src 'none'" in page


def test_output_in_the_data_folder_is_no_data(photos):
    model = model_for(photos)
    first = suggest(photos, model, 3, out=photos/'next', quiet=True)
    assert suggest(photos, model, 3, out=photos/'next', quiet=True).names == first.names


# ------------------------------------------------------------------ bad input

def test_a_broken_image_is_named_and_left_out(photos, tmp_path):
    (photos/'images/s7.png').write_bytes(b'no image')
    found = suggest(photos, model_for(photos), 9, out=tmp_path/'out', quiet=True)
    assert len(found.names) == 5 and len(found.broken) == 1 and 's7.png' in found.broken[0]
    assert 's7.png' in found.look.read_text() and '1 could not be read' in found.text


@pytest.mark.parametrize('options, words', [
    (dict(n=0), 'n=0'), (dict(strategy='best'), "strategy='best'"), (dict(longest=8), 'longest=8')])
def test_options_that_cannot_be_meant(photos, tmp_path, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        suggest(photos, model_for(photos), out=tmp_path/'out', quiet=True, **options)
    assert '\n' not in str(caught.value)


def test_folders_that_cannot_be_meant(photos, tmp_path):
    model = model_for(photos)
    refused(lambda: suggest(tmp_path/'none', model, out=tmp_path/'out'), 'no such data folder')
    full = paint(tmp_path/'full', masks=10)
    refused(lambda: suggest(full, model, out=tmp_path/'out', quiet=True), 'no unlabeled image')
    (tmp_path/'file').write_text('')
    refused(lambda: suggest(photos, model, out=tmp_path/'file', quiet=True), 'is a file')


def test_command(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('corrmatch.use.suggest.load', lambda *args, **options: model_for(photos))
    out = tmp_path/'out'
    flags = ['--run', 'run', '-n', '3', '--strategy', 'diverse', '--out', str(out)]
    assert main(['suggest', str(photos), *flags]) == 0
    assert '3 of 6 unlabeled images suggested, 4 are labeled' in capsys.readouterr().out
    assert len((out/'suggested.txt').read_text().splitlines()) == 3
    assert sorted(os.listdir(out)) == ['.corrmatch', 'index.html', 'scores.csv', 'suggested.txt']


def test_command_refuses_a_run_that_is_not_there(photos, tmp_path, capsys):
    assert main(['suggest', str(photos), '--run', str(tmp_path/'none')]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and 'no such run folder' in lines[0]


# ------------------------------------------------------------------ the measurement

@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'tools'))
    module = importlib.import_module('suggest_study')
    monkeypatch.setattr(module, 'STEPS', 3)
    monkeypatch.setattr(module, 'LABELS', 4)
    monkeypatch.setattr(module, 'SEEDS', (1,))
    return module


def some_features(n=30, k=6):
    "Features, masks and validation of a set of images that were never drawn."
    torch.manual_seed(0)
    masks = torch.randint(k, (n, 8, 8), dtype=torch.uint8)
    feats = torch.randn(n, 5, 4, 4).half()
    return dict(
        pool=feats, val=feats[:6], pool_masks=masks, val_masks=masks[:6], pooled=torch.rand(n, 5).double())


def test_the_study_gives_all_strategies_equal_budgets(study, tmp_path):
    found = some_features()
    jobs = [job for job in study.make_plan() if job.data == 'generated']
    assert len(jobs) == 9
    labeled = {}
    for job in jobs:
        labeled[job] = study.do(job, tmp_path, found)['labeled']
        assert len({*labeled[job]}) == 4*job.round
        if job.round > 1:
            assert labeled[job][:-4] == labeled[job.before]
    rows = study.collect(jobs, tmp_path)
    assert [row['labels'] for row in rows] == [4] + [8]*4 + [12]*4
    shared = [study.score_of(rows, 'generated', 1, 1, strategy) for strategy in study.STRATEGIES]
    assert len({*shared}) == 1
    assert study.summary(rows).count('generated') == 12
    again = study.do(jobs[1], tmp_path, found)
    assert again['labeled'] == labeled[jobs[1]] and again['miou'] == rows[1]['miou']
    (tmp_path/f'{jobs[-1].name}.json').unlink()
    assert study.collect(jobs, tmp_path) == []  # a seed counts when all of its runs are finished
