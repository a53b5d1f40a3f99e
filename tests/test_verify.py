"""Records that come out again, and what is said of those that do not."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmlstudy.__main__ import app
from dmlstudy.errors import StudyError
from dmlstudy.project import PROJECT
from dmlstudy.study import results
from dmlstudy.study import verify as verifying
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.notebook_report import Report
from dmlstudy.study.params import settings
from dmlstudy.study.verify import Verdict, compare, verify

SMALL = {"seeds": [3, 4], "ks": [1, 2], "nmi_seeds": 1, "control_seeds": 2, "epochs": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small record, its file, and the cache that its run left."""
    folder = tmp_path_factory.mktemp("verify")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMLSTUDY_CACHE", str(folder / "cache"))
        report = Report(Experiment(settings("multi_similarity", SMALL), lambda line: None))
        report.train()
        results.save(report.record(), folder / "multi_similarity.json")
    return results.load(folder / "multi_similarity.json"), folder


@pytest.fixture
def record(made):
    return made[0].model_copy(deep=True)


def test_a_rerun_trains_anew_and_is_the_same(made, monkeypatch):
    record, folder = made
    monkeypatch.setenv("DMLSTUDY_CACHE", str(folder / "cache"))
    checkpoints = list((folder / "cache" / "runs").iterdir())
    for checkpoint in checkpoints:
        checkpoint.write_text("no checkpoint")
    verdict = verify(folder / "multi_similarity.json", seeds=1)
    assert verdict == Verdict("same", "same to the last digit, 1 of 2 seeds")
    assert {path.read_text() for path in checkpoints} == {"no checkpoint"}
    assert record.controls  # were part of it


def test_more_than_the_old_record_holds_is_no_difference(record):
    old = record.model_copy(deep=True)
    del old.metrics["AUROC"], old.controls["no mining"]
    old.per_class.clear()
    assert compare(old, record).outcome == "same"


@pytest.mark.parametrize(
    "place, entry",
    [
        (lambda r: r.metrics["NMI"], "metrics.NMI"),
        (lambda r: r.baseline["MAP@R"], "baseline.MAP@R"),
        (lambda r: r.controls["no mining"]["R@2"], "controls.no mining.R@2"),
        (lambda r: r.per_class["R@1"][1], "per_class.R@1"),
        (lambda r: r.per_class["queries"], "per_class.queries"),
    ],
)
def test_one_digit_anywhere_is_noticed(record, place, entry):
    new = record.model_copy(deep=True)
    place(new)[-1] += 1e-4
    assert verifying.differences(record, new) == [entry]
    assert f"entries that changed: 1, first {entry}" in compare(record, new).sentence


def test_what_the_rerun_lacks_is_noticed(record):
    new = record.model_copy(deep=True)
    del new.controls["no mining"], new.metrics["R@2"]
    assert verifying.differences(record, new) == ["metrics.R@2", "controls.no mining"]


def test_noise_is_judged_by_the_spread_of_the_seeds(record):
    record.metrics.update({"R@1": [50.0, 52.0], "MAP@R": [30.0, 30.2]})
    new = record.model_copy(deep=True)
    # t(1) = 12.71, s = 0.141, two of two seeds: 12.71 * 0.141 * sqrt(2 / 2) = 1.80
    new.metrics["MAP@R"] = [31.8, 31.8]
    assert compare(record, new).outcome == "noise"
    assert "MAP@R +1.70 (noise 1.80)" in compare(record, new).sentence
    new.metrics["MAP@R"] = [32.0, 32.0]
    assert compare(record, new).outcome == "different"


@pytest.mark.parametrize("group", ["untrained", "no mining"])
def test_the_trunk_and_the_controls_must_come_out_again_too(record, group):
    new = record.model_copy(deep=True)
    (new.baseline if group == "untrained" else new.controls[group])["R@1"][:] = [0.0, 0.0]
    verdict = compare(record, new)
    assert verdict.outcome == "different"
    assert f"{group} R@1 -" in verdict.sentence.replace(": R@1", " R@1")


def test_a_record_of_one_seed_has_no_noise_to_hide_in(record):
    for values in (*record.metrics.values(), record.seeds):
        del values[1:]
    new = record.model_copy(deep=True)
    new.metrics["MAP@R"][0] += 1e-3
    assert compare(record, new).outcome == "different"


def test_causes_are_named(record):
    record.provenance.update({"code": "abc", "data": "xyz", "instructions": None})
    record.provenance["versions"]["torch"] = "1.0"
    new = record.model_copy(deep=True)
    new.metrics["R@1"][0] += 1.0
    assert compare(record, new).causes == ()
    assert "no recorded condition differs" in compare(record, new).sentence
    new.provenance.update({"code": "abd", "data": "xyw", "instructions": {"torch": "AVX2"}})
    new.provenance["versions"]["torch"] = "2.0"
    assert compare(record, new).causes == (
        "instruction set not recorded",
        "code fingerprint abc, now abd",
        "versions torch 1.0, now 2.0",
        "data checksum xyz, now xyw",
    )


def test_records_of_other_code_and_broken_ones_end_in_a_sentence(record, tmp_path):
    path = tmp_path / "record.json"
    record.params["gone"] = 1
    results.save(record, path)
    with pytest.raises(StudyError, match=r"record\.json was made by other code.*'gone'"):
        verify(path)
    path.write_text("{")
    with pytest.raises(StudyError, match=r"record .*record\.json is broken"):
        verify(path)


@pytest.mark.parametrize("outcome, code", [("same", 0), ("noise", 0), ("different", 1)])
def test_exit_code_of_the_command(outcome, code, monkeypatch):
    asked = []

    def judge(path, seeds):
        asked.append((path, seeds))
        return Verdict(outcome, outcome)

    monkeypatch.setattr(verifying, "verify", judge)
    done = CliRunner().invoke(app, ["verify", "a.json", "b.json", "--seeds", "2"])
    assert done.exit_code == code
    assert asked == [(Path("a.json"), 2), (Path("b.json"), 2)]
    assert f"b.json: {outcome}" in done.output


def test_a_broken_record_does_not_stop_the_others(made, monkeypatch):
    def judge(path, seeds):
        if path.name == "bad.json":
            raise StudyError("broken")
        return Verdict("same", "same")

    monkeypatch.setattr(verifying, "verify", judge)
    done = CliRunner().invoke(app, ["verify", "bad.json", "good.json"])
    assert done.exit_code == 1
    assert "good.json: same" in done.output


@pytest.mark.parametrize("method", ["multi_similarity", "fastap"])
def test_committed_records_come_out_again(method):
    """On any processor with AVX2; only other code, libraries or data excuse other numbers."""
    verdict = verify(PROJECT / "reports" / "glyphs" / f"{method}.json", seeds=1)
    excuses = [cause for cause in verdict.causes if not cause.startswith("processor ")]
    if excuses:
        pytest.skip(f"the record is of other conditions: {'; '.join(excuses)}")
    assert verdict.outcome == "same", verdict.sentence
