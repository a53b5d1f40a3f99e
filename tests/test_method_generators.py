"""HDML: terms against loops, which part learns from which term, running means, and what each control leaves."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, PER_CLASS, build, reached, whole

from dmlstudy import losses
from dmlstudy.methods import Batch
from dmlstudy.methods.generators import HDML
from dmlstudy.training import Recipe, make_optimiser

SMALL = {"hidden": 16, "window": 2}


def under_way(**hyper):
    """With a history, so that moving and both weights are in between."""
    method = build(HDML, **(SMALL | hyper))
    method.history = [[1.0, 0.1]] * 2
    return method


def hdml_parts(method):
    network = method.network
    parts = network.trained, network.head, method.generator, method.classifier
    return dict(zip(("trunk", "head", "generator", "classifier"), parts, strict=True))


@pytest.mark.parametrize("term", ["npair", "synthetic", "generator", "classifier"])
def test_each_term_teaches_its_own_part_and_all_of_it(term, inputs):
    method = under_way()
    value = method.loss(whole(inputs))[term]
    pupils = {term} if term in ("generator", "classifier") else {"trunk", "head"}
    for name, part in hdml_parts(method).items():
        assert set(reached(value, part)) == {name in pupils}


def move_by_loop(z, positive, negative, kept):
    d_positive, d_negative = (z - positive).norm(), (z - negative).norm()
    if d_negative <= d_positive:
        return negative
    return z + (d_positive + (d_negative - d_positive) * kept) * (negative - z) / d_negative


def test_terms_equal_the_formulas(inputs):
    method, batch = under_way(alpha=0.8, beta=0.3, lam=0.4, kappa=0.5, l2=0.02), whole(inputs)
    kept, weight = method.adaptive_weights()
    assert (kept, weight) == pytest.approx((math.exp(-0.8), math.exp(-3)))
    terms, labels = method.loss(batch), batch.labels
    y = method.network.features(batch.images)
    z = method.network.head(y)
    starts = PER_CLASS * torch.arange(CLASSES)
    rounds = [(starts + 2 * r, starts + 2 * r + 1) for r in range(4)]
    npairs = [losses.npair(z[i], labels[i], l2=0.02) for i in map(torch.cat, rounds)]
    j_m = sum(npairs) / 4
    torch.testing.assert_close(terms["npair"], weight * j_m)
    torch.testing.assert_close(terms["classifier"], F.cross_entropy(method.classifier(y), labels))
    moved, classes, distances = [], [], []
    for anchors, positives in rounds:
        for i in range(CLASSES):
            for j in range(CLASSES):
                a, p, n = z[anchors[i]], z[positives[i]], z[positives[j]]
                moved.append(move_by_loop(a, p, n, kept))
                classes.append(labels[positives[j]])
                if i != j:
                    distances.append(torch.stack([(x - a).norm() for x in (p, n, moved[-1])]))
    first = torch.cat([anchors for anchors, _ in rounds])
    generated = method.generator(torch.cat([z, z[first], torch.stack(moved)]))  # anchors twice
    logits = method.classifier(generated)
    entropy = F.cross_entropy(logits[72:], torch.stack(classes))
    entropy = entropy + F.cross_entropy(logits[first], labels[first])
    j_gen = 0.6 * (generated[:48] - y).square().mean() + 0.4 * 0.5 * entropy
    torch.testing.assert_close(terms["generator"], j_gen)
    again = method.network.head(generated)
    tuples = again[first].view(4, 6, 8), again[72:].view(4, 6, 6, 8)
    j_syn = (1 - weight) * losses.npair_tuples(*tuples, l2=0.02)
    torch.testing.assert_close(terms["synthetic"], j_syn)
    # The frozen generator passes on the gradient that a live one would.
    network = [*method.network.trained.parameters(), *method.network.head.parameters()]
    ours, live = (torch.autograd.grad(v, network) for v in (terms["synthetic"], j_syn))
    for u, v in zip(ours, live, strict=True):
        torch.testing.assert_close(u, v)
    method.after_step()
    expected = [j_m.item(), j_gen.item(), kept, weight, *torch.stack(distances).mean(0).tolist()]
    assert method.history[-1][:7] == pytest.approx(expected, rel=1e-5)


def test_means_are_of_the_last_complete_window():
    method = build(HDML, window=3, alpha=1.0, beta=1.0)
    for step in range(9):
        mean = (math.inf, 2.0, 5.0)[step // 3]  # before the first nothing is moved or synthetic
        expected = math.exp(-1 / mean), math.exp(-0.1 / mean)
        assert method.adaptive_weights() == pytest.approx(expected)
        method.history.append([step + 1.0, 10 * (step + 1.0), 0.0])


def test_every_part_has_its_learning_rate():
    method = build(HDML, generator_lr=0.05, classifier_lr=0.07)
    groups = make_optimiser(method, Recipe(4, 4, 4, 1e-3, 2e-3, 1e-4)).param_groups
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    expected = [(2e-3, 1e-4), (1e-3, 1e-4), (0.05, 0), (0.07, 0)]
    for part, rate in zip(hdml_parts(method).values(), expected, strict=True):
        assert {rates[id(p)] for p in part.parameters()} == {rate}


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 1, 2, 3], [0, 0, 1], [4], [2, 2]], ids=str)
def test_batches_without_tuples_have_no_gradient_and_no_past(labels, inputs):
    method, batch, n = under_way(), whole(inputs), len(labels)
    method._row = torch.zeros(8)  # of an earlier step
    terms = method.loss(Batch(batch.images[:n], torch.tensor(labels), batch.indices[:n]))
    assert list(terms) == ["npair"] and terms["npair"] == 0
    assert not any(reached(terms["npair"], method))
    method.after_step()
    assert len(method.history) == 2


def test_nan_is_not_replaced(inputs):
    method = under_way()
    with torch.no_grad():
        method.network.head.bias[0] = torch.nan
    terms = method.loss(whole(inputs))
    assert all(terms[name].isnan() for name in ("npair", "synthetic", "generator"))


def test_before_the_first_window_the_network_learns_plain_npair(inputs):
    first, plain, batch = build(HDML, **SMALL), build(HDML, synthesis="none"), whole(inputs)
    assert all(name.startswith("network.") for name, _ in plain.named_parameters())
    terms, alone = first.loss(batch), plain.loss(batch)
    assert terms["synthetic"] == 0 and terms["npair"] == alone["npair"]
    sum(terms.values()).backward()
    alone["npair"].backward()
    for a, b in zip(first.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    pairs = [torch.arange(48).view(6, 8)[:, r : r + 2].flatten() for r in (0, 2, 4, 6)]
    z = plain.embed(batch.images)
    npairs = [losses.npair(z[i], batch.labels[i], l2=3e-3) for i in pairs]
    torch.testing.assert_close(alone["npair"], sum(npairs) / 4)


def test_moving_makes_the_task_harder(inputs):
    lazy, eager = (under_way(synthesis="interpolated", alpha=alpha) for alpha in (0.0, 1e9))
    weight = lazy.adaptive_weights()[1]
    one, other = (method.loss(whole(inputs)) for method in (lazy, eager))
    torch.testing.assert_close(one["synthetic"] / (1 - weight), one["npair"] / weight)
    assert other["synthetic"] > one["synthetic"]
    *_, real, moved, synthetic = eager._row.tolist()
    assert moved == synthetic < real
