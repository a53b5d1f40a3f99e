"""SoftTriple: softmax over classes with several centres each."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.ranges import NonNegative, Positive


def soft_triple(
    embeddings: Tensor,
    labels: Tensor,
    *,
    centres: Tensor,
    lam: Positive = 20.0,
    gamma: Positive = 0.1,
    delta: NonNegative = 0.01,
) -> Tensor:
    """Cross-entropy of softly assigned class similarities; add tau times `soft_triple_regulariser`.

    Qian, Shang, Sun, Hu, Li, Jin, "SoftTriple Loss: Deep Metric Learning Without Triplet Sampling", ICCV 2019:

        q_ick = softmax_k(f_i . w_ck / gamma),  S_ic = sum_k q_ick f_i . w_ck
        L = 1/B sum_i -log softmax_c(lam (S_ic - delta [c = y_i]))  at c = y_i

    Args:
        embeddings: f, [B, D], expects unit rows.
        labels: y, [B], in 0..C-1.
        centres: w, [C, K, D], expects unit rows.
        lam: scale, the paper's lambda.
        gamma: temperature of the assignment to centres.
        delta: margin on the true class.

    Returns:
        Scalar; defined for every batch, also of one class.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> one = torch.tensor([[[1., 0]], [[0, 1]]])
    >>> [round(float(soft_triple(x, y, centres=one)), 6) for y in (easy, hard)]
    [0.005531, 6.103721]
    >>> two = torch.tensor([[[1, 0], [.6, .8]], [[0, 1], [-.8, .6]]])
    >>> [round(float(soft_triple(x, y, centres=two)), 6) for y in (easy, hard)]
    [0.006732, 2.736177]
    """
    by_centre = centres.transpose(
        0, 1
    )  # classes last, [K, C, D]: sums over K then read memory in order
    similarity = (embeddings @ by_centre.flatten(0, 1).T).unflatten(1, by_centre.shape[:2])
    score = ((similarity / gamma).softmax(1) * similarity).sum(1)
    true_class = F.one_hot(labels, score.shape[1]).to(score.dtype)
    return F.cross_entropy(lam * (score - delta * true_class), labels)


def soft_triple_regulariser(centres: Tensor) -> Tensor:
    """Mean distance between centres of one class: draws centres together that a class does not need.

        R = 1 / (C K (K - 1)) sum_c sum_{s < t} sqrt(2 - 2 w_cs . w_ct + 1e-5)

    Args:
        centres: w, [C, K, D], expects unit rows.

    Returns:
        Scalar; 0 for a single centre per class.

    >>> two = torch.tensor([[[1, 0], [.6, .8]], [[0, 1], [-.8, .6]]])
    >>> round(float(soft_triple_regulariser(two)), 6)
    0.447216
    """
    classes, k, _ = centres.shape
    if k == 1:
        return centres.sum() * 0
    s, t = torch.triu_indices(k, k, 1, device=centres.device)
    products = (centres @ centres.mT)[:, s, t]
    # 1e-5 as in the authors' code: the root has no gradient where two centres coincide.
    return (2 - 2 * products + 1e-5).clamp_min(0).sqrt().sum() / (classes * k * (k - 1))
