"""Figures of HDML: negatives on their way to the anchor, and what the pull did in a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import matplotlib.pyplot as plt
import torch
from IPython.display import Image

from dmlstudy.losses.hdml import exponential_weight, interpolate_negatives
from dmlstudy.methods.hdml import HDML, TRACE
from dmlstudy.study.figures import NEGATIVE, NEUTRAL, POSITIVE, _picture

if TYPE_CHECKING:
    from dmlstudy.study.notebook_report import Report


def pulled_negatives() -> Image:
    """An anchor, its positive and six negatives, pulled (alpha 1) as the mean of J_m falls."""
    anchor, positive = torch.zeros(2), torch.tensor([0.9, 0.45])
    angle = torch.tensor([75, 130, 165, 215, 265, 320]).deg2rad()
    length = torch.tensor([2.3, 1.5, 2.6, 0.6, 2.1, 1.9])
    negatives = length[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    figure, axes = plt.subplots(1, 3, figsize=(9, 3))
    for axis, mean in zip(axes, (6.0, 1.0, 0.2), strict=True):
        keep = exponential_weight(1.0, mean)
        moved = interpolate_negatives(anchor, positive, negatives, kept_share=keep)
        axis.add_patch(plt.Circle((0, 0), positive.norm(), fill=False, color=POSITIVE, ls=":"))
        for before, after in zip(negatives, moved, strict=True):
            axis.plot(*torch.stack([before, after]).T, color=NEGATIVE, lw=1)
        axis.scatter(*negatives.T, s=40, facecolors="white", edgecolors=NEGATIVE, zorder=2)
        axis.scatter(*moved.T, s=40, color=NEGATIVE, zorder=3)
        axis.scatter(*positive, s=40, color=POSITIVE)
        axis.scatter(*anchor, s=90, marker="*", color="black")
        axis.set(xlim=(-2.8, 2.1), ylim=(-2.4, 2.5), aspect="equal")
        axis.set_title(f"mean J_m {mean:g}: {keep:.0%} of the lead kept", fontsize=10)
        axis.axis("off")
    figure.tight_layout()
    return _picture(figure)


def pull_in_training(report: Report) -> Image:
    """First seed, step by step: mean distances from the anchor; what the pull keeps, the weight of real tuples."""
    method = cast(HDML, report.runs[0].method)
    rows = torch.tensor(method.trace).reshape(-1, len(TRACE))
    columns = dict(zip(TRACE, rows.T, strict=True))
    steps = range(1, len(rows) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 2.7))
    left.plot(steps, columns["positive"], color=POSITIVE, label="positive")
    for name, style in (("real", "-"), ("pulled", "--"), ("synthetic", ":")):
        left.plot(steps, columns[name], style, color=NEGATIVE, label=f"{name} negatives")
    right.plot(steps, columns["keep"], "--", color=NEGATIVE, label="lead kept by the pull")
    right.plot(steps, columns["weight"], color=NEUTRAL, label="weight of real tuples")
    left.set_title("mean distance from the anchor", fontsize=10)
    right.set_title("what follows from the running means", fontsize=10)
    for axis in (left, right):
        axis.set(xlabel="step", ylim=(0, None))
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return _picture(figure)
