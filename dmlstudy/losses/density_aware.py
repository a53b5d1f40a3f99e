"""Density-aware losses: a class centre that climbs to where its class is dense, triplets and quadruplets to it."""

import torch
from torch import Tensor

from dmlstudy.class_means import class_means
from dmlstudy.geometry import pair_masks, safe_sqrt, squared_distance
from dmlstudy.losses.rows import active, mean
from dmlstudy.ranges import Count, NonNegative, NonNegativeCount, PositiveShare


def density_centres(
    embeddings: Tensor,
    labels: Tensor,
    *,
    classes: Count,
    quantile: PositiveShare = 0.75,
    iterations: NonNegativeCount = 5,
) -> Tensor:
    """Class centres shifted towards the densest part of their class, [C, D].

    Ghosh, Singh, Vatsa, "On Learning Density Aware Embeddings", CVPR 2019, after the abstract. It starts at the
    class mean; each iteration encloses the nearest part of the class (`dense_region`) and moves to its mean:

        mu_c <- mean of the f_i of class c with |f_i - mu_c| <= r_c

    Args:
        embeddings: f, [N, D].
        labels: y, [N], in 0..C-1.
        classes: C.
        quantile: q, share of a class that its region keeps; 1 keeps all, so that the centre stays the mean.
        iterations: how often the centre moves.

    Returns:
        Means as they are: of unit vectors they are shorter than 1. A class without images gets 0.

    >>> f, y = torch.tensor([[0.], [.1], [.2], [5.]]), torch.zeros(4, dtype=torch.int64)
    >>> [round(float(density_centres(f, y, classes=1, quantile=q, iterations=1)), 6) for q in (1, .75)]
    [1.325, 0.1]
    """
    centres = class_means(embeddings, labels, classes)
    for _ in range(iterations):
        inside = dense_region(embeddings, labels, centres=centres, quantile=quantile)
        centres = class_means(embeddings[inside], labels[inside], classes)
    return centres


def dense_region(
    embeddings: Tensor, labels: Tensor, *, centres: Tensor, quantile: PositiveShare = 0.75
) -> Tensor:
    """Which images lie within r_c of their class' centre, boolean [N].

    r_c is the smallest radius that encloses the share `quantile` of the class: its ceil(q n_c)-th distance.

    Args:
        embeddings: f, [N, D].
        labels: y, [N], in 0..C-1.
        centres: mu, [C, D].
        quantile: q, share of a class that its region keeps; 1 keeps all, so that the centre stays the mean.

    >>> f, y = torch.tensor([[0.], [.1], [.2], [5.]]), torch.zeros(4, dtype=torch.int64)
    >>> dense_region(f, y, centres=torch.tensor([[1.325]]), quantile=.75).tolist()
    [True, True, True, False]
    """
    squared = (embeddings - centres[labels]).square().sum(1)
    by_distance = squared.argsort(stable=True)
    order = by_distance[labels[by_distance].argsort(stable=True)]
    counts = torch.bincount(labels, minlength=len(centres))
    # Less a trifle, because 0.55 * 100 is above 55 in floating point.
    kept = (quantile * counts.double() - 1e-9).ceil().long().clamp_min(1)
    last = counts.cumsum(0) - counts + kept - 1
    squared_radius = squared[order[last.clamp_max(len(labels) - 1)]]  # the clamp: empty classes
    return squared <= squared_radius[labels]


def density_aware_triplet(
    embeddings: Tensor,
    labels: Tensor,
    *,
    centres: Tensor,
    margin: NonNegative = 0.2,
    squared: bool = False,
) -> Tensor:
    """DATL: nearer to the centre of its own class than to any image of another (after the abstract).

        L = mean of |f_i - mu_y_i| - |f_i - f_n| + m over the pairs (i, n), y_n != y_i, where it is positive

    The centre stands in for the positive, so that a batch has B^2 triplets, and all of them count.

    Args:
        embeddings: f, [B, D].
        labels: y, [B].
        centres: mu, [C, D], constants.
        margin: m.
        squared: square all distances.

    Returns:
        Scalar; 0 with zero gradient if no triplet violates, or the batch has one class.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> mean = [density_centres(x, y, classes=2, quantile=1, iterations=0) for y in (easy, hard)]
    >>> [round(float(density_aware_triplet(x, y, centres=c, margin=m, squared=True)), 6)
    ...  for y, c, m in zip((easy, hard), mean, (.8, .2))]
    [0.1, 0.3]
    """
    pull = (embeddings - centres[labels]).square().sum(1, keepdim=True)
    push = squared_distance(embeddings)
    if not squared:
        pull, push = safe_sqrt(pull), safe_sqrt(push)
    _, negative = pair_masks(labels)
    violations = (pull - push + margin) * negative
    return mean(*active(violations.relu()))


def density_aware_quadruplet(
    embeddings: Tensor, labels: Tensor, *, centres: Tensor, margin2: NonNegative = 0.1
) -> Tensor:
    """What DAQL adds to DATL: nearer to the own centre than two images of two other classes to each other.

        L = mean of |f_i - mu_y_i|^2 - |f_n - f_n'|^2 + m2 where positive,  y_i, y_n, y_n' all different

    The paper's choice of quadruplets is not known; of the B^3, each (i, n) takes the nearest n' to n.

    Args:
        embeddings: f, [B, D].
        labels: y, [B].
        centres: mu, [C, D], constants.
        margin2: m2, on squared distances.

    Returns:
        Scalar; 0 with zero gradient if no quadruplet violates, or the batch has fewer than three classes.

    >>> x, y = torch.tensor([[0.], [4.], [5.]]), torch.arange(3)
    >>> c = torch.tensor([[2.], [4.], [5.]])
    >>> round(float(density_aware_quadruplet(x, y, centres=c)), 6)  # 2^2 - 1^2 + .1
    3.1
    """
    pull = (embeddings - centres[labels]).square().sum(1, keepdim=True)
    d2 = squared_distance(embeddings)
    same = labels[:, None] == labels
    # The nearest image of another class than n's, and the nearest of a third: one of them serves any i.
    other = d2.detach().masked_fill(same, torch.inf)
    first = other.argmin(1)
    second = other.masked_fill(same[first], torch.inf).argmin(1)
    partner = torch.where(same[:, first], second, first)  # n' of (i, n)
    apart = d2.gather(1, partner.T).T
    third = labels[partner]
    different = ~same & (third != labels[:, None]) & (third != labels)
    return mean(*active(((pull - apart + margin2) * different).relu()))
