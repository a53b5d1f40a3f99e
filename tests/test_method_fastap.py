"""FastAP: exact average precision, the histogram, and training."""

import pytest
import torch

from dmlstudy.data import Augment, Pixels
from dmlstudy.losses.fastap import fastap, soft_histogram
from dmlstudy.methods.base import Batch, Task
from dmlstudy.methods.fastap import FastAP
from dmlstudy.networks import build_network
from dmlstudy.training import Recipe


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


def test_a_collapsed_embedding_scores_the_share_of_positives():
    """All images tie in the first bin: precision is the base rate, 1/3 of the other three."""
    point = torch.ones(4, 2, dtype=torch.float64).requires_grad_()
    value = fastap(point / 2**0.5, torch.tensor([0, 1, 0, 1]))
    assert value.item() == pytest.approx(2 / 3)
    assert torch.autograd.grad(value, point)[0].isfinite().all()


# --- the method


def build(seed=0, **hyper):
    torch.manual_seed(seed)
    network = build_network("convnet", channels=1, embedding_size=8)
    return FastAP(network, Task(6, 48, 3), **hyper)


def test_bins_reach_the_loss(tiny_images):
    y = torch.from_numpy(tiny_images.labels)
    images = Pixels(tiny_images, 8, Augment()).plain(torch.arange(48))
    for hyper in ({}, *FastAP.controls.values()):
        method = build(**hyper)
        f = method.embed(images)
        (value,) = method.loss(Batch(images, y, torch.arange(48))).values()
        assert value == fastap(f, y, bins=hyper.get("bins", 10))
    assert {hyper["bins"] for hyper in FastAP.controls.values()} == {5, 20}


def test_training_lowers_the_loss_and_resumes_exactly(resumed_exactly):
    _, done = resumed_exactly(build, Recipe(4, 4, 4, 1e-2, 1e-2, 1e-4), after=1)
    assert done.history[-1]["1 - FastAP"] < done.history[0]["1 - FastAP"]
