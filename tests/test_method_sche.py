"""SCHE: mining by signatures against loops and batch-hard, and an epoch that deals the protocol's groups anew."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmlstudy.data import pk_batches
from dmlstudy.errors import StudyError
from dmlstudy.geometry import pair_masks
from dmlstudy.losses.sche import in_hard_classes
from dmlstudy.losses.triplet import mined_triplet
from dmlstudy.methods.base import Batch, Task
from dmlstudy.methods.sche import SCHE, confusable_batches, confusable_classes
from dmlstudy.networks import build_network
from dmlstudy.training import Recipe, train

# Ragged classes, two of them singletons; some of the ten are absent.
LABELS = torch.tensor([0] * 7 + [2] * 5 + [3] * 4 + [5] * 2 + [8, 9])


def batch(seed, labels=LABELS):
    """Embeddings of varied length, shuffled labels, unit signatures of ten classes."""
    g = torch.Generator().manual_seed(seed)
    y = labels[torch.randperm(len(labels), generator=g)]
    x = torch.randn(len(y), 5, generator=g, dtype=torch.float64)
    w = F.normalize(torch.randn(10, 5, generator=g, dtype=torch.float64))
    return x.requires_grad_(), y, w


def agree(ours, other, x):
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)
    a, b = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (ours, other))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# --- losses and mining in the batch


def hard_by_loop(x, y, w, k):
    """H_i as a set of classes, one image at a time."""
    found = []
    for f, own in zip(x, y.tolist(), strict=True):
        others = sorted(set(y.tolist()) - {own}, key=lambda c: -(f @ w[c]).item())
        found.append(set(others[:k]))
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 2, 3, 50])
def test_hard_classes_equal_the_loop(seed, k):
    x, y, w = batch(seed)
    hard = in_hard_classes(x, y, signatures=w, k=k)
    for row, classes in zip(hard, hard_by_loop(x, y, w, k), strict=True):
        assert row.tolist() == [int(c) in classes for c in y]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 3, 9])
def test_the_mined_triplet_equals_the_loop(seed, k):
    x, y, w = batch(seed)
    terms = []
    for i, classes in enumerate(hard_by_loop(x, y, w, k)):
        d2 = (x[i] - x).square().sum(1)
        positives = [d2[j] for j in range(len(y)) if j != i and y[j] == y[i]]
        negatives = [d2[j] for j in range(len(y)) if int(y[j]) in classes]
        if positives and negatives:
            terms.append((max(positives) - min(negatives) + 0.2).clamp_min(0))
    positive, _ = pair_masks(y)
    hard = in_hard_classes(x, y, signatures=w, k=k)
    naive = sum(terms) / sum(t.item() > 0 for t in terms)
    agree(mined_triplet(x, y, margin=0.2, pairs=(positive, hard)), naive, x)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("margin", [0.2, 2.0])
def test_all_classes_by_their_means_is_global_batch_hard(seed, margin):
    """The card's check, against pytorch-metric-learning's miner and its mean over positive terms."""
    pml = pytest.importorskip("pytorch_metric_learning", reason="development dependency")
    from pytorch_metric_learning import distances, losses, miners

    assert pml
    x, y, _ = batch(seed)
    means = torch.zeros(10, 5, dtype=torch.float64)
    for c in y.unique():
        means[c] = F.normalize(x.detach()[y == c].mean(0), dim=0)
    positive, negative = pair_masks(y)
    hard = in_hard_classes(x, y, signatures=means, k=len(means) - 1)
    assert torch.equal(hard, negative)
    ours = mined_triplet(x, y, margin=margin, pairs=(positive, hard))
    agree(ours, mined_triplet(x, y, margin=margin), x)
    squared = distances.LpDistance(normalize_embeddings=False, power=2)
    triplets = miners.BatchHardMiner(distance=squared)(x, y)
    agree(ours, losses.TripletMarginLoss(margin, distance=squared)(x, y, triplets), x)


# --- class-driven batches


def ragged(seed, classes=13):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), rng.integers(2, 40, classes))
    w = F.normalize(torch.randn(classes, 3, generator=torch.Generator().manual_seed(seed)))
    return rng.permutation(labels), w


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("p", "k", "hard"), [(4, 4, 3), (5, 3, 1), (13, 2, 4), (3, 2, 7), (6, 4, 0)]
)
def test_an_epoch_is_the_protocols_groups_in_as_many_batches(seed, p, k, hard):
    labels, w = ragged(seed)
    epoch = list(pk_batches(labels, p, k, np.random.default_rng(seed)))
    dealt = list(confusable_batches(epoch, labels, p, hard, lambda: w, np.random.default_rng(seed)))
    assert len(dealt) == len(epoch)
    for indices in dealt:
        assert len(np.unique(labels[indices])) == p
        assert (np.bincount(labels[indices])[np.unique(labels[indices])] == k).all()
    groups = [
        sorted(map(tuple, np.concatenate(batches).reshape(-1, k))) for batches in (epoch, dealt)
    ]
    assert groups[0] == groups[1]


@pytest.mark.parametrize("seed", range(4))
def test_an_anchor_brings_its_nearest_classes(seed):
    _, w = ragged(seed)
    chosen = confusable_classes(np.full(13, 9), 20, 8, 3, w, np.random.default_rng(seed))
    assert len(set(chosen)) == 8
    free = set(range(13))
    for start in (0, 4):
        anchor, *nearest = chosen[start : start + 4]
        free -= {anchor}
        by_similarity = sorted(free, key=lambda c: -float(w[anchor] @ w[c]))
        assert nearest == by_similarity[:3]
        free -= set(nearest)


def test_classes_that_every_batch_needs_are_never_left_out():
    w = torch.eye(6)
    left = np.array([3, 1, 3, 1, 0, 1])
    for seed in range(20):
        chosen = confusable_classes(left, 3, 3, 2, w, np.random.default_rng(seed))
        assert {0, 2} < set(chosen) and 4 not in chosen


def test_confusable_classes_do_meet():
    """Similarity of the classes of a batch, beside that under the protocol's sampler."""
    labels = np.repeat(np.arange(40), 16)
    w = F.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)))
    epoch = list(pk_batches(labels, 8, 4, np.random.default_rng(0)))
    dealt = list(confusable_batches(epoch, labels, 8, 3, lambda: w, np.random.default_rng(0)))

    def nearness(batches):
        s = torch.stack([w[labels[b[::4]]] @ w[labels[b[::4]]].T for b in batches])
        return float(s.masked_fill(torch.eye(8).bool(), -1).amax(2).mean())

    assert nearness(dealt) > nearness(epoch) + 0.1


