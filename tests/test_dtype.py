"A step follows the dtype of its input: float64 and float32 stay what they are, half precision is cast up."
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from corrmatch.engine import regions as regions_module
from corrmatch.engine.regions import FAST_REGIONS
from corrmatch.method import region
from corrmatch.method.variants import labels_from_labeled, blend_logits, soft_votes
from corrmatch.config import preset
from corrmatch.method.correlation import correlation_map, correlation_rows
from corrmatch.method.losses import hard_pixels, ohem_ce, supervised_ce
from corrmatch.training.builders import make_weights
from corrmatch.method.pseudo_labels import at_least_float32, confidence, masked_ce, soft_kl
from corrmatch.method.pixel import propagate_logits
from corrmatch.method.step import train_step
from corrmatch.training.builders import (
    autocast, make_batches, make_variants, make_model, make_optimizer, make_datasets, make_threshold,
    to_device)
from corrmatch.method.threshold import DynamicThreshold, FixedThreshold
from corrmatch.data.views import normalize

WIDER = {torch.float64: torch.float64} | dict.fromkeys(
    [torch.float32, torch.bfloat16, torch.float16], torch.float32)
TINY = preset('toy', crop=33, toy_labeled=4, toy_unlabeled=8, steps=4, warmup=0, batch_x=2, batch_u=2, dim=16,
              low_dim=8, stride=8, weights='', scale_min=.5)


@pytest.fixture
def double():
    "Make new tensors in float64."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def one_step(config, dtype=None):
    "Result of one step of a tiny network, its threshold and its gradients."
    torch.manual_seed(0)
    model = make_model(config)[0].train()
    threshold = make_threshold(config)
    batch = to_device(make_batches(config, make_datasets(config))[0], torch.device('cpu'))
    supervised = partial(ohem_ce, min_kept=100) if config.ohem else supervised_ce
    with autocast('cpu', dtype):
        result = train_step(
            model, batch, make_weights(config), threshold, supervised, regions=16,
            generator=torch.Generator().manual_seed(0), variants=make_variants(config), ops=FAST_REGIONS)
    result.total.backward()
    make_optimizer(model, config).step()
    return result, threshold, model


def dtypes(result, threshold, model):
    "Of total, terms, threshold, weights and gradients."
    terms = [term for term, weight in zip(result.terms, make_weights(TINY)) if weight]
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return {t.dtype for t in (result.total, *terms, *threshold.buffers(), *model.parameters(), *grads)}


CHANGES = [
    dict(), dict(cutmix='same_image', norm='batch'), dict(ohem=100, threshold='fixed', tau=0.0),
    dict(threshold='per_class', tau=0.2), dict(region_votes='soft', tau=0.2),
    dict(region_seeds='uncertain', tau=0.2), dict(teacher_pixel=0.3, teacher_cross=0.3),
    dict(teacher_pixel=0.5, region_fill=True, threshold='per_class', tau=0.2),
    dict(crop=40, tau=0.2)]


@pytest.mark.parametrize('changes', CHANGES, ids=lambda c: ' '.join(c) or 'default')
def test_a_step_of_each_kind_runs_in_float64(changes, double):
    found = one_step(replace(TINY, **changes))
    assert dtypes(*found) == {torch.float64}
    assert all(torch.isfinite(t) for t in found[0].terms)


@pytest.mark.parametrize('dtype', [None, torch.bfloat16], ids=['float32', 'autocast'])
def test_a_step_otherwise_stays_float32(dtype):
    assert dtypes(*one_step(TINY, dtype)) == {torch.float32}


