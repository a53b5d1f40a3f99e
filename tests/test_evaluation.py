"""Retrieval against every order of tied items; the forms that embeddings and labels may have."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import clustered
from torch import Tensor

from dmlstudy import evaluation
from dmlstudy.errors import StudyError
from dmlstudy.evaluation import evaluate, neighbours, retrieve
from dmlstudy.evaluation.retrieval import Retrieval

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


def ranked(similarity: list[int], relevant: list[bool]) -> Retrieval:
    """Our scores for one query whose gallery has these similarities."""
    gallery = torch.tensor(similarity, dtype=torch.float)[:, None]
    labels = torch.tensor(relevant).long()
    return retrieve(torch.ones(1, 1), torch.ones(1).long(), gallery, labels, ks=KS)


def expectations(ours: Retrieval) -> dict[str, Tensor]:
    """Scores under the names of `scores`."""
    hits = {f"R@{k}": ours.hits[k] for k in KS}
    return hits | {"R-precision": ours.r_precision, "MAP@R": ours.map_at_r}


@pytest.mark.parametrize("seed", range(40))
def test_ties_are_scored_by_expectation(seed: int):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 7))
    similarity = rng.integers(0, int(rng.integers(1, 5)), size).tolist()
    relevant = (rng.random(size) < 0.5).tolist()
    relevant[0] = True
    orders = all_orders(similarity, relevant)
    ours = ranked(similarity, relevant)
    mean = {name: np.mean([order[name] for order in orders]) for name in orders[0]}
    assert {k: float(v) for k, v in expectations(ours).items()} == pytest.approx(mean, abs=1e-9)
    for k in KS:
        every = [order[f"R@{k}"] for order in orders]
        assert float(ours.optimistic[k]) == max(every)
        assert float(ours.pessimistic[k]) == min(every)


@pytest.mark.parametrize("seed", range(10))
def test_queries_rank_all_others_in_blocks(seed: int, monkeypatch: pytest.MonkeyPatch):
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
    for name, values in expectations(ours).items():
        assert values.tolist() == pytest.approx([e[name] for e in expected.values()], abs=1e-9)


def test_card_values_of_map_at_r():
    ours = ranked([5, 4, 3, 2, 1], [True, False, True, True, False])
    assert float(ours.map_at_r) == pytest.approx(0.555556, abs=1e-6)
    assert float(ours.r_precision) == pytest.approx(2 / 3)
    ends = ranked(list(range(20, 0, -1)), [i in (0, 9, *range(12, 20)) for i in range(20)])
    assert float(ends.map_at_r) == pytest.approx(0.12)
    assert float(ends.r_precision) == pytest.approx(0.2)


def test_perfect_is_100_and_collapsed_is_chance():
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


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch):
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
):
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


def test_a_test_set_of_one_image_per_class_is_refused():
    with pytest.raises(StudyError, match="No query"):
        retrieve(torch.eye(3), torch.arange(3))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_broken_similarities_are_refused(broken: float):
    """NaN loses every comparison: unchecked, no negative would lie ahead and R@1 be 100."""
    x, y = clustered(0.5)
    with pytest.raises(StudyError, match="not finite for some pairs"):
        retrieve(x, y, similarity=lambda a, b: torch.full((len(a), len(b)), broken))


ROWS, IDS = clustered(2)
NAMES = np.array([f"class {c}" for c in "hgfedcba"])[IDS]
HALVES = slice(0, None, 2), slice(1, None, 2)
BIG = torch.tensor([2**24, 2**24 + 1, -5, 7, 2**40, 2**40 + 1, 12, 0])[
    IDS
]  # pairs alike in float32


@pytest.fixture(scope="module")
def expected():
    """Metrics of the rows among themselves, and of one half in the other."""
    apart = evaluate(*(a[half] for half in HALVES for a in (ROWS, IDS)))
    return pytest.approx(evaluate(ROWS, IDS).metrics), pytest.approx(apart.metrics)


@pytest.mark.parametrize(
    "labels",
    [
        IDS.tolist(),
        IDS.to(torch.uint8),
        IDS.numpy().astype(np.uint64) + 2**62,
        BIG,
        NAMES,
        NAMES.tolist(),
        NAMES.astype(object),
    ],
    ids=lambda labels: f"{type(labels).__name__} of {np.asarray(labels).dtype}",
)
def test_labels_may_be_lists_arrays_and_texts(labels, expected):
    assert evaluate(ROWS, labels).metrics == expected[0]
    assert evaluate(*(a[h] for h in HALVES for a in (ROWS, labels))).metrics == expected[1]


def test_labels_may_be_booleans():
    two = IDS < 3
    for labels in (two, two.numpy(), two.tolist()):
        assert evaluate(ROWS, labels).metrics == evaluate(ROWS, two.long()).metrics


def test_a_gallery_may_hold_the_queries_and_texts_are_numbered_together():
    x, names = torch.eye(3), ["a", "b", "c"]
    hits = [float(retrieve(x[i : i + 1], ["b"], x, names).hits[1]) for i in range(3)]
    assert hits == [0, 1, 0]


@pytest.mark.parametrize(
    "rows",
    [ROWS.numpy(), ROWS.tolist(), torch.nn.Parameter(ROWS.clone())],
    ids=["array", "list", "parameter"],
)
def test_embeddings_may_be_arrays_and_carry_a_gradient(rows, expected):
    before = ROWS.clone()
    scale = torch.nn.Parameter(torch.ones(()))
    for similarity in (evaluation.inner_product, lambda a, b: scale * (a @ b.T)):
        assert evaluate(rows, IDS, similarity=similarity).metrics == expected[0]
    assert np.array_equal(torch.as_tensor(rows).detach(), before)
    assert evaluate((8 * ROWS).round().int(), IDS).metrics["R@1"] > 0


def test_a_table_of_similarities_is_not_overwritten(expected):
    table = ROWS @ ROWS.T
    before = table.clone()
    assert evaluate(ROWS, IDS, similarity=lambda a, b: table).metrics == expected[0]
    neighbours(ROWS, None, 3, similarity=lambda a, b: table)
    assert torch.equal(table, before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((ROWS.where(ROWS.max() != ROWS, torch.nan), IDS), "1 of 96 query embeddings"),
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
def test_other_arguments_are_refused_in_one_sentence(given, message):
    with pytest.raises(StudyError, match=message) as refusal:
        evaluate(*given)
    assert "\n" not in str(refusal.value)


def test_metrics_that_a_test_set_leaves_undefined_are_nan():
    x, y = clustered(0.5)

    def undefined(*sets: Tensor) -> set[str]:
        return {name for name, value in evaluate(*sets).metrics.items() if np.isnan(value)}

    assert undefined(x, y) == set()
    assert undefined(x, torch.zeros_like(y)) == {"AUROC", "density"}
    assert undefined(x[::12], y[::12], x, y) == {"density", "alignment"}  # one query per class
    one = {"density", "alignment", "uniformity", "mean cosine"}
    assert undefined(x[:1], y[:1], x, y) == one


def test_neighbours_leave_the_query_out():
    x, _ = clustered(0.5)
    values, positions = neighbours(x, None, 3)
    s = (x @ x.T).fill_diagonal_(-9)
    torch.testing.assert_close(values, s.topk(3).values)
    assert (positions != torch.arange(len(x))[:, None]).all()
    assert neighbours(x[:3], None, 9)[1].shape == (3, 2)
    assert neighbours(x[:3], x[:3], 9)[1].shape == (3, 3)
