"""A record is written whole or not at all, and a broken one says so."""

import json
from pathlib import Path

import numpy as np
import pytest

from dmlstudy.errors import StudyError
from dmlstudy.project import PROJECT
from dmlstudy.study.results import Record, load, load_all, save

NAN = float("nan")
PER_CLASS = {"classes": ["a"], "queries": [1]}
COLLAPSE = {"states": ["no", "yes"], "loss": [0.123456789, 0.2], "at_a_point": [0.2, 0.2]}


def made_up(method="margin", dataset="glyphs", **changes) -> Record:
    content = {
        "method": method,
        "title": "Margin",
        "dataset": dataset,
        "dataset_title": "Glyphs",
        "seeds": [0, 1],
        "metrics": {"R@1": [50.123456789, 51.0]},
        "baseline": {"R@1": [40.0, 40.0]},
        "comparable": False,
        "completeness": "generated",
        "params": {"lr": 3e-05, "temperature": 0.123456789},
        "per_class": {"classes": ["甲", "b"], "queries": [3, 4], "R@1": [[0, 50], [100, 2]]},
    }
    return Record(**{**content, **changes})


def test_round_trip_keeps_parameters_exact_and_rounds_measurements(tmp_path):
    path = tmp_path / "glyphs" / "margin.json"
    new = {"collapse": {"method": COLLAPSE}, "epochs": {"test R@1": [[1, 2], [3, 4]]}}
    save(made_up(timing={"train": np.float32(1.5), "steps": np.arange(2)}, **new), path)
    record = load(path)
    assert record.metrics == {"R@1": [50.1235, 51.0]}
    assert record.collapse["method"].loss == [0.123457, 0.2]
    assert (record.collapsed(), record.collapsed("a control of an old record")) == ("yes", "no")
    assert record.epochs == {"test R@1": [[1.0, 2.0], [3.0, 4.0]]}
    assert record.params == {"lr": 3e-05, "temperature": 0.123456789}
    assert record.timing == {"train": 1.5, "steps": [0, 1]}
    assert record.per_class["classes"] == ["甲", "b"]
    assert load_all(tmp_path) == [record]


def test_file_is_sorted_readable_json_and_rewrites_identically(tmp_path):
    path = tmp_path / "margin.json"
    save(made_up(), path)
    text = path.read_text(encoding="utf-8")
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert '"seeds": [0, 1],\n' in text
    save(load(path), path)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("call", ["replace", "open"])
def test_failed_write_leaves_the_old_record_and_no_debris(tmp_path, monkeypatch, call):
    path = tmp_path / "margin.json"
    save(made_up(), path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, full)
        with pytest.raises(StudyError, match=r"No space left on device.*make room"):
            save(made_up(title="new"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"R@1": [50.0, NAN]}}, r"metrics\.R@1\[1\] must be a finite number, not nan"),
        ({"metrics": {}}, "metrics must have at least 1 item"),
        ({"metrics": {"R@1": [50.0]}}, "metrics.R@1 has 1 values for 2 seeds"),
        ({"metrics": {"R@1": ["50.0", 51.0]}}, r"metrics\.R@1\[0\] must be a valid number"),
        (
            {"metrics": {"R@1": [250.0, 50.0]}},
            "metrics must hold R@1 in percent, 0 to 100, and has 250",
        ),
        ({"baseline": {"NMI": [-7.0, 1.0]}}, "baseline must hold NMI in percent"),
        (
            {"controls": {"random": {"AUROC": [101.0]}}},
            "controls.random must hold AUROC in percent",
        ),
        ({"controls": {"random": {"R@1": [1.0] * 3}}}, "controls.random.R@1 has 3 values"),
        ({"controls": {"random": {"R@1": []}}}, "controls.random.R@1 has 0 values"),
        ({"seeds": [0, 0]}, "seeds must not repeat values"),
        ({"seeds": []}, "seeds must have at least 1 item"),
        ({"comparable": 0}, "comparable must be a valid boolean, not 0"),
        ({"method": "../x"}, "method must be a name that a file can have, not '../x'"),
        ({"reported": {"R@1": NAN}}, "reported.R@1 must be a finite number"),
        ({"params": {"lr": [NAN]}}, "params.lr.* must be a finite number"),
        ({"params": {"device": object()}}, "device is of type object"),
        ({"per_class": {"classes": ["a"]}}, "per_class lacks classes or queries"),
        ({"per_class": PER_CLASS | {"R@1": [[1.0], [NAN]]}}, "per_class.R@1.* finite number"),
        ({"per_class": PER_CLASS | {"R@1": [[1.0]]}}, "per_class.R@1 has 1 rows for 2 seeds"),
        ({"per_class": PER_CLASS | {"R@1": [[1.0], [1.0, 2.0]]}}, "R@1 must have 1 values"),
        ({"epochs": {"test R@1": [[1.0, 2.0]]}}, "epochs.test R@1 has 1 values for 2 seeds"),
        ({"epochs": {"test R@1": [[1.0], [NAN]]}}, "epochs.test R@1.* finite number"),
        ({"collapse": {"method": COLLAPSE | {"states": ["maybe"] * 2}}}, "states.* must be 'no'"),
        ({"collapse": {"5 bins": COLLAPSE | {"loss": []}}}, "collapse.5 bins.loss has 0 values"),
        ({"metric": {}}, "unknown entry metric"),
    ],
)
def test_what_breaks_the_contract_is_no_record(changes, message):
    with pytest.raises(StudyError, match=message):
        made_up(**changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:100], "cannot be read as JSON"),
        (lambda text: text.replace("51.0", "NaN"), r"R@1\[1\] must be a finite number, not nan"),
        (lambda text: text.replace("51.0", "-7.0"), "must hold R@1 in percent"),
        (lambda text: text.replace('"schema": 1', '"schema": 7'), "schema must be 1, not 7"),
        (lambda text: text.replace('"title"', '"titel"'), "it lacks title"),
        (lambda text: "[]", "not a JSON object"),
    ],
)
def test_broken_records_name_file_fault_and_remedy(tmp_path, damage, message):
    path = tmp_path / "glyphs" / "margin.json"
    save(made_up(), path)
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(StudyError, match=message) as caught:
        load_all(tmp_path)
    assert str(path) in str(caught.value)
    assert "delete it and run again" in str(caught.value)


def test_committed_records_load_and_are_written_unchanged(tmp_path):
    paths = [p for p in (PROJECT / "reports").glob("*/*.json") if p.parent.name != "local"]
    assert paths
    for path in paths:
        save(load(path), tmp_path / "copy.json")
        copy, committed = (json.loads(p.read_text()) for p in (tmp_path / "copy.json", path))
        assert copy == {"collapse": {}, "epochs": {}} | committed, path


def test_all_broken_records_are_named_at_once(tmp_path):
    for name in ("a", "b"):
        save(made_up(), tmp_path / "glyphs" / f"{name}.json")
    with pytest.raises(StudyError, match=r"a\.json(.|\n)*b\.json.*belongs at glyphs/margin\.json"):
        load_all(tmp_path)


def test_no_records_yet(tmp_path):
    assert load_all(tmp_path / "nowhere") == []
    with pytest.raises(StudyError, match="run this method first"):
        load(tmp_path / "none.json")
