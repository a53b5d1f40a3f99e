"""Miners: which pairs of a batch count.

Functions of the block of rows that a pair loss sees: values of its metric, positives and negatives, each [R, B], to
the masks of the pairs that stay; no index lists. `loss(x, y, pairs=partial(miner, epsilon=0.2))` mines in the loss.
"""

import torch
from torch import Tensor

from dmlstudy.ranges import NonNegative, Real


def multi_similarity_miner(
    s: Tensor, positive: Tensor, negative: Tensor, *, epsilon: Real | None = 0.1
) -> tuple[Tensor, Tensor]:
    """Multi-similarity's miner: keep pairs that the anchor's pairs of the other kind come near.

    Wang et al., CVPR 2019. A negative k stays if s_ik + epsilon > min_j s_ij over the positives,
    a positive j stays if s_ij - epsilon < max_k s_ik over the negatives.

    Args:
        s: similarities, [R, B]; rows are anchors.
        positive, negative: boolean [R, B].
        epsilon: slack, in similarity; None keeps all pairs.

    Returns:
        Positive and negative pairs kept, two boolean [R, B]. An anchor without any positive keeps no negative, and
        the other way round.

    >>> from dmlstudy.geometry import pair_masks
    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> [int(mask.sum()) for mask in multi_similarity_miner(x @ x.T, *pair_masks(torch.tensor([0, 0, 1, 1])))]
    [0, 0]
    """
    if epsilon is None:
        return positive, negative
    hardest_positive = torch.where(positive, s, torch.inf).amin(1, keepdim=True)
    hardest_negative = torch.where(negative, s, -torch.inf).amax(1, keepdim=True)
    return (
        positive & (s < hardest_negative + epsilon),
        negative & (s > hardest_positive - epsilon),
    )


def nearest_negatives(
    d: Tensor, positive: Tensor, negative: Tensor, *, cutoff: NonNegative = 0.5
) -> tuple[Tensor, Tensor]:
    """All positives, and for each anchor as many of its nearest negatives at distance >= cutoff.

    The deterministic miner of divide and conquer's code (Sanakoyeu et al., CVPR 2019); it is not
    distance-weighted sampling. Nearer ones than the cutoff are passed over because their gradients are noisy.
    Where too few lie beyond it, an anchor gets fewer; that code fills up with whatever comes next, itself included.

    Args:
        d: Euclidean distances of unit embeddings, [R, B]; rows are anchors.
        positive, negative: boolean [R, B].
        cutoff: smallest distance of a negative.

    Returns:
        Positive and negative pairs, two boolean [R, B].

    >>> from dmlstudy.geometry import pair_masks, pairwise_distance
    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> masks = pair_masks(torch.tensor([0, 0, 1, 1]))
    >>> nearest_negatives(pairwise_distance(x), *masks)[1].nonzero().tolist()
    [[0, 2], [1, 2], [2, 1], [3, 1]]
    """
    far_enough = negative & (d >= cutoff)
    rank = _ranks(d.masked_fill(~far_enough, torch.inf))
    return positive, far_enough & (rank < positive.sum(1, keepdim=True))


def _ranks(values: Tensor) -> Tensor:
    """Place of every entry once its row is sorted, [R, B]; equal ones in the order they stand in."""
    order = values.argsort(dim=1, stable=True)
    places = torch.arange(values.shape[1], device=values.device)
    return torch.empty_like(order).scatter_(1, order, places.expand_as(order))
