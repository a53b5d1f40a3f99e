"""Rankings order rows, judge differences, and say where conditions differ or a row collapsed."""

import re

import numpy as np
from made_up import made_up

from dmlstudy.study.ranking import ranking
from dmlstudy.study.tables import DASH


def many_seeds(record, times=3):
    """The same record as if its seeds had run that many times: with MIN_SEEDS of them rows are judged."""
    scores = {k: v * times for k, v in record.metrics.items()}
    start = {k: v * times for k, v in record.baseline.items()}
    fixed = "classes", "queries"
    by_class = {k: v if k in fixed else v * times for k, v in record.per_class.items()}
    seeds = list(range(3 * times))
    new = {"seeds": seeds, "metrics": scores, "baseline": start, "per_class": by_class}
    return record.model_copy(update=new)


def verdicts(table, metric="R@1"):
    return table.data[f"{metric} not distinguishable from best"].tolist()


def test_ranking_orders_methods_around_the_untrained_trunk():
    records = [made_up(m, s) for m, s in [("a", 35.0), ("bb", 55.0), ("ccc", 54.9)]]
    table = ranking(map(many_seeds, records), "cub200_2010")
    assert table.data["method"].tolist() == ["bb", "ccc", "untrained", "a"]
    assert table.data["R@1 delta untrained"].round(6).tolist()[:2] == [15.0, 14.9]
    low, high = table.data[["R@1 delta low", "R@1 delta high"]].iloc[0]
    assert low < 15.0 < high and high - low < 4
    assert verdicts(table) == verdicts(table, "MAP@R") == ["best", "yes", "no", "no"]
    assert table.texts[2][7] == ["R@1: no", "MAP@R: no"]
    assert not any("Fewer than 6 seeds" in note.en for note in table.notes)


def test_intervals_of_a_table_widen_with_its_rows():
    def width(*methods):
        table = ranking([many_seeds(made_up(m, 50.0 - len(m))) for m in methods], "cub200_2010")
        return np.diff(table.data[["R@1 delta low", "R@1 delta high"]].iloc[0]).item()

    assert width("a", "bb", "ccc") > 1.2 * width("a")


def test_rows_are_best_by_each_metric_alone():
    other = made_up("bb", 55.0)
    worse = {**other.metrics, "MAP@R": [1.0, 2.0, 3.0]}
    records = [made_up("a", 50.0), other.model_copy(update={"metrics": worse})]
    table = ranking(records, "cub200_2010")
    assert verdicts(table)[0] == "best" and verdicts(table, "MAP@R")[1] == "best"


def test_ranking_decides_nothing_under_six_seeds():
    table = ranking([made_up("a", 22.0), many_seeds(made_up("bb", 55.0))], "cub200_2010")
    assert verdicts(table) == ["best", "too few seeds", "too few seeds"]
    assert any("Fewer than 6 seeds" in note.en for note in table.notes)


def test_ranking_uses_the_untrained_record_when_there_is_one():
    table = ranking([made_up("a", 50.0), made_up("untrained", 40.0)], "cub200_2010")
    assert table.data["method"].tolist() == ["a", "untrained"]
    assert table.data["notebook"].tolist()[1] == "cub200_2010/untrained.ipynb"


def test_ranking_says_where_conditions_differ():
    records = [made_up("a", 50.0, params={"epochs": 1}), made_up("b", 50.0, params={"epochs": 2})]
    notes = [note.en for note in ranking(records, "cub200_2010").notes]
    assert "epochs — 1: a; 2: b." in notes
    assert not any(note.startswith("seeds") for note in notes)


def test_ranking_without_per_class_values_has_dashes_not_intervals():
    old = {"classes": ["x", "y"], "queries": [1, 1]}
    records = [made_up("a", 50.0, per_class=old), made_up("b", 49.0, per_class={})]
    table = ranking(records, "cub200_2010")
    assert table.texts[0][3] == ["+10.0"]
    assert verdicts(table) == verdicts(table, "MAP@R") == ["best", DASH, DASH]


def test_terminal_ranking_is_aligned_and_free_of_chinese():
    text = ranking([made_up("a", 50.0), made_up("bb", 55.0)], "cub200_2010").text()
    assert not re.search(r"[\u3000-\u9fff]", text)
    lines = text.splitlines()
    assert lines[4].index("55.0") == lines[5].index("50.0") == lines[6].index("40.0")
