"""FastAP: average precision through a soft histogram of distances."""

import torch
from torch import Tensor

from dmlstudy.losses.rows import pair_loss, squared
from dmlstudy.ranges import Count


@pair_loss(squared)
def fastap(
    d2: Tensor, positive: Tensor, negative: Tensor, *, bins: Count = 10
) -> tuple[Tensor, Tensor]:
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
    h_positive = soft_histogram(d2, positive, bins=bins)
    h = soft_histogram(d2, positive | negative, bins=bins)
    H_positive, H = h_positive.cumsum(1), h.cumsum(1)
    precision = H_positive / torch.where(H > 0, H, 1)  # 0/0 is 0
    positives = positive.sum(1)
    average_precision = (h_positive * precision).sum(1) / positives.clamp_min(1)
    # Without negatives the precision is 1 whatever the embedding, up to rounding: leave no trace of that.
    counts = (positives > 0) & negative.any(1)
    return ((1 - average_precision) * counts).sum(), counts.sum()


def soft_histogram(squared: Tensor, mask: Tensor, *, bins: Count) -> Tensor:
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
