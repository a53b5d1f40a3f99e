"""Exact retrieval: R@K, R-precision and MAP@R, with exact ties accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmlstudy.errors import StudyError
from dmlstudy.evaluation.arguments import Labels, Rows, as_tensors
from dmlstudy.evaluation.search import Search, Similarity, inner_product, walk

JUDGED = "R@1", "MAP@R"  # what methods are compared by


@dataclass(frozen=True)
class Retrieval:
    """Per-query scores in 0..1; queries without a positive are left out.

    R@K is the hit rate: whether at least one of the K nearest is of the query's class. It is not the
    recall of information retrieval. All scores are expectations under a random order of exactly tied items.

    Attributes:
        labels: [Q] classes of the scored queries, as numbers.
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

    @property
    def judged(self) -> dict[str, Tensor]:
        """The scores that methods are compared by: name -> [Q]."""
        return dict(zip(JUDGED, (self.hits[1], self.map_at_r), strict=True))


def retrieve(
    query: Rows,
    query_labels: Labels,
    gallery: Rows | None = None,
    gallery_labels: Labels | None = None,
    *,
    similarity: Similarity = inner_product,
    ks: Sequence[int] = (1, 2, 4, 8),
) -> Retrieval:
    """Rank the gallery for every query and score the ranking.

    Args:
        query: [Q, D].
        query_labels: whole numbers or texts [Q].
        gallery: [G, D]; the queries search each other, each without itself, when left out.
        gallery_labels: [G], as those of the queries.
        similarity: of queries [Q, D] and gallery [G, D], [Q, G]; larger is nearer.
        ks: the K of R@K.

    Raises:
        StudyError: an embedding or a similarity is not finite, rows and labels do not match, or no query
            has a positive.
    """
    x, y, other, other_labels = as_tensors(query, query_labels, gallery, gallery_labels)
    classes, order = (y if other_labels is None else other_labels).sort(stable=True)
    first = torch.searchsorted(classes, y)
    members = torch.searchsorted(classes, y, right=True) - first
    alone = other is None
    searched = x if other is None else other
    search = Search(x, searched, similarity, alone, max(ks), order, first, members)
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
        labels=y[rows],
        queries=rows,
        hits={k: expected[:, i] for i, k in enumerate(ks)},
        optimistic={k: optimistic[:, i] for i, k in enumerate(ks)},
        pessimistic={k: pessimistic[:, i] for i, k in enumerate(ks)},
        r_precision=precision,
        map_at_r=mean_precision,
        excluded=len(x) - len(rows),
    )
