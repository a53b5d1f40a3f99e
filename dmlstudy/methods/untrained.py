"""The untrained trunk: the row that every method has to beat."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dmlstudy.methods.base import Epoch, Method


class Untrained(Method):
    """The network as it starts: pretrained or random trunk, default or PCA head, no training step.

    Its epoch is empty, so it passes through the same loop, evaluation and record as everything else.
    """

    number, title, kind = 0, "Untrained trunk", "baseline"
    certainty = "exact"

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        return iter(())
