"""P x K batches and all other samplers: against loops and enumeration, and what must hold of every batch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmlstudy.errors import StudyError
from dmlstudy.samplers import (
    Policy,
    TwoStreams,
    cluster_batches,
    confusable_batches,
    draw_log_probabilities,
    instance_batches,
    match_clusters,
    pk_batches,
    two_streams,
)


def ragged(seed, classes=13, low=2, high=40):
    """Shuffled labels of classes of `low` to `high` - 1 images, and a unit signature of each."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), rng.integers(low, high, classes))
    w = F.normalize(torch.randn(classes, 3, generator=torch.Generator().manual_seed(seed)))
    return rng.permutation(labels), w


def epoch_of(labels, p, k, seed=0):
    return list(pk_batches(np.asarray(labels), p, k, np.random.default_rng(seed)))


@pytest.mark.parametrize(("p", "k"), [(2, 2), (5, 4), (20, 3), (3, 7)])
def test_every_batch_is_p_distinct_classes_times_k(p, k):
    labels, _ = ragged(0, 40, 1, 17)
    for batch in epoch_of(labels, p, k):
        by_class = labels[batch].reshape(p, k)
        assert (by_class == by_class[:, :1]).all()
        assert len(np.unique(by_class[:, 0])) == p


def test_equal_classes_are_drawn_exactly_once():
    labels = np.repeat(np.arange(12), 8)
    batches = epoch_of(labels, 4, 4)
    assert len(batches) == len(labels) // 16
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(labels)))


def test_nearly_every_image_of_ragged_classes_is_drawn_once():
    labels, _ = ragged(0, 40, 1, 17)
    usable = np.flatnonzero(np.bincount(labels)[labels] >= 2)
    times = np.bincount(np.concatenate(epoch_of(labels, 4, 4)), minlength=len(labels))
    assert (times[usable] > 0).mean() > 0.95
    assert times[usable].mean() < 1.5  # short groups are filled up, nothing else repeats


def test_a_huge_class_ends_the_epoch_early():
    # 1 large and 3 small classes, p = 2: every batch needs a second class, so 3 batches at most.
    assert len(epoch_of(np.repeat([0, 1, 2, 3], [100, 2, 2, 2]), 2, 2)) == 3


def test_filling_up_does_not_repeat_where_the_class_is_large_enough():
    labels = np.repeat([0, 1, 2], [5, 6, 7])
    for seed in range(20):
        for batch in epoch_of(labels, 3, 4, seed):
            assert len(np.unique(batch)) == len(batch)


def test_small_classes_are_repeated_evenly():
    labels = np.repeat([0, 1], [2, 3])
    (batch,) = epoch_of(labels, 2, 5)
    counts = np.bincount(batch)
    assert sorted(counts[:2]) == [2, 3]
    assert sorted(counts[2:]) == [1, 2, 2]


def test_singletons_and_gaps_between_labels_are_no_classes():
    labels = np.repeat([0, 1, 2, 9], [1, 4, 1, 4])
    drawn = np.concatenate(epoch_of(labels, 2, 2))
    assert set(labels[drawn]) == {1, 9}


