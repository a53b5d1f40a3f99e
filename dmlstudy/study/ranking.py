"""Methods compared with each other and with the untrained trunk, over seeds and over test classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import nan
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dmlstudy.evaluation import JUDGED
from dmlstudy.evaluation.uncertainty import MIN_SEEDS, Difference, class_difference, t_interval
from dmlstudy.study.collapse import MARKS, rule_note
from dmlstudy.study.parameter_files import RATES
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
    signed,
)

UNTRAINED = "untrained"
STILL = (UNTRAINED, "raw")  # rows without training
LEVEL = 0.05
SAME = "not distinguishable from best"
FEW = "too few seeds"
DRAWN_EN = "new seeds and for new classes like these"
DRAWN_ZH = "推断对象为新的种子与同类的新类别"


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


def difference(record: Record, other: Record, metric: str) -> Difference:
    """One run less another; unknown where a record lacks the metric by class or the classes are not the same."""
    mine, theirs = record.per_class, other.per_class
    alike = all(mine.get(key) == theirs.get(key) for key in ("classes", "queries"))
    if not alike or metric not in mine or metric not in theirs:
        return Difference()
    here, there = (np.asarray(rows[metric], float) for rows in (mine, theirs))
    return class_difference(here, there, np.asarray(mine["queries"], float))


def ranking(records: Iterable[Record], dataset: str) -> Table:
    """The equal-conditions ranking on one data set by R@1, best first, the untrained trunk among the rows."""
    here = sorted((r for r in records if r.dataset == dataset), key=lambda r: r.method)
    starts = [r for r in here if r.method == UNTRAINED]
    added = [untrained(r) for r in here[:1] if not starts]
    entries = sorted([*here, *added], key=lambda r: -_mean(r, JUDGED[0]))
    lines = [_ranked(i, r, entries, r not in added) for i, r in enumerate(entries, start=1)]
    scores = [head for metric in JUDGED for head in (metric, f"Δ {metric}")]
    return Table(
        name=f"ranking_{dataset}",
        title=f"Equal conditions: {here[0].dataset_title if here else dataset}, by {JUDGED[0]} (%)",
        columns=["", "method", *scores, "NMI", SAME, "deviates from the protocol in"],
        rows=[cells for cells, _ in lines],
        data=pd.DataFrame([numbers for _, numbers in lines]),
        notes=_notes(here) if here else [Note(f"No finished run on {dataset} yet.")],
    )


def _mean(record: Record, metric: str) -> float:
    return float(np.mean(record.metrics.get(metric, -np.inf)))


def _ranked(
    rank: int, record: Record, entries: Sequence[Record], executed: bool
) -> tuple[list[Cell], dict[str, Any]]:
    """The cells of a row, and the same as numbers; `executed`: a notebook of its own shows it."""
    trunk = record.method == UNTRAINED
    link = notebook_link(record.dataset, record.method) if executed else None
    start = Part("Untrained trunk", "" if link else "muted", link)
    cells: list[Cell] = [
        str(rank),
        (start, Part("where every row starts", "muted"))
        if trunk
        else Part(record.title + MARKS[record.collapsed()], "", link),
    ]
    numbers: dict[str, Any] = {"rank": rank, "method": record.method, "seeds": len(record.seeds)}
    for metric in JUDGED:
        scored, values = _scored(record, entries, metric)
        cells += scored
        numbers |= {f"{metric} {head}": value for head, value in values.items()}
    nmi = estimate(record.metrics.get("NMI", ()))
    alike = tuple(Part(f"{metric}: {numbers[f'{metric} {SAME}']}") for metric in JUDGED)
    cells += [str(nmi), alike, DASH if trunk else "; ".join(record.deviations) or "nothing"]
    return cells, numbers | {"NMI mean": nmi.mean, "notebook": link}


def _scored(
    record: Record, entries: Sequence[Record], metric: str
) -> tuple[list[Cell], dict[str, Any]]:
    """Score and change to the untrained trunk by one metric, as cells and as numbers."""
    trunk = record.method in STILL
    here = estimate(record.metrics.get(metric, ()))
    delta = nan if trunk else improvement(record, metric)
    gain = Difference() if trunk else difference(record, untrained(record), metric)
    half = gain.half_width(comparisons=max(len(entries) - 1, 1))
    low, high = gain.mean - half, gain.mean + half
    limits = () if np.isnan(half) else (Part(f"[{signed(low)}, {signed(high)}]", "muted"),)
    moved: Cell = DASH if trunk else (change(delta), *limits)
    numbers: dict[str, Any] = {
        "mean": here.mean,
        "half width": here.half_width,
        "delta untrained": delta,
    }
    numbers |= {"delta low": low, "delta high": high, SAME: _like_best(record, entries, metric)}
    return [Part(str(here), "" if trunk else "ours"), moved], numbers


def _like_best(record: Record, entries: Sequence[Record], metric: str) -> str:
    """Whether a row can be told from the one that is best by the metric."""
    best = max(entries, key=lambda r: _mean(r, metric))
    if record is best:
        return "best"
    less = difference(record, best, metric)
    if np.isnan(less.mean):
        return DASH
    if min(len(record.seeds), len(best.seeds)) < MIN_SEEDS:
        return FEW
    return "no" if less.range_p(rows=len(entries)) <= LEVEL else "yes"


def _notes(records: list[Record]) -> list[Note]:
    notes = [Note(text) for text in dict.fromkeys(r.completeness for r in records) if text]
    notes += [
        Note("± is the 95 % t interval over seeds.", "± 为各种子均值的 95% t 区间。"),
        Note(
            f"[ ] is the 95 % interval of a difference to the untrained trunk for {DRAWN_EN}; "
            f"by one metric, all of a table hold together (Bonferroni).",
            f"[ ] 为与未训练主干之差的 95% 区间，{DRAWN_ZH}；同一指标下全表各区间同时成立（Bonferroni 校正）。",
        ),
        Note(
            f"{SAME.capitalize()}, no: of equally good rows, two would differ as much in fewer "
            f"than 5 of 100 such tables, for {DRAWN_EN} (Tukey's studentised range after Games and Howell).",
            f"“no”：若各行同样好，此种表格中任意两行出现如此大差异者不足 5%，{DRAWN_ZH}"
            "（Tukey 学生化极差，Games–Howell 形式）。",
        ),
    ]
    if min(len(r.seeds) for r in records) < MIN_SEEDS:
        notes.append(
            Note(
                f"Fewer than {MIN_SEEDS} seeds: intervals only, nothing is called distinguishable.",
                f"种子少于 {MIN_SEEDS} 个：只给区间，不作显著性判断。",
            )
        )
    if any(r.is_old for r in records):
        notes.append(
            Note(
                "Runs of an older protocol are among these: not tuned alike, not checked for collapse.",
                "其中有旧协议下的运行：未按同样预算调参，也未检查坍缩。",
            )
        )
    notes += rule_note(MARKS[r.collapsed()] for r in records)
    return notes + _unequal_conditions(records)


def _unequal_conditions(records: list[Record]) -> list[Note]:
    """A note for each condition that should be the same for all rows and is not; learning rates are tuned."""
    own = PRESENTATION + RATES
    protocol = {k: v for k, v in Protocol().model_dump().items() if k not in own}
    conditions = pd.DataFrame(
        {
            "seeds": str(r.seeds),
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
