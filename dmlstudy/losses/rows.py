"""Pair losses: a formula on rows of the pair matrix, written once, serves every batch size.

Up to `ROWS` images the formula sees the whole matrix, and autograd does the rest. Above, autograd would keep every
intermediate [B, B] matrix and multiply once more for each side of X X^T. But a loss of S = X X^T has the gradient
(W + W^T) X with W = dL/dS: so autograd sees one block of rows after the other, its derivatives overwrite the block,
and one product gives the gradient.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlstudy.errors import StudyError
from dmlstudy.geometry import (
    centred,
    over_signal,
    pair_masks,
    pairwise_similarity,
    safe_sqrt,
    squared_distance,
)

ROWS = 256  # of a block; up to so many images it is the whole matrix

Pairs = tuple[Tensor, Tensor]
# (values of a block of anchors with all images, [R, B]; positives; negatives) -> the pairs that are kept.
Miner = Callable[[Tensor, Tensor, Tensor], Pairs]
# The same arguments, and hyperparameters -> sum, differentiable, and how much it counts in the mean; one or several.
Formula = Callable[..., tuple[Tensor, Tensor | int]]
# (values [R, B], which rows those are, hyperparameters that are tensors) -> the same, all else being given.
Terms = Callable[..., tuple[Tensor, Tensor | int]]


def mean(summed: Tensor, count: Tensor | int) -> Tensor:
    """summed / max(count, 1), so that no terms have the mean 0; of several kinds of terms, [T], the means' sum.

    >>> mean(torch.tensor([6., 0.]), torch.tensor([4, 0]))
    tensor(1.5000)
    """
    means = summed / (max(count, 1) if isinstance(count, int) else count.clamp_min(1))
    return means.sum() if means.dim() else means


def active(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of terms that are never negative, and how many are positive: what `mean` wants of hinges.

    >>> round(float(mean(*active(torch.tensor([0, .4, .6])))), 6)
    0.5
    """
    return terms.sum(), (terms > 0).sum()


@dataclass(frozen=True)
class Metric:
    """How near the pairs of a batch are: `finish(squared distances or inner products, anchors)`.

    Args:
        euclidean: start from squared distances, otherwise from inner products.
        finish: (a block of those [R, B], its anchors [R, D]) -> values [R, B].
        prepare: what is done to the embeddings first, [B, D] -> [B, D].
    """

    euclidean: bool = True
    finish: Callable[[Tensor, Tensor], Tensor] = lambda block, anchors: block
    prepare: Callable[[Tensor], Tensor] = lambda x: x

    def pairwise(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Squared distances or inner products of prepared embeddings [B, D] with keys [M, D] or each other, [B, M]."""
        return squared_distance(x, keys) if self.euclidean else pairwise_similarity(x, keys)

    def of_all(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Values of prepared embeddings [B, D] with each other, [B, B], or with keys [M, D], [B, M]."""
        return self.finish(self.pairwise(x, keys), x)


@dataclass(frozen=True)
class Keys:
    """What anchors are compared with instead of their own batch.

    Attributes:
        embeddings: [M, D], constants.
        labels: [M].
        itself: [B], the key that is the anchor's own copy and no pair; -1 for none.
    """

    embeddings: Tensor
    labels: Tensor
    itself: Tensor

    def masks(self, labels: Tensor) -> Pairs:
        """Positives and negatives of anchors with these labels [B], boolean [B, M]."""
        same = labels[:, None] == self.labels
        own = self.itself[:, None] == torch.arange(len(self.labels), device=labels.device)
        return same & ~own, ~same


similarity = Metric(euclidean=False)
squared = Metric()
distance = Metric(finish=lambda block, anchors: safe_sqrt(block))
snr = Metric(finish=over_signal, prepare=centred)


class PairLoss:
    """A formula with its metric, as a loss of (embeddings, labels); see `pair_loss`."""

    def __init__(self, formula: Formula, metric: Metric):
        functools.update_wrapper(self, formula)
        self.formula, self.metric = formula, metric
        self.__signature__ = _signature(formula)

    def on(self, metric: Metric) -> "PairLoss":
        """The same formula on another metric."""
        return PairLoss(self.formula, metric)

    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        pairs: Miner | Pairs | None = None,
        keys: Keys | None = None,
        **settings: Any,
    ) -> Tensor:
        _check_labels(labels, embeddings)
        columns = {
            name: value.to(embeddings).reshape(-1, 1)
            for name, value in settings.items()
            if isinstance(value, Tensor)
        }
        x = self.metric.prepare(embeddings)

        def terms(values: Tensor, rows: slice, *columns_: Tensor) -> tuple[Tensor, Tensor | int]:
            masks = pair_masks(labels, rows) if keys is None else keys.masks(labels)
            kept = _kept_pairs(pairs, values, masks, rows)
            own = (column[rows] if len(column) > 1 else column for column in columns_)
            return self.formula(values, *kept, **settings | dict(zip(columns, own, strict=True)))

        if keys is None and len(x) > ROWS:
            return _ByBlocks.apply(x, self.metric, terms, *columns.values())
        others = None if keys is None else self.metric.prepare(keys.embeddings)
        return mean(*terms(self.metric.of_all(x, others), slice(None), *columns.values()))


