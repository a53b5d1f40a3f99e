"""How sure a mean or a difference is, over training seeds and over test classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import atanh, inf, nan, tanh
from typing import NamedTuple

import numpy as np

MIN_SEEDS = 6  # under this many, intervals only
Scores = np.ndarray  # [seeds, classes], each the mean over the queries of its class
Part = tuple[float, float]  # a variance and its degrees of freedom


class Difference(NamedTuple):
    """A difference of two means, its standard error and its degrees of freedom; NaN where unknown."""

    mean: float = nan
    error: float = nan
    df: float = nan

    def half_width(self, comparisons: int = 1, level: float = 0.95) -> float:
        """Of Student's interval; that many intervals hold together (Bonferroni)."""
        from scipy.special import stdtrit

        return float(stdtrit(self.df, 1 - (1 - level) / (2 * comparisons))) * self.error

    def range_p(self, rows: int) -> float:
        """Probability of so large a difference between any two of `rows` equal methods.

        Tukey's studentised range with Welch's error and degrees of freedom: Games and Howell, "Pairwise multiple
        comparison procedures with unequal N's and/or variances", J. Educational Statistics 1(2), 1976. Hsu's smaller
        bound for comparisons with the best only decides which rows may not be the best: rows that equal it included.
        """
        from scipy.special import chdtri

        if not self.error > 0:
            return float(self.mean == 0) if self.error == 0 else nan
        df = min(self.df, 1e6)
        scale = np.sqrt(chdtri(df, (np.arange(1000) + 0.5) / 1000) / df)
        width = 2**0.5 * abs(self.mean) / self.error
        return float(1 - np.interp(width * scale, *_normal_range(rows)).mean())


def class_difference(here: Scores, there: Scores, queries: np.ndarray) -> Difference:
    """Two methods on the same test classes, each with seeds of its own.

    Classes and seeds are both drawn at random: the inference is to other seeds and to classes like these. A class adds
    its difference of the two methods, weighted by its queries; so few weigh much that there are 1 / sum w^2 of them.
    The noise of one seed on one class is in both parts, hence the error is a little too large.

    Args:
        here, there: [S, C], [S', C].
        queries: [C], number of queries of each class.

    >>> class_difference(np.array([[2.0, 4.0], [4.0, 6.0]]), np.zeros((2, 2)), np.ones(2))
    Difference(mean=4.0, error=1.414..., df=2.0)
    """
    weights = queries / queries.sum()
    seeds = [_of_mean(here @ weights), _of_mean(there @ weights)]
    return _with_classes(here.mean(0) - there.mean(0), weights, seeds)


def fold_difference(folds: Sequence[tuple[Scores, Scores, np.ndarray]]) -> Difference:
    """Two methods trained with the same seeds on each fold: paired by fold, seed and class.

    A fold is a set of classes: together the folds test every class once.

    Args:
        folds: `here` [S, C], `there` [S, C] and `queries` [C] of each fold.
    """
    total = sum(queries.sum() for _, _, queries in folds)
    paired = [here - there for here, there, _ in folds]
    weights = [queries / total for _, _, queries in folds]
    seeds = [_of_mean(d @ w) for d, w in zip(paired, weights, strict=True)]
    by_class = np.concatenate([d.mean(0) for d in paired])
    return _with_classes(by_class, np.concatenate(weights), seeds)


def seed_difference(here: Sequence[float], there: Sequence[float]) -> Difference:
    """Two methods trained with the same seeds, paired by seed; the inference is to these very classes."""
    paired = np.subtract(here, there)
    variance, df = _of_mean(paired)
    return Difference(float(paired.mean()), variance**0.5, df)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean over seeds and half width of Student's interval; half width NaN for a single seed.

    >>> t_interval([1.0, 2.0, 3.0])
    (2.0, 2.484...)
    """
    alone = seed_difference(values, np.zeros(len(values)).tolist())
    return alone.mean, alone.half_width(level=level)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Spearman's rho and its 95 % interval; all NaN for fewer than four points, or if one side is constant.

    Fisher's z with the variance (1 + rho^2 / 2) / (n - 3): Bonett and Wright, "Sample size requirements for estimating
    Pearson, Kendall and Spearman correlations", Psychometrika 65(1), 2000.
    """
    from scipy.stats import spearmanr

    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return nan, nan, nan
    rho = float(spearmanr(x, y).statistic)
    z = atanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    reach = 1.96 * ((1 + rho**2 / 2) / (len(x) - 3)) ** 0.5
    return rho, tanh(z - reach), tanh(z + reach)


def _of_mean(values: np.ndarray) -> Part:
    """Of a mean over independent values."""
    n = len(values)
    return (float(np.var(values, ddof=1)) / n, n - 1) if n > 1 else (nan, nan)


def _with_classes(by_class: np.ndarray, weights: np.ndarray, seeds: list[Part]) -> Difference:
    """A mean over classes with the variances of its seeds added; Welch and Satterthwaite's degrees of freedom."""
    mean, squares = float(weights @ by_class), float(weights @ weights)
    if squares >= 1:  # all queries are of one class
        return Difference(mean)
    between = float(weights**2 @ (by_class - mean) ** 2) / (1 - squares)
    parts = [(between, 1 / squares - 1), *seeds]
    variance = sum(part for part, _ in parts)
    shares = sum(part**2 / df for part, df in parts if part)
    return Difference(mean, variance**0.5, variance**2 / shares if shares else inf)


@lru_cache
def _normal_range(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Distribution function of the range of `rows` standard normal values, at 0 to 20."""
    from scipy.special import ndtr

    width, z = np.linspace(0, 20, 801), np.linspace(-8, 8, 321)[:, None]
    within = np.exp(-(z**2) / 2) * (ndtr(z) - ndtr(z - width)) ** (rows - 1)
    return width, rows * within.sum(0) * (z[1, 0] - z[0, 0]) / (2 * np.pi) ** 0.5
