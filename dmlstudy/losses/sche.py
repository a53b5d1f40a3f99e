"""SCHE: a softmax that trains class signatures."""

import torch.nn.functional as F
from torch import Tensor

from dmlstudy.ranges import Positive


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

    >>> import torch
    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> w = torch.tensor([[1., 0], [0, 1]])
    >>> [round(float(signature_softmax(x, torch.tensor(y), signatures=w, tau=1)), 6)
    ...  for y in ([0, 0, 1, 1], [0, 1, 0, 1])]
    [0.36127, 0.66127]
    """
    return F.cross_entropy(tau * embeddings @ signatures.T, labels)
