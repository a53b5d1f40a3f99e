"""Where things lie: the project, its data sets, its cache."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def data_root(root: Path | str | None = None) -> Path:
    """Where data sets lie: the argument, $DMLSTUDY_DATA, or data/ in the project."""
    chosen = root or os.environ.get("DMLSTUDY_DATA")
    return Path(chosen).absolute() if chosen else PROJECT / "data"


def cache_root(cache: Path | str | None = None) -> Path:
    """Where derived arrays and checkpoints lie: the argument, $DMLSTUDY_CACHE, or .cache/."""
    chosen = cache or os.environ.get("DMLSTUDY_CACHE")
    return Path(chosen).absolute() if chosen else PROJECT / ".cache"
