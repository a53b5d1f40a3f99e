"""DE-DSP: N-pair against loops and PML, the policy's probabilities by enumeration, and whom it comes to propose."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmlstudy.data import pk_batches
from dmlstudy.errors import StudyError
from dmlstudy.losses.npair import npair
from dmlstudy.methods.base import Batch, Task
from dmlstudy.methods.discriminative_sampling import (
    DiscriminativeSampling,
    Policy,
    class_pairs,
    draw_log_probabilities,
    tuple_losses,
)
from dmlstudy.networks import build_network
from dmlstudy.training import EmbedAll, Recipe, make_optimiser, train

# Ragged classes, two of them singletons; some of the ten are absent.
LABELS = torch.tensor([0] * 7 + [2] * 5 + [3] * 4 + [5] * 2 + [8, 9])


def batch(seed, labels=LABELS):
    """Embeddings of varied length and shuffled labels."""
    g = torch.Generator().manual_seed(seed)
    y = labels[torch.randperm(len(labels), generator=g)]
    x = torch.randn(len(y), 5, generator=g, dtype=torch.float64)
    return x.requires_grad_(), y


def agree(ours, other, x):
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)
    a, b = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (ours, other))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# --- the N-pair loss


def test_npair_of_equal_images_is_the_log_of_the_number_of_pairs():
    y = torch.arange(7).repeat_interleave(2)
    assert npair(torch.zeros(14, 3), y).item() == pytest.approx(math.log(7))
    x, _ = batch(0, y)
    by_diagonal = F.cross_entropy(x[::2] @ x[1::2].T, torch.arange(7))
    agree(npair(x, y), by_diagonal, x)


def test_npair_looks_at_the_first_two_images_of_a_class_only():
    x, y = batch(1)
    (gradient,) = torch.autograd.grad(npair(x, y, l2=0.1), x)
    used = [i for i in range(len(y)) if (y[:i] == y[i]).sum() < 2 and (y == y[i]).sum() > 1]
    assert gradient.any(1).nonzero()[:, 0].tolist() == used


# --- drawing and rewarding


def loop_log_probabilities(logits, drawn):
    found, left = [], list(range(len(logits)))
    for c in drawn:
        found.append(logits[c] - torch.stack([logits[i] for i in left]).exp().sum().log())
        left.remove(c)
    return torch.stack(found)


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_of_draws_equal_the_loop_and_sum_to_one(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    total = 0.0
    for drawn in itertools.permutations(range(5), 3):
        ours = draw_log_probabilities(logits, torch.tensor(drawn))
        agree(ours.sum(), loop_log_probabilities(logits, drawn).sum(), logits)
        total += ours.sum().exp().item()
    assert total == pytest.approx(1)


def test_what_cannot_be_drawn_has_no_share():
    logits = torch.tensor([0.3, -math.inf, 1.0, -math.inf], requires_grad=True)
    ours = draw_log_probabilities(logits, torch.tensor([2, 0]))
    assert ours.tolist() == pytest.approx([1 - math.log(math.exp(0.3) + math.e), 0])
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    assert gradient.isfinite().all() and not gradient[[1, 3]].any()


def rewarded(layers, drawn_rewards):
    """Exact expectation of the policy's gradient over all ordered draws of two of four classes."""
    e = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0))).double()
    policy = Policy(3, 8).double()
    policy.load_state_dict(layers)
    expected = 0
    for drawn in itertools.permutations(range(1, 5), 2):
        logits = policy(e[0], e).masked_fill(torch.arange(5) == 0, -torch.inf)
        log_pi = draw_log_probabilities(logits, torch.tensor(drawn))
        weight = log_pi.sum().exp().detach()
        expected = expected - weight * (drawn_rewards[list(drawn)] * log_pi).mean()
    gradient = torch.autograd.grad(expected, list(policy.parameters()))
    return torch.cat([g.flatten() for g in gradient]), policy, e


@pytest.fixture
def layers():
    torch.manual_seed(5)
    policy = Policy(3, 8).double()
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter)
    return policy.state_dict()


