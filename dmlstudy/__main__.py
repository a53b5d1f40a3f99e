"""Command line: list, data, run, validate, controls, study, notebooks, summary, html."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from dmlstudy.errors import StudyError
from dmlstudy.project import PROJECT

LOCAL = "reports/local"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Deep metric learning methods under one protocol. Try `python -m dmlstudy run multi_similarity digits`.",
)
Reports = Annotated[
    str, typer.Option(help="Folder for records and notebooks, relative to the project.")
]
Sets = Annotated[
    list[str],
    typer.Option("--p", "-p", help="Override a parameter, e.g. -p epochs=2 -p 'seeds=[0,1]'."),
]


@app.command("list")
def list_methods() -> None:
    """All methods: paper, kind, where each leaves the protocol, and how sure its card is."""
    from dmlstudy.methods import METHODS, TrainingSet, citation, deviations
    from dmlstudy.networks import build_network

    table = Table(
        "no.",
        "method",
        "paper",
        "kind",
        "deviates from the protocol in",
        "certainty",
        show_lines=True,
    )
    for name, method in METHODS.items():
        built = method(
            build_network("convnet", channels=1, embedding_size=64), TrainingSet(2, 4, 1)
        )
        away = ", ".join(deviations(built)) or "nothing"
        table.add_row(
            f"{method.number:02d}", name, citation(method), method.kind, away, method.certainty
        )
    Console().print(table)


@app.command()
def data() -> None:
    """Every data set: found or not, how complete, where it belongs, where to get it."""
    from dmlstudy.data import data_root, inventory

    table = Table(
        "name", "state", "detail", "folder under the data root", "where to get it", show_lines=True
    )
    colours = {"embedded": "green", "complete": "green", "partly there": "yellow", "broken": "red"}
    for line in inventory():
        state = f"[{colours.get(line.state, 'dim')}]{line.state}[/]"
        detail = "" if line.state == "missing" else line.detail
        table.add_row(line.name, state, detail, line.folder, line.source)
    Console().print(table)
    print(
        f"Data root: {data_root()} (set DMLSTUDY_DATA to change it). Your own images: folder:PATH."
    )


@app.command()
def run(method: str, dataset: str, p: Sets = [], reports: Reports = LOCAL) -> None:  # noqa: B006
    """Run one METHOD on one DATASET: an executed notebook and a record. Interrupted, it resumes."""
    from dmlstudy.study.notebooks import execute, source_notebook
    from dmlstudy.study.params import load_params, settings, short_name
    from dmlstudy.study.results import load

    overrides = parse_overrides(p)
    if "dataset" in overrides:
        raise StudyError(
            f"The data set is the second argument: run {method} {overrides['dataset']}, without -p dataset."
        )
    parameters = load_params(method, dataset, overrides)
    settings(method, parameters)  # refuse mistakes before a kernel starts
    folder = PROJECT / reports / short_name(dataset)
    record, notebook = folder / f"{method}.json", folder / f"{method}.ipynb"
    record.unlink(missing_ok=True)  # it must not vouch for a run that is not finished
    started = time.monotonic()
    print(f"{method} on {dataset}: running", flush=True)
    execute(source_notebook(method), notebook, parameters | {"record": str(record)})
    written = load(record)
    first = next(iter(name for name in written.metrics if name.startswith("R@")))
    mean = sum(written.metrics[first]) / len(written.seeds)
    base = sum(written.baseline[first]) / len(written.seeds)
    print(
        f"{method} on {dataset}: {first} {mean:.2f} (untrained trunk {base:.2f}), "
        f"{time.monotonic() - started:.0f} s, {os.path.relpath(notebook, PROJECT)}",
        flush=True,
    )


@app.command()
def validate(method: str, dataset: str, p: Sets = [], fold: int = 0) -> None:  # noqa: B006
    """Train on the training classes less one validation fold and test on that fold; no test class is read."""
    from dmlstudy.study.experiment import Experiment
    from dmlstudy.study.params import load_params, settings

    chosen = settings(method, load_params(method, dataset, parse_overrides(p) | {"fold": fold}))
    for seed in chosen.protocol.seeds:
        metrics = Experiment(chosen).run(seed).evaluation.metrics
        print(f"seed {seed}  " + "  ".join(f"{k} {v:.2f}" for k, v in metrics.items()))


@app.command()
def controls(
    method: str,
    dataset: str,
    p: Sets = [],  # noqa: B006
    fold: int = 0,
    out: Annotated[str, typer.Option(help="CSV file to add the rows to.")] = "",
) -> None:
    """Does the method's own idea help? It against its controls, seed by seed, on a validation fold."""
    from dmlstudy.study.controls import METRICS, append, compare, controls_table
    from dmlstudy.study.params import load_params, settings

    chosen = settings(method, load_params(method, dataset, parse_overrides(p) | {"fold": fold}))
    compared = compare(chosen, log=print)
    print("\n" + controls_table(compared, METRICS).text())
    if out:
        append(Path(out), compared)


