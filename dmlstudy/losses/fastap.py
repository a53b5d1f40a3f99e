"""FastAP: average precision through a soft histogram of distances."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.geometry import ROWS, count, pair_masks, row_blocks, squared_distance
from dmlstudy.losses.pairwise import is_large, of_squared_distances


def fastap(embeddings: Tensor, labels: Tensor, *, bins: int = 10) -> Tensor:
    """One minus the mean average precision of the batch, each image ranking all others.

    Cakir, He, Xia, Kulis, Sclaroff, "Deep Metric Learning to Rank", CVPR 2019. With h_l(i) the soft number of
    images at distance b_l = 4 l / L from anchor i (`soft_histogram`), h+ of its positives, capitals summed up to l:

        FastAP_i = 1/|P_i| sum_l h+_l H+_l / H_l,    L = 1 - mean of FastAP_i over anchors with a positive

    precision H+/H integrated over recall h+/|P|. All images of a bin tie, so few bins are a coarse ranking;
    a pair between two bin centres is split over both, so even with many this is not quite the average precision.

    Args:
        embeddings: [B, D], expects unit rows; distances are squared, in [0, 4].
        labels: [B].
        bins: the paper's L intervals, so L + 1 bin centres.

    Returns:
        Scalar in [0, 1]. A batch of one class, or without positives, gives 0 with zero gradient.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]], dtype=torch.float64)
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [[round(abs(float(fastap(x, y, bins=n))), 6) for y in (easy, hard)] for n in (2, 4, 10)]
    [[0.296429, 0.625], [0.175, 0.583333], [0.0, 0.583333]]
    """
    if is_large(embeddings):
        return of_squared_distances(embeddings, partial(_by_hand, labels=labels, bins=bins))
    d2 = squared_distance(embeddings)
    positive, negative = pair_masks(labels)
    h_positive = soft_histogram(d2, positive, bins=bins)
    h = soft_histogram(d2, positive | negative, bins=bins)
    return _mean_average_imprecision(h_positive, h, positive.sum(1), negative.any(1))


def _mean_average_imprecision(
    h_positive: Tensor, h: Tensor, positives: Tensor, has_negatives: Tensor
) -> Tensor:
    """The loss from histograms [B, bins + 1] of the positives, and of all other images."""
    H_positive, H = h_positive.cumsum(1), h.cumsum(1)
    precision = H_positive / torch.where(H > 0, H, 1)  # 0/0 is 0
    average_precision = (h_positive * precision).sum(1) / positives.clamp_min(1)
    # Without negatives the precision is 1 whatever the embedding, up to rounding: leave no trace of that.
    counts = (positives > 0) & has_negatives
    return ((1 - average_precision) * counts).sum() / counts.sum().clamp_min(1)


def soft_histogram(squared: Tensor, mask: Tensor, *, bins: int) -> Tensor:
    """How many pairs of each row lie near each bin centre b_l = 4 l / bins, [B, bins + 1].

    A pair counts 1 - |d2 - b| / (4 / bins) in the two bins around it, 1 in all (a triangular kernel).

    Args:
        squared: squared distances in [0, 4], [B, M].
        mask: which pairs count, boolean [B, M].
        bins: number of intervals.

    >>> soft_histogram(torch.tensor([[0., 1., 3.5, 4.]]), torch.ones(1, 4, dtype=torch.bool), bins=4)
    tensor([[1.0000, 1.0000, 0.0000, 0.5000, 1.5000]])
    """
    position = (squared * (bins / 4)).clamp(0, bins)
    lower = position.detach().long().clamp_max(bins - 1)
    upper_share = (position - lower) * mask
    # Two neighbouring bins per pair, instead of a kernel value for each of the [B, M, bins + 1] combinations.
    histogram = squared.new_zeros(len(squared), bins + 1)
    histogram = histogram.scatter_add(1, lower, mask.to(squared.dtype) - upper_share)
    return histogram.scatter_add(1, lower + 1, upper_share)


def _by_hand(squared: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The loss and its derivative by every squared distance; overwrites them.

    A pair moves its count from one bin centre to the next as its distance grows, so its derivative is the
    difference of the two bins' derivatives. The histograms are small: autograd finds those. By blocks of rows, as
    positions in a histogram are int64, and found twice rather than kept.
    """
    same = labels[:, None] == labels
    h = squared.new_empty(len(squared), 2, bins + 1)
    for i, (rows, kind, into) in enumerate(row_blocks(squared, same, h)):
        into.copy_(_histograms(rows, kind, i * ROWS, bins))
    positives = count(same) - 1
    with torch.enable_grad():
        h.requires_grad_()
        has_negatives = positives + 1 < len(labels)
        value = _mean_average_imprecision(h[:, 1], h.sum(1), positives, has_negatives)
        (slope,) = torch.autograd.grad(value, h)
    per_slot = slope.diff(dim=2).mul_(bins / 4).flatten(1)
    for rows, kind, slopes in row_blocks(squared, same, per_slot):
        slot, upper_share = _slots(rows, kind, bins)
        torch.gather(slopes, 1, slot, out=rows)
        rows.masked_fill_(upper_share >= 1, 0)  # beyond the last bin centre: no gradient
    return value.detach(), squared


def _slots(squared: Tensor, same: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The interval of each pair, those of positives after those of negatives, and how far up in it it lies, [R, B]."""
    position = squared * (bins / 4)
    slot = position.long().clamp_max_(bins - 1)
    return slot.add(same, alpha=bins), position.sub_(slot)


def _histograms(squared: Tensor, same: Tensor, start: int, bins: int) -> Tensor:
    """`soft_histogram` of the negatives and of the positives of anchors start, start + 1, ..., [R, 2, bins + 1]."""
    slot, upper_share = _slots(squared, same, bins)
    empty = squared.new_zeros(len(squared), 2 * bins)
    upper = empty.scatter_add(1, slot, upper_share.clamp_max_(1))
    lower_share = upper_share.neg_().add_(1)
    lower_share.diagonal(start).fill_(0)  # an image is not its own neighbour
    lower = empty.scatter_add(1, slot, lower_share)
    return F.pad(lower.unflatten(1, (2, bins)), (0, 1)) + F.pad(
        upper.unflatten(1, (2, bins)), (1, 0)
    )
