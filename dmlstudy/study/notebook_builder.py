"""Method notebooks, built from `notebooks/sources`: one template, and one Markdown file per method.

A source reads like the notebook. A block fenced by ```` ```python NAME ```` is the code cell NAME; text before it is
the text cell NAME-text. A method's file begins with its title and one sentence in each language; its section "The idea"
goes before the training, a second section, if there is one, behind it. The template holds the cells of all methods.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import Any

from dmlstudy.methods import METHODS, find_method
from dmlstudy.study.notebooks import NOTEBOOKS, number, source_notebook
from dmlstudy.study.params import parameters_cell

SOURCES = NOTEBOOKS / "sources"
CODE_CELL = re.compile(r"^```python (\S+)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def build(method: str) -> str:
    """The text of a method's notebook file; equal sources give equal bytes."""
    import nbformat

    source = (SOURCES / f"{method}.md").read_text(encoding="utf-8")
    title, idea, *after = re.split(r"^(?=## )", source, flags=re.MULTILINE)
    template = Template((SOURCES / "template.md").read_text(encoding="utf-8"))
    title = Template(title).safe_substitute(paper=find_method(method).paper)
    text = template.substitute(
        method=method,
        title=title.replace("# ", f"# {number(method):02d} · ", 1),
        parameters=parameters_cell(method),
        idea=idea,
        after="\n".join(after),
    )
    notebook = nbformat.v4.new_notebook(cells=_cells(text), metadata=METADATA)
    notebook.nbformat_minor = 5
    return nbformat.writes(notebook) + "\n"


def _cells(text: str) -> list[Any]:
    import nbformat

    cells, end = [], 0
    for match in CODE_CELL.finditer(text):
        name, code = match.groups()
        if before := text[end : match.start()].strip():
            cells.append(nbformat.v4.new_markdown_cell(before, id=f"{name}-text"))
        metadata = {"tags": ["parameters"]} if name == "parameters" else {}
        cells.append(nbformat.v4.new_code_cell(code, id=name, metadata=metadata))
        end = match.end()
    return cells


def build_all() -> list[Path]:
    """Write every method's notebook; those whose text was another."""
    changed = []
    for method in METHODS:
        path, text = source_notebook(method), build(method)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed
