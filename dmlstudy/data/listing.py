"""From a reader's listing of files to a benchmark: decoded once, split into roles."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from dmlstudy.data.benchmark import Benchmark, ImageSet
from dmlstudy.data.store import cached_array, content_key, digest, progress
from dmlstudy.errors import StudyError

VERSION = 1  # of the decoding; raise it when stored pixels would change
# What Pillow and zipfile raise on broken files, by the place where the bytes stop making sense.
DECODING_ERRORS = OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, BadZipFile


@dataclass(frozen=True)
class Listing:
    """A data set as its reader found it, nothing decoded yet.

    Attributes:
        files: what to read: image paths, or "archive.zip::member".
        labels: int [M], ids into `classes`.
        roles: str [M], "train", "query" or "gallery".
        channels: 1 grey, 3 colour.
        groups: group names of the classes, none where there are no groups.
        invert: grey ink on white paper is stored bright on dark.
        completeness: counts against the official release.
        complete: whether these counts agree.
        literature: whether the data set has a table in the literature.
        own: the user's images: edited in place and turned by cameras, unlike a release's.

    Raises:
        StudyError: no training or no test images, or a role that does not exist.
    """

    name: str
    title: str
    files: Sequence[str]
    labels: np.ndarray
    roles: np.ndarray
    classes: Sequence[str]
    channels: int
    completeness: str
    groups: Sequence[str] = ()
    complete: bool = True
    literature: bool = False
    invert: bool = False
    own: bool = False

    def __post_init__(self) -> None:
        strange = set(self.roles.tolist()) - {"train", "query", "gallery"}
        if strange:
            raise StudyError(
                f"{self.name} gives images the unknown role '{min(strange)}' (known: train, query, "
                "gallery): extract the official archive again."
            )
        for role, kind in (("train", "training"), ("query", "test")):
            if not np.any(self.roles == role):
                raise StudyError(
                    f"{self.name} has no {kind} images ({self.completeness}): extract the official "
                    "archive again."
                )


def to_benchmark(listing: Listing, size: int, cache: Path | str | None = None) -> Benchmark:
    """Decode a listing's images at this size (once) and divide them into roles.

    Raises:
        StudyError: an image cannot be read; its file is named and nothing is kept.
    """
    # Files are known by class folder, name and size: a repaired download changes the size, copying
    # the data elsewhere does not change the key. Own images are also known by modification time.
    sizes = [0 if "::" in f else Path(f).stat().st_size for f in listing.files]
    identity: list[Any] = [
        (f.split("/")[-2:], n) for f, n in zip(listing.files, sizes, strict=True)
    ]
    if listing.own:
        identity.append([Path(f).stat().st_mtime_ns for f in listing.files])
    key = content_key(VERSION, listing.name, size, listing.channels, listing.invert, identity)
    shape = (len(listing.files), size, size, listing.channels)

    def fill(array: np.ndarray) -> None:
        reader = _Reader(listing, size)
        chunks = [range(i, min(i + 256, len(array))) for i in range(0, len(array), 256)]
        with ThreadPoolExecutor() as pool:
            for i in progress(f"decoding {listing.name}, 256 images each, block", len(chunks)):
                array[chunks[i].start : chunks[i].stop] = list(pool.map(reader, chunks[i]))

    name = f"images-{listing.name.partition(':')[0]}"
    store = cached_array(name, key, shape, "uint8", fill, cache)
    return split(listing, store, key, shareable=False)


def split(listing: Listing, store: np.memmap, key: str, *, shareable: bool) -> Benchmark:
    """The benchmark of a listing whose images are in `store`; labels count from 0 on each side."""
    training = listing.roles == "train"

    def role(name: str, side: np.ndarray) -> ImageSet:
        classes = np.unique(listing.labels[side])  # query and gallery share theirs
        rows = np.flatnonzero(listing.roles == name)
        labels = np.searchsorted(classes, listing.labels[rows])
        names = tuple(listing.classes[c] for c in classes)
        groups = tuple(listing.groups[c] for c in classes if listing.groups)
        return ImageSet(store, rows, labels, names, key, groups)

    return Benchmark(
        name=listing.name,
        title=listing.title,
        train=role("train", training),
        query=role("query", ~training),
        gallery=role("gallery", ~training) if np.any(listing.roles == "gallery") else None,
        completeness=listing.completeness,
        comparable=listing.complete and listing.literature,
        shareable=shareable,
        checksum=content_key(digest(store), listing.labels.tolist(), listing.roles.tolist()),
    )


class _Reader:
    """Decodes image i of a listing to uint8 [size, size, C]; zip archives stay open meanwhile."""

    def __init__(self, listing: Listing, size: int):
        self.listing, self.size = listing, size
        archives = {f.partition("::")[0] for f in listing.files if "::" in f}
        self.archives = {archive: ZipFile(archive) for archive in archives}

    def __call__(self, i: int) -> np.ndarray:
        from PIL import Image, ImageOps

        listing, file = self.listing, self.listing.files[i]
        archive, inside, member = file.partition("::")
        try:
            source = io.BytesIO(self.archives[archive].read(member)) if inside else file
            with Image.open(source) as opened:
                if opened.mode[0] in "IF":  # Pillow would clip these to white
                    raise StudyError(
                        f"The image {file} of {listing.name} has more than 8 bits per pixel: "
                        "convert it to 8 bits."
                    )
                # Published results ignore the orientation tag, so official images are left as is.
                upright = ImageOps.exif_transpose(opened) if listing.own else opened
                image = square(upright.convert("L" if listing.channels == 1 else "RGB"), self.size)
        except DECODING_ERRORS as error:
            raise StudyError(
                f"Cannot read the image {file} of {listing.name} ({error}): extract or "
                "download it again."
            ) from error
        if listing.invert:
            image = ImageOps.invert(image)
        return np.asarray(image).reshape(self.size, self.size, listing.channels)


def square(image: Any, size: int) -> Any:
    """A PIL image, shorter side resized to `size`, then cropped at the centre; as is if it fits."""
    from PIL import Image, ImageOps

    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def check_files(name: str, files: Sequence[str], source: str) -> None:
    """Refuse a data set whose annotations name files that are not there.

    Raises:
        StudyError: how many are missing, and the first.
    """
    # One listing per folder instead of one system call per file: SOP has 120,053.
    paths = [Path(file) for file in files]
    names = {folder: {p.name for p in folder.glob("*")} for folder in {p.parent for p in paths}}
    missing = [path for path in paths if path.name not in names[path.parent]]
    if missing:
        raise StudyError(
            f"{len(missing):,} of {len(files):,} images of {name} named in {source} are missing "
            f"(first: {missing[0]}): extract the archive again."
        )
