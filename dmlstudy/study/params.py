"""The parameters of a run: one flat set, checked by name, type and range before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Len
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from dmlstudy.data import Augment, Track
from dmlstudy.errors import StudyError, unknown
from dmlstudy.methods import find_method, hyperparameters
from dmlstudy.ranges import Fold, Momentum, Neighbours, Pixels, PositiveShare, Rate, Seed, Share
from dmlstudy.study.checks import TYPES, Schemas, Strict, different, mistyped, plain_value
from dmlstudy.training import Recipe
from dmlstudy.trunks import check_trunk

# Keys of the protocol that change no trained network.
PRESENTATION = ("protocol", "seeds", "record", "gallery", "ks", "nmi_seeds", "control_seeds")


def _listed(value: Any) -> Any:
    """A text read as YAML: papermill's -p hands lists over as text."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value


Several = (Len(1), BeforeValidator(_listed), AfterValidator(different))


def _key(default: Any, comment: str, **limits: Any) -> Any:
    """A protocol key: its default, the one-line comment that notebooks show, its range."""
    return Field(default, description=comment, **limits)


class Protocol(Strict):
    """Everything that is the same for all methods on a data set; defaults are a smoke run of seconds."""

    dataset: str = _key("digits", "data set, or folder:PATH with one subfolder of images per class")
    protocol: str = _key("", "name of a further protocol on the data set; empty for its first one")
    seeds: Annotated[list[Seed], *Several] = _key([0], "one training run per seed")
    fold: Fold | None = _key(
        None, "None: test classes; 0, 1, ...: that validation fold of the training classes"
    )
    folds: int = _key(4, "class-disjoint validation folds", ge=2, le=1000)
    resize: Pixels = _key(8, "side of the stored square images, px")
    crop: Pixels = _key(8, "side of the network's input, px")
    trunk: Annotated[str, AfterValidator(check_trunk)] = _key(
        "convnet", "convnet, googlenet, or any model of timm"
    )
    weights: str = _key("none", "none, package, download, or a safetensors file of the data root")
    tf_padding: bool = _key(False, "TensorFlow padding and [-1, 1] inputs, for weights trained so")
    trained: str = _key("all", "all, head, or 'from block N'")
    pool: Literal["avg", "max", "avg+max", "gem", "flatten"] = _key(
        "avg", "avg, max, avg+max, gem, or flatten (keeps the map)"
    )
    freeze_bn: bool = _key(False, "keep BatchNorm statistics fixed")
    embedding_size: int = _key(32, "D", ge=1, le=65536)
    head_start: Literal["default", "pca"] = _key(
        "default", "default (random), or pca of the trunk's features"
    )
    head_norm: Literal["none", "batch"] = _key("none", "none, or batch: BatchNorm before the head")
    cached_views: int = _key(
        2, "cached augmentations per image under a frozen trunk part; 0 is no cache", ge=0, le=1000
    )
    flip: bool = _key(False, "augmentation: mirror")
    rotate: float = _key(0.0, "augmentation: largest rotation, degrees", ge=0, le=180)
    crop_area: PositiveShare = _key(
        1.0, "augmentation: smallest share of the area that a random crop keeps"
    )
    shift: Share = _key(0.0, "augmentation: largest shift, share of the side")
    label_noise: Momentum = _key(0.0, "track: share of the training labels made wrong")
    noise_kind: Literal["symmetric", "asymmetric"] = _key(
        "symmetric", "track: symmetric (any other class), asymmetric (a similar one)"
    )
    labelled_share: PositiveShare = _key(1.0, "track: share of each class that stays labelled")
    p: int = _key(5, "classes per batch", ge=2, le=10_000)
    k: int = _key(8, "images per class in a batch", ge=2, le=10_000)
    epochs: int = _key(1, "passes over the training set; the last one is tested", ge=1, le=100_000)
    lr: Rate = _key(1.0e-3, "learning rate of the head")
    trunk_lr: Rate = _key(1.0e-3, "learning rate of the trained trunk blocks")
    weight_decay: Rate = _key(1.0e-4, "of all network weights")
    optimiser: Literal["adamw", "sgd"] = _key("adamw", "adamw, or sgd with momentum 0.9")
    schedule: Literal["constant", "cosine"] = _key("constant", "constant, cosine")
    ks: Annotated[list[Neighbours], *Several] = _key([1, 2, 4, 8], "the K of R@K (hit rate)")
    nmi_seeds: int = _key(3, "k-means seeds that NMI is averaged over", ge=1, le=1000)
    epoch_scores: bool = _key(True, "store test scores after every epoch; they are never used")
    control_seeds: int = _key(
        1, "how many of the seeds the method's controls run on", ge=0, le=1000
    )
    gallery: Literal["embedded", "always", "never"] = _key(
        "embedded", "show images: embedded (embedded data sets only), always, never"
    )
    threads: int = _key(
        1, "CPU threads; results are bit-identical for the same number", ge=1, le=1024
    )
    device: Literal["cpu", "cuda"] = _key("cpu", "cpu or cuda")
    record: str = _key("", "where to write the JSON record; empty: do not write one")

    @model_validator(mode="after")
    def _crop_lies_in_the_image(self) -> Protocol:
        if self.crop > self.resize:
            raise StudyError(
                f"crop = {self.crop} px is larger than resize = {self.resize} px: raise resize."
            )
        return self

    @property
    def full_name(self) -> str:
        """The data set, and the protocol where it has a name, as the command line takes them."""
        return ".".join(filter(None, (self.dataset, self.protocol)))

    @property
    def augment(self) -> Augment:
        return Augment(self.flip, self.rotate, self.crop_area, self.shift)

    @property
    def track(self) -> Track:
        return Track(self.label_noise, self.noise_kind, self.labelled_share)

    @property
    def recipe(self) -> Recipe:
        names = "p", "k", "epochs", "lr", "trunk_lr", "weight_decay", "optimiser", "schedule"
        return Recipe(**{name: getattr(self, name) for name in names})


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
    known = {**Protocol.model_fields, **(own := _own_model(method)).model_fields}
    for name in given:
        if name not in known:
            raise unknown("parameter", name, known)
    plain = {name: plain_value(name, value) for name, value in given.items()}
    hyper = {name: plain.pop(name) for name in own.model_fields if name in plain}
    try:
        return Settings(method, Protocol(**plain), dict(own(**hyper)))
    except ValidationError as error:
        raise mistyped(error, plain | hyper, _schemas(method)) from None


