"""N-pair: one softmax in which an anchor's positive competes with the positives of all other classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.ranges import NonNegative


def npair(embeddings: Tensor, labels: Tensor, *, l2: NonNegative = 0.0) -> Tensor:
    """Cross-entropy of each anchor's positive among the positives of the batch.

    Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016:

        L = 1/P sum_i log(1 + sum_{j != i} exp(z_i . z+_j - z_i . z+_i)) + l2 / (4 P) sum_i (|z_i|^2 + |z+_i|^2)

    The first image of a class in the batch is its anchor z_i, the second its positive z+_i; further images are not
    looked at, nor are classes with a single one. The quarter is that of TensorFlow's code.

    Args:
        embeddings: z, [B, D], raw: the loss wants long vectors, and l2 keeps them in bounds.
        labels: [B]; P of the classes have two images or more.
        l2: weight of the penalty on squared lengths.

    Returns:
        Scalar. Fewer than two pairs give 0 with zero gradient, penalty included.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [round(float(npair(x, y)), 6) for y in (easy, hard)]
    [0.409278, 0.737488]
    >>> round(float(npair(x, easy, l2=0.02) - npair(x, easy)), 6)
    0.01
    """
    same = labels[:, None] == labels
    earlier = same.tril(-1).sum(1)  # images of the same class before this one
    anchors = ((earlier == 0) & (same.sum(1) >= 2)).nonzero()[:, 0]
    if len(anchors) < 2:
        return embeddings.sum() * 0
    second = same[anchors] & (earlier == 1)
    z, positives = embeddings[anchors], embeddings[second.int().argmax(1)]
    softmax = F.cross_entropy(z @ positives.T, torch.arange(len(z), device=z.device))
    return softmax + l2 / 4 * (z.square().sum(1) + positives.square().sum(1)).mean()
