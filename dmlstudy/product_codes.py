"""Images as the numbers of codewords: what a database stores of product quantisation, and distances looked up in it."""

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.errors import StudyError


def hard_codes(hard: Tensor, codebooks: Tensor) -> Tensor:
    """What a database stores of hard codes [N, M W]: the numbers of their codewords, uint8 [N, M]."""
    m, _, width = codebooks.shape
    parts = hard.unflatten(1, (m, width)).transpose(0, 1)
    # The nearest codeword: largest x.c - |c|^2 / 2.
    nearness = torch.baddbmm(codebooks.square().sum(2)[:, None] / -2, parts, codebooks.mT)
    return nearness.argmax(2).T.to(torch.uint8)


def decoded(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The codewords of stored numbers [N, M], side by side, [N, M W]."""
    books = torch.arange(len(codebooks), device=codes.device)
    return codebooks[books, codes.long()].flatten(1)


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
