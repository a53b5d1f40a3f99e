"""Invariant and spreading features: against loops and NT-Xent; no label may ever matter."""

import io
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmlstudy.data import Activations, Augment, ImageSet, Pixels
from dmlstudy.losses.invariant_spreading import instance_log_probabilities, invariant_spreading
from dmlstudy.methods.base import Batch, Task, deviations
from dmlstudy.methods.invariant_spreading import InvariantSpreading
from dmlstudy.networks import build_network
from dmlstudy.training import EmbedAll, Recipe, train

torch.set_num_threads(1)
# The cards' fixture as two images: originals x0, x2 with views x1, x3.
X = torch.tensor([[1, 0], [0, 1], [0.8, 0.6], [-0.6, 0.8]], dtype=torch.float64)


def features(seed, images=5, dtype=torch.float64):
    """2B features of varied length: the formulas do not need unit rows."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2 * images, 6, generator=g, dtype=dtype).mul_(0.5).requires_grad_()


def naive(f, tau, spreading=1.0):
    """The card's code form, pair by pair."""
    n, total = len(f), 0.0
    for i in range(n):
        partner = (i + n // 2) % n
        s = {k: torch.exp(f[i] @ f[k].detach() / tau) for k in range(n) if k != i}
        for k, value in s.items():
            p = value / sum(s.values())
            total = total + (torch.log(p) if k == partner else spreading * torch.log(1 - p))
    return -total / n


def agree(ours, other, x, tolerance=1e-9):
    torch.testing.assert_close(ours, other, rtol=tolerance, atol=tolerance)
    a, b = (torch.autograd.grad(value, x)[0] for value in (ours, other))
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tau, value", [(0.1, 0.127540), (1.0, 1.240352)])
def test_card_values(tau, value):
    assert invariant_spreading(X, tau=tau).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("images", [2, 3, 8])
def test_all_features_equal(images):
    n = 2 * images
    expected = math.log(n - 1) + (n - 2) * math.log((n - 1) / (n - 2))
    same = torch.ones(n, 3, dtype=torch.float64) / math.sqrt(3)
    assert invariant_spreading(same).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tau, spreading", [(0.5, 1.0), (1.0, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("images", [2, 5])
def test_equals_the_loop(seed, tau, spreading, images):
    f = features(seed, images)
    ours = invariant_spreading(f, tau=tau, spreading=spreading)
    agree(ours, naive(f, tau, spreading), f)


@pytest.mark.parametrize("seed", range(3))
def test_first_sum_is_nt_xent_with_the_other_side_constant(seed):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    from pytorch_metric_learning.distances import DotProductSimilarity

    f, images = features(seed), torch.arange(5).repeat(2)
    theirs = losses.NTXentLoss(0.3, distance=DotProductSimilarity(normalize_embeddings=False))
    same = images[:, None] == images
    positive = same & ~torch.eye(10, dtype=torch.bool)
    pairs = (*positive.nonzero().T, *(~same).nonzero().T)
    other = theirs(f, images, pairs, ref_emb=f.detach(), ref_labels=images)
    agree(invariant_spreading(f, tau=0.3, spreading=0.0), other, f, 1e-6)


def test_order_of_images_and_of_views_does_not_matter():
    f = features(0)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(1))
    agree(invariant_spreading(f[torch.cat([order, order + 5])]), invariant_spreading(f), f)
    agree(invariant_spreading(f.roll(5, 0)), invariant_spreading(f), f)


def test_probabilities_leave_the_anchor_out():
    p = instance_log_probabilities(features(0)).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(10, dtype=torch.float64))
    assert not p.diagonal().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_certain_mistakes_stay_finite(dtype):
    """Both images' views are swapped and tau is tiny: log P -> -inf, 1 - P -> 0."""
    f = torch.eye(2, dtype=dtype)[[0, 1, 1, 0]].requires_grad_()
    value = invariant_spreading(f, tau=1e-3)
    (gradient,) = torch.autograd.grad(value, f)
    assert value > 100 and value.isfinite() and gradient.isfinite().all() and gradient.any()


def test_a_single_image_gives_zero():
    f = features(0, 1)
    value = invariant_spreading(f)
    assert value == 0 and not torch.autograd.grad(value, f)[0].any()


