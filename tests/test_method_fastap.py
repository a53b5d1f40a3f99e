"""FastAP: against a loop over pairs, pytorch-metric-learning and exact average precision."""

import pytest
import torch
import torch.nn.functional as F
from dmlstudy.methods.fastap import FastAP

from dmlstudy.data import Augment, Pixels
from dmlstudy.losses.fastap import fastap, soft_histogram
from dmlstudy.methods.base import Batch, Task
from dmlstudy.networks import build_network
from dmlstudy.training import Recipe

X = torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]], dtype=torch.float64)
EASY, HARD = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
# Ragged classes, two of them singletons: anchors without a positive.
LABELS = torch.tensor([0] * 7 + [2] * 5 + [3] * 4 + [5] * 2 + [8, 9])


def batch(seed, labels=LABELS):
    """Embeddings of varied length and shuffled labels."""
    g = torch.Generator().manual_seed(seed)
    y = labels[torch.randperm(len(labels), generator=g)]
    return torch.randn(len(y), 6, generator=g, dtype=torch.float64).requires_grad_(), y


def unit_fastap(x, y, bins=10):
    return fastap(F.normalize(x), y, bins=bins)


def naive(x, y, bins=10):
    """The card's formula, pair by pair."""
    f, width, scores = F.normalize(x), 4 / bins, []
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        positives = [j for j in others if y[j] == y[i]]
        if not positives:
            continue
        d2 = {j: (f[i] - f[j]).square().sum() for j in others}
        H = H_positive = score = 0.0
        for b in range(bins + 1):
            kernel = {j: (1 - (d2[j] - b * width).abs() / width).clamp_min(0) for j in others}
            h_positive = sum(kernel[j] for j in positives)
            H, H_positive = H + sum(kernel.values()), H_positive + h_positive
            if H > 0:
                score = score + h_positive * H_positive / H
        scores.append(score / len(positives))
    return 1 - sum(scores) / len(scores)


def agree(ours, other, x, tolerance=1e-9):
    torch.testing.assert_close(ours, other, rtol=tolerance, atol=tolerance)
    a, b = (torch.autograd.grad(value, x)[0] for value in (ours, other))
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("bins", [1, 2, 10])
def test_equals_the_loop(seed, bins):
    x, y = batch(seed)
    agree(unit_fastap(x, y, bins), naive(x, y, bins), x)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bins", [5, 10, 20])
def test_equals_pytorch_metric_learning(seed, bins):
    theirs = pytest.importorskip("pytorch_metric_learning.losses", reason="development dependency")
    x, y = batch(seed)
    agree(unit_fastap(x, y, bins), theirs.FastAPLoss(bins)(x, y), x)


@pytest.mark.parametrize(
    ("bins", "easy", "hard"), [(2, 0.296429, 0.625), (4, 0.175, 0.583333), (10, 0.0, 0.583333)]
)
def test_values_of_table_f(bins, easy, hard):
    assert float(fastap(X, EASY, bins=bins)) == pytest.approx(easy, abs=6e-7)
    assert float(fastap(X, HARD, bins=bins)) == pytest.approx(hard, abs=6e-7)


def test_is_exact_average_precision_if_no_distances_share_a_bin():
    """On a Golomb ruler all distances differ; its squared marks are bin centres, so no pair is split in two."""
    x = torch.tensor([0, 1, 4, 9, 15, 22, 32, 34], dtype=torch.float64)[:, None] / 17
    y, scores = torch.tensor([0, 1, 0, 1, 2, 2, 0, 1]), []
    for i in range(len(y)):
        order = (x - x[i]).abs()[:, 0].argsort()[1:]  # itself comes first
        relevant = (y[order] == y[i]).double()
        precision = relevant.cumsum(0) / torch.arange(1, len(y))
        scores.append((precision * relevant).sum() / relevant.sum())
    expected = 1 - torch.stack(scores).mean().item()
    assert fastap(x, y, bins=4 * 17**2).item() == pytest.approx(expected, abs=1e-9)
    assert abs(fastap(x, y, bins=5).item() - expected) > 1e-2  # few bins are coarse


def test_the_histogram_keeps_every_pair():
    d2 = 4 * torch.rand(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d2[0, :3] = torch.tensor([0.0, 4.0, 4 + 1e-9])  # the ends, and rounding beyond
    mask = torch.arange(40) % 3 > 0
    h = soft_histogram(d2, mask.expand(5, -1), bins=7)
    torch.testing.assert_close(h.sum(1), mask.sum().double().expand(5))
    assert (h >= 0).all()
    centres = torch.arange(8).double() * 4 / 7
    kernel = (1 - (d2[..., None] - centres).abs() / (4 / 7)).clamp_min(0)
    torch.testing.assert_close(h, (kernel * mask[None, :, None]).sum(1))


def test_order_of_the_batch_does_not_matter_and_float32_is_enough():
    x, y = batch(0)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    agree(unit_fastap(x[order], y[order]), unit_fastap(x, y), x)
    agree(unit_fastap(x.float(), y).double(), unit_fastap(x, y), x, 1e-4)


def test_gradcheck():
    x, y = batch(5, LABELS[::2])
    assert torch.autograd.gradcheck(lambda z: unit_fastap(z, y), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("same", [False, True], ids=["distinct", "identical"])
@pytest.mark.parametrize("labels", [[2, 2, 2, 2], [0, 2, 3, 5], [2], [2, 2], [0, 2]], ids=str)
def test_without_triplets_it_is_zero_with_zero_gradient(labels, same, dtype):
    x, y = batch(0, torch.tensor(labels))
    x = (x[:1].expand_as(x) if same else x).detach().to(dtype, copy=True).requires_grad_()
    value = unit_fastap(x, y)
    (gradient,) = torch.autograd.grad(value, x)
    assert value == 0 and not gradient.any()


def test_a_collapsed_embedding_scores_the_share_of_positives():
    """All images tie in the first bin: precision is the base rate, 1/3 of the other three."""
    point = torch.ones(4, 2, dtype=torch.float64).requires_grad_()
    value = unit_fastap(point, HARD)
    assert value.item() == pytest.approx(2 / 3)
    assert torch.autograd.grad(value, point)[0].isfinite().all()


# --- the method


def build(seed=0, **hyper):
    torch.manual_seed(seed)
    network = build_network("convnet", channels=1, embedding_size=8)
    return FastAP(network, Task(6, 48, 3), **hyper)


def test_bins_reach_the_loss(tiny_images):
    y = torch.from_numpy(tiny_images.labels)
    images = Pixels(tiny_images, 8, Augment()).test_inputs(torch.arange(48))
    for hyper in ({}, *FastAP.controls.values()):
        method = build(**hyper)
        f = method.embed(images)
        (value,) = method.loss(Batch(images, y, torch.arange(48))).values()
        assert value == fastap(f, y, bins=hyper.get("bins", 10))
    assert {hyper["bins"] for hyper in FastAP.controls.values()} == {5, 20}


def test_training_lowers_the_loss_and_resumes_exactly(resumed_exactly):
    _, done = resumed_exactly(build, Recipe(4, 4, 4, 1e-2, 1e-2, 1e-4), after=1)
    assert done.history[-1]["1 - FastAP"] < done.history[0]["1 - FastAP"]
