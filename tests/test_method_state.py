"""What methods keep at run time: density centres, a policy and its rewards, clusters."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, EPOCHS, RECIPE, build, go, planned, reached, rows, whole

from dmlstudy import losses
from dmlstudy.errors import StudyError
from dmlstudy.methods import METHODS, Batch, EmbedAll, Epoch
from dmlstudy.methods.density_aware import DensityAware
from dmlstudy.methods.discriminative_sampling import (
    DiscriminativeSampling,
    class_pairs,
    tuple_losses,
)
from dmlstudy.methods.ensembles import WHOLE, DivideAndConquer
from dmlstudy.methods.pairs import FastAP
from dmlstudy.samplers import draw_log_probabilities, match_clusters
from dmlstudy.training import Recipe, make_optimiser

# --- density aware


def test_density_centres_are_found_per_epoch_and_outliers_are_marked(inputs):
    labels = torch.from_numpy(inputs.images.labels)
    for quantile, kept in ((1.0, 8), (0.75, 6)):
        method = build(DensityAware, quantile=quantile)
        for number in range(2):
            with torch.no_grad():
                method.network.head.weight.normal_()  # as if it had been trained
            planned(method, inputs, number)
            f = EmbedAll(method, inputs)()
            means = torch.stack([f[labels == c].mean(0) for c in range(CLASSES)])
            assert torch.allclose(method.centres, means, atol=1e-5) == (quantile == 1)
            assert torch.bincount(labels[method.inside]).tolist() == [kept] * CLASSES
            distance = (f - method.centres[labels]).norm(dim=1)
            for c in range(CLASSES):
                inside, outside = (
                    distance[(labels == c) & m] for m in (method.inside, ~method.inside)
                )
                assert (outside[:, None] > inside).all()
        before = method.centres.clone()
        method.loss(whole(inputs))
        assert torch.equal(method.centres, before)  # constant in the epoch


def test_wrong_labels_hardly_move_the_centre():
    """Ten tight classes: every wrong label falls outside, and the centre is that of the right ones."""
    labels = torch.arange(10).repeat_interleave(40)
    draw = torch.Generator().manual_seed(0)
    f = F.normalize(3 * torch.eye(10)[labels] + 0.3 * torch.randn(400, 10, generator=draw))
    shown = torch.where(torch.arange(400) % 5 == 0, (labels + 1 + torch.arange(400)) % 10, labels)
    right = torch.stack([f[labels == c].mean(0) for c in range(10)])
    errors = []
    for quantile in (0.65, 1.0):
        centres = losses.density_centres(f, shown, classes=10, quantile=quantile, iterations=5)
        errors.append(float((centres - right).norm(dim=1).mean()))
        inside = losses.dense_region(f, shown, centres=centres, quantile=quantile)
        assert inside[shown != labels].any() == (quantile == 1)
    assert errors[0] < errors[1] / 4


# --- discriminative sampling


@pytest.mark.parametrize("sampler", ["policy", "uniform", "nearest"])
@pytest.mark.parametrize("k", [2, 5])
def test_proposed_batches_are_p_by_k_and_as_many_as_the_protocols(sampler, k, inputs):
    batches = planned(build(DiscriminativeSampling, sampler=sampler), inputs, k=k)
    assert len(batches) == len(planned(build(FastAP), inputs, k=k))
    for indices in batches:
        classes = inputs.images.labels[indices].reshape(4, k)
        assert (classes == classes[:, :1]).all() and len(set(classes[:, 0])) == 4
        assert len(set(indices)) == 4 * k


def test_classes_are_drawn_by_the_policys_probabilities():
    method, rng = build(DiscriminativeSampling), np.random.default_rng(0)
    method.centroids.copy_(torch.eye(CLASSES, 8))
    drawn = np.array([method.propose(3, rng) for _ in range(300)])
    for place in (0, 2):  # without experience all alike
        assert np.bincount(drawn[:, place]) / 300 == pytest.approx(1 / 6, abs=0.05)
    torch.manual_seed(1)
    torch.nn.init.normal_(method.policy.layers[-1].weight, std=2)
    drawn = np.array([method.propose(3, rng) for _ in range(1200)])
    for anchor in (0, 3):
        ours = drawn[drawn[:, 0] == anchor]
        pi = method.logits(anchor).detach().softmax(0)
        share = np.bincount(ours[:, 1], minlength=CLASSES) / len(ours)
        assert share == pytest.approx(pi.numpy(), abs=0.08)
        assert share[anchor] == 0 and share.max() > 0.25
        for second in ((1, 2), (2, 1), (4, 5), (5, 4)):
            expected = pi[second[0]] * pi[second[1]] / (1 - pi[second[0]])
            seen = (ours[:, 1:] == second).all(1).mean()
            assert seen == pytest.approx(expected.item(), abs=0.08)


def test_fixed_hard_classes_are_the_nearest_centroids():
    method, rng = build(DiscriminativeSampling, sampler="nearest"), np.random.default_rng(0)
    e = F.normalize(method.centroids.normal_())
    for _ in range(10):
        anchor, *others = method.propose(4, rng)
        free = set(range(CLASSES)) - {anchor}
        assert others == sorted(free, key=lambda c: (e[c] - e[anchor]).norm())[:3]


@pytest.mark.parametrize("sampler", ["policy", "uniform", "nearest"])
def test_classes_of_one_image_are_never_drawn(sampler):
    labels = np.array([0, 0, 1, 2, 2, 3, 3, 3, 4, 5, 5])
    method, rng = build(DiscriminativeSampling, sampler=sampler), np.random.default_rng(0)
    for number, embed_all in ((0, lambda: torch.randn(11, 8)), (1, None)):
        for indices, _ in method.batches(Epoch(number, labels, 4, 2, rng, embed_all)):
            assert sorted(labels[indices[::2]]) == [0, 2, 3, 5]


def test_centroids_start_as_class_means_and_follow_the_batches(inputs):
    method = build(DiscriminativeSampling, centroid_momentum=0.75)
    first, *_ = planned(method, inputs)
    f, labels = F.normalize(EmbedAll(method, inputs)()), inputs.images.labels
    start = torch.stack([f[labels == c].mean(0) for c in range(CLASSES)])
    torch.testing.assert_close(method.centroids, start)
    batch = rows(whole(inputs), first)
    method.loss(batch)
    method.after_step()
    f = F.normalize(method.embed(batch.images)).detach()
    for c in range(CLASSES):
        here = batch.labels == c
        expected = 0.75 * start[c] + 0.25 * f[here].mean(0) if here.any() else start[c]
        torch.testing.assert_close(method.centroids[c], expected)


def test_the_policy_and_the_network_share_no_gradient(inputs):
    method = build(DiscriminativeSampling)
    torch.nn.init.normal_(method.policy.layers[-1].weight)
    terms = method.loss(rows(whole(inputs), planned(method, inputs)[0]))
    for term, own, other in (("npair", "network", "policy"), ("policy", "policy", "network")):
        assert any(reached(terms[term], getattr(method, own)))
        assert not any(reached(terms[term], getattr(method, other)))


def test_rewards_equal_the_loop_and_npair_of_two_classes():
    z = torch.randn(20, 5, generator=torch.Generator().manual_seed(3))
    pairs = class_pairs(z, 4)
    assert pairs.shape == (4, 2, 2, 5)  # the fifth image of each class is left out
    for c in range(1, 4):
        tuples = [(z[m], z[m + 1], z[5 * c + m + 1]) for m in (0, 2)]
        loop = sum(torch.log(1 + torch.exp(a @ n - a @ p)) / 2 for a, p, n in tuples)
        torch.testing.assert_close(tuple_losses(pairs)[c - 1], loop)
    both = losses.npair(pairs[:2, 0].flatten(0, 1), torch.tensor([0, 0, 1, 1]))
    mutual = tuple_losses(pairs[:2, :1]) + tuple_losses(pairs[[1, 0], :1])
    torch.testing.assert_close(both, mutual[0] / 2)


def test_rewards_are_capped_and_compared_with_their_running_mean(inputs):
    method = build(DiscriminativeSampling, clip=0.3, reward_momentum=0.8)
    batch = rows(whole(inputs), planned(method, inputs)[0])
    torch.nn.init.normal_(method.policy.layers[-1].weight)
    with torch.no_grad():  # longer vectors, so that rewards vary
        method.network.head.weight.mul_(20)
    raw = tuple_losses(class_pairs(method.embed(batch.images), 4))
    assert raw.max() > 0.3 > raw.min()
    reward, before = raw.clamp(max=0.3), method.mean_reward.clone()
    assert before.item() == pytest.approx(math.log(2))
    anchor, *others = batch.labels[::4].tolist()
    log_pi = draw_log_probabilities(method.logits(anchor), torch.tensor(others))
    expected = -((reward - before) * log_pi).mean()
    torch.testing.assert_close(method.loss(batch)["policy"], expected)
    method.after_step()
    torch.testing.assert_close(method.mean_reward, 0.8 * before + 0.2 * reward.mean().detach())


def test_the_policy_comes_to_propose_the_confusable_class():
    """Six classes on fixed places, class 1 beside class 0: its share grows, and far classes lose theirs."""
    method, rng = build(DiscriminativeSampling), np.random.default_rng(0)
    angle = torch.tensor([0, 20, 90, 150, 210, 270.0]).deg2rad()
    places = torch.zeros(CLASSES, 8)
    places[:, :2] = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    method.centroids.copy_(F.normalize(places))
    method.embed = lambda images: images
    optimiser = make_optimiser(method, Recipe(3, 2, 1, 1e-3, 1e-3, 0.0))
    torch.testing.assert_close(method.logits(0).softmax(0)[1:], torch.full((5,), 0.2))
    for _ in range(150):
        classes = torch.tensor(method.propose(3, rng)).repeat_interleave(2)
        optimiser.zero_grad()
        method.loss(Batch(places[classes], classes, classes))["policy"].backward()
        optimiser.step()
        method.after_step()
    pi = method.logits(0).softmax(0)
    assert pi[1] > 0.5 and pi[1] == pi.max()
    assert method.logits(1).argmax() == 0


# --- divide and conquer


def test_a_cluster_moves_its_own_slice_only(inputs):
    method, batch = build(DivideAndConquer), whole(inputs)
    # A random head crowds all images into a cone, where no pair is active.
    method.network.start_head(EmbedAll(method, inputs)(method.network.features), pca=True)
    for tag in range(4):
        method.zero_grad()
        method.loss(Batch(batch.images, batch.labels, batch.indices, tag))["margin"].backward()
        own = torch.arange(8) // 2 == tag
        for gradient in (method.network.head.weight.grad, method.network.head.bias.grad):
            assert not gradient[~own].any() and gradient[own].any()


@pytest.mark.parametrize("assignment", ["kmeans", "random"])
def test_clusters_partition_then_the_whole_trains(assignment, inputs):
    method, rng = build(DivideAndConquer, assignment=assignment), np.random.default_rng(0)

    def batches(number):
        """An epoch has the protocol's 3 steps."""
        labels, embed_all = inputs.images.labels, EmbedAll(method, inputs)
        epoch = list(method.batches(Epoch(number, labels, 4, 4, rng, embed_all)))
        assert len(epoch) == 3
        return epoch

    for indices, tag in batches(0):
        assert (method.cluster_of[indices] == tag).all()
    first = method.cluster_of.clone()
    assert set(first.tolist()) <= {0, 1, 2, 3} and (method.cluster_before == -1).all()
    kept = method.cluster_of.clone()
    with torch.no_grad():
        method.network.head.weight.normal_()
    batches(1)  # steps 3 to 5; the second clustering is due at step 3 of 6
    assert (method.counts[0] == 1) == (assignment == "random")
    if assignment == "random":
        assert torch.equal(method.cluster_of, first)
        return
    assert torch.equal(method.cluster_before, kept)
    for shift in range(4):
        method.cluster_of.copy_((first + shift) % 4)
        method.counts[0] = 1
        batches(1)
        # However k-means numbers its clusters, each slice keeps the one that is most like its last.
        old, new = method.cluster_before.numpy(), method.cluster_of.numpy()
        assert np.array_equal(old, (first + shift) % 4)
        assert match_clusters(old, new, 4).tolist() == [0, 1, 2, 3]
    assert {tag for _, tag in batches(EPOCHS - 1)} == {WHOLE}


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 8, 12, 200])
@pytest.mark.parametrize("steps", [3, 22, 151])
def test_every_budget_has_two_clusterings_and_a_joint_phase(epochs, steps):
    method = build(DivideAndConquer, epochs=epochs)
    divided, period = method.schedule(steps)
    joint = epochs * steps - divided
    total = epochs * steps
    assert joint == min(max(round(0.5 * total), min(steps, total // 2)), total - 2)
    assert math.ceil(divided / period) > 1 and 0 < period <= 2 * steps
    assert epochs < 5 or period == 2 * steps  # the authors' period where there is room for it


def test_clusters_of_one_class_each_are_refused(inputs):
    method, labels = build(DivideAndConquer, clusters=2), inputs.images.labels % 2
    method.counts[0] = 1
    method.cluster_of.copy_(torch.from_numpy(labels))
    epoch = Epoch(0, labels, 2, 2, np.random.default_rng(0), EmbedAll(method, inputs))
    with pytest.raises(
        StudyError, match="None of the 2 clusters holds two classes.*lower clusters"
    ):
        next(method.batches(epoch))


# --- schedules of all methods


SCHEDULED = [(name, {}) for name in METHODS]
SCHEDULED += [("multi_similarity", {"memory": 32, "memory_start": 4}), ("hdml", {"window": 2})]


@pytest.mark.parametrize("name, hyper", SCHEDULED, ids=str)
def test_every_phase_of_a_method_runs_or_is_refused_at_once(name, hyper, inputs):
    """Three steps an epoch; a schedule in epochs would leave phases out of the short budgets."""
    for epochs in (1, 2, 3, 4, 8, 12):
        method = build(METHODS[name], epochs=epochs, **hyper)
        assert not any(method.phases().values())
        if (method.least_steps > 1) != bool(method.phases()):
            pytest.fail("a method with phases says how many steps they need")
        if not method.phases():
            return
        recipe = replace(RECIPE, epochs=epochs)
        if 3 * epochs < method.least_steps:
            with pytest.raises(StudyError, match=f"epochs = {epochs} makes {3 * epochs}: raise"):
                go(method, inputs, recipe=recipe)
            assert not any(method.phases().values())
        else:
            go(method, inputs, recipe=recipe)
            assert all(method.phases().values()), (epochs, method.phases())
            steps = [n for phase, n in method.phases().items() if "step" in phase]
            assert name == "multi_similarity" or sum(steps) == 3 * epochs
