"""Multi-similarity loss."""

from torch import Tensor

from dmlstudy.losses.log_sum_exp import log1p_sum_exp
from dmlstudy.losses.rows import pair_loss, similarity
from dmlstudy.ranges import Positive, Real


@pair_loss(similarity)
def multi_similarity(
    s: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    alpha: Positive = 2.0,
    beta: Positive = 40.0,
    lam: Real = 0.5,
) -> tuple[Tensor, int]:
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

    Returns:
        Scalar. An anchor with an empty P_i or N_i contributes 0 but still counts in B; a batch of one class,
        or without positives, gives 0 with zero gradient.

    >>> import torch
    >>> from dmlstudy.miners import multi_similarity_miner
    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [round(float(multi_similarity(x, y)), 6) for y in (easy, hard)]
    [0.268971, 0.956635]
    >>> [round(float(multi_similarity(x, y, pairs=multi_similarity_miner)), 6) for y in (easy, hard)]
    [0.0, 0.956635]
    """
    pull = log1p_sum_exp(-alpha * (s - lam), positive) / alpha
    push = log1p_sum_exp(beta * (s - lam), negative) / beta
    complete = (positive.sum(1) > 0) & (negative.sum(1) > 0)  # any() takes three times as long
    return ((pull + push) * complete).sum(), len(s)
