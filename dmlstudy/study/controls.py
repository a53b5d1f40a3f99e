"""Does a method's own idea help? It and its controls side by side, on validation or on test classes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from dmlstudy.errors import StudyError
from dmlstudy.evaluation import JUDGED
from dmlstudy.evaluation.uncertainty import (
    MIN_SEEDS,
    Difference,
    fold_difference,
    seed_difference,
)
from dmlstudy.methods import METHODS, Method, find_method
from dmlstudy.study.collapse import MARKS, State, in_words, rule_note, worst
from dmlstudy.study.experiment import Experiment, Run
from dmlstudy.study.measured import by_class
from dmlstudy.study.parameter_files import load_params
from dmlstudy.study.params import Settings
from dmlstudy.study.params import settings as checked
from dmlstudy.study.ranking import FEW
from dmlstudy.study.results import Record
from dmlstudy.study.tables import Cell, Note, Part, Table, change, notebook_link, number

PAPER = "the paper's values"  # what the control of a tuned row has
HEADS = "data set", "method", "control", "metric", "method's", "control's", "difference", "beats it"
Scores = Mapping[str, Sequence[float]]  # by metric, one value per seed
ByClass = Mapping[str, np.ndarray]  # by metric, [seeds, classes]; "queries": [classes]


@dataclass(frozen=True)
class Comparison:
    """A method less one of its controls, over seeds that both ran on.

    Attributes:
        folds: of the training classes that they were tested on, such as "0, 1"; "" for the test classes.
        difference: mean over seeds, in points.
        error: its standard error.
        df: degrees of freedom of that.
    """

    dataset: str
    folds: str
    method: str
    control: str
    metric: str
    seeds: int
    with_idea: float
    control_value: float
    difference: float
    error: float
    df: float

    def half_width(self, family: int) -> float:
        """Of the 95 % interval that holds together with those of so many comparisons in all."""
        return Difference(self.difference, self.error, self.df).half_width(family)

    def verdict(self, family: int) -> str:
        """Whether the method beats its control: yes, no, not distinguishable, or too few seeds to say."""
        if self.seeds < MIN_SEEDS:
            return FEW
        if not abs(self.difference) > self.half_width(family):
            return "not distinguishable"
        return "yes" if self.difference > 0 else "no"


def comparisons(
    dataset: str, method: str, own: Scores, controls: Mapping[str, Scores]
) -> list[Comparison]:
    """A method less each of its controls on the test classes; controls may have run on the first few seeds only."""
    compared = []
    for control, scores in controls.items():
        for metric in [name for name in scores if name in own]:
            here, there = zip(*zip(own[metric], scores[metric], strict=False), strict=True)
            values = fmean(here), fmean(there), *seed_difference(here, there)
            compared.append(Comparison(dataset, "", method, control, metric, len(here), *values))
    return compared


def control_overrides(settings: Settings, built: Method) -> dict[str, dict[str, Any]]:
    """What each control changes, as `Experiment.run` takes it: a teacher first, the values of a tuned row's paper last.

    A control that changes nothing, or that the network cannot have, is left out.

    Args:
        built: the settings' method on the network of the study.
    """
    method, dataset = settings.method, settings.protocol.full_name
    literal = checked(method, load_params(method, dataset, tuned=False)).flat
    tuned = load_params(method, dataset).items()
    changed = {name: literal[name] for name, value in tuned if literal[name] != value}
    named = built.own_controls() | {PAPER: changed}
    if built.teacher:
        name, values = built.teacher
        named = {f"its teacher: {find_method(name).title}": {"method": name} | values} | named
    given = settings.flat.items()
    return {name: own for name, own in named.items() if not own.items() <= given}


def compare(folds: Sequence[Settings], log: Callable[[str], None]) -> list[Comparison]:
    """Train the method and each of its controls with the same seeds on each fold.

    Args:
        folds: the same settings, each with a validation fold of its own, so that no test class is read.
        log: takes progress lines.
    """
    protocol, method = folds[0].protocol, folds[0].method
    scores, states = defaultdict[str, list[ByClass]](list), defaultdict[str, list[State]](list)

    def trained(experiment: Experiment, control: str, overrides: dict[str, Any]) -> list[Run]:
        title = f"control {control}" if control else "as it is"
        log(f"{method}, fold {experiment.protocol.fold}, {title}: {len(protocol.seeds)} seeds")
        runs = [experiment.run(seed, overrides) for seed in protocol.seeds]
        scores[control].append(by_class(runs, len(experiment.benchmark.query.classes)))
        states[control] += [run.collapsed for run in runs]
        return runs

    for settings in folds:
        experiment = Experiment(settings, log=lambda line: None)
        built = trained(experiment, "", {})[0].method
        for control, overrides in control_overrides(settings, built).items():
            trained(experiment, control, overrides)
    if (found := worst(states[""])) != "no":
        log(f"{method}, as it is: {in_words(found)}")
    own = scores.pop("")
    place = protocol.dataset, ", ".join(str(s.protocol.fold) for s in folds), method
    return [
        Comparison(*place, marked, metric, len(protocol.seeds), *_compared(own, others, metric))
        for control, others in scores.items()
        for marked in [control + MARKS[worst(states[control])]]
        for metric in JUDGED
    ]


def _compared(own: Sequence[ByClass], other: Sequence[ByClass], metric: str) -> tuple[float, ...]:
    """Mean of either over seeds, folds and queries, then what `Difference` holds; of the classes with a query."""
    kept = [fold["queries"] > 0 for fold in own]
    mine, others = (
        [fold[metric][:, some] for fold, some in zip(folds, kept, strict=True)]
        for folds in (own, other)
    )
    queries = [fold["queries"][some] for fold, some in zip(own, kept, strict=True)]
    here, there = (
        float(
            np.average(np.concatenate([f.mean(0) for f in folds]), weights=np.concatenate(queries))
        )
        for folds in (mine, others)
    )
    return here, there, *fold_difference(list(zip(mine, others, queries, strict=True)))


def append(path: Path, compared: Sequence[Comparison]) -> None:
    """Add rows to a CSV file, with a header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Floats with all their digits: a rounded error may decide otherwise when it is read back.
    frame = pd.DataFrame(compared)
    frame.to_csv(path, mode="a", header=not path.exists(), index=False, na_rep="nan")


