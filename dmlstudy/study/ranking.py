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


@dataclass(frozen=True)
class Entry:
    """A candidate of the ranking: a record, or the untrained trunk read off its baseline."""

    record: Record
    trunk: bool

    def values(self, metric: str) -> Sequence[float] | None:
        return (self.record.baseline if self.trunk else self.record.metrics).get(metric)

    def estimate(self, metric: str) -> Estimate | None:
        values = self.values(metric)
        return None if values is None else estimate(values)

    def score(self, metric: str) -> float:
        values = self.values(metric)
        return -np.inf if values is None else float(np.mean(values))

    def per_class(self, metric: str) -> np.ndarray | None:
        """Percent per test class [C], averaged over seeds."""
        name = f"baseline {metric}" if self.trunk else metric
        rows = self.record.per_class.get(name)
        return None if rows is None else np.mean(np.asarray(rows, dtype=float), axis=0)

    def minus(self, other: Entry, metric: str) -> Interval | None:
        """Paired interval of the difference, None where the test classes are not the same."""
        mine, theirs = self.record.per_class, other.record.per_class
        same = all(mine.get(key) == theirs.get(key) for key in ("classes", "queries"))
        here, there = self.per_class(metric), other.per_class(metric)
        if not same or here is None or there is None:
            return None
        return class_bootstrap(here - there, np.asarray(mine["queries"], dtype=float))


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
    entries = [Entry(r, trunk=r.method == UNTRAINED) for r in here]
    if here and not any(entry.trunk for entry in entries):
        entries.append(Entry(here[0], trunk=True))
    entries.sort(key=lambda entry: -entry.score(metric))
    others = [other for other in ("R@1", "MAP@R", "NMI") if other != metric]
    lines = [
        _ranked(rank, entry, entries[0], [metric, *others], link)
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
    rank: int, entry: Entry, best: Entry, metrics: list[str], link: Link
) -> tuple[list[Cell], dict[str, Any]]:
    """The cells of a row, and the same as numbers."""
    record, trunk, (metric, *others) = entry.record, entry.trunk, metrics
    at = None if trunk and record.method != UNTRAINED else link(record.dataset, record.method)
    shown = {name: entry.estimate(name) for name in metrics}
    main = shown[metric]
    delta = None if trunk else improvement(record, metric)
    low, high = (None if trunk else entry.minus(Entry(record, trunk=True), metric)) or (None, None)
    alike = "best" if entry is best else _contains_zero(entry.minus(best, metric))
    start = Part("Untrained trunk", "" if at else "muted", at), Part(BELOW, "muted")
    cells: list[Cell] = [
        str(rank),
        start if trunk else Part(record.title, "", at),
        Part(str(main or DASH), "ours" if main and not trunk else ""),
        _delta_cell(delta, low, high),
        *(str(shown[name] or DASH) for name in others),
        alike,
        DASH if trunk else "; ".join(record.deviations) or "nothing",
    ]
    return cells, {
        "rank": rank,
        "method": UNTRAINED if trunk else record.method,
        "mean": main and main.mean,
        "half_width": main and main.half_width,
        "seeds": main and main.seeds,
        "delta_untrained": delta,
        "delta_low": low,
        "delta_high": high,
        **{name: value and value.mean for name, value in shown.items() if name != metric},
        "not_distinguishable_from_best": alike,
        "notebook": at,
    }


def _contains_zero(limits: Interval | None) -> str:
    if limits is None:
        return DASH
    return "yes" if limits[0] <= 0 <= limits[1] else "no"


def _delta_cell(delta: float | None, low: float | None, high: float | None) -> Cell:
    if delta is None:
        return DASH
    if low is None or high is None:
        return change(delta)
    return change(delta), Part(f"[{signed(low)}, {signed(high)}]", "muted")


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
