"""SCHE: a softmax that trains class signatures, hard classes by them, and a triplet over what they leave."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.geometry import pair_masks, squared_distance


def signature_softmax(
    embeddings: Tensor, labels: Tensor, *, signatures: Tensor, tau: float = 20.0
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
def in_hard_classes(embeddings: Tensor, labels: Tensor, *, signatures: Tensor, k: int) -> Tensor:
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


def mined_triplet(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.2,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Triplet loss on the farthest positive and the nearest negative among the pairs that are left to an anchor.

        L = mean of [max_p d_ap^2 - min_n d_an^2 + m]_+ over the anchors where it is positive

    Args:
        embeddings: f, [B, D], expects unit rows.
        labels: [B].
        margin: m, on squared distances.
        pairs: (positive, negative), boolean [B, B]; all pairs when left out, which is batch-hard.

    Returns:
        Scalar; 0 with zero gradient if no anchor violates. Anchors without a positive or a negative do not count.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [round(float(mined_triplet(x, y, margin=m)), 6) for y, m in ((easy, .6), (hard, .2))]
    [0.2, 1.8]
    """
    d2 = squared_distance(embeddings)
    positive, negative = pair_masks(labels) if pairs is None else pairs
    farthest_positive = d2.masked_fill(~positive, 0).amax(1)
    nearest_negative = d2.masked_fill(~negative, torch.inf).amin(1)
    valid = positive.any(1) & negative.any(1)
    violation = (farthest_positive - nearest_negative + margin).masked_fill(~valid, 0)
    return nonzero_mean(violation.relu())


def nonzero_mean(terms: Tensor) -> Tensor:
    """Mean of the strictly positive terms; 0 if there are none.

    >>> round(float(nonzero_mean(torch.tensor([0, 0, .6]))), 6)
    0.6
    """
    return terms.sum() / (terms > 0).sum().clamp_min(1)


@torch.no_grad()
def one_at_random(mask: Tensor) -> Tensor:
    """One True of every row that has any, drawn uniformly by torch's global generator; boolean like `mask`."""
    drawn = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1).argmax(1)
    return torch.zeros_like(mask).scatter_(1, drawn[:, None], True) & mask
