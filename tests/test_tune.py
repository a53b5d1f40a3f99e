"""The search: the same budget for every row, resumable, only within ranges, the best by MAP@R written down."""

import json

import pandas as pd
import pytest

from dmlstudy.errors import DivergedError, StudyError
from dmlstudy.methods import METHODS
from dmlstudy.study import parameter_files, tune
from dmlstudy.study.parameter_files import load_params
from dmlstudy.study.params import settings
from dmlstudy.study.tune import OBJECTIVE, RANGES, draw, ranked_trials, read_trials, search_table

SMALL = {"p": 2, "k": 4, "epochs": 1}


@pytest.mark.parametrize("method", METHODS)
def test_trials_stay_in_their_ranges_and_give_every_row_the_same_rates(method):
    paper = settings(method, load_params(method, "glyphs", tuned=False)).flat
    other = settings("fastap", load_params("fastap", "glyphs", tuned=False)).flat
    assert draw(method, paper, 0) == {}
    for trial in range(1, 30):
        changed = draw(method, paper, trial)
        settings(method, changed)  # all within the ranges that the methods declare
        assert changed["lr"] == draw("fastap", other, trial)["lr"]
        assert changed == draw(method, paper, trial)
        for name, value in changed.items():
            if name not in ("unit", "head_scale"):
                assert value != 0 and not isinstance(value, bool)
                wide = max(RANGES.rate, RANGES.own) * 1.01
                assert 1 / wide <= value / paper[name] <= wide or value == 1


def test_a_head_alone_has_no_rate_for_the_trunk():
    paper = settings("fastap", load_params("fastap", "glyphs", tuned=False)).flat
    assert "trunk_lr" in draw("fastap", paper, 1)
    assert "trunk_lr" not in draw("fastap", paper | {"trained": "head"}, 1)


@pytest.fixture
def own_params(tmp_path, monkeypatch):
    (tmp_path / "params").symlink_to(parameter_files.PARAMS)
    monkeypatch.setattr(tune, "PARAMS", tmp_path / "written")
    return tmp_path / "written"


def search(folder, trials=2, log=print):
    return tune.tune(
        "fastap", "digits", folder, trials=trials, folds=(0, 1), overrides=SMALL, log=log
    )


def test_a_search_resumes_extends_and_writes_the_best(tmp_path, own_params):
    lines: list[str] = []
    frame = search(tmp_path, log=lines.append)
    assert len(lines) == len(frame) == 4
    search(tmp_path, log=lines.append)
    assert len(lines) == 4  # nothing was left to do
    search(tmp_path, trials=3, log=lines.append)
    assert len(lines) == 6

    trials = read_trials(tmp_path / "digits" / "fastap.csv")
    means = trials.groupby("trial")[OBJECTIVE].mean()
    best = trials[trials["trial"] == means.idxmax()].iloc[0]
    written = parameter_files.read_yaml(own_params / "tuned" / "digits" / "fastap.yaml")
    assert written == json.loads(best["changed"])
    table = search_table(tmp_path)
    assert table.data["tuned"].tolist() == [pytest.approx(means.max())]

    # A trial of other code is run again.
    trials.loc[0, "code"] = "another"
    trials.to_csv(tmp_path / "digits" / "fastap.csv", index=False)
    search(tmp_path, trials=3, log=lines.append)
    assert len(lines) == 7


def test_a_trial_that_diverges_loses_and_the_search_goes_on(tmp_path, own_params, monkeypatch):
    run = tune.Experiment.run

    def diverging(self, seed, changed):
        if not changed:
            raise DivergedError("The loss is not finite.")
        return run(self, seed, changed)

    monkeypatch.setattr(tune.Experiment, "run", diverging)
    frame = search(tmp_path)
    assert frame.loc[frame["trial"] == 0, OBJECTIVE].isna().all()
    assert ranked_trials(frame)["trial"].tolist() == [1]
    text = (own_params / "tuned" / "digits" / "fastap.yaml").read_text()
    assert "with the paper's values diverged" in text and "lr: " in text


def test_a_trial_counts_only_with_all_its_folds():
    frame = pd.DataFrame(
        {
            "trial": [0, 0, 1, 1],
            "fold": [0, 1, 0, 1],
            "changed": ["{}", "{}", "{1}", "{1}"],
            "R@1": [1.0, 1.0, 9.0, None],
            OBJECTIVE: [1.0, 3.0, 9.0, None],
        }
    )
    assert ranked_trials(frame)[OBJECTIVE].tolist() == [2.0]
    with pytest.raises(StudyError, match="Every trial diverged"):
        ranked_trials(frame[frame["trial"] == 1])


def test_mistakes_end_the_search_before_it_trains(tmp_path, own_params):
    with pytest.raises(StudyError, match="lower p"):
        tune.tune("fastap", "digits", tmp_path, trials=1, folds=(0, 1))
    assert not (tmp_path / "digits").exists()
