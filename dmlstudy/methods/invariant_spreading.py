"""Card 11: invariant and spreading instance feature, learned without labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dmlstudy.losses.invariant_spreading import invariant_spreading
from dmlstudy.methods.base import Batch, EmbedAll, Method, Task
from dmlstudy.networks import Network


class InvariantSpreading(Method):
    """Two augmented views of every image: each view must single out the other among all views of the batch.

    P_ik is the softmax over k != i of f_i . f_k / tau, the other side held constant, and with i' the other view
    L = -1/2B sum_i [ log P_ii' + sum_{k != i, i'} log(1 - P_ik) ]. A batch holds p k different images drawn without
    regard to class: no label is ever read, so its rows stand apart from those of supervised methods.

    Verified in the authors' code: loss, tau 0.1, constant other side, division by 2B. Left out: that code's random
    nearest neighbour as extra positive on CUB, which the paper does not mention. Floor of 1 - P: our choice.
    Where the two draws of an image are the same (no augmentation, or the same cached view twice) its attraction has
    no gradient and it only spreads; `coinciding` says how often.

    Args:
        tau: temperature.
        spreading: weight of the second sum; 0 leaves the instance softmax.
    """

    title = "Invariant spreading"
    card = "11"
    paper = (
        "Ye, Zhang, Yuen, Chang, Unsupervised Embedding Learning via Invariant and Spreading Instance Feature, "
        "CVPR 2019"
    )
    kind = "unsupervised: instances as classes, two views"
    certainty = "high: read in the authors' code"
    controls = {
        "no second sum (instance softmax only)": {"spreading": 0.0},
        "high temperature (tau = 1)": {"tau": 1.0},
    }
    views = 2

    def __init__(self, network: Network, task: Task, *, tau: float = 0.1, spreading: float = 1.0):
        super().__init__(network, task)
        self.tau, self.spreading = tau, spreading
        self.pairs: (
            Tensor  # pairs of views seen in training, and how many of them were the same twice
        )
        self.register_buffer("pairs", torch.zeros(2, dtype=torch.long))

    def plan(
        self,
        epoch: int,
        labels: np.ndarray,
        p: int,
        k: int,
        rng: np.random.Generator,
        embed_all: EmbedAll,
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Batches of p k images in random order; the few left over wait for another epoch.

        No image is twice in a batch, or it would be its own negative.
        """
        size = min(p * k, len(labels))
        order = rng.permutation(len(labels))
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size], 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        one, other = batch.images.flatten(1).chunk(2)
        same = (one == other).all(1)
        self.pairs += torch.stack([torch.ones_like(same).sum(), same.sum()])
        f = self.embed(batch.images)
        return {"instance": invariant_spreading(f, tau=self.tau, spreading=self.spreading)}

    @property
    def coinciding(self) -> float:
        """Share of training pairs whose two views were the same, so that there was no invariance to learn."""
        seen, same = self.pairs.tolist()
        return same / max(seen, 1)
