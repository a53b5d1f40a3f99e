"""Methods compared with each other and with the untrained trunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dmlstudy.evaluation.uncertainty import Interval, class_bootstrap, t_interval
from dmlstudy.study.results import Record
from dmlstudy.study.tables import (
    DASH,
    Cell,
    Note,
    Part,
    Table,
    change,
    interval,
    notebook_link,
    number,
    signed,
)

UNTRAINED = "untrained"
BELOW = "where every row starts"
MIN_SEEDS = 6  # under this many, intervals only

Link = Callable[[str, str], str]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `half_width` of its 95 % interval is None for a single seed."""

    mean: float
    half_width: float | None
    seeds: int

    def __str__(self) -> str:
        return interval(self.mean, self.half_width) + (" (one seed)" if self.seeds == 1 else "")


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t interval over seeds."""
    mean, half_width = t_interval(values)
    return Estimate(mean, half_width if len(values) > 1 else None, len(values))


def improvement(record: Record, metric: str) -> float | None:
    """Mean over seeds less the untrained trunk's; None when either lacks the metric."""
    if metric not in record.metrics or metric not in record.baseline:
        return None
    return float(np.mean(record.metrics[metric]) - np.mean(record.baseline[metric]))


def untrained(record: Record) -> Record:
    """The untrained trunk that a run started from, as a record of its own."""
    per_class = {
        name.removeprefix("baseline "): values
        for name, values in record.per_class.items()
        if f"baseline {name}" not in record.per_class
    }
    own = {"method": UNTRAINED, "metrics": record.baseline, "per_class": per_class}
    return record.model_copy(update=own)


def class_interval(record: Record, other: Record, metric: str) -> Interval | None:
    """Paired interval of the difference, None where the test classes are not the same."""
    mine, theirs = record.per_class, other.per_class
    alike = all(mine.get(key) == theirs.get(key) for key in ("classes", "queries"))
    if not alike or metric not in mine or metric not in theirs:
        return None
    here, there = (np.mean(np.asarray(rows[metric], float), axis=0) for rows in (mine, theirs))
    return class_bootstrap(here - there, np.asarray(mine["queries"], float))


def ranking(
    records: Iterable[Record],
    dataset: str,
    metric: str = "R@1",
    *,
    protocol: Iterable[str] = (),
    link: Link = notebook_link,
) -> Table:
    """The equal-conditions ranking on one data set, best first, the untrained trunk among the rows.

    Args:
        protocol: names of parameters that equal conditions require to agree; where they do not, a
            note beneath the table says so.
    """
    here = sorted((r for r in records if r.dataset == dataset), key=lambda r: r.method)
    starts = [r for r in here if r.method == UNTRAINED]
    added = [untrained(r) for r in here[:1] if not starts]
    entries = sorted([*here, *added], key=lambda r: -np.mean(r.metrics.get(metric, -np.inf)))
    others = [other for other in ("R@1", "MAP@R", "NMI") if other != metric]
    lines = [
        _ranked(rank, entry, entries[0], [metric, *others], None if entry in added else link)
        for rank, entry in enumerate(entries, start=1)
    ]
    columns = ["", "method", metric, "Δ untrained trunk", *others, "not distinguishable from best"]
    return Table(
        name=f"ranking_{dataset}" + ("" if metric == "R@1" else f"_{metric.replace('@', '')}"),
        title=f"Equal conditions: {here[0].dataset_title if here else dataset}, {metric} (%)",
        columns=[*columns, "deviates from the protocol in"],
        rows=[cells for cells, _ in lines],
        data=pd.DataFrame([numbers for _, numbers in lines]),
        notes=_ranking_notes(here, dataset, metric, tuple(protocol)),
    )


def _ranked(
    rank: int, record: Record, best: Record, metrics: list[str], link: Link | None
) -> tuple[list[Cell], dict[str, Any]]:
    """The cells of a row, and the same as numbers."""
    trunk, (metric, *others) = record.method == UNTRAINED, metrics
    at = link and link(record.dataset, record.method)
    shown = {name: estimate(record.metrics[name]) for name in metrics if name in record.metrics}
    main = shown.get(metric)
    delta = None if trunk else improvement(record, metric)
    limits = None if trunk else class_interval(record, untrained(record), metric)
    alike = "best" if record is best else _contains_zero(class_interval(record, best, metric))
    start = Part("Untrained trunk", "" if at else "muted", at), Part(BELOW, "muted")
    cells: list[Cell] = [
        str(rank),
        start if trunk else Part(record.title, "", at),
        Part(str(main or DASH), "ours" if main and not trunk else ""),
        _delta_cell(delta, limits),
        *(str(shown.get(name, DASH)) for name in others),
        alike,
        DASH if trunk else "; ".join(record.deviations) or "nothing",
    ]
    return cells, {
        "rank": rank,
        "method": record.method,
        "mean": main and main.mean,
        "half_width": main and main.half_width,
        "seeds": main and main.seeds,
        "delta_untrained": delta,
        "delta_low": limits and limits[0],
        "delta_high": limits and limits[1],
        **{name: shown[name].mean if name in shown else None for name in others},
        "not_distinguishable_from_best": alike,
        "notebook": at,
    }


def _contains_zero(limits: Interval | None) -> str:
    if limits is None:
        return DASH
    return "yes" if limits[0] <= 0 <= limits[1] else "no"


def _delta_cell(delta: float | None, limits: Interval | None) -> Cell:
    if delta is None or limits is None:
        return DASH if delta is None else change(delta)
    low, high = map(signed, limits)
    return change(delta), Part(f"[{low}, {high}]", "muted")


def _ranking_notes(
    records: list[Record], dataset: str, metric: str, protocol: tuple[str, ...]
) -> list[Note]:
    if not records:
        return [Note(f"No finished run on {dataset} yet.")]
    notes = [Note(text) for text in dict.fromkeys(r.completeness for r in records) if text]
    notes.append(Note("± is the 95 % t interval over seeds: training noise only."))
    notes.append(
        Note(
            "[ ] is the 95 % interval of a paired bootstrap over test classes, of the mean over "
            "seeds: choice of the test set only. The two are never merged."
        )
    )
    if min(len(r.seeds) for r in records) < MIN_SEEDS:
        notes.append(Note(f"Fewer than {MIN_SEEDS} seeds: intervals only, no significance claims."))
    return notes + _unequal_conditions(records, metric, protocol)


def _unequal_conditions(
    records: list[Record], metric: str, protocol: tuple[str, ...]
) -> list[Note]:
    """A note for each condition that should be the same for all rows and is not."""
    trunk = f"the untrained trunk's {metric}"
    conditions = {record.method: {"seeds": str(record.seeds)} for record in records}
    for record in records:
        baseline = record.baseline.get(metric)
        at = conditions[record.method]
        at[trunk] = DASH if baseline is None else number(float(np.mean(baseline)))
        at |= {name: str(record.params.get(name, DASH)) for name in protocol}
    notes = []
    for name in ("seeds", trunk, *protocol):
        methods: dict[str, list[str]] = {}
        for method, at in conditions.items():
            methods.setdefault(at[name], []).append(method)
        if len(methods) > 1:
            listed = "; ".join(f"{value}: {', '.join(rows)}" for value, rows in methods.items())
            notes.append(Note(f"{name} — {listed}.", about="Conditions differ:"))
    return notes
