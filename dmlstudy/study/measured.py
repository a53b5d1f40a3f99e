"""What a record keeps of finished runs, one run per seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dmlstudy.evaluation import JUDGED
from dmlstudy.study.experiment import Run


def metrics(runs: Sequence[Run]) -> dict[str, list[float]]:
    """One value per run of every metric."""
    names = runs[0].evaluation.metrics
    return {name: [run.evaluation.metrics[name] for run in runs] for name in names}


def by_class(runs: Sequence[Run], classes: int) -> dict[str, np.ndarray]:
    """Of each test class: "queries" scored, [classes], and the judged scores in percent, [seeds, classes].

    Args:
        classes: their number; one without a scored query has the score NaN.
    """
    found = [run.evaluation.retrieval for run in runs]
    counts = np.bincount(found[0].labels.numpy(), minlength=classes)
    sums = {
        metric: [np.bincount(r.labels.numpy(), r.judged[metric].numpy(), classes) for r in found]
        for metric in JUDGED
    }
    scored = np.where(counts, counts, np.nan)
    return {"queries": counts} | {m: 100 * np.stack(rows) / scored for m, rows in sums.items()}


def per_class(
    runs: Sequence[Run], baselines: Sequence[Run], classes: Sequence[str]
) -> dict[str, Any]:
    """The record's entry of that name; classes without a scored query are left out."""
    here, start = (by_class(group, len(classes)) for group in (runs, baselines))
    counts = here["queries"]
    kept: dict[str, Any] = {"classes": np.array(classes)[counts > 0], "queries": counts[counts > 0]}
    for metric in JUDGED:
        for name, scores in ((metric, here), (f"baseline {metric}", start)):
            kept[name] = np.round(scores[metric][:, counts > 0], 4)
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
        for metric in (JUDGED if scored else ())
    }