def pair_loss(metric: Metric) -> Callable[[Formula], PairLoss]:
    """Make a loss of a formula on a block of rows of the pair matrix; `margin` is a short example.

    The formula gets values of the metric [R, B], and which pairs are positives and negatives, boolean [R, B], and
    leaves all three as they are. It gives the sum of its terms, differentiable, and how much that counts in the
    mean, a constant; both [T] where the loss is a sum of T means. A hyperparameter may be a tensor: one number, or
    one for each anchor, which the formula sees as a column [R, 1]. Two images on the diagonal are one: no formula
    may let their value pass a gradient.

    The loss is called with embeddings [B, D], integer labels [B], and, where not all pairs count, with `pairs`: a
    miner, which is a function of the same three blocks and gives the masks of the pairs that stay, or two boolean
    [B, B]. It is differentiable once. With `keys`, anchors are compared with those instead of with each other.

    Raises:
        StudyError: labels that are not integers, or not one for each image (when called).
    """
    return lambda formula: PairLoss(formula, metric)


def _signature(formula: Formula) -> inspect.Signature:
    """(embeddings, labels, *, hyperparameters of the formula, pairs)."""
    plain, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    own = inspect.signature(formula, eval_str=True).parameters.values()
    return inspect.Signature(
        [
            inspect.Parameter("embeddings", plain, annotation=Tensor),
            inspect.Parameter("labels", plain, annotation=Tensor),
            *(parameter for parameter in own if parameter.kind is named),
            inspect.Parameter("pairs", named, default=None, annotation=Miner | Pairs | None),
        ],
        return_annotation=Tensor,
    )


def _check_labels(labels: Tensor, embeddings: Tensor) -> None:
    kind = labels.dtype
    if kind.is_floating_point or kind == torch.bool or labels.shape != embeddings.shape[:1]:
        raise StudyError(
            f"A pair loss wants one integer label for each of the {len(embeddings)} embeddings, shape "
            f"[{len(embeddings)}], not {kind} of shape {list(labels.shape)}."
        )


def _kept_pairs(pairs: Miner | Pairs | None, values: Tensor, masks: Pairs, rows: slice) -> Pairs:
    if isinstance(pairs, tuple):
        return pairs[0][rows], pairs[1][rows]
    if pairs is None:
        return masks
    with torch.no_grad():
        return pairs(values.detach(), *masks)


class _ByBlocks(torch.autograd.Function):
    """A loss by blocks of rows. The gradient is finished while the matrix is at hand; only it, [B, D], is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, metric: Metric, terms: Terms, *columns: Tensor) -> Tensor:
        matrix = metric.pairwise(x)
        blocks = [slice(start, start + ROWS) for start in range(0, len(x), ROWS)]

        def part(rows: slice, leaves: list[Tensor]) -> tuple[Tensor, Tensor | int]:
            return terms(metric.finish(*leaves[:2]), rows, *leaves[2:])

        def total() -> tuple[Tensor, Tensor | int]:
            sums: Any = 0
            counts: Any = 0
            for rows in blocks:
                summed, count = part(rows, [matrix[rows], x[rows], *columns])
                sums, counts = sums + summed, counts + count
            return sums, counts

        if not any(ctx.needs_input_grad):
            return mean(*total())
        weights: Tensor | None = None
        sums: Any = 0
        counts: Any = 0
        gradients = [torch.zeros_like(leaf) for leaf in (x, *columns)]
        for rows in blocks:
            inputs = (matrix[rows], x[rows], *columns)
            leaves = [leaf.detach().requires_grad_() for leaf in inputs]
            with torch.enable_grad():
                summed, count = part(rows, leaves)
            if summed.dim() and weights is None:
                # Several means: what each term weighs must be known first.
                weights = 1 / torch.as_tensor(total()[1]).clamp_min(1).to(x)
            slopes = torch.autograd.grad(summed, leaves, weights, allow_unused=True)
            matrix[rows] = slopes[0]
            into = gradients[0][rows], *gradients[1:]
            for gradient, slope in zip(into, slopes[1:], strict=True):
                if slope is not None:
                    gradient += slope
            # In place: results of their own between the blocks' temporaries would fragment the heap.
            sums, counts = _add_(sums, summed.detach()), _add_(counts, count)
        # Transposed first: reading down the columns while adding takes three times as long.
        matrix += matrix.T.contiguous()
        if metric.euclidean:  # |x_i - x_j|^2 has the derivative 2 (x_i - x_j)
            gradients[0] += 2 * (matrix.sum(1, keepdim=True) * x - matrix @ x)
        else:
            gradients[0] += matrix @ x
        scale = mean(torch.ones_like(sums), counts) if weights is None else 1
        ctx.save_for_backward(*(gradient.mul_(scale) for gradient in gradients))
        return mean(sums, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        first, *others = (upstream * gradient for gradient in ctx.saved_tensors)
        return first, None, None, *others


def _add_(total: Any, part: Any) -> Any:
    """The sum of tensors or numbers, in the first tensor's place."""
    return total.add_(part) if isinstance(total, Tensor) else total + part
