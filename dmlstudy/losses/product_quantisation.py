"""Supervised product quantisation: soft and hard codes, the losses on them, and distances looked up in tables."""

import math

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.errors import StudyError


def soft_and_hard(p: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean codeword and most probable codeword of every sub-vector, side by side.

    Klein & Wolf, "End-to-End Supervised Product Quantization for Image Search and Retrieval", CVPR 2019:

        soft_m = sum_k p_m(k) C_mk,   hard_m = C_mk at k = argmax p_m

    The gradient passes the arg-max straight through: p gets the gradient of the one-hot vector.

    Args:
        p: [B, M, K], rows of K are distributions over a codebook.
        codebooks: C, [M, K, W].

    Returns:
        soft and hard, each [B, M W].

    >>> p, line = torch.tensor([[[.75, .25]]]), torch.tensor([[[0.], [1.]]])
    >>> [code.item() for code in soft_and_hard(p, line)]
    [0.25, 0.0]
    """
    one_hot = F.one_hot(p.argmax(2), p.shape[2]).to(p.dtype)
    straight_through = one_hot + (
        p - p.detach()
    )  # p - p is exactly 0, so this is one-hot to the bit
    soft, hard = (torch.einsum("bmk,mkw->bmw", q, codebooks) for q in (p, straight_through))
    return soft.flatten(1), hard.flatten(1)


def joint_central(soft: Tensor, hard: Tensor, labels: Tensor, *, centres: Tensor) -> Tensor:
    """Pull both codes of an image to one centre of its class: 1/B sum_i (|soft_i - O_y|^2 + |hard_i - O_y|^2) / 2.

    Args:
        soft: [B, D].
        hard: [B, D].
        labels: y, [B], in 0..C-1.
        centres: O, [C, D].

    >>> zero = torch.zeros(1, 1)
    >>> joint_central(torch.tensor([[.25]]), zero, torch.tensor([0]), centres=zero).item()
    0.03125
    """
    own = centres[labels]
    return ((soft - own).square().sum(1) + (hard - own).square().sum(1)).mean() / 2


def shared_softmax(
    soft: Tensor, hard: Tensor, labels: Tensor, *, weight: Tensor, bias: Tensor
) -> Tensor:
    """Cross-entropy of the soft code plus that of the hard code under the same linear classifier.

    Args:
        soft: [B, D].
        hard: [B, D].
        labels: [B], in 0..C-1.
        weight: [C, D].
        bias: [C].
    """
    return F.cross_entropy(F.linear(soft, weight, bias), labels) + F.cross_entropy(
        F.linear(hard, weight, bias), labels
    )


def gini(p: Tensor) -> tuple[Tensor, Tensor]:
    """The two Gini terms, both to be minimised; means over codebooks.

        batch level   sum_k (1/B sum_i p_i(k))^2       least, 1/K, when all codewords are used equally
        sample level  1/B sum_i (1 - sum_k p_i(k)^2)   least, 0, when every p is one-hot

    Their purpose is the paper's, the scaling reconstructed.

    Args:
        p: [B, M, K].

    >>> [term.item() for term in gini(torch.tensor([[[.75, .25]]]))]
    [0.625, 0.375]
    """
    return p.mean(0).square().sum(1).mean(), 1 - p.square().sum(2).mean()


# --- retrieval


def bits_per_image(codebooks: int, codewords: int) -> float:
    """M log2 K.

    >>> bits_per_image(8, 64)
    48.0
    """
    return codebooks * math.log2(codewords)


def hard_codes(hard: Tensor, codebooks: Tensor) -> Tensor:
    """What a database stores of hard codes [N, M W]: the numbers of their codewords, uint8 [N, M]."""
    m, _, width = codebooks.shape
    parts = hard.unflatten(1, (m, width)).transpose(0, 1)
    # The nearest codeword: largest x.c - |c|^2 / 2.
    nearness = torch.baddbmm(codebooks.square().sum(2)[:, None] / -2, parts, codebooks.mT)
    return nearness.argmax(2).T.to(torch.uint8)


def query_tables(queries: Tensor, codebooks: Tensor) -> Tensor:
    """Squared distances of each query's sub-vectors to all codewords, [Q, M, K].

    Args:
        queries: [Q, M W].
        codebooks: [M, K, W].
    """
    parts = queries.unflatten(1, (codebooks.shape[0], codebooks.shape[2]))
    products = torch.einsum("qmw,mkw->qmk", parts, codebooks)
    squared = parts.square().sum(2)[:, :, None] + codebooks.square().sum(2) - 2 * products
    return squared.clamp_min(0)


def symmetric_tables(codebooks: Tensor) -> Tensor:
    """Squared distances between the codewords of each codebook, [M, K, K]."""
    rows = codebooks.mT.flatten(0, 1).T  # codeword k of every codebook side by side: K queries
    return query_tables(rows, codebooks).transpose(0, 1)


def asymmetric_distances(tables: Tensor, codes: Tensor) -> Tensor:
    """Squared distances [Q, N], M look-ups each; equal codes are at exactly equal distance.

    Args:
        tables: [Q, M, K] of `query_tables`.
        codes: [N, M].
    """
    m, k = tables.shape[1:]
    rows = codes.long() + k * torch.arange(m, device=codes.device)
    # One row per codeword, one column per query: a bag of M rows is a stored image's distance to all queries.
    return F.embedding_bag(rows, tables.flatten(1).T.contiguous(), mode="sum").T.contiguous()


def symmetric_distances(tables: Tensor, queries: Tensor, codes: Tensor) -> Tensor:
    """Squared distances [Q, N] between codes on both sides.

    Args:
        tables: [M, K, K] of `symmetric_tables`.
        queries: codes [Q, M].
        codes: [N, M].
    """
    return asymmetric_distances(tables[torch.arange(len(tables)), queries.long()], codes)


def faiss_index(codes: Tensor, codebooks: Tensor) -> faiss.IndexPQ:
    """A faiss index over these codes; searched with soft codes it gives the same asymmetric distances.

    Args:
        codes: uint8 [N, M].
        codebooks: [M, K, W].

    Raises:
        StudyError: K is not a power of two, which faiss' codes need.
    """
    m, k, width = codebooks.shape
    bits = k.bit_length() - 1
    if k != 2**bits:
        raise StudyError(f"faiss needs a power of two as number of codewords, not {k}.")
    index = faiss.IndexPQ(m * width, m, bits)
    centroids = codebooks.detach().cpu().float().numpy()
    faiss.copy_array_to_vector(np.ascontiguousarray(centroids).ravel(), index.pq.centroids)
    index.is_trained = True
    # faiss packs the M numbers of a code without gaps.
    index.add_sa_codes(faiss.pack_bitstrings(codes.cpu().int().numpy(), bits))
    return index
