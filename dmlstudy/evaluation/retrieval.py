"""Exact retrieval: R@K, R-precision and MAP@R, with exact ties accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmlstudy.errors import StudyError
from dmlstudy.evaluation.search import Search, Similarity, inner_product, walk


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
    if not alone:
        _check("gallery", gallery, gallery_labels)
    classes, order = gallery_labels.sort(stable=True)
    wanted = query_labels.contiguous()
    first = torch.searchsorted(classes, wanted)
    members = torch.searchsorted(classes, wanted, right=True) - first
    search = Search(query, gallery, similarity, alone, max(ks), order, first, members)
    parts = []
    for rows, ranks in walk(search):
        if ranks.scored.any():
            parts.append((rows[ranks.scored], *ranks.hit_rates(ks), *ranks.precisions()))
    if not parts:
        raise StudyError(
            "No query has another image of its class to find: every test class has one image."
        )
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    order = columns[0].argsort()
    rows, expected, optimistic, pessimistic, precision, mean_precision = (
        column[order] for column in columns
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


def _check(name: str, rows: Tensor, labels: Tensor) -> None:
    if not len(rows) or len(rows) != len(labels):
        raise StudyError(
            f"The {name} has {len(rows)} embeddings and {len(labels)} labels: it needs at least one embedding, "
            "and one label for each."
        )
    # One pass and no temporary. A sum of finite rows may overflow, so it only acquits.
    if rows.sum().isfinite():
        return
    broken = int((~rows.isfinite()).any(1).sum())
    if broken:
        raise StudyError(
            f"{broken} of {len(rows)} {name} embeddings are not finite: lower the learning rate."
        )
