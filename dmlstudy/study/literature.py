"""What the papers report (`params/reported.yaml`): verbatim values and what they cannot tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlstudy.errors import StudyError
from dmlstudy.study.tables import Note


@dataclass(frozen=True)
class Claim:
    """A fact about a paper and how sure it is: "code", "source", "memory" or "unknown"."""

    value: str = "?"
    certainty: str = "unknown"

    def __str__(self) -> str:
        """A question mark follows what nobody has verified.

        >>> f"{Claim('GoogLeNet', 'code')}, {Claim('512', 'memory')}, {Claim()}"
        'GoogLeNet, 512?, ?'
        """
        sure = self.certainty in ("code", "source") or self.value == "?"
        return self.value if sure else f"{self.value}?"


@dataclass(frozen=True)
class Paper:
    """One of the fourteen papers, numbered as in the Chinese summary."""

    card: int
    method: str
    name: str
    title: str
    authors: str
    venue: str
    backbone: Claim
    dimension: Claim
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Row:
    """A row as printed: its label and, by metric, its values as text."""

    card: int
    label: str
    values: dict[str, str]
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class ReportedTable:
    """A table as printed; `stand_ins` are data sets shown beside it in columns of their own."""

    heading: str
    dataset: str
    stand_ins: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Reported:
    """Papers by card number, the four tables, and what may be compared at all."""

    papers: dict[int, Paper]
    tables: tuple[ReportedTable, ...]
    groups: tuple[Note, ...]
    general: tuple[Note, ...]

    def numbers(self, dataset: str, method: str) -> dict[str, float] | None:
        """The paper's values on a data set as numbers; None when it reports none there."""
        for table in self.tables:
            for row in table.rows:
                if (table.dataset, self.papers[row.card].method) == (dataset, method):
                    return {k: float(text) for k, text in row.values.items() if text != "-"}
        return None


def load_reported(path: Path) -> Reported:
    """Read `params/reported.yaml`.

    Raises:
        StudyError: the file is missing or is not what this module expects.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Reported(
            papers={entry["card"]: _paper(entry) for entry in content["papers"]},
            tables=tuple(map(_table, content["tables"])),
            groups=tuple(Note(entry["en"], entry["zh"]) for entry in content["groups"]),
            general=_notes({"notes": content["general"]}),
        )
    except OSError as error:
        raise StudyError(f"Could not read the reported results at {path}: {error}.") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise StudyError(
            f"The reported results at {path} are malformed ({error}): restore the committed file."
        ) from error


def _paper(entry: dict[str, Any]) -> Paper:
    claims = {name: Claim(**entry.get(name, {})) for name in ("backbone", "dimension")}
    return Paper(**{**entry, **claims, "notes": _notes(entry)})


def _table(entry: dict[str, Any]) -> ReportedTable:
    metrics = tuple(entry["metrics"])
    rows = tuple(
        Row(
            card=row["card"],
            label=row["label"],
            values=dict(zip(metrics, row["values"], strict=True)),
            notes=_notes(row),
        )
        for row in entry["rows"]
    )
    return ReportedTable(
        entry["heading"], entry["dataset"], tuple(entry["stand_ins"]), metrics, rows
    )


def _notes(entry: dict[str, Any]) -> tuple[Note, ...]:
    return tuple(Note(note["en"], note["zh"]) for note in entry.get("notes", []))
