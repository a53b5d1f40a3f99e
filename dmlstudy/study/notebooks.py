"""Notebooks: executed by papermill, freed of volatile metadata, turned into offline HTML."""

from __future__ import annotations

import os
import re
import symtable
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dmlstudy.errors import StudyError
from dmlstudy.methods import find_method
from dmlstudy.project import PROJECT
from dmlstudy.whole_file import whole_file

NOTEBOOKS = PROJECT / "notebooks"
# For the C library of Linux: keep freed buffers. By default every large one goes back to the system, and to get it
# again, page by page, takes longer than filling it.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def source_notebook(method: str) -> Path:
    """The source notebook of a method: its number, then its name."""
    return NOTEBOOKS / f"{find_method(method).number:02d}_{method}.ipynb"


def execute(source: Path, target: Path, parameters: dict[str, Any]) -> None:
    """Run a notebook with papermill; `target` keeps what was reached even if it fails.

    Raises:
        StudyError: a cell raised; the message is the cell's own error.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    # ipykernel would otherwise warn in every kernel that its sockets are not encrypted.
    config = Config({"KernelManager": {"transport_encryption": "auto"}})
    target.parent.mkdir(parents=True, exist_ok=True)
    for name, value in KEEP_MEMORY.items():  # the kernel inherits them
        os.environ.setdefault(name, value)
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters,
            progress_bar=False,
            cwd=str(PROJECT),
            config=config,
        )
    except PapermillExecutionError as error:
        raise StudyError(f"{error.evalue} (the executed part is in {_shown(target)})") from error
    finally:
        if target.exists():
            clean(target)


def assigned_parameters(cells: Sequence[str], known: Collection[str]) -> set[str]:
    """Names that the parameters cell assigns, and the cell that papermill injected after it, right or misspelt.

    Args:
        cells: sources of the cells that were run, in order; of a cell that was run twice, the last run counts.
        known: the parameters; the cell that assigns most of them is the parameters cell.
    """
    parameters, injected = set[str](), set[str]()
    for cell in cells:
        names = _assigned(cell)
        if len(names & set(known)) > len(known) / 2:
            parameters, injected = names, set()
        elif cell.startswith("# Parameters\n"):
            injected = names
    return parameters | injected


def _assigned(cell: str) -> set[str]:
    try:
        symbols = symtable.symtable(cell, "cell", "exec").get_symbols()
    except SyntaxError:  # a magic
        return set()
    return {s.get_name() for s in symbols if s.is_assigned()}


def clean(path: Path) -> None:
    """Strip what differs between two equal runs: times, durations, random cell ids, warnings' addresses."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if "injected-parameters" in tags:
            cell.id = "injected-parameters"
            # The record's path says where this copy was made, not what was run.
            cell.source = re.sub(r"^record = .*\n?", "", cell.source, flags=re.MULTILINE)
        cell.id = cell.get("id") or f"cell-{number}"
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    _write(notebook, path)


def _write(notebook: Any, path: Path) -> None:
    import nbformat

    with whole_file(path, "make room, then run again") as partial:
        nbformat.write(notebook, partial)


def _joined(outputs: list[Any]) -> list[Any]:
    """Neighbouring pieces of one stream as one output; how they are cut depends on timing."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue  # progress of decoding and caching: there on a first run only
        if joined and output.output_type == "stream" == joined[-1].output_type:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


SUMMARY_LINK = "[All results · 全部结果]"


def link_reports(folder: Path) -> None:
    """Renew the links at the top of every finished report: to the summary, and to its method on other data sets."""
    import nbformat

    reports = [p for p in sorted(folder.glob("*/*.ipynb")) if p.with_suffix(".json").exists()]
    for path in reports:
        notebook = nbformat.read(path, as_version=4)
        others = [p for p in reports if p.name == path.name and p != path]
        links = [f"{SUMMARY_LINK}(../summary.ipynb)", *map(_link, others)]
        lines = notebook.cells[0].source.split("\n")
        renewed = [" · ".join(links) if x.startswith(SUMMARY_LINK) else x for x in lines]
        if renewed != lines:
            notebook.cells[0].source = "\n".join(renewed)
            _write(notebook, path)


def _link(report: Path) -> str:
    dataset = report.parent.name
    shown = re.sub(r"([\\`*_\[\]<>$])", r"\\\1", dataset)  # a folder's name is no Markdown
    return f"[{shown}](../{quote(dataset)}/{report.name})"


# The template keeps columns free for prompts, which we leave out, and tables need the room. On a phone its margins
# would take half of the page; wide tables scroll, and lines of code do not break.
PAGE_STYLE = """<style>
.container { width: 94%; max-width: 1400px }
div.output_subarea { max-width: 100%; overflow-x: auto }
div.text_cell_render, div.input { max-width: 75em }
@media (max-width: 700px) {
  body, div#notebook, div.cell, div.text_cell_render { padding: 0 }
  div#notebook-container { width: 100%; padding: 6px; box-shadow: none }
  div.input_area { overflow-x: auto }
  div.highlight pre, div.text_cell_render pre { white-space: pre; overflow-x: auto }
}
</style>"""


def to_html(path: Path) -> Path:
    """An executed notebook as one HTML file that loads nothing from anywhere; links lead to its siblings."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="classic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = ""
    html, _ = exporter.from_filename(str(path))
    # What the template still asks of the network: empty script tags, and widgets' loader.
    html = re.sub(r"<script[^>]*\bsrc=[^>]*>\s*</script>", "", html)
    html = re.sub(r'<script type="module">.*?</script>', "", html, flags=re.DOTALL)  # mermaid
    html = re.sub(r'(href="[^":]*)\.ipynb"', r'\1.html"', html)
    html = html.replace("</head>", f"{PAGE_STYLE}</head>", 1)
    target = path.with_suffix(".html")
    target.write_text(html, encoding="utf-8")
    return target


def _shown(path: Path) -> str:
    return os.path.relpath(path, PROJECT)
