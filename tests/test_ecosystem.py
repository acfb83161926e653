"The package in somebody else's loop: their networks, their metrics."
import ast
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT/'nbs'/'use'/'54_other_networks.ipynb'


def cells():
    "Code cells of the example."
    return [
        ''.join(c['source'])
        for c in json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']
        if c['cell_type'] == 'code']


def example():
    "Names that the cells up to `semi_step` define."
    found = {}
    for source in cells():
        if source.startswith('#|'):
            continue
        exec(compile(source, NOTEBOOK.name, 'exec'), found)
        if 'semi_step' in found:
            return found


def test_example_is_short():
    found = [
        node
        for source in cells()
        for node in ast.parse(source).body
        if getattr(node, 'name', '') in ('WithCorrelation', 'semi_step')]
    assert len(found) == 2
    lines = sum(node.end_lineno - node.lineno + 1 for node in found)
    imports = sum(l.startswith(('import', 'from')) for l in cells()[1].splitlines())
    assert lines + imports < 40, lines + imports


@pytest.mark.parametrize(
    'kind, options',
    [
        ('Unet', dict(encoder_depth=3, decoder_channels=(64, 32, 16))), ('FPN', {}),
        ('DeepLabV3Plus', dict(encoder_output_stride=8))])
def test_example_fits_their_models(kind, options):
    smp = pytest.importorskip(
        'segmentation_models_pytorch', reason='segmentation-models-pytorch is not installed')
    names = example()
    torch.manual_seed(0)
    net = names['WithCorrelation'](
        getattr(smp, kind)('resnet18', encoder_weights=None, classes=3, **options), 3)
    image = torch.randn(2, 3, 64, 96)
    mask = torch.randint(3, (2, 64, 96))
    logits, f1, f2, corr = net(image)
    assert logits.shape == corr.shape == (2, 3, 64, 96) and f1.shape == f2.shape
    loss = names['semi_step'](
        net, image, mask, image, image + 0.1, 0.3, torch.Generator().manual_seed(0), regions=8)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all()
        for part in (net.corr, net.proj, net.model.segmentation_head)
        for p in part.parameters())


@pytest.mark.parametrize('absent', [False, True], ids=['all classes', 'one never occurs'])
def test_torchmetrics_agrees(absent):
    metrics = pytest.importorskip('torchmetrics.classification', reason='torchmetrics is not installed')
    from corrmatch.config import IGNORE_INDEX
    from corrmatch.training.metrics import ConfusionMatrix
    k, generator = 6, torch.Generator().manual_seed(0)
    ours = ConfusionMatrix(k)
    theirs = {
        average: metrics.MulticlassJaccardIndex(k, average=average, ignore_index=IGNORE_INDEX)
        for average in ('none', 'macro')}
    matrix = metrics.MulticlassConfusionMatrix(k, ignore_index=IGNORE_INDEX)
    for _ in range(3):
        mask = torch.randint(k - absent, (2, 40, 50), generator=generator)
        label = torch.randint(k - absent, (2, 40, 50), generator=generator)
        label = torch.where(torch.rand(label.shape, generator=generator) < .6, mask, label)
        mask[torch.rand(mask.shape, generator=generator) < .1] = IGNORE_INDEX
        ours.update(label, mask)
        for metric in (*theirs.values(), matrix):
            metric.update(label, mask)
    assert torch.equal(ours.matrix, matrix.compute())
    assert torch.allclose(ours.iou().float(), theirs['none'].compute().float(), atol=1e-6)
    assert abs(ours.miou('skip') - float(theirs['macro'].compute())) < 1e-6
    # the reference counts an absent class as 0
    assert absent == (abs(ours.miou('zero') - ours.miou('skip')) > 1e-3)
