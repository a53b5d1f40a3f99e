"""pytorch-metric-learning's losses with our mathematics as far as it has it; a development dependency."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def mined_multi_similarity() -> Loss:
    from pytorch_metric_learning import distances, miners
    from pytorch_metric_learning.losses import MultiSimilarityLoss

    dot = distances.DotProductSimilarity(normalize_embeddings=False)
    loss, miner = (
        MultiSimilarityLoss(2, 40, 0.5, distance=dot),
        miners.MultiSimilarityMiner(0.1, distance=dot),
    )
    return lambda x, y: loss(x, y, miner(x, y))


def multi_similarity() -> Loss:
    from pytorch_metric_learning import distances
    from pytorch_metric_learning.losses import MultiSimilarityLoss

    dot = distances.DotProductSimilarity(normalize_embeddings=False)
    return MultiSimilarityLoss(2, 40, 0.5, distance=dot)


def batch_hard() -> Loss:
    from pytorch_metric_learning import distances, miners
    from pytorch_metric_learning.losses import TripletMarginLoss

    euclid = distances.LpDistance(normalize_embeddings=False)
    miner = miners.BatchHardMiner(distance=euclid)
    loss = TripletMarginLoss(0, smooth_loss=True, distance=euclid)
    return lambda x, y: loss(x, y, miner(x, y))


def ranked_list() -> Loss:
    from pytorch_metric_learning import distances
    from pytorch_metric_learning.losses import RankedListLoss

    euclid = distances.LpDistance(normalize_embeddings=False)
    with warnings.catch_warnings():  # of overflow at temperatures such as the authors' own
        warnings.simplefilter("ignore")
        return RankedListLoss(0.4, 10, 0.5, 1.2, distance=euclid)


def fastap() -> Loss:
    from pytorch_metric_learning.losses import FastAPLoss

    return FastAPLoss(10)


def margin() -> Loss:
    from pytorch_metric_learning import distances
    from pytorch_metric_learning.losses import MarginLoss

    return MarginLoss(0.2, beta=1.2, distance=distances.LpDistance(normalize_embeddings=False))


def mined_margin() -> Loss:
    from pytorch_metric_learning.miners import DistanceWeightedMiner

    loss, miner = margin(), DistanceWeightedMiner()
    return lambda x, y: loss(x, y, miner(x, y))  # type: ignore[call-arg]


def contrastive(distance: str, **options: int) -> Loss:
    from pytorch_metric_learning import distances
    from pytorch_metric_learning.losses import ContrastiveLoss

    own = getattr(distances, distance)(normalize_embeddings=False, **options)
    return ContrastiveLoss(0, 1, distance=own)


def triplet(distance: str, **options: int) -> Loss:
    from pytorch_metric_learning import distances
    from pytorch_metric_learning.losses import TripletMarginLoss

    own = getattr(distances, distance)(normalize_embeddings=False, **options)
    return TripletMarginLoss(0.2, distance=own)


def npair() -> Loss:
    from pytorch_metric_learning import distances
    from pytorch_metric_learning.losses import NPairsLoss

    return NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