def test_signatures_are_asked_anew_for_every_batch():
    labels, w = ragged(0)
    epoch = list(pk_batches(labels, 4, 4, np.random.default_rng(0)))
    asked = []

    def signatures():
        asked.append(len(asked))
        return w if len(asked) < 3 else -w.flip(0)

    dealt = list(confusable_batches(epoch, labels, 4, 3, signatures, np.random.default_rng(0)))
    fixed = list(confusable_batches(epoch, labels, 4, 3, lambda: w, np.random.default_rng(0)))
    assert len(asked) == len(epoch)
    same = [np.array_equal(a, b) for a, b in zip(dealt, fixed, strict=True)]
    assert same[:2] == [True, True] and not all(same)


# --- the method


def build(seed=0, **hyper):
    torch.manual_seed(seed)
    return SCHE(build_network("convnet", channels=1, embedding_size=8), Task(6, 48, 3), **hyper)


def whole(inputs):
    index = torch.arange(48)
    return Batch(inputs.plain(index), torch.from_numpy(inputs.images.labels), index)


def test_random_classes_are_the_protocols_batches(inputs):
    labels = inputs.images.labels
    protocol = list(pk_batches(labels, 4, 4, np.random.default_rng(0)))
    for hyper in ({"classes": "random"}, {}):
        plan = build(**hyper).plan(0, labels, 4, 4, np.random.default_rng(0), None)
        same = np.array_equal([indices for indices, _ in plan], protocol)
        assert same == bool(hyper)


def test_every_control_takes_one_part_away(inputs):
    batch = whole(inputs)
    full, images_only, none, bare = (build(**h) for h in ({}, *SCHE.controls.values()))
    f, y = full.embed(batch.images), batch.labels
    positive, _ = pair_masks(y)
    hard = in_hard_classes(f, y, signatures=full.unit_signatures(), k=3)
    expected = mined_triplet(f, y, margin=0.2, pairs=(positive, hard))
    assert full.loss(batch)["triplet"] == expected
    batch_hard = mined_triplet(f, y, margin=0.2)
    assert expected < batch_hard  # three of the five other classes are searched
    assert images_only.loss(batch)["triplet"] == bare.loss(batch)["triplet"] == batch_hard
    torch.manual_seed(0)
    first, second = none.loss(batch)["triplet"], none.loss(batch)["triplet"]
    assert first != second and first < batch_hard
    signature = [m.loss(batch)["signatures"].item() for m in (full, images_only, none, bare)]
    assert signature[0] == signature[1] == signature[2] > 0 == signature[3]


def test_without_their_loss_signatures_stay(inputs):
    recipe = Recipe(4, 4, 1, 1e-3, 1e-3, 1e-4)
    for hyper, moved in (({}, True), (SCHE.controls["no signatures"], False)):
        method = build(**hyper)
        before = method.signatures.detach().clone()
        train(method, inputs, inputs.images.labels, recipe, 0)
        assert torch.equal(method.signatures, before) != moved


def test_the_most_confusable_classes_are_other_classes():
    method = build()
    classes = torch.tensor([4, 1])
    similarity, nearest = method.most_confusable(classes, 9)
    assert nearest.shape == (2, 5)
    w = method.unit_signatures()
    for own, row, values in zip(classes, nearest, similarity, strict=True):
        assert sorted([int(own), *row.tolist()]) == list(range(6))
        torch.testing.assert_close(values, (w[row] @ w[own]))
        assert values.tolist() == sorted(values.tolist(), reverse=True)


@pytest.mark.parametrize("hyper", [{}, *SCHE.controls.values()], ids=str)
def test_training_lowers_the_loss_and_resumes_exactly(hyper, resumed_exactly):
    recipe = Recipe(4, 4, 5, 3e-3, 3e-3, 1e-4)
    _, done = resumed_exactly(partial(build, **hyper), recipe, after=2)
    losses = [row["triplet"] + row["signatures"] for row in done.history]
    assert losses[-1] < losses[0]


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(StudyError, match="did you mean 'signatures'"):
        build(classes="signature")
    with pytest.raises(StudyError, match="did you mean 'random'"):
        build(instances="randon")
