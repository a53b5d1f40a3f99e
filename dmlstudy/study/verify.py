"""Does a record come out again? It is rerun from its own parameters and compared, number by number."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dmlstudy.errors import StudyError
from dmlstudy.evaluation import t_interval
from dmlstudy.study import results
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.notebook_report import Report
from dmlstudy.study.params import Settings, settings
from dmlstudy.study.results import Record

# What a record says besides what was measured.
DESCRIPTION = {"title", "dataset_title", "comparable", "completeness", "reported", "deviations"}
DESCRIPTION |= {"method", "dataset", "seeds", "params", "timing", "provenance", "version"}
# What decides the bits, by its name in the provenance; the processor's model only if the promise was broken.
CAUSES = {
    "instructions": "instruction set",
    "code": "code fingerprint",
    "lock": "lock",
    "python": "Python",
    "versions": "versions",
    "data": "data checksum",
    "device": "device",
    "processor": "processor",
}


@dataclass(frozen=True)
class Verdict:
    """What a rerun says about a record: in a word, in a sentence; if it differs, which recorded conditions do."""

    outcome: Literal["same", "noise", "different"]
    sentence: str
    causes: tuple[str, ...] = ()


def verify(path: Path, seeds: int = 0) -> Verdict:
    """Rerun a record in a temporary place, trained anew, and compare; decoded images may come from the cache.

    Args:
        seeds: how many of the record's first seeds; 0 for all.

    Raises:
        StudyError: no record, one that this code cannot run, or its data are missing.
    """
    old = results.load(path)
    chosen = _settings(old, path, seeds)
    with tempfile.TemporaryDirectory() as folder:
        report = Report(Experiment(chosen, lambda line: None, checkpoints=Path(folder)))
        report.train()
        new = report.record()
    return compare(old, new)


def compare(old: Record, new: Record) -> Verdict:
    """Judge a rerun, `new`, of all or of the first seeds of `old`.

    The same: every measured number that the old record holds, to its last digit. Within seed noise: in R@1 and MAP@R
    of the method, the untrained trunk and the controls, the two means over the n seeds rerun lie less than
    t s sqrt(2/n) apart, where s is the standard deviation over the method's seeds in the old record and t Student's
    95 % point. Otherwise different.
    """
    away = differences(old, new)
    count = f"{len(new.seeds)} of {len(old.seeds)} seeds"
    if not away:
        return Verdict("same", f"same to the last digit, {count}")
    causes = _causes(old.provenance, new.provenance)
    why = "; ".join(causes) or (
        "no recorded condition differs, so look for code outside the training: "
        f"commit {old.provenance.get('git')}, now {new.provenance.get('git')}"
    )
    gaps = _gaps(old, new)
    beyond = [gap for gap in gaps if not abs(gap.change) < gap.noise]
    shown = ", ".join(f"{g.name} {g.change:+.2f} (noise {g.noise:.2f})" for g in beyond or gaps[:2])
    sentence = f"{count}: {shown}; entries that changed: {len(away)}, first {away[0]}. Why: {why}"
    if beyond:
        return Verdict("different", f"different, {sentence}", causes)
    return Verdict("noise", f"within seed noise, {sentence}", causes)


def differences(old: Record, new: Record) -> list[str]:
    """Names of the measured numbers of `old` that `new` does not repeat; `new` may hold fewer seeds and more names."""
    before, now = old.model_dump(), new.model_dump()
    names = [n for n in Record.model_fields if n in old.model_fields_set - DESCRIPTION]
    return [entry for name in names for entry in _unlike(name, before[name], now[name])]


def _unlike(name: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(f"{name}.{key}", value, new.get(key)) for key, value in old.items()]
        return [entry for pair in pairs for entry in _unlike(*pair)]
    return [] if _begins(old, new) else [name]


def _begins(old: Any, new: Any) -> bool:
    """Whether nested lists agree; the new ones may be shorter, as they hold fewer seeds."""
    if isinstance(old, list) and isinstance(new, list):
        pairs = zip(old, new, strict=False)
        return 0 < len(new) <= len(old) and all(_begins(a, b) for a, b in pairs)
    return bool(old == new)


class _Gap(NamedTuple):
    name: str
    change: float
    noise: float


def _gaps(old: Record, new: Record) -> list[_Gap]:
    """Changes of the means of R@1 and MAP@R, of the method, the untrained trunk and the controls."""
    first = next((name for name in old.metrics if name.startswith("R@")), "")
    groups = [("", old.metrics, new.metrics), ("untrained ", old.baseline, new.baseline)]
    groups += [(f"{k}: ", old.controls[k], new.controls.get(k, {})) for k in old.controls]
    gaps = []
    for title, before, now in groups:
        for metric in (name for name in (first, "MAP@R") if name in before):
            values = now.get(metric, [])
            n = len(values) or 1
            change = np.mean(values or np.inf) - np.mean(before[metric][:n])
            seeds = old.metrics[metric]
            half = t_interval(seeds)[1] if len(seeds) > 1 else 0.0
            gaps.append(_Gap(title + metric, float(change), half * (2 * len(seeds) / n) ** 0.5))
    return gaps


def _settings(record: Record, path: Path, seeds: int) -> Settings:
    some = record.seeds[: seeds or len(record.seeds)]
    try:
        return settings(record.method, record.params | {"seeds": some})
    except StudyError as error:
        raise StudyError(f"{path} was made by other code and cannot be rerun: {error}") from error


def _causes(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{title} {_changed(old.get(key), new.get(key))}"
        for key, title in CAUSES.items()
        if old.get(key) != new.get(key)
    )


def _changed(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        return ", ".join(f"{name} {_changed(old.get(name), new.get(name))}" for name in names)
    return "not recorded" if old is None else f"{old}, now {new}"
