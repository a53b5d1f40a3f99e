"""Margin loss."""

from torch import Tensor

from dmlstudy.losses.rows import active, distance, pair_loss
from dmlstudy.ranges import NonNegative, Positive


@pair_loss(distance)
def margin(
    d: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    beta: Positive | Tensor = 1.2,
    alpha: NonNegative = 0.2,
) -> tuple[Tensor, Tensor]:
    """Bound positive distances below, and negative distances above, a boundary beta with margin alpha.

    Wu, Manmatha, Smola, Krähenbühl, "Sampling Matters in Deep Embedding Learning", ICCV 2017:

        L = (sum_pos [d_ij - beta + alpha]_+  +  sum_neg [beta - d_ij + alpha]_+) / #active terms

    with d the Euclidean distance, not squared.

    Args:
        embeddings: [B, D], expects unit rows.
        labels: [B].
        beta: boundary, one number, or one per anchor [B].
        alpha: margin on both sides.

    Returns:
        Scalar; 0 with zero gradient if no term is active.

    >>> import torch
    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [round(float(margin(x, y)), 6) for y in (easy, hard)]
    [0.505573, 0.573818]
    """
    return active((d - beta + alpha).relu() * positive + (beta - d + alpha).relu() * negative)
