"""The linear-time upper bound of the triplet loss, and the loss that it bounds."""

import torch.nn.functional as F
from torch import Tensor

from dmlstudy.geometry import safe_sqrt, squared_distance
from dmlstudy.losses.rows import distance, pair_loss


def upper_bound(
    embeddings: Tensor, labels: Tensor, *, centroids: Tensor, squared: bool = False
) -> Tensor:
    """Distance to the own class' centroid minus a third of the mean distance to the others'.

    Do, Tran, Reid, Kumar, Hoang, Carneiro, "A Theoretically Sound Upper Bound on the Triplet Loss for Improving
    the Efficiency of Deep Distance Metric Learning", CVPR 2019:

        L = 1/B sum_i ( |f_i - c_y_i| - 1 / (3 (C - 1)) sum_{m != y_i} |f_i - c_m| )

    For N points in C classes of equal size n = N / C, the triangle inequality makes G N L, with
    G = 3 (C - 1) (n - 1) n, an upper bound of sum |f_i - f_j| - |f_i - f_k| over all ordered triplets (i, j of one
    class, k of another). G N is a constant scale and left out, so that the value does not grow with the batch.

    Args:
        embeddings: f, [B, D].
        labels: y, [B], in 0..C-1.
        centroids: c, [C, D], constants; the bound is tight if they are equidistant.
        squared: square all distances, which is no bound any more.

    Returns:
        Scalar, negative for good embeddings; defined for every batch, also of one class. A point on a centroid
        feels nothing of it.

    >>> import torch
    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]], dtype=torch.float64)
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> c = torch.eye(2, dtype=torch.float64)
    >>> g = 3 * (2 - 1) * (2 - 1) * 2
    >>> [round(g * 4 * float(upper_bound(x, y, centroids=c)), 6) for y in (easy, hard)]
    [-3.433951, 9.975531]
    """
    distances = squared_distance(embeddings, centroids)
    if not squared:
        distances = safe_sqrt(distances)
    own = F.one_hot(labels, len(centroids)).to(distances.dtype)
    others = (1 - own) / (3 * max(len(centroids) - 1, 1))
    return (distances * (own - others)).sum() / len(labels)


@pair_loss(distance)
def triplet_without_margin(d: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """What `upper_bound` bounds: the mean of |f_i - f_j| - |f_i - f_k| over all triplets, without margin or hinge.

    Args:
        embeddings: [B, D].
        labels: [B].

    Returns:
        Scalar, negative for good embeddings; 0 with zero gradient if the batch has no triplet.

    >>> import torch
    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]], dtype=torch.float64)
    >>> [round(8 * float(triplet_without_margin(x, torch.tensor(y))), 6) for y in ([0, 0, 1, 1], [0, 1, 0, 1])]
    [-5.963773, 3.417323]
    """
    p, n = positive.sum(1), negative.sum(1)
    apart = n * (d * positive).sum(1) - p * (d * negative).sum(1)
    return apart.sum(), (p * n).sum()
