"""Evaluation: embeddings and labels in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmlstudy.evaluation.arguments import Labels, Rows, as_tensors
from dmlstudy.evaluation.clustering import nmi
from dmlstudy.evaluation.retrieval import JUDGED, Retrieval, retrieve
from dmlstudy.evaluation.search import Similarity, inner_product, neighbours
from dmlstudy.evaluation.spectrum import (
    alignment,
    density,
    mean_cosine,
    relative_spread,
    spectral_decay,
    uniformity,
)
from dmlstudy.evaluation.uncertainty import t_interval
from dmlstudy.evaluation.verification import auroc, ordered_pairs, pair_histograms

__all__ = [
    "JUDGED",
    "Evaluation",
    "Retrieval",
    "auroc",
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
        metrics: R@K, R-precision, MAP@R, NMI, AUROC in percent; the shape of the space: spectrum to relative spread.
        retrieval: the per-query scores behind them.
        tie_gap: R@1 if all ties went the query's way minus R@1 if all went against it, in points.
    """

    metrics: dict[str, float]
    retrieval: Retrieval
    tie_gap: float


def evaluate(
    query: Rows,
    query_labels: Labels,
    gallery: Rows | None = None,
    gallery_labels: Labels | None = None,
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
        query_labels: whole numbers or texts [Q].
        gallery: [G, D], or None if the queries search each other (without themselves).
        gallery_labels: [G], as those of the queries.
        similarity: of queries [Q, D] and gallery [G, D], [Q, G]; larger is nearer.
        ks: the K of R@K.
        nmi_seeds: k-means runs that NMI is averaged over.

    Raises:
        StudyError: as `retrieve`.
    """
    sets = as_tensors(query, query_labels, gallery, gallery_labels)
    retrieval = retrieve(*sets, similarity=similarity, ks=ks)
    pairs = ordered_pairs(*sets, similarity=similarity)
    x, y, *_ = sets
    metrics = {f"R@{k}": _percent(hits) for k, hits in retrieval.hits.items()}
    metrics |= {
        "R-precision": _percent(retrieval.r_precision),
        "MAP@R": _percent(retrieval.map_at_r),
        "NMI": nmi(x, y, seeds=nmi_seeds),
        "AUROC": auroc(*pairs),
        "spectrum": spectral_decay(x),
        "density": density(x, y),
        "alignment": alignment(x, y),
        "uniformity": uniformity(x),
        "mean cosine": mean_cosine(x),
        "relative spread": relative_spread(x),
    }
    first = min(ks)
    gap = _percent(retrieval.optimistic[first]) - _percent(retrieval.pessimistic[first])
    return Evaluation(metrics, retrieval, gap)


def _percent(scores: Tensor) -> float:
    return float(100 * scores.to(torch.float64).mean())
