"""Triplet losses."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.geometry import count, pair_masks, pairwise_distance
from dmlstudy.losses.pairwise import is_large, of_squared_distances


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
    if is_large(embeddings):
        return of_squared_distances(embeddings, partial(_by_hand, labels=labels, margin=margin))
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


def _by_hand(squared: Tensor, labels: Tensor, margin: float | None) -> tuple[Tensor, Tensor]:
    """The loss and its derivative by every squared distance; overwrites them."""
    same = labels[:, None] == labels
    # Fillings that cannot be the extreme of a row with a gradient: an anchor is at 0 from itself.
    positives, negatives = squared.masked_fill(~same, 0), squared.masked_fill_(same, torch.inf)
    farthest, nearest = positives.amax(1, keepdim=True), negatives.amin(1, keepdim=True)
    valid = (count(same)[:, None] > 1) & (nearest < torch.inf)
    violation = farthest.sqrt() - nearest.sqrt()
    if margin is None:
        loss, slope = F.softplus(violation), violation.sigmoid()
    else:
        loss, slope = (margin + violation).relu(), (margin + violation > 0).to(squared.dtype)
    slope = slope * valid / len(labels)
    pull = _share_among_ties_(positives, farthest).mul_(slope)
    push = _share_among_ties_(negatives, nearest).mul_(slope)
    return (loss * valid).sum() / len(labels), pull.sub_(push)


def _share_among_ties_(squared: Tensor, extreme: Tensor) -> Tensor:
    """Derivative of the root of each row's extreme, [B, 1], in place of the row; 0 where the extreme is 0."""
    ties = squared.eq_(extreme)
    share = 1 / (2 * extreme.sqrt() * ties.sum(1, keepdim=True))
    return ties.mul_(share.masked_fill(extreme == 0, 0))