@pytest.mark.parametrize('dtype', WIDER, ids=str)
def test_every_part_casts_up_and_never_down(dtype):
    generator = torch.Generator().manual_seed(0)
    f1, f2, logits = (torch.randn(2, 5, 5, 5, generator=generator).to(dtype) for _ in range(3))
    mask = torch.randint(5, (2, 5, 5), generator=generator)
    yes = torch.ones(2, 5, 5, dtype=torch.bool)
    found = dict(
        cast=at_least_float32(f1), confidence=confidence(logits), map=correlation_map(f1, f2),
        rows=correlation_rows(f1, f2, torch.tensor([1])), propagated=propagate_logits(f1, f2, logits),
        ce=supervised_ce(logits, mask), ohem=ohem_ce(logits, mask, min_kept=9),
        masked=masked_ce(logits, mask, yes, yes), kl=soft_kl(logits, f1, yes, yes),
        blend=blend_logits(logits), asked=labels_from_labeled(f1, f2, mask, (5, 5)))
    assert {name: t.dtype for name, t in found.items()} == dict.fromkeys(found, WIDER[dtype])
    assert hard_pixels(logits, mask, min_kept=9).dtype == torch.bool
    assert soft_votes(mask, confidence(logits).to(dtype), yes, yes[:, None], .1, 5)[1].all()


def test_float64_is_not_a_detour_over_float32():
    "Two values that float32 cannot tell apart stay different."
    near = torch.tensor([1, 1 + 1e-12], dtype=torch.float64).view(1, 2, 1, 1)
    assert confidence(near) > .5 and confidence(near.float()) == .5
    assert correlation_map(1e9*near, near).shape == (1, 1, 1)
    assert at_least_float32(near) is near and at_least_float32(near.float()).dtype == torch.float32


@pytest.mark.parametrize('size', [(33, 33), (40, 29)], ids=['blocks', 'any size'])
def test_regions_in_float64_equal_their_definition(size):
    "The cut falls between neighbours that float32 would merge."
    rows = torch.rand(2, 24, 25, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows[:, :4] = 1 + 1e-10*rows[:, :4]  # differences beyond float32
    ours = regions_module.fast_region_maps(rows, (5, 5), size)
    assert torch.equal(ours, region.region_maps(rows, (5, 5), size))
    assert ours[:, :4].any() and not regions_module.fast_region_maps(rows.float(), (5, 5), size)[:, :4].any()
    device = torch.empty_like(ours)
    for image, out in zip(rows.unflatten(2, (5, 5)), device):
        regions_module._cut_on_device(image, out, .5)
    assert torch.equal(ours, device)


@pytest.mark.parametrize(
    'run',
    [
        regions_module.fast_propagate_regions, regions_module._propagate_on_device,
        regions_module._propagate_on_cpu])
def test_shares_are_formed_in_the_dtype_of_the_threshold(run):
    "7 of 10 is above float32's 0.7 in float64 alone."
    label = torch.tensor([[[1]*7 + [2]*3]])
    keep = torch.ones(1, 1, 10, dtype=torch.bool)
    tau = torch.tensor(.7)
    assert run(label, keep, keep[None], tau)[0].tolist() == label.tolist()
    assert run(label, keep, keep[None], tau.double())[0].unique().tolist() == [1]
    assert run(label, keep, keep[None], torch.tensor(.7, dtype=torch.float64))[0].tolist() == label.tolist()


@pytest.mark.parametrize(
    'kind', [float, np.float64, np.float32, np.array, torch.tensor, int], ids=lambda k: k.__name__)
def test_any_number_is_a_threshold(kind):
    label = torch.zeros(1, 2, 2).long()
    keep = torch.ones(1, 2, 2, dtype=torch.bool)
    assert torch.equal(regions_module.fast_propagate_regions(label, keep, keep[None], kind(0))[0], label)


def test_thresholds_follow_the_default_dtype(double):
    for threshold in (DynamicThreshold(.85, n_classes=3), FixedThreshold(.85)):
        assert threshold.tau.item() == .85
    assert normalize(torch.zeros(3, 2, 2, dtype=torch.uint8)).dtype == torch.float64


def test_thresholds_are_float32_otherwise():
    for threshold in (DynamicThreshold(1, n_classes=3), FixedThreshold(0), FixedThreshold(.85)):
        assert threshold.tau.dtype == torch.float32
    assert normalize(torch.zeros(3, 2, 2, dtype=torch.float64)).dtype == torch.float32
