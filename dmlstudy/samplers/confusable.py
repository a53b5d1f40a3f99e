"""Batches of anchor classes, each beside hard images of the classes it is easily taken for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from dmlstudy.samplers.pk import images_by_class, pk_batches


def confusable_batches(
    labels: np.ndarray,
    p: int,
    k: int,
    rng: np.random.Generator,
    *,
    hard: int,
    candidates: int,
    embeddings: Tensor,
    signatures: Callable[[], Tensor] | None,
    mine_images: bool = True,
) -> Iterator[np.ndarray]:
    """As many batches of P K images as `pk_batches` has: P / 2 anchor classes, each beside K hard images.

    For K random images of an anchor class, the `hard` classes nearest to one of them are looked up, and K images are
    drawn of those `candidates` K images of these classes that are nearest to one of them. Anchor classes take turns in
    random order; of an odd P the last one comes without hard images.

    Args:
        labels: int [N], negative for an unlabelled image.
        embeddings: of all images, unit rows [N, D].
        signatures: of all classes, unit rows [C, D], asked for every batch, so that mining goes on-line with
            training; None draws the classes at random.
        mine_images: False draws the images of the hard classes at random.

    Yields:
        Indices [P K]: K of an anchor class, K beside it, and so on.

    Raises:
        StudyError: fewer than P classes have two labelled images or more.
    """
    members = images_by_class(labels)
    filled = np.array([c for c, images in enumerate(members) if len(images)])
    pairs = [c for c in filled if len(members[c]) >= 2]
    waiting: list[int] = []
    for _ in pk_batches(labels, p, k, rng):
        w = None if signatures is None else signatures()
        batch: list[np.ndarray] = []
        while len(batch) < p:
            waiting = waiting or rng.permutation(pairs).tolist()
            anchor = waiting.pop()
            anchors = _draw(members[anchor], k, rng)
            batch.append(anchors)
            if len(batch) == p:
                break
            others, f = filled[filled != anchor], embeddings[anchors]
            chosen = (
                rng.permutation(others)[:hard]
                if w is None
                else others[nearest(f, w[others])[:hard]]
            )
            images = np.concatenate([members[c] for c in chosen])
            if mine_images:
                images = images[nearest(f, embeddings[images])[: candidates * k]]
            batch.append(_draw(images, k, rng))
        yield np.concatenate(batch)


def nearest(anchors: Tensor, others: Tensor) -> np.ndarray:
    """Positions of others [M, D], those first whose inner product with one of the anchors [K, D] is largest.

    >>> import torch
    >>> nearest(torch.eye(2), torch.tensor([[.1, .2], [.9, -1.], [.5, .6]])).tolist()
    [1, 2, 0]
    """
    return (anchors @ others.T).amax(0).argsort(descending=True, stable=True).numpy()


def _draw(images: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(images, k, replace=len(images) < k)
