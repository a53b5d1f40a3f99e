"""The parameters of a run: one flat set, checked by name, type and range before anything is computed."""

from __future__ import annotations

import inspect
import json
import types
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from dmlstudy.data import Augment
from dmlstudy.errors import StudyError, unknown
from dmlstudy.methods import find_method, hyperparameters
from dmlstudy.project import PROJECT
from dmlstudy.training import Recipe

PARAMS = PROJECT / "params"


def _key(default: Any, comment: str) -> Any:
    """A protocol key: its default and the one-line comment that notebooks show."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"comment": comment})
    return field(default=default, metadata={"comment": comment})


@dataclass
class Protocol:
    """Everything that is the same for all methods on a data set; defaults are a smoke run of seconds."""

    dataset: str = _key("digits", "data set, or folder:PATH with one subfolder of images per class")
    seeds: list[int] = _key([0], "one training run per seed")
    fold: int | None = _key(
        None, "None: test classes; 0, 1, ...: that validation fold of the training classes"
    )
    folds: int = _key(4, "class-disjoint validation folds")
    resize: int = _key(8, "side of the stored square images, px")
    crop: int = _key(8, "side of the network's input, px")
    trunk: str = _key("convnet", "convnet, mobilenet_v2, resnet18, resnet50, googlenet")
    weights: str = _key("none", "none, torchvision, or a safetensors file under the data root")
    tf_padding: bool = _key(False, "TensorFlow padding and [-1, 1] inputs, for weights trained so")
    trained: str = _key("all", "all, head, or 'from block N'")
    pool: str = _key("avg", "avg, max, avg+max, gem")
    freeze_bn: bool = _key(False, "keep BatchNorm statistics fixed")
    embedding_size: int = _key(32, "D")
    head_start: str = _key("default", "default (random), or pca of the trunk's features")
    cached_views: int = _key(
        2, "cached augmentations per image under a frozen trunk part; 0 is no cache"
    )
    flip: bool = _key(False, "augmentation: mirror")
    rotate: float = _key(0.0, "augmentation: largest rotation, degrees")
    crop_area: float = _key(
        1.0, "augmentation: smallest share of the area that a random crop keeps"
    )
    shift: float = _key(0.0, "augmentation: largest shift, share of the side")
    p: int = _key(5, "classes per batch")
    k: int = _key(8, "images per class in a batch")
    epochs: int = _key(1, "passes over the training set; the last one is tested")
    lr: float = _key(1.0e-3, "learning rate of the head")
    trunk_lr: float = _key(1.0e-3, "learning rate of the trained trunk blocks")
    weight_decay: float = _key(1.0e-4, "of all network weights")
    optimiser: str = _key("adamw", "adamw, or sgd with momentum 0.9")
    schedule: str = _key("constant", "constant, cosine")
    ks: list[int] = _key([1, 2, 4, 8], "the K of R@K (hit rate)")
    nmi_seeds: int = _key(3, "k-means seeds that NMI is averaged over")
    control_seeds: int = _key(1, "how many of the seeds the method's controls run on")
    gallery: str = _key(
        "embedded", "show images: embedded (embedded data sets only), always, never"
    )
    threads: int = _key(1, "CPU threads; results are bit-identical for the same number")
    device: str = _key("cpu", "cpu or cuda")
    record: str = _key("", "where to write the JSON record; empty: do not write one")

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            StudyError: the first such key, with what it may be.
        """
        for name in ("p", "k", "folds", "control_seeds"):
            _at_least(name, getattr(self, name), {"control_seeds": 0}.get(name, 2))
        for name in ("resize", "crop", "embedding_size", "epochs", "nmi_seeds", "threads"):
            _at_least(name, getattr(self, name), 1)
        for name in ("lr", "trunk_lr", "weight_decay", "rotate", "shift", "cached_views"):
            _at_least(name, getattr(self, name), 0)
        if not 0 < self.crop_area <= 1:
            raise StudyError(f"crop_area must lie in (0, 1], not {self.crop_area}.")
        if self.crop > self.resize:
            raise StudyError(
                f"crop = {self.crop} px is larger than resize = {self.resize} px: raise resize."
            )
        for name in ("seeds", "ks"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values) or min(values) < (name == "ks"):
                raise StudyError(f"{name} must be a list of different whole numbers, not {values}.")
        for name, known in {
            "head_start": ("default", "pca"),
            "gallery": ("embedded", "always", "never"),
            "device": ("cpu", "cuda"),
        }.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)

    @property
    def augment(self) -> Augment:
        return Augment(self.flip, self.rotate, self.crop_area, self.shift)

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            self.p,
            self.k,
            self.epochs,
            self.lr,
            self.trunk_lr,
            self.weight_decay,
            self.optimiser,
            self.schedule,
        )


