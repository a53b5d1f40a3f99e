"""Triplet losses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.geometry import pair_masks, pairwise_distance


def triplet_batch_hard(
    embeddings: Tensor, labels: Tensor, *, margin: float | None = None
) -> Tensor:
    """Triplet loss on each anchor's farthest positive and nearest negative.

    Hermans, Beyer, Leibe, "In Defense of the Triplet Loss", arXiv 1703.07737, 2017:

        L = 1/B sum_a l(max_p d_ap - min_n d_an),  l(x) = ln(1 + e^x)  or  [m + x]_+

    with d the Euclidean distance, not squared; p runs over the anchor's positives, n over its negatives.

    Args:
        embeddings: [B, D], raw: lengths count.
        labels: [B].
        margin: m of the hinge; None is the soft margin ln(1 + e^x).

    Returns:
        Scalar. Anchors without a positive or without a negative contribute 0; B counts all anchors, so a
        batch of one class, or without positives, gives 0 with zero gradient.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [round(float(triplet_batch_hard(x, y)), 6) for y in (easy, hard)]
    [0.473754, 1.15855]
    >>> [round(float(triplet_batch_hard(x, y, margin=0.5)), 6) for y in (easy, hard)]
    [0.119014, 1.281758]
    """
    d = pairwise_distance(embeddings)
    positive, negative = pair_masks(labels)
    farthest_positive = d.masked_fill(~positive, 0).amax(1)
    # Infinity, because amin shares its gradient among ties: a finite filling that some negative equals
    # would take part of it. A row without negatives gives l(-inf) = 0, and so does its gradient.
    nearest_negative = d.masked_fill(~negative, torch.inf).amin(1)
    violation = farthest_positive - nearest_negative
    loss = F.softplus(violation) if margin is None else (margin + violation).relu()
    valid = positive.any(1) & negative.any(1)
    return (loss * valid).sum() / len(labels)
