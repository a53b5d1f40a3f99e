"""The grid of runs, by Snakemake, with progress for people; then summary, HTML and the ranking."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dmlstudy.errors import StudyError
from dmlstudy.project import PROJECT


def run_grid(datasets: Sequence[str], methods: Sequence[str], reports: str, jobs: int) -> None:
    """Run what is missing or older than its inputs; a failed run does not stop the others.

    Raises:
        StudyError: some runs failed; the others, and the summary over them, are there.
    """
    from dmlstudy.study.params import short_name
    from dmlstudy.study.ranking import ranking
    from dmlstudy.study.results import load_all

    folder = PROJECT / reports
    names = [short_name(dataset) for dataset in datasets]
    wanted = [folder / name / f"{method}.json" for name in names for method in methods]
    print(
        f"{len(wanted)} runs: {len(methods)} methods x {len(datasets)} data sets, {jobs} side by side"
    )
    code = _snakemake(datasets, methods, reports, jobs, wanted)
    missing = [path for path in wanted if not path.exists()]
    _summarise(folder, reports)
    records = load_all(folder)
    for name in names:
        print("\n" + ranking(records, name).text())
    print(f"\nReports: {os.path.relpath(folder / 'summary.html', PROJECT)} (open it in a browser)")
    if missing or code:
        failed = ", ".join(f"{path.stem} on {path.parent.name}" for path in missing) or "see above"
        raise StudyError(
            f"{len(missing)} of {len(wanted)} runs failed ({failed}): their notebooks show where."
        )


def inputs(method: str, dataset: str) -> list[str]:
    """Files that decide a run's record, relative to the project: the grid runs again what is older than one of them."""
    from dmlstudy.study.fingerprint import training_code
    from dmlstudy.study.notebooks import source_notebook
    from dmlstudy.study.parameter_files import parameter_files

    files = [source_notebook(method), *parameter_files(method, dataset), *training_code(method)]
    return [str(path.relative_to(PROJECT)) for path in files]


def _snakemake(
    datasets: Sequence[str], methods: Sequence[str], reports: str, jobs: int, wanted: list[Path]
) -> int:
    command = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile", "--cores", str(jobs)]
    command += ["--keep-going", "--rerun-incomplete", "--nolock", "--quiet", "all"]
    command += ["--rerun-triggers", "mtime", "--config"]
    # As JSON, which is YAML too: a name may hold a comma, or look like a number.
    chosen = {"datasets": [*datasets], "methods": [*methods], "reports": reports}
    command += [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
    started, shown = time.time(), set[Path]()
    with subprocess.Popen(command, cwd=PROJECT) as process:
        while process.poll() is None:
            time.sleep(0.5)
            fresh = {p for p in wanted if p.exists() and p.stat().st_mtime >= started}
            if fresh - shown:
                shown = fresh
                done = sum(path.exists() for path in wanted)
                print(f"[{done}/{len(wanted)} done, {time.time() - started:.0f} s]", flush=True)
    return process.returncode


def _summarise(folder: Path, reports: str) -> None:
    """Summary and HTML, if a record is newer than they are."""
    records = list(folder.glob("[!.]*/*.json"))
    page = folder / "summary.html"
    if page.exists() and all(path.stat().st_mtime <= page.stat().st_mtime for path in records):
        print("nothing to do: all records and the summary are up to date")
        return
    for command in ("summary", "html"):
        subprocess.run(
            [sys.executable, "-m", "dmlstudy", command, "--reports", reports],
            cwd=PROJECT,
            check=True,
        )
