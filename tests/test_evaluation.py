"""Evaluation against brute force: every order of tied items, every pair."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy import evaluation
from dmlstudy.errors import StudyError
from dmlstudy.evaluation import (
    auroc,
    class_bootstrap,
    evaluate,
    neighbours,
    nmi,
    ordered_pairs,
    pair_histograms,
    retrieve,
    t_interval,
)
from dmlstudy.evaluation.clustering import kmeans, mutual_information
from dmlstudy.evaluation.spectrum import alignment, density, spectral_decay, uniformity

KS = (1, 2, 4)


def scores(relevant: tuple[bool, ...]) -> dict[str, float]:
    """One ranking's scores from their definitions (cards, section 0.4)."""
    r = sum(relevant)
    precision = [sum(relevant[: i + 1]) / (i + 1) for i in range(r)]
    hits = {f"R@{k}": float(any(relevant[:k])) for k in KS}
    return hits | {
        "R-precision": precision[-1],
        "MAP@R": sum(p for p, hit in zip(precision, relevant, strict=False) if hit) / r,
    }


def all_orders(similarity: list[int], relevant: list[bool]) -> list[dict[str, float]]:
    """Scores of every ranking that is consistent with the similarities."""
    every = []
    for order in permutations(range(len(similarity))):
        values = [similarity[i] for i in order]
        if values == sorted(values, reverse=True):
            every.append(scores(tuple(relevant[i] for i in order)))
    return every


def ranked(similarity: list[int], relevant: list[bool]) -> evaluation.retrieval.Retrieval:
    """Our scores for one query whose gallery has these similarities."""
    gallery = torch.tensor(similarity, dtype=torch.float)[:, None]
    labels = torch.tensor(relevant).long()
    return retrieve(torch.ones(1, 1), torch.ones(1).long(), gallery, labels, ks=KS)


@pytest.mark.parametrize("seed", range(40))
def test_ties_are_scored_by_expectation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 7))
    similarity = rng.integers(0, int(rng.integers(1, 5)), size).tolist()
    relevant = (rng.random(size) < 0.5).tolist()
    relevant[0] = True
    orders = all_orders(similarity, relevant)
    ours = ranked(similarity, relevant)
    for k in KS:
        every = [order[f"R@{k}"] for order in orders]
        assert float(ours.hits[k]) == pytest.approx(np.mean(every), abs=1e-9)
        assert float(ours.optimistic[k]) == max(every)
        assert float(ours.pessimistic[k]) == min(every)
    assert float(ours.r_precision) == pytest.approx(
        np.mean([o["R-precision"] for o in orders]), abs=1e-9
    )
    assert float(ours.map_at_r) == pytest.approx(np.mean([o["MAP@R"] for o in orders]), abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_queries_rank_all_others_in_blocks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.search, "BLOCK", 6 * 4)  # blocks of 4 and 2 queries
    rng = np.random.default_rng(seed)
    table = torch.from_numpy(rng.integers(0, 3, (6, 6))).float().fill_diagonal_(9)
    y = torch.from_numpy(rng.integers(0, 3, 6))
    y[1] = y[0]
    ours = retrieve(torch.eye(6), y, similarity=lambda a, b: a @ table @ b.T, ks=KS)
    expected = {}
    for i in range(6):
        others = [j for j in range(6) if j != i]
        relevant = [bool(y[j] == y[i]) for j in others]
        if any(relevant):
            orders = all_orders([int(table[i, j]) for j in others], relevant)
            expected[i] = {name: np.mean([o[name] for o in orders]) for name in orders[0]}
    assert ours.queries.tolist() == list(expected)
    assert ours.labels.tolist() == y[ours.queries].tolist()
    assert ours.excluded == 6 - len(expected)
    values_of = {f"R@{k}": ours.hits[k] for k in KS}
    values_of |= {"R-precision": ours.r_precision, "MAP@R": ours.map_at_r}
    for name, values in values_of.items():
        assert values.tolist() == pytest.approx([e[name] for e in expected.values()], abs=1e-9)


