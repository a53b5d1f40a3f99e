"""Arrays computed once, then memory-mapped: decoded images, cached activations."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dmlstudy.errors import StudyError
from dmlstudy.project import cache_root
from dmlstudy.whole_file import whole_file

# What the user can mend: no space, no permission, or a file where the cache folder should be.
WRITE_ERRORS = "ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "ENOTDIR", "EEXIST"


def content_key(*parts: Any) -> str:
    """Short SHA-256 over JSON of the parts: the same inputs, the same name."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def cached_array(
    name: str,
    key: str,
    shape: Sequence[int],
    dtype: str,
    fill: Callable[[np.ndarray], None],
    cache: Path | str | None = None,
) -> np.memmap:
    """The read-only memory-mapped array `<cache>/<name>-<key>.npy`, filled on first use.

    It is written under another name and renamed when it is whole, so a killed or failed fill leaves
    nothing that looks complete; a lock keeps two processes from filling it twice.

    Raises:
        StudyError: the disk is full, or the cache folder cannot be written.
    """
    from filelock import FileLock

    path = cache_root(cache) / f"{name}-{key}.npy"
    if not path.exists():
        need = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():  # another process may have filled it while we waited
                    _fill(path, shape, dtype, fill)
        except OSError as error:
            if errno.errorcode.get(error.errno or 0) not in WRITE_ERRORS:
                raise
            raise StudyError(
                f"Cannot write {need / 1e6:.1f} MB to {path.parent} ({error.strerror}): free some "
                "space or set DMLSTUDY_CACHE to another folder."
            ) from error
    return np.load(path, mmap_mode="r")


def digest(array: np.memmap) -> str:
    """Short SHA-256 of a cached array's bytes, computed once and kept beside it."""
    path = Path(str(array.filename)).with_suffix(".sha256")
    if path.is_file():
        return path.read_text(encoding="utf-8")
    computed = hashlib.sha256(array.data).hexdigest()[:16]
    # A cache that cannot be written is hashed anew each time.
    with suppress(StudyError), whole_file(path, "make room") as partial:
        partial.write_text(computed, encoding="utf-8")
    return computed


def _fill(path: Path, shape: Sequence[int], dtype: str, fill: Callable[[np.ndarray], None]) -> None:
    """Not a `whole_file`: errors of `fill`, such as a broken image, are not the disk's."""
    partial = path.with_suffix(".partial")  # one name, so what a killed process left is overwritten
    try:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=tuple(shape))
        # Writing to a hole of a full disk would kill the process, so the space is claimed first.
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with partial.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
        fill(array)
        array.flush()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def progress(what: str, total: int, every: float = 5.0) -> Iterator[int]:
    """Count 0..total-1, with a line on standard error every few seconds of a long job."""
    start = last = time.monotonic()
    for i in range(total):
        yield i
        if time.monotonic() - last > every:
            last = time.monotonic()
            print(f"{what}: {i + 1} of {total}, {last - start:.0f} s", file=sys.stderr, flush=True)
