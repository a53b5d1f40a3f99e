"""Signal-to-noise ratio: a distance relative to the anchor's own variance, and losses on it."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.geometry import count, pair_masks, row_blocks, squared_distance
from dmlstudy.losses.pairwise import (
    PairLoss,
    is_large,
    of_similarities,
    of_squared_distances,
    to_products_,
    to_squared_distances_,
)

# Smallest variance of an anchor's coordinates that is divided by: a constant embedding carries no signal.
LEAST_VARIANCE = 1e-6


def snr_distance(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Noise over signal, 1 / SNR, of every pair with rows of x as anchors, [N, M]; not symmetric.

    Yuan, Deng, Tang, Tang, Chen, "Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric Learning",
    CVPR 2019, with var over the D coordinates of one vector:

        d(x_i, y_j) = var(y_j - x_i) / var(x_i)

    One matrix product: a variance is the mean square of the centred vector, and centring is linear. Adding a
    constant to all coordinates changes nothing, nor does scaling x and y alike; for unit vectors with zero mean
    it is the squared Euclidean distance.

    Args:
        x: anchors, [N, D], raw: lengths count.
        y: [M, D]; x itself when left out.

    >>> h = torch.tensor([[1., -1, 1, -1], [2, -2, 0, 0], [3, 1, -1, -3]])
    >>> snr_distance(h)
    tensor([[0.0000, 1.0000, 4.0000],
            [0.5000, 0.0000, 2.5000],
            [0.8000, 1.0000, 0.0000]])
    """
    x = x - x.mean(1, keepdim=True)
    noise = squared_distance(x, None if y is None else y - y.mean(1, keepdim=True))
    signal = x.square().sum(1, keepdim=True)
    return noise / signal.clamp_min(LEAST_VARIANCE * x.shape[1])


Distance = Callable[[Tensor], Tensor]


def snr_contrastive(
    embeddings: Tensor, labels: Tensor, *, margin: float = 1.0, distance: Distance = snr_distance
) -> Tensor:
    """Contrastive loss on SNR distances: positives to 0, negatives beyond the margin.

        L = mean of d_ap over positive pairs + mean of m - d_an over the negative pairs with d_an < m

    The paper sums y d + (1 - y) [m - d]_+; separate means keep a batch's many negatives from drowning its few
    positives (as in pytorch-metric-learning). Pairs are ordered: (i, j) and (j, i) differ.

    Args:
        embeddings: [B, D], raw.
        labels: [B].
        margin: m.
        distance: of all pairs, [B, D] -> [B, B], rows are anchors.

    Returns:
        Scalar. A kind of pair that does not occur contributes 0 with zero gradient.

    >>> h = torch.tensor([[1., -1, 1, -1], [2, -2, 0, 0], [3, 1, -1, -3]])
    >>> round(float(snr_contrastive(h, torch.tensor([0, 0, 1]), margin=3.0)), 6)  # .75 + (.5 + 2.2 + 2) / 3
    2.316667
    """
    if is_large(embeddings) and distance in BY_HAND:
        by_hand = partial(_contrastive_by_hand, labels=labels, margin=margin)
        return BY_HAND[distance](embeddings, by_hand)
    d = distance(embeddings)
    positive, negative = pair_masks(labels)
    violating = negative & (d < margin)
    return _mean(d, positive) + _mean(margin - d, violating)


def snr_triplet(
    embeddings: Tensor, labels: Tensor, *, margin: float = 0.2, distance: Distance = snr_distance
) -> Tensor:
    """Triplet loss on SNR distances, exact over all triplets of the batch.

        L = mean of d_ap - d_an + m over the triplets where it is positive

    No [B, B, B] tensor: with an anchor's negatives sorted, those that violate (a, p) are its first n_ap, and
    their sum is n_ap (d_ap + m) minus a cumulative sum.

    Args:
        embeddings: [B, D], raw.
        labels: [B].
        margin: m.
        distance: of all pairs, [B, D] -> [B, B], rows are anchors.

    Returns:
        Scalar; 0 with zero gradient if no triplet violates, or the batch has none.

    >>> h = torch.tensor([[1., -1, 1, -1], [2, -2, 0, 0], [3, 1, -1, -3]])
    >>> round(float(snr_triplet(h, torch.tensor([0, 1, 0]), margin=0.3)), 6)  # (4 - 1 + .3 + .8 - 1 + .3) / 2
    1.7
    """
    if is_large(embeddings) and distance in BY_HAND:
        by_hand = partial(_triplet_by_hand, labels=labels, margin=margin)
        return BY_HAND[distance](embeddings, by_hand)
    d = distance(embeddings)
    positive, negative = pair_masks(labels)
    ascending, order = d.detach().masked_fill(~negative, torch.inf).sort(1)
    nearest_sum = F.pad(d.masked_fill(~negative, 0).gather(1, order).cumsum(1), (1, 0))
    reach = d + margin
    violators = torch.searchsorted(ascending, reach.detach()) * positive
    total = (violators * reach - nearest_sum.gather(1, violators)).sum()
    return total / violators.sum().clamp_min(1)


