"""The page and the viewer of a run: without data, while it trains, with hostile names, as commands that lead
back to the run."""
import html
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch

from corrmatch.config import IGNORE_INDEX
from corrmatch.data.folders import ArraySource
from corrmatch.files import DataError, write_atomic
from corrmatch.training.builders import eval_pairs
from corrmatch.training.metrics import evaluate
from corrmatch.use import report
from corrmatch.use.cli import main
from corrmatch.use.report import (
    _class_rows, draw_run, _example_cards, read_run, report_page, _run_line, _run_panels, score_run, show_run,
    _summary_rows, write_report)
from corrmatch.training.quality import quality_text, run_quality
from corrmatch.training.trainer import Trainer, load_run
from corrmatch.data.views import normalize
from errors_for_tests import refused
from runs_for_tests import small


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('report')/'run'
    Trainer(small(folder, steps=4, eval_every=2, toy_labeled=4, log_every=1), quiet=True).fit()
    return folder


@pytest.fixture
def run(trained, tmp_path): return shutil.copytree(trained, tmp_path/'run')


def test_page(run):
    said = write_report(run, most=7, device='cpu')
    page = (run/'report.html').read_text(encoding='utf-8')
    assert '7 of 100 validation images' in page and page.count('<figure>') >= 6 and 'report.html' in said
    assert '<script' not in page and '://' not in page
    assert set(re.findall(r' src="(\w+):', page)) == {'data'} and "default-src 'none'" in page
    assert all(
        re.search(rf'<h2>{title}</h2>', page)
        for title in (
            'Summary', 'Validation', 'Classes', 'Confusion', 'Worst images', 'Best images',
            'Pseudo-labels', 'Training', 'Settings'))
    assert all('alt="' in tag for tag in re.findall('<img [^>]*>', page))
    refused(lambda: write_report(run, run/'val.csv'/'r.html', most=1, judged=0), 'val.csv: is a file where')


def test_equal_coverage_of_the_run(run):
    "The section holds what the functions of the run give, and can be left out."
    found = run_quality(run, 'best.pt', 2)
    said = write_report(run, most=2, device='cpu', judged=2)
    page = (run/'report.html').read_text(encoding='utf-8')
    assert '<h2>Equal coverage</h2>' in page and quality_text(found) in page and 'left out' not in said
    after = dict((what, (coverage, accuracy)) for what, coverage, accuracy in found.table())['after regions']
    assert re.search(r'after regions</t[hd]>\s*<td[^>]*>' + f'{100*after[0]:.1f}<', page)
    write_report(run, most=2, device='cpu', judged=0)
    assert 'at equal coverage is left out: not asked for' in (run/'report.html').read_text(encoding='utf-8')


def test_no_equal_coverage_without_masks_or_correlation(run, tmp_path, monkeypatch):
    Trainer(
        small(tmp_path/'plain', 'supervised', steps=2, eval_every=2, toy_labeled=4, regions=0),
        quiet=True).fit()
    write_report(tmp_path/'plain', most=2, device='cpu')
    page = (tmp_path/'plain/report.html').read_text(encoding='utf-8')
    assert 'method supervised has no correlation map' in page and 'Equal coverage</h2>' not in page
    monkeypatch.setattr(ArraySource, 'has_mask', lambda self, i: False)
    refused(lambda: run_quality(run), 'no masks are known', 'IMAGE MASK')
    assert write_report(run, most=2, device='cpu')
    page = (run/'report.html').read_text(encoding='utf-8')
    assert 'no masks are known for its unlabeled images' in page and 'Equal coverage</h2>' not in page


def test_page_without_data(run, tmp_path):
    "The data have moved: the page says so, and keeps the rest with the names of the classes."
    record = (
        (run / 'config.json')
        .read_text()
        .replace('"data": ""', '"data": "gone/<b>"')
        .replace('"labeled": ""', '"labeled": "l.txt"'))
    write_atomic(run/'config.json', record.encode())
    log = read_run(run)
    assert log.names[1] == 'stripes'                                     # from the columns of val.csv
    (run/'metrics.csv').unlink()
    said = write_report(run, tmp_path/'r.html', 'none.pt', device='cpu')
    page = (tmp_path/'r.html').read_text()
    assert (
        'left out' in said
        and 'Confusion and images are left out' in page
        and '<b>' not in page
        and 'Classes' in page)


def test_young_and_damaged_runs(run):
    "Logs that are missing, empty, or cut in a row that is being written."
    whole = (run/'metrics.csv').read_text()
    for text in ('', whole.splitlines()[0] + '\n', whole[:len(whole)-40]):
        (run/'metrics.csv').write_text(text)
        assert 'miou' in _run_panels(read_run(run)) and _run_line(read_run(run))
    draw_run(run)
    for name in ('metrics.csv', 'val.csv', 'state.json'):
        (run/name).unlink()
    shutil.rmtree(run/'pictures')
    log = read_run(run)
    assert (
        _run_panels(log) == {}
        and _class_rows(log) == []
        and 'no validation yet' in _run_line(log)
        and 'unknown' in dict(_summary_rows(log))['state'])
    page = report_page(log, 'nothing to score')
    assert 'nothing to score' in page and '<h2>Classes' not in page
    with pytest.raises(DataError, match='no run folder'):
        read_run(run/'pictures')


