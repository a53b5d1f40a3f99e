"""Data sets: official layouts read, decoded once, split class-disjointly, sampled P x K."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dmlstudy.data import embedded
from dmlstudy.data.augment import Augment
from dmlstudy.data.benchmark import Benchmark, ImageSet
from dmlstudy.data.class_folders import class_folders
from dmlstudy.data.inputs import Activations, Inputs, Pixels, cache_activations
from dmlstudy.data.listing import to_benchmark
from dmlstudy.data.releases import RELEASES, read_release
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
]

EMBEDDED = {
    "digits": (embedded.load_digits, "ships inside scikit-learn"),
    "glyphs": (embedded.load_glyphs, "drawn from matplotlib's fonts"),
}
DATASETS = (*EMBEDDED, *RELEASES)


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
        return EMBEDDED[name][0](size, cache)
    if name.startswith("folder:"):
        listing = class_folders(Path(name.removeprefix("folder:")).expanduser(), seed)
    elif name in RELEASES:
        listing = read_release(name, data_root(root))
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
    lines = [Inventory(name, "embedded", "", "-", origin) for name, (_, origin) in EMBEDDED.items()]
    for name, release in RELEASES.items():
        try:
            listing = read_release(name, data_root(root))
        except StudyError as error:
            there = any((data_root(root) / f).is_dir() for f in release.folders)
            state, detail = "broken" if there else "missing", str(error)
        else:
            state = "complete" if listing.complete else "partly there"
            detail = listing.completeness
        lines.append(Inventory(name, state, detail, f"{release.folders[0]}/", release.origin))
    return lines
