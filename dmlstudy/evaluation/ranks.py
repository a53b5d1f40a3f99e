"""Ranks of the positives of each query, by counting over blocks of similarities; no row is sorted.

All scores of retrieval follow from two numbers per positive: how many items are more similar to the query, and how
many exactly as similar. Only items as near as the farthest positive that still matters are counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Similarities searched at once: few calls, and some 100 MB at most even where everything ties.
ROWS = 1024
COLUMNS = 2048


class Ranks:
    """Counts for one block of queries. `levels` are the distinct similarities of a query's positives.

    Levels with too many items ahead of them to matter are dropped, except the best of each query.

    Positives at .9, .5 and .1, others at .7 and .5: the levels are .5 and .9, as .1 is not among the R = 3 nearest.

    >>> ranks = Ranks(s := torch.tensor([[.9, .5, .1, .7, .5]]), torch.zeros(3).long(), torch.arange(3), deepest=1)
    >>> ranks.count(s)
    >>> ranks.at.tolist(), ranks.level.tolist(), ranks.ahead().tolist()
    ([1, 1], [2, 1], [2, 0])

    Attributes:
        positives: [b] number of positives of each query, its R.
        scored: [b] whether it has any.
        row: [L] the query of each level; levels lie query by query, each query's rising.
        best: [scored] the highest level of each query that has one.
        at: [L] positives at the level.
        depth: [L] how many items ahead of it make a level irrelevant.
    """

    def __init__(self, first: Tensor, row: Tensor, column: Tensor, deepest: int) -> None:
        """Reads the levels and counts the positives; the other items are yet to come.

        Args:
            first: [b, m] similarities that include those of every positive, which are set to -inf.
            row: [P] query of each positive, rising.
            column: [P] where it is in `first`.
            deepest: the largest K of R@K.
        """
        self._deepest = deepest
        self.positives = torch.bincount(row, minlength=len(first))
        self.scored = self.positives > 0
        # R-precision and MAP@R see the R nearest, R@K the best positive among the K nearest.
        value = first[row, column]
        best = torch.full((len(first),), -torch.inf).scatter_reduce_(0, row, value, "amax")
        near = (value >= torch.minimum(best, self._reached(first))[row]).nonzero()[:, 0]
        first[row, column] = -torch.inf
        # Several times faster than the sort of torch.
        keys = np.sort(_keys(row[near], value[near]).numpy())
        self._keys, self.at = torch.from_numpy(keys).unique_consecutive(return_counts=True)
        self._counts = torch.stack([torch.zeros_like(self.at), self.at])
        self._index_levels()

    def _reached(self, first: Tensor) -> Tensor:
        """[b] a similarity that at least R items reach: positives below it are not among the R nearest."""
        r, first = int(self.positives.max()), first[:, :COLUMNS]
        if not 0 < r < first.shape[1]:
            return first.new_full((len(first),), -torch.inf)
        # Several times faster than topk or kthvalue of torch; the largest R of the block serves all its rows.
        place = first.shape[1] - r
        return torch.from_numpy(np.partition(first.numpy(), place, axis=1)[:, place].copy())

    def _index_levels(self) -> None:
        """What follows from the keys. Only items at or above a query's lowest level are counted from here on."""
        self._uncut = 0  # items counted since then
        self.row = _rows(self._keys)
        levels = torch.bincount(self.row, minlength=len(self.positives))
        self._end = levels.cumsum(0)
        self.best = self._end[self.scored] - 1
        self.depth = self.positives[self.row]
        self.depth[self.best] = self.depth[self.best].clamp_min(self._deepest)
        lowest = (self._end - levels)[self.scored]
        self._cutoff = torch.full(levels.shape, torch.inf)
        self._cutoff[self.scored] = _values(self._keys[lowest])

    def count(self, s: Tensor, axis: int = 0) -> None:
        """Count the items of similarities [b, m], or [m, b] with the queries on axis 1.

        Every item has to come once, but positives and the query itself never, or at -inf.
        """
        for part in s.split(COLUMNS, 1 - axis):
            self._count(part, axis)

    def _count(self, s: Tensor, axis: int) -> None:
        # In a large gallery few rows of a block have an item above the cutoff, and their maxima show which.
        queries = (s.amax(1 - axis) >= self._cutoff).nonzero()[:, 0]
        if not len(queries):
            return
        # Where most rows have one, all are taken: that needs no copy.
        most = 2 * len(queries) > len(self._cutoff)
        for rows in (torch.arange(len(self._cutoff)) if most else queries).split(ROWS):
            near = s.narrow(axis, int(rows[0]), len(rows)) if most else s.index_select(axis, rows)
            cutoff = self._cutoff[rows].unsqueeze(1 - axis)
            # Three times faster than comparison and nonzero of torch.
            reaching = torch.from_numpy(np.flatnonzero(near.numpy() >= cutoff.numpy()))
            query = reaching // near.shape[1] if axis == 0 else reaching % near.shape[1]
            keys = _keys(rows.take(query), near.take(reaching))
            # The query's highest level that the item reaches: there is one, it passed the cutoff.
            reached = torch.searchsorted(self._keys, keys, right=True) - 1
            tied = self._keys.take(reached) == keys
            where = reached + len(self._keys) * tied
            self._counts.view(-1).index_add_(0, where, torch.ones_like(where))
            self._uncut += len(reaching)
        # Dropping levels takes a few passes over all of them, so it waits for more items than levels.
        if self._uncut > 2 * len(self._keys):
            self._drop_levels()

    def _drop_levels(self) -> None:
        """Drop levels with `depth` items ahead of them; a query whose best is such a level needs no more items."""
        matters = self.ahead() < self.depth
        decided = self.scored.nonzero()[:, 0][~matters[self.best]]
        matters[self.best] = True
        kept = matters.nonzero()[:, 0]
        self._keys, self.at = self._keys[kept], self.at[kept]
        self._counts = self._counts[:, kept]
        self._index_levels()
        self._cutoff[decided] = torch.inf

    @property
    def above(self) -> Tensor:
        """[L] items above the level but below the query's next one."""
        return self._counts[0]

    @property
    def level(self) -> Tensor:
        """[L] items at the level, positives among them."""
        return self._counts[1]

    def ahead(self) -> Tensor:
        """[L] items so far that are nearer than the level; too few where that is beyond `depth`."""
        return self._later(self.level + self.above) + self.above

    def _later(self, counts: Tensor) -> Tensor:
        """[L] the sum of counts [L] over the higher levels of the same query."""
        total = counts.cumsum(0)
        return total[self._end - 1][self.row] - total

    def hit_rates(self, ks: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Expected, optimistic, pessimistic R@K, each [scored, len(ks)].

        With the best positive at s*, `ahead` negatives above it and `n` negatives and `q` positives exactly
        at it, R@K misses if all of the r = K - ahead places left go to the n tied: C(n, r) / C(n + q, r).
        """
        ahead, q = self.ahead()[self.best, None], self.at[self.best, None]
        n = self.level[self.best, None] - q
        places = torch.tensor(list(ks)) - ahead
        miss = torch.where(places > n, 0.0, _all_negative(n, q, places.clamp_min(0)))
        reached = places > 0
        return (
            torch.where(reached, 1 - miss, 0.0),
            reached.double(),
            (places > n).double(),
        )

    def precisions(self) -> tuple[Tensor, Tensor]:
        """Expected R-precision and MAP@R, each [scored], where R is a query's number of positives.

        A level of m items, q of them positive, starts after a items with p positives. Its place j = 1..m holds
        a positive with chance q/m and then has on average p + 1 + (j - 1) d positives up to it, where
        d = (q - 1)/(m - 1). Of its places the first t lie within R; the precisions there sum to

            sum_j=1..t (p + 1 + (j - 1) d) / (a + j)  =  t d + (p + 1 - (a + 1) d) (H_{a+t} - H_a)

        with the harmonic numbers H.
        """
        r = self.positives[self.row]
        a = torch.minimum(self.ahead(), r)
        t = torch.minimum(self.level, r - a)
        m, q, p = self.level, self.at, self._later(self.at)
        d = (q - 1) / (m - 1).clamp_min(1).double()
        harmonic = torch.zeros(int(self.positives.max()) + 1, dtype=torch.float64)
        harmonic[1:] = (1 / torch.arange(1, len(harmonic), dtype=torch.float64)).cumsum(0)
        seen = t * d + (p + 1 - (a + 1) * d) * (harmonic[a + t] - harmonic[a])
        chance = q / (m * r).double()
        sums = torch.zeros(2, len(self.positives), dtype=torch.float64)
        sums.index_add_(1, self.row, torch.stack([chance * t, chance * seen]))
        precision, mean_precision = sums[:, self.scored]
        return precision, mean_precision


def _keys(row: Tensor, value: Tensor) -> Tensor:
    """int64 that sort by row, then by float32 value, exactly; equal values (0 and -0 too) have equal keys.

    The bits of floats, read as integers, rise with a positive value and fall with a negative one.
    """
    bits = (value + 0.0).view(torch.int32)
    return (row << 32) + (bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _rows(keys: Tensor) -> Tensor:
    """Rows back from keys."""
    return (keys + 2**31) >> 32


def _values(keys: Tensor) -> Tensor:
    """float32 back from keys."""
    bits = (keys - (_rows(keys) << 32)).int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _all_negative(n: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """C(n, r) / C(n + q, r): the chance that r draws from n negatives and q positives are all negative."""
    n, q, r = n.double(), q.double(), torch.minimum(r, n).double()
    log = (n + 1).lgamma() - (n - r + 1).lgamma() - (n + q + 1).lgamma() + (n + q - r + 1).lgamma()
    return log.exp()
