"""The order of computing similarities: whole rows, pairs of blocks, or the gallery block by block; all exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.errors import StudyError
from dmlstudy.evaluation.ranks import Ranks
from dmlstudy.geometry import pairwise_similarity as inner_product

Similarity = Callable[[Tensor, Tensor], Tensor]
BLOCK = 2**24  # similarities held at once: 64 MB of float32
SIDE = 1024  # queries in a block of a product of two blocks
WIDTH = 16384  # gallery items in such a block: with SIDE queries as many similarities as BLOCK
PAIRS = 2**22  # positive pairs held at once


def neighbours(
    query: Tensor,
    gallery: Tensor | None,
    k: int,
    *,
    similarity: Similarity = inner_product,
) -> tuple[Tensor, Tensor]:
    """The k nearest gallery items of each query: similarities and positions, [Q, k], nearest first.

    Without a gallery the queries search each other, each without itself. Fewer than k where there are fewer.
    """
    other = query if gallery is None else gallery
    k = min(k, len(other) - (gallery is None))
    step = max(1, BLOCK // len(other))
    nearest = []
    for start in range(0, len(query), step):
        s = _similarities(query[start : start + step], other, similarity)
        itself = s.diagonal(start)[: len(s) if gallery is None else 0]
        kept = itself.clone()  # the similarities may be a table of the caller's
        itself.fill_(-torch.inf)
        nearest.append(s.topk(k))
        itself.copy_(kept)
    values, positions = zip(*nearest, strict=True)
    return torch.cat(values), torch.cat(positions)


def _similarities(query: Tensor, gallery: Tensor, similarity: Similarity) -> Tensor:
    s = similarity(query, gallery).detach().float()
    # Every comparison with NaN is false, so a NaN positive would rank first.
    if not (s.amin().isfinite() and s.amax().isfinite()):
        raise StudyError(
            "The ranking similarity is not finite for some pairs: check the method's `similarity`, or lower "
            "the learning rate."
        )
    return s


@dataclass(frozen=True)
class Search:
    """What is searched, and where the positives of each query are: next to each other in `order`.

    Attributes:
        alone: the queries search each other, each without itself.
        deepest: the largest K of R@K.
        order: [G] gallery positions, class by class.
        first: [Q] where in `order` the class of each query begins.
        members: [Q] gallery items of its class, the query itself included where it is one.
    """

    query: Tensor
    gallery: Tensor
    similarity: Similarity
    alone: bool
    deepest: int
    order: Tensor
    first: Tensor
    members: Tensor

    def positives(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(row, place in `order`) of every positive of the queries at positions [b]."""
        members = self.members[queries]
        row = torch.arange(len(queries)).repeat_interleave(members)
        within = torch.arange(len(row)) - (members.cumsum(0) - members)[row]
        place = self.first[queries][row] + within
        if self.alone:
            other = self.order[place] != queries[row]
            row, place = row[other], place[other]
        return row, place


def walk(search: Search) -> Iterator[tuple[Tensor, Ranks]]:
    """(positions [b], ranks) for blocks of queries, in the cheapest way that is exact."""
    if search.similarity is inner_product and _products_are_finite(search):
        # The positives of all queries have to fit in memory at once.
        few = int(search.members.max()) <= SIDE and int(search.members.sum()) <= PAIRS
        if search.alone and few:
            return _by_block_pairs(search)
        if len(search.gallery) > 4 * WIDTH:
            return _by_gallery_blocks(search)
    return _by_rows(search)