@dataclass(frozen=True)
class Settings:
    """Protocol and hyperparameters of one run, checked."""

    method: str
    protocol: Protocol
    hyper: dict[str, Any]

    @property
    def flat(self) -> dict[str, Any]:
        """All parameters by name, as a record keeps them."""
        return vars(self.protocol) | self.hyper


def settings(method: str, given: dict[str, Any]) -> Settings:
    """Check parameters for a method; what is not given keeps its default.

    Raises:
        StudyError: unknown method, unknown parameter (the nearest name is suggested), wrong type or range.
    """
    own = hyperparameters(find_method(method))
    protocol_types = typing.get_type_hints(Protocol)
    known = {**protocol_types, **{name: p.annotation for name, p in own.items()}}
    checked = {}
    for name, value in given.items():
        if name not in known:
            raise unknown("parameter", name, known)
        checked[name] = _typed(name, value, known[name])
    protocol = Protocol(**{n: v for n, v in checked.items() if n in protocol_types})
    protocol.check()
    hyper = {name: checked.get(name, parameter.default) for name, parameter in own.items()}
    return Settings(method, protocol, hyper)


def short_name(dataset: str) -> str:
    """A data set's name in paths and records: its own; for folder:PATH the path's last part.

    >>> short_name("folder:my/photos/birds")
    'folder_birds'
    """
    kind, colon, path = dataset.partition(":")
    return f"{kind}_{Path(path).name}" if colon else dataset


def load_params(
    method: str, dataset: str, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Parameters of a run from the yaml files: protocol, then data set, then method, then overrides.

    A method's file holds its hyperparameters; `METHOD.DATASET.yaml` beside it those that differ for a data set,
    so that plain papermill can be given the same files with `-f`.

    Raises:
        StudyError: a method's file shadows a protocol key, so that methods would not be equal.
    """
    find_method(method)
    own = read_yaml(PARAMS / "methods" / f"{method}.yaml")
    special = PARAMS / "methods" / f"{method}.{dataset}.yaml"
    if special.is_file():
        own |= read_yaml(special)
    shadowed = sorted(set(own) & {f.name for f in fields(Protocol)})
    if shadowed:
        raise StudyError(
            f"params/methods/{method}.yaml sets the protocol key '{shadowed[0]}': a method may only set its own "
            "hyperparameters; put it into params/datasets, where it holds for all methods."
        )
    file = PARAMS / "datasets" / f"{dataset.partition(':')[0]}.yaml"
    known = sorted(path.stem for path in (PARAMS / "datasets").glob("*.yaml"))
    if not file.is_file():
        raise unknown("data set", dataset, known)
    given = read_yaml(PARAMS / "protocol.yaml") | read_yaml(file) | {"dataset": dataset}
    return given | own | (overrides or {})


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
    return content or {}


def parameters_cell(method: str) -> str:
    """Source of the notebook's `parameters` cell: every parameter, its default, a one-line comment."""
    lines = [
        _assignment(f.name, f.type, _default(f), f.metadata["comment"]) for f in fields(Protocol)
    ]
    for name, parameter in hyperparameters(find_method(method)).items():
        kind = inspect.formatannotation(parameter.annotation)
        lines.append(_assignment(name, kind, parameter.default, parameter.comment))
    return "\n".join(lines)


def _assignment(name: str, kind: Any, default: Any, comment: str) -> str:
    # Papermill does not understand unions in annotations, so "or None" goes into the comment.
    hint = "" if "|" in kind else f": {kind.partition('[')[0]}"
    # Strings in double quotes, as the formatter would have them.
    value = json.dumps(default, ensure_ascii=False) if isinstance(default, str) else repr(default)
    return f"{name}{hint} = {value}  # {comment}"


def _default(f: Any) -> Any:
    return f.default_factory() if callable(f.default_factory) else f.default


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` if it is of this kind; whole numbers pass as floats."""
    choices = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if typing.get_origin(choices[0]) is list and isinstance(value, str):
        value = _yaml_list(value)  # papermill's -p hands lists over as text
    for choice in choices:
        if choice is type(None) and value is None:
            return None
        if choice is float and type(value) in (int, float):
            return float(value)
        if typing.get_origin(choice) is list and isinstance(value, list):
            inner = typing.get_args(choice)[0]
            if all(type(item) is inner for item in value):
                return list(value)
        if type(value) is choice:
            return value
    hint = (
        " (YAML reads 1e-4 as text: write 1.0e-4)"
        if isinstance(value, str) and float in choices
        else ""
    )
    wanted = " or ".join(
        getattr(c, "__name__", str(c)).replace("NoneType", "None") for c in choices
    )
    raise StudyError(f"Parameter {name} must be {wanted}, not {value!r}{hint}.")


def _yaml_list(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise StudyError(f"{name} must be at least {least}, not {value}.")
