"""Does a method's own idea help? It and its controls side by side on a validation fold of the training classes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean

from dmlstudy.evaluation.uncertainty import t_interval
from dmlstudy.methods import find_method
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.params import Settings
from dmlstudy.study.ranking import MIN_SEEDS
from dmlstudy.study.tables import Cell, Note, Part, Table, change

METRICS = ("R@1", "MAP@R")


@dataclass(frozen=True)
class Comparison:
    """A method less one of its controls, over seeds that both ran on.

    Attributes:
        difference: mean over seeds, in points.
        half_width: of the 95 % t interval of paired differences.
    """

    dataset: str
    fold: int
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


def compare(settings: Settings, say: Callable[[str], None]) -> Iterator[Comparison]:
    """Train the method and each of its controls with the same seeds; one comparison per control and metric.

    Args:
        settings: with a validation fold, so that no test class is read.
        say: takes progress lines.
    """
    experiment = Experiment(settings, say=lambda line: None)
    protocol, name = settings.protocol, settings.method
    assert protocol.fold is not None

    def scores(overrides: dict[str, object]) -> dict[str, list[float]]:
        found = [experiment.run(seed, overrides).evaluation.metrics for seed in protocol.seeds]
        return {metric: [m[metric] for m in found] for metric in METRICS}

    say(f"{name}: {len(protocol.seeds)} seeds")
    own = scores({})
    for control, overrides in find_method(name).controls.items():
        say(f"{name}, control: {control}")
        other = scores(overrides)
        for metric in METRICS:
            differences = [a - b for a, b in zip(own[metric], other[metric], strict=True)]
            mean, half_width = t_interval(differences)
            yield Comparison(
                dataset=protocol.dataset,
                fold=protocol.fold,
                method=name,
                control=control,
                metric=metric,
                seeds=len(differences),
                with_idea=fmean(own[metric]),
                control_value=fmean(other[metric]),
                difference=mean,
                half_width=half_width,
            )


def append(path: Path, found: Sequence[Comparison]) -> None:
    """Add rows to a CSV file, with a header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow([*(f.name for f in fields(Comparison)), "beats its control"])
        for row in found:
            # Floats with all their digits: a rounded interval may decide otherwise when it is read back.
            writer.writerow([*astuple(row), row.verdict])


def read(path: Path) -> list[Comparison]:
    """The rows of such a file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    convert = {"str": str, "int": int, "float": float}
    return [
        Comparison(**{f.name: convert[str(f.type)](row[f.name]) for f in fields(Comparison)})
        for row in rows
    ]


def as_table(found: Sequence[Comparison], metric: str = "R@1") -> Table:
    """The comparisons by one metric, for notebooks and terminals."""
    import pandas as pd

    shown = [c for c in found if c.metric == metric]
    rows: list[list[Cell]] = [
        [
            (Part(find_method(c.method).title),),
            (Part(c.control),),
            (Part(f"{c.with_idea:.1f}", "ours"),),
            (Part(f"{c.control_value:.1f}"),),
            (change(c.difference), Part(f"± {c.half_width:.1f}", "muted")),
            (Part(c.verdict),),
        ]
        for c in shown
    ]
    where = ", ".join(dict.fromkeys(f"{c.dataset}, fold {c.fold}" for c in shown))
    heads = ("method", "control", f"{metric} (%)", f"control, {metric}", "difference", "beats it")
    note = "Paired seed by seed, ± is the 95 % t interval; fewer than six seeds never decide."
    return Table(
        name="validation_controls",
        title=f"Methods and their controls on validation classes ({where or 'none recorded'})",
        columns=[("", head) for head in heads],
        rows=rows,
        data=pd.DataFrame(shown, columns=[f.name for f in fields(Comparison)]),
        notes=[Note(note)],
    )
