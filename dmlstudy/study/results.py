"""The record of one finished run: its contract, its atomic writing, its checked reading."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dmlstudy.errors import StudyError

SCHEMA = 1


@dataclass
class Record:
    """What one method reached on one data set, and how; the only proof that a run succeeded.

    R@K, R-precision, MAP@R, NMI and AUROC are in percent.

    Attributes:
        method, dataset: names that make up the record's path, `<dataset>/<method>.json`.
        title, dataset_title: the same for people.
        seeds: one run each; every list of a metric has one value per seed.
        metrics: at the last epoch, on the test classes.
        baseline: the untrained trunk's metrics, per seed or one number when no seed enters.
        reported: the paper's own numbers on this data set, None when it has none.
        comparable: whether `metrics` may stand beside published numbers.
        deviations: where the method departs from the protocol.
        controls: the method's own control runs, name -> metric -> one value for each of the first seeds.
        per_class: {} or {"classes": [C], "queries": [C], "R@1": [seeds][C],
            "baseline R@1": [seeds][C]}.
        completeness: how much of the official release was found.
    """

    method: str
    title: str
    dataset: str
    dataset_title: str
    seeds: list[int]
    metrics: dict[str, list[float]]
    baseline: dict[str, list[float] | float]
    comparable: bool
    completeness: str
    reported: dict[str, float] | None = None
    deviations: list[str] = field(default_factory=list)
    controls: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    per_class: dict[str, list[Any]] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def save(record: Record, path: Path) -> None:
    """Write `record` to `path`; an interrupted or failed write leaves an older record untouched.

    Raises:
        StudyError: a value is not finite, the record breaks its contract, or the disk refuses it.
    """
    content = {name: _plain(value, name) for name, value in asdict(record).items()}
    if fault := _fault(content):
        raise StudyError(f"The record for {path} was not written: {fault}.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(_pretty(content) + "\n")
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
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise StudyError(f"There is no record at {path}: run this method first.") from None
    except (OSError, ValueError) as error:
        raise _broken(path, f"it cannot be read as JSON ({error})") from error
    if fault := _fault(content):
        raise _broken(path, fault)
    return Record(**content)


def load_all(folder: Path) -> list[Record]:
    """Every record `<folder>/<dataset>/<method>.json`, by data set and method; none yet gives [].

    Raises:
        StudyError: records are broken or lie where they do not belong; all of them are named.
    """
    records, faults = [], []
    for path in sorted(folder.glob("[!.]*/[!.]*.json")):
        try:
            record = load(path)
        except StudyError as error:
            faults.append(str(error))
            continue
        if (record.dataset, record.method) != (path.parent.name, path.stem):
            faults.append(
                str(_broken(path, f"it belongs at {record.dataset}/{record.method}.json"))
            )
        records.append(record)
    if faults:
        raise StudyError("\n".join(faults))
    return records


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a finite number")


def _broken(path: Path, fault: str) -> StudyError:
    return StudyError(f"The record {path} is broken: {fault}; delete it and run again.")


def _fault(content: Any) -> str | None:
    """What is wrong with the content of a record, None when it keeps the contract."""
    if not isinstance(content, dict):
        return "it is not a JSON object"
    names = [entry.name for entry in fields(Record)]
    if missing := [name for name in names if name not in content]:
        return f"it lacks {', '.join(missing)}"
    if surplus := [name for name in content if name not in names]:
        return f"it has unknown entries {', '.join(surplus)}"
    if content["schema"] != SCHEMA:
        return f"schema is {content['schema']!r} where this version reads {SCHEMA}"
    for name, (expected, holds) in CONTRACT.items():
        if not holds(content[name]):
            return f"{name} must be {expected}"
    return _fault_of_lengths(content)


def _fault_of_lengths(content: dict[str, Any]) -> str | None:
    """Whether there is one value per seed, and one per class, wherever there must be."""
    n = len(content["seeds"])
    groups = {"metrics": content["metrics"], "baseline": content["baseline"]}
    for group, metrics in groups.items():
        for metric, values in metrics.items():
            if isinstance(values, list) and len(values) != n:
                return f"{group}.{metric} has {len(values)} values for {n} seeds"
    for name, metrics in content["controls"].items():
        for metric, values in metrics.items():
            if len(values) > n:  # controls may run on the first few seeds only
                return f"controls.{name}.{metric} has {len(values)} values for {n} seeds"
    per_class = content["per_class"]
    if not per_class:
        return None
    if not {"classes", "queries"} <= per_class.keys():
        return "per_class lacks classes or queries"
    size = len(per_class["classes"])
    for name, values in per_class.items():
        rows = [values] if name in ("classes", "queries") else values
        if rows is values and len(rows) != n:
            return f"per_class.{name} has {len(rows)} rows for {n} seeds"
        if any(not isinstance(row, list) or len(row) != size for row in rows):
            return f"per_class.{name} must have {size} values, one per class"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _dict_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(holds, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\")


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_are_numbers = _list_of(_is_number)

# Each entry: what the fault message says it must be, and the test.
CONTRACT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "method": ("a name that can be a file's", _is_name),
    "dataset": ("a name that can be a folder's", _is_name),
    "title": ("a text", _is_text),
    "dataset_title": ("a text", _is_text),
    "completeness": ("a text", _is_text),
    "comparable": ("true or false", lambda value: isinstance(value, bool)),
    "seeds": (
        "a list of different whole numbers, at least one",
        lambda value: _list_of(_is_seed)(value) and 0 < len(value) == len(set(value)),
    ),
    "metrics": ("lists of finite numbers by metric", _dict_of(_are_numbers)),
    "baseline": (
        "finite numbers or lists of them by metric",
        _dict_of(lambda value: _is_number(value) or _are_numbers(value)),
    ),
    "reported": (
        "null or finite numbers by metric",
        lambda value: value is None or _dict_of(_is_number)(value),
    ),
    "deviations": ("a list of texts", _list_of(_is_text)),
    "controls": ("lists of finite numbers by control and metric", _dict_of(_dict_of(_are_numbers))),
    "per_class": ("lists by name", _dict_of(lambda value: isinstance(value, list))),
    "params": ("an object", lambda value: isinstance(value, dict)),
    "timing": ("an object", lambda value: isinstance(value, dict)),
    "provenance": ("an object", lambda value: isinstance(value, dict)),
}


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON types; measured floats get 6 significant digits, parameters stay exact."""
    if hasattr(value, "tolist"):  # NumPy and torch, without importing either
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise StudyError(
                f"The record was not written: {where} is {value}, not a finite number."
            )
        exact = where.startswith(("params", "provenance", "reported"))
        return value if exact else float(f"{value:.6g}")
    if value is None or isinstance(value, str | int):
        return value
    raise StudyError(
        f"The record was not written: {where} is a {type(value).__name__}, which JSON cannot hold."
    )


def _pretty(value: Any, indent: str = "") -> str:
    """JSON with sorted keys and one line per entry, but lists of numbers or texts on one line."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        lines = [f"{deeper}{json.dumps(k)}: {_pretty(v, deeper)}" for k, v in sorted(value.items())]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(entry, list | dict) for entry in value):
        return "[\n" + ",\n".join(deeper + _pretty(v, deeper) for v in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
