"""SCHE: a softmax that trains class signatures, and hard classes by them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.ranges import Count, Positive


def signature_softmax(
    embeddings: Tensor, labels: Tensor, *, signatures: Tensor, tau: Positive = 20.0
) -> Tensor:
    """Cross-entropy that makes each class' signature the direction of its images (a reconstruction).

    Suh, Han, Kim, Lee, "Stochastic Class-Based Hard Example Mining for Deep Metric Learning", CVPR 2019:

        L_sig = 1/B sum_i -log softmax_c(tau f_i . w_c)  at c = y_i

    Args:
        embeddings: f, [B, D], expects unit rows.
        labels: y, [B], in 0..C-1.
        signatures: w, [C, D], expects unit rows.
        tau: scale.

    Returns:
        Scalar; defined for every batch, also of one class.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> w = torch.tensor([[1., 0], [0, 1]])
    >>> [round(float(signature_softmax(x, torch.tensor(y), signatures=w, tau=1)), 6)
    ...  for y in ([0, 0, 1, 1], [0, 1, 0, 1])]
    [0.36127, 0.66127]
    """
    return F.cross_entropy(tau * embeddings @ signatures.T, labels)


@torch.no_grad()
def in_hard_classes(embeddings: Tensor, labels: Tensor, *, signatures: Tensor, k: Count) -> Tensor:
    """Which negatives belong to the hard classes H_i of their anchor, boolean [B, B], rows are anchors.

        H_i = the k classes c != y_i of the batch with the largest f_i . w_c

    Linear in C: images are compared with signatures, not with each other. Classes without an image in the batch
    could give no negative and are passed over.

    Args:
        embeddings: f, [B, D].
        labels: y, [B], in 0..C-1.
        signatures: w, [C, D].
        k: size of H_i; from C - 1 on, every negative of the batch is in.

    >>> x, w = torch.tensor([[1., 0], [.8, .6], [0, 1]]), torch.tensor([[1., 0], [.6, .8], [0, 1]])
    >>> in_hard_classes(x, torch.arange(3), signatures=w, k=1).int().tolist()
    [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    """
    similarity = embeddings @ signatures.T
    others = torch.zeros_like(similarity, dtype=torch.bool)
    others[:, labels] = True
    others.scatter_(1, labels[:, None], False)
    nearest = similarity.masked_fill(~others, -torch.inf).topk(min(k, len(signatures)), dim=1)
    hard = torch.zeros_like(others).scatter_(1, nearest.indices, True) & others
    return hard[:, labels]
