"""One table as HTML for notebooks, Markdown and CSV for files, plain text for terminals; one way to write a number."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd

DASH = "—"

# Opacity, not grey, and colours of middle lightness: legible on light and dark pages alike.
STYLE = [
    ("", "border-collapse: collapse; font-size: 13px; line-height: 1.35; margin: 0.5em 0"),
    ("caption", "caption-side: top; text-align: left; padding: 0 0 6px; color: inherit"),
    ("caption b", "font-size: 15px"),
    ("caption small", "display: block; opacity: 0.7"),
    ("th, td", "padding: 4px 9px; text-align: left; vertical-align: top; background: none"),
    ("td", "font-variant-numeric: tabular-nums"),
    ("td b", "white-space: nowrap"),
    ("thead th", "font-weight: 600; vertical-align: bottom; border-bottom: 1px solid"),
    ("tbody tr", "border-bottom: 1px solid rgba(128, 128, 128, 0.3)"),
    (".paper, .muted", "opacity: 0.65; font-weight: normal; font-size: 12px"),
    (".up", "color: #1a8f4a; font-size: 12px"),
    (".down", "color: #d1453b; font-size: 12px"),
    ("a", "color: inherit; text-decoration: underline dotted"),
]
TAGS = {"ours": "b", "paper": "small", "muted": "small"}


class Part(NamedTuple):
    """One line of a cell; `kind` is "", "paper", "ours", "muted", "up" or "down"."""

    text: str
    kind: str = ""
    link: str | None = None


class Note(NamedTuple):
    """A remark beneath a table, in English and, where it has one, in Chinese."""

    en: str
    zh: str = ""
    about: str = ""


Cell = str | Part | tuple[Part, ...]


@dataclass(frozen=True, repr=False)
class Table:
    """A table as people read it, and its numbers.

    Attributes:
        name: stem of its files.
        columns: headings, each alone or as a pair of a group's heading ("" for none) and its own.
        rows: one cell per column.
        data: the numbers, tidy.
        lang: language of headings and legend.
    """

    name: str
    columns: Sequence[str | tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    data: pd.DataFrame = field(default_factory=pd.DataFrame)
    legend: str = ""
    notes: Sequence[Note] = ()
    lang: str = "en"

    @property
    def heads(self) -> list[tuple[str, str]]:
        return [("", head) if isinstance(head, str) else head for head in self.columns]

    @property
    def texts(self) -> list[list[list[str]]]:
        """The lines of every cell."""
        return [[[part.text for part in parts(cell)] for cell in row] for row in self.rows]

    def html(self) -> str:
        """A table that needs nothing from outside; still readable where its style is stripped."""
        heads = pd.MultiIndex.from_tuples(self.heads)
        names = heads if any(group for group, _ in self.heads) else heads.droplevel(0)
        frame = pd.DataFrame([[_html(cell) for cell in row] for row in self.rows], columns=names)
        starts = [i for i, (a, b) in enumerate(pairwise(self.heads), 1) if a[0] != b[0]]
        style = [*STYLE, *((f".col{i}", "padding-left: 36px") for i in starts)]
        styler = (
            frame.style.hide(axis="index")
            .set_uuid(self.name)  # a random one would change the notebook at each run
            .set_table_attributes(f'lang="{self.lang}"')
            .set_table_styles([{"selector": rule, "props": css} for rule, css in style])
            .format_index(lambda head: html_text(str(head)), axis=1)
        )
        if self.title:
            caption = f"<b>{html_text(self.title)}</b><small>{html_text(self.legend)}</small>"
            styler = styler.set_caption(caption)
        notes = "".join(_html_note(note) for note in self.notes)
        notes = f'<ul style="font-size: 12px; max-width: 80em">{notes}</ul>' if notes else ""
        table = styler.to_html(cell_ids=False, sparse_columns=True)
        return f'<div style="overflow-x: auto">{table}</div>{notes}'

    _repr_html_ = html

    def __repr__(self) -> str:
        return f"<Table {self.name}: {len(self.rows)} x {len(self.columns)}>"

    def markdown(self, home: str = "") -> str:
        """Heading, legend, pipe table and notes; `home` leads to the folder that links start from."""
        heads = [
            markdown_text(head) + (f"<br>{markdown_text(g)}" if g else "") for g, head in self.heads
        ]
        cells = [[_markdown(cell, home) for cell in row] for row in self.rows]
        table = _grid(heads, cells, "github")
        notes = [_markdown_note(note) for note in self.notes]
        parts = [
            f"## {markdown_text(self.title)}",
            markdown_text(self.legend),
            table,
            "\n".join(notes),
        ]
        return "\n\n".join(filter(None, parts)) + "\n"

    def text(self) -> str:
        """Title, aligned columns and notes for a terminal."""
        cells = [[" ".join(lines) for lines in row] for row in self.texts]
        notes = [f"{note.about} {note.en}".strip() for note in self.notes]
        table = _grid([head for _, head in self.heads], cells, "simple")
        return "\n\n".join(filter(None, [self.title, table, "\n".join(notes)]))

    def write(self, folder: Path) -> None:
        """`<name>.md` and `<name>.csv` in a folder of the reports; what is missing is an em dash in both."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text(self.markdown("../"), encoding="utf-8")
        data = self.data.copy()
        if "notebook" in data:
            data["notebook"] = "../" + data["notebook"]
        csv = data.to_csv(index=False, na_rep=DASH, float_format="%.6g")
        (folder / f"{self.name}.csv").write_text(csv, encoding="utf-8")