def test_constant_reward_has_no_expected_gradient(layers):
    constant, _, _ = rewarded(layers, torch.full((5,), 3.0).double())
    assert constant.abs().max() < 1e-12
    varied, _, _ = rewarded(layers, torch.arange(5).double())
    assert varied.abs().max() > 1e-3
    shifted, _, _ = rewarded(layers, torch.arange(5).double() - 7)
    torch.testing.assert_close(shifted, varied)  # nor does the running mean bias it


def test_the_gradient_of_one_draw_is_that_of_the_expected_reward(layers):
    _, policy, e = rewarded(layers, torch.zeros(5).double())
    reward = torch.tensor([0, 1.0, 4, 2, 3]).double()
    logits = policy(e[0], e).masked_fill(torch.arange(5) == 0, -torch.inf)
    direct = -(logits.softmax(0) * reward).sum()
    log_pi = torch.stack([draw_log_probabilities(logits, torch.tensor([c])) for c in range(1, 5)])
    sampled = -(log_pi.exp().detach()[:, 0] * reward[1:] * log_pi[:, 0]).sum()
    for a, b in zip(
        *(
            torch.autograd.grad(v, list(policy.parameters()), retain_graph=True)
            for v in (direct, sampled)
        ),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_rewards_equal_the_loop_and_npair_of_two_classes():
    z, _ = batch(3, torch.arange(4).repeat_interleave(5))
    pairs = class_pairs(z, 4)
    assert pairs.shape == (4, 2, 2, 5)
    for c in range(1, 4):
        naive = 0
        for m in (0, 2):  # the fifth image of each class is left out
            a, p, n = z[m], z[m + 1], z[5 * c + m + 1]
            naive = naive + torch.log(1 + torch.exp(a @ n - a @ p)) / 2
        torch.testing.assert_close(tuple_losses(pairs)[c - 1], naive)
    both = npair(pairs[:2, 0].flatten(0, 1), torch.tensor([0, 0, 1, 1]))
    mutual = tuple_losses(pairs[:2, :1]) + tuple_losses(pairs[[1, 0], :1])
    torch.testing.assert_close(both, mutual[0] / 2)


# --- the method


TASK, PER_CLASS = Task(6, 48, 4), 8


def build(seed=0, task=TASK, **hyper):
    torch.manual_seed(seed)
    network = build_network("convnet", channels=1, embedding_size=8)
    return DiscriminativeSampling(network, task, **hyper)


def planned(method, inputs, epoch=0, seed=0, k=4):
    labels, rng = inputs.images.labels, np.random.default_rng(seed)
    plan = method.plan(epoch, labels, 4, k, rng, EmbedAll(method, inputs))
    return np.array([indices for indices, _ in plan])


def whole(inputs, indices):
    index = torch.from_numpy(indices)
    return Batch(inputs.plain(index), torch.from_numpy(inputs.images.labels)[index], index)


@pytest.mark.parametrize("sampler", ["policy", "uniform", "nearest"])
@pytest.mark.parametrize("k", [2, 5])
def test_batches_are_p_by_k_and_as_many_as_the_protocols(sampler, k, inputs):
    labels = inputs.images.labels
    batches = planned(build(sampler=sampler), inputs, k=k)
    assert len(batches) == len(list(pk_batches(labels, 4, k, np.random.default_rng(0))))
    for indices in batches:
        classes = labels[indices].reshape(4, k)
        assert (classes == classes[:, :1]).all() and len(set(classes[:, 0])) == 4
        assert len(set(indices)) == 4 * k


def test_a_policy_without_experience_is_the_uniform_sampler(inputs):
    """The card's check: zero logits give the uniform sampler's batches, so N-pair's statistics as well."""
    fresh, uniform = build(), build(sampler="uniform")
    batches = planned(fresh, inputs)
    assert np.array_equal(batches, planned(uniform, inputs))
    for indices in batches[:2]:
        given = whole(inputs, indices)
        assert fresh.loss(given)["npair"] == uniform.loss(given)["npair"]
    torch.nn.init.normal_(fresh.policy.layers[-1].weight, std=9)
    assert not np.array_equal(batches, planned(fresh, inputs))


def test_uniform_classes_meet_alike_and_a_policy_draws_by_its_probabilities():
    method, rng = build(), np.random.default_rng(0)
    method.centroids.copy_(torch.eye(6, 8))
    drawn = np.array([method.propose(3, rng) for _ in range(800)])
    assert np.bincount(drawn[:, 0]) / 800 == pytest.approx(1 / 6, abs=0.05)
    assert np.bincount(drawn[:, 2]) / 800 == pytest.approx(1 / 6, abs=0.05)
    torch.manual_seed(1)
    torch.nn.init.normal_(method.policy.layers[-1].weight, std=2)
    drawn = np.array([method.propose(3, rng) for _ in range(2000)])
    for anchor in (0, 3):
        rows = drawn[drawn[:, 0] == anchor]
        logits = method.logits(anchor).detach()
        share = np.bincount(rows[:, 1], minlength=6) / len(rows)
        assert share == pytest.approx(logits.softmax(0).numpy(), abs=0.08)
        assert share[anchor] == 0 and share.max() > 0.25
        for second in itertools.islice(itertools.permutations(range(6), 2), 8):
            if anchor not in second:
                expected = draw_log_probabilities(logits, torch.tensor(second)).sum().exp()
                seen = (rows[:, 1:] == second).all(1).mean()
                assert seen == pytest.approx(expected.item(), abs=0.08)


def test_fixed_hard_classes_are_the_nearest_centroids():
    method, rng = build(sampler="nearest"), np.random.default_rng(0)
    torch.manual_seed(2)
    method.centroids.normal_()
    e = F.normalize(method.centroids)
    for _ in range(10):
        anchor, *others = method.propose(4, rng)
        by_distance = sorted(set(range(6)) - {anchor}, key=lambda c: (e[c] - e[anchor]).norm())
        assert others == by_distance[:3]


@pytest.mark.parametrize("sampler", ["policy", "uniform", "nearest"])
def test_classes_of_one_image_are_never_drawn(sampler):
    labels = np.array([0, 0, 1, 2, 2, 3, 3, 3, 4, 5, 5])
    method = build(task=Task(6, 11, 4), sampler=sampler)
    rng = np.random.default_rng(0)
    plan = list(method.plan(0, labels, 4, 2, rng, lambda: torch.randn(11, 8)))
    plan += list(method.plan(1, labels, 4, 2, rng, lambda: None))
    for indices, _ in plan:
        assert sorted(labels[indices[::2]]) == [0, 2, 3, 5]


def test_centroids_start_as_class_means_and_follow_the_batches(inputs):
    method = build(centroid_momentum=0.75)
    batches = planned(method, inputs)
    f, labels = F.normalize(EmbedAll(method, inputs)()), torch.from_numpy(inputs.images.labels)
    start = torch.stack([f[labels == c].mean(0) for c in range(6)])
    torch.testing.assert_close(method.centroids, start)
    given = whole(inputs, batches[0])
    method.loss(given)
    method.after_step()
    f = F.normalize(method.embed(given.images)).detach()
    for c in range(6):
        here = given.labels == c
        expected = 0.75 * start[c] + 0.25 * f[here].mean(0) if here.any() else start[c]
        torch.testing.assert_close(method.centroids[c], expected)


def test_the_two_networks_share_no_gradient(inputs):
    method = build()
    torch.nn.init.normal_(method.policy.layers[-1].weight)
    terms = method.loss(whole(inputs, planned(method, inputs)[0]))
    network, policy = list(method.network.parameters()), list(method.policy.parameters())
    for term, own, foreign in (("npair", network, policy), ("policy", policy, network)):
        gradients = torch.autograd.grad(
            terms[term], own + foreign, retain_graph=True, allow_unused=True
        )
        assert any(g is not None and g.any() for g in gradients[: len(own)])
        assert all(g is None for g in gradients[len(own) :])


def test_rewards_are_capped_and_compared_with_their_running_mean(inputs):
    method = build(clip=0.3, reward_momentum=0.8)
    given = whole(inputs, planned(method, inputs)[0])
    torch.nn.init.normal_(method.policy.layers[-1].weight)
    with torch.no_grad():  # longer vectors, so that rewards vary
        method.network.head.weight.mul_(20)
    z, classes = method.embed(given.images), given.labels[::4]
    raw = tuple_losses(class_pairs(z, 4))
    assert raw.max() > 0.3 > raw.min()
    reward, before = raw.clamp(max=0.3), method.mean_reward.clone()
    assert before.item() == pytest.approx(math.log(2))
    log_pi = loop_log_probabilities(method.logits(classes[0]), classes[1:].tolist())
    expected = -((reward - before) * log_pi).mean()
    torch.testing.assert_close(method.loss(given)["policy"], expected)
    method.after_step()
    torch.testing.assert_close(method.mean_reward, 0.8 * before + 0.2 * reward.mean().detach())


@pytest.mark.parametrize("name", DiscriminativeSampling.controls)
def test_controls_have_the_same_loss_and_no_policy(name, inputs):
    method, plain = build(), build(**DiscriminativeSampling.controls[name])
    given = whole(inputs, planned(method, inputs)[0])
    terms = plain.loss(given)
    assert list(terms) == ["npair"]
    assert terms["npair"] == method.loss(given)["npair"]
    z = plain.embed(given.images).unflatten(0, (4, 4))
    rounds = [npair(z[:, r : r + 2].flatten(0, 1), given.labels[::2], l2=0.02) for r in (0, 2)]
    torch.testing.assert_close(terms["npair"], sum(rounds) / 2)
    before = [parameter.clone() for parameter in plain.policy.parameters()]
    train(plain, inputs, inputs.images.labels, Recipe(4, 4, 1, 1e-3, 1e-3, 1e-4), 0)
    assert all(map(torch.equal, before, plain.policy.parameters()))


def test_the_policy_comes_to_propose_the_confusable_class():
    """Six classes on fixed places, class 1 beside class 0: its share grows, and far classes lose theirs."""
    method, rng = build(), np.random.default_rng(0)
    angle = torch.tensor([0, 20, 90, 150, 210, 270.0]).deg2rad()
    places = torch.zeros(6, 8)
    places[:, :2] = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    method.centroids.copy_(F.normalize(places))
    method.embed = lambda images: images
    optimiser = make_optimiser(method, Recipe(3, 2, 1, 1e-3, 1e-3, 0.0))
    start = method.logits(0).softmax(0)
    torch.testing.assert_close(start[1:], torch.full((5,), 0.2))
    for _ in range(150):
        classes = torch.tensor(method.propose(3, rng)).repeat_interleave(2)
        terms = method.loss(Batch(places[classes], classes, classes))
        optimiser.zero_grad()
        terms["policy"].backward()
        optimiser.step()
        method.after_step()
    pi = method.logits(0).softmax(0)
    assert pi[1] > 0.5 and pi[1] == pi.max()
    assert method.logits(1).argmax() == 0


@pytest.mark.parametrize("hyper", [{}, *DiscriminativeSampling.controls.values()], ids=str)
def test_training_lowers_the_loss_and_resumes_exactly(hyper, resumed_exactly):
    recipe = Recipe(4, 4, 5, 3e-3, 3e-3, 1e-4)
    _, done = resumed_exactly(partial(build, **hyper), recipe, after=2)
    assert done.history[-1]["npair"] < 0.9 * done.history[0]["npair"]


def test_raw_embeddings_are_ranked_by_cosine(inputs):
    method = build()
    z = EmbedAll(method, inputs)()
    assert not torch.allclose(z.norm(dim=1), torch.ones(48), atol=0.01)
    torch.testing.assert_close(
        method.similarity(z[:5], 3 * z), F.cosine_similarity(z[:5, None], z, dim=2)
    )


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(StudyError, match="did you mean 'uniform'"):
        build(sampler="unifrom")
