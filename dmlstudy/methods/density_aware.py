"""Density-aware metric learning: class centres that outliers and wrong labels do not move."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dmlstudy import losses
from dmlstudy.methods.base import Batch, Epoch, Method, TrainingSet
from dmlstudy.ranges import NonNegative


class DensityAware(Method):
    """Triplets to a centre in the dense part of the class, found anew at the start of every epoch.

    After the abstract: only the mechanism is known (an enclosure around the centre, a new centre from its members,
    repeated; the centre in a triplet or quadruplet), no code was found. Ours: r_c as a quantile, centres per epoch and
    constant in it, means of unit vectors not normalised again, all violating pairs, the choice of n'. All numbers are
    defaults, unverified.

    The paper's claim is tolerance of noise. The method and two controls, no exclusion and real positives, are each
    trained with right and with partly wrong labels, a track of the protocol: the claim is that the method loses least.

    Args:
        positives: the centre, or real ones (control: all triplets of the same batches).
        quadruplet: add the quadruplet term (DAQL), on squared distances.
    """

    number, title = 4, "Density aware (DATL)"
    kind = "triplet loss to class centres, found per epoch"
    certainty = "low: after the abstract"
    parts = (losses.density_centres, losses.density_aware_triplet, losses.density_aware_quadruplet)
    controls = {
        "no outlier exclusion": {"quantile": 1.0},
        "real positives": {"positives": "real"},
        "20 % wrong labels": {"label_noise": 0.2},
        "20 % wrong labels, no outlier exclusion": {"label_noise": 0.2, "quantile": 1.0},
        "20 % wrong labels, real positives": {"label_noise": 0.2, "positives": "real"},
    }

    positives: Literal["centre", "real"] = "centre"
    quadruplet: bool = False
    margin: NonNegative
    squared: bool

    def build(self, training_set: TrainingSet) -> None:
        classes, images = training_set.classes, training_set.images
        self.centres: Tensor  # mu, [C, D], of this epoch
        self.inside: Tensor  # [N], which lay in the dense region of its class at the epoch's start
        self.register_buffer("centres", torch.zeros(classes, self.network.embedding_size))
        self.register_buffer("inside", torch.ones(images, dtype=torch.bool))

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        labels = torch.from_numpy(epoch.labels)
        labelled = labels >= 0
        self.inside.copy_(labelled)
        self.inside[labelled] = self._dense(epoch.embed_all()[labelled], labels[labelled])
        yield from super().batches(epoch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f, y = self.embed(batch.images), batch.labels
        if self.positives == "real":
            metric = losses.squared if self.squared else losses.distance
            return {"triplet": losses.triplet_all.on(metric)(f, y, margin=self.margin)}
        triplet = self.configured(losses.density_aware_triplet)
        terms = {"triplet": triplet(f, y, centres=self.centres)}
        if self.quadruplet:
            quadruplet = self.configured(losses.density_aware_quadruplet)
            terms["quadruplet"] = quadruplet(f, y, centres=self.centres)
        return terms

    def _dense(self, f: Tensor, y: Tensor) -> Tensor:
        """Renew the centres; which images lie in the dense region of their class, bool [N]."""
        centres = self.configured(losses.density_centres)(f, y, classes=len(self.centres))
        self.centres.copy_(centres)
        return self.configured(losses.dense_region)(f, y, centres=centres).to(self.inside.device)
