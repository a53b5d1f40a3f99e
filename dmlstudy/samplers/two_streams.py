"""Batches of two streams of unequal step over the images of each class."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from dmlstudy.samplers.pk import images_by_class


class TwoStreams(nn.Module):
    """Replaces the images of P x K batches by those that two streams over a fixed order of each class give.

    Args:
        images: N, of the training set.
        classes: C.
    """

    def __init__(self, images: int, classes: int):
        super().__init__()
        self.order: Tensor  # [N], the order in which both streams pass over the training images
        self.meetings: Tensor  # [C], how often a class has been in a batch
        self.register_buffer("order", torch.randperm(images))
        self.register_buffer("meetings", torch.zeros(classes, dtype=torch.int64))

    def batches(self, pk: Iterator[np.ndarray], labels: np.ndarray, k: int) -> Iterator[np.ndarray]:
        """Batches [P*K] of the classes of P x K batches, in the same order."""
        order = self.order.cpu().numpy()
        rings = [order[members] for members in images_by_class(labels[order], len(self.meetings))]
        for indices in pk:
            classes = labels[indices[::k]]
            images = [two_streams(rings[c], k, int(self.meetings[c])) for c in classes]
            self.meetings[classes] += 1
            yield np.concatenate(images)


def two_streams(ring: np.ndarray, k: int, meeting: int) -> np.ndarray:
    """K images of a class: half of them next in its order, half from a second stream further ahead.

    With n images and h = K/2, the first stream is back at its start after n / gcd(n, h) meetings. The second is
    ahead by one image more at each meeting, until it would run into the first from behind; the number of its
    places is made co-prime to that period, so that every place of the one meets every place of the other.

    Args:
        ring: the class' images in a fixed order, [n]; if there are K or more, none comes twice.
        k: K, 2 or more.
        meeting: how many came before.

    >>> [two_streams(np.arange(8), 4, meeting).tolist() for meeting in range(3)]
    [[0, 1, 2, 3], [2, 3, 5, 6], [4, 5, 0, 1]]
    """
    n, first = len(ring), k - k // 2
    period = n // math.gcd(n, first)
    places = next(m for m in range(max(n - k + 1, 1), 0, -1) if math.gcd(m, period) == 1)
    start = meeting * first
    ahead = start + first + meeting % places
    return ring[
        np.concatenate([np.arange(start, start + first), np.arange(ahead, ahead + k - first)]) % n
    ]