def _own_model(method: str) -> type[Strict]:
    """A model of a method's hyperparameters, with the ranges of their annotations."""
    entries: dict[str, Any] = {
        name: (own.annotation, Field(own.default, description=own.comment))
        for name, own in hyperparameters(find_method(method)).items()
    }
    return create_model(method, __base__=Strict, **entries)


def _schemas(method: str) -> Schemas:
    """JSON schemas of a method's parameters by name, the protocol's first."""
    models = Protocol, _own_model(method)
    return {k: v for model in models for k, v in model.model_json_schema()["properties"].items()}


def short_name(dataset: str) -> str:
    """A data set's name in paths and records: its own; for folder:PATH the path's last part.

    >>> short_name("folder:my/photos/birds")
    'folder_birds'
    """
    kind, colon, path = dataset.partition(":")
    return f"{kind}_{Path(path).name}" if colon else dataset


def parameters_cell(method: str) -> str:
    """Source of the notebook's `parameters` cell: every parameter, its default, a one-line comment."""
    return "\n".join(_assignment(*entry) for entry in _schemas(method).items())


def _assignment(name: str, schema: Mapping[str, Any]) -> str:
    # Papermill does not understand unions in annotations, so "or None" goes into the comment.
    hint = f": {TYPES[schema['type']]}" if "type" in schema else ""
    default = schema["default"]
    # Strings in double quotes, as the formatter would have them.
    value = json.dumps(default, ensure_ascii=False) if isinstance(default, str) else repr(default)
    return f"{name}{hint} = {value}  # {schema['description']}"
