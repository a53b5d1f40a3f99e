"""Does a method's own idea help? It and its controls side by side, on validation or on test classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

import pandas as pd

from dmlstudy.evaluation.uncertainty import t_interval
from dmlstudy.methods import METHODS
from dmlstudy.study.experiment import Experiment, Run
from dmlstudy.study.params import Settings
from dmlstudy.study.ranking import MIN_SEEDS
from dmlstudy.study.results import Record
from dmlstudy.study.tables import Cell, Note, Part, Table, change, notebook_link, number

DECIDED = "beats its control"
METRICS = ("R@1", "MAP@R")
HEADS = "data set", "method", "control", "metric", "method's", "control's", "difference", "beats it"
Scores = Mapping[str, Sequence[float]]  # by metric, one value per seed


@dataclass(frozen=True)
class Comparison:
    """A method less one of its controls, over seeds that both ran on.

    Attributes:
        fold: of the training classes that it was tested on; None for the test classes.
        difference: mean over seeds, in points.
        half_width: of the 95 % t interval of paired differences.
    """

    dataset: str
    fold: int | None
    method: str
    control: str
    metric: str
    seeds: int
    with_idea: float
    control_value: float
    difference: float
    half_width: float

    @property
    def verdict(self) -> str:
        """Whether the method beats its control: yes, no, or (always with few seeds) not distinguishable."""
        if self.seeds < MIN_SEEDS or abs(self.difference) <= self.half_width:
            return "not distinguishable"
        return "yes" if self.difference > 0 else "no"


def comparisons(
    dataset: str, fold: int | None, method: str, own: Scores, controls: Mapping[str, Scores]
) -> list[Comparison]:
    """A method less each of its controls by each metric; controls may have run on the first few seeds only."""
    compared = []
    for control, scores in controls.items():
        for metric in [name for name in scores if name in own]:
            pairs = list(zip(own[metric], scores[metric], strict=False))
            difference, half_width = t_interval([a - b for a, b in pairs])
            with_idea, control_value = (fmean(column) for column in zip(*pairs, strict=True))
            values = with_idea, control_value, difference, half_width
            compared.append(Comparison(dataset, fold, method, control, metric, len(pairs), *values))
    return compared


def compare(settings: Settings, log: Callable[[str], None]) -> list[Comparison]:
    """Train the method and each of its controls with the same seeds.

    Args:
        settings: with a validation fold, so that no test class is read.
        log: takes progress lines.
    """
    experiment = Experiment(settings, log=lambda line: None)
    protocol, method = settings.protocol, settings.method
    assert protocol.fold is not None

    def runs(title: str, overrides: dict[str, object]) -> list[Run]:
        log(f"{method}, {title}: {len(protocol.seeds)} seeds")
        return [experiment.run(seed, overrides) for seed in protocol.seeds]

    def scores(runs: list[Run]) -> Scores:
        return {metric: [run.evaluation.metrics[metric] for run in runs] for metric in METRICS}

    own = runs("as it is", {})
    controls = {
        name: scores(runs(f"control {name}", overrides))
        for name, overrides in own[0].method.own_controls().items()
    }
    return comparisons(protocol.dataset, protocol.fold, method, scores(own), controls)


def append(path: Path, compared: Sequence[Comparison]) -> None:
    """Add rows to a CSV file, with a header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Floats with all their digits: a rounded interval may decide otherwise when it is read back.
    frame = pd.DataFrame(compared).assign(**{DECIDED: [c.verdict for c in compared]})
    frame.to_csv(path, mode="a", header=not path.exists(), index=False, na_rep="nan")


def read(path: Path) -> list[Comparison]:
    """The rows of such a file; none if there is no file."""
    if not path.exists():
        return []
    frame = pd.read_csv(path, float_precision="round_trip").drop(columns=DECIDED)
    return [Comparison(*row) for row in frame.itertuples(index=False)]


def recorded_controls(records: Iterable[Record]) -> list[Comparison]:
    """Each finished run less its own control runs, on the test classes."""
    return [
        comparison
        for r in records
        for comparison in comparisons(r.dataset, None, r.method, r.metrics, r.controls)
    ]


def controls_table(
    compared: Iterable[Comparison],
    metrics: Sequence[str] = ("R@1",),
    *,
    name: str = "controls",
    digits: int = 1,
    records: Iterable[Record] = (),
) -> Table:
    """Methods beside their controls, for terminals, reports, the summary and its files.

    Args:
        metrics: those that are shown.
        digits: after the decimal point.
        records: the runs that are compared; their titles are shown, and their notebooks linked.
    """
    chosen = [c for c in compared if c.metric in metrics]
    titles = {method: kind.title for method, kind in METHODS.items()}
    records = list(records)
    for record in records:
        titles |= {record.dataset: record.dataset_title, record.method: record.title}
    rows = [_row(c, titles, digits, linked=bool(records)) for c in chosen]
    note = (
        "The difference is taken seed by seed, ± is its 95 % t interval over seeds; "
        f"fewer than {MIN_SEEDS} seeds never decide."
    )
    return Table(
        name=name,
        title=f"Methods and their own controls, {', '.join(metrics)} (%)",
        columns=HEADS,
        rows=rows,
        data=pd.DataFrame(chosen, columns=[f.name for f in fields(Comparison)])
        .rename(columns={"with_idea": "mean", "control_value": "control_mean"})
        .drop(columns="fold"),
        notes=[Note(note if rows else "No control has run yet.")],
    )


def _row(c: Comparison, titles: Mapping[str, str], digits: int, linked: bool) -> list[Cell]:
    width = f"± {number(c.half_width, digits)}, {c.seeds} seeds" if c.seeds > 1 else "1 seed"
    link = notebook_link(c.dataset, c.method) if linked else None
    return [
        titles.get(c.dataset, c.dataset) + ("" if c.fold is None else f", fold {c.fold}"),
        Part(titles.get(c.method, c.method), "", link),
        c.control,
        c.metric,
        Part(number(c.with_idea, digits), "ours"),
        number(c.control_value, digits),
        (change(c.difference, digits=digits), Part(width, "muted")),
        c.verdict,
    ]
