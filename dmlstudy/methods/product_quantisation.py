"""Supervised product quantisation: images as a few codeword numbers."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from dmlstudy import losses
from dmlstudy.geometry import squared_distance
from dmlstudy.heads import equal_slices
from dmlstudy.methods.base import Batch, Method, TrainingSet
from dmlstudy.product_codes import asymmetric_distances, hard_codes, query_tables
from dmlstudy.ranges import Count, NonNegative

SHARPNESS = 10.0  # of the first assignments; our choice


class ProductQuantisation(Method):
    """An image becomes M codeword numbers: M log2 K bits, learned together with the network.

    The embedding is cut into M sub-vectors x_m; a head gives p_m = softmax(x_m H_m) over the K codewords C_m. One
    classifier and one centre per class serve the soft and the hard code:
    L = CE(soft) + CE(hard) + w (|soft - O_y|^2 + |hard - O_y|^2) / 2 + two Gini terms. Queries stay soft, the
    gallery is hard, and distances are M look-ups. Each test image is both, so its row is [soft | hard].

    After the abstract and partial text: the structure, the straight-through arg-max, w = 0.1 (an ablation), unit
    sub-vectors for unseen classes, 64 bits. Reconstructed: scaling of the Gini terms. Ours, unverified: how the 64
    bits divide into M and K, Gini weights, learning rate, starting values.

    Args:
        codebooks: M, sub-vectors and codebooks.
        codewords: K, codewords per codebook.
        intra_normalise: L2-normalise sub-vectors.
        centre_weight: w, weight of the joint central loss.
        batch_gini: weight of the term that uses all codewords.
        sample_gini: weight of the term that makes assignments one-hot.
        ranking: asymmetric, symmetric, or float (not quantised).
        quantiser_lr: learning rate of heads, codebooks, classifier and centres.
    """

    number, title = 2, "SPQ"
    kind = "learned codes, classification loss"
    certainty = "medium: after the abstract and partial text; weights and sizes are ours"
    parts = (losses.soft_and_hard,)
    controls = {
        "float embedding": {"ranking": "float"},
        "symmetric (hard against hard)": {"ranking": "symmetric"},
    }
    start = {"ranking": "float"}  # codewords are random before training: sub-vectors, not quantised
    asymmetric = True
    unit = False

    codebooks: Count = 8
    codewords: Annotated[int, Ge(2), Le(256)] = 256  # one byte per number
    intra_normalise: bool = True
    centre_weight: NonNegative = 0.1
    batch_gini: NonNegative = 10.0
    sample_gini: NonNegative = 1.0
    ranking: Literal["asymmetric", "symmetric", "float"] = "asymmetric"
    quantiser_lr: NonNegative = 1e-2

    def build(self, training_set: TrainingSet) -> None:
        size, classes = self.network.embedding_size, training_set.classes
        width = equal_slices(size, self.codebooks, "codebooks")
        self.extra_lr = self.quantiser_lr
        start = F.normalize(torch.randn(self.codebooks, self.codewords, width), dim=2)
        self.codeword_vectors = nn.Parameter(start)  # [M, K, W]
        # At first the likeliest codeword is the nearest one.
        self.assignment = nn.Parameter(SHARPNESS * start.mT)  # H, [M, W, K]
        self.classifier = nn.Linear(size, classes)
        self.centres = nn.Parameter(nn.init.xavier_uniform_(torch.empty(classes, size)))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x = self._sub_vectors(batch.images)
        if self.ranking == "float":
            return self._supervised(x.flatten(1), x.flatten(1), batch.labels)
        p = self.assign(x)
        used, spread = losses.gini(p)
        codes = losses.soft_and_hard(p, self.codeword_vectors)
        gini = self.batch_gini * used + self.sample_gini * spread
        return self._supervised(*codes, batch.labels) | {"gini": gini}

    def embed(self, images: Tensor, role: str = "query") -> Tensor:
        """[soft | hard], [B, 2 D]; only hard, or the sub-vectors themselves, where the ranking needs no more."""
        x = self._sub_vectors(images)
        if self.ranking == "float":
            return x.flatten(1)
        soft, hard = losses.soft_and_hard(self.assign(x), self.codeword_vectors)
        return hard if self.ranking == "symmetric" else torch.cat([soft, hard], 1)

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Minus squared distances, looked up for quantised rankings as a database would."""
        if self.ranking == "float":
            return -squared_distance(queries, gallery)
        vectors, size = self.codeword_vectors.detach().to(queries), self.network.embedding_size
        codes = hard_codes(gallery[:, -size:], vectors)
        return -asymmetric_distances(query_tables(queries[:, :size], vectors), codes)

    def assign(self, x: Tensor) -> Tensor:
        """p [B, M, K] of sub-vectors [B, M, W]."""
        return torch.einsum("bmw,mwk->bmk", x, self.assignment).softmax(2)

    def _sub_vectors(self, images: Tensor) -> Tensor:
        # Every M-th coordinate: after a PCA start each sub-vector has its share of the leading coordinates.
        x = self.network(images).unflatten(1, (-1, self.codebooks)).mT
        return F.normalize(x, dim=2) if self.intra_normalise else x

    def _supervised(self, soft: Tensor, hard: Tensor, labels: Tensor) -> dict[str, Tensor]:
        weight, bias = self.classifier.weight, self.classifier.bias
        central = losses.joint_central(soft, hard, labels, centres=self.centres)
        return {
            "softmax": losses.shared_softmax(soft, hard, labels, weight=weight, bias=bias),
            "centre": self.centre_weight * central,
        }
