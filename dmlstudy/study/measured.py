"""What a record keeps of finished runs, one run per seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dmlstudy.evaluation import Retrieval
from dmlstudy.study.experiment import Run

# Of every test class, and of every epoch.
SCORES: dict[str, Callable[[Retrieval], Tensor]] = {
    "R@1": lambda found: found.hits[1],
    "MAP@R": lambda found: found.map_at_r,
}


def metrics(runs: Sequence[Run]) -> dict[str, list[float]]:
    """One value per run of every metric."""
    names = runs[0].evaluation.metrics
    return {name: [run.evaluation.metrics[name] for run in runs] for name in names}


def by_class(runs: Sequence[Run], metric: str, classes: int) -> np.ndarray:
    """R@1 or MAP@R of each test class in percent, [seeds, classes]; NaN where no query could be scored."""
    found, score = [run.evaluation.retrieval for run in runs], SCORES[metric]
    sums = [np.bincount(r.labels.numpy(), score(r).numpy(), classes) for r in found]
    counts = queries(runs, classes)
    return 100 * np.stack(sums) / np.where(counts, counts, np.nan)


def queries(runs: Sequence[Run], classes: int) -> np.ndarray:
    """Scored queries of each test class, [classes]."""
    return np.bincount(runs[0].evaluation.retrieval.labels.numpy(), minlength=classes)


def per_class(
    runs: Sequence[Run], baselines: Sequence[Run], classes: Sequence[str]
) -> dict[str, Any]:
    """The record's entry of that name; classes without a scored query are left out."""
    counts = queries(runs, len(classes))
    kept: dict[str, Any] = {"classes": np.array(classes)[counts > 0], "queries": counts[counts > 0]}
    for metric in SCORES:
        for start, group in (("", runs), ("baseline ", baselines)):
            scores = by_class(group, metric, len(classes))[:, counts > 0]
            kept[start + metric] = np.round(scores, 4)
    return {name: values.tolist() for name, values in kept.items()}


def collapse(groups: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """The record's entry of that name, of the groups that were trained."""
    found = {}
    for name, runs in groups.items():
        if runs[0].progress.collapsed:
            loss, at_a_point = map(list, zip(*(run.losses for run in runs), strict=True))
            states = [run.collapsed for run in runs]
            found[name] = {"states": states, "loss": loss, "at_a_point": at_a_point}
    return found


def epochs(runs: Sequence[Run], fold: int | None) -> dict[str, list[list[float]]]:
    """The record's entry of that name; {} where no scores were stored."""
    tested, scored = "test" if fold is None else "validation", bool(runs[0].progress.scores)
    return {
        f"{tested} {metric}": [[row[metric] for row in run.progress.scores] for run in runs]
        for metric in (SCORES if scored else ())
    }
