"""The summary's opening sentences say what the records hold."""

import numpy as np
import pytest

from dmlstudy.study.answer import answer
from dmlstudy.study.results import Record

SEEDS = list(range(6))


def record(method, score, dataset="birds", collapse="no"):
    """A row of 20 classes whose R@1 lies at `score`, with some noise over seeds and classes."""
    rng = np.random.default_rng(sum(map(ord, method)))
    by_class = np.clip(score + rng.normal(0, 1, (len(SEEDS), 20)), 0, 100)
    start = np.clip(50 + rng.normal(0, 1, (len(SEEDS), 20)), 0, 100)
    return Record(
        method=method,
        title=method.title(),
        dataset=dataset,
        dataset_title=dataset.title(),
        seeds=SEEDS,
        metrics={"R@1": by_class.mean(1).tolist(), "mean cosine": [0.1] * 6},
        baseline={"R@1": start.mean(1).tolist()},
        comparable=False,
        completeness="",
        per_class={
            "classes": [str(i) for i in range(20)],
            "queries": [10] * 20,
            "R@1": by_class.tolist(),
            "baseline R@1": start.tolist(),
        },
        collapse={}
        if collapse == "no"
        else {"method": {"states": [collapse] * 6, "loss": [1.0] * 6, "at_a_point": [1.0] * 6}},
    )


def test_nothing_yet():
    assert [note.en for note in answer([])] == ["No run has finished yet."]


def test_five_sentences_of_what_was_found():
    scores = {"alpha": 80, "beta": 79.8, "gamma": 60, "delta": 30, "epsilon": 55, "zeta": 65}
    records = [record(m, s, d) for d in ("birds", "cars") for m, s in scores.items()]
    extent, best, gains, order, collapses = (note.en for note in answer(records))
    assert extent.startswith("6 rows were run under 2 protocols, 72 networks in all")
    assert best.startswith(("On Birds Alpha (R@1 8", "On Birds Beta (R@1 "))
    assert best.count("from which 1 of 5 other rows cannot be told") == 2
    assert gains.count("5 of 6 rows lie above the untrained trunk and 1 below it for sure") == 2
    assert "Birds / Cars +1.00" in order
    assert collapses == "No row collapsed."
    assert all(note.zh for note in answer(records))


@pytest.mark.parametrize("state, words", [("yes", "Collapsed: Beta"), ("partly", "Partly coll")])
def test_a_collapse_is_named(state, words):
    records = [record("alpha", 80), record("beta", 50, collapse=state)]
    assert answer(records)[-1].en.startswith(words)