def test_card_values_of_map_at_r() -> None:
    ours = ranked([5, 4, 3, 2, 1], [True, False, True, True, False])
    assert float(ours.map_at_r) == pytest.approx(0.555556, abs=1e-6)
    assert float(ours.r_precision) == pytest.approx(2 / 3)
    ends = ranked(list(range(20, 0, -1)), [i in (0, 9, *range(12, 20)) for i in range(20)])
    assert float(ends.map_at_r) == pytest.approx(0.12)
    assert float(ends.r_precision) == pytest.approx(0.2)


def clustered(noise: float, classes: int = 8, each: int = 12) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(classes).repeat_interleave(each)
    x = torch.randn(classes, 16, generator=g)[y] + noise * torch.randn(len(y), 16, generator=g)
    return F.normalize(x), y


def test_perfect_is_100_and_collapsed_is_chance() -> None:
    x, y = clustered(0.01)
    perfect = evaluate(x, y).metrics
    assert all(perfect[m] == pytest.approx(100) for m in ("R@1", "R-precision", "MAP@R", "AUROC"))
    point = evaluate(torch.ones_like(x) / 4, y)
    chance = 100 * 11 / 95
    assert point.metrics["R@1"] == pytest.approx(chance)
    assert point.metrics["R-precision"] == pytest.approx(chance)
    assert point.metrics["MAP@R"] < chance
    assert point.metrics["AUROC"] == pytest.approx(50)
    assert point.tie_gap == pytest.approx(100)
    # A direction that float32 cannot hold exactly: rounding must not order what is the same.
    direction = F.normalize(torch.randn(1, 61, generator=torch.Generator().manual_seed(0)))
    assert evaluate(direction.expand(96, -1), y).metrics["R@1"] == pytest.approx(chance)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = clustered(2)
    whole = evaluate(x, y).metrics
    monkeypatch.setattr(evaluation.search, "BLOCK", 96 * 7)
    monkeypatch.setattr(evaluation.verification, "BLOCK", 96 * 7)
    monkeypatch.setattr(evaluation.spectrum, "BLOCK", 96 * 7)
    assert evaluate(x, y).metrics == pytest.approx(whole, rel=1e-5)  # AUROC bins follow block one