def _by_rows(search: Search) -> Iterator[tuple[Tensor, Ranks]]:
    """(positions [b], ranks) for blocks of queries, each against the whole gallery: any similarity."""
    most = max(1, int(search.members.max()))
    step = max(1, min(BLOCK // len(search.gallery), PAIRS // most))
    for start in range(0, len(search.query), step):
        s = _similarities(search.query[start : start + step], search.gallery, search.similarity)
        queries = torch.arange(start, start + len(s))
        row, place = search.positives(queries)
        column = search.order[place]
        itself = s.diagonal(start)[: len(s) if search.alone else 0]
        kept = s[row, column], itself.clone()  # the similarities may be a table of the caller's
        itself.fill_(-torch.inf)
        ranks = Ranks(s, row, column, search.deepest)
        ranks.count(s)
        s[row, column] = kept[0]
        itself.copy_(kept[1])
        yield queries, ranks


def _products_are_finite(search: Search) -> bool:
    """Whether no product can overflow, so that blocks need no look: |x . y| <= |x| |y| bounds partial sums too."""
    longest = [
        float(torch.linalg.vector_norm(part, dim=1).max())
        for x in ([search.query] if search.alone else [search.query, search.gallery])
        for part in x.split(WIDTH)
    ]
    return max(longest) ** 2 < torch.finfo(search.query.dtype).max / 2


def _by_gallery_blocks(search: Search) -> Iterator[tuple[Tensor, Ranks]]:
    """(positions [b], ranks) for a gallery that is too large for whole rows of similarities, or for memory.

    A block of queries is compared with its positives first, which gives the levels, then with the blocks of the
    gallery, as they lie in memory or in a mapped file, with the positives left out.
    """
    most = max(1, int(search.members.max()))
    step = max(1, min(SIDE, PAIRS // most))
    for queries in torch.arange(len(search.query)).split(step):
        x = search.query[queries]
        row, place = search.positives(queries)
        column = search.order[place]
        positives, at = column.unique(return_inverse=True)
        parts = [search.gallery[part] for part in positives.split(WIDTH)]
        level = torch.cat([x @ _padded(part).T for part in parts], 1)
        ranks = Ranks(level.float(), row, at, search.deepest)
        by_column = column.argsort()
        row, column = row[by_column], column[by_column]
        for start in range(0, len(search.gallery), WIDTH):
            block = search.gallery[start : start + WIDTH]
            s = (x @ _padded(block).T)[:, : len(block)]
            first, last = torch.searchsorted(column, torch.tensor([start, start + WIDTH])).tolist()
            s[row[first:last], column[first:last] - start] = -torch.inf
            if search.alone:
                within = (queries >= start) & (queries < start + WIDTH)
                s[within.nonzero()[:, 0], queries[within] - start] = -torch.inf
            ranks.count(s.float())
        yield queries, ranks


def _padded(rows: Tensor) -> Tensor:
    """Rows [n, D] filled up to [WIDTH, D] with zeros: how a product is rounded may depend on its shape."""
    missing = WIDTH - len(rows)
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def _by_block_pairs(search: Search) -> Iterator[tuple[Tensor, Ranks]]:
    """(positions [b], ranks) for blocks of whole classes; the product of two blocks serves both.

    The positives of a block lie within it, so its own product comes first and gives the levels. All products
    have one shape, rows of zeros filling the last: how a product is rounded may depend on the shape, and equal
    vectors must have equal similarities.
    """
    bounds = _class_bounds(search)
    side = -(-max(end - start for start, end in pairwise(bounds)) // 64) * 64
    blocks = [search.order[start:end] for start, end in pairwise(bounds)]
    # A copy, class by class: gathering rows for each product would cost a tenth of it.
    x = search.query.new_zeros(len(blocks), side, search.query.shape[1])
    for rows, block in zip(x, blocks, strict=True):
        rows[: len(block)] = search.query[block]

    # Fresh memory for every product would cost as much as counting.
    product, every = x.new_empty(side, side), []
    for start, block, rows in zip(bounds, blocks, x, strict=False):
        s = torch.mm(rows, rows.T, out=product)[: len(block), : len(block)].float()
        s.diagonal().fill_(-torch.inf)
        row, place = search.positives(block)
        ranks = Ranks(s, row, place - start, search.deepest)
        ranks.count(s)
        every.append(ranks)
    for (i, one), (j, other) in combinations(enumerate(blocks), 2):
        s = torch.mm(x[i], x[j].T, out=product)[: len(one), : len(other)].float()
        every[i].count(s)
        every[j].count(s, axis=1)
    yield from zip(blocks, every, strict=True)


def _class_bounds(search: Search) -> list[int]:
    """Where to cut `order` into nearly equal parts of about `SIDE` without cutting a class."""
    n = len(search.order)
    starts = torch.cat([search.first.unique(), torch.tensor([n])])
    parts = -(-n // SIDE)
    targets = torch.arange(parts + 1) * n // parts
    bounds: list[int] = starts[torch.searchsorted(starts, targets)].unique().tolist()
    return bounds
