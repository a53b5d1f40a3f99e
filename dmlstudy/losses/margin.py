"""Margin loss."""

import torch
from torch import Tensor

from dmlstudy.geometry import pair_masks, pairwise_distance


def margin(
    embeddings: Tensor,
    labels: Tensor,
    *,
    beta: float | Tensor = 1.2,
    alpha: float = 0.2,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Bound positive distances below, and negative distances above, a boundary beta with margin alpha.

    Wu, Manmatha, Smola, Krähenbühl, "Sampling Matters in Deep Embedding Learning", ICCV 2017:

        L = (sum_pos [d_ij - beta + alpha]_+  +  sum_neg [beta - d_ij + alpha]_+) / #active terms

    with d the Euclidean distance, not squared.

    Args:
        embeddings: [B, D], expects unit rows.
        labels: [B].
        beta: boundary, a number or one per anchor [B].
        alpha: margin on both sides.
        pairs: (positive, negative), boolean [B, B] from a miner; all pairs when left out.

    Returns:
        Scalar; 0 with zero gradient if no term is active.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [round(float(margin(x, y)), 6) for y in (easy, hard)]
    [0.505573, 0.573818]
    """
    d = pairwise_distance(embeddings)
    positive, negative = pair_masks(labels) if pairs is None else pairs
    boundary = torch.as_tensor(beta, dtype=d.dtype, device=d.device).reshape(-1, 1)
    terms = (d - boundary + alpha).relu() * positive + (boundary - d + alpha).relu() * negative
    return terms.sum() / (terms > 0).sum().clamp_min(1)
