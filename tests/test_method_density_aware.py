"""Density aware: centres against loops, outliers that do not move them, and labels that the method may not see."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmlstudy.data import pk_batches
from dmlstudy.errors import StudyError
from dmlstudy.losses.density_aware import (
    dense_region,
    density_aware_quadruplet,
    density_aware_triplet,
    density_centres,
)
from dmlstudy.methods.base import Batch, Task
from dmlstudy.methods.density_aware import DensityAware, wrong_labels
from dmlstudy.networks import build_network
from dmlstudy.training import EmbedAll, Recipe

# Ragged classes, two of them singletons; some of the ten are absent.
LABELS = torch.tensor([0] * 7 + [2] * 5 + [3] * 4 + [5] * 2 + [8, 9])
LOSSES = {"triplet": density_aware_triplet, "quadruplet": density_aware_quadruplet}
each_loss = pytest.mark.parametrize("loss", LOSSES)


def batch(seed, labels=LABELS, d=4):
    """Embeddings of varied length, shuffled labels, and centres near the classes' means."""
    g = torch.Generator().manual_seed(seed)
    y = labels[torch.randperm(len(labels), generator=g)]
    x = torch.randn(len(y), d, generator=g, dtype=torch.float64)
    centres = density_centres(x, y, classes=10, quantile=0.7, iterations=2)
    return x.requires_grad_(), y, centres


def agree(ours, other, x):
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)
    a, b = (torch.autograd.grad(value, x)[0] for value in (ours, other))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# --- centres


def naive_centre(members, quantile, iterations):
    """The formula for the images of one class."""
    centre = sum(members) / len(members)
    for _ in range(iterations):
        distance = [(f - centre).norm().item() for f in members]
        radius = sorted(distance)[max(math.ceil(quantile * len(members) - 1e-9), 1) - 1]
        near = [f for f, r in zip(members, distance, strict=True) if r <= radius]
        centre = sum(near) / len(near)
    return centre


@pytest.mark.parametrize("quantile", [1.0, 0.8, 0.5, 0.01])
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_centres_equal_the_loop(quantile, iterations):
    x, y, _ = batch(0)
    centres = density_centres(x, y, classes=10, quantile=quantile, iterations=iterations)
    for c in range(10):
        members = list(x[y == c])
        expected = (
            naive_centre(members, quantile, iterations) if members else torch.zeros_like(x[0])
        )
        torch.testing.assert_close(centres[c], expected)


def test_the_cards_class_of_four():
    f, y = torch.tensor([[0.0], [5.0], [0.2], [0.1]]), torch.zeros(4, dtype=torch.int64)
    mean, dense = (
        density_centres(f, y, classes=1, quantile=q, iterations=3).item() for q in (1.0, 0.75)
    )
    assert mean == pytest.approx(1.325)
    assert dense == pytest.approx(0.1)


@pytest.mark.parametrize("iterations", [1, 5])
def test_without_exclusion_the_centre_is_the_class_mean(iterations):
    x, y, _ = batch(1)
    centres = density_centres(x, y, classes=10, quantile=1.0, iterations=iterations)
    for c in y.unique():
        torch.testing.assert_close(centres[c], x[y == c].mean(0))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("quantile", [0.05, 0.3, 0.55, 0.75, 1.0])
