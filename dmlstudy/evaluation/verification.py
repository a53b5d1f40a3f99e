"""Verification: are two images of the same class? Pair similarities, their histograms, and AUROC."""

from collections.abc import Callable

import torch
from torch import Tensor

BINS = 2**16
BLOCK = 2**24


def pair_histograms(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    similarity: Callable[[Tensor, Tensor], Tensor],
    bins: int = BINS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of same-class and of different-class pairs, counted.

    Args:
        query: [Q, D]; pairs are query x gallery, or query x query without self pairs.

    Returns:
        edges [bins + 1], positives [bins], negatives [bins].
    """
    alone = gallery is None
    gallery = query if gallery is None else gallery
    gallery_labels = query_labels if gallery_labels is None else gallery_labels
    step = max(1, BLOCK // len(gallery))
    starts = range(0, len(query), step)
    blocks = [similarity(query[i : i + step], gallery).float() for i in starts[:1]]
    # The range must be known before counting: one more pass of products when there is more than one block.
    low, high = torch.inf, -torch.inf
    for i in starts:
        s = blocks[0] if i == 0 else similarity(query[i : i + step], gallery).float()
        low, high = min(low, float(s.min())), max(high, float(s.max()))
    high = max(high, low + 1e-6)
    counts = torch.zeros(2, bins, dtype=torch.long)
    for i in starts:
        s = blocks[0] if i == 0 else similarity(query[i : i + step], gallery).float()
        same = query_labels[i : i + step, None] == gallery_labels[None, :]
        place = ((s - low) * (bins / (high - low))).long().clamp_(0, bins - 1)
        place = place + bins * same
        if alone:
            row = torch.arange(len(s))
            counts.view(-1).scatter_add_(
                0, place[row, i + row], torch.full((len(s),), -1, dtype=torch.long)
            )
        counts.view(-1).add_(torch.bincount(place.flatten(), minlength=2 * bins))
    return torch.linspace(low, high, bins + 1), counts[1], counts[0]


def auroc(positives: Tensor, negatives: Tensor) -> float:
    """Percent: chance that a positive pair is more similar than a negative pair; ties count half.

    From histograms, so pairs in the same of `BINS` bins count as tied; that moves the value by less than
    half the sum over bins of (share of positives) x (share of negatives), far below 0.01 points.

    >>> auroc(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0]))
    87.5
    """
    p, n = positives.double(), negatives.double()
    if p.sum() == 0 or n.sum() == 0:
        return float("nan")
    below = n.cumsum(0) - n
    return float(100 * (p * (below + n / 2)).sum() / (p.sum() * n.sum()))
