"""Invariant and spreading instance feature: every image is its own class."""

import torch
from torch import Tensor

from dmlstudy.ranges import NonNegative, Positive

FLOOR = 1e-7  # of 1 - P, below which no gradient passes; our choice


def instance_log_probabilities(embeddings: Tensor, *, tau: Positive = 0.1) -> Tensor:
    """log P_ik: how far the batch takes anchor i for instance k, [2B, 2B]; never for itself, so -inf on the diagonal.

        P_ik = exp(f_i . f_k / tau) / sum_{l != i} exp(f_i . f_l / tau)

    The other side f_k is a constant: the gradient reaches a feature as an anchor only.

    Args:
        embeddings: f, [2B, D], expects unit rows.
        tau: temperature.
    """
    logits = embeddings @ embeddings.detach().T / tau
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return logits.masked_fill(itself, -torch.inf).log_softmax(1)


def invariant_spreading(
    embeddings: Tensor,
    *,
    tau: Positive = 0.1,
    spreading: NonNegative = 1.0,
) -> Tensor:
    """An anchor is to be taken for its other view, and for nothing else. There are no labels.

    Ye, Zhang, Yuen, Chang, "Unsupervised Embedding Learning via Invariant and Spreading Instance Feature", CVPR
    2019, as the authors' code has it, with i' the other view of i:

        L = -1/2B sum_i [ log P_ii' + spreading sum_{k != i, i'} log(1 - P_ik) ]

    The paper's own form has the originals as only candidates. With spreading = 0 it is the NT-Xent loss of SimCLR
    (Chen et al., ICML 2020), the other side held constant.

    Args:
        embeddings: f, [2B, D], expects unit rows; first one view of B different images, then the other.
        tau: temperature.
        spreading: weight of the second sum.

    Returns:
        Scalar; 0 for a single image.

    >>> x = torch.tensor([[1, 0], [0, 1], [.8, .6], [-.6, .8]])  # two originals, then their views
    >>> [round(float(invariant_spreading(x, tau=tau)), 6) for tau in (.1, 1.)]
    [0.12754, 1.240352]
    """
    log_p = instance_log_probabilities(embeddings, tau=tau)
    anchor = torch.arange(len(log_p), device=log_p.device)
    partner = anchor.roll(len(log_p) // 2)
    other = torch.ones_like(log_p, dtype=torch.bool)
    other[anchor, anchor] = other[anchor, partner] = False
    invariant = log_p[anchor, partner].sum()
    log_not = (-torch.expm1(log_p)).clamp_min(FLOOR).log()  # log(1 - P)
    return -(invariant + spreading * log_not.masked_fill(~other, 0).sum()) / len(log_p)
