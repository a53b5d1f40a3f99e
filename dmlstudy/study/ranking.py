"""Methods compared with each other and with the untrained trunk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import nan
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dmlstudy.evaluation.uncertainty import Interval, class_bootstrap, t_interval
from dmlstudy.study.collapse import MARKS, rule_note
from dmlstudy.study.params import PRESENTATION, Protocol
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
MIN_SEEDS = 6  # under this many, intervals only
METRIC, *OTHERS = "R@1", "MAP@R", "NMI"


class Estimate(NamedTuple):
    """Mean over seeds and half width of its 95 % t interval, NaN for a single seed; all empty without a value."""

    mean: float = nan
    half_width: float = nan
    seeds: int | None = None

    def __str__(self) -> str:
        return interval(self.mean, self.half_width) + (" (one seed)" if self.seeds == 1 else "")


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t interval over seeds."""
    return Estimate(*t_interval(values), len(values)) if values else Estimate()


def improvement(record: Record, metric: str) -> float:
    """Mean over seeds less the untrained trunk's; NaN when either lacks the metric."""
    scores = record.metrics, record.baseline
    here, start = (estimate(values.get(metric, ())).mean for values in scores)
    return here - start


def untrained(record: Record) -> Record:
    """The untrained trunk that a run started from, as a record of its own."""
    per_class = {
        name.removeprefix("baseline "): values
        for name, values in record.per_class.items()
        if f"baseline {name}" not in record.per_class
    }
    own = {"method": UNTRAINED, "metrics": record.baseline, "per_class": per_class}
    return record.model_copy(update=own)


def class_interval(record: Record, other: Record) -> Interval:
    """Paired interval of the difference in R@1, NaN where the test classes are not the same."""
    mine, theirs = record.per_class, other.per_class
    alike = all(mine.get(key) == theirs.get(key) for key in ("classes", "queries"))
    if not alike or METRIC not in mine or METRIC not in theirs:
        return nan, nan
    here, there = (np.mean(np.asarray(rows[METRIC], float), axis=0) for rows in (mine, theirs))
    return class_bootstrap(here - there, np.asarray(mine["queries"], float))


def ranking(records: Iterable[Record], dataset: str) -> Table:
    """The equal-conditions ranking on one data set by R@1, best first, the untrained trunk among the rows."""
    here = sorted((r for r in records if r.dataset == dataset), key=lambda r: r.method)
    starts = [r for r in here if r.method == UNTRAINED]
    added = [untrained(r) for r in here[:1] if not starts]
    entries = sorted([*here, *added], key=lambda r: -np.mean(r.metrics.get(METRIC, -np.inf)))
    lines = [_ranked(i, r, entries[0], r not in added) for i, r in enumerate(entries, start=1)]
    columns = ["", "method", METRIC, "Δ untrained trunk", *OTHERS, "not distinguishable from best"]
    return Table(
        name=f"ranking_{dataset}",
        title=f"Equal conditions: {here[0].dataset_title if here else dataset}, {METRIC} (%)",
        columns=[*columns, "deviates from the protocol in"],
        rows=[cells for cells, _ in lines],
        data=pd.DataFrame([numbers for _, numbers in lines]),
        notes=_notes(here) if here else [Note(f"No finished run on {dataset} yet.")],
    )


def _ranked(
    rank: int, record: Record, best: Record, executed: bool
) -> tuple[list[Cell], dict[str, Any]]:
    """The cells of a row, and the same as numbers; `executed`: a notebook of its own shows it."""
    trunk = record.method == UNTRAINED
    here, *others = (estimate(record.metrics.get(name, ())) for name in (METRIC, *OTHERS))
    delta = nan if trunk else improvement(record, METRIC)
    low, high = (nan, nan) if trunk else class_interval(record, untrained(record))
    alike = "best" if record is best else _contains_zero(*class_interval(record, best))
    link = notebook_link(record.dataset, record.method) if executed else None
    start = Part("Untrained trunk", "" if link else "muted", link)
    limits = () if np.isnan(low) else (Part(f"[{signed(low)}, {signed(high)}]", "muted"),)
    cells: list[Cell] = [
        str(rank),
        (start, Part("where every row starts", "muted"))
        if trunk
        else Part(record.title + MARKS[record.collapsed()], "", link),
        Part(str(here), "" if trunk else "ours"),
        DASH if trunk else (change(delta), *limits),
        *map(str, others),
        alike,
        DASH if trunk else "; ".join(record.deviations) or "nothing",
    ]
    numbers = {"rank": rank, "method": record.method, **here._asdict()}
    numbers |= {"delta_untrained": delta, "delta_low": low, "delta_high": high}
    numbers |= {name: other.mean for name, other in zip(OTHERS, others, strict=True)}
    return cells, numbers | {"not_distinguishable_from_best": alike, "notebook": link}


def _contains_zero(low: float, high: float) -> str:
    if np.isnan(low):
        return DASH
    return "yes" if low <= 0 <= high else "no"


def _notes(records: list[Record]) -> list[Note]:
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
    notes += rule_note(MARKS[r.collapsed()] for r in records)
    return notes + _unequal_conditions(records)


def _unequal_conditions(records: list[Record]) -> list[Note]:
    """A note for each condition that should be the same for all rows and is not."""
    protocol = {k: v for k, v in Protocol().model_dump().items() if k not in PRESENTATION}
    conditions = pd.DataFrame(
        {
            "seeds": str(r.seeds),
            f"the untrained trunk's {METRIC}": number(estimate(r.baseline.get(METRIC, ())).mean),
            **{name: str(r.params.get(name, default)) for name, default in protocol.items()},
        }
        for r in records
    )
    methods = pd.Series([r.method for r in records])
    notes = []
    for name, values in conditions.items():
        listed = methods.groupby(values, sort=False).agg(", ".join)
        if len(listed) > 1:
            text = "; ".join(f"{value}: {rows}" for value, rows in listed.items())
            notes.append(Note(f"{name} — {text}.", about="Conditions differ:"))
    return notes
