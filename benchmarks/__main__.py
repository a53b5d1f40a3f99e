"""`make bench`: measure section by section, keep each section's table, and write the page over all of them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from benchmarks import evaluation, images, losses, report_cost
from benchmarks.page import write_page
from dmlstudy.study.notebooks import KEEP_MEMORY

RESULTS = Path(__file__).parent / "results"
SECTIONS: dict[str, Callable[[], pd.DataFrame]] = {
    "losses": losses.table,
    "small_batches": losses.small_batches,
    "losses_growth": losses.growth,
    "evaluation": evaluation.table,
    "million": evaluation.million,
    "evaluation_growth": evaluation.growth,
    "images": images.table,
    "report_cost": report_cost.table,
}


def main() -> None:
    """Run the sections named on the command line, or all of them."""
    unknown = set(sys.argv[1:]) - set(SECTIONS)
    if unknown:
        raise SystemExit(f"No section {', '.join(unknown)}: choose from {', '.join(SECTIONS)}.")
    pd.set_option("display.width", 200, "display.max_columns", 30, "display.precision", 3)
    RESULTS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or SECTIONS:
        print(f"{name}: measuring", flush=True)
        found = SECTIONS[name]()
        found["machine"] = _machine()
        found.to_csv(RESULTS / f"{name}.csv", index=False)
        print(found.drop(columns="machine").to_string(index=False), flush=True)
    write_page(RESULTS, Path(__file__).parent)


def _machine() -> str:
    """The machine and the versions that a row was measured with."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1] for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0].strip() if names else model
    capability = torch.backends.cpu.get_cpu_capability()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{model} ({capability}), {os.cpu_count()} cores, {platform.system()}, {versions}"


if __name__ == "__main__":
    # Read once, when a process starts. Threads that wait must not spin, or a busy machine is timed instead of the work.
    environment = KEEP_MEMORY | {"OMP_WAIT_POLICY": "passive"}
    if not environment.keys() <= os.environ.keys():
        again = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | environment)
    main()
