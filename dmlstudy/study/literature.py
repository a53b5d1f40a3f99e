"""What the papers report (`params/reported.yaml`): verbatim values and what they cannot tell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from annotated_types import Len
from pydantic import ValidationError, model_validator

from dmlstudy.errors import StudyError
from dmlstudy.methods import find_method
from dmlstudy.study.checks import Strict, broken
from dmlstudy.study.tables import Note


class Claim(Strict):
    """A fact about a paper and how sure it is."""

    value: str = "?"
    certainty: Literal["code", "source", "memory", "unknown"] = "unknown"

    def __str__(self) -> str:
        """A question mark follows what nobody has verified.

        >>> f"{Claim(value='GoogLeNet', certainty='code')}, {Claim(value='512')}, {Claim()}"
        'GoogLeNet, 512?, ?'
        """
        sure = self.certainty in ("code", "source") or self.value == "?"
        return self.value if sure else f"{self.value}?"


class Paper(Strict):
    """What is known of the printed results of a method's paper; the paper itself is named by the method."""

    method: str
    name: str
    backbone: Claim = Claim()
    dimension: Claim = Claim()
    notes: list[Note] = []

    @property
    def number(self) -> int:
        """The card's number, as in the Chinese summary."""
        return find_method(self.method).number


class Row(Strict):
    """A row as printed: its label and its values, in the order of the table's metrics."""

    method: str
    label: str
    values: list[str]
    notes: list[Note] = []


class ReportedTable(Strict):
    """A table as printed; `stand_ins` are data sets shown beside it in columns of their own."""

    heading: str
    dataset: str
    stand_ins: list[str]
    metrics: list[str]
    rows: list[Row]

    @model_validator(mode="after")
    def _one_value_per_metric(self) -> ReportedTable:
        for row in self.rows:
            if len(row.values) != len(self.metrics):
                raise ValueError(f"row {row.label} must have one value for each of {self.metrics}")
        return self


class Reported(Strict):
    """The papers by card number, the four tables, and what may be compared at all."""

    papers: Annotated[list[Paper], Len(1)]
    tables: Annotated[list[ReportedTable], Len(1)]
    groups: list[Note]
    general: list[Note]

    def paper(self, method: str) -> Paper:
        return next(paper for paper in self.papers if paper.method == method)

    def numbers(self, dataset: str, method: str) -> dict[str, float] | None:
        """The paper's values on a data set as numbers; None when it reports none there."""
        for table in self.tables:
            for row in table.rows:
                if (table.dataset, row.method) == (dataset, method):
                    printed = zip(table.metrics, row.values, strict=True)
                    return {metric: float(text) for metric, text in printed if text != "-"}
        return None


def load_reported(path: Path) -> Reported:
    """Read `params/reported.yaml`.

    Raises:
        StudyError: the file is missing or is not what this module expects.
    """
    try:
        return Reported.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise StudyError(f"Could not read the reported results at {path}: {error}.") from error
    except (yaml.YAMLError, ValidationError) as error:
        fault = broken(error) if isinstance(error, ValidationError) else error
        raise StudyError(
            f"The reported results at {path} are malformed ({fault}): restore the committed file."
        ) from error
