"""Command line: list, data, run, verify, validate, controls, study, notebooks, summary, html."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
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
    help="Deep metric learning methods under one protocol.\n\n"
    "First `list` and `data`, then `run multi_similarity digits`; `COMMAND --help` shows an example of each.",
)
Reports = Annotated[str, typer.Option(help="Folder of the reports, relative to the project.")]
Set = typer.Option("--p", "-p", help="Override a parameter, e.g. -p epochs=2 -p 'seeds=[0,1]'.")
Sets = Annotated[list[str], Set]


def command(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command by the name that its example begins with; the help ends in the example."""
    return app.command(example.split()[0], epilog=f"Example: `python -m dmlstudy {example}`")


@command("list")
def list_methods() -> None:
    """All methods: paper, kind, where each leaves the protocol, and how sure its card is."""
    from dmlstudy.methods import METHODS, TrainingSet, citation, deviations
    from dmlstudy.networks import build_network

    heads = ("no.", "method", "paper", "kind", "deviates from the protocol in", "certainty")
    table = Table(*heads, show_lines=True)
    for name, method in METHODS.items():
        built = method(
            build_network("convnet", channels=1, embedding_size=64), TrainingSet(2, 4, 1)
        )
        away = ", ".join(deviations(built)) or "nothing"
        table.add_row(
            f"{method.number:02d}", name, citation(method), method.kind, away, method.certainty
        )
    Console().print(table)


@command("data")
def data() -> None:
    """Every data set: found or not, how complete, where it belongs, where to get it."""
    from dmlstudy.data import data_root, inventory

    table = Table("name", "state", "detail", "folder", "where to get it", show_lines=True)
    colours = {"embedded": "green", "complete": "green", "partly there": "yellow", "broken": "red"}
    for line in inventory():
        state = f"[{colours.get(line.state, 'dim')}]{line.state}[/]"
        detail = "" if line.state == "missing" else line.detail
        table.add_row(line.name, state, detail, line.folder, line.source)
    Console().print(table)
    print(f"Data root: {data_root()}; DMLSTUDY_DATA changes it. Your own images: folder:PATH.")


@command("run multi_similarity cub200_2010 -p 'seeds=[0]' -p epochs=2")
def run(method: str, dataset: str, p: Sets = [], reports: Reports = LOCAL) -> None:  # noqa: B006
    """Run one METHOD on one DATASET: an executed notebook and a record. Interrupted, it resumes.

    METHOD is a name that `list` shows, DATASET one that `data` shows, or folder:PATH with one subfolder per class.
    """
    from dmlstudy.study.collapse import in_words
    from dmlstudy.study.notebooks import execute, source_notebook
    from dmlstudy.study.parameter_files import load_params
    from dmlstudy.study.params import settings, short_name
    from dmlstudy.study.results import load

    overrides = parse_overrides(p)
    if "dataset" in overrides:
        asked = f"run {method} {overrides['dataset']}"
        raise StudyError(f"The data set is the second argument: {asked}, without -p dataset.")
    parameters = load_params(method, dataset, overrides)
    settings(method, parameters)  # refuse mistakes before a kernel starts
    folder = PROJECT / reports / short_name(dataset)
    record, notebook = folder / f"{method}.json", folder / f"{method}.ipynb"
    record.unlink(missing_ok=True)  # a record means that the run was finished
    print(f"{method} on {dataset}: running", flush=True)
    started = time.monotonic()
    execute(source_notebook(method), notebook, parameters | {"record": str(record)})
    written = load(record)
    here, start = (np.mean(values["R@1"]) for values in (written.metrics, written.baseline))
    print(
        f"{method} on {dataset}: R@1 {here:.2f} (untrained trunk {start:.2f}), {in_words(written.collapsed())}, "
        f"{time.monotonic() - started:.0f} s, {os.path.relpath(notebook, PROJECT)}",
        flush=True,
    )


@command("verify reports/glyphs/snr.json reports/glyphs/fastap.json --seeds 1")
def verify(
    records: list[Path],
    seeds: Annotated[int, typer.Option(min=0, help="The first seeds only; 0: all.")] = 0,
) -> None:
    """Rerun RECORDS from their own parameters, in a temporary place, and compare.

    Every record is called **same** to the last digit; within **seed noise** (R@1 and MAP@R lie no further off than two
    such studies would); or **different**, which ends with exit code 1. If numbers differ, so does what is named:
    instruction set, code, lock, library versions, data.
    """
    from dmlstudy.study import verify as verifying

    failed = False
    for path in records:
        started = time.monotonic()
        try:
            verdict = verifying.verify(path, seeds)
        except StudyError as error:
            print(f"Error: {error}", file=sys.stderr)
            failed = True
            continue
        failed |= verdict.outcome == "different"
        print(f"{path}: {verdict.sentence} ({time.monotonic() - started:.0f} s)", flush=True)
    sys.exit(failed)


