"""The soft maximum of many losses."""

import torch
import torch.nn.functional as F
from torch import Tensor


def log1p_sum_exp(x: Tensor, mask: Tensor) -> Tensor:
    """log(1 + sum_j exp x_ij) over the masked entries of each row, [R]; 0 for an empty row.

    Args:
        x: [R, B].
        mask: boolean [R, B].

    >>> mask = torch.tensor([[True, False], [False, False]])
    >>> log1p_sum_exp(torch.tensor([[0., 5.], [1., 2.]]), mask) + 0
    tensor([0.6931, 0.0000])
    """
    # The 1 is exp(0) of a column of zeros, whose share of the sum is exp(0) / (1 + sum).
    exponents = F.pad(torch.where(mask, x, -torch.inf), (0, 1))
    return -exponents.log_softmax(1)[:, -1]
