"""Verification: are two images of the same class? Pair similarities, their histograms, and AUROC."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dmlstudy.evaluation.search import BLOCK, Similarity

BINS = 2**16
Sets = tuple[Tensor, Tensor, *tuple[Tensor | None, ...]]


@dataclass(frozen=True)
class Pairs:
    """All pairs of a query and a gallery image, or of two queries."""

    similarity: Similarity
    query: Tensor
    query_labels: Tensor
    gallery: Tensor | None = None
    gallery_labels: Tensor | None = None

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, similarities [b, G]) for blocks of queries."""
        gallery = self.query if self.gallery is None else self.gallery
        step = max(1, BLOCK // len(gallery))
        for start in range(0, len(self.query), step):
            yield start, self.similarity(self.query[start : start + step], gallery).detach().float()

    def count(self, place: Callable[[Tensor], Tensor], bins: int) -> tuple[Tensor, Tensor]:
        """Same-class and different-class pairs in each bin, where `place` maps similarities to bins."""
        labels = self.query_labels if self.gallery_labels is None else self.gallery_labels
        everything, positives = torch.zeros(2, bins, dtype=torch.long)
        for start, s in self.blocks():
            same = self.query_labels[start : start + len(s), None] == labels[None, :]
            where = place(s)
            everything += torch.bincount(where.flatten(), minlength=bins)
            if self.gallery is None:
                row = torch.arange(len(s))
                same[row, start + row] = False
                everything -= torch.bincount(where[row, start + row], minlength=bins)
            positives += torch.bincount(where[same], minlength=bins)
        return positives, everything - positives


def pair_histograms(
    *sets: *Sets, similarity: Similarity, bins: int = BINS
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of same-class and of different-class pairs, counted in bins of equal width.

    Args:
        sets: queries [Q, D], their labels [Q], and those of the gallery if there is one: pairs are query x gallery,
            or query x query without self pairs.

    Returns:
        edges [bins + 1], positives [bins], negatives [bins].
    """
    pairs = Pairs(similarity, *sets)
    # The range must be known before counting: one more pass of products.
    low, high = torch.inf, -torch.inf
    for _, s in pairs.blocks():
        low, high = min(low, float(s.min())), max(high, float(s.max()))
    high = max(high, low + 1e-6)

    def place(s: Tensor) -> Tensor:
        return ((s - low) * (bins / (high - low))).long().clamp_(0, bins - 1)

    return torch.linspace(low, high, bins + 1), *pairs.count(place, bins)


def ordered_pairs(*sets: *Sets, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """Same-class and different-class pairs counted in `BINS` bins of rising similarity, for `auroc`.

    AUROC depends on the order only, so similarities are first mapped into (-1, 1), half of them into the inner half,
    by d / (|d| + m): d from their median, m its median size. With bins of equal width a few far outliers of
    an unbounded distance would leave all other pairs in one bin.

    Args:
        sets: as those of `pair_histograms`.

    Returns:
        positives [BINS], negatives [BINS].
    """
    pairs = Pairs(similarity, *sets)
    _, first = next(pairs.blocks())
    centre = first.median()
    deviation = (first - centre).abs_()
    middle = (deviation.median() or deviation.mean()).clamp_min(1e-30)

    def place(s: Tensor) -> Tensor:
        d = s - centre
        return (d.div_(d.abs().add_(middle)).add_(1).mul_(BINS / 2)).long().clamp_(0, BINS - 1)

    return pairs.count(place, BINS)


def auroc(positives: Tensor, negatives: Tensor) -> float:
    """Percent: chance that a positive pair is more similar than a negative pair; ties count half.

    From counts by bins of rising similarity; pairs in one bin count as tied. That moves the value by at most
    50 points x the sum over bins of (share of positives) x (share of negatives), in practice by less than 0.01
    points; more only where far outliers are themselves many. NaN if there are no positives or no negatives.

    >>> auroc(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0]))
    87.5
    """
    p, n = positives.double(), negatives.double()
    if p.sum() == 0 or n.sum() == 0:
        return float("nan")
    below = n.cumsum(0) - n
    return float(100 * (p * (below + n / 2)).sum() / (p.sum() * n.sum()))
