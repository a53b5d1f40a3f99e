"""HDML: the pull and N-pair on tuples against loops, who learns from which term, weights, controls."""

import math

import pytest
import torch
import torch.nn.functional as F
from dmlstudy.methods.hdml import HDML

from dmlstudy.errors import StudyError
from dmlstudy.losses.hdml import (
    exponential_weight,
    interpolate_negatives,
    npair_tuples,
    pair_indices,
)
from dmlstudy.losses.npair import npair
from dmlstudy.methods.base import Batch, Task
from dmlstudy.networks import build_network
from dmlstudy.training import Recipe, make_optimiser, train

CLASSES, PER_CLASS, EPOCHS = 6, 8, 4
every_control = pytest.mark.parametrize("hyper", [{}, *HDML.controls.values()], ids=str)


def normal(seed, *shape):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()


def agree(ours, other, x):
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)
    a, b = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (ours, other))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# --- the pull


def test_pulls_of_the_card():
    z, near, far = (torch.tensor([x, 0.0], dtype=torch.float64) for x in (0, 1, 3))
    for j_avg in (0.1, 1.0, 90.0):  # alpha = J_avg
        found = interpolate_negatives(
            z, near, far, kept_share=exponential_weight(j_avg, j_avg)
        ).tolist()
        assert found == pytest.approx([1.735759, 0], abs=1e-6)
    torch.testing.assert_close(
        interpolate_negatives(z, near, far, kept_share=exponential_weight(1e-9, 1.0)), far
    )
    torch.testing.assert_close(
        interpolate_negatives(z, near, far, kept_share=exponential_weight(1e9, 1.0)), near
    )
    for keep in (0.0, 0.5, 1.0):  # d- <= d+
        assert torch.equal(interpolate_negatives(z, far, near, kept_share=keep), near)
        assert torch.equal(interpolate_negatives(z, near, near, kept_share=keep), near)


def test_weights_of_the_card():
    for mean in (1e-3, 1.0, 1e6):
        weight = exponential_weight(mean, mean)
        assert (weight, 1 - weight) == pytest.approx((0.367879, 0.632121), abs=1e-6)
    assert exponential_weight(0.3, 0.0) == 0 and exponential_weight(0.0, 0.0) == 1
    assert math.isnan(exponential_weight(0.3, math.nan))  # never silently replaced


def loop_pull(z, positive, negative, keep):
    d_positive, d_negative = (z - positive).norm(), (z - negative).norm()
    if d_negative <= d_positive:
        return negative
    direction = (negative - z) / d_negative
    return z + (d_positive + (d_negative - d_positive) * keep) * direction


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_pull_equals_the_loop_in_value_and_gradient(seed, keep):
    z = normal(seed, 2, 5, 4)
    a, p = z
    ours = interpolate_negatives(a[:, None], p[:, None], p[None], kept_share=keep)
    loop = torch.stack(
        [torch.stack([loop_pull(a[i], p[i], p[j], keep) for j in range(5)]) for i in range(5)]
    )
    moved = (ours - p).detach().norm(dim=2) > 1e-9
    assert not moved.diagonal().any() and moved.any() == (keep < 1)
    direction = normal(9, *ours.shape).detach()
    agree((ours * direction).sum(), (loop * direction).sum(), z)


def test_coinciding_points_have_a_finite_gradient():
    z = torch.tensor([[1.0, 2.0]] * 3).requires_grad_()
    for keep in (0.0, 0.5):
        for positive, negative in ((z[1], z[2]), (z[1], z[0] + 1), (z[0] + 1, z[2])):
            moved = interpolate_negatives(z[0], positive, negative, kept_share=keep)
            (gradient,) = torch.autograd.grad(moved.sum(), z)
            assert moved.isfinite().all() and gradient.isfinite().all()


# --- N-pair on tuples


