"""The comparison of a method with its controls on validation classes."""

import csv

import pytest

from dmlstudy.evaluation import t_interval
from dmlstudy.methods import METHODS
from dmlstudy.project import PROJECT
from dmlstudy.study.controls import (
    Comparison,
    append,
    compare,
    controls_table,
    read,
    recorded_controls,
)
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.parameter_files import load_params
from dmlstudy.study.params import settings
from dmlstudy.study.results import Record


def comparison(difference, half_width, seeds=6):
    return Comparison(
        "glyphs", 0, "fastap", "5 bins", "R@1", seeds, 60.0, 58.0, difference, half_width
    )


@pytest.mark.parametrize(
    ("difference", "half_width", "seeds", "verdict"),
    [
        (2.0, 1.5, 6, "yes"),
        (-2.0, 1.5, 6, "no"),
        (2.0, 2.5, 6, "not distinguishable"),
        (2.0, 1.5, 5, "not distinguishable"),
        (2.0, float("nan"), 1, "not distinguishable"),
    ],
)
def test_only_six_seeds_and_an_interval_without_zero_decide(difference, half_width, seeds, verdict):
    assert comparison(difference, half_width, seeds).verdict == verdict


def test_a_method_meets_its_controls_seed_by_seed_on_validation_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path))
    smoke = {"fold": 0, "folds": 2, "p": 2, "epochs": 1, "seeds": [3, 4]}
    chosen = settings("fastap", load_params("fastap", "digits", smoke))
    compared = compare(chosen, log=lambda line: None)
    controls = METHODS["fastap"].controls
    assert [(c.control, c.metric) for c in compared] == [
        (n, m) for n in controls for m in ("R@1", "MAP@R")
    ]
    first = compared[0]
    experiment = Experiment(chosen, log=lambda line: None)
    own, other = (
        [experiment.run(seed, hyper).evaluation.metrics["R@1"] for seed in (3, 4)]
        for hyper in ({}, controls[first.control])
    )
    assert (first.with_idea, first.control_value) == (sum(own) / 2, sum(other) / 2)
    expected = t_interval([a - b for a, b in zip(own, other, strict=True)])
    assert (first.difference, first.half_width) == pytest.approx(expected)


def test_rows_are_added_under_one_header(tmp_path):
    path = tmp_path / "validation" / "controls.csv"
    append(path, [comparison(2.0, 1.5)])
    append(path, [comparison(-2.0, 1.5)])
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert [row["beats its control"] for row in rows] == ["yes", "no"]


def test_what_is_read_back_decides_as_what_was_written(tmp_path):
    path, close = tmp_path / "controls.csv", comparison(-0.6604, 0.6596)
    append(path, [close])
    assert read(path) == [close]
    assert close.verdict == "no"  # in two decimals both are 0.66


def test_every_committed_comparison_decides_as_recorded():
    path = PROJECT / "reports" / "validation" / "controls.csv"
    with path.open(encoding="utf-8") as file:
        recorded = [row["beats its control"] for row in csv.DictReader(file)]
    assert recorded
    assert [c.verdict for c in read(path)] == recorded


def test_the_table_shows_the_chosen_metrics_of_the_file(tmp_path):
    path = tmp_path / "controls.csv"
    assert controls_table(read(path)).rows == []
    append(path, [comparison(2.0, 1.5)])
    shown = controls_table(read(path))
    texts = [line for cell in shown.texts[0] for line in cell]
    values = ["60.0", "58.0", "+2.0", "± 1.5, 6 seeds", "yes"]
    assert texts == ["glyphs, fold 0", "FastAP", "5 bins", "R@1", *values]
    assert controls_table(read(path), ["MAP@R"]).rows == []


def test_finished_runs_are_compared_on_the_seeds_that_their_controls_ran_on():
    record = Record(
        method="fastap",
        title="FastAP!",
        dataset="glyphs",
        dataset_title="Glyphs",
        seeds=[0, 1, 2],
        metrics={"R@1": [50.0, 52.0, 90.0], "NMI": [1.0, 2.0, 3.0]},
        baseline={},
        comparable=False,
        completeness="",
        controls={"5 bins": {"R@1": [49.0, 51.0]}, "9 bins": {"R@1": [51.0]}},
    )
    table = controls_table(recorded_controls([record]), records=[record])
    assert table.texts[0][:2] == [["Glyphs"], ["FastAP!"]]
    assert table.rows[0][1].link == "glyphs/fastap.ipynb"
    assert [row[6] for row in table.texts] == [["+1.0", "± 0.0, 2 seeds"], ["−1.0", "1 seed"]]
    assert table.data["difference"].tolist() == [1.0, -1.0]
    assert [row[7] for row in table.texts] == [["not distinguishable"]] * 2
