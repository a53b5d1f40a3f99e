"""Rows without training: what every method has to beat."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.methods.base import Epoch, Method


class Untrained(Method):
    """The network as it starts: pretrained or random trunk, default or PCA head, no training step.

    Its epoch is empty, so it passes through the same loop, evaluation and record as everything else.
    """

    number, title, kind = 0, "Untrained trunk", "baseline"
    certainty = "exact"

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        return iter(())


class Raw(Untrained):
    """What the trunk gives before any head: all pooled features by cosine, or, if it starts from scratch, the pixels.

    A PCA start keeps as many of the features as the embedding has coordinates; this row shows what that costs.
    """

    number, title = 18, "Raw features"

    def embed(self, images: Tensor, role: str = "query") -> Tensor:
        network = self.network
        return F.normalize(network.features(images) if network.pretrained else images.flatten(1))
