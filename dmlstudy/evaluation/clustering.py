"""Clustering: k-means with one cluster per class, scored by normalised mutual information."""

import torch
from torch import Tensor

from dmlstudy.kmeans import kmeans


def nmi(embeddings: Tensor, labels: Tensor, *, seeds: int = 3) -> float:
    """Percent; mean over k-means seeds, k the number of classes."""
    k = len(labels.unique())
    scores = [mutual_information(kmeans(embeddings, k, seed), labels) for seed in range(seeds)]
    return 100 * sum(scores) / len(scores)


def mutual_information(a: Tensor, b: Tensor) -> float:
    """NMI of two labellings, 2 I(A; B) / (H(A) + H(B)): the arithmetic mean, older code has the geometric.

    >>> mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 3, 3]))
    1.0
    >>> mutual_information(torch.tensor([0, 1, 0, 1]), torch.tensor([5, 5, 3, 3]))
    0.0
    """
    a, b = a.unique(return_inverse=True)[1], b.unique(return_inverse=True)[1]
    width = int(b.max()) + 1
    table = torch.bincount(a * width + b, minlength=(int(a.max()) + 1) * width).double()
    joint = table.reshape(-1, width) / len(a)
    h_a, h_b, h_joint = (_entropy(p) for p in (joint.sum(1), joint.sum(0), joint.flatten()))
    if h_a + h_b == 0:  # one cluster and one class: they agree
        return 1.0
    return float(2 * (h_a + h_b - h_joint) / (h_a + h_b))


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum()
