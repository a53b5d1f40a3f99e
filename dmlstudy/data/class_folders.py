"""Images of one's own: a folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dmlstudy.data.listing import Listing
from dmlstudy.errors import StudyError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def class_folders(path: Path, seed: int) -> Listing:
    """One folder per class: half of the classes, drawn by seed, train; the others test.

    Classes with a single image are skipped, counted and named: they can be neither trained on nor
    found. Hidden files and folders are passed over.

    Raises:
        StudyError: the folder is missing, or fewer than four classes have two images.
    """
    if not path.is_dir():
        raise StudyError(
            f"The folder {path} does not exist: give folder:PATH with one subfolder per class."
        )
    by_class = {
        folder.name: _images_under(folder)
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    single = [name for name, files in by_class.items() if len(files) == 1]
    usable = {name: files for name, files in by_class.items() if len(files) >= 2}
    if len(usable) < 4:
        raise StudyError(
            f"{path} has {len(usable)} class folders with two images or more, but a class-disjoint "
            "split needs four: add classes, one subfolder each."
        )
    order = np.random.default_rng(seed).permutation(sorted(usable))
    train = set(order[: len(order) // 2])
    files = [f for files in usable.values() for f in files]
    names = [name for name, members in usable.items() for _ in members]
    roles = np.array(["train" if name in train else "query" for name in names])
    completeness = f"{len(files):,} images of {len(usable):,} classes"
    if single:
        some = ", ".join(single[:3]) + ", …" * (len(single) > 3)
        completeness += f"; {len(single)} classes with one image skipped ({some})"
    classes, labels = np.unique(names, return_inverse=True)
    name, title = f"folder:{path}", path.name
    return Listing(name, title, files, labels, roles, classes.tolist(), 3, completeness, own=True)


def _images_under(folder: Path) -> list[str]:
    images = (f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(str(f) for f in images if not f.name.startswith("."))
