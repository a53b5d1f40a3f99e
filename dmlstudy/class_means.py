"""Mean embedding of each class."""

import torch
from torch import Tensor


def class_means(embeddings: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Means [classes, D] of rows [N, D] by label int64 [N]; 0 for a class without rows.

    They are not normalised: means of unit vectors are shorter than 1.

    >>> class_means(torch.tensor([[1., 0], [0, 1], [4, 4]]), torch.tensor([0, 0, 2]), 3).tolist()
    [[0.5, 0.5], [0.0, 0.0], [4.0, 4.0]]
    """
    sums = embeddings.new_zeros(classes, embeddings.shape[1]).index_add_(0, labels, embeddings)
    return sums / torch.bincount(labels, minlength=classes).clamp_min(1)[:, None]