def test_float32_is_enough():
    f = F.normalize(features(2))
    double, single = invariant_spreading(f), invariant_spreading(f.float())
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


# --- the method

LABELS = np.repeat(np.arange(4), 10)
RECIPE = Recipe(4, 3, 3, 1e-3, 1e-3, 1e-4)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    store = rng.integers(0, 255, (len(LABELS), 8, 8, 1)).astype(np.uint8)
    images = ImageSet(store, np.arange(len(LABELS)), LABELS, tuple("abcd"), "random")
    return Pixels(images, 8, Augment(rotate=15.0, shift=0.1))


def build(seed=0, **hyper):
    torch.manual_seed(seed)
    network = build_network("convnet", channels=1, embedding_size=8)
    return InvariantSpreading(network, Task(4, len(LABELS), 3), **hyper)


def saved(progress):
    buffer = io.BytesIO()
    torch.save(progress, buffer)
    return buffer.getvalue()


def test_labels_are_never_seen(inputs):
    """Permuted labels, even other classes of other sizes: the same network bit for bit."""
    others = [np.random.default_rng(1).permutation(LABELS), np.arange(40) % 3, np.zeros(40, int)]
    plain = saved(train(build(), inputs, LABELS, RECIPE, 0).method)
    for labels in others:
        assert saved(train(build(), inputs, labels, RECIPE, 0).method) == plain


@pytest.mark.parametrize("hyper", [{}, *InvariantSpreading.controls.values()], ids=str)
def test_resumed_is_bit_identical(hyper, resumed_exactly):
    resumed_exactly(partial(build, **hyper), RECIPE, after=1)


def test_every_batch_holds_different_images(inputs):
    method, rng = build(), np.random.default_rng(0)
    batches = [i for i, _ in method.plan(0, LABELS, 4, 3, rng, EmbedAll(method, inputs))]
    assert [len(batch) for batch in batches] == [12, 12, 12]
    drawn = np.concatenate(batches)
    assert len(set(drawn)) == len(drawn) == 36
    mixed = [len(set(LABELS[batch])) for batch in batches]
    assert mixed == [4, 4, 4] and not (np.diff(drawn) == 1).all()
    (whole,) = [i for i, _ in method.plan(0, LABELS, 20, 4, rng, EmbedAll(method, inputs))]
    assert sorted(whole) == list(range(40))  # a small training set is one batch


def test_training_singles_out_the_other_view(inputs):
    method = build()
    recipe = Recipe(4, 5, 8, 3e-3, 3e-3, 0.0)
    history = train(method, inputs, LABELS, recipe, 0).history
    assert history[-1]["instance"] < 0.7 * history[0]["instance"]


def test_coinciding_views_are_counted_and_only_spread(inputs):
    """One cached view makes both views the same; with two, the views of an image are different ones."""
    cache = inputs.test_inputs(torch.arange(40)).numpy()[None].astype(np.float16)
    for cached, expected in ((cache, 1.0), (np.concatenate([cache, cache[..., ::-1]]), 0.0)):
        method = build()
        train(method, Activations(inputs.images, cached), LABELS, RECIPE, 0)
        assert method.coinciding == expected
    assert build().coinciding == 0
    z = features(0).detach()[:5].repeat(2, 1).requires_grad_()
    f = F.normalize(z)
    attraction = (f * f.roll(5, 0).detach()).sum()
    assert torch.autograd.grad(attraction, z)[0].abs().max() < 1e-12


def test_controls_and_protocol(inputs):
    index = torch.arange(12)
    generator = torch.Generator().manual_seed(0)
    images = inputs.augmented(index, 2, generator)
    batch = Batch(images, torch.zeros(24, dtype=torch.long), index.repeat(2))
    without = build(spreading=0.0)
    f = F.normalize(without.network(images))
    logits = (f @ f.T / 0.1).masked_fill(torch.eye(24, dtype=torch.bool), -torch.inf)
    softmax = F.cross_entropy(logits, torch.arange(24).roll(12))
    torch.testing.assert_close(without.loss(batch)["instance"], softmax)
    assert build().loss(batch)["instance"] > softmax
    assert InvariantSpreading.views == 2
    assert deviations(build()) == ["batch composition", "2 views per image"]
