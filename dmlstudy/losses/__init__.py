"""TEMPORARY SHIM"""
import sys, types
from functools import wraps
import inspect
from dmlstudy.losses.margin import margin as _margin
from dmlstudy.losses.multi_similarity import multi_similarity as _ms
from dmlstudy.losses.ranked_list import ranked_list
from dmlstudy.losses.soft_triple import soft_triple, soft_triple_regulariser
from dmlstudy.losses.triplet import triplet_batch_hard
from dmlstudy.losses.fastap import fastap
from dmlstudy.losses.snr import *
from dmlstudy.losses.snr import snr_contrastive, snr_triplet, snr_distance, zero_mean
from dmlstudy.losses.upper_bound import upper_bound
from dmlstudy.losses.teachers import absolute_teacher as absolute_distillation, relative_teacher as relative_distillation
from dmlstudy.losses.damlrrm import spanning_tree as tree_pairs, minimum_spanning_trees
from dmlstudy.losses.invariant_spreading import invariant_spreading
from dmlstudy.losses.density_aware import density_centres, dense_region, density_aware_triplet, density_aware_quadruplet
from dmlstudy.losses.sche import signature_softmax, mined_triplet, in_hard_classes, one_at_random
from dmlstudy.losses.npair import npair
from dmlstudy.losses.hdml import pull as interpolate_negatives, npair_tuples, pair_indices, fading as exponential_weight
from dmlstudy.losses.product_quantisation import *
from dmlstudy.geometry import pair_masks
def _wrap(fn, geo):
    @wraps(fn)
    def f(x, y, *, pairs=None, **k):
        if callable(pairs):
            pairs = pairs(geo(x.detach()), *pair_masks(y))
        return fn(x, y, pairs=pairs, **k)
    return f
from dmlstudy.geometry import pairwise_similarity, pairwise_distance
multi_similarity=_wrap(_ms, pairwise_similarity); margin=_wrap(_margin, pairwise_distance)
