"""SCHE: stochastic class-based hard example mining."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy import losses, miners
from dmlstudy.geometry import pair_masks
from dmlstudy.methods.base import Batch, Epoch, Method, TrainingSet
from dmlstudy.ranges import Count, NonNegative
from dmlstudy.samplers import confusable_batches, pk_batches


class SCHE(Method):
    """A learned signature per class finds confusable classes cheaply; hard images are sought only inside those.

    Batches are made of random anchor classes, each with the classes whose signatures are nearest to its own. In the
    batch H_i are the classes c != y_i with the largest f_i . w_c; a triplet takes the farthest positive and the
    nearest image in H_i. L = triplet + lam L_sig.

    The idea, unit embeddings and the mean over positive terms are from summaries of the paper; no code was released.
    Reconstructed: L_sig (it also trains the network), anchors' classes by signature against signature, farthest
    positive. All numbers are defaults, unverified; lam was chosen on validation characters. Not taken over: input of
    336 px, features of an earlier stage and second-order pooling, which carry much of the reported gain.

    Args:
        hard_classes: the paper's k, classes beside an anchor's own.
        lam: weight of the signatures' loss.
        classes: signatures, or random (control: H_i is the whole batch).
        instances: hard, or random (control: drawn for each anchor).
        signature_lr: learning rate of the signatures.
    """

    number, title = 5, "SCHE"
    kind = "triplet loss, classes mined by learned signatures"
    certainty = "low to medium: the idea is sure, the details are not; no code was released"
    parts = (losses.signature_softmax, losses.mined_triplet)
    controls = {
        "random classes, same mining": {"classes": "random"},
        "signatures without mining": {"classes": "random", "instances": "random"},
        "no signatures": {"classes": "random", "lam": 0.0},
    }

    hard_classes: Count = 3
    lam: NonNegative = 0.1
    classes: Literal["signatures", "random"] = "signatures"
    instances: Literal["hard", "random"] = "hard"
    signature_lr: NonNegative = 1e-2

    def build(self, training_set: TrainingSet) -> None:
        self.extra_lr = self.signature_lr
        start = torch.randn(training_set.classes, self.network.embedding_size)
        self.signatures = nn.Parameter(F.normalize(start))

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        batches = pk_batches(epoch.labels, epoch.p, epoch.k, epoch.rng)
        if self.classes == "signatures":
            batches = confusable_batches(
                list(batches),
                epoch.labels,
                epoch.p,
                self.hard_classes,
                self.unit_signatures,
                epoch.rng,
            )
        for indices in batches:
            yield indices, 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f, y = self.embed(batch.images), batch.labels
        w = F.normalize(self.signatures)
        positive, negative = pair_masks(y)
        if self.classes == "signatures":
            negative = losses.in_hard_classes(f, y, signatures=w, k=self.hard_classes)
        if self.instances == "random":
            positive, negative = miners.one_at_random(positive), miners.one_at_random(negative)
        triplet = self.configured(losses.mined_triplet)
        softmax = self.configured(losses.signature_softmax)
        return {
            "triplet": triplet(f, y, pairs=(positive, negative)),
            "signatures": self.lam * softmax(f, y, signatures=w),
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