def read(path: Path) -> list[Comparison]:
    """The rows of such a file; none if there is no file.

    Raises:
        StudyError: it has other columns.
    """
    if not path.is_file():
        return []
    frame = pd.read_csv(path, float_precision="round_trip", dtype={"folds": str})
    if list(frame) != [field.name for field in fields(Comparison)]:
        raise StudyError(f"{path} has other columns: delete it and run `dmlstudy controls` again.")
    return [Comparison(*row) for row in frame.itertuples(index=False)]


def recorded_controls(records: Iterable[Record]) -> list[Comparison]:
    """Each finished run less its own control runs, on the test classes."""
    return [
        comparison
        for r in records
        for comparison in comparisons(r.dataset, r.method, r.metrics, _marked(r))
    ]


def _marked(record: Record) -> dict[str, Scores]:
    return {n + MARKS[record.collapsed(n)]: scores for n, scores in record.controls.items()}


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
    # A data set is a family: its verdicts and intervals hold together.
    families = Counter(c.dataset for c in chosen)
    rows = [_row(c, families[c.dataset], titles, digits, linked=bool(records)) for c in chosen]
    return Table(
        name=name,
        title=f"Methods and their own controls, {', '.join(metrics)} (%)",
        columns=HEADS,
        rows=rows,
        data=pd.DataFrame(chosen, columns=[field.name for field in fields(Comparison)])
        .assign(
            half_width=[c.half_width(families[c.dataset]) for c in chosen],
            **{"beats its control": [c.verdict(families[c.dataset]) for c in chosen]},
        )
        .drop(columns="folds"),
        notes=[
            _note(chosen, families) if rows else Note("No control has run yet."),
            *rule_note(c.control for c in chosen),
        ],
    )


def _note(chosen: Sequence[Comparison], families: Counter[str]) -> Note:
    listed = ", ".join(f"{dataset} {count}" for dataset, count in families.items())
    target = "paired by seed: for new seeds on these very test classes"
    chinese = "按种子配对；推断对象为新的种子，类别即此测试类别"
    if chosen[0].folds:
        target = "paired by fold, class and seed: for new seeds and for new classes like these"
        chinese = "按折、类别、种子配对；推断对象为新的种子与同类的新类别"
    return Note(
        f"± is the 95 % interval of the difference, {target}. All of one data set in this table hold "
        f"together (Bonferroni; {listed}); fewer than {MIN_SEEDS} seeds never decide.",
        f"± 为差的 95% 区间，{chinese}。本表同一数据集的各区间同时成立（Bonferroni 校正；{listed}）；"
        f"种子少于 {MIN_SEEDS} 个不作判断。",
    )


def _row(
    c: Comparison, family: int, titles: Mapping[str, str], digits: int, linked: bool
) -> list[Cell]:
    width = f"± {number(c.half_width(family), digits)}, {c.seeds} seeds"
    link = notebook_link(c.dataset, c.method) if linked else None
    folds = f", fold{'s' if ',' in c.folds else ''} {c.folds}" if c.folds else ""
    return [
        titles.get(c.dataset, c.dataset) + folds,
        Part(titles.get(c.method, c.method), "", link),
        c.control,
        c.metric,
        Part(number(c.with_idea, digits), "ours"),
        number(c.control_value, digits),
        (
            change(c.difference, digits=digits),
            Part(width if c.seeds > 1 else "1 seed", "muted"),
        ),
        c.verdict(family),
    ]
