"""Pairwise similarities and distances, same-class masks and safe roots: the ground under losses and miners."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Rows at a time, where an operation needs several more matrices of its operand's size.
ROWS = 128


def pairwise_similarity(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Inner products x_i . y_j, [N, M]; cosine similarities when the rows are unit vectors.

    Args:
        x: [N, D].
        y: [M, D]; x itself when left out.
    """
    return x @ (x if y is None else y).T


def squared_distance(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances ||x_i - y_j||^2, [N, M], never negative.

    One matrix product, by ||x||^2 + ||y||^2 - 2 x.y; the diagonal of x with itself is exactly 0. Elsewhere
    the error is a few roundings of ||x||^2 + ||y||^2, however near the points.

    >>> squared_distance(torch.tensor([[0., 0.], [3., 4.]]))
    tensor([[ 0., 25.],
            [25.,  0.]])
    """
    itself = y is None
    y = x if y is None else y
    products = (x @ y.T).mul_(2)
    squared = x.square().sum(1)[:, None] + y.square().sum(1)[None, :]
    squared -= products
    del products  # a matrix less at the peak
    if itself:
        # Rounding would leave the diagonal a little off zero, and its gradient is not wanted.
        squared.masked_fill_(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)
    return squared.clamp_min(0)


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite.

    >>> z = torch.tensor([0., 4.], requires_grad=True)
    >>> safe_sqrt(z).sum().backward(); z.grad
    tensor([0.0000, 0.2500])
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def pairwise_distance(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Euclidean distances ||x_i - y_j||, [N, M]; coinciding points pass no gradient."""
    return safe_sqrt(squared_distance(x, y))


def pair_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs of a batch are positives and which negatives, two boolean [B, B].

    A sample is never its own positive: self pairs are left out by index, not by value.

    >>> positive, negative = pair_masks(torch.tensor([0, 0, 1]))
    >>> positive.int().tolist(), negative.int().tolist()
    ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 1], [1, 1, 0]])
    """
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def count(mask: Tensor) -> Tensor:
    """True entries of each row, [N]; by blocks, because `sum` makes an int64 copy of a mask, eight times its size."""
    found = torch.empty(len(mask), dtype=torch.long, device=mask.device)
    # Into one tensor: results of their own between the copies would fragment the heap.
    for rows, into in row_blocks(mask, found):
        torch.sum(rows, 1, out=into)
    return found


def row_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of as many rows, `ROWS` rows of each at a time."""
    return zip(*(tensor.split(ROWS) for tensor in tensors), strict=True)
