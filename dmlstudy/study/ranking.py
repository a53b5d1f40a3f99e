"""Methods compared with each other, with the untrained trunk and with their own controls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dmlstudy.evaluation.uncertainty import Interval, class_bootstrap, t_interval
from dmlstudy.study.results import Record
from dmlstudy.study.tables import DASH, Cell, Note, Part, Table, change, notebook_link, signed

UNTRAINED = "untrained"
MIN_SEEDS = 6  # under this many, intervals only

Link = Callable[[str, str], str]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `half_width` of its 95 % interval is None for a single value."""

    mean: float
    half_width: float | None
    seeds: int

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:.1f} (one seed)" if self.seeds == 1 else f"{self.mean:.1f}"
        return f"{self.mean:.1f} ± {self.half_width:.1f}"


def estimate(values: Sequence[float] | float) -> Estimate:
    """Mean and 95 % t interval over seeds; a plain number (no seed enters) has no interval."""
    if not isinstance(values, Sequence):
        return Estimate(float(values), None, 0)
    if len(values) == 1:
        return Estimate(values[0], None, 1)
    mean, half_width = t_interval(values, level=0.95)
    return Estimate(float(mean), float(half_width), len(values))


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

    def values(self, metric: str) -> Sequence[float] | float | None:
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
    found = sorted((r for r in records if r.dataset == dataset), key=lambda r: r.method)
    entries = [Entry(r, trunk=r.method == UNTRAINED) for r in found]
    if found and not any(entry.trunk for entry in entries):
        entries.append(Entry(found[0], trunk=True))
    entries.sort(key=lambda entry: -entry.score(metric))
    best = entries[0] if entries else None
    lines = [_ranked(entry, best, metric, link) for entry in entries]
    columns = [metric, "Δ untrained trunk", *_side_metrics(metric), "not distinguishable from best"]
    columns = ["", "method", *columns, "deviates from the protocol in"]
    name = f"ranking_{dataset}" + ("" if metric == "R@1" else f"_{metric.replace('@', '')}")
    return Table(
        name=name,
        title=f"Equal conditions: {found[0].dataset_title if found else dataset}, {metric} (%)",
        columns=[("", column) for column in columns],
        rows=[[(Part(str(i)),), *cells] for i, (cells, _) in enumerate(lines, start=1)],
        data=_frame([{"rank": i, **data} for i, (_, data) in enumerate(lines, start=1)], metric),
        notes=_ranking_notes(found, dataset, metric, tuple(protocol)),
    )


def _side_metrics(metric: str) -> list[str]:
    return [other for other in ("R@1", "MAP@R", "NMI") if other != metric]


def _ranked(
    entry: Entry, best: Entry | None, metric: str, link: Link
) -> tuple[list[Cell], dict[str, Any]]:
    """The cells of a row behind its rank, and the same as numbers."""
    record, others = entry.record, _side_metrics(metric)
    at = None if entry.trunk and record.method != UNTRAINED else link(record.dataset, record.method)
    title: Cell = (
        Part("Untrained trunk" if entry.trunk else record.title, "" if at else "muted", at),
    )
    if entry.trunk:
        title += (Part("where every row starts", "muted"),)
    shown = {name: entry.estimate(name) for name in (metric, *others)}
    delta = None if entry.trunk else improvement(record, metric)
    interval = None if entry.trunk else entry.minus(Entry(record, trunk=True), metric)
    alike = _like_best(entry, best, metric)
    main = shown[metric]
    cells: list[Cell] = [
        title,
        (Part(str(main or DASH), "ours" if main and not entry.trunk else ""),),
        _delta_cell(delta, interval),
        *((Part(str(shown[name] or DASH)),) for name in others),
        (Part(alike),),
        (Part(DASH if entry.trunk else "; ".join(record.deviations) or "nothing"),),
    ]
    data = {"method": UNTRAINED if entry.trunk else record.method, "mean": main and main.mean}
    data |= {"half_width": main and main.half_width, "seeds": main and main.seeds}
    data |= {"delta_untrained": delta, "delta_low": interval and interval[0]}
    data |= {"delta_high": interval and interval[1]}
    data |= {name: value and value.mean for name, value in shown.items() if name != metric}
    return cells, data | {"not_distinguishable_from_best": alike, "notebook": at}


def _like_best(entry: Entry, best: Entry | None, metric: str) -> str:
    """ "best", or whether the class-bootstrap interval of the difference to the best contains 0."""
    if best is None or entry is best:
        return "best"
    interval = entry.minus(best, metric)
    if interval is None:
        return DASH
    return "yes" if interval[0] <= 0 <= interval[1] else "no"


def _delta_cell(delta: float | None, interval: Interval | None) -> Cell:
    if delta is None:
        return (Part(DASH),)
    difference = change(delta)
    if interval is None:
        return (difference,)
    return difference, Part(f"[{signed(interval[0])}, {signed(interval[1])}]", "muted")


def _frame(rows: list[dict[str, Any]], metric: str) -> Any:
    import pandas as pd

    columns = ["rank", "method", "mean", "half_width", "seeds", "delta_untrained", "delta_low"]
    columns += ["delta_high", *_side_metrics(metric), "not_distinguishable_from_best", "notebook"]
    return pd.DataFrame(rows, columns=columns)


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
        at[trunk] = DASH if baseline is None else f"{np.mean(baseline):.1f}"
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


def controls_table(
    records: Iterable[Record], metric: str = "R@1", *, link: Link = notebook_link
) -> Table:
    """Each method against its own control runs on the same seeds: does its idea do the work?"""
    import pandas as pd

    rows: list[list[Cell]] = []
    data = []
    for record in records:
        for control, metrics in record.controls.items():
            if metric not in metrics or metric not in record.metrics:
                continue
            # Controls run on the first of the seeds, often not on all.
            same_seeds = record.metrics[metric][: len(metrics[metric])]
            pairs = zip(same_seeds, metrics[metric], strict=True)
            method, other = estimate(same_seeds), estimate(metrics[metric])
            difference = estimate([here - there for here, there in pairs])
            spread = difference.half_width
            width = "one seed" if spread is None else f"± {spread:.1f}"
            rows.append(
                [
                    (Part(record.dataset_title),),
                    (Part(record.title, link=link(record.dataset, record.method)),),
                    (Part(control),),
                    (Part(str(method), "ours"),),
                    (Part(str(other)),),
                    (change(difference.mean), Part(width, "muted")),
                ]
            )
            means = (method.mean, other.mean, difference.mean, spread)
            run = (record.dataset, record.method, control, metric, method.seeds)
            data.append((*run, *means))
    names = ["dataset", "method", "control", "metric", "seeds", "mean", "control_mean"]
    heads = ["data set", "method", "control", f"{metric} (%)", f"control, {metric}", "difference"]
    note = "The difference is taken seed by seed; ± is its 95 % t interval over seeds."
    return Table(
        name="controls",
        title=f"Methods and their own controls, {metric} (%)",
        columns=[("", head) for head in heads],
        rows=rows,
        data=pd.DataFrame(data, columns=[*names, "difference", "half_width"]),
        notes=[Note(note if rows else "No finished run has a control yet.")],
    )


def as_text(table: Table) -> str:
    """A ranking for the terminal: title, aligned rows, notes."""
    return "\n".join([table.text(), "", *(f"{n.about} {n.en}".strip() for n in table.notes)])
