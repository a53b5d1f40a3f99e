"""SNR: the distance, both losses on it against loops and pytorch-metric-learning, and the Euclidean twin."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from dmlstudy.methods.snr import SNR

from dmlstudy.errors import StudyError
from dmlstudy.geometry import snr_distance, squared_distance
from dmlstudy.losses import snr, snr_contrastive, snr_triplet, squared, zero_mean
from dmlstudy.methods.base import Batch, Task
from dmlstudy.networks import build_network
from dmlstudy.training import Recipe

# Ragged classes, two of them singletons.
LABELS = torch.tensor([0] * 7 + [2] * 5 + [3] * 4 + [5] * 2 + [8, 9])
LOSSES = {"contrastive": (snr_contrastive, 1.9), "triplet": (snr_triplet, 0.2)}
each_form = pytest.mark.parametrize("form", LOSSES)


def batch(seed, labels=LABELS):
    """Embeddings of varied length, mean and variance, and shuffled labels."""
    g = torch.Generator().manual_seed(seed)
    y = labels[torch.randperm(len(labels), generator=g)]
    x = torch.randn(len(y), 6, generator=g, dtype=torch.float64)
    x = x * (0.5 + torch.rand(len(y), 1, generator=g)) + torch.randn(len(y), 1, generator=g)
    return x.detach().requires_grad_(), y


def d(anchor, other):
    return (other - anchor).var() / anchor.var()


def naive(form, x, y, margin):
    """The formulas, over single pairs and single triplets."""
    pairs = list(itertools.permutations(range(len(y)), 2))
    if form == "contrastive":
        near = [d(x[i], x[j]) for i, j in pairs if y[i] == y[j]]
        far = [margin - d(x[i], x[j]) for i, j in pairs if y[i] != y[j]]
        far = [term for term in far if term > 0]
        return sum(near) / max(len(near), 1) + sum(far) / max(len(far), 1) + 0 * x.sum()
    terms = [
        d(x[a], x[p]) - d(x[a], x[n]) + margin
        for a, p in pairs
        if y[a] == y[p]
        for n in range(len(y))
        if y[n] != y[a]
    ]
    terms = [term for term in terms if term > 0]
    return sum(terms) / max(len(terms), 1) + 0 * x.sum()


def agree(ours, other, x, tolerance=1e-9):
    torch.testing.assert_close(ours, other, rtol=tolerance, atol=tolerance)
    a, b = (torch.autograd.grad(value, x)[0] for value in (ours, other))
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- the distance


def test_distances_of_the_card():
    h = torch.tensor([[1.0, -1, 1, -1], [2, -2, 0, 0], [3, 1, -1, -3]])
    found = snr_distance(h)
    for (i, j), value in {(0, 1): 1, (1, 0): 0.5, (0, 2): 4, (1, 2): 2.5}.items():
        assert float(found[i, j]) == pytest.approx(value)
    assert torch.equal(snr_distance(h[:2], h), snr_distance(h)[:2])


def test_distance_equals_the_ratio_of_variances_in_value_and_gradient():
    (x, _), (z, _) = batch(0), batch(1, LABELS[:5])
    weight = torch.randn(len(x), len(z), generator=torch.Generator().manual_seed(2)).double()
    loop = torch.stack([torch.stack([d(a, b) for b in z]) for a in x])
    torch.testing.assert_close(snr_distance(x, z), loop)
    ours, naive = ((m * weight).sum() for m in (snr_distance(x, z), loop))
    gradients = (torch.autograd.grad(value, (x, z)) for value in (ours, naive))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_distance_ignores_a_common_scale_and_shifts():
    (x, _), (z, _) = batch(0), batch(1)
    once = snr_distance(x, z)
    torch.testing.assert_close(snr_distance(7 * x, 7 * z), once)
    torch.testing.assert_close(snr_distance(x + 3, z - 2), once)
    assert not torch.allclose(snr_distance(x, 7 * z), once)


def test_distance_of_unit_vectors_with_zero_mean_is_squared_euclidean():
    x, _ = batch(0)
    f = F.normalize(x - x.mean(1, keepdim=True))
    torch.testing.assert_close(snr_distance(f), squared_distance(f))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_anchor_without_variance_stays_finite(dtype):
    x = torch.tensor([[2.0, 2, 2], [0, 0, 0], [1, -1, 0], [1, 0, -1]], dtype=dtype).requires_grad_()
    for form, margin in LOSSES.values():
        value = form(x, torch.tensor([0, 1, 0, 1]), margin=margin)
        assert value.isfinite() and torch.autograd.grad(value, x)[0].isfinite().all()
    assert snr_distance(x).isfinite().all()


# --- the losses


@each_form
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "labels",
    [LABELS, torch.tensor([0, 0, 2]), torch.tensor([0, 0, 0, 1])],
    ids=["ragged", "3", "4"],
)
def test_equals_the_loop(form, seed, labels):
    x, y = batch(seed, labels)
    loss, margin = LOSSES[form]
    agree(loss(x, y, margin=margin), naive(form, x, y, margin), x)


@each_form
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("euclidean", [False, True])
def test_equals_pytorch_metric_learning(form, seed, euclidean):
    theirs = pytest.importorskip("pytorch_metric_learning.losses", reason="development dependency")
    from pytorch_metric_learning import distances

    x, y = batch(seed)
    loss, margin = LOSSES[form]
    if euclidean:
        metric, other = squared, distances.LpDistance(power=2, normalize_embeddings=False)
    else:
        metric, other = snr, distances.SNRDistance(normalize_embeddings=False)
    if form == "contrastive":
        oracle = theirs.ContrastiveLoss(0, margin, distance=other)
    else:
        oracle = theirs.TripletMarginLoss(margin, distance=other)
    agree(loss.on(metric)(x, y, margin=margin), oracle(x, y), x)


def test_zero_mean_equals_pytorch_metric_learning():
    theirs = pytest.importorskip("pytorch_metric_learning.regularizers", reason="dev dependency")
    x, _ = batch(0)
    agree(zero_mean(x), theirs.ZeroMeanRegularizer()(x), x)


@each_form
def test_order_does_not_matter_and_float32_is_enough(form):
    x, y = batch(0)
    loss, margin = LOSSES[form]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    agree(loss(x[order], y[order], margin=margin), loss(x, y, margin=margin), x)
    agree(loss(x.float(), y, margin=margin).double(), loss(x, y, margin=margin), x, 1e-4)


@each_form
def test_gradcheck(form):
    x, y = batch(5, LABELS[::2])
    loss, margin = LOSSES[form]
    assert torch.autograd.gradcheck(lambda z: loss(z, y, margin=margin), x)


@each_form
@pytest.mark.parametrize("same", [False, True], ids=["distinct", "identical"])
@pytest.mark.parametrize("labels", [[2, 2, 2, 2], [0, 2, 3, 5], [2], [2, 2], [0, 2]], ids=str)
def test_degenerate_batches(form, labels, same):
    x, y = batch(0, torch.tensor(labels))
    x = (x[:1].expand_as(x) if same else x).detach().clone().requires_grad_()
    loss, margin = LOSSES[form]
    value = loss(x, y, margin=margin)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.isfinite() and gradient.isfinite().all()
    if form == "triplet" or len(labels) == 1:
        assert value == 0 and not gradient.any()
    if same and len(set(labels)) == 1:  # copies are at distance 0 up to rounding
        assert value < 1e-12 and gradient.abs().max() < 1e-12


def test_satisfied_triplets_are_silent():
    """Roth's port divides 0 by 0 here."""
    x = torch.tensor([[1, -1, 0.0], [1.01, -1, 0], [-1, 1, 0], [-1.01, 1, 0]]).requires_grad_()
    value = snr_triplet(x, torch.tensor([0, 0, 1, 1]))
    assert value == 0 and not torch.autograd.grad(value, x)[0].any()