def number(value: float | None, digits: int = 1) -> str:
    """A number with a real minus sign; an em dash for what is missing; what rounds to zero has no sign.

    >>> number(3.14), number(-0.26), number(-0.04), number(float("nan"))
    ('3.1', '−0.3', '0.0', '—')
    """
    if value is None or math.isnan(value):
        return DASH
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign.

    >>> signed(3.14), signed(-0.26), signed(-0.04)
    ('+3.1', '−0.3', '0.0')
    """
    return ("+" if round(value, digits) > 0 else "") + number(value, digits)


def interval(mean: float, half_width: float | None, digits: int = 1) -> str:
    """A mean and the half width of its interval, if it has one.

    >>> interval(50.0, 2.484), interval(50.0, None)
    ('50.0 ± 2.5', '50.0')
    """
    half = number(half_width, digits)
    return number(mean, digits) + ("" if half == DASH else f" ± {half}")


def change(value: float, label: str = "", digits: int = 1) -> Part:
    """A difference with its sign, coloured by its direction; muted when it rounds to zero."""
    text = signed(value, digits)
    kind = {"+": "up", "−": "down"}.get(text[0], "muted")
    return Part(text if text == DASH else label + text, kind)


def notebook_link(dataset: str, method: str) -> str:
    """The executed notebook of a run, relative to the folder of the reports.

    >>> notebook_link("cub200_2010", "multi_similarity")
    'cub200_2010/multi_similarity.ipynb'
    """
    return quote(f"{dataset}/{method}.ipynb")


def parts(cell: Cell) -> tuple[Part, ...]:
    """The lines of a cell; a text alone is one."""
    if isinstance(cell, str):
        return (Part(cell),)
    return (cell,) if isinstance(cell, Part) else cell


def html_text(text: str) -> str:
    """`text` literally: no tag, and no formula, which notebooks read between two dollar signs."""
    return escape(text).replace("$", "<span>$</span>")


def markdown_text(text: str) -> str:
    r"""`text` literally: no tag, no formula, no emphasis, no new column.

    >>> print(markdown_text("a|b*c <b> $x$ multi_similarity [1.2, 3.4]"))
    a\|b\*c &lt;b&gt; \$x\$ multi_similarity [1.2, 3.4]
    """
    text = re.sub(r"([\\`*$|]|\b_|_\b|\](?=[(\[]))", r"\\\1", text)
    return escape(text, quote=False).replace("\n", " ")


def _html(cell: Cell) -> str:
    lines = []
    for part in parts(cell):
        text = _unbroken(html_text(part.text))
        if part.link:
            text = f'<a href="{escape(part.link)}">{text}</a>'
        tag = TAGS.get(part.kind, "span")
        lines.append(f'<{tag} class="{part.kind}">{text}</{tag}>' if part.kind else text)
    return "<br>".join(lines)


def _unbroken(text: str) -> str:
    """A number with its interval stays on one line."""
    return text.replace(" ", "\u00a0") if "±" in text or text.startswith("[") else text


def _markdown(cell: Cell, home: str) -> str:
    lines = []
    for part in parts(cell):
        text = markdown_text(part.text)
        text = f"[{text}]({home}{part.link})" if part.link else text
        lines.append(f"**{text}**" if part.kind == "ours" else text)
    return "<br>".join(lines)


def _html_note(note: Note) -> str:
    about = f"<b>{html_text(note.about)}</b> " if note.about else ""
    chinese = f'<br><span lang="zh-Hans">{html_text(note.zh)}</span>' if note.zh else ""
    return f'<li>{about}<span lang="en">{html_text(note.en)}</span>{chinese}</li>'


def _markdown_note(note: Note) -> str:
    about = f"**{markdown_text(note.about)}** " if note.about else ""
    return f"- {about}{markdown_text(note.en)} {markdown_text(note.zh)}".rstrip()


def _grid(heads: list[str], cells: list[list[str]], form: str) -> str:
    frame = pd.DataFrame(cells, columns=range(len(heads)))
    return frame.to_markdown(index=False, headers=heads, tablefmt=form, disable_numparse=True)
