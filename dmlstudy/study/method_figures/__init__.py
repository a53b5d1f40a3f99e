"""Figures that show what a single method does, and one that several share."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import Image
from torch import Tensor

from dmlstudy.geometry import pairwise_distance
from dmlstudy.study.figures import _picture


def class_means(embeddings: Tensor, labels: Tensor, classes: int = 20) -> Tensor:
    """Unit mean embeddings of the first classes, [classes, D]."""
    chosen = labels.unique()[:classes]
    return F.normalize(torch.stack([embeddings[labels == c].mean(0) for c in chosen]))


def class_distances(panels: dict[str, tuple[Tensor, Tensor]]) -> Image:
    """Distance matrices between class means, a panel per (embeddings, labels)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3), squeeze=False)
    for axis, (title, (embeddings, labels)) in zip(axes[0], panels.items(), strict=True):
        shown = axis.imshow(pairwise_distance(class_means(embeddings, labels)), vmin=0)
        axis.set(title=title, xticks=[], yticks=[])
        figure.colorbar(shown, ax=axis, shrink=0.8)
    figure.tight_layout()
    return _picture(figure)
