"""Checks by pydantic, told in the study's own words: one sentence that says what, where and how to mend."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dmlstudy.errors import StudyError, unknown

Schemas = Mapping[str, Mapping[str, Any]]
# What JSON schemas call the types of parameters, and what Python does.
TYPES = {
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "string": "str",
    "array": "list",
    "null": "None",
}


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


def mistyped(error: ValidationError, given: Mapping[str, Any], schemas: Schemas) -> StudyError:
    """The first fault of a set of parameters: which one, what it must be and what it is.

    Args:
        given: the checked values by name.
        schemas: JSON schemas by name.
    """
    name = str(error.errors()[0]["loc"][0])
    value, schema = given[name], schemas[name]
    if isinstance(value, str) and "enum" in schema:
        return unknown(name, value, schema["enum"])
    wanted = described(schema)
    as_text = isinstance(value, str) and "float" in wanted
    hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if as_text else ""
    return StudyError(f"Parameter {name} must be {wanted}, not {value!r:.60}{hint}.")


def described(schema: Mapping[str, Any]) -> str:
    """The JSON schema of a parameter in words.

    >>> described({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"type": "null"}]})
    'float in (0, 1] or None'
    """
    if "anyOf" in schema:
        return " or ".join(map(described, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if schema["type"] == "array":
        return f"non-empty list of different {described(schema['items'])}"
    kind = TYPES[schema["type"]]
    low = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    high = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    if high == math.inf:
        if low == -math.inf:
            return "finite float" if kind == "float" else kind
        return f"{kind} {'of at least' if 'minimum' in schema else 'above'} {low}"
    left, right = "[" if "minimum" in schema else "(", "]" if "maximum" in schema else ")"
    return f"{kind} in {left}{low}, {high}{right}"


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
