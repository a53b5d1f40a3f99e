"""Losses on signal-to-noise distances, `dmlstudy.geometry.snr_distance`, and the regulariser that goes with them."""

import torch
from torch import Tensor

from dmlstudy.losses.rows import pair_loss, snr
from dmlstudy.losses.triplet import triplet_all
from dmlstudy.ranges import NonNegative


@pair_loss(snr)
def snr_contrastive(
    d: Tensor, positive: Tensor, negative: Tensor, *, margin: NonNegative = 1.0
) -> tuple[Tensor, Tensor]:
    """Contrastive loss on SNR distances: positives to 0, negatives beyond the margin.

        L = mean of d_ap over positive pairs + mean of m - d_an over the negative pairs with d_an < m

    The paper sums y d + (1 - y) [m - d]_+; separate means keep a batch's many negatives from drowning its few
    positives (as in pytorch-metric-learning). Pairs are ordered: (i, j) and (j, i) differ.

    Args:
        embeddings: [B, D], raw.
        labels: [B].
        margin: m.

    Returns:
        Scalar. A kind of pair that does not occur contributes 0 with zero gradient.

    >>> h = torch.tensor([[1., -1, 1, -1], [2, -2, 0, 0], [3, 1, -1, -3]])
    >>> round(float(snr_contrastive(h, torch.tensor([0, 0, 1]), margin=3.0)), 6)  # .75 + (.5 + 2.2 + 2) / 3
    2.316667
    """
    violating = negative & (d < margin)
    pull, push = torch.where(positive, d, 0).sum(), torch.where(violating, margin - d, 0).sum()
    return torch.stack([pull, push]), torch.stack([positive.sum(), violating.sum()])


snr_triplet = triplet_all.on(snr)


def zero_mean(embeddings: Tensor) -> Tensor:
    """The paper's regulariser 1/B sum_i |sum_d h_id|, which asks the coordinates of a vector to cancel.

    >>> round(float(zero_mean(torch.tensor([[1., -1, 2], [0, -4, 0]]))), 6)
    3.0
    """
    return embeddings.sum(1).abs().mean()
