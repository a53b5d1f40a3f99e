"""The official data sets: what is known of each before it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmlstudy.data import official
from dmlstudy.data.listing import Listing
from dmlstudy.errors import StudyError


@dataclass(frozen=True)
class Release:
    """An official data set.

    Attributes:
        read: gives files, class names and roles of the images in its folder.
        images: how many the release has.
        folders: where it may lie under the data root; error messages ask for the first.
        origin: where it comes from.
        literature: whether it has a table in the literature.
        drawings: grey ink on white paper.
        group: the group of a class, by the class' name.
    """

    title: str
    read: Callable[[Path], official.Images]
    images: int
    folders: tuple[str, ...]
    origin: str
    literature: bool = True
    drawings: bool = False
    group: Callable[[str], str] | None = None


RELEASES = {
    "omniglot": Release(
        "Omniglot",
        official.omniglot,
        32_460,
        ("omniglot-py", "omniglot"),
        "github.com/brendenlake/omniglot, python/images_*.zip",
        literature=False,
        drawings=True,
        group=official.alphabet,
    ),
    "cub200_2010": Release(
        "CUB-200-2010",
        official.cub200_2010,
        6_033,
        ("CUB_200_2010",),
        "Caltech Vision Lab: Caltech-UCSD Birds 200 (2010), its folder images",
        literature=False,
        group=official.bird_family,
    ),
    "cub200_2011": Release(
        "CUB-200-2011",
        official.cub200_2011,
        11_788,
        ("CUB_200_2011",),
        "Caltech Vision Lab: CUB-200-2011",
        group=official.bird_family,
    ),
    "cars196": Release(
        "Cars196",
        official.cars196,
        16_185,
        ("cars196", "stanford_cars", "cars"),
        "Stanford AI Lab: Cars dataset (cars_train, cars_test, devkit)",
        group=official.make_of_car,
    ),
    "sop": Release(
        "Stanford Online Products",
        official.sop,
        120_053,
        ("Stanford_Online_Products", "sop"),
        "Stanford CVGL: Stanford_Online_Products.zip",
    ),
    "inshop": Release(
        "In-shop Clothes Retrieval",
        official.inshop,
        52_712,
        ("In-shop", "inshop", "In-shop Clothes Retrieval Benchmark"),
        "CUHK MMLab: DeepFashion, In-shop Clothes Retrieval Benchmark",
    ),
}


def read_release(name: str, root: Path) -> Listing:
    """The listing of an official data set under the data root.

    Raises:
        StudyError: it is missing, damaged, or lacks one side of the split.
    """
    release = RELEASES[name]
    files, class_names, roles = release.read(_folder(name, root))
    classes, labels = np.unique(class_names, return_inverse=True)
    complete = len(files) == release.images
    return Listing(
        name,
        release.title,
        files,
        labels,
        roles,
        classes.tolist(),
        channels=1 if release.drawings else 3,
        completeness=f"all {release.images:,} images" if complete else _part(files, release.images),
        groups=[release.group(c) for c in classes.tolist()] if release.group else (),
        complete=complete,
        literature=release.literature,
        invert=release.drawings,
    )


def _part(files: list[str], images: int) -> str:
    parts = {Path(file).parent.name for file in files}
    alone = {"cars_train": "train part only", "cars_test": "test part only"}
    note = alone.get(min(parts), "incomplete") if len(parts) == 1 else "incomplete"
    return f"{len(files):,} of {images:,} images: {note}"


def _folder(name: str, root: Path) -> Path:
    folders = RELEASES[name].folders
    if not root.is_dir():
        raise StudyError(
            f"The data root {root} does not exist: create it, or point DMLSTUDY_DATA at the folder "
            f"that holds {folders[0]}/ (`python -m dmlstudy data` says where to get {name})."
        )
    for folder in folders:
        if (root / folder).is_dir():
            return root / folder
    raise StudyError(
        f"{name} is not under {root}: expected the folder {folders[0]}/ there (`python -m dmlstudy "
        "data` says where to get it)."
    )
