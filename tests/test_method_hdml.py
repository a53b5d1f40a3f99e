"""HDML: the pull and N-pair on tuples against loops, who learns from which term, weights, resuming, controls."""

import io
import math

import pytest
import torch
import torch.nn.functional as F

from dmlstudy.data import Augment, Pixels
from dmlstudy.errors import StudyError
from dmlstudy.losses.hdml import fading, npair_tuples, pair_indices, pull
from dmlstudy.losses.npair import npair
from dmlstudy.methods.base import Batch, Task
from dmlstudy.methods.hdml import HDML
from dmlstudy.networks import build_network
from dmlstudy.training import Recipe, make_optimiser, train

CLASSES, EPOCHS = 6, 4
PARTS = ("trunk", "head", "generator", "classifier")
# Ragged classes, two of them singletons; some of the ten are absent.
LABELS = torch.tensor([0] * 7 + [2] * 5 + [3] * 4 + [5] * 2 + [8, 9])


def tuples(seed, p=5, d=4):
    """Anchors and positives [P, D] of varied length."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2, p, d, generator=g, dtype=torch.float64)
    return z * (0.5 + torch.rand(2, p, 1, generator=g))


def shuffled(seed, labels=LABELS):
    g = torch.Generator().manual_seed(seed)
    y = labels[torch.randperm(len(labels), generator=g)]
    return torch.randn(len(y), 5, generator=g, dtype=torch.float64).requires_grad_(), y


def agree(ours, other, x):
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)
    a, b = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (ours, other))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# --- the pull


def test_pulls_of_the_card():
    z, near, far = (torch.tensor([x, 0.0], dtype=torch.float64) for x in (0, 1, 3))
    for j_avg in (0.1, 1.0, 90.0):  # alpha = J_avg
        found = pull(z, near, far, fading(j_avg, j_avg)).tolist()
        assert found == pytest.approx([1.735759, 0], abs=1e-6)
    torch.testing.assert_close(pull(z, near, far, fading(1e-9, 1.0)), far)
    torch.testing.assert_close(pull(z, near, far, fading(1e9, 1.0)), near)
    for keep in (0.0, 0.5, 1.0):  # d- <= d+
        assert torch.equal(pull(z, far, near, keep), near)
        assert torch.equal(pull(z, near, near, keep), near)


def test_weights_of_the_card():
    for mean in (1e-3, 1.0, 1e6):
        weight = fading(mean, mean)
        assert (weight, 1 - weight) == pytest.approx((0.367879, 0.632121), abs=1e-6)
    assert fading(0.3, math.inf) == 1 and fading(0.3, 0.0) == 0 and fading(0.0, 0.0) == 1
    assert math.isnan(fading(0.3, math.nan))  # never silently replaced


def loop_pull(z, positive, negative, keep):
    d_positive, d_negative = (z - positive).norm(), (z - negative).norm()
    if d_negative <= d_positive:
        return negative
    direction = (negative - z) / d_negative
    return z + (d_positive + (d_negative - d_positive) * keep) * direction


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_pull_equals_the_loop_in_value_and_gradient(seed, keep):
    z = tuples(seed).requires_grad_()
    a, p = z
    ours = pull(a[:, None], p[:, None], p[None], keep)
    loop = torch.stack(
        [torch.stack([loop_pull(a[i], p[i], p[j], keep) for j in range(5)]) for i in range(5)]
    )
    moved = (ours.detach() - p.detach()).norm(dim=2) > 1e-9
    assert not moved.diagonal().any() and moved.any() == (keep < 1)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9)).double()
    agree((ours * direction).sum(), (loop * direction).sum(), z)


def test_a_pulled_negative_comes_nearer_and_stays_on_its_line():
    a, p = tuples(0)
    before = (p - a[:, None]).norm(dim=2)
    positive = before.diagonal()[:, None]
    for keep in (0.0, 0.4, 0.9):
        after = pull(a[:, None], p[:, None], p[None], keep) - a[:, None]
        expected = torch.where(before > positive, positive + (before - positive) * keep, before)
        torch.testing.assert_close(after.norm(dim=2), expected)
        torch.testing.assert_close(F.normalize(after, dim=2), F.normalize(p - a[:, None], dim=2))


def test_coinciding_points_have_a_finite_gradient():
    z = torch.tensor([[1.0, 2.0]] * 3).requires_grad_()
    for keep in (0.0, 0.5):
        other = torch.stack([z[0], z[0] + 1])
        for positive, negative in ((z[1], z[2]), (z[1], other[1]), (other[1], z[2])):
            moved = pull(z[0], positive, negative, keep)
            (gradient,) = torch.autograd.grad(moved.sum(), z, retain_graph=True)
            assert moved.isfinite().all() and gradient.isfinite().all()


# --- N-pair on tuples


@pytest.mark.parametrize("l2", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(3))
def test_with_shared_negatives_it_is_npair(seed, l2):
    x, y = shuffled(seed)
    pairs = pair_indices(y)
    assert pairs.shape == (1, 4, 2)  # the smallest class has one pair, singletons have none
    anchors, positives = x[pairs[0]].unbind(1)
    agree(npair_tuples(anchors, positives.expand(4, 4, -1), l2=l2), npair(x, y, l2=l2), x)


@pytest.mark.parametrize("seed", range(3))
def test_with_own_negatives_it_equals_the_loop(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64).requires_grad_()
    anchors, candidates = x[:, :, 0], x[:, :, 1:]
    total = 0
    for r in range(2):
        for i in range(3):
            z, c = anchors[r, i], candidates[r, i]
            others = sum((z @ c[j] - z @ c[i]).exp() for j in range(3) if j != i)
            lengths = z.square().sum() + sum(c[j].square().sum() for j in range(3)) / 3
            total = total + torch.log(1 + others) + 0.02 / 4 * lengths
    agree(npair_tuples(anchors, candidates, l2=0.02), total / 6, x)


def test_npair_of_tuples_on_the_fixture():
    x = torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]])
    for labels, value in (([0, 0, 1, 1], 0.409278), ([0, 1, 0, 1], 0.737488)):
        anchors, positives = x[pair_indices(torch.tensor(labels))[0]].unbind(1)
        found = npair_tuples(anchors, positives.expand(2, 2, 2))
        assert float(found) == pytest.approx(value, abs=1e-6)


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


def build(seed=0, **hyper):
    torch.manual_seed(seed)
    network = build_network("convnet", channels=1, embedding_size=8)
    return HDML(network, Task(CLASSES, 48, EPOCHS), **({"hidden": 16, "block": 2} | hyper))


@pytest.fixture
def inputs(tiny_images):
    return Pixels(tiny_images, 8, Augment(shift=0.1))


def all_images(inputs):
    index = torch.arange(len(inputs))
    return Batch(inputs.plain(index), torch.from_numpy(inputs.images.labels), index)


def under_way(**hyper):
    """With a past, so that the pull and both weights are in between."""
    method = build(**hyper)
    method.trace = [[1.0, 0.1, 0, 0, 0, 0]] * 2
    return method


def parts(method):
    return {
        "trunk": method.network.upper,
        "head": method.network.head,
        "generator": method.generator,
        "classifier": method.classifier,
    }


def learners(method, term):
    """Which parts a term has a gradient for."""
    method.zero_grad()
    term.backward(retain_graph=True)
    found = {
        name: [p.grad is not None and bool(p.grad.any()) for p in part.parameters()]
        for name, part in parts(method).items()
    }
    assert all(len(set(flags)) == 1 for flags in found.values() if found) or term is None
    return {name for name, flags in found.items() if any(flags)}


@pytest.mark.parametrize(
    "term, expected",
    [
        ("npair", {"trunk", "head"}),
        ("synthetic", {"trunk", "head"}),
        ("generator", {"generator"}),
        ("classifier", {"classifier"}),
    ],
)
def test_each_term_teaches_its_own_part_only(inputs, term, expected):
    method = under_way()
    assert learners(method, method.loss(all_images(inputs))[term]) == expected


def test_the_synthetic_term_reaches_the_trunk_through_the_generator_alone(inputs):
    """The frozen generator passes the gradient on: J_syn as if all of it could learn, without its weights."""
    method = under_way()
    batch = all_images(inputs)
    y = method.network.features(batch.images)
    z = method.network.head(y)
    pairs = pair_indices(batch.labels)
    keep, weight = method.adaptive_weights()
    a, p = z[pairs].unbind(2)
    pulled = pull(a[:, :, None], p[:, :, None], p[:, None], keep)
    again = method.network.head(method.generator(torch.cat([z, pulled.flatten(0, 2)])))
    j_syn = npair_tuples(again[pairs[..., 0]], again[len(z) :].view_as(pulled), l2=method.l2)
    network = list(method.network.upper.parameters()) + list(method.network.head.parameters())
    live = torch.autograd.grad((1 - weight) * j_syn, network)
    ours = torch.autograd.grad(method.loss(batch)["synthetic"], network)
    for u, v in zip(ours, live, strict=True):
        torch.testing.assert_close(u, v)


def test_terms_equal_the_formulas(inputs):
    method = under_way(alpha=0.8, beta=0.3, lam=0.4, kappa=0.5, l2=0.02)
    batch = all_images(inputs)
    terms = method.loss(batch)
    labels = batch.labels
    keep, weight = method.adaptive_weights()
    assert (keep, weight) == pytest.approx((math.exp(-0.8), math.exp(-3)))
    y = method.network.features(batch.images)
    z = method.network.head(y)
    rounds = [(2 * r + 8 * torch.arange(6), 2 * r + 1 + 8 * torch.arange(6)) for r in range(4)]
    j_m = sum(npair(z[torch.cat(pair)], labels[torch.cat(pair)], l2=0.02) for pair in rounds) / 4
    torch.testing.assert_close(terms["npair"], weight * j_m)
    torch.testing.assert_close(terms["classifier"], F.cross_entropy(method.classifier(y), labels))
    pulled, kept = [], []
    for anchors, positives in rounds:
        for i in range(6):
            for j in range(6):
                a, p, n = z[anchors[i]], z[positives[i]], z[positives[j]]
                pulled.append(loop_pull(a, p, n, keep))
                kept.append(labels[positives[j]])
    generated = method.generator(torch.cat([z, torch.stack(pulled)]))
    first = torch.cat([anchors for anchors, _ in rounds])
    logits = method.classifier(generated)
    entropy = F.cross_entropy(logits[48:], torch.stack(kept))
    entropy = entropy + F.cross_entropy(logits[first], labels[first])
    j_gen = 0.6 * (generated[:48] - y).square().mean() + 0.4 * 0.5 * entropy
    torch.testing.assert_close(terms["generator"], j_gen)
    method.after_step()
    torch.testing.assert_close(torch.tensor(method.trace[-1][:2]), torch.stack([j_m, j_gen]))


def test_means_are_of_the_last_complete_block():
    method = build(block=3, alpha=1.0, beta=1.0)
    method.trace = [[float(i), 10.0 * i] for i in range(1, 9)]
    for steps in range(9):
        now = method.adaptive_weights(steps)
        if steps < 3:
            assert now == (1.0, 1.0)  # nothing is pulled and nothing synthetic counts
        else:
            mean = 2.0 if steps < 6 else 5.0
            assert now == pytest.approx((math.exp(-1 / mean), math.exp(-0.1 / mean)))
    assert method.adaptive_weights() == now


def test_before_the_first_block_the_network_learns_plain_npair(inputs):
    first, plain = build(), build(synthesis="none")
    terms, alone = first.loss(all_images(inputs)), plain.loss(all_images(inputs))
    assert terms["synthetic"] == 0 and terms["npair"] == alone["npair"]
    sum(terms.values()).backward()
    alone["npair"].backward()
    for a, b in zip(first.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_pulling_makes_the_task_harder(inputs):
    batch = all_images(inputs)
    lazy, eager = (under_way(synthesis="pulled", alpha=alpha) for alpha in (0.0, 1e9))
    losses = [method.loss(batch) for method in (lazy, eager)]
    weight = lazy.adaptive_weights()[1]
    real = losses[0]["npair"] / weight
    torch.testing.assert_close(losses[0]["synthetic"], (1 - weight) * real)  # nothing pulled
    assert losses[1]["synthetic"] > losses[0]["synthetic"]
    _, _, positive, negative, pulled, synthetic = eager._latest.tolist()
    assert pulled == synthetic < negative and pulled < positive + 1e-6


def test_distances_in_the_trace(inputs):
    method = under_way()
    method.loss(all_images(inputs))
    with torch.no_grad():
        z = method.network(all_images(inputs).images).view(6, 4, 2, 8)  # class, round, pair
    keep, _ = method.adaptive_weights()
    rows = []
    for r in range(4):
        for i in range(6):
            for j in set(range(6)) - {i}:
                a, p, n = z[i, r, 0], z[i, r, 1], z[j, r, 1]
                moved = loop_pull(a, p, n, keep)
                rows.append(torch.stack([(x - a).norm() for x in (p, n, moved)]))
    torch.testing.assert_close(method._latest[2:5], torch.stack(rows).mean(0))


def test_learning_rates(inputs):
    method = build(generator_lr=0.05, classifier_lr=0.07)
    optimiser = make_optimiser(method, Recipe(4, 4, 4, 1e-3, 2e-3, 1e-4))
    rates = {
        id(p): (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]
    }
    expected = dict(zip(PARTS, [(2e-3, 1e-4), (1e-3, 1e-4), (0.05, 0), (0.07, 0)], strict=True))
    for name, part in parts(method).items():
        assert {rates[id(p)] for p in part.parameters()} == {expected[name]}


@pytest.mark.parametrize(
    "labels", [[1, 1, 1, 1], [0, 1, 2, 3], [0, 0, 1], [4], [2, 2], [0, 3]], ids=str
)
def test_degenerate_batches_have_no_gradient_and_no_past(labels):
    method = under_way()
    images = torch.rand(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    terms = method.loss(Batch(images, torch.tensor(labels), torch.arange(len(labels))))
    assert list(terms) == ["npair"] and terms["npair"] == 0
    terms["npair"].backward()
    assert all(p.grad is None or not p.grad.any() for p in method.parameters())
    method.after_step()
    assert len(method.trace) == 2


@pytest.mark.parametrize("hyper", [{}, *HDML.controls.values()], ids=str)
def test_identical_images_stay_finite(hyper):
    method = under_way(**hyper)
    labels = torch.tensor([0, 0, 1, 1])
    terms = method.loss(Batch(torch.ones(4, 1, 8, 8), labels, torch.arange(4)))
    sum(terms.values()).backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_nan_is_not_replaced(inputs):
    method = under_way()
    with torch.no_grad():
        method.network.head.bias[0] = torch.nan
    terms = method.loss(all_images(inputs))
    assert terms["npair"].isnan() and terms["synthetic"].isnan() and terms["generator"].isnan()


@torch.no_grad()
def real_loss(method, inputs):
    """N-pair on the first two images of each class."""
    batch = all_images(inputs)
    return npair(method.eval().network(batch.images), batch.labels)


def go(method, inputs, **options):
    recipe = Recipe(4, 4, EPOCHS, 3e-3, 3e-3, 1e-4)
    return train(method, inputs, inputs.images.labels, recipe, 0, **options)


def test_without_synthesis_it_is_plain_npair_bit_for_bit(inputs):
    class Plain(HDML):
        def loss(self, batch):
            z, y = self.embed(batch.images).view(-1, 4, 8), batch.labels.view(-1, 4)
            rounds = [
                npair(z[:, r : r + 2].flatten(0, 1), y[:, :2].flatten(), l2=3e-3) for r in (0, 2)
            ]
            return {"npair": sum(rounds) / 2}

    torch.manual_seed(0)
    network = build_network("convnet", channels=1, embedding_size=8)
    plain = Plain(network, Task(CLASSES, 48, EPOCHS), synthesis="none")
    ours = build(synthesis="none")
    assert all(name.startswith("network.") for name, _ in ours.named_parameters())
    a, b = (go(method, inputs).history for method in (ours, plain))
    for left, right in zip(a, b, strict=True):
        assert left == pytest.approx(right, rel=1e-4)


@pytest.mark.parametrize("hyper", [{}, *HDML.controls.values()], ids=str)
def test_training_lowers_the_loss_and_resumes_exactly(hyper, inputs):
    saved = io.BytesIO()

    def keep(progress):
        if progress.epoch == 1:
            torch.save(progress, saved)

    # 3 steps an epoch: the checkpoint lies inside a block.
    whole, again = build(**hyper), build(seed=9, **hyper)
    before = real_loss(whole, inputs)
    done = go(whole, inputs, after_epoch=keep)
    assert real_loss(whole, inputs) < 0.9 * before
    for term in {"generator", "classifier"} & set(done.history[0]):
        assert done.history[-1][term] < done.history[0][term]
    saved.seek(0)
    assert go(again, inputs, resume=torch.load(saved, weights_only=False)).history == done.history
    assert again.trace == whole.trace and len(whole.trace) == (
        0 if hyper.get("synthesis") == "none" else 12
    )
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_as_training_converges_negatives_come_nearer_and_synthetic_tuples_take_over(inputs):
    method = build(beta=0.3)
    go(method, inputs)
    keep, weight = zip(*(method.adaptive_weights(s) for s in range(len(method.trace))), strict=True)
    assert keep[0] == weight[0] == 1
    assert keep[-1] < keep[2] < 1 and weight[-1] < weight[2] < 1


def test_the_generator_learns_to_invert_the_head(inputs):
    """While the network stands still, reconstructions get better than the mean feature would be."""
    method = build(hidden=64, lam=0.0)
    recipe = Recipe(4, 4, 20, 0.0, 0.0, 0.0)
    train(method, inputs, inputs.images.labels, recipe, 0)
    y = method.train().network.features(all_images(inputs).images)
    variance = float((y - y.mean(0)).square().mean())
    assert method.trace[-1][1] < variance < method.trace[0][1]


def test_ranks_by_cosine_and_trains_raw(inputs):
    a, b = tuples(0)
    method = build()
    torch.testing.assert_close(
        method.similarity(a, b), F.cosine_similarity(a[:, None], b[None], dim=2)
    )
    torch.testing.assert_close(method.similarity(7 * a, b), method.similarity(a, b))
    assert not method.unit


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(StudyError, match="did you mean 'generated'"):
        build(synthesis="generate")
