"What a run promises: the same seed gives the same result, and stopping it changes nothing."
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from corrmatch.config import preset
from corrmatch.training.run_folder import read_checkpoint
from corrmatch.training.trainer import Trainer
from corrmatch.files import DataError
from forks_for_tests import Fork

pytestmark = pytest.mark.usefixtures('light_runs')


def config(out, **changes):
    base = dict(
        crop=33, toy_unlabeled=8, batch_x=2, batch_u=2, dim=16, low_dim=8, regions=8, steps=6, eval_every=2,
        log_every=2, warmup=1, device='cpu', weights='', out=str(out))
    return preset('toy', **base | changes)


def weights(out): return read_checkpoint(Path(out)/'last.pt')['model']


def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    "The weights of the plain run."
    out = tmp_path_factory.mktemp('plain')/'run'
    Trainer(config(out), quiet=True).fit()
    return weights(out)


@pytest.mark.parametrize('workers', [0, 2])
def test_same_seed_same_weights_with_any_number_of_workers(tmp_path, plain, workers):
    Trainer(config(tmp_path/'run', workers=workers), quiet=True).fit()
    assert equal(plain, weights(tmp_path/'run'))


def test_another_seed_gives_other_weights(tmp_path):
    for seed in (0, 1):
        Trainer(config(tmp_path/str(seed), seed=seed, steps=2), quiet=True).fit()
    assert not equal(weights(tmp_path/'0'), weights(tmp_path/'1'))


class Killed(Trainer):
    "A trainer whose process is killed in its 18th step, one behind a checkpoint."
    def run_step(self, batch):
        if self.step == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run_step(batch)


def test_killed_and_resumed_run_ends_bitwise_equal(tmp_path):
    changes = dict(steps=40, eval_every=10, save_every=2, threshold='per_class')
    Trainer(config(tmp_path/'straight', **changes), quiet=True).fit()
    code = (
        'import sys; sys.path.insert(0, "tests"); '
        'from runs_for_tests import lighten; from test_trainer import Killed, config; lighten(); '
        f'Killed(config(sys.argv[1], **{changes}), quiet=True).fit()')
    process = Fork(['-c', code, tmp_path/'killed'], OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert process.wait() == -signal.SIGKILL, process.said()
    assert read_checkpoint(tmp_path/'killed'/'last.pt')['step'] == 16
    Trainer(config(tmp_path/'killed', **changes), quiet=True).fit(resume=True)
    assert equal(weights(tmp_path/'straight'), weights(tmp_path/'killed'))
    rows = [(tmp_path/run/'val.csv').read_text() for run in ('straight', 'killed')]
    assert rows[0] == rows[1]


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_behind_a_saved_step(tmp_path, number, code):
    flags = [
        f'--{k}={v}'
        for k, v in dict(
            crop=33, toy_unlabeled=8, batch_x=2, batch_u=2, dim=16, low_dim=8, steps=4000, eval_every=4000,
            workers=1, log_every=1, warmup=1, device='cpu', out=tmp_path / 'run').items()]
    process = Fork(['-m', 'corrmatch', 'train', 'toy', *flags], cwd=tmp_path)
    process.wait_for(tmp_path/'run'/'metrics.csv')
    process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == code and 'Traceback' not in err and 'corrmatch resume' in err
    assert 0 < read_checkpoint(tmp_path/'run'/'last.pt')['step'] < 4000


def test_a_pickle_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self): return (Path(tmp_path/'ran').touch, ())
    torch.save(dict(model=Evil(), config={}), tmp_path/'evil.pt')
    with pytest.raises(DataError, match='not a readable checkpoint'):
        read_checkpoint(tmp_path/'evil.pt')
    assert not (tmp_path/'ran').exists()


def test_methods_start_from_the_same_weights(tmp_path):
    nets = [
        Trainer(
            replace(
                preset('toy', m, crop=33, toy_unlabeled=8, dim=16, low_dim=8, weights=''),
                out=str(tmp_path / m))
        ).model.state_dict()
        for m in ('supervised', 'corrmatch')]
    assert all(torch.equal(nets[1][k], v) for k, v in nets[0].items())


@pytest.mark.parametrize(
    'changes',
    [
        dict(backbone='timm:test_resnet', stride=8),
        dict(backbone='timm:test_vit', stride=16, layer_decay=0.7),
        dict(backbone='timm:test_vit', stride=16, freeze=True)],
    ids=['stages', 'layer-wise rates', 'frozen'])
def test_a_timm_backbone_trains(tmp_path, changes):
    pytest.importorskip('timm')
    trainer = Trainer(
        config(tmp_path / 'run', norm='batch', crop=49, steps=2, eval_every=2, **changes), quiet=True)
    before = {k: v.clone() for k, v in trainer.model.backbone.named_parameters()}
    trainer.fit()
    moved = [k for k, v in trainer.model.backbone.named_parameters() if not torch.equal(v, before[k])]
    assert bool(moved) != changes.get('freeze', False)
    assert len(trainer.optimizer.param_groups) == (
        1
        if changes.get('freeze')
        else 2
        if 'layer_decay' not in changes
        else len(trainer.optimizer.param_groups))


def test_a_run_on_shards_equals_a_run_on_files(tmp_path):
    from PIL import Image
    from corrmatch.data.shards import write_shards
    from corrmatch.data.folders import read_split
    from corrmatch.data.toy import toy_arrays
    data = tmp_path/'data'
    (data/'images').mkdir(parents=True)
    (data/'masks').mkdir()
    for i, (image, mask) in enumerate(zip(*toy_arrays(range(10), 49, n_classes=5))):
        Image.fromarray(image).save(data/'images'/f'{i:02d}.png')
        Image.fromarray(mask).save(data/'masks'/f'{i:02d}.png')
    lines = [f'images/{i:02d}.png masks/{i:02d}.png' for i in range(10)]
    for name, part in (('l.txt', lines[:4]), ('u.txt', lines[4:8]), ('val.txt', lines[8:])):
        (data/name).write_text('\n'.join(part) + '\n')
    write_shards(read_split(data/'u.txt', data, False), data/'shards', 2)
    shards = sorted(p.name for p in (data/'shards').glob('*.tar'))
    common = dict(data=str(data), labeled='l.txt', val='val.txt', cutmix='other_image', steps=3, eval_every=3)
    for name, unlabeled in (('files', 'u.txt'), ('shards', 'shards/*.tar')):
        Trainer(config(tmp_path/name, unlabeled=unlabeled, **common), quiet=True).fit()
    assert len(shards) > 1 and equal(weights(tmp_path/'files'), weights(tmp_path/'shards'))


def test_eval_reads_only_the_validation_set_and_nothing_outside(tmp_path):
    from corrmatch.use.cli import main
    Trainer(config(tmp_path/'run', steps=1), quiet=True).fit()
    state = read_checkpoint(tmp_path/'run'/'best.pt')
    state['config'] |= dict(
        data=str(tmp_path), labeled='/etc/passwd', unlabeled='/etc', val='../../etc/passwd')
    torch.save(state, tmp_path/'run'/'best.pt')
    assert main(['eval', str(tmp_path/'run')]) == 1
