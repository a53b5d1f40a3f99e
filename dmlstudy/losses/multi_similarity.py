"""Multi-similarity loss."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.geometry import pair_masks, pairwise_similarity
from dmlstudy.losses.pairwise import is_large, of_similarities


def multi_similarity(
    embeddings: Tensor,
    labels: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 40.0,
    lam: float = 0.5,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Soft log-sum-exp weighting of positive and negative similarities.

    Wang, Han, Huang, Dong, Scott, "Multi-Similarity Loss with General Pair Weighting for Deep Metric
    Learning", CVPR 2019:

        L = 1/B sum_i { 1/alpha log[1 + sum_{j in P_i} exp(-alpha (s_ij - lam))]
                      + 1/beta  log[1 + sum_{k in N_i} exp( beta  (s_ik - lam))] }

    with s the inner product, P_i and N_i the positives and the negatives of anchor i, itself left out by index.

    Args:
        embeddings: [B, D], expects unit rows.
        labels: [B].
        alpha, beta: temperatures of the positive and the negative part.
        lam: similarity threshold, the paper's lambda.
        pairs: (positive, negative), boolean [B, B] from a miner; all pairs when left out.

    Returns:
        Scalar. An anchor with an empty P_i or N_i contributes 0 but still counts in B; a batch of one class,
        or without positives, gives 0 with zero gradient.

    >>> from dmlstudy.miners import relative_similarity
    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [round(float(multi_similarity(x, y)), 6) for y in (easy, hard)]
    [0.268971, 0.956635]
    >>> [round(float(multi_similarity(x, y, pairs=relative_similarity(x, y))), 6) for y in (easy, hard)]
    [0.0, 0.956635]
    """
    positive, negative = pair_masks(labels) if pairs is None else pairs
    if is_large(embeddings):
        by_hand = partial(_by_hand, pairs=(positive, negative), settings=(alpha, beta, lam))
        return of_similarities(embeddings, by_hand)
    s = pairwise_similarity(embeddings) - lam
    loss = _log1p_sum_exp(-alpha * s, positive) / alpha + _log1p_sum_exp(beta * s, negative) / beta
    return (loss * (positive.any(1) & negative.any(1))).sum() / len(labels)


def _log1p_sum_exp(x: Tensor, mask: Tensor) -> Tensor:
    """log(1 + sum_j exp(x_ij)) over the masked entries of each row, [B]; 0 for an empty row."""
    # The 1 is exp(0): a column of zeros beside x, so that logsumexp stays stable and finite.
    return F.pad(x.masked_fill(~mask, -torch.inf), (0, 1)).logsumexp(1)


def _by_hand(
    s: Tensor, pairs: tuple[Tensor, Tensor], settings: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """The loss and its derivative by every similarity; overwrites s."""
    (positive, negative), (alpha, beta, lam) = pairs, settings
    anchors = (positive.any(1) & negative.any(1)).to(s.dtype) / len(s)
    pull, pull_weight = _log1p_sum_exp_(s.sub_(lam).mul(-alpha), positive)
    push, push_weight = _log1p_sum_exp_(s.mul_(beta), negative)
    # The temperatures cancel: each divides its log and is the inner derivative of its exponents.
    weights = push_weight.sub_(pull_weight).mul_(anchors[:, None])
    return anchors @ (pull / alpha + push / beta), weights


def _log1p_sum_exp_(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`_log1p_sum_exp`, [B], and in place of x its derivative: a softmax with a zero beside each row."""
    x.masked_fill_(~mask, -torch.inf)
    top = x.amax(1, keepdim=True).clamp_min_(0)
    total = x.sub_(top).exp_().sum(1, keepdim=True) + (-top).exp()
    return (top + total.log())[:, 0], x.div_(total)
