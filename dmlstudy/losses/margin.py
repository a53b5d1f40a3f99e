"""Margin loss."""

from functools import partial

import torch
from torch import Tensor

from dmlstudy.geometry import pair_masks, pairwise_distance, row_blocks
from dmlstudy.losses.pairwise import is_large, of_distances


def margin(
    embeddings: Tensor,
    labels: Tensor,
    *,
    beta: float | Tensor = 1.2,
    alpha: float = 0.2,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Bound positive distances below, and negative distances above, a boundary beta with margin alpha.

    Wu, Manmatha, Smola, Krähenbühl, "Sampling Matters in Deep Embedding Learning", ICCV 2017:

        L = (sum_pos [d_ij - beta + alpha]_+  +  sum_neg [beta - d_ij + alpha]_+) / #active terms

    with d the Euclidean distance, not squared.

    Args:
        embeddings: [B, D], expects unit rows.
        labels: [B].
        beta: boundary, a number or one per anchor [B].
        alpha: margin on both sides.
        pairs: (positive, negative), boolean [B, B] from a miner; all pairs when left out.

    Returns:
        Scalar; 0 with zero gradient if no term is active.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [round(float(margin(x, y)), 6) for y in (easy, hard)]
    [0.505573, 0.573818]
    """
    positive, negative = pair_masks(labels) if pairs is None else pairs
    boundary = beta.to(embeddings) if isinstance(beta, Tensor) else embeddings.new_full((), beta)
    boundary = boundary.reshape(-1, 1)
    if is_large(embeddings) and not boundary.requires_grad:
        by_hand = partial(_by_hand, pairs=(positive, negative), boundary=boundary, alpha=alpha)
        return of_distances(embeddings, by_hand)
    d = pairwise_distance(embeddings)
    terms = (d - boundary + alpha).relu() * positive + (boundary - d + alpha).relu() * negative
    return terms.sum() / (terms > 0).sum().clamp_min(1)


def _by_hand(
    d: Tensor, pairs: tuple[Tensor, Tensor], boundary: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """The loss and its derivative by every distance: +1 or -1 over the number of active terms."""
    signs, active = torch.empty_like(d), d.new_zeros(())
    matrices = (d, *pairs, boundary.expand(len(d), 1), signs)
    for rows, positive, negative, bound, into in row_blocks(*matrices):
        beyond = rows - bound
        pull, push = positive & (beyond > -alpha), negative & (beyond < alpha)
        active += pull.sum() + push.sum()
        into.copy_(pull.char().sub_(push.char()))
    beyond = torch.einsum("ij,ij->i", signs, d) - (signs.sum(1, keepdim=True) * boundary)[:, 0]
    value = beyond.sum() + alpha * active
    return value / active.clamp_min(1), signs.div_(active.clamp_min(1))
