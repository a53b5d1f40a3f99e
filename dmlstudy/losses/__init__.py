"""Losses: the formulas and nothing else, one file per family; every public one is exported here by its name."""

from dmlstudy.losses.contrastive import contrastive
from dmlstudy.losses.damlrrm import minimum_spanning_trees, tree_pairs
from dmlstudy.losses.density_aware import (
    dense_region,
    density_aware_quadruplet,
    density_aware_triplet,
    density_centres,
)
from dmlstudy.losses.fastap import fastap, soft_histogram
from dmlstudy.losses.hdml import (
    exponential_weight,
    interpolate_negatives,
    npair_tuples,
    pair_indices,
)
from dmlstudy.losses.invariant_spreading import instance_log_probabilities, invariant_spreading
from dmlstudy.losses.log_sum_exp import log1p_sum_exp
from dmlstudy.losses.margin import margin
from dmlstudy.losses.multi_similarity import multi_similarity
from dmlstudy.losses.npair import npair
from dmlstudy.losses.product_quantisation import (
    bits_per_image,
    gini,
    joint_central,
    shared_softmax,
    soft_and_hard,
)
from dmlstudy.losses.ranked_list import ranked_list
from dmlstudy.losses.rows import (
    Keys,
    Metric,
    PairLoss,
    active,
    distance,
    mean,
    pair_loss,
    similarity,
    snr,
    squared,
)
from dmlstudy.losses.sche import signature_softmax
from dmlstudy.losses.signal_to_noise import snr_contrastive, snr_triplet, zero_mean
from dmlstudy.losses.soft_triple import soft_triple, soft_triple_regulariser
from dmlstudy.losses.teachers import absolute_distillation, relative_distillation
from dmlstudy.losses.triplet import triplet_all, triplet_batch_hard
from dmlstudy.losses.upper_bound import triplet_without_margin, upper_bound

__all__ = [
    "Keys",
    "Metric",
    "PairLoss",
    "absolute_distillation",
    "active",
    "bits_per_image",
    "contrastive",
    "dense_region",
    "density_aware_quadruplet",
    "density_aware_triplet",
    "density_centres",
    "distance",
    "exponential_weight",
    "fastap",
    "gini",
    "instance_log_probabilities",
    "interpolate_negatives",
    "invariant_spreading",
    "joint_central",
    "log1p_sum_exp",
    "margin",
    "mean",
    "minimum_spanning_trees",
    "multi_similarity",
    "npair",
    "npair_tuples",
    "pair_indices",
    "pair_loss",
    "ranked_list",
    "relative_distillation",
    "shared_softmax",
    "signature_softmax",
    "similarity",
    "snr",
    "snr_contrastive",
    "snr_triplet",
    "soft_and_hard",
    "soft_histogram",
    "soft_triple",
    "soft_triple_regulariser",
    "squared",
    "tree_pairs",
    "triplet_all",
    "triplet_batch_hard",
    "triplet_without_margin",
    "upper_bound",
    "zero_mean",
]
