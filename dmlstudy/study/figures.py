"""Figures that several notebooks show: numbers in, a picture out, small enough to be committed with its notebook."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Image
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = ("#1b7837", "#c51b7d", "#2166ac", "#b35806", "#542788")
POSITIVE, NEGATIVE, NEUTRAL = COLOURS[0], COLOURS[1], "#888888"
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})


def plain(text: str) -> str:
    """Text from data, as matplotlib must be given it: a dollar sign begins no formula.

    >>> plain("$5 and $6")
    '\\\\$5 and \\\\$6'
    """
    return text.replace("$", r"\$")


def picture(figure: Figure, rect: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Image:
    """The finished figure as PNG: it shows the same in every front end, and is not drawn twice."""
    figure.tight_layout(rect=rect)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    return Image(buffer.getvalue())


def training_curves(
    steps: dict[int, list[dict[str, float]]], at_a_point: dict[str, float] | None = None
) -> Image:
    """Loss terms of every step, a panel per term: mean over seeds, and the range that they span.

    Args:
        steps: rows of terms by seed.
        at_a_point: what terms would be if all embeddings were one point, as a line.
    """
    points = [
        {"step": step, "loss": value, "term": term}
        for rows in steps.values()
        for step, row in enumerate(rows, start=1)
        for term, value in row.items()
    ]
    if not points:
        figure, axis = plt.subplots(figsize=(4.2, 1))
        axis.text(0.5, 0.5, "nothing is trained", ha="center")
        axis.axis("off")
        return picture(figure)
    grid = sns.relplot(
        pd.DataFrame(points),
        x="step",
        y="loss",
        col="term",
        kind="line",
        errorbar=("pi", 100),
        linewidth=1,
        height=2.8,
        aspect=1.5,
        facet_kws={"sharey": False},
    )
    over = f", mean and range of {len(steps)} seeds" if len(steps) > 1 else ""
    grid.set_titles("{col_name}" + over, size=9)
    for term, axis in grid.axes_dict.items():
        if at_a_point and term in at_a_point:
            axis.axhline(at_a_point[term], color=NEUTRAL, linestyle="--")
            across = axis.get_yaxis_transform()
            axis.text(
                1,
                at_a_point[term],
                "full collapse",
                size=8,
                ha="right",
                va="bottom",
                transform=across,
                bbox={"color": "white", "alpha": 0.7, "pad": 0},
            )
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
    return picture(grid.figure)


def similarity_histograms(panels: dict[str, tuple[Tensor, Tensor, Tensor]]) -> Image:
    """Similarities of same-class and different-class pairs, each normalised, before and after training."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 2.6), squeeze=False)
    for axis, (title, (edges, positives, negatives)) in zip(axes[0], panels.items(), strict=True):
        for counts, colour, label in (
            (negatives, NEGATIVE, "different class"),
            (positives, POSITIVE, "same class"),
        ):
            density = counts.double() / counts.sum().clamp_min(1)
            axis.stairs(
                density.numpy(), edges.numpy(), fill=True, alpha=0.5, color=colour, label=label
            )
        axis.set(title=title, xlabel="similarity", yticks=[])
    axes[0, 0].legend(frameon=False, fontsize=8)
    return picture(figure)


def embedding_map(
    embeddings: Tensor, labels: Tensor, classes: int = 10, per_class: int = 30
) -> Image:
    """First two principal components of the images of a few test classes."""
    chosen = torch.cat([(labels == c).nonzero()[:per_class, 0] for c in labels.unique()[:classes]])
    x = embeddings[chosen].double()
    x = x - x.mean(0)
    _, _, axes = torch.linalg.svd(x, full_matrices=False)
    points = x @ axes[:2].T
    figure, axis = plt.subplots(figsize=(4.4, 3.6))
    axis.scatter(*points.T.numpy(), c=labels[chosen].numpy(), cmap="tab10", s=12, alpha=0.8)
    axis.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second")
    return picture(figure)


def gallery(rows: Sequence[tuple[str, np.ndarray, Sequence[tuple[np.ndarray, bool]]]]) -> Image:
    """Queries with their nearest images: (caption, query image, [(image, is of the query's class)])."""
    wide = 1 + max(len(found) for _, _, found in rows)
    figure, axes = plt.subplots(
        len(rows), wide, figsize=(0.85 * wide + 1, 0.9 * len(rows)), squeeze=False
    )
    for line, (caption, query, found) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set(xticks=[], yticks=[])
        _show(line[0], query, NEUTRAL)
        line[0].set_ylabel(plain(caption), rotation=0, ha="right", va="center", fontsize=8)
        for axis, (image, right) in zip(line[1:], found, strict=False):
            _show(axis, image, POSITIVE if right else NEGATIVE)
    return picture(figure)


def _show(axis: Any, image: np.ndarray, colour: str) -> None:
    axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    for spine in axis.spines.values():
        spine.set(visible=True, edgecolor=colour, linewidth=2.5)


def forces(loss: Callable[[Tensor, Tensor], Tensor], centres: Tensor | None = None) -> Image:
    """A loss at work on twelve points of three classes on the circle.

    Args:
        loss: of unit embeddings [12, 2] and labels [12].
        centres: [C, K, 2], drawn as stars.
    """
    angle = torch.tensor([0, 20, 45, 75, 60, 100, 125, 150, 170, 200, 245, 350]).deg2rad()
    labels = torch.arange(3).repeat_interleave(4)
    figure, axis = plt.subplots(figsize=(3.6, 3.6))
    points = torch.stack([angle.cos(), angle.sin()], 1)
    draw_forces(axis, lambda x: loss(x, labels), points, labels)
    if centres is not None:
        for rows, colour in zip(centres, COLOURS, strict=False):
            axis.scatter(*rows.T.numpy(), marker="*", s=120, facecolors="none", edgecolors=colour)
    return picture(figure)


def draw_forces(
    axis: Any, loss: Callable[[Tensor], Tensor], points: Tensor, labels: Tensor
) -> None:
    """Unit vectors [N, 2], coloured by label, with -dL/dx along the circle as arrows: root scale, the longest 0.6."""
    x = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    arrow = -(gradient - (gradient * points).sum(1, keepdim=True) * points)
    # Lengths go with the root of the force, or the strongest would hide all others.
    arrow = arrow / arrow.norm(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
    arrow = 0.6 * arrow / arrow.norm(dim=1).max().clamp_min(1e-12)
    axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="#cccccc"))
    axis.scatter(*points.T.numpy(), c=[COLOURS[int(c)] for c in labels], s=40, zorder=3)
    axis.quiver(
        *points.T.numpy(), *arrow.T.numpy(), angles="xy", scale_units="xy", scale=1, width=0.008
    )
    axis.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
    axis.axis("off")


def bars(labels: Sequence[str], groups: dict[str, Sequence[float]], ylabel: str) -> Image:
    """Grouped bars."""
    figure, axis = plt.subplots(figsize=(4.6, 2.6))
    frame = pd.DataFrame(groups, index=[plain(str(label)) for label in labels])
    frame.plot.bar(ax=axis, rot=0, width=0.8, legend=len(groups) > 1)
    axis.set_ylabel(ylabel)
    if len(groups) > 1:
        axis.legend(frameon=False, fontsize=8)
    return picture(figure)