def test_the_generator_is_the_only_randomness():
    labels, _ = ragged(0, 40, 1, 17)
    first, again, other = (np.concatenate(epoch_of(labels, 4, 3, seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_too_many_classes_per_batch_are_refused():
    with pytest.raises(StudyError, match=r"p = 3 .* has 2: lower p"):
        epoch_of([0, 0, 1, 1, 2], 3, 2)


GEOMETRY = [(4, 4, 3, 2), (5, 3, 1, 5), (8, 2, 4, 1), (13, 6, 40, 3)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("p", "k", "hard", "candidates"), GEOMETRY)
@pytest.mark.parametrize("off", ["", "signatures", "images"])
def test_hard_images_are_of_the_nearest_classes_and_among_the_nearest(
    seed, p, k, hard, candidates, off
):
    """By loops over all images; each control gives one of the two up."""
    labels, w = ragged(seed)
    f = F.normalize(
        torch.randn(len(labels), w.shape[1], generator=torch.Generator().manual_seed(1))
    )
    rng, asked = np.random.default_rng(seed), []

    def signatures():
        asked.append(len(asked))
        return w if len(asked) < 3 else -w  # training goes on between batches

    dealt = list(
        confusable_batches(
            labels,
            p,
            k,
            rng,
            hard=hard,
            candidates=candidates,
            embeddings=f,
            signatures=None if off == "signatures" else signatures,
            mine_images=off != "images",
        )
    )
    assert len(dealt) == len(epoch_of(labels, p, k, seed)) == (len(asked) or len(dealt))
    turns, broken = [], {"signatures": 0, "images": 0}
    for step, indices in enumerate(dealt):
        assert len(indices) == p * k
        now = w if step < 2 else -w
        for group in np.split(indices, range(2 * k, p * k, 2 * k)):
            anchors, images = group[:k], group[k:]
            (own,) = set(labels[anchors])
            turns.append(own)
            assert own not in labels[images]
            if not len(images):
                continue
            near = {c: max(float(f[a] @ now[c]) for a in anchors) for c in set(labels) - {own}}
            confusable = sorted(near, key=near.__getitem__, reverse=True)[:hard]
            broken["signatures"] += not set(labels[images]) <= set(confusable)
            classes = set(labels[images]) if off == "signatures" else confusable
            all_of = np.flatnonzero(np.isin(labels, list(classes)))
            order = sorted(all_of, key=lambda i: -max(float(f[i] @ f[a]) for a in anchors))
            broken["images"] += not set(images) <= set(order[: candidates * k])
    usable = [c for c in set(labels) if (labels == c).sum() >= 2]
    first = turns[: len(usable)]
    assert len(set(first)) == len(first) and set(first) <= set(usable)
    assert broken["signatures"] == 0 or (off == "signatures" and hard < 12)
    assert broken["images"] == 0 or off == "images"
    if off and (hard > 1 if off == "images" else hard < 12):
        assert broken[off] > 0


def test_images_without_labels_are_never_drawn_and_a_gap_keeps_its_signature():
    labels, w = ragged(0)
    shown = np.where(np.isin(labels, [4, 12]), -1, labels)
    for p in (4, 11):
        rng = np.random.default_rng(0)
        given = {"hard": 3, "candidates": 2, "embeddings": w[labels], "signatures": lambda: w}
        dealt = confusable_batches(shown, p, 4, rng, **given)
        assert not {-1, 4, 12} & set(shown[np.concatenate(list(dealt))])


def pairs_of(group):
    return {frozenset(pair) for pair in itertools.combinations(group.tolist(), 2)}


@pytest.mark.parametrize(("n", "k"), [(8, 4), (9, 4), (12, 5), (30, 8), (6, 4), (7, 2), (4, 4)])
def test_all_pairs_of_a_class_meet(n, k):
    ring, met = np.random.default_rng(0).permutation(n), set()
    for meeting in range(n * n):
        group = two_streams(ring, k, meeting)
        assert len(set(group)) == k  # no image meets itself
        met |= pairs_of(group)
    assert len(met) == n * (n - 1) // 2


def test_no_meeting_repeats_before_the_product_of_the_periods():
    # Nine places of the first stream, five of the second: 1 to 5 ahead, co-prime to 9.
    groups = [tuple(two_streams(np.arange(9), 4, meeting)) for meeting in range(90)]
    assert len(set(groups[:45])) == 45 and groups[:45] == groups[45:]
    first = [group[:2] for group in groups]
    assert first[:9] == first[9:18] and len(set(first)) == 9


@pytest.mark.parametrize(("n", "k"), [(1, 2), (2, 4), (3, 4), (3, 8)])
def test_small_classes_are_filled_up(n, k):
    for meeting in range(5):
        group = two_streams(np.arange(n), k, meeting)
        assert len(group) == k and set(group) <= set(range(n))


def test_streams_keep_classes_and_steps_and_go_on_over_epochs():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(6), 8))
    torch.manual_seed(0)
    streams, met, meetings = TwoStreams(48, 6), set(), np.zeros(6, dtype=int)
    assert streams.order.sort().values.tolist() == list(range(48))
    for epoch in range(12):
        protocol = epoch_of(labels, 4, 4, epoch)
        batches = list(streams.batches(iter(protocol), labels, 4))
        assert np.array_equal(labels[np.array(batches)], labels[np.array(protocol)])
        for group in np.reshape(batches, (-1, 4)):
            c = labels[group[0]]
            ring = [i for i in streams.order.tolist() if labels[i] == c]
            assert group.tolist() == two_streams(np.array(ring), 4, meetings[c]).tolist()
            meetings[c] += 1
            met |= pairs_of(group)
    assert streams.meetings.tolist() == meetings.tolist()
    assert len(met) == 6 * 8 * 7 // 2
    assert not torch.equal(TwoStreams(48, 6).order, streams.order)


@pytest.mark.parametrize(("images", "size"), [(40, 12), (40, 40), (5, 12), (1, 3), (41, 5)])
def test_instances_are_all_different(images, size):
    batches = list(instance_batches(images, size, np.random.default_rng(0)))
    drawn = np.concatenate(batches)
    assert {len(batch) for batch in batches} == {min(size, images)}
    assert len(set(drawn)) == len(drawn) > images - size and set(drawn) <= set(range(images))
    again = np.concatenate(list(instance_batches(images, size, np.random.default_rng(1))))
    assert images == 1 or drawn.tolist() != again.tolist()


@pytest.mark.parametrize(("p", "k"), [(3, 2), (5, 4), (99, 2)])
def test_cluster_batches_are_p_by_k_of_one_cluster_each_in_turn(p, k):
    labels, _ = ragged(1)
    cluster_of = np.random.default_rng(2).integers(4, size=len(labels))
    cluster_of[labels == 0] = np.arange((labels == 0).sum()).clip(max=3)  # alone in clusters 0-2
    labels[cluster_of == 3] = 0  # a cluster of one class
    batches = list(cluster_batches(cluster_of, labels, p, k, np.random.default_rng(0)))
    usable = [(np.bincount(labels[cluster_of == c], minlength=13) >= 2) for c in range(4)]
    for indices, cluster in batches:
        assert (cluster_of[indices] == cluster).all()
        classes, counts = np.unique(labels[indices], return_counts=True)
        assert len(classes) == min(p, usable[cluster].sum()) and set(counts) == {k}
        assert usable[cluster][classes].all()
    tags = [cluster for _, cluster in batches]
    rounds = [[c for c in range(3) if tags.count(c) > r] for r in range(len(tags))]
    assert tags == list(itertools.chain(*rounds)) and set(tags) == {0, 1, 2}


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_matched_by_the_best_of_all_permutations(seed):
    old, new = np.random.default_rng(seed).integers(5, size=(2, 60))
    stay = [np.mean(np.array(m)[new] == old) for m in itertools.permutations(range(5))]
    matching = match_clusters(old, new, 5)
    assert sorted(matching) == list(range(5))
    assert np.mean(matching[new] == old) == max(stay)
    renamed = np.array([3, 0, 4, 1, 2])[old]
    assert np.array_equal(match_clusters(old, renamed, 5)[renamed], old)


def log_probabilities_by_loop(logits, drawn):
    terms, left = [], list(range(len(logits)))
    for c in drawn:
        terms.append(logits[c] - torch.stack([logits[i] for i in left]).exp().sum().log())
        left.remove(c)
    return torch.stack(terms)


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_of_draws_equal_the_loop_and_sum_to_one(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    total = 0.0
    for drawn in itertools.permutations(range(5), 3):
        ours = draw_log_probabilities(logits, torch.tensor(drawn))
        loop = log_probabilities_by_loop(logits, drawn)
        torch.testing.assert_close(ours, loop)
        gradients = (torch.autograd.grad(v.sum(), logits, retain_graph=True) for v in (ours, loop))
        torch.testing.assert_close(*gradients)
        total += ours.sum().exp().item()
    assert total == pytest.approx(1)


def test_what_cannot_be_drawn_has_no_share():
    logits = torch.tensor([0.3, -math.inf, 1.0, -math.inf], requires_grad=True)
    ours = draw_log_probabilities(logits, torch.tensor([2, 0]))
    assert ours.tolist() == pytest.approx([1 - math.log(math.exp(0.3) + math.e), 0])
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    assert gradient.isfinite().all() and not gradient[[1, 3]].any()


def test_scores_equal_the_loop_and_are_alike_without_experience():
    torch.manual_seed(5)
    policy, e = Policy(3, 8), F.normalize(torch.randn(5, 3))
    assert not policy(e[0], e).any()
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter)
    for a, c in itertools.product(range(5), repeat=2):
        score = policy.layers(torch.cat([e[a], e[c], (e[a] @ e[c])[None]]))
        torch.testing.assert_close(policy(e[a], e)[c], score[0])
