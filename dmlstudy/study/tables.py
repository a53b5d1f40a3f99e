"""One table as HTML for notebooks, Markdown and CSV for files, plain text for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unicodedata import east_asian_width
from urllib.parse import quote

if TYPE_CHECKING:
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


Cell = tuple[Part, ...]


@dataclass(frozen=True)
class Table:
    """A table to look at and the numbers behind it.

    Attributes:
        name: stem of its files.
        columns: pairs of a group's heading ("" for none) and a column's heading.
        rows: one cell per column.
        data: the numbers, tidy.
        lang: language of headings and legend.
    """

    name: str
    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    data: pd.DataFrame
    legend: str = ""
    notes: Sequence[Note] = field(default_factory=list)
    lang: str = "en"

    def html(self) -> str:
        """A table that needs nothing from outside; still readable where its style is stripped."""
        import pandas as pd

        grouped = any(group for group, _ in self.columns)
        heads = pd.MultiIndex.from_tuples(self.columns)
        names = heads if grouped else heads.droplevel(0)
        frame = pd.DataFrame([[_html(cell) for cell in row] for row in self.rows], columns=names)
        starts = [i for i, (a, b) in enumerate(pairwise(self.columns), 1) if a[0] != b[0]]
        style = [*STYLE, *((f".col{i}", "padding-left: 36px") for i in starts)]
        styler = (
            frame.style.hide(axis="index")
            .set_uuid(self.name)  # a random one would change the notebook at each run
            .set_table_attributes(f'lang="{self.lang}"')
            .set_caption(f"<b>{escape(self.title)}</b><small>{escape(self.legend)}</small>")
            .set_table_styles([{"selector": rule, "props": css} for rule, css in style])
            .format_index(lambda head: escape(str(head)), axis=1)
        )
        notes = "".join(_html_note(note) for note in self.notes)
        notes = f'<ul style="font-size: 12px; max-width: 80em">{notes}</ul>' if notes else ""
        table = styler.to_html(cell_ids=False, sparse_columns=True)
        return f'<div style="overflow-x: auto">{table}</div>{notes}'

    _repr_html_ = html

    def markdown(self) -> str:
        """Heading, legend, pipe table and notes."""
        heads = [
            _bar(f"{column}<br>{group}" if group else column) for group, column in self.columns
        ]
        lines = [f"## {self.title}", "", *([self.legend, ""] if self.legend else [])]
        lines += [_pipes(heads), _pipes(["---"] * len(heads))]
        lines += [_pipes([_markdown(cell) for cell in row]) for row in self.rows]
        lines += ["", *(_markdown_note(note) for note in self.notes)]
        return "\n".join(lines).rstrip() + "\n"

    def text(self) -> str:
        """Aligned columns for a terminal."""
        table = [[column for _, column in self.columns]]
        table += [[" ".join(part.text for part in cell) for cell in row] for row in self.rows]
        widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(text + " " * (w - _width(text)) for text, w in zip(row, widths, strict=True))
            for row in table
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self.title, "", *(line.rstrip() for line in lines)])

    def write(self, folder: Path) -> None:
        """`<name>.md` and `<name>.csv`; what is missing is an em dash in both."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
        csv = self.data.to_csv(index=False, na_rep=DASH, float_format="%.6g")
        (folder / f"{self.name}.csv").write_text(csv, encoding="utf-8")


def notebook_link(dataset: str, method: str) -> str:
    """The executed notebook of a run, relative to the folder of the reports.

    >>> notebook_link("cub200_2010", "multi_similarity")
    'cub200_2010/multi_similarity.ipynb'
    """
    return quote(f"{dataset}/{method}.ipynb")


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign; what rounds to zero has none.

    >>> signed(3.14), signed(-0.26), signed(-0.04)
    ('+3.1', '−0.3', '0.0')
    """
    value = round(value, digits)
    sign = "+" if value > 0 else "−" if value < 0 else ""
    return f"{sign}{abs(value):.{digits}f}"


def change(value: float, label: str = "") -> Part:
    """A difference with its sign, coloured by its direction; muted when it rounds to zero."""
    text = signed(value)
    return Part(label + text, {"+": "up", "−": "down"}.get(text[0], "muted"))


def _html(cell: Cell) -> str:
    tags = {"": "span", "ours": "b", "paper": "small", "muted": "small"}
    parts = []
    for part in cell:
        text = _unbroken(escape(part.text))
        if part.link:
            text = f'<a href="{escape(part.link)}">{text}</a>'
        tag = tags.get(part.kind, "span")
        parts.append(f'<{tag} class="{part.kind}">{text}</{tag}>')
    return "<br>".join(parts)


def _unbroken(text: str) -> str:
    """A number with its interval stays on one line."""
    return text.replace(" ", "\u00a0") if "±" in text or text.startswith("[") else text


def _markdown(cell: Cell) -> str:
    parts = []
    for part in cell:
        text = _bar(escape(part.text, quote=False))
        text = f"[{text}]({part.link})" if part.link else text
        parts.append(f"**{text}**" if part.kind == "ours" else text)
    return "<br>".join(parts)


def _html_note(note: Note) -> str:
    about = f"<b>{escape(note.about)}</b> " if note.about else ""
    chinese = f'<br><span lang="zh-Hans">{escape(note.zh)}</span>' if note.zh else ""
    return f'<li>{about}<span lang="en">{escape(note.en)}</span>{chinese}</li>'


def _markdown_note(note: Note) -> str:
    return f"- {f'**{note.about}** ' if note.about else ''}{note.en} {note.zh}".rstrip()


def _bar(text: str) -> str:
    return text.replace("|", "\\|")


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _width(text: str) -> int:
    """Columns that a text takes in a terminal, where Chinese characters take two."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
