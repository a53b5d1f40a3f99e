"""Batches without regard to class."""

from collections.abc import Iterator

import numpy as np


def instance_batches(images: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Different images in random order, [size] each; the few left over wait for another epoch.

    No image is twice in a batch, or it would be its own negative. Fewer images than `size` are one batch.

    >>> [batch.tolist() for batch in instance_batches(5, 2, np.random.default_rng(0))]
    [[2, 4], [3, 0]]
    """
    size = min(size, images)
    order = rng.permutation(images)
    for start in range(0, images - size + 1, size):
        yield order[start : start + size]
