"""Readers of the official layouts: Omniglot, CUB-200, Cars196, SOP, In-shop."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dmlstudy.data.listing import check_files
from dmlstudy.errors import StudyError

# Files, class names, and roles: "train", "query" or "gallery".
Images = tuple[list[str], list[str], np.ndarray]
MAKES_OF_TWO_WORDS = ("AM General", "Aston Martin", "Land Rover")  # of the 49 in Cars196


def omniglot(folder: Path) -> Images:
    """964 background characters train, 659 evaluation characters test, 20 drawings each."""
    train = _omniglot_part(folder, "images_background")
    test = _omniglot_part(folder, "images_evaluation")
    files = train + test
    names = ["/".join(f.replace("::", "/").split("/")[-3:-1]) for f in files]
    roles = np.repeat(["train", "query"], [len(train), len(test)])
    return files, names, roles


def alphabet(character: str) -> str:
    """Of a class "Alphabet/characterNN"."""
    return character.partition("/")[0]


def _omniglot_part(folder: Path, part: str) -> list[str]:
    if (folder / part).is_dir():
        return sorted(str(f) for f in (folder / part).glob("*/*/*.png"))
    archive = folder / f"{part}.zip"
    if not archive.is_file():
        raise StudyError(
            f"omniglot: neither {folder / part} nor {archive} is there: put the official zip there."
        )
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.namelist()
    except zipfile.BadZipFile as error:
        raise StudyError(
            f"omniglot: {archive} is not a whole zip file: download it again."
        ) from error
    return sorted(
        f"{archive}::{m}" for m in members if m.startswith(f"{part}/") and m.endswith(".png")
    )


def cub200_2010(folder: Path) -> Images:
    """Caltech-UCSD Birds 200, 2010 release: species 1-100 train, 101-200 test."""
    # The official archive carries macOS' "._" companions of the images.
    files = sorted(str(f) for f in folder.glob("images/*/*.jpg") if not f.name.startswith("."))
    names = [Path(f).parent.name for f in files]
    return files, names, _bird_roles(names)


def cub200_2011(folder: Path) -> Images:
    """Caltech-UCSD Birds 200, 2011 release: species 1-100 train, 101-200 test, as in the papers."""
    images = [line[1] for line in _table(folder / "images.txt", 2)]
    files = [str(folder / "images" / image) for image in images]
    check_files("cub200_2011", files, str(folder / "images.txt"))
    names = [Path(image).parts[0] for image in images]
    return files, names, _bird_roles(names)


def _bird_roles(names: Sequence[str]) -> np.ndarray:
    for name in names:
        if not name[:3].isdigit():
            raise StudyError(
                f"The folder {name} among the bird images has no species number (as in "
                "001.Black_footed_Albatross): extract the official archive again."
            )
    return np.array(["train" if int(name[:3]) <= 100 else "query" for name in names])


def bird_family(species: str) -> str:
    """The last word of a species' name.

    >>> bird_family("001.Black_footed_Albatross")
    'Albatross'
    """
    return species.rpartition(".")[2].rpartition("_")[2]


def cars196(folder: Path) -> Images:
    """Cars196: models 1-98 train, 99-196 test, as in the papers; both official layouts.

    The newer layout comes in two parts (`cars_train`, `cars_test`); one of them alone is read too.
    """
    old = folder / "cars_annos.mat"
    parts = [(old, folder, "relative_im_path")] if old.is_file() else _cars_parts(folder)
    if not parts:
        raise StudyError(
            f"cars196: {folder} has neither cars_annos.mat with car_ims, nor cars_train or "
            "cars_test with their annotations in devkit: extract the official archives there."
        )
    meta = old if old.is_file() else folder / "devkit" / "cars_meta.mat"
    mats = {path: _mat(path) for path in {meta, *(part[0] for part in parts)}}
    names = np.atleast_1d(mats[meta]["class_names"])
    files: list[str] = []
    ids: list[int] = []
    for path, images, column in parts:
        for row in np.atleast_1d(mats[path]["annotations"]):
            files.append(str(images / getattr(row, column)))
            ids.append(int(getattr(row, "class")) - 1)
    check_files("cars196", files, "the annotations")
    models = [f"{i + 1:03d} {names[i]}" for i in ids]
    return files, models, np.where(np.array(ids) < 98, "train", "query")


def _cars_parts(folder: Path) -> list[tuple[Path, Path, str]]:
    """Annotations, folder of the images and column of their names, of each part that is there."""
    lists = {"cars_train": "cars_train_annos.mat", "cars_test": "cars_test_annos_withlabels.mat"}
    there = []
    for part, name in lists.items():
        paths = [path for path in (folder / "devkit" / name, folder / name) if path.is_file()]
        if (folder / part).is_dir() and paths:
            there.append((paths[0], folder / part, "fname"))
    return there


def make_of_car(model: str) -> str:
    """The make of a car, the first word of its model's name, or the first two.

    >>> make_of_car("008 Aston Martin V8 Vantage Coupe 2012"), make_of_car("012 Audi RS 4 Convertible 2008")
    ('Aston Martin', 'Audi')
    """
    words = model.split()[1:]
    return " ".join(words[: 2 if " ".join(words[:2]) in MAKES_OF_TWO_WORDS else 1])


def sop(folder: Path) -> Images:
    """Stanford Online Products: 11,318 products train, 11,316 test, by the official lists."""
    train = _table(folder / "Ebay_train.txt", 4, header=1)
    test = _table(folder / "Ebay_test.txt", 4, header=1)
    files = [str(folder / row[3]) for row in train + test]
    check_files("sop", files, "Ebay_train.txt and Ebay_test.txt")
    names = [f"product {row[1]:0>5}" for row in train + test]
    roles = np.repeat(["train", "query"], [len(train), len(test)])
    return files, names, roles


def inshop(folder: Path) -> Images:
    """In-shop Clothes Retrieval: official train / query / gallery partition, an item is a class."""
    rows = _table(folder / "Eval" / "list_eval_partition.txt", 3, header=2)
    # The list names img/…, which the official release keeps under Img/.
    base = folder / "Img" if (folder / "Img" / "img").is_dir() else folder
    files = [str(base / row[0]) for row in rows]
    check_files("inshop", files, "list_eval_partition.txt")
    return files, [row[1] for row in rows], np.array([row[2] for row in rows])


def _table(path: Path, columns: int, header: int = 0) -> list[list[str]]:
    if not path.is_file():
        raise StudyError(f"The list {path} is missing: extract the official archive again.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = line.split()
        if number <= header or not row:
            continue
        if len(row) != columns:
            raise StudyError(
                f"{path}, line {number}: {columns} columns expected, {len(row)} found: extract the "
                "official archive again."
            )
        rows.append(row)
    return rows


def _mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    if not path.is_file():
        raise StudyError(f"The annotations {path} are missing: extract the official devkit again.")
    try:
        return loadmat(path, squeeze_me=True, struct_as_record=False)
    except Exception as error:  # whatever broken bytes lead scipy into
        raise StudyError(
            f"Cannot read the annotations {path} ({error}): extract the official devkit again."
        ) from error
