"""Rows that are a loss of a batch's pairs: each is a declaration.

Formula, symbols and paper stand in the loss's docstring, hyperparameters in the signatures of loss and miner, their
values in the study and where those come from in `params/methods/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from dmlstudy import losses, miners
from dmlstudy.errors import StudyError
from dmlstudy.geometry import snr_distance, squared_distance
from dmlstudy.heads import branch_heads
from dmlstudy.losses import Keys
from dmlstudy.memory import Memory
from dmlstudy.methods.base import Batch, Method, TrainingSet
from dmlstudy.ranges import NonNegative, NonNegativeCount, Positive


class PairMethod(Method):
    """A loss of embeddings and labels, and the miner that chooses its pairs; with a memory, also of past batches.

    Args:
        memory: past embeddings that each batch is compared with, too; 0 is none.
        memory_start: steps before the memory is filled.
    """

    formula: ClassVar[Callable[..., Tensor]]
    miner: ClassVar[Callable[..., Any] | None] = None
    term: ClassVar[str]  # the loss's name in logs and curves

    memory: NonNegativeCount = 0
    memory_start: NonNegativeCount = 0

    def __init_subclass__(cls) -> None:
        cls.parts = (cls.formula,) if cls.miner is None else (cls.formula, cls.miner)

    def build(self, training_set: TrainingSet) -> None:
        if self.memory:
            size = self.network.embedding_size
            self.remembered = Memory(self.memory, size, self.memory_start)
            self.least_steps = self.memory_start + 1

    def phases(self) -> dict[str, int]:
        if not self.memory:
            return {}
        return {"steps with a memory": max(int(self.remembered.pushes) - self.memory_start, 0)}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f, y = self.embed(batch.images), batch.labels
        terms = {self.term: self.pair_loss(f, y)}
        if self.memory:
            # Before the memory's loss, as in the authors' code of XBM: a batch's own positives count twice.
            self.remembered.push(f, y)
            if keys := self.remembered.keys():
                terms["memory"] = self.pair_loss(f, y, keys=keys)
        return terms

    def pair_loss(self, embeddings: Tensor, labels: Tensor, keys: Keys | None = None) -> Tensor:
        """The loss, with this method's hyperparameters, of the pairs that its miner keeps."""
        # Through the class, since a function found on the object would be bound to it.
        formula, miner = self.configured(type(self).formula), type(self).miner
        pairs = None if miner is None else self.configured(miner)
        return formula(embeddings, labels, pairs=pairs, keys=keys)


class MultiSimilarity(PairMethod):
    """Verified in the authors' code: alpha 2, beta 40, lam 0.5, epsilon 0.1 (the paper's text has beta 50, lam 1)."""

    number, title, kind = 6, "Multi-similarity", "pair loss with a miner"
    certainty = "high: read in the authors' code"
    formula, miner = losses.multi_similarity, miners.multi_similarity_miner
    term = "multi-similarity"
    controls = {"no mining": {"epsilon": None}}


class FastAP(PairMethod):
    """Maximise the average precision of every image's ranking of its batch.

    Verified in the authors' code: formula, L 10, squared distances of unit embeddings, itself left out. Theirs
    multiplies the gradient by B/2, which Adam does not notice; ours is the true one. Not taken over: batches of
    256 from two categories each and their three-step gradient for small memory; the protocol's data sets have
    no categories above their classes, and all rows share the batch size.
    """

    number, title, kind = 7, "FastAP", "listwise loss: average precision"
    certainty = "high: read in the authors' code"
    formula, term = losses.fastap, "1 - FastAP"
    controls = {"5 bins": {"bins": 5}, "20 bins": {"bins": 20}}


