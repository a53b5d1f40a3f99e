"""Figures of SCHE: batches of confusable and of random classes, and what the signatures take for confusable."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import HTML, Image
from torch import Tensor

from dmlstudy.geometry import pair_masks, squared_distance
from dmlstudy.losses.sche import in_hard_classes
from dmlstudy.methods.sche import SCHE, confusable_classes
from dmlstudy.study.figures import NEGATIVE, NEUTRAL, POSITIVE, _picture, gallery

if TYPE_CHECKING:
    from dmlstudy.study.notebook_report import Report

CLASSES, IMAGES, MARGIN, DRAWS = 12, 4, 0.1, 100


def classes_then_images() -> Image:
    """Twelve classes on a unit hemisphere seen from above; batches of four, and who violates in them."""
    draw = torch.Generator().manual_seed(0)
    grid = torch.cartesian_prod(torch.linspace(-0.7, 0.7, 4), torch.linspace(-0.6, 0.6, 3))
    signatures = _on_the_cap(grid + 0.06 * torch.randn(CLASSES, 2, generator=draw))
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES)
    noise = 0.11 * torch.randn(len(labels), 2, generator=draw)
    points = _on_the_cap(signatures[labels, :2] + noise)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.9))
    for axis, hard, title in zip(axes, (0, 3), ("random", "confusable"), strict=True):
        batches = [_batch(hard, signatures, labels, seed) for seed in range(DRAWS)]
        counts = [len(_violating(points[b], labels[b], signatures)[0]) for b in batches]
        drawn = batches[3]
        axis.scatter(*points[:, :2].T, color=NEUTRAL, s=10, alpha=0.4)
        x, y = points[drawn], labels[drawn]
        for i, p, n in zip(*_violating(x, y, signatures), strict=True):
            axis.plot(*x[[i, p], :2].T, color=POSITIVE, lw=1)
            axis.plot(*x[[i, n], :2].T, color=NEGATIVE, lw=1.4, ls="--")
        for place, c in enumerate(y[::IMAGES]):
            axis.scatter(*points[labels == c, :2].T, color=f"C{place}", s=26, zorder=3)
            axis.scatter(*signatures[c, :2], marker="*", s=170, color=f"C{place}", ec="black")
        axis.scatter(*signatures[y[0], :2], s=420, facecolors="none", edgecolors="black")
        mean = f"on average {np.mean(counts):.1f} of {len(x)} images violate"
        axis.set(title=f"{title} classes: {mean}", xticks=[], yticks=[])
        axis.title.set_fontsize(9)
    figure.tight_layout()
    return _picture(figure)


def _batch(hard: int, signatures: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Indices of a batch of four classes, the anchor class first; it is the same for the same seed."""
    every, rng = np.full(CLASSES, 1), np.random.default_rng(seed)
    chosen = confusable_classes(every, 3, 4, hard, signatures, rng)
    return torch.cat([(labels == c).nonzero()[:, 0] for c in chosen])


def _on_the_cap(plane: Tensor) -> Tensor:
    """Unit vectors of three coordinates whose first two are about these."""
    return F.normalize(
        torch.cat([plane, (1 - plane.square().sum(1, keepdim=True)).clamp_min(0.05).sqrt()], 1)
    )


def _violating(x: Tensor, y: Tensor, signatures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors whose triplet violates, with their farthest positive and their nearest image in H_i."""
    d2, (positive, _) = squared_distance(x), pair_masks(y)
    hard = in_hard_classes(x, y, signatures=signatures, k=3)
    pull, p = d2.masked_fill(~positive, 0).max(1)
    push, n = d2.masked_fill(~hard, torch.inf).min(1)
    anchors = (pull - push + MARGIN > 0).nonzero()[:, 0]
    return anchors, p[anchors], n[anchors]


def most_confusable(report: Report, count: int = 6) -> Image | HTML:
    """Training classes and the four whose signatures are nearest (first seed): pictures, or names if not shown."""
    import pandas as pd

    train, show = report.benchmark.train, report.protocol.gallery
    classes = torch.linspace(0, len(train.classes) - 1, min(count, len(train.classes))).long()
    similarity, nearest = cast(SCHE, report.runs[0].method).most_confusable(classes, 4)
    if show == "always" or (show == "embedded" and report.benchmark.shareable):
        first = [train.store[train.rows[train.labels == c][0]] for c in range(len(train.classes))]
        rows = [
            (train.classes[c][:14], first[c], [(first[n], False) for n in row])
            for c, row in zip(classes, nearest, strict=True)
        ]
        return gallery(rows)
    table = {
        train.classes[c]: [
            f"{train.classes[n]} ({v:.2f})" for n, v in zip(row, values, strict=True)
        ]
        for c, row, values in zip(classes, nearest, similarity, strict=True)
    }
    return HTML(pd.DataFrame.from_dict(table, orient="index").to_html(header=False, border=0))
