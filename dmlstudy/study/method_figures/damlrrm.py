"""Figures of DAMLRRM: spanning trees beside all positive pairs, and the trees of test classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import Image
from torch import Tensor

from dmlstudy.geometry import pair_masks, pairwise_distance
from dmlstudy.losses.damlrrm import minimum_spanning_trees
from dmlstudy.study.figures import NEGATIVE, POSITIVE, _picture

if TYPE_CHECKING:
    from dmlstudy.study.notebook_report import Report

COLOURS = (POSITIVE, NEGATIVE, "#2166ac")


def trees_and_all_pairs() -> Image:
    """Two bent classes and a round one on a plane: all their pairs, their trees, and random trees."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(3).repeat_interleave(14)
    along = torch.linspace(0, torch.pi, 14)
    upper = torch.stack([along.cos(), along.sin()], 1)
    lower = torch.stack([1 - along.cos(), 0.45 - along.sin()], 1)
    round_ = torch.tensor([2.4, 0.9]) + 0.22 * torch.randn(14, 2, generator=draw)
    x = torch.cat([upper, lower, round_]) + 0.05 * torch.randn(42, 2, generator=draw)
    edges = {
        "all positives": pair_masks(labels)[0],
        "random trees": minimum_spanning_trees(torch.rand(42, 42, generator=draw), labels),
        "minimum spanning trees": minimum_spanning_trees(pairwise_distance(x), labels),
    }
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.9))
    for axis, (title, chosen) in zip(axes, edges.items(), strict=True):
        _draw(axis, x, labels, chosen)
        axis.set(title=f"{title}: {int(chosen.sum()) // 2} edges", aspect="equal")
    figure.tight_layout()
    return _picture(figure)


def trees_of_test_classes(report: Report, per_class: int = 30) -> Image:
    """Two test classes in their first two principal components, untrained and trained (first seed)."""
    every = torch.from_numpy(report.benchmark.query.labels)
    classes = torch.bincount(every).argsort(descending=True, stable=True)[:2]
    some = torch.cat([(every == c).nonzero()[:per_class, 0] for c in classes])
    labels = torch.searchsorted(classes.sort().values, every[some])
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.4))
    panels = {"untrained trunk": report.baselines[0], "trained": report.runs[0]}
    for axis, (name, run) in zip(axes, panels.items(), strict=True):
        f = F.normalize(run.query[some].double())
        d = pairwise_distance(f)
        tree = minimum_spanning_trees(d, labels)
        positive, _ = pair_masks(labels)
        _, _, directions = torch.linalg.svd(f - f.mean(0), full_matrices=False)
        _draw(axis, f @ directions[:2].T, labels, tree)
        title = (
            f"{name}: tree edge {d[tree].mean():.2f}, any positive pair {d[positive].mean():.2f}"
        )
        axis.set_title(title, fontsize=9)
    figure.tight_layout()
    return _picture(figure)


def _draw(axis: Any, x: Tensor, labels: Tensor, edges: Tensor) -> None:
    for i, j in edges.triu().nonzero().tolist():
        axis.plot(*x[[i, j]].T, color=COLOURS[int(labels[i])], lw=0.8, alpha=0.6, zorder=1)
    for c, colour in enumerate(COLOURS):
        axis.scatter(*x[labels == c].T, color=colour, s=18, zorder=2)
    axis.set(xticks=[], yticks=[])
