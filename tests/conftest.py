"""Shared by the tests: a tiny random image set, and one thread so that bits do not depend on the machine's load."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmlstudy.data import ImageSet

torch.set_num_threads(1)


@pytest.fixture
def tiny_images() -> ImageSet:
    """Six classes of eight noisy 8x8 grey images."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 8)
    patterns = rng.integers(0, 255, (6, 8, 8, 1))
    store = np.clip(patterns[labels] + rng.normal(0, 40, (48, 8, 8, 1)), 0, 255).astype(np.uint8)
    return ImageSet(store, np.arange(48), labels, tuple("abcdef"), "tiny")
