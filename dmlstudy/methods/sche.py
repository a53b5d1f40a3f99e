"""SCHE: stochastic class-based hard example mining."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy import losses
from dmlstudy.methods.base import Batch, Epoch, Method, TrainingSet
from dmlstudy.ranges import Count, NonNegative
from dmlstudy.samplers import confusable_batches


class SCHE(Method):
    """A learned signature per class finds confusable classes cheaply; hard images are sought only inside those.

    Half of a batch are images of random anchor classes. Beside each, as many are drawn from the `candidates` times as
    many that are nearest to its own, among all images of the classes whose signatures are nearest.
    L = triplet + lam L_sig; the triplet loss takes all triplets of the batch that violate its margin.

    The idea, unit embeddings and the mean over positive terms are from summaries of the paper; no code of its authors
    was released. A third-party implementation, which calls K = 5, beta = 5 and a sixth of the batch as anchors the
    paper's values, has un-squared distances, all triplets and the random draw. Reconstructed: L_sig, which also trains
    the network. Ours: half of the batch as anchors, because our batches have few images a class; images are compared
    as they were at the epoch's start. lam and tau are ours. Not taken over: input of 336 px, features of an earlier
    stage and second-order pooling, which carry much of the reported gain.

    Args:
        hard_classes: K, confusable classes that hard images are sought in.
        candidates: beta; the K images beside an anchor class are drawn of so many times K.
        lam: weight of the signatures' loss.
        classes: signatures, or random (control).
        instances: hard, or random (control: any images of those classes).
        signature_lr: learning rate of the signatures.
    """

    number, title = 5, "SCHE"
    kind = "triplet loss, classes mined by learned signatures"
    certainty = "low to medium: the idea is sure; details are a third party's, no authors' code"
    parts = (losses.signature_softmax, losses.triplet_all)
    controls = {
        "random classes": {"classes": "random"},
        "random images of the hard classes": {"instances": "random"},
        "random classes, random images": {"classes": "random", "instances": "random"},
        "no signatures": {"classes": "random", "lam": 0.0},
    }

    hard_classes: Count = 5
    candidates: Count = 5
    lam: NonNegative = 0.1
    classes: Literal["signatures", "random"] = "signatures"
    instances: Literal["hard", "random"] = "hard"
    signature_lr: NonNegative = 1e-2

    def build(self, training_set: TrainingSet) -> None:
        self.extra_lr = self.signature_lr
        start = torch.randn(training_set.classes, self.network.embedding_size)
        self.signatures = nn.Parameter(F.normalize(start))

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        for indices in confusable_batches(
            epoch.labels,
            epoch.p,
            epoch.k,
            epoch.rng,
            hard=self.hard_classes,
            candidates=self.candidates,
            embeddings=epoch.embed_all(),
            signatures=self.unit_signatures if self.classes == "signatures" else None,
            mine_images=self.instances == "hard",
        ):
            yield indices, 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f, w = self.embed(batch.images), F.normalize(self.signatures)
        softmax = self.configured(losses.signature_softmax)
        return {
            "triplet": self.configured(losses.triplet_all)(f, batch.labels),
            "signatures": self.lam * softmax(f, batch.labels, signatures=w),
        }

    @torch.no_grad()
    def unit_signatures(self) -> Tensor:
        """The signatures as they are now, [C, D], on the CPU."""
        return F.normalize(self.signatures).cpu()

    def most_confusable(self, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Similarities and ids of the classes whose signatures are nearest to those of `classes`, two [M, count]."""
        w = self.unit_signatures()
        similarity = (w[classes] @ w.T).scatter(1, classes[:, None], -torch.inf)
        nearest = similarity.topk(min(count, len(w) - 1), dim=1)
        return nearest.values, nearest.indices
