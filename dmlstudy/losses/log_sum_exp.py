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
        exponents = torch.where(mask, scale * x, -torch.inf)
        top = exponents.amax(1, keepdim=True).clamp_min(0)  # the 1 is exp(0)
        share = exponents.sub_(top).exp_()
        total = share.sum(1, keepdim=True) + (-top).exp()
        ctx.save_for_backward(share, scale / total)
        return (top + total.log())[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        share, factor = ctx.saved_tensors
        return share * (factor * upstream[:, None]), None, None
