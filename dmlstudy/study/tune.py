"""Random search on validation folds, by the same budget for every row: rates, length and the row's own numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from dmlstudy.errors import DivergedError, StudyError
from dmlstudy.evaluation import JUDGED
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.fingerprint import code_fingerprint
from dmlstudy.study.parameter_files import PARAMS, RATES, load_params
from dmlstudy.study.params import settings, short_name
from dmlstudy.study.tables import Cell, Note, Part, Table, number
from dmlstudy.whole_file import whole_file

OBJECTIVE = "MAP@R"  # mean over folds
COLUMNS = ["trial", "fold", *JUDGED, "seconds", "code", "changed", "fault"]


class Ranges(NamedTuple):
    """How far the search goes: a value is the paper's times a factor, drawn evenly on a logarithmic scale."""

    rate: float = 5.0  # learning rates, either way
    own: float = 4.0  # a row's own numbers, either way
    whole: float = 2.0  # its whole numbers, either way
    shortest: float = 1 / 32  # factor on the head's output where lengths are free
    kept: float = 0.5  # share of trials in which an own number keeps the paper's value


RANGES = Ranges()


def draw(method: str, paper: Mapping[str, Any], trial: int) -> dict[str, Any]:
    """What a trial changes in the parameters of the paper; trial 0 changes nothing.

    The same trial draws the same learning rates for every row. Texts, switches other than `unit`, values of 0 and None
    stay: to change them is to choose another variant, which is what controls are for.

    Args:
        paper: checked parameters without tuned values.
    """
    if trial == 0:
        return {}
    rng = np.random.default_rng(trial)
    rates = RATES[:1] if paper["trained"] == "head" else RATES
    changed = {name: _near(rng, paper[name], RANGES.rate) for name in rates}
    own = settings(method, {}).hyper
    if "unit" in own and rng.random() < 0.5:
        changed["unit"] = not paper["unit"]
    if "head_scale" in own and not (own | changed).get("unit"):
        changed["head_scale"] = _rounded(RANGES.shortest ** rng.random())
    for name in sorted(own.keys() - {"unit", "head_scale"}):
        value, keeps = paper[name], rng.random() < RANGES.kept
        if isinstance(value, bool) or not isinstance(value, int | float) or not value or keeps:
            continue
        factor = RANGES.whole if isinstance(value, int) else RANGES.own
        if _valid(method, name, near := _near(rng, value, factor)):
            changed[name] = near
    return changed


def _near(rng: np.random.Generator, value: float, factor: float) -> float:
    near = value * factor ** rng.uniform(-1, 1)
    return max(1, round(near)) if isinstance(value, int) else _rounded(near)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _valid(method: str, name: str, value: float) -> bool:
    try:
        settings(method, {name: value})
    except StudyError:
        return False  # outside the range of this hyperparameter
    return True