@command("validate multi_similarity glyphs --fold 1 -p epsilon=0.2")
def validate(method: str, dataset: str, p: Sets = [], fold: int = 0) -> None:  # noqa: B006
    """Train on the training classes less one validation fold and test on that fold; no test class is read."""
    from dmlstudy.study.collapse import in_words, worst
    from dmlstudy.study.experiment import Experiment
    from dmlstudy.study.parameter_files import load_params
    from dmlstudy.study.params import settings

    chosen = settings(method, load_params(method, dataset, parse_overrides(p) | {"fold": fold}))
    experiment, states = Experiment(chosen), []
    for seed in chosen.protocol.seeds:
        run = experiment.run(seed)
        scores = "  ".join(f"{k} {v:.2f}" for k, v in run.evaluation.metrics.items())
        print(f"seed {seed}  {scores}")
        states.append(run.collapsed)
    print(f"{method} on {dataset}, fold {fold}: {in_words(worst(states))}")


@command("controls hdml glyphs -p 'seeds=[0,1,2,3,4,5]' --folds 0,1 --out controls.csv")
def controls(
    method: str,
    dataset: str,
    p: Sets = [],  # noqa: B006
    folds: Annotated[str, typer.Option(help="Validation folds, such as 0,1.")] = "all",
    out: Annotated[str, typer.Option(help="CSV file to add the rows to.")] = "",
) -> None:
    """Does the method's own idea help? It against its controls, paired by fold, class and seed, on validation folds."""
    from dmlstudy.evaluation import JUDGED
    from dmlstudy.study.controls import append, compare, controls_table, read
    from dmlstudy.study.parameter_files import load_params
    from dmlstudy.study.params import settings

    given = load_params(method, dataset, parse_overrides(p))
    numbers = fold_numbers(folds, settings(method, given).protocol.folds)
    read(Path(out))  # refuse a file of another form before the work
    chosen = [settings(method, given | {"fold": fold}) for fold in numbers]
    compared = compare(chosen, log=print)
    print("\n" + controls_table(compared, JUDGED).text())
    if out:
        append(Path(out), compared)


@command("tune multi_similarity glyphs --trials 8 --folds 0,1")
def tune(
    method: str,
    dataset: str,
    p: Sets = [],  # noqa: B006
    trials: Annotated[int, typer.Option(min=1, help="The first has the paper's values.")] = 8,
    folds: Annotated[str, typer.Option(help="Comma-separated validation folds.")] = "0,1",
    out: Annotated[str, typer.Option(help="Folder of the trials.")] = "reports/tuning",
) -> None:
    """Random search over learning rates, embedding length and the row's own numbers; no test class is read.

    Every row gets the same budget. The best values go into params/tuned, which `run` reads. Interrupted, it resumes.
    """
    from dmlstudy.study.parameter_files import load_params
    from dmlstudy.study.params import settings
    from dmlstudy.study.tune import search_table, tune

    given = parse_overrides(p)
    protocol = settings(method, load_params(method, dataset, given)).protocol
    numbers = fold_numbers(folds, protocol.folds)
    tune(method, dataset, PROJECT / out, trials=trials, folds=numbers, overrides=given)
    print("\n" + search_table(PROJECT / out).text())


@command("study --datasets digits,folder:my/photos --methods snr,fastap --jobs 4")
def study(
    datasets: Annotated[str, typer.Option(help="Comma-separated data sets.")] = "glyphs",
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


@command("notebooks")
def build_notebooks() -> None:
    """Build the method notebooks from notebooks/sources; do so after every change there."""
    from dmlstudy.study.notebook_builder import build_all

    for path in build_all():
        print(f"written: {os.path.relpath(path, PROJECT)}")


@command("summary --reports reports")
def summary(reports: Reports = LOCAL) -> None:
    """Collect the records into the summary notebook and the tables."""
    from dmlstudy.study.notebooks import NOTEBOOKS, execute, link_reports

    link_reports(PROJECT / reports)  # whatever order the runs ended in
    target = PROJECT / reports / "summary.ipynb"
    given = {"reports": reports, "tables": f"{reports}/tables"}
    execute(NOTEBOOKS / "summary.ipynb", target, given)
    print(f"summary: {os.path.relpath(target, PROJECT)}")


@command("html --reports reports")
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


def fold_numbers(text: str, count: int) -> list[int]:
    """The validation folds that --folds names.

    >>> fold_numbers("0,2", 4), fold_numbers("all", 2)
    ([0, 2], [0, 1])
    """
    allowed = {str(fold): fold for fold in range(count)}
    names = list(allowed) if text == "all" else text.split(",")
    if not set(names) <= set(allowed) or len(set(names)) < len(names):
        raise StudyError(
            f"--folds takes all, or different numbers from 0 to {count - 1} such as 0,1, not '{text}'."
        )
    return [allowed[name] for name in names]


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
