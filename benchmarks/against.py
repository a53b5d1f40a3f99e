"""Losses of this checkout against another's, in one process and in turns: `python -m benchmarks.against PATH`.

Ratios of processor time, this one's over the other's, one thread, medians over pairs of turns; below 1 is faster here.
"""

from __future__ import annotations

import statistics
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas as pd
import torch

from benchmarks import losses

BATCHES = (64, 80, 128, 256, 512, 1024)
SECONDS = 1.0  # for each loss and batch size


def other_losses(checkout: Path) -> ModuleType:
    """`benchmarks.losses` of another checkout, with its own library; this one's modules stay in their places."""
    ours = {name: sys.modules.pop(name) for name in _ours()}
    sys.path.insert(0, str(checkout))
    try:
        other = import_module("benchmarks.losses")
    finally:
        sys.path.remove(str(checkout))
        for name in _ours():
            del sys.modules[name]
        sys.modules.update(ours)
    if not Path(str(other.__file__)).is_relative_to(checkout):
        raise SystemExit(
            f"{checkout} holds no benchmarks/losses.py: name a checkout of this project."
        )
    return other


def _ours() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in ("dmlstudy", "benchmarks")]


def ratio(name: str, other: ModuleType, batch: int, dim: int) -> float:
    """Median over pairs of turns."""
    here, there = (
        module._contenders(name, batch, dim, losses.FEW_CLASSES, ("ours",))["ours"]
        for module in (losses, other)
    )
    here(), there()
    ratios: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(ratios) < 5:
        marks = [time.process_time()]
        for step in (here, there):
            step()
            marks.append(time.process_time())
        ratios.append((marks[1] - marks[0]) / (marks[2] - marks[1]))
    return statistics.median(ratios)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("python -m benchmarks.against PATH: name the other checkout.")
    torch.set_num_threads(1)
    other = other_losses(Path(sys.argv[1]).resolve())
    names = [
        name for name in (*losses.CASES, losses.PROXIES) if name in (*other.CASES, other.PROXIES)
    ]
    table = pd.DataFrame({b: {n: ratio(n, other, b, 512) for n in names} for b in BATCHES})
    print(table.rename_axis("loss").rename_axis("B", axis=1).round(2).to_string())


if __name__ == "__main__":
    main()
