"""Exact retrieval: R@K, R-precision and MAP@R, with exact ties accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmlstudy.errors import StudyError

Similarity = Callable[[Tensor, Tensor], Tensor]
BLOCK = 2**24  # similarities held at once: 64 MB of float32


def inner_product(queries: Tensor, gallery: Tensor) -> Tensor:
    """Cosine similarity [Q, G] of unit rows."""
    return queries @ gallery.T


@dataclass(frozen=True)
class Retrieval:
    """Per-query scores in 0..1; queries without a positive are left out.

    R@K is the hit rate: whether at least one of the K nearest is of the query's class. It is not the
    recall of information retrieval. All scores are expectations under a random order of exactly tied items.

    Attributes:
        labels: [Q] classes of the scored queries.
        queries: [Q] their positions among all queries.
        hits: K -> [Q] expected R@K.
        optimistic: K -> [Q] R@K if every tie goes the query's way.
        pessimistic: K -> [Q] R@K if every tie goes against it.
        r_precision: [Q].
        map_at_r: [Q].
        excluded: number of queries without a positive in the gallery.
    """

    labels: Tensor
    queries: Tensor
    hits: dict[int, Tensor]
    optimistic: dict[int, Tensor]
    pessimistic: dict[int, Tensor]
    r_precision: Tensor
    map_at_r: Tensor
    excluded: int


def retrieve(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    similarity: Similarity = inner_product,
    ks: Sequence[int] = (1, 2, 4, 8),
) -> Retrieval:
    """Rank the gallery for every query and score the ranking.

    Args:
        query: [Q, D].
        query_labels: int [Q].
        gallery: [G, D]; the queries search each other, each without itself, when left out.
        gallery_labels: int [G].
        similarity: larger is nearer.
        ks: the K of R@K.

    Raises:
        StudyError: an embedding or a similarity is not finite, rows and labels do not match, or no query
            has a positive.
    """
    alone = gallery is None
    if alone != (gallery_labels is None):
        raise StudyError("A gallery and its labels go together: give both or neither.")
    gallery = query if gallery is None else gallery
    gallery_labels = query_labels if gallery_labels is None else gallery_labels
    _check("query", query, query_labels)
    _check("gallery", gallery, gallery_labels)
    parts = []
    for start, s, same in _blocks(query, query_labels, gallery, gallery_labels, similarity, alone):
        positives = same.sum(1)
        kept = positives > 0
        if not kept.any():
            continue
        s, same, positives = s[kept], same[kept], positives[kept]
        hits = _hit_rates(s, same, ks)
        precision, mean_precision = _precisions(s, same, positives)
        rows = start + kept.nonzero()[:, 0]
        parts.append((rows, *hits, precision, mean_precision))
    if not parts:
        raise StudyError(
            "No query has another image of its class to find: every test class has one image."
        )
    rows, expected, optimistic, pessimistic, precision, mean_precision = (
        torch.cat(column) for column in zip(*parts, strict=True)
    )
    return Retrieval(
        labels=query_labels[rows],
        queries=rows,
        hits={k: expected[:, i] for i, k in enumerate(ks)},
        optimistic={k: optimistic[:, i] for i, k in enumerate(ks)},
        pessimistic={k: pessimistic[:, i] for i, k in enumerate(ks)},
        r_precision=precision,
        map_at_r=mean_precision,
        excluded=len(query) - len(rows),
    )


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
    unlabelled = torch.zeros(len(query), dtype=torch.long)
    other = query if gallery is None else gallery
    labels = torch.zeros(len(other), dtype=torch.long)
    blocks = _blocks(query, unlabelled, other, labels, similarity, gallery is None)
    k = min(k, len(other) - (gallery is None))
    values, positions = zip(*(s.topk(k) for _, s, _ in blocks), strict=True)
    return torch.cat(values), torch.cat(positions)


def _check(name: str, rows: Tensor, labels: Tensor) -> None:
    if not len(rows) or len(rows) != len(labels):
        raise StudyError(
            f"The {name} has {len(rows)} embeddings and {len(labels)} labels: it needs at least one embedding, "
            "and one label for each."
        )
    broken = int((~rows.isfinite()).any(1).sum())
    if broken:
        raise StudyError(
            f"{broken} of {len(rows)} {name} embeddings are not finite: lower the learning rate."
        )


def _blocks(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    similarity: Similarity,
    alone: bool,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, similarities [b, G], same class [b, G]) for blocks of queries; self pairs are at -inf."""
    step = max(1, BLOCK // len(gallery))
    for start in range(0, len(query), step):
        s = similarity(query[start : start + step], gallery).float()
        # No comparison with NaN is true, so it would pass for a best positive without any rival.
        if not s.isfinite().all():
            raise StudyError(
                "The ranking similarity is not finite for some pairs: check the method's `similarity`, or lower "
                "the learning rate."
            )
        same = query_labels[start : start + step, None] == gallery_labels[None, :]
        if alone:
            row = torch.arange(len(s))
            s[row, start + row] = -torch.inf
            same[row, start + row] = False
        yield start, s, same


def _hit_rates(s: Tensor, same: Tensor, ks: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Expected, optimistic, pessimistic R@K, each [b, len(ks)]; counting suffices, nothing is sorted.

    With the best positive at s*, `ahead` negatives above it and `n` negatives and `q` positives exactly at
    it, R@K misses if all of the r = K - ahead places left go to the n tied negatives: C(n, r) / C(n + q, r).
    """
    of_positives = s.masked_fill(~same, -torch.inf)
    best = of_positives.amax(1, keepdim=True)
    ahead = _count(s.clone().gt_(best))
    q = _count(of_positives.eq_(best))
    n = _count(s.clone().eq_(best)) - q
    places = torch.tensor(list(ks)) - ahead
    miss = torch.where(places > n, 0.0, _all_negative(n, q, places.clamp_min(0)))
    reached = places > 0
    return (
        torch.where(reached, 1 - miss, 0.0),
        reached.double(),
        (places > n).double(),
    )


def _count(marks: Tensor) -> Tensor:
    """Ones per row, [b, 1]; summing float marks is several times faster than summing booleans."""
    return marks.sum(1, keepdim=True).long()


def _all_negative(n: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """C(n, r) / C(n + q, r): the chance that r draws from n negatives and q positives are all negative."""
    n, q, r = n.double(), q.double(), torch.minimum(r, n).double()
    log = (n + 1).lgamma() - (n - r + 1).lgamma() - (n + q + 1).lgamma() + (n + q - r + 1).lgamma()
    return log.exp()


def _precisions(s: Tensor, same: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Expected R-precision and MAP@R of each query, [b], where R is its number of positives.

    In a tie group of m items, q of them positive, that starts after a items with p positives, place j = 1..m
    holds a positive with chance q/m and then has on average p + 1 + (j - 1)(q - 1)/(m - 1) positives up to it.
    """
    deepest = int(positives.max())
    values, order = s.topk(deepest)
    relevant = same.gather(1, order).double()
    place = torch.arange(deepest).expand_as(order)
    within = place < positives[:, None]

    new_group = torch.ones_like(relevant, dtype=torch.bool)
    new_group[:, 1:] = values[:, 1:] != values[:, :-1]
    # Where each place's tie group starts, how many positives lie before it, and what the group holds.
    a = torch.where(new_group, place, 0).cummax(1).values
    before = relevant.cumsum(1) - relevant
    p = before.gather(1, a)
    group = new_group.cumsum(1) - 1
    m = torch.zeros_like(relevant).scatter_add(1, group, torch.ones_like(relevant))
    q = torch.zeros_like(relevant).scatter_add(1, group, relevant)
    # The group at the boundary may go on beyond the places fetched: count it in the whole row.
    last = values[:, -1:]
    at_last = s.clone().eq_(last)
    end = group[:, -1:]
    m.scatter_(1, end, _count(at_last).double())
    q.scatter_(1, end, _count(at_last.mul_(same)).double())
    m, q = m.gather(1, group), q.gather(1, group)

    j = (place - a).double()
    seen = p + 1 + j * (q - 1) / (m - 1).clamp_min(1)
    chance = q / m * within
    r = positives.double()
    return chance.sum(1) / r, (chance * seen / (place + 1)).sum(1) / r
