"""Card 2: supervised product quantisation, images as a few codeword numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy.errors import StudyError, unknown
from dmlstudy.geometry import squared_distance
from dmlstudy.losses.product_quantisation import (
    bits_per_image,
    gini,
    joint_central,
    shared_softmax,
    soft_and_hard,
)
from dmlstudy.methods.base import Batch, Method, Task
from dmlstudy.networks import Network
from dmlstudy.product_codes import asymmetric_distances, hard_codes, query_tables

RANKINGS = ("asymmetric", "symmetric", "float")
SHARPNESS = 10.0  # of the first assignments; our choice


class ProductQuantisation(Method):
    """An image becomes M codeword numbers: M log2 K bits, learned together with the network.

    The embedding is cut into M sub-vectors x_m; a head gives p_m = softmax(x_m H_m) over the K codewords C_m;
    soft_m = sum_k p_m(k) C_mk and hard_m = C_m,argmax. One classifier and one centre per class serve both codes:
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

    title = "SPQ"
    card = "02"
    paper = "Klein, Wolf, End-to-End Supervised Product Quantization for Image Search and Retrieval, CVPR 2019"
    kind = "learned codes, classification loss"
    certainty = "medium: after the abstract and partial text; weights and sizes are ours"
    controls = {
        "float embedding": {"ranking": "float"},
        "symmetric (hard against hard)": {"ranking": "symmetric"},
    }
    asymmetric = True
    unit = False

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        codebooks: int = 8,
        codewords: int = 256,
        intra_normalise: bool = True,
        centre_weight: float = 0.1,
        batch_gini: float = 10.0,
        sample_gini: float = 1.0,
        ranking: str = "asymmetric",
        quantiser_lr: float = 1e-2,
    ):
        super().__init__(network, task)
        size = network.embedding_size
        if ranking not in RANKINGS:
            raise unknown("ranking", ranking, RANKINGS)
        if codebooks < 1 or size % codebooks:
            raise StudyError(
                f"product_quantisation cuts the embedding into equal sub-vectors: embedding_size {size} is not a "
                f"multiple of codebooks = {codebooks}."
            )
        if not 2 <= codewords <= 256:
            raise StudyError(f"codewords must lie in 2..256, one byte per number, not {codewords}.")
        self.ranking, self.intra_normalise = ranking, intra_normalise
        self.centre_weight, self.batch_gini, self.sample_gini = (
            centre_weight,
            batch_gini,
            sample_gini,
        )
        self.own_lr = quantiser_lr
        self.bits = bits_per_image(codebooks, codewords)
        start = F.normalize(torch.randn(codebooks, codewords, size // codebooks), dim=2)
        self.codebooks = nn.Parameter(start)  # [M, K, W]
        # At first the likeliest codeword is the nearest one.
        self.heads = nn.Parameter(SHARPNESS * start.mT)  # [M, W, K]
        self.classifier = nn.Linear(size, task.classes)
        self.centres = nn.Parameter(nn.init.xavier_uniform_(torch.empty(task.classes, size)))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x = self._sub_vectors(batch.images)
        if self.ranking == "float":
            return self._supervised(x.flatten(1), x.flatten(1), batch.labels)
        p = self.assign(x)
        used, spread = gini(p)
        supervised = self._supervised(*soft_and_hard(p, self.codebooks), batch.labels)
        return supervised | {"gini": self.batch_gini * used + self.sample_gini * spread}

    def embed(self, images: Tensor, role: str = "query") -> Tensor:
        """[soft | hard], [B, 2 D]; only hard, or the sub-vectors themselves, where the ranking needs no more."""
        x = self._sub_vectors(images)
        if self.ranking == "float":
            return x.flatten(1)
        soft, hard = soft_and_hard(self.assign(x), self.codebooks)
        return hard if self.ranking == "symmetric" else torch.cat([soft, hard], 1)

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Minus squared distances, looked up for quantised rankings as a database would."""
        if self.ranking == "float":
            return -squared_distance(queries, gallery)
        codebooks, size = self.codebooks.detach().to(queries), self.network.embedding_size
        codes = hard_codes(gallery[:, -size:], codebooks)
        return -asymmetric_distances(query_tables(queries[:, :size], codebooks), codes)

    def assign(self, x: Tensor) -> Tensor:
        """p [B, M, K] of sub-vectors [B, M, W]."""
        return torch.einsum("bmw,mwk->bmk", x, self.heads).softmax(2)

    def _sub_vectors(self, images: Tensor) -> Tensor:
        # Dealt out in turn: after a PCA start each sub-vector has its share of the leading coordinates.
        x = self.network(images).unflatten(1, (-1, len(self.codebooks))).mT
        return F.normalize(x, dim=2) if self.intra_normalise else x

    def _supervised(self, soft: Tensor, hard: Tensor, labels: Tensor) -> dict[str, Tensor]:
        weight, bias = self.classifier.weight, self.classifier.bias
        central = joint_central(soft, hard, labels, centres=self.centres)
        return {
            "softmax": shared_softmax(soft, hard, labels, weight=weight, bias=bias),
            "centre": self.centre_weight * central,
        }
