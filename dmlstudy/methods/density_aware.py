"""Density-aware metric learning: class centres that outliers and wrong labels do not move."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dmlstudy import losses
from dmlstudy.methods.base import Batch, Epoch, Method, TrainingSet


class DensityAware(Method):
    """Triplets to a centre in the dense part of the class, found anew at the start of every epoch; DAQL adds quadruplets.

    After the abstract: only the mechanism is known (an enclosure around the centre, a new centre from its members,
    repeated; the centre in a triplet or quadruplet), no code was found. Ours: r_c as a quantile, centres per epoch and
    constant in it, means of unit vectors not normalised again, all violating pairs, the choice of n'. All numbers are
    defaults, unverified.

    The paper's claim is tolerance of noise: two controls train on wrong labels, a track of the protocol.

    Args:
        quadruplet: add the quadruplet term (DAQL).
    """

    number, title = 4, "Density aware (DATL)"
    kind = "triplet loss to class centres, found per epoch"
    certainty = "low: after the abstract"
    parts = (losses.density_centres, losses.density_aware_triplet, losses.density_aware_quadruplet)
    controls = {
        "no outlier exclusion": {"quantile": 1.0},
        "20 % wrong labels": {"label_noise": 0.2},
        "20 % wrong labels, no outlier exclusion": {"label_noise": 0.2, "quantile": 1.0},
    }

    quadruplet: bool = False

    def build(self, training_set: TrainingSet) -> None:
        classes, images = training_set.classes, training_set.images
        self.centres: Tensor  # mu, [C, D], of this epoch
        self.inside: Tensor  # [N], who lay in the dense region of its class at the epoch's start
        self.register_buffer("centres", torch.zeros(classes, self.network.embedding_size))
        self.register_buffer("inside", torch.ones(images, dtype=torch.bool))

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        self._find_centres(epoch.embed_all(), torch.from_numpy(epoch.labels))
        yield from super().batches(epoch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f, y = self.embed(batch.images), batch.labels
        triplet = self.configured(losses.density_aware_triplet)
        terms = {"triplet": triplet(f, y, centres=self.centres)}
        if self.quadruplet:
            quadruplet = self.configured(losses.density_aware_quadruplet)
            terms["quadruplet"] = quadruplet(f, y, centres=self.centres)
        return terms

    def _find_centres(self, f: Tensor, y: Tensor) -> None:
        centres = self.configured(losses.density_centres)(f, y, classes=len(self.centres))
        self.centres.copy_(centres)
        inside = losses.dense_region(f, y, centres=centres, quantile=self.quantile)
        self.inside.copy_(inside)
