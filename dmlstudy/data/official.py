"""Readers of the official layouts: Omniglot, CUB-200, Cars196, SOP, In-shop; of class folders."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dmlstudy.data.listing import Listing, check_files
from dmlstudy.errors import StudyError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
# Where each may lie under the data root; the first is the one that error messages ask for.
FOLDERS = {
    "omniglot": ("omniglot-py", "omniglot"),
    "cub200_2010": ("CUB_200_2010",),
    "cub200_2011": ("CUB_200_2011",),
    "cars196": ("cars196", "stanford_cars", "cars"),
    "sop": ("Stanford_Online_Products", "sop"),
    "inshop": ("In-shop", "inshop", "In-shop Clothes Retrieval Benchmark"),
}

MAKES_OF_TWO_WORDS = ("AM General", "Aston Martin", "Land Rover")  # of the 49 in Cars196


def omniglot(root: Path) -> Listing:
    """964 background characters train, 659 evaluation characters test, 20 drawings each."""
    folder = _need_folder(root, "omniglot")
    train = _omniglot_part(folder, "images_background")
    test = _omniglot_part(folder, "images_evaluation")
    files = train + test
    names = ["/".join(f.replace("::", "/").split("/")[-3:-1]) for f in files]
    roles = np.repeat(["train", "query"], [len(train), len(test)])
    return _listing(
        "omniglot",
        "Omniglot",
        files,
        names,
        roles,
        32_460,
        channels=1,
        invert=True,
        group=lambda name: name.partition("/")[0],
    )


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


def cub200_2010(root: Path) -> Listing:
    """Caltech-UCSD Birds 200, 2010 release: species 1-100 train, 101-200 test."""
    folder = _need_folder(root, "cub200_2010") / "images"
    # The official archive carries macOS' "._" companions of the images.
    files = sorted(str(f) for f in folder.glob("*/*.jpg") if not f.name.startswith("."))
    names = [Path(f).parent.name for f in files]
    roles = _bird_roles(names)
    return _listing("cub200_2010", "CUB-200-2010", files, names, roles, 6_033, group=_bird_family)


def cub200_2011(root: Path) -> Listing:
    """Caltech-UCSD Birds 200, 2011 release: species 1-100 train, 101-200 test, as in the papers."""
    folder = _need_folder(root, "cub200_2011")
    images = [line[1] for line in _table(folder / "images.txt", 2)]
    files = [str(folder / "images" / image) for image in images]
    check_files("cub200_2011", files, str(folder / "images.txt"))
    names = [Path(image).parts[0] for image in images]
    roles = _bird_roles(names)
    title = "CUB-200-2011"
    return _listing(
        "cub200_2011", title, files, names, roles, 11_788, literature=True, group=_bird_family
    )


def _bird_roles(names: Sequence[str]) -> np.ndarray:
    for name in names:
        if not name[:3].isdigit():
            raise StudyError(
                f"The folder {name} among the bird images has no species number (as in "
                "001.Black_footed_Albatross): extract the official archive again."
            )
    return np.array(["train" if int(name[:3]) <= 100 else "query" for name in names])


def _bird_family(species: str) -> str:
    """The last word of a species' name.

    >>> _bird_family("001.Black_footed_Albatross")
    'Albatross'
    """
    return species.rpartition(".")[2].rpartition("_")[2]


def cars196(root: Path) -> Listing:
    """Cars196: models 1-98 train, 99-196 test, as in the papers; both official layouts.

    The newer layout comes in two parts (`cars_train`, `cars_test`); one of them alone is read too,
    and the listing says that it is incomplete.
    """
    folder = _need_folder(root, "cars196")
    read = _cars_old if (folder / "cars_annos.mat").is_file() else _cars_new
    files, ids, names = read(folder)
    check_files("cars196", files, "the annotations")
    roles = np.where(ids < 98, "train", "query")
    parts = {Path(f).parent.name for f in files}
    alone = {"cars_train": "train part only", "cars_test": "test part only"}
    note = alone.get(parts.pop(), "incomplete") if len(parts) == 1 else "incomplete"
    labels = [f"{i + 1:03d} {names[i]}" for i in ids]
    return _listing(
        "cars196", "Cars196", files, labels, roles, 16_185, literature=True, note=note, group=_make
    )


def _make(model: str) -> str:
    """The make of a car, the first word of its model's name, or the first two.

    >>> _make("008 Aston Martin V8 Vantage Convertible 2012"), _make("012 Audi RS 4 Convertible 2008")
    ('Aston Martin', 'Audi')
    """
    words = model.split()[1:]
    return " ".join(words[: 2 if " ".join(words[:2]) in MAKES_OF_TWO_WORDS else 1])


def _cars_old(folder: Path) -> tuple[list[str], np.ndarray, list[str]]:
    annotations = _mat(folder / "cars_annos.mat")
    rows = np.atleast_1d(annotations["annotations"])
    files = [str(folder / row.relative_im_path) for row in rows]
    ids = np.array([int(getattr(row, "class")) - 1 for row in rows])
    return files, ids, list(map(str, np.atleast_1d(annotations["class_names"])))


def _cars_new(folder: Path) -> tuple[list[str], np.ndarray, list[str]]:
    files: list[str] = []
    ids: list[int] = []
    for part, annotation in (
        ("cars_train", "cars_train_annos.mat"),
        ("cars_test", "cars_test_annos_withlabels.mat"),
    ):
        candidates = [folder / "devkit" / annotation, folder / annotation]
        there = [path for path in candidates if path.is_file()]
        if (folder / part).is_dir() and there:
            for row in np.atleast_1d(_mat(there[0])["annotations"]):
                files.append(str(folder / part / row.fname))
                ids.append(int(getattr(row, "class")) - 1)
    if not files:
        raise StudyError(
            f"cars196: {folder} has neither cars_annos.mat with car_ims, nor cars_train or "
            "cars_test with their annotations in devkit: extract the official archives there."
        )
    names = np.atleast_1d(_mat(folder / "devkit" / "cars_meta.mat")["class_names"])
    return files, np.array(ids), list(map(str, names))


def sop(root: Path) -> Listing:
    """Stanford Online Products: 11,318 products train, 11,316 test, by the official lists."""
    folder = _need_folder(root, "sop")
    train = _table(folder / "Ebay_train.txt", 4, header=1)
    test = _table(folder / "Ebay_test.txt", 4, header=1)
    files = [str(folder / row[3]) for row in train + test]
    check_files("sop", files, "Ebay_train.txt and Ebay_test.txt")
    names = [f"product {row[1]:0>5}" for row in train + test]
    roles = np.repeat(["train", "query"], [len(train), len(test)])
    title = "Stanford Online Products"
    return _listing("sop", title, files, names, roles, 120_053, literature=True)


def inshop(root: Path) -> Listing:
    """In-shop Clothes Retrieval: official train / query / gallery partition, an item is a class."""
    folder = _need_folder(root, "inshop")
    rows = _table(folder / "Eval" / "list_eval_partition.txt", 3, header=2)
    # The list names img/…, which the official release keeps under Img/.
    base = folder / "Img" if (folder / "Img" / "img").is_dir() else folder
    files = [str(base / row[0]) for row in rows]
    check_files("inshop", files, "list_eval_partition.txt")
    items, roles = [row[1] for row in rows], np.array([row[2] for row in rows])
    title = "In-shop Clothes Retrieval"
    return _listing("inshop", title, files, items, roles, 52_712, literature=True)


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
    return Listing(
        f"folder:{path}",
        path.name,
        files,
        labels,
        roles,
        classes.tolist(),
        channels=3,
        completeness=completeness,
        own=True,
    )


def _images_under(folder: Path) -> list[str]:
    images = (f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(str(f) for f in images if not f.name.startswith("."))


def _need_folder(root: Path, name: str) -> Path:
    folders = FOLDERS[name]
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
    note: str = "incomplete",
    group: Callable[[str], str] | None = None,
) -> Listing:
    classes, labels = np.unique(class_names, return_inverse=True)
    complete = len(files) == official
    part = f"{len(files):,} of {official:,} images: {note}"
    return Listing(
        name,
        title,
        files,
        labels,
        roles,
        classes.tolist(),
        channels,
        completeness=f"all {official:,} images" if complete else part,
        groups=[group(name) for name in classes.tolist()] if group else (),
        complete=complete,
        literature=literature,
        invert=invert,
    )


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
