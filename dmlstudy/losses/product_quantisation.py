"""Supervised product quantisation: soft and hard codes, and the losses on them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.ranges import Count


def soft_and_hard(p: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean codeword and most probable codeword of every sub-vector, side by side.

    Klein & Wolf, "End-to-End Supervised Product Quantization for Image Search and Retrieval", CVPR 2019:

        soft_m = sum_k p_m(k) C_mk,   hard_m = C_mk at k = argmax p_m

    The gradient passes the arg-max straight through: p gets the gradient of the one-hot vector.

    Args:
        p: [B, M, K], rows of K are distributions over a codebook.
        codebooks: C, [M, K, W].

    Returns:
        soft and hard, each [B, M W].

    >>> p, line = torch.tensor([[[.75, .25]]]), torch.tensor([[[0.], [1.]]])
    >>> [code.item() for code in soft_and_hard(p, line)]
    [0.25, 0.0]
    """
    one_hot = F.one_hot(p.argmax(2), p.shape[2]).to(p.dtype)
    straight_through = one_hot + (
        p - p.detach()
    )  # p - p is exactly 0, so this is one-hot to the bit
    soft, hard = (torch.einsum("bmk,mkw->bmw", q, codebooks) for q in (p, straight_through))
    return soft.flatten(1), hard.flatten(1)


def joint_central(soft: Tensor, hard: Tensor, labels: Tensor, *, centres: Tensor) -> Tensor:
    """Pull both codes of an image to one centre of its class: 1/B sum_i (|soft_i - O_y|^2 + |hard_i - O_y|^2) / 2.

    Args:
        soft: [B, D].
        hard: [B, D].
        labels: y, [B], in 0..C-1.
        centres: O, [C, D].

    >>> zero = torch.zeros(1, 1)
    >>> joint_central(torch.tensor([[.25]]), zero, torch.tensor([0]), centres=zero).item()
    0.03125
    """
    own = centres[labels]
    return ((soft - own).square().sum(1) + (hard - own).square().sum(1)).mean() / 2


def shared_softmax(
    soft: Tensor, hard: Tensor, labels: Tensor, *, weight: Tensor, bias: Tensor
) -> Tensor:
    """Cross-entropy of the soft code plus that of the hard code under the same linear classifier.

    Args:
        soft: [B, D].
        hard: [B, D].
        labels: [B], in 0..C-1.
        weight: [C, D].
        bias: [C].
    """
    return F.cross_entropy(F.linear(soft, weight, bias), labels) + F.cross_entropy(
        F.linear(hard, weight, bias), labels
    )


def gini(p: Tensor) -> tuple[Tensor, Tensor]:
    """The two Gini terms, both to be minimised; means over codebooks.

        batch level   sum_k (1/B sum_i p_i(k))^2       least, 1/K, when all codewords are used equally
        sample level  1/B sum_i (1 - sum_k p_i(k)^2)   least, 0, when every p is one-hot

    Their purpose is the paper's, the scaling reconstructed.

    Args:
        p: [B, M, K].

    >>> [term.item() for term in gini(torch.tensor([[[.75, .25]]]))]
    [0.625, 0.375]
    """
    return p.mean(0).square().sum(1).mean(), 1 - p.square().sum(2).mean()


def bits_per_image(codebooks: Count, codewords: Count) -> float:
    """M log2 K.

    >>> bits_per_image(8, 64)
    48.0
    """
    return codebooks * math.log2(codewords)
