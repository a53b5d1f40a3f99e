"""Batches from one cluster of the training images at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, zip_longest

import numpy as np

from dmlstudy.samplers.pk import pk_batches


def cluster_batches(
    cluster_of: np.ndarray, labels: np.ndarray, p: int, k: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, int]]:
    """P x K batches with the number of their cluster, one from each cluster in turn until all are used up.

    Unlabelled images, and those alone in their class within a cluster, are left out; so are clusters of fewer than two
    classes.

    Args:
        cluster_of: int [N].
        labels: int [N]; -1 is unlabelled.
        p, k: classes per batch, images per class; a cluster with fewer classes gives smaller batches.
    """
    clusters = range(int(cluster_of.max()) + 1)
    rounds = zip_longest(*[_of_one(c, cluster_of, labels, p, k, rng) for c in clusters])
    return (batch for batch in chain.from_iterable(rounds) if batch is not None)


def _of_one(
    cluster: int,
    cluster_of: np.ndarray,
    labels: np.ndarray,
    p: int,
    k: int,
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, int]]:
    members = np.flatnonzero((cluster_of == cluster) & (labels >= 0))
    usable = int((np.bincount(labels[members]) >= 2).sum())
    if usable < 2:  # one class has no negatives, so there is nothing to learn from
        return []
    batches = pk_batches(labels[members], min(p, usable), k, rng)
    return [(members[indices], cluster) for indices in batches]


def match_clusters(old: np.ndarray, new: np.ndarray, clusters: int) -> np.ndarray:
    """The old id of each new cluster, [K]: the one-to-one matching under which most samples stay.

    Minimising the L1 distance of 0/1 membership vectors is maximising the overlap.

    >>> old = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    >>> new = np.array([1, 1, 2, 2, 0, 0, 3, 3])  # a 3-cycle
    >>> match_clusters(old, new, 4)[new]
    array([0, 0, 1, 1, 2, 2, 3, 3])
    """
    from scipy.optimize import linear_sum_assignment

    overlap = np.bincount(new * clusters + old, minlength=clusters**2).reshape(clusters, clusters)
    return linear_sum_assignment(overlap, maximize=True)[1]
