"""One case per loss: ours, the loop over single pairs, and what the tests must know of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import losses_naive as naive
from losses_naive import CENTRES, PROXIES, Loss, boundaries, euclid, margin_pairs, noise, square
from torch import Tensor

from dmlstudy import losses, miners


class Case(NamedTuple):
    ours: Loss
    naive: Loss
    unit: bool = False  # expects unit rows
    zero: str = "never"  # what is missing when it must be zero: a triplet, a negative, or any pair
    proxies: bool = False  # labels are numbers of classes, not just equal or different


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
    "batch hard": Case(losses.triplet_batch_hard, naive.batch_hard, zero="triplet"),
    "batch hard, hinge": Case(hinge, partial(naive.batch_hard, margin=0.5), zero="triplet"),
    "all triplets": Case(
        losses.triplet_all, partial(naive.triplet_all, metric=euclid), zero="triplet"
    ),
    "all triplets, squared": Case(
        squared_triplet, partial(naive.triplet_all, metric=square), zero="triplet"
    ),
    "triplet without margin": Case(
        losses.triplet_without_margin, naive.triplet_without_margin, zero="triplet"
    ),
    "SNR triplet": Case(
        losses.snr_triplet, partial(naive.triplet_all, metric=noise), zero="triplet"
    ),
    "SNR contrastive": Case(losses.snr_contrastive, partial(naive.contrastive, metric=noise)),
    "contrastive, squared": Case(squared_contrastive, partial(naive.contrastive, metric=square)),
    "contrastive": Case(losses.contrastive, naive.hadsell, True),
    "contrastive, one mean": Case(
        partial(losses.contrastive, split=False), partial(naive.hadsell, one_mean=True), True
    ),
    "multi-similarity": Case(losses.multi_similarity, naive.ms, True, "triplet"),
    "multi-similarity, mined": Case(
        mined_ms, lambda x, y: naive.ms(x, y, naive.ms_pairs(x, y)), True, "triplet"
    ),
    "ranked list": Case(losses.ranked_list, naive.ranked_list, True, "pair"),
    "ranked list, T = 0": Case(
        partial(losses.ranked_list, temperature=0),
        partial(naive.ranked_list, temperature=0),
        True,
        "pair",
    ),
    "margin": Case(losses.margin, naive.margin, True, "pair"),
    "margin, mined": Case(
        mined_margin, lambda x, y: naive.margin(x, y, margin_pairs(x, y)), True, "pair"
    ),
    "margin, per anchor": Case(
        margin_per_anchor,
        lambda x, y: naive.margin(x, y, margin_pairs(x, y), boundaries(y)),
        True,
        "pair",
    ),
    "FastAP": Case(losses.fastap, naive.fastap, True, "triplet"),
    "FastAP, 3 bins": Case(
        partial(losses.fastap, bins=3), partial(naive.fastap, bins=3), True, "triplet"
    ),
    "FastAP, 1 bin": Case(
        partial(losses.fastap, bins=1), partial(naive.fastap, bins=1), True, "triplet"
    ),
}
OTHER_CASES = {
    "N-pair": Case(partial(losses.npair, l2=0.02), naive.npair, zero="triplet"),
    "tree pairs": Case(partial(losses.tree_pairs, scale=5.0), naive.tree_pairs, zero="triplet"),
    "soft triple": Case(
        _proxied(losses.soft_triple, "centres", CENTRES), naive.soft_triple, True, proxies=True
    ),
    "signature softmax": Case(
        _proxied(losses.signature_softmax, "signatures"),
        naive.signature_softmax,
        True,
        proxies=True,
    ),
    "upper bound": Case(_proxied(losses.upper_bound, "centroids"), naive.upper_bound, proxies=True),
    "DATL": Case(
        _proxied(datl, "centres"),
        partial(naive.density, quadruplet=False, margin=0.2, metric=euclid),
        zero="negative",
        proxies=True,
    ),
    "DATL, squared": Case(
        _proxied(datl, "centres", squared=True),
        partial(naive.density, quadruplet=False, margin=0.2),
        zero="negative",
        proxies=True,
    ),
    "DAQL": Case(
        _proxied(daql, "centres", margin2=1.0),
        partial(naive.density, quadruplet=True, margin=1.0),
        zero="negative",
        proxies=True,
    ),
}
CASES = PAIR_CASES | OTHER_CASES
