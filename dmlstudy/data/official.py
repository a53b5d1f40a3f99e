"""Readers of the official layouts: Omniglot, CUB-200, Cars196, SOP, In-shop, and class-per-folder images."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dmlstudy.data.listing import Listing, check_files
from dmlstudy.errors import StudyError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def omniglot(root: Path) -> Listing:
    """964 background characters train, 659 evaluation characters test, 20 drawings each; strokes are bright."""
    folder = need_folder(root, "omniglot", ("omniglot-py", "omniglot"))
    train = _omniglot_part(folder, "images_background")
    test = _omniglot_part(folder, "images_evaluation")
    files = train + test
    names = ["/".join(f.replace("::", "/").split("/")[-3:-1]) for f in files]
    roles = np.repeat(["train", "query"], [len(train), len(test)])
    return _listing("omniglot", "Omniglot", files, names, roles, 32_460, channels=1, invert=True)


def _omniglot_part(folder: Path, part: str) -> list[str]:
    if (folder / part).is_dir():
        return sorted(str(f) for f in (folder / part).glob("*/*/*.png"))
    archive = folder / f"{part}.zip"
    if not archive.is_file():
        raise StudyError(f"omniglot: neither {folder / part} nor {archive} is there: put the official zip there.")
    try:
        members = zipfile.ZipFile(archive).namelist()
    except zipfile.BadZipFile as error:
        raise StudyError(f"omniglot: {archive} is not a whole zip file: download it again.") from error
    return sorted(f"{archive}::{m}" for m in members if m.endswith(".png"))


def cub200_2010(root: Path) -> Listing:
    """Caltech-UCSD Birds 200, 2010 release: species 1-100 train, 101-200 test."""
    folder = need_folder(root, "cub200_2010", ("CUB_200_2010",)) / "images"
    files = sorted(str(f) for f in folder.glob("*/*.jpg"))
    names = [Path(f).parent.name for f in files]
    roles = np.array(["train" if int(name[:3]) <= 100 else "query" for name in names])
    return _listing("cub200_2010", "CUB-200-2010", files, names, roles, 6_033)


def cub200_2011(root: Path) -> Listing:
    """Caltech-UCSD Birds 200, 2011 release: species 1-100 train, 101-200 test, as in the papers."""
    folder = need_folder(root, "cub200_2011", ("CUB_200_2011",))
    images = [line[1] for line in _table(folder / "images.txt", 2)]
    files = [str(folder / "images" / image) for image in images]
    check_files("cub200_2011", files, str(folder / "images.txt"))
    names = [Path(image).parts[0] for image in images]
    roles = np.array(["train" if int(name[:3]) <= 100 else "query" for name in names])
    return _listing("cub200_2011", "CUB-200-2011", files, names, roles, 11_788, literature=True)


def cars196(root: Path) -> Listing:
    """Cars196: models 1-98 train, 99-196 test, as in the papers; both official layouts.

    The newer layout comes in two parts (`cars_train`, `cars_test`); one of them alone is read too, and the
    listing says that it is incomplete.
    """
    folder = need_folder(root, "cars196", ("cars196", "stanford_cars", "cars"))
    files, ids, names = _cars_old(folder) if (folder / "cars_annos.mat").is_file() else _cars_new(folder)
    check_files("cars196", files, "the annotations")
    roles = np.where(ids < 98, "train", "query")
    parts = {Path(f).parent.name for f in files}
    note = "train part only" if parts == {"cars_train"} else "test part only" if parts == {"cars_test"} else ""
    labels = [f"{i + 1:03d} {names[i]}" for i in ids]
    return _listing("cars196", "Cars196", files, labels, roles, 16_185, literature=True, note=note)


def _cars_old(folder: Path) -> tuple[list[str], np.ndarray, list[str]]:
    annotations = _mat(folder / "cars_annos.mat")
    rows = np.atleast_1d(annotations["annotations"])
    files = [str(folder / row.relative_im_path) for row in rows]
    return files, np.array([int(row["class"] if isinstance(row, dict) else getattr(row, "class")) - 1 for row in rows]), list(map(str, annotations["class_names"]))


def _cars_new(folder: Path) -> tuple[list[str], np.ndarray, list[str]]:
    names = list(map(str, _mat(folder / "devkit" / "cars_meta.mat")["class_names"]))
    files: list[str] = []
    ids: list[int] = []
    for part, annotation in (("cars_train", "cars_train_annos.mat"), ("cars_test", "cars_test_annos_withlabels.mat")):
        candidates = [folder / "devkit" / annotation, folder / annotation]
        found = [path for path in candidates if path.is_file()]
        if (folder / part).is_dir() and found:
            for row in np.atleast_1d(_mat(found[0])["annotations"]):
                files.append(str(folder / part / row.fname))
                ids.append(int(getattr(row, "class")) - 1)
    if not files:
        raise StudyError(
            f"cars196: {folder} has neither cars_annos.mat with car_ims, nor cars_train or cars_test with "
            "their annotations in devkit: extract the official archives there."
        )
    return files, np.array(ids), names


def sop(root: Path) -> Listing:
    """Stanford Online Products: 11,318 products train, 11,316 test, by the official lists."""
    folder = need_folder(root, "sop", ("Stanford_Online_Products", "sop"))
    train = _table(folder / "Ebay_train.txt", 4, header=1)
    test = _table(folder / "Ebay_test.txt", 4, header=1)
    files = [str(folder / row[3]) for row in train + test]
    check_files("sop", files, "Ebay_train.txt and Ebay_test.txt")
    names = [f"product {int(row[1]):05d}" for row in train + test]
    roles = np.repeat(["train", "query"], [len(train), len(test)])
    return _listing("sop", "Stanford Online Products", files, names, roles, 120_053, literature=True)


def inshop(root: Path) -> Listing:
    """In-shop Clothes Retrieval: official train / query / gallery partition, an item is a class."""
    folder = need_folder(root, "inshop", ("In-shop", "inshop", "In-shop Clothes Retrieval Benchmark"))
    rows = _table(folder / "Eval" / "list_eval_partition.txt", 3, header=2)
    # The list names img/…; the images are extracted under Img/ in the official release.
    base = folder / "Img" if (folder / "Img").is_dir() else folder
    files = [str(base / row[0]) for row in rows]
    check_files("inshop", files, "list_eval_partition.txt")
    roles = np.array([row[2] for row in rows])
    return _listing(
        "inshop", "In-shop Clothes Retrieval", files, [row[1] for row in rows], roles, 52_712, literature=True
    )


def class_folders(path: Path, seed: int) -> Listing:
    """One folder per class: half of the classes, drawn by seed, train; the others test.

    Classes with a single image are skipped, counted and named: they can be neither trained on nor found.

    Raises:
        StudyError: the folder is missing, or fewer than four classes have two images.
    """
    if not path.is_dir():
        raise StudyError(f"The folder {path} does not exist: give folder:PATH with one subfolder per class.")
    by_class = {
        folder.name: sorted(str(f) for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        for folder in sorted(path.iterdir())
        if folder.is_dir()
    }
    single = [name for name, files in by_class.items() if len(files) == 1]
    usable = {name: files for name, files in by_class.items() if len(files) >= 2}
    if len(usable) < 4:
        raise StudyError(
            f"{path} has {len(usable)} class folders with two images or more, but a class-disjoint split needs "
            "four: add classes, one subfolder each."
        )
    order = np.random.default_rng(seed).permutation(sorted(usable))
    train = set(order[: len(order) // 2])
    files = [f for files in usable.values() for f in files]
    names = [name for name, members in usable.items() for _ in members]
    roles = np.array(["train" if name in train else "query" for name in names])
    completeness = f"{len(files):,} images of {len(usable):,} classes"
    if single:
        completeness += f"; {len(single)} classes with one image skipped ({', '.join(single[:3])}{', …' * (len(single) > 3)})"
    classes, labels = np.unique(names, return_inverse=True)
    return Listing(f"folder:{path}", path.name, files, labels, roles, classes.tolist(), 3, completeness)


def need_folder(root: Path, name: str, folders: Sequence[str]) -> Path:
    """The first of these folders that exists under the data root."""
    if not root.is_dir():
        raise StudyError(
            f"The data root {root} does not exist: create it, or point DMLSTUDY_DATA at the folder that holds "
            f"{folders[0]}/ (`python -m dmlstudy data` says where to get {name})."
        )
    for folder in folders:
        if (root / folder).is_dir():
            return root / folder
    raise StudyError(
        f"{name} is not under {root}: expected the folder {folders[0]}/ there (`python -m dmlstudy data` says "
        "where to get it)."
    )


def _listing(
    name: str,
    title: str,
    files: list[str],
    class_names: list[str],
    roles: np.ndarray,
    official: int,
    *,
    channels: int = 3,
    literature: bool = False,
    invert: bool = False,
    note: str = "",
) -> Listing:
    classes, labels = np.unique(class_names, return_inverse=True)
    complete = len(files) == official
    completeness = f"{'all ' if complete else ''}{len(files):,} of {official:,} images"
    if note or not complete:
        completeness += f": {note or 'incomplete'}"
    if complete:
        completeness = f"all {official:,} images"
    return Listing(
        name, title, files, labels, roles, classes.tolist(), channels, completeness, complete, literature, invert
    )


def _table(path: Path, columns: int, header: int = 0) -> list[list[str]]:
    if not path.is_file():
        raise StudyError(f"The list {path} is missing: extract the official archive again.")
    rows = [line.split() for line in path.read_text().splitlines()[header:] if line.strip()]
    for number, row in enumerate(rows, header + 1):
        if len(row) != columns:
            raise StudyError(f"{path}, line {number}: {columns} columns expected, {len(row)} found.")
    return rows


def _mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    if not path.is_file():
        raise StudyError(f"The annotations {path} are missing: extract the official devkit again.")
    return loadmat(path, squeeze_me=True, struct_as_record=False)