def zero_mean(embeddings: Tensor) -> Tensor:
    """The paper's regulariser 1/B sum_i |sum_d h_id|, which asks the coordinates of a vector to cancel.

    >>> round(float(zero_mean(torch.tensor([[1., -1, 2], [0, -4, 0]]))), 6)
    3.0
    """
    return embeddings.sum(1).abs().mean()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the masked values; 0 if there are none."""
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


def _of_snr_distances(embeddings: Tensor, loss: PairLoss) -> Tensor:
    """The loss of `snr_distance` of all pairs, scalar; `loss` must leave the distances as they are."""

    def of_products(s: Tensor) -> tuple[Tensor, Tensor]:
        raw_signal = s.diagonal()[:, None].clone()
        signal = raw_signal.clamp_min(LEAST_VARIANCE * embeddings.shape[1])
        d = to_squared_distances_(s).div_(signal)
        value, weights = loss(d)
        # d = noise / signal, and the signal is an inner product too: the anchor's with itself.
        by_signal = -torch.einsum("ij,ij->i", weights, d) * (raw_signal == signal)[:, 0]
        weights = to_products_(weights.div_(signal))
        weights.diagonal().add_(by_signal / signal[:, 0])
        return value, weights

    return of_similarities(embeddings - embeddings.mean(1, keepdim=True), of_products)


# Distances whose gradient is known without autograd.
BY_HAND: dict[Distance, Callable[[Tensor, PairLoss], Tensor]] = {
    snr_distance: _of_snr_distances,
    squared_distance: of_squared_distances,
}


def _contrastive_by_hand(d: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """`snr_contrastive` and its derivative by every distance, [B, B]."""
    positive, negative = pair_masks(labels)
    violating = negative & (d < margin)
    positives, violators = (count(mask).sum().to(d.dtype) for mask in (positive, violating))
    weights = torch.where(violating, -1 / violators.clamp_min(1), 0)
    weights.masked_fill_(positive, 1 / positives.clamp_min(1))
    return torch.einsum("ij,ij->i", weights, d).sum() + margin * violators.clamp_max(1), weights


def _triplet_by_hand(d: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """`snr_triplet` and its derivative by every distance, [B, B]: in how many violating triplets it stands."""
    positive, negative = pair_masks(labels)
    weights, violated = torch.empty_like(d), d.new_zeros(())
    for rows, pos, neg, into in row_blocks(d, positive, negative, weights):
        into.copy_(_violations(rows, pos, neg, margin))
        violated += into.clamp_min(0).sum()  # each by its positive
    value = torch.einsum("ij,ij->i", weights, d).sum() + margin * violated
    return value / violated.clamp_min(1), weights.div_(violated.clamp_min(1))


def _violations(d: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Violating triplets of each pair: + that many for a positive, - for a negative, [R, B]."""
    # Positives are few, so that their rows sort, and are searched, several times faster than the negatives'.
    reach, order = (d + margin).masked_fill_(~positive, torch.inf).sort(1)
    # Of a negative: positives with d_ap + m <= d_an.
    satisfied = torch.searchsorted(reach, d, right=True)
    # The positive in place v violates with the negatives that satisfy no more than the v before it.
    counts = d.new_zeros(len(d), d.shape[1] + 1).scatter_add_(1, satisfied, negative.to(d.dtype))
    pull = torch.empty_like(d).scatter_(1, order, counts.cumsum(1)[:, :-1])
    push = positive.sum(1, keepdim=True) - satisfied
    return pull.mul_(positive).sub_(push.mul_(negative))
