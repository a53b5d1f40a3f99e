"""Invariant and spreading instance feature, learned without labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dmlstudy import losses
from dmlstudy.methods.base import Batch, Epoch, Method, TrainingSet
from dmlstudy.samplers import instance_batches


class InvariantSpreading(Method):
    """Two augmented views of every image: each view must single out the other among all views of the batch.

    A batch holds p k different images drawn without regard to class: no label is ever read, so its rows stand apart
    from those of supervised methods.

    Verified in the authors' code: loss, tau 0.1, constant other side, division by 2B. Left out: that code's random
    nearest neighbour as extra positive on CUB, which the paper does not mention. Floor of 1 - P: our choice.
    Where the two views of an image are the same (a data set without augmentation, or with one cached view) its
    attraction has no gradient and it only spreads; `caveat` says so, and `coinciding` how often.
    """

    number, title = 11, "Invariant spreading"
    kind = "unsupervised: instances as classes, two views"
    certainty = "high: read in the authors' code"
    parts = (losses.invariant_spreading,)
    controls = {
        "no second sum (instance softmax only)": {"spreading": 0.0},
        "high temperature (tau = 1)": {"tau": 1.0},
    }
    views = 2

    def build(self, training_set: TrainingSet) -> None:
        self.pairs: Tensor  # pairs of views seen in training, and how many of them were the same
        self.register_buffer("pairs", torch.zeros(2, dtype=torch.long))

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        for indices in instance_batches(len(epoch.labels), epoch.p * epoch.k, epoch.rng):
            yield indices, 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        one, other = batch.images.flatten(1).chunk(2)
        same = (one == other).all(1)
        self.pairs += torch.stack([torch.ones_like(same).sum(), same.sum()])
        return {"instance": self.configured(losses.invariant_spreading)(self.embed(batch.images))}

    @property
    def coinciding(self) -> float:
        """Share of training pairs whose two views were the same, so that there was no invariance to learn."""
        seen, same = self.pairs.tolist()
        return same / max(seen, 1)

    def caveat(self) -> tuple[str, str] | None:
        if not self.coinciding:
            return None
        share = f"{100 * self.coinciding:.0f} %"
        return (
            f"the two views are the same in {share} of the pairs, which teach no invariance",
            f"{share} 的样本对中两个视图完全相同，从中学不到不变性",
        )