@pytest.mark.parametrize(
    ("apart", "pairs"), [(False, 10**6), (False, 60), (True, 60)], ids=["pairs", "alone", "apart"]
)
@pytest.mark.parametrize("seed", range(4))
def test_every_walk_over_blocks_gives_the_scores_of_whole_rows(
    seed: int, apart: bool, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Duplicates, one-image classes, queries without positives, a block cut off in its middle."""
    g = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(120, 8, generator=g))
    x[torch.randperm(120, generator=g)[:40]] = x[:40].clone()
    y = torch.randint(30, (120,), generator=g) * 2**25
    split = (x[:50], y[:50], x[50:], y[50:]) if apart else (x, y)
    whole = retrieve(*split, similarity=lambda a, b: a @ b.T, ks=(1, 3, 50))
    monkeypatch.setattr(evaluation.search, "WIDTH", 16)
    monkeypatch.setattr(evaluation.search, "SIDE", 11)
    monkeypatch.setattr(evaluation.search, "PAIRS", pairs)
    blocked = retrieve(*split, ks=(1, 3, 50))
    assert blocked.excluded == whole.excluded
    assert blocked.queries.tolist() == whole.queries.tolist()
    for name in ("r_precision", "map_at_r"):
        torch.testing.assert_close(getattr(blocked, name), getattr(whole, name))
    for k in whole.hits:
        torch.testing.assert_close(blocked.hits[k], whole.hits[k])
        torch.testing.assert_close(blocked.optimistic[k], whole.optimistic[k])


def test_labels_are_compared_exactly() -> None:
    """2^24 and 2^24 + 1 are one number in float32."""
    x, y = clustered(2)
    names = torch.tensor([2**24, 2**24 + 1, -5, 7, 2**40, 2**40 + 1, 12, 0])
    assert evaluate(x, names[y]).metrics == pytest.approx(evaluate(x, y).metrics)


def test_queries_without_a_positive_are_left_out_and_counted() -> None:
    x, y = clustered(0.01, each=3)
    y[0] = 99
    ours = evaluate(x, y)
    assert ours.retrieval.excluded == 1
    assert len(ours.retrieval.queries) == 23 and 0 not in ours.retrieval.queries
    with pytest.raises(StudyError, match="No query"):
        retrieve(x, torch.arange(len(x)))


def test_separate_gallery_keeps_equal_positions() -> None:
    x, y = clustered(0.5)
    ours = retrieve(x, y, x, y)
    assert float(ours.hits[1].mean()) == 1  # the same image is in the gallery and may be found


def test_broken_embeddings_are_refused() -> None:
    x, y = clustered(0.5)
    x[3, 2] = torch.nan
    with pytest.raises(StudyError, match="1 of 96 query embeddings"):
        evaluate(x, y)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_broken_similarities_are_refused(broken: float) -> None:
    """NaN loses every comparison: unchecked, no negative would lie ahead and R@1 be 100."""
    x, y = clustered(0.5)
    with pytest.raises(StudyError, match="not finite for some pairs"):
        retrieve(x, y, similarity=lambda a, b: torch.full((len(a), len(b)), broken))


ROWS, IDS = clustered(2)
NAMES = np.array([f"class {c}" for c in "hgfedcba"])[IDS]


@pytest.mark.parametrize(
    "labels",
    [
        IDS.tolist(),
        IDS.numpy(),
        IDS.to(torch.uint8),
        IDS.numpy().astype(np.uint64) + 2**62,
        NAMES,
        NAMES.tolist(),
        NAMES.astype(object),
    ],
    ids=lambda labels: f"{type(labels).__name__} of {np.asarray(labels).dtype}",
)
def test_labels_may_be_lists_arrays_and_texts(labels) -> None:
    expected = evaluate(ROWS, IDS)
    assert evaluate(ROWS, labels).metrics == pytest.approx(expected.metrics)
    halves = (slice(0, None, 2), slice(1, None, 2))
    apart = evaluate(*(a[half] for half in halves for a in (ROWS, IDS)))
    ours = evaluate(*(a[half] for half in halves for a in (ROWS, labels)))
    assert ours.metrics == pytest.approx(apart.metrics)


def test_labels_may_be_booleans() -> None:
    two = IDS < 3
    for labels in (two, two.numpy(), two.tolist()):
        assert evaluate(ROWS, labels).metrics == evaluate(ROWS, two.long()).metrics


def test_texts_of_queries_and_gallery_are_numbered_together() -> None:
    x = torch.eye(3)
    assert float(retrieve(x[:1], ["b"], x, ["a", "b", "c"]).hits[1]) == 0
    assert float(retrieve(x[1:2], ["b"], x, ["a", "b", "c"]).hits[1]) == 1


@pytest.mark.parametrize(
    "rows",
    [ROWS.clone().requires_grad_(), ROWS.numpy(), ROWS.tolist(), torch.nn.Parameter(ROWS.clone())],
    ids=["gradient", "array", "list", "parameter"],
)
def test_embeddings_may_be_arrays_and_carry_a_gradient(rows) -> None:
    before = ROWS.clone()
    scale = torch.nn.Parameter(torch.ones(()))
    for similarity in (evaluation.inner_product, lambda a, b: scale * (a @ b.T)):
        ours, expected = (evaluate(r, IDS, similarity=similarity) for r in (rows, ROWS))
        assert ours.metrics == pytest.approx(expected.metrics)
    assert np.array_equal(torch.as_tensor(rows).detach(), before)
    assert evaluate((8 * ROWS).round().int(), IDS).metrics["R@1"] > 0


def test_a_table_of_similarities_is_not_overwritten() -> None:
    table = ROWS @ ROWS.T
    before = table.clone()
    ours = evaluate(ROWS, IDS, similarity=lambda a, b: table)
    assert ours.metrics == pytest.approx(evaluate(ROWS, IDS).metrics)
    neighbours(ROWS, None, 3, similarity=lambda a, b: table)
    assert torch.equal(table, before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((ROWS, IDS, ROWS.flip(0)), "both or neither"),
        ((ROWS, IDS, None, IDS), "both or neither"),
        ((ROWS, IDS[:1]), "96 embeddings and 1 labels"),
        ((ROWS, IDS, ROWS, IDS[:5]), "gallery has 96 embeddings and 5 labels"),
        ((ROWS[:0], IDS[:0]), "at least one embedding"),
        ((ROWS[:0].tolist(), []), r"embeddings must be \[N, D\], not \[0\]"),
        ((ROWS[0], IDS), r"query embeddings must be \[N, D\], not \[16\]"),
        (([["a", "b"]] * 96, IDS), "query embeddings must be numbers"),
        (([[1.0], [1.0, 2.0]], [0, 1]), "query embeddings must be numbers"),
        ((ROWS, IDS.float()), "whole numbers or of texts, .* not float32"),
        ((ROWS, IDS[:, None]), r"one for each embedding, not int64 of shape \[96, 1\]"),
        ((ROWS, [None] * 96), "not object of shape"),
    ],
)
def test_other_arguments_are_refused_in_one_sentence(given, message) -> None:
    with pytest.raises(StudyError, match=message) as refusal:
        evaluate(*given)
    assert "\n" not in str(refusal.value)


def test_more_starts_of_k_means_never_fit_worse() -> None:
    def spread(clusters: Tensor) -> float:
        members = [ROWS[clusters == c] for c in clusters.unique()]
        return float(sum((m - m.mean(0)).square().sum() for m in members))

    for seed in range(5):
        one, best = kmeans(ROWS, 8, seed), kmeans(ROWS, 8, seed, restarts=5)
        assert spread(best) <= spread(one) + 1e-3
        assert torch.equal(best, kmeans(ROWS, 8, seed, restarts=5))


def test_metrics_that_a_test_set_leaves_undefined_are_nan() -> None:
    x, y = clustered(0.5)

    def undefined(*sets: Tensor) -> set[str]:
        return {name for name, value in evaluate(*sets).metrics.items() if np.isnan(value)}

    assert undefined(x, y) == set()
    assert undefined(x, torch.zeros_like(y)) == {"AUROC", "density"}
    assert undefined(x[::12], y[::12], x, y) == {"density", "alignment"}  # one query per class
    assert undefined(x[:1], y[:1], x, y) == {"density", "alignment", "uniformity"}


def test_neighbours_leave_the_query_out() -> None:
    x, _ = clustered(0.5)
    values, positions = neighbours(x, None, 3)
    s = (x @ x.T).fill_diagonal_(-9)
    torch.testing.assert_close(values, s.topk(3).values)
    assert (positions != torch.arange(len(x))[:, None]).all()
    assert neighbours(x[:3], None, 9)[1].shape == (3, 2)
    assert neighbours(x[:3], x[:3], 9)[1].shape == (3, 3)


def test_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import normalized_mutual_info_score, roc_auc_score

    g = torch.Generator().manual_seed(1)
    a, b = (torch.randint(5, (80,), generator=g) for _ in range(2))
    assert mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b))
    x, y = clustered(3)
    upper = torch.triu_indices(len(x), len(x), 1)
    same = (y[:, None] == y[None, :])[*upper]
    _, p, n = pair_histograms(x, y, similarity=evaluation.inner_product)
    assert auroc(p, n) == pytest.approx(100 * roc_auc_score(same, (x @ x.T)[*upper]), abs=0.01)
    assert nmi(x, y) == nmi(x, y)


def minus_distance(a: Tensor, b: Tensor) -> Tensor:
    return -(a[:, None] - b[None]).square().sum(-1)


def long_tail(a: Tensor, b: Tensor) -> Tensor:
    return -(12 * (1 - a @ b.T)).exp()


@pytest.mark.parametrize(
    ("similarity", "scale", "outlier"),
    [
        pytest.param(evaluation.inner_product, 1, 1, id="cosine"),
        pytest.param(minus_distance, 1e-4, 1, id="nearly collapsed"),
        pytest.param(minus_distance, 1, 1e5, id="one far outlier"),
        pytest.param(long_tail, 1, 1, id="long tail"),
    ],
)
def test_auroc_whatever_the_range_of_similarities(
    similarity: evaluation.search.Similarity, scale: float, outlier: float
) -> None:
    from sklearn.metrics import roc_auc_score

    x, y = clustered(1.5)
    x = x * scale
    x[0] *= outlier  # ties its 190 of 9,120 pairs at most: 0.02 points
    itself = torch.eye(len(x), dtype=torch.bool)
    same = (y[:, None] == y[None, :])[~itself]
    positives, negatives = ordered_pairs(x, y, similarity=similarity)
    assert (int(positives.sum()), int(negatives.sum())) == (int(same.sum()), int((~same).sum()))
    exact = 100 * roc_auc_score(same, similarity(x, x)[~itself])
    assert auroc(positives, negatives) == pytest.approx(exact, abs=0.02 if outlier > 1 else 0.01)


def test_shape_of_the_space_against_loops() -> None:
    x, y = clustered(1)
    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    squared = {(i, j): float((x[i] - x[j]).square().sum()) for i, j in pairs}
    same = [squared[i, j] for i, j in pairs if y[i] == y[j]]
    assert alignment(x, y) == pytest.approx(np.mean(same), rel=1e-5)
    assert uniformity(x) == pytest.approx(
        np.log(np.mean([np.exp(-2 * d) for d in squared.values()])), rel=1e-4
    )
    inner = [
        np.mean([d**0.5 for (i, j), d in squared.items() if y[i] == y[j] == c]) for c in range(8)
    ]
    centres = F.normalize(torch.stack([x[y == c].mean(0) for c in range(8)]))
    assert density(x, y) == pytest.approx(
        np.mean(inner) / float(torch.pdist(centres).mean()), rel=1e-4
    )


def test_spectrum() -> None:
    assert spectral_decay(torch.eye(4)) == pytest.approx(0, abs=1e-9)
    wide = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    sigma = torch.linalg.svdvals(wide.double())
    share = sigma / sigma.sum()
    assert spectral_decay(wide) == pytest.approx(float(-(3 * share).log().mean()), rel=1e-6)


def test_spectrum_of_a_space_with_empty_directions_does_not_measure_rounding() -> None:
    g = torch.Generator().manual_seed(0)
    flat = torch.cat([F.normalize(torch.randn(200, 8, generator=g)), torch.zeros(200, 8)], 1)
    turned = flat @ torch.linalg.qr(torch.randn(16, 16, generator=g))[0]
    assert spectral_decay(turned) == pytest.approx(spectral_decay(flat), abs=1e-6)
    assert np.isfinite(spectral_decay(torch.zeros(5, 3)))


def test_uncertainty() -> None:
    mean, half = t_interval([1.0, 2.0, 3.0, 4.0])
    assert (mean, half) == pytest.approx(
        (2.5, 3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2), rel=1e-5
    )
    assert np.isnan(t_interval([1.0])[1])
    difference = np.random.default_rng(0).normal(1, 1, 20)
    low, high = class_bootstrap(difference, np.full(20, 10))
    assert low < difference.mean() < high
    assert (low, high) == class_bootstrap(difference, np.full(20, 10))
