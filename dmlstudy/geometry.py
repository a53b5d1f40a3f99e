"""Pairwise similarities and distances, same-class masks and safe roots: the ground under losses and miners."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Smallest variance of an anchor's coordinates that is divided by: a constant embedding carries no signal.
LEAST_VARIANCE = 1e-6


def pairwise_similarity(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Inner products x_i . y_j, [N, M]; cosine similarities when the rows are unit vectors.

    Args:
        x: [N, D].
        y: [M, D]; x itself when left out.
    """
    return x @ (x if y is None else y).T


def pairwise_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine similarities of rows of any length, [N, M]."""
    return pairwise_similarity(F.normalize(x), F.normalize(y))


def squared_distance(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances ||x_i - y_j||^2, [N, M], never negative.

    One matrix product, by ||x||^2 + ||y||^2 - 2 x.y; the diagonal of x with itself is exactly 0. Elsewhere
    the error is a few roundings of ||x||^2 + ||y||^2, however near the points.

    >>> squared_distance(torch.tensor([[0., 0.], [3., 4.]]))
    tensor([[ 0., 25.],
            [25.,  0.]])
    """
    lengths = x.square().sum(1, keepdim=True)
    others = lengths if y is None else y.square().sum(1, keepdim=True)
    squared = (lengths + others.T).addmm_(x, (x if y is None else y).T, alpha=-2)
    if y is None:
        # Rounding would leave the diagonal a little off zero, and its gradient is not wanted.
        squared.fill_diagonal_(0)
    return squared.relu_()


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite.

    >>> z = torch.tensor([0., 4.], requires_grad=True)
    >>> safe_sqrt(z).sum().backward(); z.grad
    tensor([0.0000, 0.2500])
    """
    return _SafeSqrt.apply(x)


class _SafeSqrt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        root = x.clamp_min(0).sqrt_()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return upstream / F.threshold(2 * root, 0, torch.inf)


def pairwise_distance(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Euclidean distances ||x_i - y_j||, [N, M]; coinciding points pass no gradient."""
    return safe_sqrt(squared_distance(x, y))


def centred(x: Tensor) -> Tensor:
    """Each row less the mean of its coordinates, [N, D]."""
    return x - x.mean(1, keepdim=True)


def over_signal(noise: Tensor, anchors: Tensor) -> Tensor:
    """Squared distances of centred vectors, [N, M], over the squared lengths of the centred anchors, [N, D]."""
    signal = anchors.square().sum(1, keepdim=True)
    return noise / signal.clamp_min(LEAST_VARIANCE * anchors.shape[1])


def snr_distance(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Noise over signal, 1 / SNR, of every pair with rows of x as anchors, [N, M]; not symmetric.

    Yuan, Deng, Tang, Tang, Chen, "Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric Learning",
    CVPR 2019, with var over the D coordinates of one vector:

        d(x_i, y_j) = var(y_j - x_i) / var(x_i)

    One matrix product: a variance is the mean square of the centred vector, and centring is linear. Adding a
    constant to all coordinates changes nothing, nor does scaling x and y alike; for unit vectors with zero mean
    it is the squared Euclidean distance.

    Args:
        x: anchors, [N, D], raw: lengths count.
        y: [M, D]; x itself when left out.

    >>> h = torch.tensor([[1., -1, 1, -1], [2, -2, 0, 0], [3, 1, -1, -3]])
    >>> snr_distance(h)
    tensor([[0.0000, 1.0000, 4.0000],
            [0.5000, 0.0000, 2.5000],
            [0.8000, 1.0000, 0.0000]])
    """
    x = centred(x)
    return over_signal(squared_distance(x, None if y is None else centred(y)), x)


def pair_masks(labels: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Which pairs of a batch are positives and which negatives, two boolean [B, B].

    A sample is never its own positive: self pairs are left out by index, not by value.

    Args:
        labels: [B].
        rows: anchors, all of them when left out; the masks have only their rows.

    >>> positive, negative = pair_masks(torch.tensor([0, 0, 1]))
    >>> positive.int().tolist(), negative.int().tolist()
    ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 1], [1, 1, 0]])
    """
    same = labels[rows, None] == labels
    negative = ~same
    same.diagonal(rows.start or 0).fill_(False)
    return same, negative