class RankedList(PairMethod):
    """Verified in the authors' code: formula, T 10; alpha 1.2, m 0.4, lam 0.5 are from memory of the paper
    (default, unverified; the authors' CUB script has alpha 1.4, m 0.2).

    Args:
        variant: "H" is the head after the last block; "LMH" adds a low and a middle branch
            with their own heads, three equal losses, embeddings side by side (three times embedding_size).
    """

    number, title, kind = 3, "Ranked list", "list-wise loss"
    certainty = "high for the formula, default unverified for alpha, m, lam"
    formula, term = losses.ranked_list, "ranked list"
    controls = {
        "no weighting (T = 0)": {"temperature": 0.0},
        "low, middle and high branch, as the paper's row": {"variant": "LMH"},
    }
    start = {"variant": "H"}  # further branches start at random

    variant: Literal["H", "LMH"] = "H"

    def build(self, training_set: TrainingSet) -> None:
        super().build(training_set)
        if self.variant == "LMH":
            if self.memory:
                raise StudyError("A memory holds one embedding: set memory to 0 or variant to H.")
            self.branches = branch_heads(self.network)

    def own_controls(self) -> dict[str, dict[str, Any]]:
        """Without the branches where they would leave from the frozen part of the trunk."""
        deep = bool(self.network.taps)
        return {name: h for name, h in self.controls.items() if deep or h.get("variant") != "LMH"}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if not self.branches:
            return super().loss(batch)
        f = self.embed(batch.images).chunk(1 + len(self.branches), dim=1)
        parts = [self.pair_loss(branch, batch.labels) for branch in f]
        return dict(zip(("low", "middle", "high"), parts, strict=True))

    def pair_loss(self, embeddings: Tensor, labels: Tensor, keys: Keys | None = None) -> Tensor:
        """Of one branch, normalised: side by side the branches are shorter than 1."""
        return super().pair_loss(F.normalize(embeddings), labels, keys)


class TripletBatchHard(PairMethod):
    """Verified in the authors' code: formula, soft margin, P = 32, K = 4, un-normalised embeddings, also in ranking.

    Args:
        unit: normalise the embeddings all the same (control).
        head_scale: factor on the head's output, for embeddings of free length.
    """

    number, title, kind = 16, "Triplet, batch-hard", "triplet loss"
    certainty = "high: read in the authors' code"
    formula, term = losses.triplet_batch_hard, "triplet"
    controls = {"hinge, m = 0.2": {"margin": 0.2}, "unit embeddings": {"unit": True}}

    unit: bool = False
    head_scale: Positive = 1.0

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return -squared_distance(queries, gallery)


class Contrastive(PairMethod):
    """The margin is from third-party code (default, unverified). With P classes of K images an anchor has (P - 1) K
    negatives for K - 1 positives, which would decide one mean over all pairs: see the control."""

    number, title, kind = 17, "Contrastive", "pair loss"
    certainty = "high for the formula, default unverified for the margin"
    formula, term = losses.contrastive, "contrastive"
    controls = {"m = 0.5": {"margin": 0.5}, "one mean over all pairs": {"split": False}}


class SNR(Method):
    """A contrastive or triplet loss on SNR distances, plus lam times the zero-mean regulariser.

    The query is the anchor in ranking: its variance is the same for the whole gallery, so a ranking is that of
    Euclidean distances between centred vectors, and the division acts in training (and where pairs of several queries
    are compared, as in AUROC).

    After the abstract and two third-party ports: the distance is certain, margins 1 (contrastive) and 0.2 (triplet)
    and lam 0.005 are those ports' defaults, and which loss made the paper's row is unknown. Contrastive is our
    choice: on validation characters it kept MAP@R higher.

    Args:
        form: contrastive or triplet.
        margin: m, of the contrastive loss' negatives or of the triplet.
        lam: weight of the zero-mean term.
        distance: snr, or euclidean, squared (control: the twin), in loss and ranking.
        unit: normalise the embeddings (for the twin).
        head_scale: factor on the head's output, for embeddings of free length.
    """

    number, title, kind = 12, "SNR distance", "pair loss with its own distance"
    certainty = "high for the distance; low for the recipe: third-party ports"
    parts = (losses.snr_contrastive, losses.snr_triplet, snr_distance)
    controls = {
        "Euclidean twin": {"distance": "euclidean"},
        "Euclidean twin, unit embeddings": {"distance": "euclidean", "unit": True},
        "triplet form": {"form": "triplet", "margin": 0.2},
    }

    form: Literal["contrastive", "triplet"] = "contrastive"
    margin: NonNegative = 1.0
    lam: NonNegative = 0.005
    distance: Literal["snr", "euclidean"] = "snr"
    unit: bool = False
    head_scale: Positive = 1.0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        h = self.embed(batch.images)
        formula = losses.snr_contrastive if self.form == "contrastive" else losses.snr_triplet
        if self.distance == "euclidean":
            formula = formula.on(losses.squared)
        value = formula(h, batch.labels, margin=self.margin)
        return {self.form: value, "zero mean": self.lam * losses.zero_mean(h)}

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        distance = snr_distance if self.distance == "snr" else squared_distance
        return -distance(queries, gallery)
