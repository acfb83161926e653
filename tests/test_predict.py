"""Using a trained model: odd images and sizes, broken files, memory, videos, pages, exported networks,
pseudo-labels."""
import copy
import html
import importlib
import json
import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch.use import export
from corrmatch.use.cli import main
from corrmatch.config import IGNORE_INDEX, preset
from corrmatch.training.checkpoints import load_weights, make_card, open_weights, release, save_weights
from corrmatch.data.folders import read_classes
from corrmatch.files import DataError
from corrmatch.training.metrics import ConfusionMatrix, evaluate, slide_probs
from corrmatch.data.masks import png_bytes
from corrmatch.use.predict import (
    LoadedModel, find_inputs, load, _predict_bands, predict_files, pseudo_files)
from corrmatch.training.builders import eval_pairs, make_model, make_datasets
from corrmatch.training.trainer import Trainer, load_run
from corrmatch.data.views import normalize
from errors_for_tests import refused
from runs_for_tests import environment, small

ROOT = Path(__file__).resolve().parents[1]
predict = importlib.import_module('corrmatch.use.predict')  # `corrmatch.predict` is the function


def random_image(h=40, w=50, seed=0):
    "Smooth random colours."
    coarse = np.random.default_rng(seed).integers(0, 256, (max(h//8, 1), max(w//8, 1), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('use')/'run'
    Trainer(small(folder, steps=2, eval_every=2, toy_labeled=4), quiet=True).fit()
    return folder


@pytest.fixture(scope='module')
def predictor(run): return load(run, device='cpu')


@pytest.mark.parametrize('h, w', [(1, 1), (1, 300), (33, 33), (40, 51), (513, 20), (560, 700)])
def test_any_size(predictor, h, w):
    result = predictor.predict(random_image(h, w))
    assert result.mask.shape == result.confidence_bytes.shape == (h, w) and result.mask.dtype == np.uint8
    assert result.mask.max() < 5 and result.confidence_bytes.min() > 0


@pytest.mark.parametrize(
    'h, w, tile, stride', [(50, 70, 33, None), (33, 33, 33, None), (100, 20, 24, 24), (47, 90, 24, 5)])
def test_bands_are_the_sliding_window(run, h, w, tile, stride):
    model = load(run, device='cpu').model
    image = random_image(h, w)
    sums = slide_probs(
        model, normalize(torch.from_numpy(image.copy()).permute(2, 0, 1))[None], tile, stride=stride)[0]
    top = sums.topk(2, 0).values
    bands = list(_predict_bands(model, image, tile, stride))
    label = np.concatenate([b[1] for b in bands])
    sure = (top[0]-top[1] > 1e-4).numpy()
    assert (label == sums.argmax(0).numpy())[sure].all() and sure.mean() > .99
    assert abs(np.concatenate([b[2] for b in bands]) - (255*top[0]/sums.sum(0)).numpy()).max() < .51


def test_modes(predictor, tmp_path):
    base = random_image()
    grey = base[..., 0]
    ways = {
        'rgba.png': Image.fromarray(np.dstack([base, np.full(grey.shape, 9, np.uint8)])),
        'la.png': Image.fromarray(grey).convert('LA'), 'l.png': Image.fromarray(grey),
        'deep.png': Image.fromarray((grey.astype(np.uint16) << 8) + 255),
        'deep.tif': Image.fromarray((grey.astype(np.uint16) << 8) + 255),
        'bits.png': Image.fromarray(grey > 99), 'p.png': Image.fromarray(base).quantize(8),
        'cmyk.jpg': Image.fromarray(base).convert('CMYK'), 'rgb.webp': Image.fromarray(base),
        'rgb.bmp': Image.fromarray(base)}
    for name, image in ways.items():
        image.save(tmp_path/name)
    assert all(predictor.predict(tmp_path/name).mask.shape == base.shape[:2] for name in ways)
    # alpha is dropped
    assert (predictor.predict(tmp_path / 'rgba.png').mask == predictor.predict(base).mask).all()
    assert all(
        (predictor.predict(tmp_path / name).mask == predictor.predict(grey).mask).all()
        for name in ('deep.png', 'deep.tif'))


@pytest.mark.parametrize(
    'orientation, turn',
    [
        (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)), (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)), (8, lambda a: np.rot90(a))])
def test_exif_orientation(predictor, tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = random_image(24, 40)
    Image.fromarray(stored).save(tmp_path/'a.png', exif=exif)
    shown = np.ascontiguousarray(turn(stored))
    for given in (tmp_path/'a.png', str(tmp_path/'a.png'), Image.open(tmp_path/'a.png')):
        result = predictor.predict(given)
        assert (result.image == shown).all() and (result.mask == predictor.predict(shown).mask).all()


def test_broken_files_are_named_and_skipped(predictor, tmp_path):
    album, out = tmp_path/'album', tmp_path/'album'/'out'
    album.mkdir()
    Image.fromarray(random_image()).save(album/'good.png')
    whole = (album/'good.png').read_bytes()
    for name, data in {
        'empty.png': b'', 'text.jpg': b'hello', 'cut.png': whole[: len(whole) // 2],
        'noise.png': bytes(200)}.items():
        (album/name).write_bytes(data)
    (album/'folder.png').mkdir()
    (album/'dangling.png').symlink_to(album/'nowhere.png')
    done = predict_files(predictor, [album], out, quiet=True)
    assert done.n == 1 and {Path(line.split(':')[0]).name for line in done.broken} == {
        'empty.png', 'text.jpg', 'cut.png', 'noise.png'}
    assert '4 could not be read' in done.text and all('\n' not in line for line in done.broken)
    assert (out/'masks'/'good.png').is_file() and [p.name for p in (out/'masks').iterdir()] == ['good.png']
    # outputs inside of the input are not taken for images
    assert predict_files(predictor, [album], out, quiet=True).n == 1
    with pytest.raises(DataError, match='no such file'):
        predict_files(predictor, [album/'nowhere.png'], out, quiet=True)


def test_outputs_are_replaced_whole(predictor, tmp_path, monkeypatch):
    Image.fromarray(random_image(seed=1)).save(tmp_path/'a.png')
    predict_files(predictor, [tmp_path/'a.png'], tmp_path/'out', quiet=True)
    before = (tmp_path/'out'/'masks'/'a.png').read_bytes()
    Image.fromarray(random_image(90, 70, seed=2)).save(tmp_path/'a.png')
    def full(*args): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', full)
        with pytest.raises(DataError, match='No space left'):
            predict.write_file(tmp_path/'out'/'masks'/'a.png', b'half')
    assert (tmp_path/'out'/'masks'/'a.png').read_bytes() == before
    predict_files(predictor, [tmp_path/'a.png'], tmp_path/'out', quiet=True)
    assert Image.open(tmp_path / 'out' / 'masks' / 'a.png').size == (70, 90) and not list(
        (tmp_path / 'out').rglob('*.part'))


def test_a_folder_that_cannot_be_written_is_one_line(run, predictor, tmp_path, monkeypatch):
    Image.fromarray(random_image()).save(tmp_path/'a.png')
    for use in (
        lambda out: predict_files(predictor, [tmp_path / 'a.png'], out, quiet=True),
        lambda out: pseudo_files(load(run, device='cpu'), [tmp_path / 'a.png'], out, quiet=True)):
        refused(lambda: use(tmp_path/'a.png'), 'is a file', 'choose another')
        def full(*args): raise OSError(28, 'No space left on device')
        with monkeypatch.context() as m:
            m.setattr(os, 'replace', full)
            with pytest.raises(ValueError, match='No space left'):
                use(tmp_path/'out')  # and not as a list of images that could not be read


def test_a_predictor_of_a_predictor(run, predictor):
    "Networks are packed once, however often they are handed on."
    again = LoadedModel(predictor.fused, predictor.config, predictor.names, predictor.colors)
    assert (
        again.fused is predictor.fused
        and (again.predict(random_image()).mask == predictor.predict(random_image()).mask).all())
    with pytest.raises(ValueError, match='the network it was made from'):
        export.InferenceNet(predictor.fused)


def test_propagated_scores_at_inference(run, tmp_path, capsys):
    "Prediction, propagated scores and their mean, as commands; the mean is that of the two softmaxes."
    model, config = load_run(run, 'best.pt')
    model.eval()
    tables = {name: ConfusionMatrix(config.n_classes) for name in ('none', 'mean', 'only')}
    with torch.no_grad():
        for image, mask in eval_pairs(make_datasets(config, only_val=True).val):
            out = model(image)
            own, propagated = out.logits.softmax(1), out.logits_corr.softmax(1)
            for name, probs in dict(none=own, mean=(own + propagated)/2, only=propagated).items():
                tables[name].update(probs.argmax(1), mask)
    by_hand = {name: 100*table.miou() for name, table in tables.items()}
    for how, expected in by_hand.items():
        assert main(['eval', str(run), '--device', 'cpu', '--propagated', how]) == 0
        said = capsys.readouterr().out
        assert float(re.search(r'^mIoU +(\S+)$', said, re.M)[1]) == pytest.approx(expected, abs=.051)
        assert ('propagated' in said) == (how != 'none')
    Image.fromarray(random_image(200, 180)).save(tmp_path/'a.png')
    flags = ['--tile', '65', '--flip', '--device', 'cpu']
    for how in by_hand:
        out = tmp_path/how
        command = ['predict', str(run), str(tmp_path/'a.png'), '--out', str(out), '--propagated', how, *flags]
        assert main(command) == 0
        assert ('propagated scores' in (out/'index.html').read_text()) == (how != 'none')
    masks = [(tmp_path/how/'confidence'/'a.png').read_bytes() for how in by_hand]
    assert len(set(masks)) == 3


def test_propagated_scores_need_a_correlation_head(run, tmp_path, capsys):
    changes = dict(steps=2, eval_every=2, toy_labeled=4, regions=0)
    Trainer(small(tmp_path/'run', 'fixmatch', **changes), quiet=True).fit()
    Image.fromarray(random_image()).save(tmp_path/'a.png')
    capsys.readouterr()
    for command in (['eval', str(tmp_path/'run')], ['predict', str(tmp_path/'run'), str(tmp_path/'a.png')]):
        assert main([*command, '--device', 'cpu', '--propagated', 'mean']) == 1
        said = capsys.readouterr().err.strip()
        assert 'no correlation head' in said and str(tmp_path/'run') in said and '\n' not in said
    opened = load(run, device='cpu', propagated='mean')
    with pytest.raises(ValueError, match="the prediction alone; set propagated='none'"):
        export.InferenceNet(opened.model)


def test_names_do_not_collide(tmp_path):
    for name in ('a.png', 'a.jpg', 'A.PNG', 'x/a.png', 'b.tar.png', '.b.png'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        Image.fromarray(random_image(4, 4)).save(tmp_path/name)
    names = [i.name for i in find_inputs([tmp_path, tmp_path/'x'/'a.png'])]
    assert len({n.lower() for n in names}) == 6 and 'b.tar' in names and 'x/a' in names


def test_weights_file_predicts_the_same(run, predictor, tmp_path):
    release(run, tmp_path/'w.safetensors')
    assert (
        load(tmp_path / 'w.safetensors', device='cpu').predict(random_image()).mask
        == predictor.predict(random_image()).mask
    ).all()


def test_released_weights_have_the_score_of_the_card(tmp_path):
    "With ema a run scores two sets of weights; each file must hold the one whose score it tells."
    Trainer(small(tmp_path/'run', steps=6, eval_every=2, toy_labeled=4, ema=.3), quiet=True).fit()
    for options in (dict(), dict(name='last.pt'), dict(name='last.pt', average=True)):
        release(tmp_path/'run', tmp_path/'w.pth', **options)
        model, config = open_weights(tmp_path/'w.pth')
        [told], which = (
            (card := load_weights(tmp_path / 'w.pth')[1])['scores'].values(), card['data']['weights'])
        scored = evaluate(
            model, eval_pairs(make_datasets(config, only_val=True).val, torch.device('cpu')),
            config.n_classes, config.evaluation, config.crop)
        assert (
            abs(100 * scored.miou() - told) < 0.01
            and ('ema=0.3' in which)
            and f'| weights | {which} |' in (tmp_path / 'w.md').read_text())
        if options:
            assert which.startswith('running average' if 'average' in options else 'of the step itself')


def test_class_names(run, tmp_path):
    config = preset('voc_92')
    assert (
        predict.class_display(config)[0][1] == 'aeroplane'
        and predict.class_display(preset('cityscapes_1_16'))[0][0] == 'road')
    (tmp_path/'val.csv').write_text('step,miou,' + ','.join(f'iou_thing {c}' for c in range(21)) + '\n')
    assert predict.class_display(replace(config, data='gone'), tmp_path)[0][20] == 'thing 20'
    assert predict.class_display(replace(config, name='own', data='gone', n_classes=3))[0] == [
        'class 0', 'class 1', 'class 2']


def test_page_is_closed_and_escaped(run, tmp_path):
    odd = ['<script>alert(1)<.png', '"><img src=x>.png', "a'b&c.png", 'tab\tname.png']
    for name in odd:
        Image.fromarray(random_image(9, 9)).save(tmp_path/name)
    opened = load(run, device='cpu')
    named = LoadedModel(opened.model, opened.config, ['<i>', '</style>', 'c', 'd', 'e'], opened.colors)
    done = predict_files(named, [tmp_path], tmp_path/'out', quiet=True)
    page = done.look.read_text(encoding='utf-8')
    assert '<script' not in page and '<i>' not in page and '<img src' not in page
    assert page.count('</style>') == 1 and page.count('<figure>') == 4 and '://' not in page
    assert set(re.findall(r'<(\w+)', page)) <= {
        'html', 'head', 'meta', 'link', 'title', 'style', 'body', 'h1', 'h2', 'p', 'ul', 'li', 'svg', 'rect',
        'div', 'figure', 'figcaption', 'img', 'a', 'br'}
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    assert "default-src 'none'" in policy and 'unsafe' not in policy and 'script' not in policy
    assert all(Path(n).stem in html.unescape(page) for n in odd)


def test_large_image_in_bounded_memory():
    "24 million pixels, 6 classes: the plain sliding window would hold 576 MB of sums alone."
    code = '''
import numpy as np, resource, torch
from torch import nn
from corrmatch.config import preset
from corrmatch.use.predict import LoadedModel
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, 8, bias=False)
    def predict_logits(self, x):
        small = self.conv(nn.functional.pad(x, (0, 7, 0, 7)))
        return nn.functional.interpolate(small, x.shape[-2:])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
config = preset('toy', n_classes=6, crop=257)
predictor = LoadedModel(Net().eval(), config, 'abcdef', np.zeros((6, 3), np.uint8))
small = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
predictor.predict(small.repeat(16, 0).repeat(16, 1))
image = small.repeat(100, 0).repeat(100, 1)
before = peak()
mask = predictor.predict(image).mask
print(mask.shape, peak() - before)
'''
    said = subprocess.run(
        [sys.executable, '-c', code], env=environment(), capture_output=True, text=True, timeout=600)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith('(4000, 6000)')
    band, maps = 4*6*514*6000/2**20, 2*24e6/2**20
    assert float(said.stdout.split()[-1]) < 1.6*band + maps + 60, (said.stdout, band, maps)


def make_clip(path, n=5, h=48, w=64):
    writer = predict._VideoWriter(path, 5)
    for i in range(n):
        writer.add(np.roll(random_image(h, w), 6*i, 1))
    writer.close()


def test_video(predictor, tmp_path):
    pytest.importorskip('av', reason='PyAV is not installed')
    make_clip(tmp_path/'clip.mp4')
    make_clip(tmp_path/'odd.mkv', 3, 49, 63)
    (tmp_path/'cut.mp4').write_bytes((tmp_path/'clip.mp4').read_bytes()[:500])
    done = predict_files(predictor, [tmp_path], tmp_path/'out', every=2, quiet=True)
    assert done.n == 3+2 and len(done.broken) == 1 and 'cut.mp4' in done.broken[0]
    assert sorted(p.name for p in (tmp_path / 'out' / 'masks' / 'clip').iterdir()) == [
        '000000.png', '000002.png', '000004.png']
    frames = list(predict._read_frames(tmp_path/'out'/'overlays'/'clip.mp4'))
    assert len(frames) == 3 and frames[0][1].shape == (48, 64, 3) and frames[0][2] == 2.5
    assert (
        not list((tmp_path / 'out').rglob('*.part'))
        and (tmp_path / 'out' / 'index.html').read_text().count('<figure>') == 2)
    mask = np.asarray(Image.open(tmp_path/'out'/'masks'/'clip'/'000002.png'))
    assert (mask == predictor.predict(list(predict._read_frames(tmp_path/'clip.mp4'))[2][1]).mask).all()


@pytest.mark.parametrize(
    'matrix, turns', [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=['clockwise', 'upside down', 'counter-clockwise'])
def test_video_is_turned_as_players_show_it(tmp_path, matrix, turns):
    "The track header of an upright phone's video holds a matrix that players apply."
    pytest.importorskip('av', reason='PyAV is not installed')
    make_clip(tmp_path/'a.mp4', 1)
    data = bytearray((tmp_path/'a.mp4').read_bytes())
    at, (a, b, c, d) = data.index(b'tkhd') + 44, (65536*v for v in matrix)
    data[at:at+36] = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path/'b.mp4').write_bytes(data)
    plain, turned = (next(predict._read_frames(tmp_path/name))[1] for name in ('a.mp4', 'b.mp4'))
    assert (turned == np.rot90(plain, turns)).all()


def test_a_name_that_is_no_text(predictor, tmp_path):
    "File systems allow names that are not UTF-8."
    (tmp_path/'in').mkdir()
    try:
        (tmp_path / 'in' / os.fsdecode(b'caf\xe9.png')).write_bytes(
            png_bytes(np.zeros((9, 9), np.uint8), predictor.colors))
    except (OSError, UnicodeError):
        pytest.skip('not on this file system')
    done = predict_files(predictor, [tmp_path/'in'], tmp_path/'out', quiet=True)
    assert (
        done.n == 1
        and 'caf%E9.jpg' in done.look.read_text()
        and len(list((tmp_path / 'out' / 'masks').iterdir())) == 1)


def test_without_extras_one_line_names_them(monkeypatch):
    for module, name, call in (
        ('av', 'video', lambda: next(predict._read_frames('x.mp4'))),
        ('onnxscript', 'onnx', lambda: export._onnx_bytes(None, {}))):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(DataError) as caught:
            call()
        assert '\n' not in str(caught.value) and f'pip install corrmatch-seg[{name}]' in str(caught.value)


def test_pseudo_labels(run, tmp_path):
    album = tmp_path/'album'
    album.mkdir()
    for i in range(2):
        Image.fromarray(random_image(60, 90, i)).save(album/f'{i}.png')
    opened = load(run, device='cpu')
    done = pseudo_files(opened, [album], tmp_path/'out', tau=.25, longest=45, quiet=True)
    assert done.n == 2 and read_classes(tmp_path/'out')[0] == opened.names
    for i in range(2):
        weak, pixel, region = (
            np.asarray(Image.open(tmp_path / 'out' / kind / f'{i}.png'))
            for kind in ('weak', 'pixel', 'region'))
        assert weak.shape == (60, 90) and set(np.unique(weak)) <= {*range(5), IGNORE_INDEX}
        assert ((weak == IGNORE_INDEX) == (pixel == IGNORE_INDEX)).all() and (
            region[weak != IGNORE_INDEX] != IGNORE_INDEX).all()
    page = done.look.read_text(encoding='utf-8')
    rows = [line.split(',') for line in (tmp_path/'out'/'shares.csv').read_text().splitlines()[1:]]
    assert page.count('class="three"') == 2 and all(
        f'ignored without propagation: {1 - float(r[2]):.0%}<br>with it: {1 - float(r[3]):.0%}' in page
        for r in rows)
    assert '<script' not in page and set(re.findall(r'src="(\w+):', page)) == {'data'}
    none = pseudo_files(opened, [album/'0.png'], tmp_path/'none', tau=1., quiet=True)
    assert none.n == 1 and (np.asarray(Image.open(tmp_path/'none'/'weak'/'0.png')) == IGNORE_INDEX).all()
    # the run's own, which has moved
    assert load(run, device='cpu').tau != preset('toy').tau


def test_pseudo_labels_of_a_plain_network(tmp_path):
    config = preset('toy', 'supervised', weights='')
    save_weights(make_model(config)[0], tmp_path/'w.pth', make_card(config))
    Image.fromarray(random_image()).save(tmp_path/'a.png')
    pseudo_files(load(tmp_path/'w.pth', device='cpu'), [tmp_path/'a.png'], tmp_path/'out', quiet=True)
    assert [p.name for p in sorted((tmp_path / 'out').iterdir())] == [
        '.corrmatch', 'classes.txt', 'index.html', 'shares.csv', 'weak']
    page = (tmp_path/'out'/'index.html').read_text()
    assert page.count('<img') == 2 and 'class="two"' in page and 'with propagation' not in page


def test_onnx(run, tmp_path):
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name, reason=f'{name} is not installed')
    import onnx
    import onnxruntime
    done = export.export_run(run, 'onnx', tmp_path/'net.onnx')
    assert done.difference < 1e-3 and 'RGB' in done.text
    model = onnx.load(tmp_path/'net.onnx')
    onnx.checker.check_model(model)
    facts = {p.key: p.value for p in model.metadata_props}
    assert json.loads(facts['classes'])[1] == 'stripes' and 'floats 0..255' in facts['input']
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        'batch', 3, 'height', 'width']
    assert not [t.name for t in model.graph.initializer if '.corr.' in t.name or '.proj.' in t.name]
    session = onnxruntime.InferenceSession(str(tmp_path/'net.onnx'))
    eager = load(run, device='cpu').model
    for b, h, w in ((1, 33, 48), (3, 70, 41)):
        image = np.stack([random_image(h, w, i) for i in range(b)]).transpose(0, 3, 1, 2).astype(np.float32)
        with torch.no_grad():
            expected = eager.predict_logits(normalize(torch.from_numpy(image))).numpy()
        found = session.run(None, {'image': image})[0]
        assert found.shape == (b, 5, h, w) and abs(found - expected).max() < 1e-3


@pytest.mark.parametrize(
    'backbone, stride, format', [('timm:test_vit', 16, 'export'), ('timm:test_convnext', 32, 'onnx')])
def test_export_of_timm_networks(tmp_path, backbone, stride, format):
    "Patches and strides that do not divide the image, in graphs that serve every size."
    for name in ('timm', *(('onnx', 'onnxscript', 'onnxruntime') if format == 'onnx' else ())):
        pytest.importorskip(name, reason=f'{name} is not installed')
    config = preset('toy', backbone=backbone, stride=stride, weights='', dim=8, low_dim=4)
    save_weights(make_model(config)[0], tmp_path/'w.pth', make_card(config))
    done = export.export_run(tmp_path/'w.pth', format)
    assert done.path == tmp_path/f'w{export._FORMATS[format][0]}' and done.difference < 1e-3
    if format == 'onnx':
        sides = {p.key: p.value for p in __import__('onnx').load(done.path).metadata_props}['sides']
    else:
        torch.export.load(done.path, extra_files=(read := {'corrmatch.json': ''}))
        sides = json.loads(read['corrmatch.json'])['sides']
    assert sides == f'{stride+1} to 16384 pixels'


@pytest.mark.parametrize(
    'kernel, stride, dilation', [(3, 1, 1), (3, 2, 1), (5, 2, 1), (3, 1, 2), (1, 1, 1), (1, 2, 1)])
def test_export_pads_as_timm_does(kernel, stride, dilation):
    layers = pytest.importorskip('timm.layers', reason='timm is not installed')
    theirs = layers.create_conv2d(3, 4, kernel, stride=stride, dilation=dilation, padding='same')
    ours = copy.deepcopy(theirs)
    export._answer(ours)
    assert (type(ours) is export._Same) == (
        type(theirs).__name__ == 'Conv2dSame' and (kernel, stride) != (1, 2))
    for h, w in ((16, 17), (31, 40)):
        image = torch.rand(1, 3, h, w)
        assert torch.equal(theirs(image), ours(image))


def test_what_cannot_be_exported_is_refused_at_once(run, tmp_path, monkeypatch):
    "Before the network is opened, and nothing is left behind."
    monkeypatch.setattr(export, 'load', None)
    for format, out, words in (
        ('onnx', 'a.pb', 'ends in .onnx'), ('torchscript', None, 'deprecated'),
        ('tflite', None, 'not one of')):
        with pytest.raises(ValueError, match=words):
            export.export_run(run, format, out and tmp_path/out)
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(DataError, match='corrmatch-seg.onnx'):
        export.export_run(run, 'onnx', tmp_path/'new'/'a.onnx')
    assert not any(tmp_path.iterdir())


def test_reference_names(tmp_path):
    config = preset('voc_92', backbone='resnet50_deep', dim=16, low_dim=8, weights='')
    save_weights(make_model(config)[0], tmp_path/'w.safetensors', make_card(config))
    done = export.export_run(tmp_path/'w.safetensors', 'reference', tmp_path/'ref.pth')
    state = torch.load(tmp_path/'ref.pth', weights_only=True)
    assert done.difference < 1e-4 and 'backbone.conv1.6.weight' in state and 'corr.conv1.weight' in state


def test_palette_of_many_classes():
    colors = np.random.default_rng(0).integers(0, 256, (255, 3), dtype=np.uint8)
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    import io
    back = Image.open(io.BytesIO(png_bytes(mask, colors)))
    assert (np.asarray(back) == mask).all() and (
        np.asarray(back.convert('RGB')).reshape(-1, 3)[:255] == colors).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu_predicts_the_same(run, predictor):
    for size in ((60, 90), (560, 700)):
        there, here = (m.predict(random_image(*size)).mask for m in (load(run, device='cuda'), predictor))
        assert (there == here).mean() > .999
