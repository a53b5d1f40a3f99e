"""What a report costs before anything is trained: against an empty notebook that imports torch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pandas as pd

from benchmarks.measure import medians
from dmlstudy.study.notebooks import source_notebook

GOAL = 1.5


def table() -> pd.DataFrame:
    """Seconds from start to end of papermill: `import torch` alone, and a report up to its verdict."""
    with tempfile.TemporaryDirectory() as folder:
        empty, report = Path(folder) / "empty.ipynb", Path(folder) / "report.ipynb"
        source = nbformat.read(source_notebook("multi_similarity"), as_version=4)
        cells = [cell for cell in source.cells if cell.id in ("parameters", "verdict")]
        nbformat.write(_notebook([nbformat.v4.new_code_cell("import torch")]), empty)
        nbformat.write(_notebook(cells), report)
        notebooks = {"empty": empty, "report": report}
        seconds = medians({n: lambda p=p: _execute(p) for n, p in notebooks.items()}, rounds=5)  # type: ignore[misc]
    row = {f"{name}, s": value for name, value in seconds.items()}
    return pd.DataFrame([row | {"ratio": seconds["report"] / seconds["empty"], "goal": GOAL}])


def _notebook(cells: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _execute(notebook: Path) -> None:
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(notebook), "-"]
    subprocess.run(command, check=True, capture_output=True)
