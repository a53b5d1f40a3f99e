"""Contrastive loss."""

import torch
from torch import Tensor

from dmlstudy.losses.rows import distance, pair_loss
from dmlstudy.ranges import NonNegative


@pair_loss(distance)
def contrastive(
    d: Tensor, positive: Tensor, negative: Tensor, *, margin: NonNegative = 1.0, split: bool = True
) -> tuple[Tensor, Tensor]:
    """Pull positives together, push negatives beyond a margin.

    Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006:

        L = mean of d_ij^2 over positive pairs + mean of [m - d_ij]_+^2 over negative pairs

    with d the Euclidean distance. The paper has half the sum over all pairs, on raw embeddings.

    Args:
        embeddings: [B, D], expects unit rows.
        labels: [B].
        margin: m, on distances, not squared.
        split: means of positives and of negatives; one mean over all pairs if False.

    Returns:
        Scalar. A kind of pair that does not occur contributes 0; a single image gives 0 with zero gradient.
        Coinciding negatives cost m^2 each, but pass no gradient: a collapsed batch stays collapsed.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [round(float(contrastive(x, y, split=False)), 6) for y in (easy, hard)]
    [0.135191, 0.713554]
    """
    pull = torch.where(positive, d, 0).square().sum()
    push = torch.where(negative, margin - d, 0).relu().square().sum()
    summed, counts = torch.stack([pull, push]), torch.stack([positive.sum(), negative.sum()])
    return (summed, counts) if split else (summed.sum(), counts.sum())
