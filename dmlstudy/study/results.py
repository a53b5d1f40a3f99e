"""The record of one finished run: its contract, its atomic writing, its checked reading."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
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


class Record(Strict):
    """What one method reached on one data set, and how; the only proof that a run succeeded.

    R@K, R-precision, MAP@R, NMI and AUROC are in percent.

    Attributes:
        method, dataset: names that make up the record's path, `<dataset>/<method>.json`.
        title, dataset_title: the same for people.
        seeds: one run each; every list of a metric has one value per seed.
        metrics: at the last epoch, on the test classes.
        baseline: the untrained trunk's metrics.
        comparable: whether `metrics` may stand beside published numbers.
        completeness: how much of the official release was found.
        reported: the paper's own numbers on this data set, None when it has none.
        deviations: where the method departs from the protocol.
        controls: the method's own control runs, name -> metric -> one value for each of the first seeds.
        per_class: {} or {"classes": [C], "queries": [C], "R@1": [seeds][C], "baseline R@1": [seeds][C]}.

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
            record = check({name: plain_value(name, value) for name, value in content.items()})
        except ValidationError as error:
            raise StudyError(broken(error)) from error
        if fault := _fault_of_lengths(record) or _fault_of_classes(record):
            raise StudyError(fault)
        return record


def _fault_of_lengths(record: Record) -> str | None:
    """The first metric that has not one value per seed; controls may run on the first few seeds only."""
    n = len(record.seeds)
    scores = {"metrics": record.metrics, "baseline": record.baseline}
    controls = {f"controls.{name}": metrics for name, metrics in record.controls.items()}
    for group, metrics in (scores | controls).items():
        for metric, values in metrics.items():
            if not (1 if group in controls else n) <= len(values) <= n:
                return f"{group}.{metric} has {len(values)} values for {n} seeds"
    return None


def _fault_of_classes(record: Record) -> str | None:
    """The first list of `per_class` that has not one value per class, and per seed where it must."""
    per_class, n = record.per_class, len(record.seeds)
    if not per_class:
        return None
    if not {"classes", "queries"} <= per_class.keys():
        return "per_class lacks classes or queries"
    size = len(per_class["classes"])
    for name, values in per_class.items():
        of_seeds = name not in ("classes", "queries")
        if of_seeds and len(values) != n:
            return f"per_class.{name} has {len(values)} rows for {n} seeds"
        if any(
            not isinstance(r, list) or len(r) != size for r in (values if of_seeds else [values])
        ):
            return f"per_class.{name} must have {size} values, one per class"
    return None


def save(record: Record, path: Path) -> None:
    """Write `record` to `path`; an interrupted or failed write leaves an older record untouched.

    Raises:
        StudyError: the disk refuses it.
    """
    text = _pretty(record.model_dump(by_alias=True)) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StudyError(
            f"Could not write {path} ({error.strerror or error}): make room or choose another "
            "folder, then run again; an older record there is untouched."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


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
