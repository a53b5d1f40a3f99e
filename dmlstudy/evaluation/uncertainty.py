"""Two kinds of uncertainty, never merged: seeds for training noise, test classes for the test set's noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean over seeds and half width of Student's interval; half width NaN for a single seed.

    With fewer than six seeds an interval is shown but no significance is claimed.

    >>> t_interval([1.0, 2.0, 3.0])
    (2.0, 2.484...)
    """
    from scipy.special import stdtrit

    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return mean, float("nan")
    spread = float(np.std(values, ddof=1)) / n**0.5
    return mean, float(stdtrit(n - 1, (1 + level) / 2)) * spread


def class_bootstrap(
    differences: Sequence[float] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    level: float = 0.95,
    repeats: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Paired bootstrap over test classes: mean difference per query, and its interval's ends.

    Classes are drawn with replacement and all queries of a class move together, because queries of one class
    are not independent.

    Args:
        differences: per query, one method minus the other.
        labels: the query's class.

    Returns:
        mean, low, high.
    """
    differences = np.asarray(differences, float)
    _, position = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.bincount(position)
    sums = np.bincount(position, weights=differences)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=repeats)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(differences.mean()), float(low), float(high)
