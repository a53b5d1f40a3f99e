"""Figure of the invariant and spreading loss: forces between views, and what each anchor is taken for."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from IPython.display import Image

from dmlstudy.losses.invariant_spreading import instance_log_probabilities, invariant_spreading
from dmlstudy.study.figures import _picture

COLOURS = ("#1b7837", "#c51b7d", "#2166ac", "#b35806", "#542788")


def views_at_work() -> Image:
    """Five images with two views each on the circle: forces of either sum (root scale), and P_ik (tau 0.3)."""
    angle = torch.tensor([0, 50, 95, 170, 260, 35, 65, 150, 215, 275]).deg2rad()
    x = torch.stack([angle.cos(), angle.sin()], 1).requires_grad_()
    instance = invariant_spreading(x, tau=0.3, spreading=0.0)
    second = invariant_spreading(x, tau=0.3) - instance
    points, colours = x.detach(), [*COLOURS, *COLOURS]
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.1))
    titles = ("first sum: find the other view", "second sum: spread")
    for axis, value, title in zip(axes, (instance, second), titles, strict=False):
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        arrow = (gradient * points).sum(1, keepdim=True) * points - gradient
        arrow = arrow / arrow.norm(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
        axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="#cccccc"))
        for one, other, colour in zip(points, points[5:], COLOURS, strict=False):
            axis.plot(*torch.stack([one, other]).T, color=colour, lw=1, alpha=0.4)
        axis.scatter(*points.T, c=colours, s=40, zorder=3)
        axis.quiver(*points.T, *arrow.T, angles="xy", scale_units="xy", scale=1, width=0.008)
        axis.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal", title=title)
        axis.axis("off")
    p = instance_log_probabilities(points, tau=0.3).exp()
    axes[2].imshow(p, cmap="Greys", vmin=0, vmax=1)
    for i, colour in enumerate(colours):
        place = ((i + 5) % 10 - 0.5, i - 0.5)
        axes[2].add_patch(plt.Rectangle(place, 1, 1, fill=False, color=colour, lw=2))
    axes[2].set(title="P: row taken for column", xticks=[], yticks=[])
    figure.tight_layout()
    return _picture(figure)
