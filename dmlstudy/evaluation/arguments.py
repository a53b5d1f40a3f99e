"""Embeddings and labels as callers have them, turned into tensors and checked; the caller's own are never changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dmlstudy.errors import StudyError

Rows = Tensor | np.ndarray | Sequence[Sequence[float]]
Labels = Tensor | np.ndarray | Sequence[int] | Sequence[str]


def as_tensors(
    query: Rows,
    query_labels: Labels,
    gallery: Rows | None = None,
    gallery_labels: Labels | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Embeddings [N, D] without gradient and labels int64 [N]; texts get numbers, the same on both sides.

    Raises:
        StudyError: not such rows or labels, not a label for each row, no rows, or an embedding is not finite.
    """
    if (gallery is None) != (gallery_labels is None):
        raise StudyError("A gallery and its labels go together: give both or neither.")
    if gallery is None or gallery_labels is None:
        (numbers,) = _numbered(query_labels)
        return _rows("query", query, numbers), numbers, None, None
    numbers, others = _numbered(query_labels, gallery_labels)
    return _rows("query", query, numbers), numbers, _rows("gallery", gallery, others), others


def _numbered(*given: Labels) -> list[Tensor]:
    arrays = [np.asarray(x.cpu() if isinstance(x, Tensor) else x) for x in given]
    for array in arrays:
        texts = array.dtype == object and all(isinstance(label, str) for label in array.flat)
        if array.ndim != 1 or not (texts or array.dtype.kind in "iubU" or not array.size):
            raise StudyError(
                f"Labels must be a list of whole numbers or of texts, one for each embedding, not {array.dtype} "
                f"of shape {list(array.shape)}."
            )
    if all(array.dtype.kind in "iub" for array in arrays):
        return [torch.tensor(array.astype(np.int64)) for array in arrays]
    numbers = np.unique(np.concatenate([a.astype(str) for a in arrays]), return_inverse=True)[1]
    return list(torch.tensor(numbers).split([len(array) for array in arrays]))


def _rows(name: str, given: Rows, labels: Tensor) -> Tensor:
    try:
        rows = given if isinstance(given, Tensor) else torch.tensor(np.asarray(given))
    except (TypeError, ValueError) as error:
        raise StudyError(f"The {name} embeddings must be numbers [N, D]: {error}.") from error
    if rows.ndim != 2:
        raise StudyError(f"The {name} embeddings must be [N, D], not {list(rows.shape)}.")
    if not len(rows) or len(rows) != len(labels):
        raise StudyError(
            f"The {name} has {len(rows)} embeddings and {len(labels)} labels: it needs at least one embedding, "
            "and one label for each."
        )
    rows = rows.detach().cpu()
    rows = rows if rows.is_floating_point() else rows.float()
    # The sum takes one pass and no memory; it may overflow though all rows are finite, so rows are looked at then.
    if not rows.sum().isfinite() and (broken := int((~rows.isfinite()).any(1).sum())):
        raise StudyError(
            f"{broken} of {len(rows)} {name} embeddings are not finite: lower the learning rate."
        )
    return rows
