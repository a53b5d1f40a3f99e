"""The comparison of a method with its controls on validation classes."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from dmlstudy.errors import StudyError
from dmlstudy.evaluation.uncertainty import fold_difference
from dmlstudy.methods import METHODS
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


def comparison(difference, error, seeds=6, df=1e9):
    place = "glyphs", "0, 1", "fastap", "5 bins", "R@1"
    return Comparison(*place, seeds, 60.0, 58.0, difference, error, df)


@pytest.mark.parametrize(
    ("difference", "error", "seeds", "family", "verdict"),
    [
        (2.0, 1.0, 6, 1, "yes"),
        (-2.0, 1.0, 6, 1, "no"),
        (1.9, 1.0, 6, 1, "not distinguishable"),
        (2.0, 1.0, 6, 2, "not distinguishable"),
        (2.5, 1.0, 6, 2, "yes"),
        (20.0, 1.0, 5, 1, "too few seeds"),
        (2.0, float("nan"), 6, 1, "not distinguishable"),
    ],
)
def test_only_six_seeds_and_an_interval_without_zero_decide(
    difference, error, seeds, family, verdict
):
    assert comparison(difference, error, seeds).verdict(family) == verdict


def test_collapses_on_validation_classes_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path))
    absurd = {
        "fold": 0,
        "folds": 2,
        "p": 2,
        "epochs": 2,
        "seeds": [0],
        "lr": 10.0,
        "trunk_lr": 10.0,
    }
    lines = []
    compared = compare([settings("fastap", absurd)], log=lines.append)
    assert "fastap, as it is: collapsed" in lines
    table = controls_table(compared)
    assert {c.control for c in compared} == {"5 bins ‡", "20 bins ‡"}
    assert "‡ collapsed: the loss ends no lower" in table.text()


def test_a_method_meets_its_controls_by_fold_class_and_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path))
    smoke = {"folds": 2, "p": 2, "epochs": 1, "seeds": [3, 4]}
    given = load_params("fastap", "digits", smoke)
    chosen = [settings("fastap", given | {"fold": fold}) for fold in (0, 1)]
    compared = compare(chosen, log=lambda line: None)
    controls = METHODS["fastap"].controls
    assert [(c.control, c.metric) for c in compared] == [
        (n, m) for n in controls for m in ("R@1", "MAP@R")
    ]
    first, folds, scores = compared[0], [], []
    for one in chosen:
        experiment = Experiment(one, log=lambda line: None)
        pair = [
            [experiment.run(seed, hyper).evaluation.retrieval for seed in (3, 4)]
            for hyper in ({}, controls[first.control])
        ]
        labels = pair[0][0].labels.numpy()
        by_class = [
            np.array(
                [
                    [100 * r.hits[1].numpy()[labels == c].mean() for c in np.unique(labels)]
                    for r in runs
                ]
            )
            for runs in pair
        ]
        folds.append((*by_class, np.unique(labels, return_counts=True)[1]))
        scores.append([np.concatenate([r.hits[1] for r in runs]) for runs in pair])
    assert (first.folds, first.seeds) == ("0, 1", 2)
    assert (first.difference, first.error, first.df) == pytest.approx(fold_difference(folds))
    means = [100 * np.concatenate(side).mean() for side in zip(*scores, strict=True)]
    assert (first.with_idea, first.control_value) == pytest.approx(means)
    assert first.difference == pytest.approx(means[0] - means[1])


def test_rows_are_added_under_one_header_and_decide_as_written(tmp_path):
    path, close = tmp_path / "validation" / "controls.csv", comparison(-1.9604, 1.0)
    append(path, [close])
    append(path, [comparison(2.0, 1.5, df=float("nan"))])
    with path.open(encoding="utf-8") as file:
        assert [row["error"] for row in csv.DictReader(file)] == ["1.0", "1.5"]
    assert read(path)[0] == close
    assert close.verdict(1) == "no"  # in two decimals both are 1.96
    append(path, [replace(close, folds="0")])
    assert read(path)[2].folds == "0"


def test_a_file_of_another_form_is_refused(tmp_path):
    path = tmp_path / "controls.csv"
    path.write_text("dataset,fold,method\nglyphs,0,fastap\n", encoding="utf-8")
    with pytest.raises(StudyError, match=r"controls\.csv has other columns: delete it"):
        read(path)


def test_the_table_shows_the_chosen_metrics_of_the_file(tmp_path):
    path = tmp_path / "controls.csv"
    assert controls_table(read(path)).rows == []
    append(path, [comparison(2.0, 0.8)])
    shown = controls_table(read(path))
    texts = [line for cell in shown.texts[0] for line in cell]
    values = ["60.0", "58.0", "+2.0", "± 1.6, 6 seeds", "yes"]
    assert texts == ["glyphs, folds 0, 1", "FastAP", "5 bins", "R@1", *values]
    assert "glyphs 1" in shown.notes[0].en and "glyphs 1" in shown.notes[0].zh
    assert controls_table(read(path), ["MAP@R"]).rows == []


def test_a_data_set_is_a_family_of_comparisons():
    close = comparison(2.0, 1.0)
    elsewhere = replace(close, dataset="cub200_2010")
    assert controls_table([close, elsewhere]).data["beats its control"].tolist() == ["yes", "yes"]
    family = controls_table([close, close, elsewhere]).data["beats its control"].tolist()
    assert family == ["not distinguishable", "not distinguishable", "yes"]


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
    assert [row[7] for row in table.texts] == [["too few seeds"]] * 2
    assert "these very test classes" in table.notes[0].en
