"Two runs side by side: pairs by hand, runs that cannot be paired, hostile names, the command."
import csv
import re
import shutil

import numpy as np
import pytest
import torch

from corrmatch.data.views import normalize
from corrmatch.files import DataError
from corrmatch.training.builders import eval_pairs
from corrmatch.training.metrics import mean_iou
from corrmatch.training.trainer import Trainer
from corrmatch.use import report
from corrmatch.use.cli import main
from corrmatch.use.compare import compare_runs, _mean_interval, write_comparison
from corrmatch.use.report import confusion, score_run, show_results, worst
from runs_for_tests import small


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Two short runs."
    place = tmp_path_factory.mktemp('compare')
    for name, steps in (('before', 2), ('after', 8)):
        Trainer(small(place/name, 'supervised', steps=steps, eval_every=8), quiet=True).fit()
    return place/'before', place/'after'


@pytest.fixture(scope='module')
def found(runs): return compare_runs(*runs, most=12, device='cpu')


def test_scores_are_those_of_each_image(runs, found):
    "Predicted here image by image, without the functions that compare."
    for folder, scores in zip(runs, found.iou):
        scored = score_run(folder, most=12, device='cpu')
        source = scored.sources.val
        for row, score in zip(found.rows, scores):
            image = normalize(torch.from_numpy(np.array(source.read_image(row))).permute(2, 0, 1))[None]
            label = scored.model.predict_logits(image).argmax(1)
            mask = torch.from_numpy(np.array(source.read_mask(row)))[None].long()
            assert score == pytest.approx(100*float(mean_iou(label, mask, 5, absent='skip')), abs=1e-3)
    assert found.names == ('before', 'after') and len(found.rows) == 12


def test_images_without_a_labeled_pixel_are_left_out(runs, found, monkeypatch):
    def pairs(source, device, rows):
        for row, (image, mask) in zip(rows, eval_pairs(source, device, rows)):
            yield image, torch.full_like(mask, 255) if row == found.rows[3] else mask
    monkeypatch.setattr(report, 'eval_pairs', pairs)
    rest = compare_runs(*runs, most=12, device='cpu')
    assert rest.rows == found.rows[:3] + found.rows[4:] and len(rest.images) == 11
    np.testing.assert_array_equal(rest.iou, np.delete(found.iou, 3, axis=1))


def test_the_order_of_the_runs_only_turns_the_sign(runs, found):
    turned = compare_runs(*runs[::-1], most=12, device='cpu')
    np.testing.assert_allclose(turned.difference, -found.difference)
    low, high = _mean_interval(found.difference)
    assert low <= found.difference.mean() <= high


def test_interval_against_resampling_by_hand():
    values = np.random.default_rng(3).normal(1, 2, 30)
    means = [np.random.default_rng(i).choice(values, 30).mean() for i in range(4000)]
    np.testing.assert_allclose(_mean_interval(values), np.quantile(means, [.025, .975]), atol=.08)


def test_command_page_table_and_figure(runs, tmp_path, capsys):
    flags = ['--device', 'cpu', '--images', '6']
    assert main(['compare', *map(str, runs), '--out', str(tmp_path/'c.html'), *flags]) == 0
    assert 'after is better on' in capsys.readouterr().out
    page = (tmp_path/'c.html').read_text(encoding='utf-8')
    assert '://' not in page and '<script' not in page and "default-src 'none'" in page
    assert all('alt="' in tag for tag in re.findall('<img [^>]*>', page))
    assert main(['compare', *map(str, runs), '--out', str(tmp_path/'c.csv'), *flags]) == 0
    rows = list(csv.DictReader((tmp_path/'c.csv').open()))
    assert len(rows) == 6 and list(rows[0]) == ['image', 'before', 'after', 'difference']
    for row in rows:
        assert float(row['after']) - float(row['before']) == pytest.approx(float(row['difference']), abs=2e-3)


def test_a_name_that_is_no_form_is_refused_before_predicting(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('corrmatch.use.compare.compare_runs', None)
    assert main(['compare', *map(str, runs), '--out', str(tmp_path/'c.txt')]) == 1
    assert 'must end in .html, .png or .csv' in capsys.readouterr().err


def test_what_cannot_be_compared_is_one_line(runs, tmp_path, capsys):
    assert main(['compare', str(runs[0]), str(tmp_path/'gone'), '--device', 'cpu']) == 1
    assert main(['compare', *map(str, runs), '--out', str(tmp_path/'no'/'c.html')]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 2
    other = shutil.copytree(runs[0], tmp_path/'other')
    record = (other/'config.json').read_text()
    for old, new, why in (
        ('"n_classes": 5', '"n_classes": 4', 'other classes'), ('"crop": 33', '"crop": 65', 'another size'),
        ('"evaluation": "whole"', '"evaluation": "center"', 'other parts'),
        ('"data": ""', '"data": "x"', 'other data')):
        (other/'config.json').write_text(record.replace(old, new))
        with pytest.raises(DataError, match=why):
            compare_runs(runs[0], other, device='cpu')


def test_names_are_escaped(runs, tmp_path):
    evil = shutil.copytree(runs[1], tmp_path/'<img onerror=x>')
    found = compare_runs(runs[0], evil, most=3, device='cpu')
    page = write_comparison(found, tmp_path/'c.html').read_text(encoding='utf-8')
    assert '<img onerror' not in page and '&lt;img onerror=x&gt;' in page


def test_two_folders_of_one_name_are_told_apart(runs, tmp_path):
    twin = shutil.copytree(runs[0], tmp_path/'before')
    found = compare_runs(runs[0], twin, most=3, device='cpu')
    assert found.names == (str(runs[0]), str(twin)) and not found.difference.any()


def test_figures_of_the_report(runs):
    scored = score_run(runs[1], most=9, device='cpu')
    low = min(scored.scores, key=lambda row: scored.scores[row])
    figure = worst(scored, 3)
    assert figure.axes[0].get_title() == str(scored.sources.val.names[low]) and len(figure.axes) == 12
    assert len(show_results(runs[1], 2, device='cpu').axes) == 8
    shares = confusion(scored).axes[0].images[0].get_array()
    rows = scored.confusion.matrix.sum(1) > 0
    np.testing.assert_allclose(shares.sum(1)[rows.numpy()], 100, rtol=1e-5)
