"""Every control takes exactly one part away; rankings, teachers, codes and what else a method gives at test time."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, assert_same, build, go, planned, rows, whole

from dmlstudy import losses, miners
from dmlstudy.geometry import pair_masks, pairwise_distance
from dmlstudy.methods import METHODS, Method
from dmlstudy.methods.damlrrm import DAMLRRM
from dmlstudy.methods.ensembles import DivideAndConquer
from dmlstudy.methods.pairs import SNR, FastAP, MultiSimilarity, RankedList, TripletBatchHard
from dmlstudy.methods.sche import SCHE
from dmlstudy.methods.teachers import Teachers

# --- losses of pairs


VALUES = [
    (FastAP, {}, losses.fastap),
    (FastAP, {"bins": 5}, partial(losses.fastap, bins=5)),
    (MultiSimilarity, {"epsilon": None}, losses.multi_similarity),
    (
        MultiSimilarity,
        {"epsilon": 0.0},
        partial(losses.multi_similarity, pairs=partial(miners.multi_similarity_miner, epsilon=0.0)),
    ),
    (RankedList, {}, losses.ranked_list),
    (RankedList, {"temperature": 0.0}, partial(losses.ranked_list, temperature=0.0)),
    (TripletBatchHard, {}, losses.triplet_batch_hard),
    (TripletBatchHard, {"margin": 0.2}, partial(losses.triplet_batch_hard, margin=0.2)),
    (TripletBatchHard, {"unit": True}, losses.triplet_batch_hard),
    (Teachers, {}, partial(losses.triplet_batch_hard, margin=0.2)),
    (SNR, {}, losses.snr_contrastive),
    (SNR, {"distance": "euclidean"}, losses.snr_contrastive.on(losses.squared)),
    (SNR, {"distance": "euclidean", "unit": True}, losses.snr_contrastive.on(losses.squared)),
    (SNR, {"form": "triplet", "margin": 0.2}, partial(losses.snr_triplet, margin=0.2)),
]


@pytest.mark.parametrize("kind, hyper, formula", VALUES)
def test_the_loss_is_the_formula_of_the_embedding(kind, hyper, formula, inputs):
    method, batch = build(kind, **hyper), whole(inputs)
    z = method.network(batch.images)
    z = F.normalize(z) if method.unit else z
    value, *_ = method.loss(batch).values()
    torch.testing.assert_close(value, formula(z, batch.labels))


# --- which images meet


@pytest.mark.parametrize(
    "name, hyper, same",
    [
        ("density_aware", {}, True),
        ("sche", {}, False),
        ("damlrrm", {}, False),
        ("damlrrm", {"second_stream": False}, True),
        ("divide_and_conquer", {"clusters": 1}, True),
        ("hdml", {}, True),
    ],
    ids=str,
)
def test_batches_are_the_protocols_where_the_sampler_is(name, hyper, same, inputs):
    protocol = planned(build(FastAP), inputs)
    ours = planned(build(METHODS[name], **hyper), inputs)
    assert np.array_equal(ours, protocol) == same
    if name == "damlrrm":
        assert np.array_equal(inputs.images.labels[ours], inputs.images.labels[protocol])


def test_a_policy_without_experience_is_the_uniform_sampler(inputs):
    fresh, uniform = (
        build(METHODS["discriminative_sampling"], **h) for h in ({}, {"sampler": "uniform"})
    )
    batches = planned(fresh, inputs)
    assert np.array_equal(batches, planned(uniform, inputs))
    batch = rows(whole(inputs), batches[0])
    terms = uniform.loss(batch)
    assert list(terms) == ["npair"] and terms["npair"] == fresh.loss(batch)["npair"]
    z, y = uniform.embed(batch.images).unflatten(0, (4, 4)), batch.labels[::2]
    rounds = [losses.npair(z[:, r : r + 2].flatten(0, 1), y, l2=0.02) for r in (0, 2)]
    torch.testing.assert_close(terms["npair"], sum(rounds) / 2)
    torch.nn.init.normal_(fresh.policy.layers[-1].weight, std=9)
    assert not np.array_equal(batches, planned(fresh, inputs))


class PlainMargin(Method):
    """What divide and conquer must be with one cluster."""

    def loss(self, batch):
        f = self.embed(batch.images)
        pairs = partial(miners.nearest_negatives, cutoff=0.5)
        return {"margin": losses.margin(f, batch.labels, beta=1.2, alpha=0.2, pairs=pairs)}


def test_one_cluster_is_the_plain_margin_loss_bit_for_bit(inputs):
    one, plain = build(DivideAndConquer, clusters=1), build(PlainMargin)
    assert_same(*(go(method, inputs).history for method in (one, plain)))
    assert_same(one.network.state_dict(), plain.network.state_dict())


# --- edges and hard classes


def test_damlrrms_controls_change_the_edges_only(inputs):
    batch, y = whole(inputs), whole(inputs).labels
    tree, everything, random, one = (build(DAMLRRM, **h) for h in ({}, *DAMLRRM.controls.values()))
    f = tree.embed(batch.images)
    value = partial(losses.tree_pairs, f, y, scale=tree.scale)
    minimum = losses.minimum_spanning_trees(pairwise_distance(f.detach()), y)
    term = tree.loss(batch)["spanning tree"]
    assert term == one.loss(batch)["spanning tree"] == value(edges=minimum)
    assert everything.loss(batch)["spanning tree"] == value(edges=pair_masks(y)[0])
    torch.manual_seed(3)
    edges = losses.minimum_spanning_trees(torch.rand(48, 48), y)
    assert edges.sum() == minimum.sum() and not torch.equal(edges, minimum)
    torch.manual_seed(3)
    first, second = (random.loss(batch)["spanning tree"] for _ in range(2))
    assert first == value(edges=edges) != second
    assert term < min(first, second)  # of all trees, the minimum has the shortest edges


def test_sche_takes_all_violating_triplets_and_its_controls_change_the_batches_only(inputs):
    batch, y = whole(inputs), whole(inputs).labels
    full, *others, bare = (build(SCHE, **h) for h in ({}, *SCHE.controls.values()))
    f, w = full.embed(batch.images), full.unit_signatures()
    d = pairwise_distance(f)
    triplets = [
        d[a, p] - d[a, n] + 0.2
        for a in range(48)
        for p in (y == y[a]).nonzero()[:, 0]
        for n in (y != y[a]).nonzero()[:, 0]
        if p != a
    ]
    violating = [t for t in triplets if t > 0]
    assert 0 < len(violating) < len(triplets)
    softmax = 0.1 * F.cross_entropy(20 * f @ w.T, y)
    for method, weight in ((full, 1), *((method, 1) for method in others), (bare, 0)):
        terms = method.loss(batch)
        torch.testing.assert_close(terms["triplet"], sum(violating) / len(violating))
        torch.testing.assert_close(terms["signatures"], weight * softmax)


def test_the_most_confusable_classes_are_other_classes():
    method, classes = build(SCHE), torch.tensor([4, 1])
    similarity, nearest = method.most_confusable(classes, 9)
    assert nearest.shape == (2, 5)
    w = method.unit_signatures()
    for own, row, values in zip(classes, nearest, similarity, strict=True):
        assert sorted([int(own), *row.tolist()]) == list(range(CLASSES))
        torch.testing.assert_close(values, w[row] @ w[own])
        assert values.tolist() == sorted(values.tolist(), reverse=True)
