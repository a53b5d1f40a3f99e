"""What a data set is once it is read: images, labels, and the train / query / gallery roles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dmlstudy.errors import StudyError


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in one role: rows of an image store, not copies.

    Attributes:
        store: uint8 [M, H, W, C], C = 1 or 3, usually memory-mapped and shared by all roles.
        rows: int64 [N], the store's rows that belong to this role.
        labels: int64 [N], 0..len(classes)-1, every class present.
        classes: class names; `classes[labels[i]]` names image i.
        key: content address of the store (files, size, version); derived caches use it.
        groups: group name of each class (alphabet, bird family, script, make); () where the data set has none.
    """

    store: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    key: str
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, classes: Sequence[int]) -> ImageSet:
        """The images of these classes only, relabelled 0.. in the order given."""
        new_label = np.full(len(self.classes), -1)
        new_label[list(classes)] = np.arange(len(classes))
        kept = np.flatnonzero(new_label[self.labels] >= 0)
        return replace(
            self,
            rows=self.rows[kept],
            labels=new_label[self.labels[kept]],
            classes=tuple(self.classes[c] for c in classes),
            groups=tuple(self.groups[c] for c in classes if self.groups),
        )


@dataclass(frozen=True)
class Benchmark:
    """A zero-shot retrieval task: train classes and test classes are disjoint.

    Attributes:
        train: images of the training classes.
        query: images of the test classes.
        gallery: what queries search; None when the query images search each other.
        completeness: how much of the official release was found, for people.
        comparable: whether results may stand beside published ones.
        shareable: whether its images may appear in a committed report (embedded sets only).
        checksum: of the images and labels, for provenance.
    """

    name: str
    title: str
    train: ImageSet
    query: ImageSet
    gallery: ImageSet | None
    completeness: str
    comparable: bool
    shareable: bool
    checksum: str

    def fold(self, fold: int, folds: int, seed: int = 0) -> Benchmark:
        """Validation task number `fold` of `folds`: holds its classes out of the training classes.

        No test image is in it, so whatever is chosen on it is not chosen on the test set.
        The division of classes depends on `seed` and `folds` alone.

        Raises:
            StudyError: `folds` is below two, `fold` is not in 0..folds-1, or a fold would have
                fewer than two classes.
        """
        n = len(self.train.classes)
        if folds < 2:
            raise StudyError(
                f"folds must be 2 or more, not {folds}: one fold would train on nothing."
            )
        if not 0 <= fold < folds:
            raise StudyError(f"fold must lie in 0..{folds - 1} (folds is {folds}), not {fold}.")
        if n // folds < 2:
            raise StudyError(
                f"{self.name} has {n} training classes, but {folds} folds need {2 * folds}: lower "
                "folds (2 at least) or take a data set with more classes."
            )
        order = np.random.default_rng([seed, folds]).permutation(n)
        held = np.sort(order[fold::folds])
        rest = np.sort(np.setdiff1d(order, held))
        return replace(
            self,
            title=f"{self.title}, validation fold {fold + 1} of {folds}",
            train=self.train.subset(list(rest)),
            query=self.train.subset(list(held)),
            gallery=None,
            comparable=False,
        )