# --- the method


def build(seed=0, **hyper):
    torch.manual_seed(seed)
    network = build_network("convnet", channels=1, embedding_size=8)
    return SNR(network, Task(6, 48, 4), **hyper)


def test_the_query_is_the_anchor_and_ranks_as_centred_euclid():
    (q, _), (g, _) = batch(0), batch(1)
    s = build().similarity(q, g)
    assert torch.equal(s, -snr_distance(q, g))
    assert not torch.allclose(s, -snr_distance(g, q).T)
    centred = [v - v.mean(1, keepdim=True) for v in (q, g)]
    assert torch.equal(s.argsort(1), torch.cdist(*centred).argsort(1, descending=True))


def test_the_twin_differs_in_the_distance_alone(inputs):
    y, index = torch.from_numpy(inputs.images.labels), torch.arange(48)
    batch = Batch(inputs.test_inputs(index), y, index)
    for unit in (False, True):
        twin = build(distance="euclidean", unit=unit)
        z = twin.network(batch.images)
        z = F.normalize(z) if unit else z
        terms = twin.loss(batch)
        assert terms["contrastive"] == snr_contrastive.on(squared)(z, y)
        assert terms["zero mean"] == 0.005 * zero_mean(z)
        assert torch.equal(twin.similarity(z, z[:9]), -squared_distance(z, z[:9]))
    default, twin = build(), build(distance="euclidean")
    assert default.loss(batch)["contrastive"] != twin.loss(batch)["contrastive"]
    assert not default.unit


def test_the_triplet_form_and_no_zero_mean(inputs):
    y, index = torch.from_numpy(inputs.images.labels), torch.arange(48)
    batch = Batch(inputs.test_inputs(index), y, index)
    method = build(form="triplet", margin=0.2, lam=0.0)
    terms = method.loss(batch)
    assert terms["triplet"] == snr_triplet(method.embed(batch.images), y, margin=0.2)
    assert terms["zero mean"] == 0


@pytest.mark.parametrize("hyper", [{}, *SNR.controls.values()], ids=str)
def test_training_lowers_the_loss_and_resumes_exactly(hyper, resumed_exactly):
    recipe = Recipe(4, 4, 4, 3e-3, 3e-3, 1e-4)
    method, done = resumed_exactly(partial(build, **hyper), recipe, after=1)
    assert done.history[-1][method.form] < done.history[0][method.form]


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(StudyError, match="did you mean 'triplet'"):
        build(form="triplets")
    with pytest.raises(StudyError, match="did you mean 'euclidean'"):
        build(distance="euclid")
