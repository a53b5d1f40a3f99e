"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmlstudy.errors import StudyError


@contextmanager
def whole_file(path: Path, remedy: str) -> Iterator[Path]:
    """A file to write to, renamed to `path` once it is whole; if that fails, an older `path` is untouched.

    Raises:
        StudyError: the disk refuses it; the sentence ends in `remedy`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save raises the latter
        reason = getattr(error, "strerror", None) or error
        raise StudyError(
            f"Cannot write {path} ({reason}), an older one is untouched: {remedy}."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