@pytest.mark.parametrize("l2", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(3))
def test_with_shared_negatives_it_is_npair(seed, l2):
    # Ragged classes, two of them singletons; some of the ten are absent.
    y = torch.tensor([0] * 7 + [2] * 5 + [3] * 4 + [5] * 2 + [8, 9])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    x = normal(seed, len(y), 5)
    pairs = pair_indices(y)
    assert pairs.shape == (1, 4, 2)  # the smallest class has one pair, singletons have none
    anchors, positives = x[pairs[0]].unbind(1)
    agree(npair_tuples(anchors, positives.expand(4, 4, -1), l2=l2), npair(x, y, l2=l2), x)


@pytest.mark.parametrize("seed", range(3))
def test_with_own_negatives_it_equals_the_loop(seed):
    x = normal(seed, 2, 3, 4, 5)
    anchors, candidates = x[:, :, 0], x[:, :, 1:]
    total = 0
    for r in range(2):
        for i in range(3):
            z, c = anchors[r, i], candidates[r, i]
            others = sum((z @ c[j] - z @ c[i]).exp() for j in range(3) if j != i)
            lengths = z.square().sum() + sum(c[j].square().sum() for j in range(3)) / 3
            total = total + torch.log(1 + others) + 0.02 / 4 * lengths
    agree(npair_tuples(anchors, candidates, l2=0.02), total / 6, x)


def test_every_image_of_a_p_by_k_batch_is_in_one_pair():
    g = torch.Generator().manual_seed(0)
    y = torch.tensor([7, 3, 5]).repeat_interleave(6)[torch.randperm(18, generator=g)]
    pairs = pair_indices(y)
    assert pairs.shape == (3, 3, 2) and sorted(pairs.flatten().tolist()) == list(range(18))
    labels = y[pairs]
    assert torch.equal(labels[..., 0], labels[..., 1])
    assert all(len(set(row)) == 3 for row in labels[..., 0].tolist())
    # Within a class, batch order is kept: the first two, the next two, ...
    for column in pairs.transpose(0, 1).flatten(1).tolist():
        assert column == sorted(column)


# --- the method


def build(**hyper):
    torch.manual_seed(0)
    network = build_network("convnet", channels=1, embedding_size=8)
    return HDML(network, Task(CLASSES, 48, EPOCHS), **({"hidden": 16, "block": 2} | hyper))


def under_way(**hyper):
    """With a past, so that the pull and both weights are in between."""
    method = build(**hyper)
    method.trace = [[1.0, 0.1]] * 2
    return method


@pytest.fixture
def batch(inputs):
    index = torch.arange(len(inputs))
    return Batch(inputs.test_inputs(index), torch.from_numpy(inputs.images.labels), index)


def parts(method):
    return {
        "trunk": method.network.upper,
        "head": method.network.head,
        "generator": method.generator,
        "classifier": method.classifier,
    }


@pytest.mark.parametrize("term", ["npair", "synthetic", "generator", "classifier"])
def test_each_term_teaches_its_own_part_and_all_of_it(batch, term):
    method = under_way()
    method.loss(batch)[term].backward()
    pupils = {term} if term in ("generator", "classifier") else {"trunk", "head"}
    for name, part in parts(method).items():
        learns = [p.grad is not None and bool(p.grad.any()) for p in part.parameters()]
        assert learns == [name in pupils] * len(learns)


