"""Figure of density-aware metric learning: a class centre leaves the outliers behind."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from IPython.display import Image
from torch import Tensor

from dmlstudy.losses.density_aware import dense_region, density_centres
from dmlstudy.study.figures import NEGATIVE, NEUTRAL, POSITIVE, _picture

QUANTILES = (1.0, 0.9, 0.75, 0.5)


def shifting_centre(iterations: int = 8) -> Image:
    """Thirty images of a class and ten strays: the path of the centre (q = 0.75), its error for several q."""
    draw = torch.Generator().manual_seed(3)
    good = 0.5 * torch.randn(30, 2, generator=draw)
    stray = torch.tensor([3.2, 2.0]) + 0.7 * torch.randn(10, 2, generator=draw)
    points, labels = torch.cat([good, stray]), torch.zeros(40, dtype=torch.int64)

    def path(quantile: float) -> Tensor:
        steps = [
            density_centres(points, labels, classes=1, quantile=quantile, iterations=n)
            for n in range(iterations + 1)
        ]
        return torch.cat(steps)

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    moved = path(0.75)
    inside = dense_region(points, labels, centres=moved[-1:], quantile=0.75)
    radius = float((points - moved[-1])[inside].norm(dim=1).max())
    left.add_patch(plt.Circle(moved[-1].tolist(), radius, fill=False, color=NEUTRAL, ls="--"))
    left.scatter(*good.T, color=POSITIVE, s=14, alpha=0.6, label="images of the class")
    left.scatter(*stray.T, color=NEGATIVE, s=14, alpha=0.6, label="strays")
    left.plot(*moved.T, color="black", lw=1)
    left.scatter(*moved[:1].T, marker="X", s=70, color="black", label="mean")
    left.scatter(*moved[-1:].T, marker="*", s=160, color="black", label="dense centre")
    left.set(xticks=[], yticks=[], aspect="equal")
    left.legend(frameon=False, fontsize=7, loc="lower right")
    for quantile in QUANTILES:
        error = (path(quantile) - good.mean(0)).norm(dim=1)
        right.plot(error, marker="o", ms=3, label=f"q = {quantile:g}")
    right.set(xlabel="iterations", ylabel="distance to the mean without strays")
    right.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return _picture(figure)