def tune(
    method: str,
    dataset: str,
    folder: Path,
    *,
    trials: int,
    folds: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Run every trial on every fold, then write the best one's values to `params/tuned/<dataset>/<method>.yaml`.

    Trials that the folder has of the same code and parameters are not run again, so a search can be interrupted and
    extended.

    Args:
        dataset: a data set, or a data set and a protocol.
        folder: of the trials, `<folder>/<dataset>/<method>.csv`.
        overrides: parameters of all trials.
        log: takes a line per trial and fold.

    Returns:
        The trials: one line per trial and fold; no scores where the training diverged or the row refuses the values.
    """
    path = folder / short_name(dataset) / f"{method}.csv"
    known = read_trials(path)
    cheap = {"nmi_seeds": 1, "epoch_scores": False}
    given = load_params(method, dataset, cheap | dict(overrides or {}), tuned=False)
    paper = settings(method, given).flat
    changes = [draw(method, paper, trial) for trial in range(trials)]
    for fold in folds:
        experiment = Experiment(settings(method, given | {"fold": fold}), log=lambda line: None)
        for trial, changed in enumerate(changes):
            place = {"trial": trial, "fold": fold}
            origin = {"code": code_fingerprint(method), "changed": json.dumps(changed)}
            here = (known[list(place)] == list(place.values())).all(axis=1)
            if (known.loc[here, list(origin)] == list(origin.values())).all(axis=1).any():
                continue
            line = place | origin | _scores(experiment, changed)
            known = pd.concat([known[~here], pd.DataFrame([line])]).sort_values(["trial", "fold"])
            with whole_file(path, "make room, then tune again") as partial:
                known.to_csv(partial, index=False)
            log(f"{method} on {dataset}, fold {fold}, trial {trial}/{trials}: {_shown(line)}")
    frame = known[(known["trial"] < trials) & known["fold"].isin(folds)]
    _write_best(PARAMS / "tuned" / short_name(dataset) / f"{method}.yaml", frame)
    return frame


def read_trials(path: Path) -> pd.DataFrame:
    """The trials in a file; none if there is no file."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    return pd.read_csv(path, float_precision="round_trip")


def ranked_trials(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over folds of every trial that ran on all of them, the best by MAP@R first.

    Raises:
        StudyError: all trials diverged.
    """
    ran = frame.dropna(subset=[OBJECTIVE]).groupby(["trial", "changed"], as_index=False)
    means = ran.agg(**{name: (name, "mean") for name in JUDGED}, folds=("fold", "nunique"))
    complete = means[means["folds"] == frame["fold"].nunique()]
    if complete.empty:
        raise StudyError("Every trial diverged on some fold: lower the data set's learning rates.")
    return complete.sort_values(OBJECTIVE, ascending=False, kind="stable", ignore_index=True)


def found(frame: pd.DataFrame) -> dict[str, Any]:
    """The best trial, and MAP@R with the paper's values, NaN where those diverged."""
    means = ranked_trials(frame)
    paper = means.loc[means["trial"] == 0, OBJECTIVE]
    best = means.iloc[0]
    return {
        "trials": frame["trial"].nunique(),
        "paper": float(paper.iloc[0]) if len(paper) else nan,
        "tuned": best[OBJECTIVE],
        "R@1": best["R@1"],
        "trial": best["trial"],
        "changed": best["changed"],
    }


def _scores(experiment: Experiment, changed: dict[str, Any]) -> dict[str, Any]:
    seed = experiment.protocol.seeds[0]
    try:
        run = experiment.run(seed, changed)
    except StudyError as error:
        if not changed and not isinstance(error, DivergedError):
            raise  # the protocol cannot be run; else only these values cannot
        return dict.fromkeys(JUDGED, nan) | {"seconds": nan, "fault": str(error)}
    metrics = run.evaluation.metrics
    measured = {name: round(metrics[name], 3) for name in JUDGED}
    return measured | {"seconds": round(run.progress.seconds, 1), "fault": ""}


def _shown(line: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{name} {number(line[name])}" for name in JUDGED)
    return f"{scores}; {values(line['changed'])}" + (line["fault"] and f" ({line['fault']})")


def values(changed: str) -> str:
    """The values of a trial in words.

    >>> values('{"lr": 0.001, "unit": true}'), values("{}")
    ('lr 0.001, unit', "the paper's")
    """
    given = json.loads(changed).items()
    words = [("" if v else "not ") + k if isinstance(v, bool) else f"{k} {v:g}" for k, v in given]
    return ", ".join(words) or "the paper's"


def _write_best(path: Path, frame: pd.DataFrame) -> None:
    best, folds = found(frame), ", ".join(map(str, sorted(frame["fold"].unique())))
    paper = "diverged" if isnan(best["paper"]) else f"{best['paper']:.1f}"
    text = (
        f"# Chosen by `tune`: trial {best['trial']} of {best['trials']} on validation folds {folds}; "
        f"{OBJECTIVE} {best['tuned']:.1f}, with the paper's values {paper}.\n"
    )
    chosen = json.loads(best["changed"])
    with whole_file(path, "make room, then tune again") as partial:
        partial.write_text(text + (yaml.safe_dump(chosen, sort_keys=False) if chosen else ""))


def search_table(folder: Path) -> Table:
    """What the search found, a line per data set and method."""
    files = sorted(folder.glob("[!.]*/[!.]*.csv"))
    lines = [
        {"dataset": path.parent.name, "method": path.stem} | found(read_trials(path))
        for path in files
    ]
    rows: list[list[Cell]] = [
        [
            line["dataset"],
            line["method"],
            str(line["trials"]),
            number(line["paper"]),
            Part(number(line["tuned"]), "ours"),
            number(line["R@1"]),
            values(line["changed"]),
        ]
        for line in lines
    ]
    heads = ["data set", "method", "trials", "MAP@R, the paper's values", "MAP@R, best trial"]
    note = (
        "Random search on class-disjoint validation folds of the training classes, the same number of trials and the "
        "same ranges for every row; means over folds, in percent. The best of several trials is a little lucky."
    )
    return Table(
        name="search",
        title="How each row was tuned",
        columns=[*heads, "R@1", "values"],
        rows=rows,
        data=pd.DataFrame(lines),
        notes=[Note(note if rows else "No search has run yet.")],
    )