@app.command()
def study(
    datasets: Annotated[str, typer.Option(help="Comma-separated data sets.")] = "digits,glyphs",
    methods: Annotated[str, typer.Option(help="Comma-separated methods; all when left out.")] = "",
    jobs: Annotated[int, typer.Option(help="Runs side by side, one thread each.")] = 0,
    reports: Reports = LOCAL,
) -> None:
    """Run every method on every data set through the Snakemake grid, then the summary and offline HTML."""
    from dmlstudy.methods import METHODS, find_method
    from dmlstudy.study.grid import run_grid

    names = methods.split(",") if methods else list(METHODS)
    for name in names:
        find_method(name)
    run_grid(datasets.split(","), names, reports, jobs or os.cpu_count() or 1)


@app.command("notebooks")
def build_notebooks() -> None:
    """Build the method notebooks from notebooks/sources; do so after every change there."""
    from dmlstudy.study.notebook_builder import build_all

    for path in build_all():
        print(f"written: {os.path.relpath(path, PROJECT)}")


@app.command()
def summary(reports: Reports = LOCAL) -> None:
    """Collect the records into the summary notebook and the tables."""
    from dmlstudy.study.notebooks import NOTEBOOKS, execute, link_reports

    link_reports(PROJECT / reports)
    target = PROJECT / reports / "summary.ipynb"
    execute(
        NOTEBOOKS / "summary.ipynb", target, {"reports": reports, "tables": f"{reports}/tables"}
    )
    print(f"summary: {os.path.relpath(target, PROJECT)}")


@app.command()
def html(reports: Reports = LOCAL) -> None:
    """Turn executed notebooks into HTML files that open without a network."""
    from concurrent.futures import ProcessPoolExecutor

    from dmlstudy.study.notebooks import to_html

    folder = PROJECT / reports
    # reports/local is a study of its own inside the committed one.
    notebooks = [p for p in folder.rglob("*.ipynb") if "local" not in p.relative_to(folder).parts]
    with ProcessPoolExecutor() as pool:
        done = list(pool.map(to_html, sorted(notebooks)))
    print(f"{len(done)} HTML files, start with {os.path.relpath(folder / 'summary.html', PROJECT)}")


def parse_overrides(items: list[str]) -> dict[str, Any]:
    """`key=value` items, values read as YAML.

    >>> parse_overrides(["epochs=2", "seeds=[0, 1]"])
    {'epochs': 2, 'seeds': [0, 1]}
    """
    parsed = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise StudyError(f"-p takes key=value, for example -p epochs=2, not '{item}'.")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise StudyError(f"The value of -p {item} is not valid YAML.") from error
    return parsed


def main() -> None:
    """Entry point: mistakes that a user can mend end in one sentence, not in a traceback."""
    try:
        app()
    except StudyError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
