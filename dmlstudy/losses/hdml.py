"""HDML's pure parts: negatives moved towards their anchor, N-pair on given tuples, adaptive weights."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.geometry import safe_sqrt
from dmlstudy.ranges import NonNegative, Share


def interpolate_negatives(
    anchors: Tensor, positives: Tensor, negatives: Tensor, *, kept_share: Share
) -> Tensor:
    """Negatives moved towards the anchor, on the line between them, never nearer than the positive.

    Zheng, Chen, Lu, Zhou, "Hardness-Aware Deep Metric Learning", CVPR 2019:

        z^- = z + (d+ + (d- - d+) kept) / d- (z- - z)   where d- > d+, else z-,   kept = e^(-alpha / J_avg)

    with Euclidean d+ = |z - z+|, d- = |z - z-|. Gradients pass through the distances, too, as in the authors' code.

    Args:
        anchors, positives, negatives: z, z+, z-, [..., D] with leading sizes that broadcast; raw embeddings.
        kept_share: of the lead d- - d+; 1 moves nothing, 0 leaves the negative as near as the positive.

    Returns:
        [..., D]; coinciding points stay where they are.

    >>> z, near, far = torch.tensor([0., 0.]), torch.tensor([1., 0.]), torch.tensor([3., 0.])
    >>> interpolate_negatives(z, near, far, kept_share=exponential_weight(2.5, 2.5))
    tensor([1.7358, 0.0000])
    >>> interpolate_negatives(z, far, near, kept_share=0.)
    tensor([1., 0.])
    """
    d_positive = safe_sqrt((positives - anchors).square().sum(-1, keepdim=True))
    d_negative = safe_sqrt((negatives - anchors).square().sum(-1, keepdim=True))
    farther = d_negative > d_positive
    scale = (d_positive + (d_negative - d_positive) * kept_share) / torch.where(
        farther, d_negative, 1
    )
    return torch.where(farther, anchors + scale * (negatives - anchors), negatives)


def npair_tuples(anchors: Tensor, candidates: Tensor, *, l2: NonNegative = 0.0) -> Tensor:
    """N-pair loss in which every anchor has negatives of its own; `npair` is the case in which they are shared.

        L = mean_i [ -log softmax_j(z_i . c_ij) at j = i ] + l2 / 4 (mean_i |z_i|^2 + mean_ij |c_ij|^2)

    Args:
        anchors: z, [..., P, D], one per class.
        candidates: c, [..., P, P, D]; c_ii is anchor i's positive, the other c_ij are its negatives.
        l2: weight of the penalty on squared lengths.

    Returns:
        Scalar, the mean over leading sizes.

    >>> z, positives = torch.tensor([[1., 0.], [0., 1.]]), torch.tensor([[.8, .6], [-.6, .8]])
    >>> round(float(npair_tuples(z, positives.expand(2, 2, 2))), 6)  # fixture E
    0.409278
    """
    logits = (candidates @ anchors[..., None])[..., 0]
    right = torch.arange(logits.shape[-1], device=logits.device).expand(logits.shape[:-1])
    softmax = F.cross_entropy(logits.flatten(0, -2), right.flatten())
    lengths = anchors.square().sum(-1).mean() + candidates.square().sum(-1).mean()
    return softmax + l2 / 4 * lengths


def exponential_weight(rate: NonNegative, mean: NonNegative) -> float:
    """e^(-rate / mean), which falls from 1 to 0 as the running mean of a loss does; 1 while that is infinite.

    >>> weight = exponential_weight(0.5, 0.5)
    >>> round(weight, 6), round(1 - weight, 6), exponential_weight(0.5, math.inf), exponential_weight(0.5, 0.)
    (0.367879, 0.632121, 1.0, 0.0)
    """
    return math.exp(-rate / max(mean, 1e-30))


def pair_indices(labels: Tensor) -> Tensor:
    """A batch's images as anchors and positives, [R, P, 2]: R rounds, in each a pair of all P classes.

    A class' images are paired in batch order, so that the first round is that of `npair`. R is what the class with
    fewest images has; classes with one image and images left over are not used.

    >>> pair_indices(torch.tensor([4, 4, 4, 4, 1, 1, 1, 1])).tolist()
    [[[4, 5], [0, 1]], [[6, 7], [2, 3]]]
    """
    same = labels[:, None] == labels
    size, rank = same.sum(1), same.tril(-1).sum(1)
    rounds = int(size[size >= 2].min()) // 2 if (size >= 2).any() else 0
    used = ((size >= 2) & (rank < 2 * rounds)).nonzero()[:, 0]
    by_class = used[labels[used].argsort(stable=True)]
    return by_class.view(-1, max(rounds, 1), 2).transpose(0, 1)
