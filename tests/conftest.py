"""Shared by the tests: tiny random images, a resumed training; one thread, so that bits do not depend on the load."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dmlstudy.data import Augment, ImageSet, Pixels
from dmlstudy.methods import Method
from dmlstudy.training import Progress, Recipe, train

torch.set_num_threads(1)


@pytest.fixture
def tiny_images() -> ImageSet:
    """Six classes of eight noisy 8x8 grey images."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 8)
    patterns = rng.integers(0, 255, (6, 8, 8, 1))
    store = np.clip(patterns[labels] + rng.normal(0, 40, (48, 8, 8, 1)), 0, 255).astype(np.uint8)
    return ImageSet(store, np.arange(48), labels, tuple("abcdef"), "tiny")


@pytest.fixture
def inputs(tiny_images) -> Pixels:
    """The tiny images, shifted a little; a file with images of its own has a fixture of this name."""
    return Pixels(tiny_images, 8, Augment(shift=0.1))


@pytest.fixture
def resumed_exactly(inputs) -> Callable[..., tuple[Method, Progress]]:
    """Trains a method, resumes a copy after some epoch, and asserts equality to the bit; gives method and progress."""

    def check(build: Callable[..., Method], recipe: Recipe, *, after: int):
        saved = io.BytesIO()

        def keep(progress):
            if progress.epoch == after:
                torch.save(progress, saved)

        def go(method, **options):
            return train(method, inputs, inputs.images.labels, recipe, 0, **options)

        # Of another seed, because what a resumed method starts from must not matter.
        method, again = build(), build(seed=9)
        done = go(method, after_epoch=keep)
        saved.seek(0)
        assert go(again, resume=torch.load(saved, weights_only=False)).history == done.history
        assert list(again.state_dict()) == list(method.state_dict())
        for a, b in zip(again.state_dict().values(), method.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        return method, done

    return check
