"""Figures of a report: numbers in, a picture out, at a size that keeps committed notebooks small."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Image
from matplotlib.figure import Figure
from torch import Tensor

from dmlstudy.methods import find_method
from dmlstudy.study.results import Record

POSITIVE, NEGATIVE, NEUTRAL = "#1b7837", "#c51b7d", "#888888"
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})


def training_curves(histories: dict[int, list[dict[str, float]]]) -> Image:
    """Mean loss terms per epoch, one line per seed and panel per term."""
    terms = list(
        dict.fromkeys(t for rows in histories.values() for row in rows for t in row if t != "epoch")
    )
    figure, axes = plt.subplots(
        1, max(len(terms), 1), figsize=(4.2 * max(len(terms), 1), 2.8), squeeze=False
    )
    for axis, term in zip(axes[0], terms, strict=False):
        for seed, rows in histories.items():
            points = [(row["epoch"], row[term]) for row in rows if term in row]
            axis.plot(*zip(*points, strict=True), marker="o", ms=3, label=f"seed {seed}")
        axis.set(xlabel="epoch", title=term)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    if terms:
        axes[0, 0].set_ylabel("mean loss")
        axes[0, -1].legend(frameon=False, fontsize=8)
    else:
        axes[0, 0].text(0.5, 0.5, "nothing is trained", ha="center")
        axes[0, 0].axis("off")
    figure.tight_layout()
    return _picture(figure)


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
    figure.tight_layout()
    return _picture(figure)


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
    figure.tight_layout()
    return _picture(figure)


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
        line[0].set_ylabel(caption, rotation=0, ha="right", va="center", fontsize=8)
        for axis, (image, right) in zip(line[1:], found, strict=False):
            _show(axis, image, POSITIVE if right else NEGATIVE)
    figure.tight_layout(pad=0.3)
    return _picture(figure)


def forces(loss: Callable[[Tensor, Tensor], Tensor], centres: Tensor | None = None) -> Image:
    """A loss at work on twelve points of three classes on the circle: arrows are -dL/dx along it (root scale).

    Args:
        loss: of unit embeddings [12, 2] and labels [12].
        centres: [C, K, 2], drawn as stars.
    """
    angle = torch.tensor([0, 20, 45, 75, 60, 100, 125, 150, 170, 200, 245, 350]).deg2rad()
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    x = torch.stack([angle.cos(), angle.sin()], 1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, labels), x)
    points = x.detach()
    arrow = -(gradient - (gradient * points).sum(1, keepdim=True) * points)
    # Lengths go with the root of the force, or the strongest would hide all others.
    arrow = arrow / arrow.norm(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
    arrow = 0.6 * arrow / arrow.norm(dim=1).max().clamp_min(1e-12)
    figure, axis = plt.subplots(figsize=(3.6, 3.6))
    axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="#cccccc"))
    colours = np.array(["#1b7837", "#c51b7d", "#2166ac"])
    axis.scatter(*points.T.numpy(), c=colours[labels.numpy()], s=40, zorder=3)
    axis.quiver(
        *points.T.numpy(), *arrow.T.numpy(), angles="xy", scale_units="xy", scale=1, width=0.008
    )
    if centres is not None:
        for rows, colour in zip(centres, colours, strict=True):
            axis.scatter(*rows.T.numpy(), marker="*", s=120, facecolors="none", edgecolors=colour)
    axis.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
    axis.axis("off")
    return _picture(figure)


def bars(labels: Sequence[str], groups: dict[str, Sequence[float]], ylabel: str) -> Image:
    """Grouped bars."""
    figure, axis = plt.subplots(figsize=(4.6, 2.6))
    width = 0.8 / len(groups)
    for i, (name, values) in enumerate(groups.items()):
        axis.bar(np.arange(len(labels)) + i * width, values, width, label=name)
    axis.set_xticks(np.arange(len(labels)) + 0.4 - width / 2, labels)
    axis.set_ylabel(ylabel)
    if len(groups) > 1:
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return _picture(figure)


def _show(axis: Any, image: np.ndarray, colour: str) -> None:
    axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    for spine in axis.spines.values():
        spine.set(visible=True, edgecolor=colour, linewidth=2.5)


def sheet(title: str, rows: Sequence[np.ndarray]) -> Image:
    """Images of several classes, a row [N, H, W, C] each."""
    figure, axis = plt.subplots(figsize=(5, 0.5 * len(rows) + 0.4))
    axis.imshow(
        np.concatenate([np.concatenate(list(row), 1) for row in rows]).squeeze(), cmap="gray"
    )
    axis.set_title(title, fontsize=10)
    axis.axis("off")
    figure.tight_layout()
    return _picture(figure)


def ranking_dots(found: Sequence[Record], metric: str = "R@1") -> Image:
    """A panel per data set: every method's seeds as dots, their mean as a bar, the untrained trunk as a line."""
    most = max(sum(r.dataset == record.dataset for r in found) for record in found)
    figure, panels = _panels(found, height=0.19 * most + 1)
    for dataset, axis in panels:
        rows = [r for r in found if r.dataset == dataset and r.method != "untrained"]
        rows.sort(key=lambda r: np.mean(r.metrics[metric]))
        for place, record in enumerate(rows):
            values = record.metrics[metric]
            axis.plot(values, [place] * len(values), "o", color=POSITIVE, alpha=0.6, ms=5)
            axis.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color="black")
        start = [value for r in rows for value in np.atleast_1d(r.baseline[metric])]
        if start:
            axis.axvline(float(np.mean(start)), color=NEUTRAL, ls="--", lw=1)
        axis.set_yticks(range(len(rows)), [r.title for r in rows], fontsize=7)
        axis.set(title=dataset, xlabel=metric)
    figure.suptitle("dashed: untrained trunk", fontsize=8, color=NEUTRAL)
    figure.tight_layout()
    return _picture(figure)


def _panels(found: Sequence[Record], height: float) -> tuple[Figure, list[tuple[str, Any]]]:
    """A figure with a panel of `height` inches per data set, three in a row."""
    datasets = list(dict.fromkeys(record.dataset for record in found))
    columns = min(3, len(datasets))
    rows = -(-len(datasets) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, height * rows), squeeze=False
    )
    for axis in axes.flat[len(datasets) :]:
        axis.axis("off")
    return figure, list(zip(datasets, axes.flat, strict=False))


def spectrum_scatter(found: Sequence[Record]) -> Image:
    """rho of the test embeddings against MAP@R, a panel per data set; methods by the numbers of their notebooks."""
    figure, panels = _panels(found, height=4)
    for dataset, axis in panels:
        for record in (r for r in found if r.dataset == dataset):
            rho, score = np.mean(record.metrics["spectrum"]), np.mean(record.metrics["MAP@R"])
            axis.plot(rho, score, "o", color=NEUTRAL if record.method == "untrained" else POSITIVE)
            number = find_method(record.method).card
            axis.annotate(
                number, (rho, score), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
        axis.set(title=dataset, xlabel="spectral decay ρ", ylabel="MAP@R")
        axis.margins(0.1)
    names = dict(sorted((find_method(r.method).card, r.title) for r in found))
    legend = ",  ".join(f"{number} {title}" for number, title in names.items())
    figure.supxlabel(textwrap.fill(legend, 150), fontsize=7, color=NEUTRAL)
    figure.tight_layout()
    return _picture(figure)


def _picture(figure: Figure) -> Image:
    """The finished figure as PNG: it shows the same in every front end, and is not drawn twice."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    return Image(buffer.getvalue())
