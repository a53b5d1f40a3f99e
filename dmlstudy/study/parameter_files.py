"""The parameter files of a run and their order: protocol, data set, named protocol, method, tuned values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dmlstudy.errors import StudyError, unknown
from dmlstudy.methods import find_method
from dmlstudy.project import PROJECT
from dmlstudy.study.params import Protocol

PARAMS = PROJECT / "params"
RATES = ("lr", "trunk_lr")  # protocol keys that `tune` chooses for each row, by the same budget


def load_params(
    method: str, dataset: str, overrides: dict[str, Any] | None = None, *, tuned: bool = True
) -> dict[str, Any]:
    """Parameters of a run: those of its files, each overriding the one before, then `overrides`.

    Args:
        dataset: `NAME`, `folder:PATH`, or `NAME.PROTOCOL` for a further protocol on a data set.
        tuned: whether to read the values that `tune` chose; without them a row has the values of its paper.

    Raises:
        StudyError: an unknown name, a broken file, or a method's file that shadows a protocol key, so that methods
            would not be equal.
    """
    given: dict[str, Any] = {}
    for file in parameter_files(method, dataset, tuned=tuned):
        content = read_yaml(file)
        shared = set(Protocol.model_fields) - set(
            RATES if file.parent.parent == PARAMS / "tuned" else ()
        )
        if file.stem == method and (shadowed := sorted(shared & set(content))):
            raise StudyError(
                f"{file.relative_to(PARAMS.parent)} sets the protocol key '{shadowed[0]}': a method may only set its "
                "own hyperparameters; put it into params/datasets, where it holds for all methods."
            )
        given |= content
    name, protocol = split_name(dataset)
    return given | {"dataset": name, "protocol": protocol} | (overrides or {})


def parameter_files(method: str, dataset: str, *, tuned: bool = True) -> list[Path]:
    """The files of a run in order, to be given to plain papermill with `-f` as well.

    A named protocol's file holds the keys that differ from the data set's; it shares the data set's tuned values
    until it is tuned itself.

    Raises:
        StudyError: an unknown method, data set or protocol.
    """
    find_method(method)
    name, protocol = split_name(dataset)
    name = name.partition(":")[0]
    known = {path.stem: path for path in sorted((PARAMS / "datasets").glob("*.yaml"))}
    layers = [name, f"{name}.{protocol}"] if protocol else [name]
    for layer in layers:
        if layer not in known:
            raise unknown("data set", dataset, known)
    paper = PARAMS / "methods" / f"{method}.yaml"
    chosen = [PARAMS / "tuned" / layer / f"{method}.yaml" for layer in layers if tuned]
    nearest = [file for file in chosen if file.is_file()][-1:]
    return [PARAMS / "protocol.yaml", *(known[layer] for layer in layers), paper, *nearest]


def split_name(dataset: str) -> tuple[str, str]:
    """A data set and the name of a protocol on it, "" for its first one.

    >>> split_name("cub200_2010.blocks"), split_name("folder:my/photos.old")
    (('cub200_2010', 'blocks'), ('folder:my/photos.old', ''))
    """
    name, _, protocol = (dataset, "", "") if ":" in dataset else dataset.partition(".")
    return name, protocol


def read_yaml(path: Path) -> dict[str, Any]:
    """A flat YAML file as a dictionary.

    Raises:
        StudyError: missing or broken file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"The parameter file {path} is missing.") from None
    except yaml.YAMLError as error:
        raise StudyError(f"The parameter file {path} is not valid YAML: {error}.") from error
    if not isinstance(content or {}, dict):
        raise StudyError(f"The parameter file {path} must hold one 'name: value' a line.")
    return content or {}
