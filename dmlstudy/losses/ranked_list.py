"""Ranked list loss."""

import torch
from torch import Tensor

from dmlstudy.losses.rows import distance, pair_loss
from dmlstudy.ranges import NonNegative, Positive, Share


@pair_loss(distance)
def ranked_list(
    d: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    alpha: Positive = 1.2,
    margin: NonNegative = 0.4,
    temperature: NonNegative = 10.0,
    lam: Share = 0.5,
) -> tuple[Tensor, int]:
    """Positives inside a ball of radius alpha - m, negatives beyond alpha; only violating pairs count.

    Wang, Hua, Kodirov, Hu, Garnier, Robertson, "Ranked List Loss for Deep Metric Learning", CVPR 2019:

        L_P(i) = mean over {j in P_i : d_ij > alpha - m} of  d_ij - (alpha - m)
        L_N(i) = sum over {j in N_i : d_ij < alpha} of  w_ij (alpha - d_ij),
                 w_i = softmax_j T (alpha - d_ij), constant for the gradient
        L = 1/B sum_i [(1 - lam) L_P(i) + lam L_N(i)]

    with d the Euclidean distance, not squared.

    Args:
        embeddings: [B, D], expects unit rows.
        labels: [B].
        alpha: boundary of negatives.
        margin: m, the gap between the boundaries.
        temperature: T; 0 gives every violating negative the same weight.
        lam: weight of the negative part, the paper's lambda.

    Returns:
        Scalar; 0 with zero gradient if no pair violates its boundary.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [round(float(ranked_list(x, y)), 6) for y in (easy, hard)]
    [0.076393, 0.586433]
    >>> [round(float(ranked_list(x, y, alpha=1.4, margin=0.2)), 6) for y in (easy, hard)]
    [0.126393, 0.486433]
    """
    positive = positive & (d > alpha - margin)
    negative = negative & (d < alpha)

    pulled = positive.sum(1).clamp_min(1)
    loss_positive = ((d - (alpha - margin)) * positive).sum(1) / pulled
    # exp(10 * 1.2) is large: softmax, not exp / sum. A row without violators has weight nowhere.
    logits = (temperature * (alpha - d.detach())).masked_fill(~negative, torch.finfo(d.dtype).min)
    weight = logits.softmax(1) * negative
    loss_negative = (weight * (alpha - d)).sum(1)
    return ((1 - lam) * loss_positive + lam * loss_negative).sum(), len(d)
