"""Losses: pure functions of (embeddings, labels), the formula and nothing else; one file per family."""

from dmlstudy.losses.margin import margin
from dmlstudy.losses.multi_similarity import multi_similarity
from dmlstudy.losses.ranked_list import ranked_list
from dmlstudy.losses.soft_triple import soft_triple, soft_triple_regulariser
from dmlstudy.losses.triplet import triplet_batch_hard

__all__ = [
    "margin",
    "multi_similarity",
    "ranked_list",
    "soft_triple",
    "soft_triple_regulariser",
    "triplet_batch_hard",
]