def test_terms_equal_the_formulas(batch):
    method = under_way(alpha=0.8, beta=0.3, lam=0.4, kappa=0.5, l2=0.02)
    keep, weight = method.adaptive_weights()
    assert (keep, weight) == pytest.approx((math.exp(-0.8), math.exp(-3)))
    terms, labels = method.loss(batch), batch.labels
    y = method.network.features(batch.images)
    z = method.network.head(y)
    starts = PER_CLASS * torch.arange(CLASSES)
    rounds = [(starts + 2 * r, starts + 2 * r + 1) for r in range(4)]
    j_m = sum(npair(z[torch.cat(pair)], labels[torch.cat(pair)], l2=0.02) for pair in rounds) / 4
    torch.testing.assert_close(terms["npair"], weight * j_m)
    torch.testing.assert_close(terms["classifier"], F.cross_entropy(method.classifier(y), labels))
    pulled, kept, distances = [], [], []
    for anchors, positives in rounds:
        for i in range(CLASSES):
            for j in range(CLASSES):
                a, p, n = z[anchors[i]], z[positives[i]], z[positives[j]]
                pulled.append(loop_pull(a, p, n, keep))
                kept.append(labels[positives[j]])
                if i != j:
                    distances.append(torch.stack([(x - a).norm() for x in (p, n, pulled[-1])]))
    generated = method.generator(torch.cat([z, torch.stack(pulled)]))
    first = torch.cat([anchors for anchors, _ in rounds])
    logits = method.classifier(generated)
    entropy = F.cross_entropy(logits[48:], torch.stack(kept))
    entropy = entropy + F.cross_entropy(logits[first], labels[first])
    j_gen = 0.6 * (generated[:48] - y).square().mean() + 0.4 * 0.5 * entropy
    torch.testing.assert_close(terms["generator"], j_gen)
    again = method.network.head(generated)
    j_syn = npair_tuples(again[first].view(4, 6, 8), again[48:].view(4, 6, 6, 8), l2=0.02)
    torch.testing.assert_close(terms["synthetic"], (1 - weight) * j_syn)
    # The frozen generator passes on the gradient that a live one would.
    network = [*method.network.upper.parameters(), *method.network.head.parameters()]
    ours = torch.autograd.grad(terms["synthetic"], network)
    live = torch.autograd.grad((1 - weight) * j_syn, network, retain_graph=True)
    for u, v in zip(ours, live, strict=True):
        torch.testing.assert_close(u, v)
    method.after_step()
    expected = [j_m.item(), j_gen.item(), keep, weight, *torch.stack(distances).mean(0).tolist()]
    assert method.trace[-1][:7] == pytest.approx(expected, rel=1e-5)


def test_means_are_of_the_last_complete_block():
    method = build(block=3, alpha=1.0, beta=1.0)
    for step in range(9):
        now = method.adaptive_weights()
        if step < 3:
            assert now == (1.0, 1.0)  # nothing is pulled and nothing synthetic counts
        else:
            mean = 2.0 if step < 6 else 5.0
            assert now == pytest.approx((math.exp(-1 / mean), math.exp(-0.1 / mean)))
        method.trace.append([step + 1.0, 10 * (step + 1.0), 0.0])


