"""Distillation of an embedding: a student's positions, or its distances, follow a teacher's."""

import torch
from torch import Tensor

from dmlstudy.geometry import pairwise_distance


def absolute_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Euclidean distance between each image's student and teacher embedding.

    Yu, Yazici, Liu, van de Weijer, Cheng, Ramisa, "Learning Metrics from Teachers: Compact Networks for Image
    Embedding", CVPR 2019:

        L_abs = 1/B sum_i |f_i^S - f_i^T|

    Args:
        student: f^S, [B, D], expects unit rows.
        teacher: f^T, [B, D], of the same dimension, expects unit rows; a constant.

    Returns:
        Scalar; a student that coincides with the teacher passes no gradient.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> t = torch.tensor([[1, 0], [.6, .8], [0, 1], [-1, 0]])
    >>> round(float(absolute_distillation(x, t)), 6)
    0.294317
    """
    return torch.linalg.vector_norm(student - teacher.detach(), dim=1).mean()


def relative_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Frobenius norm of the difference of the two distance matrices.

    Same paper; the text sums |d^S_ij - d^T_ij|, the released code takes the Frobenius norm, as here:

        L_rel = |D^S - D^T|_F,   D_ij = |f_i - f_j|

    It is 0 for a teacher that is rotated or reflected, which L_abs is not, and it grows in proportion to B.

    Args:
        student: f^S, [B, D], expects unit rows.
        teacher: f^T, [B, D'], the dimension may differ; a constant.

    Returns:
        Scalar; 0 with zero gradient where all distances agree.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> t = torch.tensor([[1, 0], [.6, .8], [0, 1], [-1, 0]])
    >>> round(float(relative_distillation(x, t)), 6)
    1.366267
    """
    difference = pairwise_distance(student) - pairwise_distance(teacher.detach())
    return torch.linalg.matrix_norm(difference)
