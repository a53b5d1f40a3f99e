"""Losses of all pairs of a large batch with their gradient written by hand: two matrix products, few N x N matrices.

Autograd keeps every intermediate N x N matrix of a formula and multiplies once more for each side of X X^T. But a
loss of S = X X^T has the gradient (W + W^T) X with W = dL/dS: one product forward, one backward, and what lies
between them can be done in place. A loss file gives its formula, and beside it a function S -> (value, W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Batches of so many rows take the hand-written path. Below, a step is mostly the calls themselves, and the plain
# formulas are no slower.
LARGE_BATCH = 256

# A matrix [N, N] of similarities or distances -> the loss, and its derivative by every entry, [N, N].
PairLoss = Callable[[Tensor], tuple[Tensor, Tensor]]


def is_large(embeddings: Tensor) -> bool:
    """Whether a batch, [N, D], is worth the hand-written gradient."""
    return len(embeddings) >= LARGE_BATCH


def of_similarities(embeddings: Tensor, loss: PairLoss) -> Tensor:
    """The loss of the inner products of all pairs, scalar; `loss` may overwrite them.

    >>> x = torch.tensor([[1., 2.], [3., 4.]], requires_grad=True)
    >>> of_similarities(x, lambda s: (s[0, 1], torch.tensor([[0., 1.], [0., 0.]]))).backward()
    >>> x.grad
    tensor([[3., 4.],
            [1., 2.]])
    """
    return _OfProducts.apply(embeddings, loss)


def of_squared_distances(embeddings: Tensor, loss: PairLoss) -> Tensor:
    """The loss of the squared Euclidean distances of all pairs, scalar; `loss` may overwrite them."""

    def of_products(s: Tensor) -> tuple[Tensor, Tensor]:
        value, weights = loss(to_squared_distances_(s))
        return value, to_products_(weights)

    return of_similarities(embeddings, of_products)


def of_distances(embeddings: Tensor, loss: PairLoss) -> Tensor:
    """The loss of the Euclidean distances of all pairs, scalar; `loss` must leave them as they are."""

    def of_squares(squares: Tensor) -> tuple[Tensor, Tensor]:
        d = squares.sqrt_()
        value, weights = loss(d)
        # d = sqrt(squares), so the derivative is divided by 2 d; coinciding points pass no gradient.
        weights.masked_fill_(d == 0, 0)
        return value, weights.div_(d.mul_(2).clamp_min_(torch.finfo(d.dtype).tiny))

    return of_squared_distances(embeddings, of_squares)


def to_squared_distances_(s: Tensor) -> Tensor:
    """||x_i||^2 + ||x_j||^2 - 2 x_i.x_j in place of the products s, [N, N]; the diagonal becomes exactly 0."""
    lengths = s.diagonal().clone()
    return s.mul_(-2).add_(lengths).add_(lengths[:, None]).clamp_min_(0)


def to_products_(weights: Tensor) -> Tensor:
    """Derivatives by the products, in place of those by the squared distances, [N, N].

    ||x_i||^2 stands in row i and in column i, and -2 x_i.x_j in entry (i, j).
    """
    weights.fill_diagonal_(0)  # a point is at distance 0 from itself, wherever it lies
    lengths = weights.sum(0) + weights.sum(1)
    weights.mul_(-2).diagonal().copy_(lengths)
    return weights


class _OfProducts(torch.autograd.Function):
    """A loss of X X^T. The gradient is finished while the matrices are at hand; only it, [N, D], is kept."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, loss: PairLoss) -> Tensor:
        value, weights = loss(embeddings @ embeddings.T)
        if ctx.needs_input_grad[0]:
            # Transposed first: reading down the columns while adding takes three times as long.
            ctx.save_for_backward(weights.add_(weights.T.contiguous()) @ embeddings)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None
