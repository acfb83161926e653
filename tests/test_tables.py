"Tables of finished runs: means by hand, refusals, unfinished runs, every form of output."
import csv
import json
import math
from dataclasses import asdict

import pytest

from corrmatch.config import preset
from corrmatch.training.run_folder import CsvLog, note_state
from corrmatch.use.tables import (
    format_table, make_rows, paper_steps, published_cells, read_results, table_of)


def run(folder, scores, state='finished', name='voc_92', method='corrmatch', test=None, **changes):
    "A run folder with invented scores, as the trainer leaves it."
    config = preset(name, method, **changes)
    folder.mkdir(parents=True)
    record = asdict(config) | dict(
        precision='bf16', out=str(folder), data='/somewhere/voc',
        steps=config.steps or paper_steps(config) or 10)
    (folder/'config.json').write_text(json.dumps(record))
    log = CsvLog(folder/'val.csv')
    for step, miou in enumerate(scores, 1):
        log.add(step=step, miou=miou)
    if test:
        (folder / 'test.csv').write_text(
            'checkpoint,miou\n' + ''.join(f'{n},{v}\n' for n, v in zip(('best', 'last'), test)))
    note_state(folder, state, step=10 if state == 'finished' else len(scores), steps=10)
    return folder


@pytest.fixture
def three(tmp_path):
    for seed, scores in enumerate([(70., 76., 75.), (80., 77., 77.), (60., 78., 79.)]):
        run(tmp_path/f's{seed}', scores, seed=seed, weights='a/w.pth')
    return tmp_path


def test_mean_and_deviation(three):
    row, = make_rows(read_results([three])[0])
    assert row.seeds == (0, 1, 2)
    assert row.best == pytest.approx((235/3, (((76-235/3)**2 + (80-235/3)**2 + (79-235/3)**2)/2)**.5))
    assert row.last == pytest.approx((77., 2.))
    assert row.cell.miou == 76.2 and row.difference == pytest.approx(235/3 - 76.2)
    assert '78.33 ± 2.08  77.00 ± 2.00  76.2 (crop 321)       +2.13' in format_table([row])


def test_one_run_has_no_deviation(three):
    row, = make_rows(read_results([three/'s0'])[0])
    assert math.isnan(row.best[1]) and '±' not in format_table([row]).splitlines()[1]


def test_runs_given_twice_count_once(three):
    assert len(read_results([three, three/'s0'])[0]) == 3


def test_other_settings_are_refused(three):
    run(three/'odd', (50.,), seed=3, lr=.002, weights='w.pth')
    with pytest.raises(ValueError, match=r'differ in lr \(.*0\.002: odd.*--vary lr'):
        table_of([three])
    table = table_of([three], vary=('lr',))
    assert 'corrmatch, lr=0.002*' in table and '78.33 ± 2.08' in table
    assert 'lr=0.002' in [line for line in table.splitlines() if line.startswith('*')][0]


@pytest.mark.parametrize(
    'changes, field',
    [
        (dict(steps=9), 'steps'), (dict(labeled='splits/x/92/labeled.txt'), 'labeled'),
        (dict(weights=''), 'weights'), (dict(transposed=True), 'transposed')])
def test_each_kind_of_difference_is_named(three, changes, field):
    run(three/'odd', (50.,), seed=3, **dict(weights='w.pth') | changes)
    with pytest.raises(ValueError, match=f'differ in {field} '):
        table_of([three])


def test_places_and_seeds_are_no_difference(three):
    run(three/'elsewhere', (50.,), seed=9, weights='b/w.pth', workers=3, log_every=1)
    row, = make_rows(read_results([three])[0])
    assert row.seeds == (0, 1, 2, 9)


def test_methods_stand_beside_each_other(three):
    run(three/'u', (70.,), method='unimatch', stride=16, weights='w.pth')
    run(three/'f', (60.,), method='fixmatch', weights='w.pth')
    with pytest.raises(ValueError, match='stride'):
        table_of([three])
    rows = make_rows(read_results([three])[0], ('stride',))
    assert [r.method for r in rows] == ['fixmatch', 'unimatch, stride=16', 'corrmatch']
    assert rows[0].cell is None and rows[1].cell.miou == 75.2
    assert '*:' not in format_table(rows)  # stride 16 is UniMatch as published


def test_a_seed_twice_is_refused(three):
    run(three/'again', (50.,), seed=1, weights='w.pth')
    with pytest.raises(ValueError, match='seed 1 .* run twice'):
        table_of([three])


def test_unfinished_runs_stand_apart(three):
    run(three/'half', (99.,), 'stopped', seed=7, weights='w.pth')
    run(three/'empty', (), seed=8, weights='w.pth')
    table = table_of([three])
    assert (
        'half: stopped at step 1 of 10' in table and 'empty: finished, but val.csv holds no scores' in table)
    assert '99' not in table.split('not in the table')[0]
    with pytest.raises(ValueError, match='no finished run'):
        table_of([three/'half'])


def test_forms(three):
    run(three/'c', (40., 42.), name='camvid', crop=161, steps=6, test=(41., 43.))
    for style in ('text', 'markdown'):
        assert 'camvid 1_16, all rows: crop=161' in table_of([three], style=style)
    assert table_of([three], style='markdown').splitlines()[1] == '| --- '*9 + '|'
    rows = list(csv.DictReader(table_of([three], style='csv').splitlines()))
    assert [r['data'] for r in rows] == ['camvid 1_16', 'voc_92']
    assert (rows[0]['test_best'], rows[0]['paper'], rows[1]['best_sd'], rows[1]['seeds']) == (
        '41.0', '', '2.0817', '0 1 2')


def test_every_published_cell_is_shown(three):
    rows = list(csv.DictReader(table_of([three], paper=True, style='csv').splitlines()))
    assert len(rows) == len(published_cells()) == 32
    assert [(r['data'], r['paper']) for r in rows if r['best']] == [('voc_92', '76.2')]
