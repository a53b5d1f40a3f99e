"""Card 4: density-aware metric learning, class centres that outliers and wrong labels do not move."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dmlstudy.errors import StudyError
from dmlstudy.losses.density_aware import (
    dense_region,
    density_aware_quadruplet,
    density_aware_triplet,
    density_centres,
)
from dmlstudy.methods.base import Batch, EmbedAll, Method, Task
from dmlstudy.networks import Network


class DensityAware(Method):
    """Triplets to a centre in the dense part of the class, found anew at the start of every epoch.

    mu_c <- mean of the class' images within r_c of mu_c, repeatedly, and
    L = mean of [|f_i - mu_y_i|^2 - |f_i - f_n|^2 + m]_+ where positive, over all pairs (i, n) of different classes.
    DAQL adds the mean of [|f_i - mu_y_i|^2 - |f_n - f_n'|^2 + m2]_+ over three different classes.

    After the abstract: only the mechanism is known (an enclosure around the centre, a new centre from its members,
    repeated; the centre in a triplet or quadruplet), no code was found. Ours: r_c as a quantile, centres per epoch and
    constant in it, means of unit vectors not normalised again, all violating pairs, the choice of n'. All numbers are
    defaults, unverified.

    The paper's claim is tolerance of noise, so two controls make a share of the training labels wrong, which is a track
    of the protocol.

    Args:
        quantile: q, share of a class inside its enclosure; 1 excludes no outlier.
        iterations: moves of the centre per epoch.
        margin: m, on squared distances.
        quadruplet: add the quadruplet term (DAQL).
        margin2: m2 of the quadruplet term.
    """

    title = "Density aware (DATL)"
    card = "04"
    paper = "Ghosh, Singh, Vatsa, On Learning Density Aware Embeddings, CVPR 2019"
    kind = "triplet loss to class centres, found per epoch"
    certainty = "low: after the abstract"
    controls = {
        "no outlier exclusion": {"quantile": 1.0},
        "20 % wrong labels": {"label_noise": 0.2},
        "20 % wrong labels, no outlier exclusion": {"label_noise": 0.2, "quantile": 1.0},
    }

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        quantile: float = 0.75,
        iterations: int = 5,
        margin: float = 0.2,
        quadruplet: bool = False,
        margin2: float = 0.1,
    ):
        super().__init__(network, task)
        if not 0 < quantile <= 1:
            raise StudyError(f"quantile must lie in (0, 1], not {quantile}: 1 keeps every image.")
        self.quantile, self.iterations = quantile, iterations
        self.margin, self.quadruplet, self.margin2 = margin, quadruplet, margin2
        self.centres: Tensor  # mu, [C, D], of this epoch
        self.inside: Tensor  # [N], who lay in the dense region of its class at the epoch's start
        self.register_buffer("centres", torch.zeros(task.classes, network.embedding_size))
        self.register_buffer("inside", torch.ones(task.images, dtype=torch.bool))

    def plan(
        self,
        epoch: int,
        labels: np.ndarray,
        p: int,
        k: int,
        rng: np.random.Generator,
        embed_all: EmbedAll,
    ) -> Iterator[tuple[np.ndarray, int]]:
        self._find_centres(embed_all(), torch.from_numpy(labels))
        yield from super().plan(epoch, labels, p, k, rng, embed_all)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f, y = self.embed(batch.images), batch.labels
        terms = {"triplet": density_aware_triplet(f, y, centres=self.centres, margin=self.margin)}
        if self.quadruplet:
            terms["quadruplet"] = density_aware_quadruplet(
                f, y, centres=self.centres, margin2=self.margin2
            )
        return terms

    def _find_centres(self, f: Tensor, y: Tensor) -> None:
        labelled = y >= 0
        f, y = f[labelled], y[labelled]
        centres = density_centres(
            f, y, classes=len(self.centres), quantile=self.quantile, iterations=self.iterations
        )
        self.centres.copy_(centres)
        inside = dense_region(f, y, centres=centres, quantile=self.quantile)
        self.inside.copy_(labelled.masked_scatter(labelled, inside))
