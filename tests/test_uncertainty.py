"""Error rates of the study's intervals and verdicts, by simulation with variances of the committed records."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm, spearmanr, studentized_range

from dmlstudy.evaluation import t_interval
from dmlstudy.evaluation.uncertainty import (
    Difference,
    class_difference,
    fold_difference,
    rank_correlation,
    seed_difference,
)

ROWS, TABLES = 17, 100
# Standard deviations in points: of a seed, of a method on a class, of a seed on a class.
LIKE = {"cub200_2010": (0.24, 4.4, 3.5), "glyphs": (1.0, 4.9, 9.8), "one method": (1.0, 0.0, 9.8)}


def made_up(rng, seeds, classes, like, better=0.0):
    """Scores [ROWS, seeds, classes]: equally good methods, but the first is `better`; every third has noisy seeds."""
    seed, method, rest = LIKE[like]
    noisy = np.where(np.arange(ROWS) % 3 == 1, 2.0, 1.0)[:, None, None]
    scores = 60 + method * rng.normal(size=(ROWS, 1, classes))
    scores = scores + noisy * seed * rng.normal(size=(ROWS, seeds, 1))
    scores = scores + rest * rng.normal(size=(ROWS, seeds, classes))
    scores[0] += better
    return scores, rng.integers(20, 40, classes)


def against_best(scores, queries):
    best = np.average(scores.mean(1), axis=1, weights=queries).argmax()
    return [class_difference(scores[best], s, queries) for i, s in enumerate(scores) if i != best]


def told_apart(less):
    """As the ranking decides; the bound for any number of rows is above 2, which saves time."""
    return abs(less.mean) > 2 * less.error and less.range_p(ROWS) <= 0.05


@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize(("seeds", "classes"), [(3, 25), (6, 100), (10, 25)])
def test_equal_methods_are_seldom_told_apart(like, seeds, classes):
    rng = np.random.default_rng([seeds, classes])
    tables = [against_best(*made_up(rng, seeds, classes, like)) for _ in range(TABLES)]
    false = np.mean([any(map(told_apart, table)) for table in tables])
    assert false <= 0.05 + 3 * (0.05 * 0.95 / TABLES) ** 0.5
    # The simulation is one in which Student's interval fails.
    single = np.mean([any(abs(d.mean) > d.half_width() for d in table) for table in tables])
    assert like == "one method" or single > 0.3


def test_three_points_are_found():
    rng = np.random.default_rng(0)
    tables = [
        against_best(*made_up(rng, 10, 100, "cub200_2010", better=3.0)) for _ in range(TABLES // 5)
    ]
    assert np.mean([told_apart(less) for table in tables for less in table]) > 0.7


@pytest.mark.parametrize("classes", [5, 25])
@pytest.mark.parametrize("seeds", [3, 6])
def test_intervals_cover_the_difference_over_classes_and_seeds(classes, seeds):
    """Skewed classes near 100 %, whose queries hit or miss; the truth is by a large population of classes."""
    rng, covered = np.random.default_rng(classes), []
    easy, own = rng.normal(1.5, 1.2, 10**5), rng.normal(0, 0.4, (2, 10**5))
    shift = np.array([[0.3], [0.0]])
    truth = np.subtract(*100 * expit(easy + shift + own)).mean()
    for _ in range(1000):
        drawn = rng.integers(10**5, size=classes)
        level = (easy + shift + own)[:, drawn]
        chances = expit(level[:, None] + rng.normal(0, 0.1, (2, seeds, 1)))
        here, there = 100 * rng.binomial(30, chances) / 30
        found = class_difference(here, there, np.full(classes, 30))
        covered.append(abs(found.mean - truth) <= found.half_width())
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize(("classes", "folds"), [(5, 4), (25, 1)])
def test_intervals_over_folds_cover_and_pair_their_seeds(classes, folds):
    rng, covered = np.random.default_rng(0), []
    for _ in range(1000):
        parts = []
        for _ in range(folds):
            shared = 5 * rng.normal(size=(6, 1)) + 20 * rng.normal(size=(1, classes))
            here, there = (
                shared
                + rng.normal(size=(6, 1))
                + 4 * rng.normal(size=(1, classes))
                + 5 * rng.normal(size=(6, classes))
                for _ in range(2)
            )
            parts.append((here + 1, there, rng.integers(20, 40, classes)))
        found = fold_difference(parts)
        assert found.error < 5  # what both share is gone
        covered.append(abs(found.mean - 1) <= found.half_width())
    assert np.mean(covered) >= 0.93


def test_a_difference_is_weighted_by_queries_and_adds_the_variances_of_its_parts():
    rng = np.random.default_rng(0)
    here, there, queries = rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), np.full(4, 7)
    found = class_difference(here, there, queries)
    by_class, seeds = here.mean(0) - there.mean(0), (here.mean(1), there.mean(1))
    parts = [by_class.var(ddof=1) / 4, *(s.var(ddof=1) / len(s) for s in seeds)]
    df = sum(parts) ** 2 / sum(p**2 / d for p, d in zip(parts, (3, 2, 4), strict=True))
    assert found == pytest.approx((by_class.mean(), sum(parts) ** 0.5, df))
    none = class_difference(here, here[:2], np.array([0, 0, 3, 0]))
    assert none.mean == pytest.approx(here[:, 2].mean() - here[:2, 2].mean())
    assert np.isnan(none.error) and np.isnan(none.half_width()) and np.isnan(none.range_p(5))
    assert np.isnan(class_difference(here[:1], there, queries).error)


def test_without_any_noise_only_the_same_is_the_same():
    flat = np.full((2, 3), 5.0)
    same, other = (class_difference(flat, flat - gap, np.ones(3)) for gap in (0, 1))
    assert same == (0, 0, np.inf) and other == (1, 0, np.inf)
    assert (same.range_p(4), other.range_p(4), other.half_width()) == (1, 0, 0)


@pytest.mark.parametrize(("rows", "df"), [(2, 4.0), (17, 2.5), (17, 11.3), (25, 1e9)])
def test_range_is_that_of_scipy(rows, df):
    for width in (1.0, 4.0, 5.5, 9.0):
        ours = Difference(-width / 2**0.5, 1.0, df).range_p(rows)
        theirs = studentized_range.sf(width, rows, min(df, 1e5))
        assert ours == pytest.approx(theirs, abs=2e-4)


def test_intervals_over_seeds():
    mean, half = t_interval([1.0, 2.0, 3.0, 4.0])
    spread = np.std([1, 2, 3, 4], ddof=1) / 2
    assert (mean, half) == pytest.approx((2.5, 3.182446 * spread), rel=1e-5)
    assert np.isnan(t_interval([1.0])[1])
    paired = seed_difference([3.0, 5.0, 6.0, 8.0], [2.0, 3.0, 3.0, 4.0])
    assert paired == pytest.approx((2.5, spread, 3))
    assert paired.half_width(5) == pytest.approx(4.604095 * 1.264911 * spread, rel=0.3)
    assert Difference(0, 1, 1e9).half_width(8) == pytest.approx(norm.isf(0.025 / 8), rel=1e-6)


def test_rank_correlation_covers():
    rng, truth, covered = np.random.default_rng(0), 6 / np.pi * np.arcsin(0.35), []
    for _ in range(500):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], ROWS).T
        rho, low, high = rank_correlation(x, y)
        assert rho == pytest.approx(spearmanr(x, y).statistic) and low < rho < high
        covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.93
    assert rank_correlation([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx((1, 1, 1), abs=1e-5)
    for x in ([1, 2, 3], [1, 1, 1, 1]):
        assert np.isnan(rank_correlation(x, range(len(x)))).all()
