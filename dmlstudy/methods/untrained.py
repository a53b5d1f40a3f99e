"""The untrained trunk: the row that every method has to beat."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dmlstudy.methods.base import EmbedAll, Method


class Untrained(Method):
    """The network as it starts: pretrained or random trunk, default or PCA head, no training step.

    Its epoch is empty, so it passes through the same loop, evaluation and record as everything else.
    """

    title = "Untrained trunk"
    card = "00"
    paper = "no paper: the starting point of every other row"
    kind = "baseline"
    certainty = "exact"

    def plan(
        self,
        epoch: int,
        labels: np.ndarray,
        p: int,
        k: int,
        rng: np.random.Generator,
        embed_all: EmbedAll,
    ) -> Iterator[tuple[np.ndarray, int]]:
        return iter(())
