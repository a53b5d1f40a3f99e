"""Data sets: official layouts read, decoded once, split class-disjointly, sampled P x K."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dmlstudy.data import embedded, official
from dmlstudy.data.augment import Augment
from dmlstudy.data.benchmark import Benchmark, ImageSet
from dmlstudy.data.inputs import Activations, Inputs, Pixels, cache_activations
from dmlstudy.data.listing import Listing, to_benchmark
from dmlstudy.data.sampling import pk_batches
from dmlstudy.data.store import content_key
from dmlstudy.data.tracks import Track
from dmlstudy.errors import StudyError, unknown
from dmlstudy.project import cache_root, data_root

__all__ = [
    "DATASETS",
    "Activations",
    "Augment",
    "Benchmark",
    "ImageSet",
    "Inputs",
    "Pixels",
    "Track",
    "cache_activations",
    "cache_root",
    "content_key",
    "data_root",
    "inventory",
    "load",
    "pk_batches",
]

EMBEDDED = {"digits": embedded.load_digits, "glyphs": embedded.load_glyphs}
OFFICIAL: dict[str, Callable[[Path], Listing]] = {
    "omniglot": official.omniglot,
    "cub200_2010": official.cub200_2010,
    "cub200_2011": official.cub200_2011,
    "cars196": official.cars196,
    "sop": official.sop,
    "inshop": official.inshop,
}
DATASETS = (*EMBEDDED, *OFFICIAL)

# Where each belongs under the data root, and where it comes from.
ORIGINS = {
    "digits": ("-", "ships inside scikit-learn"),
    "glyphs": ("-", "drawn from matplotlib's fonts"),
    "omniglot": ("omniglot-py/", "github.com/brendenlake/omniglot, python/images_*.zip"),
    "cub200_2010": ("CUB_200_2010/images/", "Caltech Vision Lab: Caltech-UCSD Birds 200 (2010)"),
    "cub200_2011": ("CUB_200_2011/", "Caltech Vision Lab: CUB-200-2011"),
    "cars196": ("cars196/", "Stanford AI Lab: Cars dataset (cars_train, cars_test, devkit)"),
    "sop": ("Stanford_Online_Products/", "Stanford CVGL: Stanford_Online_Products.zip"),
    "inshop": ("In-shop/", "CUHK MMLab: DeepFashion, In-shop Clothes Retrieval Benchmark"),
}


def load(
    name: str,
    size: int,
    *,
    root: Path | str | None = None,
    cache: Path | str | None = None,
    seed: int = 0,
) -> Benchmark:
    """A data set, its images stored as squares of `size` px (shorter side resized, centre crop).

    Args:
        name: one of `DATASETS`, or "folder:PATH" for images of your own, one subfolder per class.
        root: data root; $DMLSTUDY_DATA or data/ when left out.
        cache: where decoded images are kept; $DMLSTUDY_CACHE or .cache/ when left out.
        seed: class split of "folder:PATH"; all other sets have their official split.

    Raises:
        StudyError: unknown name, data missing, incomplete or unreadable.
    """
    if name in EMBEDDED:
        return EMBEDDED[name](size, cache)
    if name.startswith("folder:"):
        listing = official.class_folders(Path(name.removeprefix("folder:")).expanduser(), seed)
    elif name in OFFICIAL:
        listing = OFFICIAL[name](data_root(root))
    else:
        raise unknown("data set", name, [*DATASETS, "folder:PATH"])
    return to_benchmark(listing, size, cache)


@dataclass(frozen=True)
class Inventory:
    """One line of `python -m dmlstudy data`."""

    name: str
    state: str  # "embedded", "complete", "partly there", "missing", "broken"
    detail: str
    folder: str
    source: str


def inventory(root: Path | str | None = None) -> list[Inventory]:
    """What is there of every data set, without decoding anything."""
    lines = []
    for name in DATASETS:
        folder, source = ORIGINS[name]
        if name in EMBEDDED:
            lines.append(Inventory(name, "embedded", "", folder, source))
            continue
        try:
            listing = OFFICIAL[name](data_root(root))
        except StudyError as error:
            there = any((data_root(root) / f).is_dir() for f in official.FOLDERS[name])
            state, detail = "broken" if there else "missing", str(error)
        else:
            state = "complete" if listing.complete else "partly there"
            detail = listing.completeness
        lines.append(Inventory(name, state, detail, folder, source))
    return lines
