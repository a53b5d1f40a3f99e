"""The soft maximum of many losses, with a gradient that needs half of autograd's passes over the matrix."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlstudy.ranges import Real


def log1p_sum_exp(x: Tensor, mask: Tensor, scale: Real) -> Tensor:
    """log(1 + sum_j exp(scale x_ij)) over the masked entries of each row, [R]; 0 for an empty row.

    Args:
        x: [R, B].
        mask: boolean [R, B].
        scale: of the exponents; may be negative.

    >>> mask = torch.tensor([[True, False], [False, False]])
    >>> log1p_sum_exp(torch.tensor([[0., 5.], [1., 2.]]), mask, 1.0)
    tensor([0.6931, 0.0000])
    """
    return _Log1pSumExp.apply(x, mask, scale)


class _Log1pSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: Real) -> Tensor:
        # The 1 is exp(0): a column of zeros beside the exponents, so that the maximum is at least 0.
        exponents = x.new_zeros(len(x), x.shape[1] + 1)
        torch.mul(x, scale, out=exponents[:, :-1])
        exponents[:, :-1].masked_fill_(~mask, -torch.inf)
        top = exponents.amax(1, keepdim=True)
        value = (exponents - top).exp_().sum(1).log_().add_(top[:, 0])
        ctx.save_for_backward(exponents, value)
        ctx.scale = scale
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        exponents, value = ctx.saved_tensors
        share = (exponents - value[:, None]).exp_().mul_(upstream[:, None])
        return share[:, :-1].mul_(ctx.scale), None, None
