"""Notebooks, built from the Markdown files in `notebooks/sources`.

A source reads like its notebook: a block fenced by ```` ```python NAME ```` is the code cell NAME, text before it the
text cell NAME-text. `00_data.md` and `summary.md` are whole notebooks. A method's file, METHOD.md, is set into
`template.md`, which holds the cells that all methods share: it begins with the title and one sentence in English and
Chinese, in which $paper stands for the class' citation; its section "The idea" goes before the training, a second
section, if there is one, behind it.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import Any

from dmlstudy.errors import StudyError
from dmlstudy.methods import METHODS, citation
from dmlstudy.study.notebooks import NOTEBOOKS, source_notebook
from dmlstudy.study.params import parameters_cell

SOURCES = NOTEBOOKS / "sources"
PAGES = ("00_data", "summary")  # notebooks of no method
CODE_CELL = re.compile(r"^```python (\S+)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def build(source: Path) -> str:
    """The text of the notebook file that a source makes; equal sources give equal bytes."""
    import nbformat

    text = source.read_text(encoding="utf-8")
    if source.stem in METHODS:
        text = _in_template(source.stem, text)
    cells = _cells(text, source)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=METADATA, nbformat_minor=5)
    return nbformat.writes(notebook) + "\n"


def build_all() -> list[Path]:
    """Write every notebook; those whose text was another."""
    changed = []
    for source, notebook in pairs():
        text = build(source)
        if not notebook.exists() or notebook.read_text(encoding="utf-8") != text:
            notebook.write_text(text, encoding="utf-8")
            changed.append(notebook)
    return changed


def pairs() -> list[tuple[Path, Path]]:
    """Every source with the notebook that it makes."""
    methods = [(SOURCES / f"{method}.md", source_notebook(method)) for method in METHODS]
    return [(SOURCES / f"{page}.md", NOTEBOOKS / f"{page}.ipynb") for page in PAGES] + methods


def _in_template(method: str, source: str) -> str:
    title, idea, *after = re.split(r"^(?=## )", source, flags=re.MULTILINE)
    title = Template(title).safe_substitute(paper=citation(METHODS[method]))
    template = Template((SOURCES / "template.md").read_text(encoding="utf-8"))
    return template.substitute(
        method=method,
        title=title.replace("# ", f"# {METHODS[method].number:02d} · ", 1),
        parameters=parameters_cell(method),
        idea=idea,
        after="\n".join(after),
    )


def _cells(text: str, source: Path) -> list[Any]:
    from nbformat.v4 import new_code_cell, new_markdown_cell

    cells, end = [], 0
    for match in CODE_CELL.finditer(text):
        name, code = match.groups()
        if before := text[end : match.start()].strip():
            cells.append(new_markdown_cell(before, id=f"{name}-text"))
        metadata = {"tags": ["parameters"]} if name == "parameters" else {}
        cells.append(new_code_cell(code, id=name, metadata=metadata))
        end = match.end()
    if rest := text[end:].strip():
        raise StudyError(
            f"{source.name} has text behind its last code cell, or a cell that is not closed: {rest[:40]!r}."
        )
    return cells
