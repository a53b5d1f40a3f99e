"""Batches in which confusable classes meet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor


def confusable_batches(
    epoch: list[np.ndarray],
    labels: np.ndarray,
    p: int,
    hard: int,
    signatures: Callable[[], Tensor],
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """The groups of an epoch's P x K batches in another order: confusable classes share a batch.

    As many batches of the same images; only who meets whom is different.

    Args:
        epoch: of `pk_batches`, [P*K] each.
        hard: confusable classes beside each anchor class.
        signatures: of all classes, [C, D]; asked for every batch, so that mining goes on-line with training.
    """
    groups: dict[int, list[np.ndarray]] = defaultdict(list)
    for group in np.concatenate(epoch).reshape(len(epoch) * p, -1):
        groups[labels[group[0]]].append(group)
    for steps in range(len(epoch), 0, -1):
        w = signatures()
        # As many as there are signatures: of the last classes no image may be labelled.
        left = np.array([len(groups[c]) for c in range(len(w))])
        chosen = confusable_classes(left, steps, p, hard, w, rng)
        yield np.concatenate([groups[c].pop() for c in chosen])


def confusable_classes(
    left: np.ndarray, steps: int, p: int, hard: int, signatures: Tensor, rng: np.random.Generator
) -> list[int]:
    """P different classes for a batch: random anchors, each followed by its `hard` nearest by signature.

    Args:
        left: groups left of each class, [C]; P for each of the `steps` batches to come, none above `steps`.

    >>> import torch
    >>> w = torch.nn.functional.normalize(torch.tensor([[1., 0], [.9, .1], [0, 1], [.1, .9]]))
    >>> sorted(confusable_classes(np.full(4, 2), 4, 2, 1, w, np.random.default_rng(0)))
    [2, 3]
    """
    free = left > 0
    due = left == steps  # a class in every batch to come: left out now, it could not be used up
    order = [rng.permutation(np.flatnonzero(part)) for part in (due, free & ~due)]
    chosen: list[int] = []
    for anchor in np.concatenate(order):
        if len(chosen) == p:
            break
        if not free[anchor]:
            continue
        free[anchor] = False
        room = min(hard, p - len(chosen) - 1 - int((due & free).sum()))
        similarity = (signatures @ signatures[anchor]).numpy()
        nearest = np.argsort(np.where(free, -similarity, np.inf), kind="stable")
        nearest = nearest[: min(room, free.sum())]
        free[nearest] = False
        chosen += [int(anchor), *map(int, nearest)]
    return chosen
