"""The record of one finished run: its contract, its atomic writing, its checked reading."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from dmlstudy.errors import StudyError
from dmlstudy.ranges import Seed
from dmlstudy.study.checks import Strict, broken, different, plain_value
from dmlstudy.study.collapse import State, worst
from dmlstudy.whole_file import whole_file

PERCENT = ("R@", "R-precision", "MAP@R", "NMI", "AUROC")  # how names of metrics in percent begin


def _file_name(text: str) -> str:
    if text in ("", ".", "..") or set(text) & set("/\\"):
        raise ValueError("must be a name that a file can have")
    return text


def _in_percent(scores: dict[str, list[float]]) -> dict[str, list[float]]:
    for metric, values in scores.items():
        for value in values:
            if metric.startswith(PERCENT) and not 0 <= value <= 100:
                raise ValueError(f"must hold {metric} in percent, 0 to 100, and has {value}")
    return scores


def _rounded(value: Any) -> Any:
    """Measured floats with six significant digits, so that equal runs give equal files."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


Name = Annotated[str, AfterValidator(_file_name)]
Measured = BeforeValidator(_rounded)
SCHEMA = Field(validation_alias="schema", serialization_alias="schema")
Scores = Annotated[dict[str, list[float]], AfterValidator(_in_percent)]


class Collapse(Strict):
    """Of one kind of run, one value per seed: what `collapse.state` says, and the two losses that it compares."""

    states: list[State]
    loss: list[float]
    at_a_point: list[float]


class Record(Strict):
    """What one method reached on one data set, and how; the only proof that a run succeeded.

    R@K, R-precision, MAP@R, NMI and AUROC are in percent.

    Attributes:
        method, dataset: names that make up the record's path, `<dataset>/<method>.json`.
        title, dataset_title: the same for people.
        seeds: one run each; every list of a metric has one value per seed.
        metrics: at the last epoch, on the test classes.
        baseline: the untrained trunk's metrics.
        comparable: whether `metrics` may be compared with published numbers.
        completeness: how much of the official release was found.
        reported: the paper's own numbers on this data set, None when it has none.
        deviations: where the method departs from the protocol.
        controls: the method's own control runs, name -> metric -> one value for each of the first seeds.
        per_class: {} or {"classes": [C], "queries": [C], "R@1": [seeds][C], "baseline R@1": [seeds][C]}, and
            the same for MAP@R.
        collapse: by run, "method" or the name of a control; {} in old records and where nothing is trained.
        epochs: {"test R@1": [seeds][epochs], "test MAP@R"}, or "validation ..." on a fold; stored, never used.

    Raises:
        StudyError: an entry is missing, unknown, of another type or out of range.
    """

    method: Name
    title: str
    dataset: Name
    dataset_title: str
    seeds: Annotated[list[Seed], Len(1), AfterValidator(different)]
    metrics: Annotated[Scores, Len(1), Measured]
    baseline: Annotated[Scores, Measured]
    comparable: bool
    completeness: str
    reported: dict[str, float] | None = None
    deviations: list[str] = []
    controls: Annotated[dict[str, Scores], Measured] = {}
    per_class: Annotated[dict[str, list[JsonValue]], Measured] = {}
    collapse: Annotated[dict[str, Collapse], Measured] = {}
    epochs: Annotated[dict[str, list[list[float]]], Measured] = {}
    params: dict[str, JsonValue] = {}
    timing: Annotated[dict[str, JsonValue], Measured] = {}
    provenance: dict[str, JsonValue] = {}
    version: Annotated[Literal[1], SCHEMA] = 1

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_sentence(cls, content: Any, check: Callable[[Any], Record]) -> Record:
        if not isinstance(content, dict):
            raise StudyError("it is not a JSON object")
        try:
            return check({name: plain_value(name, value) for name, value in content.items()})
        except ValidationError as error:
            raise StudyError(broken(error)) from error

    @model_validator(mode="after")
    def _one_value_per_seed(self) -> Record:
        """Controls may have run on the first few seeds only."""
        n = len(self.seeds)
        groups: dict[str, tuple[int, Mapping[str, Sequence[Any]]]] = {
            "metrics": (n, self.metrics),
            "baseline": (n, self.baseline),
            "epochs": (n, self.epochs),
        }
        groups |= {f"controls.{name}": (1, scores) for name, scores in self.controls.items()}
        groups |= {f"collapse.{name}": (1, vars(found)) for name, found in self.collapse.items()}
        for group, (least, scores) in groups.items():
            for metric, values in scores.items():
                if not least <= len(values) <= n:
                    raise StudyError(f"{group}.{metric} has {len(values)} values for {n} seeds")
        return self

    @property
    def is_old(self) -> bool:
        """Made before runs kept what the mean cosine tells of a collapse, and before rows were tuned."""
        return "mean cosine" not in self.metrics

    def collapsed(self, run: str = "method") -> State:
        """Of the method or one of its controls, over its seeds."""
        return worst(self.collapse[run].states) if run in self.collapse else "no"

    @model_validator(mode="after")
    def _one_value_per_class(self) -> Record:
        per_class, n = self.per_class, len(self.seeds)
        if per_class and not {"classes", "queries"} <= per_class.keys():
            raise StudyError("per_class lacks classes or queries")
        for name, values in per_class.items():
            rows = [values] if name in ("classes", "queries") else values
            if rows is values and len(rows) != n:
                raise StudyError(f"per_class.{name} has {len(rows)} rows for {n} seeds")
            size = len(per_class["classes"])
            if any(not isinstance(row, list) or len(row) != size for row in rows):
                raise StudyError(f"per_class.{name} must have {size} values, one per class")
        return self


def save(record: Record, path: Path) -> None:
    """Write `record` to `path`.

    Raises:
        StudyError: the disk refuses it; an older record is untouched.
    """
    text = _pretty(record.model_dump(by_alias=True)) + "\n"
    remedy = "make room or choose another folder, then run again"
    with whole_file(path, remedy) as partial, partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def load(path: Path) -> Record:
    """Read and check one record.

    Raises:
        StudyError: the file is missing or not a record; the sentence names the file and the fault.
    """
    try:
        return Record.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise StudyError(f"There is no record at {path}: run this method first.") from None
    except StudyError as error:
        raise _broken(path, str(error)) from error
    except (OSError, ValueError) as error:
        raise _broken(path, f"it cannot be read as JSON ({error})") from error


def load_all(folder: Path) -> list[Record]:
    """Every record `<folder>/<dataset>/<method>.json`, by data set and method; none yet gives [].

    Raises:
        StudyError: records are broken or lie where they do not belong; all of them are named.
    """
    records, faults = [], []
    for path in sorted(folder.glob("[!.]*/[!.]*.json")):
        try:
            record = load(path)
            if (record.dataset, record.method) != (path.parent.name, path.stem):
                raise _broken(path, f"it belongs at {record.dataset}/{record.method}.json")
            records.append(record)
        except StudyError as error:
            faults.append(str(error))
    if faults:
        raise StudyError("\n".join(faults))
    return records


def _broken(path: Path, fault: str) -> StudyError:
    return StudyError(f"The record {path} is broken: {fault}; delete it and run again.")


def _pretty(value: Any, indent: str = "") -> str:
    """JSON with sorted keys and one line per entry, but lists of numbers or texts on one line."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        lines = [f"{deeper}{json.dumps(k)}: {_pretty(v, deeper)}" for k, v in sorted(value.items())]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(entry, list | dict) for entry in value):
        return "[\n" + ",\n".join(deeper + _pretty(v, deeper) for v in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
