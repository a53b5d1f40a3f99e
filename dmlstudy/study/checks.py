"""Checks by pydantic, told in the study's own words: one sentence that says what, where and how to mend."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import annotated_types
from pydantic import BaseModel, ConfigDict, ValidationError

from dmlstudy.errors import StudyError, unknown

UNIONS = (types.UnionType, typing.Union)


class Strict(BaseModel):
    """True is no whole number and 2.0 neither; whole numbers pass as floats, NaN and infinity nowhere."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def plain_value(name: str, value: Any) -> Any:
    """`value` as YAML or JSON would give it: tuples, ranges and arrays as lists, NumPy's numbers as numbers.

    Raises:
        StudyError: a value of any other type.

    >>> plain_value("seeds", range(3)), plain_value("record", PurePath("a/b"))
    ([0, 1, 2], 'a/b')
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    # NumPy and torch, without importing either; a long double stays what it is.
    if hasattr(value, "tolist") and type(plain := value.tolist()) is not type(value):
        return plain_value(name, plain)
    if isinstance(value, list | tuple | range):
        return [plain_value(f"{name}[{i}]", entry) for i, entry in enumerate(value)]
    if isinstance(value, dict):
        return {str(key): plain_value(f"{name}.{key}", entry) for key, entry in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    raise StudyError(f"{name} is of type {type(value).__name__}: give a number, a text or a list.")


def different(values: list[Any]) -> list[Any]:
    """A validator of lists."""
    if len(set(values)) < len(values):
        raise ValueError("must not repeat values")
    return values


def mistyped(
    error: ValidationError, given: Mapping[str, Any], kinds: Mapping[str, Any]
) -> StudyError:
    """The first fault of a set of parameters: which one, what it must be and what it is.

    Args:
        given: the checked values by name.
        kinds: the annotations by name.
    """
    name = str(error.errors()[0]["loc"][0])
    value, kind = given[name], kinds[name]
    if isinstance(value, str) and (known := choices(kind)):
        return unknown(name, value, known)
    wanted = described(kind)
    as_text = isinstance(value, str) and "float" in wanted
    hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if as_text else ""
    return StudyError(f"Parameter {name} must be {wanted}, not {value!r:.60}{hint}.")


def broken(error: ValidationError) -> str:
    """The first fault of a nested object, as a clause.

    A missing entry comes first: its misspelt name is an unknown one as well.
    """
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "missing")
    at = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in faults[0]["loc"]]
    where = "".join(at).lstrip(".") or "it"
    match faults[0]["type"]:
        case "missing":
            return f"it lacks {where}"
        case "extra_forbidden":
            return f"it has the unknown entry {where}"
    message = faults[0]["msg"].removeprefix("Value error, ").partition(" after validation")[0]
    message = re.sub(r"^\w+ should", "must", message)
    return f"{where} {message}, not {faults[0]['input']!r:.60}"


def base(kind: Any) -> Any:
    """A type without its range."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def choices(kind: Any) -> list[str]:
    """The texts that an annotation allows, if it names them one by one."""
    kind = base(kind)
    if typing.get_origin(kind) is typing.Literal:
        return [entry for entry in typing.get_args(kind) if isinstance(entry, str)]
    if typing.get_origin(kind) in UNIONS:
        return [entry for inner in typing.get_args(kind) for entry in choices(inner)]
    return []


def described(kind: Any) -> str:
    """An annotation in words.

    >>> described(typing.Annotated[float, annotated_types.Gt(0), annotated_types.Le(1)] | None)
    'float in (0, 1] or None'
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _in_range(inner[0], inner[1:])
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin in UNIONS:
        return " or ".join(map(described, inner))
    if origin is list:
        return f"non-empty list of different {described(inner[0])}"
    return {types.NoneType: "None", float: "finite float"}.get(kind) or str(kind.__name__)


def _in_range(kind: Any, limits: tuple[Any, ...]) -> str:
    low: Any = -math.inf
    high: Any = math.inf
    left, right = "(", ")"
    for limit in limits:
        match limit:
            case annotated_types.Ge(ge=low):
                left = "["
            case annotated_types.Gt(gt=low):
                left = "("
            case annotated_types.Le(le=high):
                right = "]"
            case annotated_types.Lt(lt=high):
                right = ")"
    if low == -math.inf and high == math.inf:
        return described(kind)
    if high == math.inf:
        return f"{described(kind)} {'of at least' if left == '[' else 'above'} {low}"
    return f"{described(kind).removeprefix('finite ')} in {left}{low}, {high}{right}"
