"""Miners: which pairs of a batch count. They look at detached embeddings and give masks, no index lists."""

import torch
from torch import Tensor

from dmlstudy.geometry import count, pair_masks, pairwise_distance, pairwise_similarity, row_blocks


@torch.no_grad()
def relative_similarity(
    embeddings: Tensor, labels: Tensor, *, epsilon: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Multi-similarity's miner: keep pairs that the anchor's pairs of the other kind come near.

    Wang et al., CVPR 2019. A negative k stays if s_ik + epsilon > min_j s_ij over the positives,
    a positive j stays if s_ij - epsilon < max_k s_ik over the negatives.

    Args:
        embeddings: [B, D], expects unit rows.
        labels: [B].
        epsilon: slack, in cosine similarity.

    Returns:
        Positive and negative pairs kept, two boolean [B, B]; rows are anchors. An anchor without any
        positive keeps no negative, and the other way round.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> [int(mask.sum()) for mask in relative_similarity(x, torch.tensor([0, 0, 1, 1]))]
    [0, 0]
    """
    s = pairwise_similarity(embeddings)
    positive, negative = pair_masks(labels)
    hardest_positive = s.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    hardest_negative = s.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    return (
        positive & (s - epsilon < hardest_negative),
        negative & (s + epsilon > hardest_positive),
    )


@torch.no_grad()
def closest_negatives(
    embeddings: Tensor, labels: Tensor, *, cutoff: float = 0.5
) -> tuple[Tensor, Tensor]:
    """All positives, and for each anchor as many of its closest negatives at distance >= cutoff.

    The deterministic miner of divide and conquer's code (Sanakoyeu et al., CVPR 2019); it is not
    distance-weighted sampling. Nearer ones than the cutoff are passed over because their gradients are noisy.
    Where too few lie beyond it, an anchor gets fewer; that code fills up with whatever comes next, itself included.

    Args:
        embeddings: [B, D], expects unit rows.
        labels: [B].
        cutoff: smallest Euclidean distance of a negative.

    Returns:
        Positive and negative pairs, two boolean [B, B]; rows are anchors.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> closest_negatives(x, torch.tensor([0, 0, 1, 1]))[1].nonzero().tolist()
    [[0, 2], [1, 2], [2, 1], [3, 1]]
    """
    d = pairwise_distance(embeddings)
    positive, negative = pair_masks(labels)
    negative &= d >= cutoff
    d.masked_fill_(~negative, torch.inf)
    wanted = count(positive)[:, None]
    for rows, n, kept in row_blocks(d, wanted, negative):
        kept &= _ranks(rows) < n
    return positive, negative


def _ranks(values: Tensor) -> Tensor:
    """Place of every entry once its row is sorted, [R, B]; equal ones in the order they stand in."""
    order = values.argsort(dim=1, stable=True)
    places = torch.arange(values.shape[1], device=values.device)
    return torch.empty_like(order).scatter_(1, order, places.expand_as(order))
from dmlstudy.losses.sche import in_hard_classes, one_at_random
def multi_similarity_miner(s, positive, negative, *, epsilon: float|None=0.1):
    """X

    Args:
        epsilon: mining slack; None keeps all pairs.
    """
    if epsilon is None: return positive, negative
    hardest_positive = s.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    hardest_negative = s.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    return (positive & (s - epsilon < hardest_negative), negative & (s + epsilon > hardest_positive))
def nearest_negatives(d, positive, negative, *, cutoff=.5):
    negative = negative & (d >= cutoff)
    d=d.clone().masked_fill_(~negative, torch.inf)
    wanted = count(positive)[:, None]
    for rows, n, kept in row_blocks(d, wanted, negative):
        kept &= _ranks(rows) < n
    return positive, negative
