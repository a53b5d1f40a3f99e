"""Tracks: what methods are shown of the training labels, the same for every method and seed.

Wrong and hidden labels belong to the data, not to a run, so they have fixed seeds of their own. A larger rate keeps
the wrong labels of a smaller one, and a larger share keeps the labels of a smaller one. Test labels never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dmlstudy.data.benchmark import ImageSet

UNLABELLED = -1


@dataclass(frozen=True)
class Track:
    """What happens to the training labels; the default is nothing.

    Attributes:
        label_noise: share of the labels made wrong.
        noise_kind: "symmetric" to any other class, "asymmetric" to the one similar class of each class.
        labelled_share: share of each class that stays labelled.
    """

    label_noise: float = 0.0
    noise_kind: str = "symmetric"
    labelled_share: float = 1.0

    def labels(self, images: ImageSet) -> np.ndarray:
        """Labels int64 [N] that methods are shown of these training images, `UNLABELLED` where hidden.

        Labels are made wrong first: a class is then what is labelled as such, whatever the images show.
        """
        classes = len(images.classes)
        if self.noise_kind == "symmetric":
            shown = wrong_labels(images.labels, self.label_noise, classes)
        else:
            similar = similar_classes(classes, images.groups)
            shown = confused_labels(images.labels, self.label_noise, similar)
        return hide_labels(shown, self.labelled_share)

    def realised(self, images: ImageSet) -> dict[str, float]:
        """Share of the images that are labelled, and of the labelled ones that are labelled wrongly."""
        shown = self.labels(images)
        labelled = shown != UNLABELLED
        wrong = shown[labelled] != images.labels[labelled]
        return {"labelled": float(labelled.mean()), "wrong": float(wrong.mean())}


def wrong_labels(labels: np.ndarray, rate: float, classes: int) -> np.ndarray:
    """Symmetric noise: round(`rate` N) labels replaced by another class, each of the others alike.

    >>> wrong_labels(np.arange(3).repeat(4), 0.25, 3)
    array([0, 0, 2, 0, 1, 1, 1, 2, 2, 1, 2, 2])
    """
    rng = np.random.default_rng(0)
    order, steps = rng.permutation(len(labels)), rng.integers(1, max(classes, 2), len(labels))
    wrong = order[: round(rate * len(labels))]
    shown = labels.astype(np.int64)
    shown[wrong] = (shown[wrong] + steps[wrong]) % classes
    return shown


def confused_labels(labels: np.ndarray, rate: float, similar: np.ndarray) -> np.ndarray:
    """Asymmetric noise: round(`rate` n_c) labels of each class c replaced by `similar`[c].

    >>> confused_labels(np.arange(3).repeat(4), 0.5, similar_classes(3))
    array([1, 0, 1, 0, 2, 1, 1, 2, 2, 0, 2, 0])
    """
    wrong = _place_in_class(labels, seed=0) < np.round(rate * np.bincount(labels))[labels]
    return np.where(wrong, similar[labels], labels)


def similar_classes(classes: int, groups: Sequence[str] = ()) -> np.ndarray:
    """The similar class of each class, [C]: the next of its group, the first for the last one.

    So do Patrini et al., CVPR 2017, in the superclasses of CIFAR-100. A class that is alone in its group, or has
    none, takes class c + 1.

    >>> similar_classes(5, ["bird", "car", "bird", "bird", "ship"])
    array([2, 2, 3, 0, 0])
    """
    similar = np.roll(np.arange(classes), -1)
    for group in set(groups):
        members = np.flatnonzero(np.asarray(groups) == group)
        if len(members) > 1:
            similar[members] = np.roll(members, -1)
    return similar


def hide_labels(labels: np.ndarray, share: float) -> np.ndarray:
    """Labels of which each class c keeps round(`share` n_c), but two at least; the others become `UNLABELLED`.

    >>> hide_labels(np.arange(2).repeat([8, 4]), 0.375)
    array([-1, -1, -1, -1,  0,  0, -1,  0,  1, -1, -1,  1])
    """
    kept = np.maximum(2, np.round(share * np.bincount(labels)))
    return np.where(_place_in_class(labels, seed=1) < kept[labels], labels, UNLABELLED)


def _place_in_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """The place of each image, from 0, in a random order of the images of its class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    place = np.empty(len(labels), np.int64)
    place[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place
