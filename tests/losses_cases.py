"""One case per loss: ours, the loop over single pairs, and what the tests must know of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from losses_naive import (
    CENTRES,
    PROXIES,
    Loss,
    boundaries,
    euclid,
    margin_pairs,
    ms_pairs,
    naive_batch_hard,
    naive_contrastive,
    naive_density,
    naive_fastap,
    naive_hadsell,
    naive_margin,
    naive_mined_triplet,
    naive_ms,
    naive_npair,
    naive_ranked_list,
    naive_signature_softmax,
    naive_soft_triple,
    naive_tree_pairs,
    naive_triplet_all,
    naive_upper_bound,
    noise,
    square,
)
from torch import Tensor

from dmlstudy import losses, miners


class Case(NamedTuple):
    ours: Loss
    naive: Loss
    unit: bool = False  # expects unit rows
    zero: str = "never"  # what is missing when it must be zero: a triplet, a negative, or any pair
    proxies: bool = False  # labels are numbers of classes, not just equal or different
    ordered: bool = False  # the order of the batch matters
    own_gradient: bool = True  # the gradient is that of the value


def _proxied(loss: Callable[..., Tensor], name: str, w: Tensor = PROXIES, **settings) -> Loss:
    return lambda x, y: loss(x, y, **{name: w.to(x)}, **settings)


squared_triplet = losses.triplet_all.on(losses.squared)
squared_contrastive = losses.snr_contrastive.on(losses.squared)
hinge = partial(losses.triplet_batch_hard, margin=0.5)
mined_ms = partial(losses.multi_similarity, pairs=miners.multi_similarity_miner)
mined_margin = partial(losses.margin, pairs=miners.nearest_negatives)
datl, daql = losses.density_aware_triplet, losses.density_aware_quadruplet


def margin_per_anchor(x: Tensor, y: Tensor) -> Tensor:
    # With mined pairs: over all pairs, beta_i and beta_j would change places unseen.
    return losses.margin(x, y, beta=boundaries(y), pairs=miners.nearest_negatives)


PAIR_CASES = {
    "batch hard": Case(losses.triplet_batch_hard, naive_batch_hard, zero="triplet"),
    "batch hard, hinge": Case(hinge, partial(naive_batch_hard, margin=0.5), zero="triplet"),
    "mined triplet": Case(losses.mined_triplet, naive_mined_triplet, zero="triplet"),
    "all triplets": Case(
        losses.triplet_all, partial(naive_triplet_all, metric=euclid), zero="triplet"
    ),
    "all triplets, squared": Case(
        squared_triplet, partial(naive_triplet_all, metric=square), zero="triplet"
    ),
    "SNR triplet": Case(
        losses.snr_triplet, partial(naive_triplet_all, metric=noise), zero="triplet"
    ),
    "SNR contrastive": Case(losses.snr_contrastive, partial(naive_contrastive, metric=noise)),
    "contrastive, squared": Case(squared_contrastive, partial(naive_contrastive, metric=square)),
    "contrastive": Case(losses.contrastive, naive_hadsell, True),
    "contrastive, one mean": Case(
        partial(losses.contrastive, split=False), partial(naive_hadsell, one_mean=True), True
    ),
    "multi-similarity": Case(losses.multi_similarity, naive_ms, True, "triplet"),
    "multi-similarity, mined": Case(
        mined_ms, lambda x, y: naive_ms(x, y, ms_pairs(x, y)), True, "triplet"
    ),
    "ranked list": Case(losses.ranked_list, naive_ranked_list, True, "pair", own_gradient=False),
    "ranked list, T = 0": Case(
        partial(losses.ranked_list, temperature=0),
        partial(naive_ranked_list, temperature=0),
        True,
        "pair",
    ),
    "margin": Case(losses.margin, naive_margin, True, "pair"),
    "margin, mined": Case(
        mined_margin, lambda x, y: naive_margin(x, y, margin_pairs(x, y)), True, "pair"
    ),
    "margin, per anchor": Case(
        margin_per_anchor,
        lambda x, y: naive_margin(x, y, margin_pairs(x, y), boundaries(y)),
        True,
        "pair",
        ordered=True,
    ),
    "FastAP": Case(losses.fastap, naive_fastap, True, "triplet"),
    "FastAP, 3 bins": Case(
        partial(losses.fastap, bins=3), partial(naive_fastap, bins=3), True, "triplet"
    ),
    "FastAP, 1 bin": Case(
        partial(losses.fastap, bins=1), partial(naive_fastap, bins=1), True, "triplet"
    ),
}
OTHER_CASES = {
    "N-pair": Case(partial(losses.npair, l2=0.02), naive_npair, zero="triplet", ordered=True),
    "tree pairs": Case(partial(losses.tree_pairs, scale=5.0), naive_tree_pairs, zero="triplet"),
    "soft triple": Case(
        _proxied(losses.soft_triple, "centres", CENTRES), naive_soft_triple, True, proxies=True
    ),
    "signature softmax": Case(
        _proxied(losses.signature_softmax, "signatures"),
        naive_signature_softmax,
        True,
        proxies=True,
    ),
    "upper bound": Case(_proxied(losses.upper_bound, "centroids"), naive_upper_bound, proxies=True),
    "DATL": Case(
        _proxied(datl, "centres"),
        partial(naive_density, quadruplet=False, margin=0.2),
        zero="negative",
        proxies=True,
    ),
    "DAQL": Case(
        _proxied(daql, "centres", margin2=1.0),
        partial(naive_density, quadruplet=True, margin=1.0),
        zero="negative",
        proxies=True,
    ),
}
CASES = PAIR_CASES | OTHER_CASES
