"""Shared by the tests: tiny images, methods built and trained on them. One thread, or bits would depend on the load."""

from __future__ import annotations

from typing import Any

import dmlstudy  # isort: skip  # noqa: F401  # before the libraries whose instruction set it settles
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy.data import Augment, ImageSet, Pixels
from dmlstudy.methods import METHODS, Batch, EmbedAll, Epoch, Method, TrainingSet
from dmlstudy.networks import build_network
from dmlstudy.training import Progress, Recipe, train

torch.set_num_threads(1)

CLASSES, PER_CLASS, EPOCHS = 6, 8, 4
RECIPE = Recipe(4, 4, EPOCHS, 1e-3, 1e-3, 1e-4, "adamw", "cosine")


@pytest.fixture
def tiny_images() -> ImageSet:
    """Six classes of eight noisy 8x8 grey images."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    patterns = rng.integers(0, 255, (CLASSES, 8, 8, 1))
    noise = rng.normal(0, 40, (len(labels), 8, 8, 1))
    store = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
    return ImageSet(store, np.arange(len(labels)), labels, tuple("abcdef"), "tiny")


@pytest.fixture
def inputs(tiny_images) -> Pixels:
    """The tiny images, hardly augmented."""
    return Pixels(tiny_images, 8, Augment(shift=0.1))


def build(kind: type[Method], seed: int = 0, epochs: int = EPOCHS, **hyper: Any) -> Method:
    """A method over a small network, with its teacher if it needs one."""
    torch.manual_seed(seed)
    if kind is METHODS["product_quantisation"]:  # of eight sub-vectors each would be one number
        hyper = {"codebooks": 4} | hyper
    network = build_network("convnet", channels=1, embedding_size=8)
    method = kind(network, TrainingSet(CLASSES, CLASSES * PER_CLASS, epochs), **hyper)
    if kind.teacher:
        name, given = kind.teacher
        method.learn_from(build(METHODS[name], seed=7, **given))
    return method


def go(method: Method, inputs: Pixels, seed: int = 0, **options: Any) -> Progress:
    """Train a method on all images."""
    return train(
        method, inputs, inputs.images.labels, options.pop("recipe", RECIPE), seed, **options
    )


def whole(inputs: Pixels) -> Batch:
    """All images as one batch, not augmented."""
    index = torch.arange(len(inputs))
    return Batch(inputs.test_inputs(index), torch.from_numpy(inputs.images.labels), index)


def rows(batch: Batch, indices: np.ndarray) -> Batch:
    """Some images of a batch."""
    i = torch.from_numpy(indices)
    return Batch(batch.images[i], batch.labels[i], batch.indices[i], batch.tag)


def clustered(noise: float, classes: int = 8, each: int = 12) -> tuple[Tensor, Tensor]:
    """Unit embeddings [classes * each, 16], class by class, and their labels."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(classes).repeat_interleave(each)
    x = torch.randn(classes, 16, generator=g)[y] + noise * torch.randn(len(y), 16, generator=g)
    return F.normalize(x), y


def planned(
    method: Method, inputs: Pixels, number: int = 0, seed: int = 0, p: int = 4, k: int = 4
) -> np.ndarray:
    """The batches of an epoch, positions of images [steps, P*K]."""
    rng, embed_all = np.random.default_rng(seed), EmbedAll(method, inputs)
    epoch = Epoch(number, inputs.images.labels, p, k, rng, embed_all)
    return np.array([indices for indices, _ in method.batches(epoch)])


def reached(value: Tensor, part: nn.Module) -> list[bool]:
    """Which parameters of a module a loss term teaches."""
    given = torch.autograd.grad(value, [*part.parameters()], retain_graph=True, allow_unused=True)
    return [g is not None and bool(g.any()) for g in given]


def assert_same(a: object, b: object) -> None:
    """Equal to the last bit: nested dictionaries and lists of tensors and numbers."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b
