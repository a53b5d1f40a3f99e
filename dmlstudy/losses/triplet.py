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
    return loss.sum(), len(d)


@pair_loss(distance)
def triplet_all(
    d: Tensor, positive: Tensor, negative: Tensor, *, margin: NonNegative = 0.2
) -> tuple[Tensor, Tensor]:
    """Triplet loss over all triplets of the batch, exactly.

        L = mean of d_ap - d_an + m over the triplets where it is positive

    No [B, B, B] tensor: the sum is linear in the distances, each counted as often as its pair is in a violating
    triplet, and that is the place of d_an in the sorted list of the d_ap + m.

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
    most = int(positive.sum(1).max())  # positives of an anchor
    # -1 is below every distance, so that what is no positive is in no violating triplet.
    reach = torch.where(positive, d + margin, -1).topk(most).values.flip(1)
    with torch.no_grad():
        beyond = torch.searchsorted(
            reach, d, right=True
        )  # so many positives do not violate with it
        beyond.masked_fill_(~negative, most)
        push = (most - beyond).to(d.dtype)
        pull = torch.zeros(len(d), most + 1, dtype=torch.long, device=d.device)
        pull = pull.scatter_add_(1, beyond, torch.ones_like(beyond)).cumsum(1)[:, :-1]
    return (pull * reach).sum() - (push * d).sum(), pull.sum()


def _hardest(d: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Distance to the farthest positive less that to the nearest negative, [R]; -inf without one of the two."""
    farthest_positive = torch.where(positive, d, -torch.inf).max(1).values
    nearest_negative = torch.where(negative, d, torch.inf).min(1).values
    return farthest_positive - nearest_negative
