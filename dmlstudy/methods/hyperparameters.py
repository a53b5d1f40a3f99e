"""Hyperparameters and citations of methods, read off signatures, annotations and docstrings: their only home."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Union

from torch import Tensor


@dataclass(frozen=True)
class Hyperparameter:
    """What a method may be given by name.

    Attributes:
        annotation: its type, with its range if it has one.
        default: of the signature or class that it stands in.
        comment: its line in that docstring.
    """

    annotation: Any
    default: Any
    comment: str


def hyperparameters(method: type[Any]) -> dict[str, Hyperparameter]:
    """A method's hyperparameters by name: those of its parts, then the annotated attributes of its classes.

    A class decides over its parts: it may give a part's argument another default, or annotate it anew.
    """
    collected: dict[str, Hyperparameter] = {}
    for part in method.parts:
        comments = argument_comments(part)
        for name, parameter in keywords(part).items():
            default = getattr(method, name, parameter.default)
            annotation = _without_tensor(parameter.annotation)
            collected[name] = Hyperparameter(annotation, default, comments[name])
    for kind in reversed(method.__mro__):
        comments = argument_comments(kind)
        for name, annotation in inspect.get_annotations(kind, eval_str=True).items():
            if name in comments and typing.get_origin(annotation) is not ClassVar:
                default = getattr(method, name)
                collected[name] = Hyperparameter(annotation, default, comments[name])
    return collected


def _without_tensor(annotation: Any) -> Any:
    """The annotation of a number that a loss also takes as a tensor."""
    if Tensor not in typing.get_args(annotation):
        return annotation
    return Union[tuple(kind for kind in typing.get_args(annotation) if kind is not Tensor)]  # noqa: UP007


@cache
def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The hyperparameters of a part: keyword-only arguments with a default and a line in its docstring."""
    commented = argument_comments(function)
    return {
        name: parameter
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and parameter.default is not inspect.Parameter.empty
        and name in commented
        and name != "pairs"
    }


@cache
def argument_comments(documented: Any) -> dict[str, str]:
    """First lines of the "Args:" section of a docstring, by argument."""
    comments = {}
    section = (documented.__doc__ or "").partition("Args:\n")[2]
    for line in section.splitlines():
        names, colon, text = line.strip().partition(": ")
        for name in names.split(", "):
            if colon and name.isidentifier():
                comments[name] = text.rstrip(".").replace('"', "")  # papermill trips over quotes
    return comments


# Authors, "Title", venue and year.
CITATION = re.compile(r'[A-ZÀ-Ž][^"\n]*, "[^"]+",\s+(arXiv [\d.]+, )?[^":.]*?\d{4}(?=[\s.:,;)])')


def citation(method: type[Any]) -> str:
    """The paper of a method, from the first docstring of its own or of its parts that cites one."""
    for documented in (method, *method.parts):
        match = CITATION.search(inspect.getdoc(documented) or "")
        if match:
            return " ".join(match.group().split())
    return "no paper"
