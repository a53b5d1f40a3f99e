"""Evaluation: embeddings and labels in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmlstudy.evaluation.clustering import nmi
from dmlstudy.evaluation.retrieval import Retrieval, retrieve
from dmlstudy.evaluation.search import Similarity, inner_product, neighbours
from dmlstudy.evaluation.spectrum import alignment, density, spectral_decay, uniformity
from dmlstudy.evaluation.uncertainty import class_bootstrap, t_interval
from dmlstudy.evaluation.verification import auroc, ordered_pairs, pair_histograms

__all__ = [
    "Evaluation",
    "auroc",
    "class_bootstrap",
    "evaluate",
    "inner_product",
    "neighbours",
    "nmi",
    "ordered_pairs",
    "pair_histograms",
    "retrieve",
    "t_interval",
]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one embedding of a test set.

    Attributes:
        metrics: R@K, R-precision, MAP@R, NMI, AUROC in percent; spectrum, density, alignment, uniformity.
        retrieval: the per-query scores behind them.
        tie_gap: R@1 if all ties went the query's way minus R@1 if all went against it, in points.
    """

    metrics: dict[str, float]
    retrieval: Retrieval
    tie_gap: float


def evaluate(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    similarity: Similarity = inner_product,
    ks: Sequence[int] = (1, 2, 4, 8),
    nmi_seeds: int = 3,
) -> Evaluation:
    """All metrics of the study for one test set.

    Retrieval and verification use `similarity`; clustering and the shape of the space use the query
    embeddings as they are. A metric that the test set leaves undefined is NaN: AUROC and density with a
    single class, density and alignment if no class has two queries.

    Args:
        query: [Q, D].
        query_labels: int [Q].
        gallery: [G, D], or None if the queries search each other (without themselves).
        gallery_labels: int [G].
    """
    found = retrieve(query, query_labels, gallery, gallery_labels, similarity=similarity, ks=ks)
    pairs = ordered_pairs(query, query_labels, gallery, gallery_labels, similarity=similarity)
    metrics = {f"R@{k}": _percent(hits) for k, hits in found.hits.items()}
    metrics |= {
        "R-precision": _percent(found.r_precision),
        "MAP@R": _percent(found.map_at_r),
        "NMI": nmi(query, query_labels, seeds=nmi_seeds),
        "AUROC": auroc(*pairs),
        "spectrum": spectral_decay(query),
        "density": density(query, query_labels),
        "alignment": alignment(query, query_labels),
        "uniformity": uniformity(query),
    }
    first = min(ks)
    gap = _percent(found.optimistic[first]) - _percent(found.pessimistic[first])
    return Evaluation(metrics, found, gap)


def _percent(scores: Tensor) -> float:
    return float(100 * scores.to(torch.float64).mean())