def test_the_region_keeps_its_share(n, quantile):
    f = torch.randn(2 * n, 3, generator=torch.Generator().manual_seed(n))
    y = torch.arange(2).repeat(n)
    inside = dense_region(f, y, centres=torch.zeros(3, 3), quantile=quantile)
    kept = -(-round(100 * quantile) * n // 100)  # in whole numbers: 0.55 of 100 is 55
    assert torch.bincount(y[inside]).tolist() == [kept, kept]
    distance = f.norm(dim=1)
    for c in (0, 1):
        outside = distance[(y == c) & ~inside]
        assert (outside > distance[(y == c) & inside].max()).all()


def test_images_at_the_same_distance_stay_or_go_together():
    f, y = torch.tensor([[1.0], [-1.0], [1.0], [3.0]]), torch.zeros(4, dtype=torch.int64)
    inside = dense_region(f, y, centres=torch.zeros(1, 1), quantile=0.25)
    assert inside.tolist() == [True, True, True, False]


def test_order_does_not_matter():
    x, y, centres = batch(2)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    again = density_centres(x[order], y[order], classes=10, quantile=0.7, iterations=2)
    torch.testing.assert_close(again, centres)


# --- losses


def test_the_quadruplets_are_the_hardest_of_all():
    """A margin that only the worst of all B^3 quadruplets violates is violated by a mined one."""
    x, y, centres = batch(0)
    worst = max(
        ((x[i] - centres[y[i]]).square().sum() - (x[n] - x[j]).square().sum()).item()
        for i in range(len(y))
        for n in range(len(y))
        for j in range(len(y))
        if len({int(y[i]), int(y[n]), int(y[j])}) == 3
    )
    at_margin = density_aware_quadruplet(x, y, centres=centres, margin2=1e-3 - worst)
    assert at_margin.item() == pytest.approx(1e-3)
    assert density_aware_quadruplet(x, y, centres=centres, margin2=-1e-9 - worst) == 0


@each_loss
@pytest.mark.parametrize("same", [False, True], ids=["distinct", "identical"])
@pytest.mark.parametrize("labels", [[2, 2, 2], [2], [0, 2]], ids=str)
def test_degenerate_batches(loss, same, labels):
    x, y, centres = batch(0, torch.tensor(labels))
    x = (x[:1].expand_as(x) if same else x).detach().clone().requires_grad_()
    value = LOSSES[loss](x, y, centres=centres)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.isfinite() and gradient.isfinite().all()
    if loss == "quadruplet" or len(set(labels)) == 1:
        assert value == 0 and not gradient.any()


# --- the method

TASK, PER_CLASS = Task(6, 48, 3), 8


def build(seed=0, **hyper):
    torch.manual_seed(seed)
    return DensityAware(build_network("convnet", channels=1, embedding_size=8), TASK, **hyper)


def planned(method, inputs, epoch=0, seed=0):
    labels, rng = inputs.images.labels, np.random.default_rng(seed)
    plan = method.plan(epoch, labels, 4, 4, rng, EmbedAll(method, inputs))
    return np.array([indices for indices, _ in plan])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_the_share_of_wrong_labels_is_exact_and_grows(share):
    labels = np.repeat(np.arange(10), 40)
    wrong, more = (wrong_labels(labels, s, 10) != labels for s in (share, share + 0.1))
    assert wrong.sum() == share * 400
    assert (more | ~wrong).all()
    assert np.unique(wrong_labels(labels, 0.5, 10)).tolist() == list(range(10))


def test_wrong_labels_go_to_every_other_class_alike():
    shown = wrong_labels(np.zeros(3000, dtype=np.int32), 0.999, 4)
    counts = np.bincount(shown, minlength=4)
    assert shown.dtype == np.int64 and counts[0] == 3
    assert counts[1:] == pytest.approx(999, abs=100)


def test_without_noise_batches_are_the_protocols(inputs):
    labels = inputs.images.labels
    protocol = list(pk_batches(labels, 4, 4, np.random.default_rng(0)))
    method = build()
    assert np.array_equal(planned(method, inputs), protocol)
    assert method.seen.tolist() == labels.tolist()


def test_sampler_centres_and_loss_see_the_wrong_labels_only(inputs):
    method = build(label_noise=0.25, quantile=1.0)
    batches = planned(method, inputs)
    labels, seen = torch.from_numpy(inputs.images.labels), method.seen
    assert (seen != labels).sum() == 12
    for indices in batches:
        assert torch.bincount(seen[indices], minlength=6).sort().values.tolist() == [
            0,
            0,
            4,
            4,
            4,
            4,
        ]
    f = EmbedAll(method, inputs)()
    for c in range(6):
        torch.testing.assert_close(method.centres[c], f[seen == c].mean(0))
    index = torch.from_numpy(batches[0])
    images = inputs.plain(index)
    given = method.loss(Batch(images, labels[index], index))["triplet"]
    assert given == method.loss(Batch(images, torch.zeros_like(index), index))["triplet"]
    expected = density_aware_triplet(method.embed(images), seen[index], centres=method.centres)
    assert given == expected


def test_the_wrong_labels_are_the_same_for_every_seed_and_epoch(inputs):
    seen = []
    for seed, epoch in ((0, 0), (1, 0), (0, 2)):
        method = build(seed, label_noise=0.2)
        planned(method, inputs, epoch, seed)
        seen.append(method.seen)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_wrong_labels_hardly_move_the_centre():
    """Ten tight classes: every wrong label falls outside, and the centre is that of the right ones."""
    labels = torch.arange(10).repeat_interleave(40)
    draw = torch.Generator().manual_seed(0)
    f = F.normalize(3 * torch.eye(10)[labels] + 0.3 * torch.randn(400, 10, generator=draw))
    shown = torch.from_numpy(wrong_labels(labels.numpy(), 0.2, 10))
    right = density_centres(f, labels, classes=10, quantile=1.0, iterations=0)
    dense, mean = (
        density_centres(f, shown, classes=10, quantile=q, iterations=5) for q in (0.65, 1.0)
    )
    inside = dense_region(f, shown, centres=dense, quantile=0.65)
    assert not inside[shown != labels].any()
    errors = [float((c - right).norm(dim=1).mean()) for c in (dense, mean)]
    assert errors[0] < errors[1] / 4


def test_outliers_are_marked_and_centres_shift(inputs):
    method = build(quantile=0.75)
    planned(method, inputs)
    assert torch.bincount(method.seen[method.inside]).tolist() == [6] * 6
    f = EmbedAll(method, inputs)()
    means = density_centres(f, method.seen, classes=6, quantile=1.0, iterations=0)
    assert not torch.allclose(method.centres, means, atol=1e-3)


CASES = [{}, {"quadruplet": True}, *DensityAware.controls.values()]


@pytest.mark.parametrize("hyper", CASES, ids=str)
def test_training_lowers_the_loss_and_resumes_exactly(hyper, resumed_exactly):
    recipe = Recipe(4, 4, 4, 3e-3, 3e-3, 1e-4)
    _, done = resumed_exactly(partial(build, **hyper), recipe, after=2)
    terms = {"epoch", "triplet"} | ({"quadruplet"} if "quadruplet" in hyper else set())
    assert set(done.history[0]) == terms
    losses = [sum(row.values()) - row["epoch"] for row in done.history]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "hyper", [{"quantile": 0.0}, {"quantile": 1.1}, {"label_noise": 1.0}, {"label_noise": -0.1}]
)
def test_shares_out_of_range_are_refused(hyper):
    with pytest.raises(StudyError, match=next(iter(hyper))):
        build(**hyper)
