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
from dmlstudy.kmeans import centroids
from dmlstudy.methods.base import Batch, Epoch, Method, TrainingSet
from dmlstudy.product_codes import asymmetric_distances, decoded, hard_codes, query_tables
from dmlstudy.ranges import Count, NonNegative

SHARPNESS = 10.0  # of the first assignments; our choice


class ProductQuantisation(Method):
    """An image becomes M codeword numbers: M log2 K bits, learned together with the network.

    The embedding is cut into M sub-vectors x_m; a head gives p_m = softmax(x_m H_m) over the K codewords C_m. One
    classifier and one centre per class serve the soft and the hard code:
    L = CE(soft) + CE(hard) + w (|soft - O_y|^2 + |hard - O_y|^2) / 2 + two Gini terms. Queries stay soft, the
    gallery is hard, and distances are M look-ups. Each test image is both, so its row is [soft | hard].

    After the abstract and partial text: the structure, the straight-through arg-max, w = 0.1 (an ablation), unit
    sub-vectors for unseen classes, 64 bits. Reconstructed: scaling of the Gini terms. Ours, unverified: that the parts
    of both codes are of unit length, too, since a soft code is a mean and else shorter than the hard one it is compared
    with; how the 64 bits divide into M and K, Gini weights, learning rate, starting values.

    Args:
        codebooks: M, sub-vectors and codebooks.
        codewords: K, codewords per codebook.
        intra_normalise: L2-normalise sub-vectors, and the parts of their codes.
        centre_weight: w, weight of the joint central loss.
        batch_gini: weight of the term that uses all codewords.
        sample_gini: weight of the term that makes assignments one-hot.
        ranking: asymmetric, symmetric, float (not quantised), or k-means (float training, then quantised).
        quantiser_lr: learning rate of heads, codebooks, classifier and centres.
    """

    number, title = 2, "SPQ"
    kind = "learned codes, classification loss"
    certainty = "medium: after the abstract and partial text; weights and sizes are ours"
    parts = (losses.soft_and_hard,)
    controls = {
        "float embedding": {"ranking": "float"},
        "k-means codes of the float embedding": {"ranking": "k-means"},
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
    ranking: Literal["asymmetric", "symmetric", "float", "k-means"] = "asymmetric"
    quantiser_lr: NonNegative = 1e-2

    def build(self, training_set: TrainingSet) -> None:
        size, classes = self.network.embedding_size, training_set.classes
        width = equal_slices(size, self.codebooks, "codebooks")
        self.extra_lr, self.last = self.quantiser_lr, training_set.epochs - 1
        start = F.normalize(torch.randn(self.codebooks, self.codewords, width), dim=2)
        self.codeword_vectors = nn.Parameter(start)  # [M, K, W]
        # At first the likeliest codeword is the nearest one.
        self.assignment = nn.Parameter(SHARPNESS * start.mT)  # H, [M, W, K]
        self.classifier = nn.Linear(size, classes)
        self.centres = nn.Parameter(nn.init.xavier_uniform_(torch.empty(classes, size)))

    def after_epoch(self, epoch: Epoch) -> None:
        if self.ranking == "k-means" and epoch.number == self.last:
            x = epoch.embed_all(self._sub_vectors)
            books = [centroids(part, self.codewords) for part in x.unbind(1)]
            with torch.no_grad():
                self.codeword_vectors.copy_(torch.stack(books))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x = self._sub_vectors(batch.images)
        if self.ranking in ("float", "k-means"):
            return self._supervised(x.flatten(1), x.flatten(1), batch.labels)
        p = self.assign(x)
        used, spread = losses.gini(p)
        gini = self.batch_gini * used + self.sample_gini * spread
        return self._supervised(*self._codes(p), batch.labels) | {"gini": gini}

    def embed(self, images: Tensor, role: str = "query") -> Tensor:
        """[soft | hard], [B, 2 D]; only hard, or the sub-vectors themselves, where the ranking needs no more."""
        x = self._sub_vectors(images)
        if self.ranking == "float":
            return x.flatten(1)
        if self.ranking == "k-means":
            codes = hard_codes(x.flatten(1), self.codeword_vectors)
            return torch.cat([x.flatten(1), decoded(codes, self.codeword_vectors)], 1)
        soft, hard = self._codes(self.assign(x))
        return hard if self.ranking == "symmetric" else torch.cat([soft, hard], 1)

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Minus squared distances, looked up for quantised rankings as a database would."""
        if self.ranking == "float":
            return -squared_distance(queries, gallery)
        vectors, size = self.vectors().detach().to(queries), self.network.embedding_size
        codes = hard_codes(gallery[:, -size:], vectors)
        return -asymmetric_distances(query_tables(queries[:, :size], vectors), codes)

    def assign(self, x: Tensor) -> Tensor:
        """p [B, M, K] of sub-vectors [B, M, W]."""
        return torch.einsum("bmw,mwk->bmk", x, self.assignment).softmax(2)

    def vectors(self) -> Tensor:
        """The codewords, [M, K, W]; unit ones where sub-vectors are."""
        learned = self.intra_normalise and self.ranking != "k-means"
        return F.normalize(self.codeword_vectors, dim=2) if learned else self.codeword_vectors

    def _codes(self, p: Tensor) -> tuple[Tensor, Tensor]:
        soft, hard = losses.soft_and_hard(p, self.vectors())
        if self.intra_normalise:
            soft = F.normalize(soft.unflatten(1, (self.codebooks, -1)), dim=2).flatten(1)
        return soft, hard

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
