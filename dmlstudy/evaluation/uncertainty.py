"""Two kinds of uncertainty, never merged: seeds for training noise, test classes for the test set's noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
Interval = tuple[float, float]


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


@lru_cache(maxsize=4)
def _resampled_classes(classes: int) -> np.ndarray:
    """How often each class is drawn, [RESAMPLES, classes]; the same draws serve all rows."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(classes, np.full(classes, 1 / classes), size=RESAMPLES)
    return drawn.astype(np.float32)


def class_bootstrap(difference: np.ndarray, queries: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval of a mean difference over queries, resampling test classes.

    Classes, not queries, are drawn: queries of one class share its difficulty.

    Args:
        difference: [C], per test class, already averaged over seeds.
        queries: [C], number of queries of each class.

    >>> class_bootstrap(np.full(5, 2.0), np.array([3, 1, 4, 1, 5]))
    (2.0, 2.0)
    """
    drawn = _resampled_classes(len(queries))
    means = (drawn @ (queries * difference)) / np.maximum(drawn @ queries, 1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return round(float(low), 6), round(float(high), 6)
