"""Triplet losses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.losses.rows import distance, pair_loss
from dmlstudy.ranges import NonNegative


@pair_loss(distance)
def triplet_batch_hard(
    d: Tensor, positive: Tensor, negative: Tensor, *, margin: NonNegative | None = None
) -> tuple[Tensor, int]:
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
    violation = _hardest(d, positive, negative)
    loss = F.softplus(violation) if margin is None else (margin + violation).relu()
    return (loss * (positive.any(1) & negative.any(1))).sum(), len(d)


@pair_loss(distance)
def triplet_all(
    d: Tensor, positive: Tensor, negative: Tensor, *, margin: NonNegative = 0.2
) -> tuple[Tensor, Tensor]:
    """Triplet loss over all triplets of the batch, exactly.

        L = mean of d_ap - d_an + m over the triplets where it is positive

    No [B, B, B] tensor: with an anchor's negatives sorted, those that violate (a, p) are its first n_ap, and
    their sum is n_ap (d_ap + m) minus a cumulative sum.

    Args:
        embeddings: [B, D].
        labels: [B].
        margin: m.

    Returns:
        Scalar; 0 with zero gradient if no triplet violates, or the batch has none.

    >>> x = torch.tensor([[0.], [4.], [1.]])
    >>> round(float(triplet_all(x, torch.tensor([0, 0, 1]), margin=0.5)), 6)  # (4 - 1 + .5 + 4 - 3 + .5) / 2
    2.5
    """
    ascending, order = d.detach().masked_fill(~negative, torch.inf).sort(1)
    nearest_sum = F.pad(d.masked_fill(~negative, 0).gather(1, order).cumsum(1), (1, 0))
    reach = d + margin
    violators = _smaller(ascending, reach.detach(), positive)
    total = (violators * reach - nearest_sum.gather(1, violators)).sum()
    return total, violators.sum()


def _smaller(ascending: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """How many entries of its ascending row each masked value exceeds, [R, B]; 0 for the others."""
    few = int(mask.sum(1).max())  # positives of an anchor: only they are searched for
    wanted, at = values.masked_fill(~mask, -torch.inf).topk(few, dim=1)
    return torch.zeros_like(mask, dtype=torch.long).scatter_(
        1, at, torch.searchsorted(ascending, wanted)
    )


def _hardest(d: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Distance to the farthest positive less that to the nearest negative, [R]; -inf without a negative."""
    farthest_positive = d.masked_fill(~positive, 0).amax(1)
    # Infinity, because amin shares its gradient among ties: a finite filling that some negative equals
    # would take part of it. A row without negatives gives l(-inf) = 0, and so does its gradient.
    nearest_negative = d.masked_fill(~negative, torch.inf).amin(1)
    return farthest_positive - nearest_negative