def test_before_the_first_block_the_network_learns_plain_npair(batch):
    first, plain = build(), build(synthesis="none")
    terms, alone = first.loss(batch), plain.loss(batch)
    assert terms["synthetic"] == 0 and terms["npair"] == alone["npair"]
    sum(terms.values()).backward()
    alone["npair"].backward()
    for a, b in zip(first.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_pulling_makes_the_task_harder(batch):
    lazy, eager = (under_way(synthesis="pulled", alpha=alpha) for alpha in (0.0, 1e9))
    weight = lazy.adaptive_weights()[1]
    one, other = lazy.loss(batch), eager.loss(batch)
    torch.testing.assert_close(one["synthetic"] / (1 - weight), one["npair"] / weight)  # no pull
    assert other["synthetic"] > one["synthetic"]
    *_, real, pulled, synthetic = eager._row.tolist()
    assert pulled == synthetic < real


def test_learning_rates():
    method = build(generator_lr=0.05, classifier_lr=0.07)
    optimiser = make_optimiser(method, Recipe(4, 4, 4, 1e-3, 2e-3, 1e-4))
    rates = {
        id(p): (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]
    }
    expected = [(2e-3, 1e-4), (1e-3, 1e-4), (0.05, 0), (0.07, 0)]
    for part, rate in zip(parts(method).values(), expected, strict=True):
        assert {rates[id(p)] for p in part.parameters()} == {rate}


@pytest.mark.parametrize(
    "labels", [[1, 1, 1, 1], [0, 1, 2, 3], [0, 0, 1], [4], [2, 2], [0, 3]], ids=str
)
def test_degenerate_batches_have_no_gradient_and_no_past(labels):
    method = under_way()
    method._row = torch.zeros(8)  # of an earlier step
    images = torch.rand(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    terms = method.loss(Batch(images, torch.tensor(labels), torch.arange(len(labels))))
    assert list(terms) == ["npair"] and terms["npair"] == 0
    terms["npair"].backward()
    assert all(p.grad is None or not p.grad.any() for p in method.parameters())
    method.after_step()
    assert len(method.trace) == 2


@every_control
def test_identical_images_stay_finite(hyper):
    method = under_way(**hyper)
    labels = torch.tensor([0, 0, 1, 1])
    terms = method.loss(Batch(torch.ones(4, 1, 8, 8), labels, torch.arange(4)))
    sum(terms.values()).backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_nan_is_not_replaced(batch):
    method = under_way()
    with torch.no_grad():
        method.network.head.bias[0] = torch.nan
    terms = method.loss(batch)
    assert terms["npair"].isnan() and terms["synthetic"].isnan() and terms["generator"].isnan()


def go(method, inputs):
    return train(method, inputs, inputs.images.labels, Recipe(4, 4, EPOCHS, 3e-3, 3e-3, 1e-4), 0)


def test_without_synthesis_it_is_plain_npair(inputs):
    class Plain(HDML):
        def loss(self, batch):
            z, y = self.embed(batch.images).view(4, 4, 8), batch.labels.view(4, 4)
            rounds = [(z[:, r : r + 2].flatten(0, 1), y[:, :2].flatten()) for r in (0, 2)]
            return {"npair": sum(npair(*pair, l2=3e-3) for pair in rounds) / 2}

    ours = build(synthesis="none")
    plain = Plain(build().network, Task(CLASSES, 48, EPOCHS), synthesis="none")
    assert all(name.startswith("network.") for name, _ in ours.named_parameters())
    for left, right in zip(go(ours, inputs).history, go(plain, inputs).history, strict=True):
        assert left == pytest.approx(right, rel=1e-4)


@every_control
def test_training_lowers_the_loss_and_hardens_synthetic_tuples(hyper, inputs, batch):
    @torch.no_grad()
    def real_loss():
        return npair(method.eval().network(batch.images), batch.labels)

    method = build(**hyper)
    before = real_loss()
    go(method, inputs)
    assert real_loss() < 0.9 * before
    assert len(method.trace) == (0 if method.synthesis == "none" else 12)
    if method.trace:
        _, _, keep, weight, *_ = zip(*method.trace, strict=True)
        assert keep[0] == weight[0] == 1
        assert keep[-1] < keep[2] < 1 and max(weight[2:]) < 1


def test_the_generator_learns_to_reconstruct():
    method = build(hidden=64, lam=0.0)
    z = normal(0, 48, 8).detach().float()
    y = z @ normal(1, 8, method.network.feature_size).detach().float()
    labels = torch.arange(48) % CLASSES
    pairs = pair_indices(labels)
    real = z[pairs[..., 1]][:, None].expand(-1, CLASSES, -1, -1)  # nothing pulled
    optimiser = torch.optim.Adam(method.generator.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        loss = method._generator_loss(y, z, real, pairs, labels)
        loss.backward()
        optimiser.step()
    assert loss < 0.1 * (y - y.mean(0)).square().mean()


def test_ranks_by_cosine():
    a, b = normal(0, 2, 5, 4).detach()
    method = build()
    cosine = F.cosine_similarity(a[:, None], b[None], dim=2)
    torch.testing.assert_close(method.similarity(7 * a, b), cosine)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(StudyError, match="did you mean 'generated'"):
        build(synthesis="generate")