def test_scores_without_columns_of_classes(run):
    "val.csv of another program, or with its header damaged: the mean alone."
    (run/'val.csv').write_text('step,miou\n2,10.0\n4,12.5\n')
    assert _class_rows(read_run(run)) == [('mean', '12.5', '12.5', '+0.0')]


def test_supervised_run_has_no_pseudo_labels(tmp_path):
    Trainer(
        small(tmp_path / 's', 'supervised', steps=2, eval_every=2, toy_labeled=4, toy_unlabeled=0, regions=0),
        quiet=True).fit()
    log = read_run(tmp_path/'s')
    assert not {'tau', 'coverage', 'accuracy'} & set(_run_panels(log))
    assert '<h2>Pseudo-labels' not in report_page(log._replace(val={}))


@pytest.mark.parametrize('mode', ['center', 'slide'])
def test_images_are_scored_in_the_runs_own_way(run, mode):
    scored = score_run(run, most=4, device='cpu', evaluation=mode, crop=17)
    source, (model, _) = scored.sources.val, load_run(run)
    rows = list(scored.scores)
    assert rows == [0, 33, 66, 99]
    size = (
        torch.from_numpy(np.stack([source.images[r] for r in rows])),
        torch.from_numpy(np.stack([source.masks[r] for r in rows])))
    pairs = [(normalize(i.permute(2, 0, 1))[None], m[None].long()) for i, m in zip(*size)]
    found = evaluate(model, pairs, 5, mode, 17).matrix
    assert found.sum() == scored.confusion.matrix.sum() and (found - scored.confusion.matrix).abs().sum() <= 4
    [card] = _example_cards(scored, rows[:1], read_run(run).colors)
    assert len(card.images) == 4


def test_the_command_of_the_page_goes_on_with_the_run(trained, tmp_path, capsys):
    "Also for a folder with a name that a shell would split, and a record that no preset made."
    run = shutil.copytree(trained, tmp_path/"a b's")
    record = json.loads((run/'config.json').read_text())
    (run/'config.json').write_text(json.dumps(record | dict(name='mine')))
    page = report_page(read_run(run), 'no scores')
    words = shlex.split(html.unescape(re.search('corrmatch resume .*', page)[0].partition('<')[0]))
    assert words == ['corrmatch', 'resume', str(run)]
    assert main([*words[1:], '--force']) == 0
    assert 'step 4 of 4' in _run_line(read_run(run))


def test_viewer_follows_a_run(run):
    viewer = show_run(run, seconds=1)
    (slider, button, player), label, figure = viewer.children[0].children, *viewer.children[1:]
    assert slider.options == (2, 4) and slider.value == 4 and slider.index == 1 and 'finished' in label.value
    first = figure.value
    slider.index = 0                                                     # what a browser sends
    assert slider.value == 2 and figure.value != first
    (run/'pictures'/'step_000006.png').write_bytes((run/'pictures'/'step_000002.png').read_bytes())
    button.click()
    assert slider.value == 2 and slider.options == (2, 4, 6)
    slider.value = 6
    (run/'pictures'/'step_000008.png').write_bytes((run/'pictures'/'step_000004.png').read_bytes())
    player.value += 1
    assert slider.value == 8 and player.interval == 1000


def test_scores_are_those_of_the_run(run):
    scored = score_run(run, device='cpu', most=0)
    log = read_run(run)
    assert abs(100*scored.confusion.miou() - np.nanmax(log.val['miou'])) < .05 and len(scored.scores) == 100


def unlabeled_pairs(rows_without):
    "Validation pairs whose masks hold no class in some rows; `None`: in all."
    def pairs(source, device, rows):
        for row, (image, mask) in zip(rows, eval_pairs(source, device, rows)):
            nothing = rows_without is None or row in rows_without
            yield image, torch.full_like(mask, IGNORE_INDEX) if nothing else mask
    return pairs


def test_images_without_a_labeled_pixel_have_no_score(run, monkeypatch):
    "They are neither the worst images nor part of any mean."
    whole = score_run(run, most=4, device='cpu')
    monkeypatch.setattr(report, 'eval_pairs', unlabeled_pairs({33}))
    scored = score_run(run, most=4, device='cpu')
    assert scored.scores == {row: score for row, score in whole.scores.items() if row != 33}
    assert len(report.worst(scored, 4).axes) == 3*4
    assert '3 of 100 validation images' in report_page(read_run(run), scored)
    monkeypatch.setattr(report, 'eval_pairs', unlabeled_pairs(None))
    refused(lambda: score_run(run, most=4, device='cpu'), 'no image has a labeled pixel', 'val.txt')
    assert 'no image has a labeled pixel' in write_report(run, most=4, device='cpu', judged=0)
