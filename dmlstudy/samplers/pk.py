"""P x K batches with a defined epoch."""

from collections.abc import Iterator

import numpy as np

from dmlstudy.errors import StudyError


def pk_batches(
    labels: np.ndarray, p: int, k: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """One epoch of batches of P different classes with K images each.

    Each class' images are shuffled and cut into groups of K; a short last group is filled up with
    other images of its class (repeated only if the class has fewer than K). Batches take a group
    from each of the P classes that have most groups left, ties at random, until fewer than P
    classes have any. So every image is drawn about once an epoch, and an epoch has about N / (P K)
    batches. Classes with a single image are left out: they can have no positive. So are unlabelled images.

    Args:
        labels: int [N], negative for an unlabelled image.
        p: classes per batch.
        k: images per class.
        rng: the only source of randomness.

    Yields:
        Indices [P*K], grouped by class.

    Raises:
        StudyError: fewer than P classes have two labelled images or more.

    >>> labels = np.repeat([0, 1, 2], 4)
    >>> epoch = pk_batches(labels, 3, 2, np.random.default_rng(0))
    >>> [np.bincount(labels[batch]).tolist() for batch in epoch]
    [[2, 2, 2], [2, 2, 2]]
    """
    usable = [members for members in images_by_class(labels) if len(members) >= 2]
    if len(usable) < p:
        few = bool((labels < 0).any())
        raise StudyError(
            f"A batch of p = {p} classes needs {p} classes with two {'labelled ' * few}images or more, but the "
            f"training set has {len(usable)}: lower p{' or raise labelled_share' * few}."
        )
    groups = [_groups(members, k, rng) for members in usable]
    # Classes wait in a bucket per number of groups left, so that dealing never sorts all classes.
    waiting: list[list[int]] = [[] for _ in range(max(map(len, groups)) + 1)]
    for c in rng.permutation(len(groups)):
        waiting[len(groups[c])].append(int(c))
    left = len(groups)
    top = len(waiting) - 1
    while left >= p:
        dealt: list[int] = []
        level = top
        while len(dealt) < p:
            take = min(p - len(dealt), len(waiting[level]))
            dealt += [waiting[level].pop() for _ in range(take)]
            level -= 1
        yield np.concatenate([groups[c].pop() for c in dealt])
        for c in dealt:
            bucket = waiting[len(groups[c])]
            bucket.insert(int(rng.integers(len(bucket) + 1)), c)
        left -= len(waiting[0])
        waiting[0].clear()
        while top > 0 and not waiting[top]:
            top -= 1


def images_by_class(labels: np.ndarray, classes: int = 0) -> list[np.ndarray]:
    """Positions of the labelled images of each class, of `classes` of them at least.

    >>> [members.tolist() for members in images_by_class(np.array([1, -1, 3, 1]))]
    [[], [0, 3], [], [2]]
    """
    labelled = np.flatnonzero(labels >= 0)
    by_class = labelled[np.argsort(labels[labelled], kind="stable")]
    return np.split(by_class, np.bincount(labels[labelled], minlength=classes).cumsum()[:-1])


def _groups(members: np.ndarray, k: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A class' images shuffled and cut into groups of k, the last one filled up."""
    shuffled = rng.permutation(members)
    short = -len(shuffled) % k
    others = shuffled[: len(shuffled) - len(shuffled) % k]  # those not in the last, short group
    filling = np.resize(rng.permutation(others if len(others) else members), short)
    return np.split(np.concatenate([shuffled, filling]), (len(shuffled) + short) // k)
