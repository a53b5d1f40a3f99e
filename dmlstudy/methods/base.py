"""The method interface: what a row of the results table may decide for itself, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy.data import Inputs
from dmlstudy.errors import StudyError, unknown
from dmlstudy.geometry import pairwise_similarity
from dmlstudy.heads import embed_branches
from dmlstudy.memory import Memory
from dmlstudy.methods.hyperparameters import hyperparameters, keywords
from dmlstudy.networks import Network
from dmlstudy.ranges import Positive
from dmlstudy.samplers import pk_batches


@dataclass
class Batch:
    """One training step's input.

    Attributes:
        images: [V*B, C, H, W], view-major, or cached trunk activations.
        labels: int64 [V*B], training-class ids 0..C-1.
        indices: int64 [V*B], positions in the training set.
        tag: what `batches` attached to this batch: cluster, learner, phase.

    Raises:
        StudyError: labels that are not one whole number per image.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    tag: int = 0

    def __post_init__(self) -> None:
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise StudyError(
                f"A batch of {len(self.images)} images needs as many labels, int64 [{len(self.images)}], not "
                f"{str(self.labels.dtype).removeprefix('torch.')} {list(self.labels.shape)}: flatten them."
            )


@dataclass(frozen=True)
class TrainingSet:
    """What a method may know in advance: training classes C, training images N, epochs, a group name per class."""

    classes: int
    images: int
    epochs: int
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Epoch:
    """What the batches of an epoch are made from.

    Attributes:
        number: from 0.
        labels: int [N], of the training images; -1 is unlabelled.
        p, k: classes per batch, images per class.
        rng: the only source of randomness.
        embed_all: costs a pass over the training set, and runs only if called.
    """

    number: int
    labels: np.ndarray
    p: int
    k: int
    rng: np.random.Generator
    embed_all: EmbedAll


class Method(nn.Module):
    """A row of the results table. What is not overridden is identical for all rows.

    Hyperparameters are the keyword-only arguments of `parts` (losses, miners, ...) and the annotated attributes of
    the class; each is an attribute of the object. Their defaults and one-line comments are read off signatures and
    docstrings, the citation off the first docstring that has one.

    Args:
        network: trunk and head; its frozen part may have been split off and cached.
        training_set: numbers of training classes, images and epochs.
        hyper: hyperparameters by name; those left out keep their defaults.

    Raises:
        StudyError: an unknown hyperparameter.
    """

    number: ClassVar[int]  # of the method's card, and of its notebook
    title: ClassVar[str]
    kind: ClassVar[str]
    certainty: ClassVar[str]
    parts: ClassVar[tuple[Callable[..., Any], ...]] = ()
    # Control experiments: a name, and the hyperparameters and track keys that make it.
    controls: ClassVar[dict[str, dict[str, Any]]] = {}
    # A method that is trained first, on the same seed, and handed to `learn_from`: its name, its hyperparameters.
    teacher: ClassVar[tuple[str, dict[str, Any]] | None] = None
    # Hyperparameters of its untrained trunk, where the embedding needs parts that only training makes.
    start: ClassVar[dict[str, Any]] = {}

    views: ClassVar[int] = 1  # augmented views per image
    asymmetric: ClassVar[bool] = False  # queries and gallery are embedded differently
    unit: bool = True  # embeddings are L2-normalised
    head_scale: Positive = 1.0  # factor on the head's output, for rows that leave the length free
    extra_lr: float = 1e-2  # learning rate of parameters that are not the network's
    least_steps: int = 1  # of training; with fewer, a phase of the method would never run

    def __init__(self, network: Network, training_set: TrainingSet, **hyper: Any):
        super().__init__()
        self.network = network
        self.branches = nn.ModuleList()  # further heads, trained as the network's own
        known = hyperparameters(type(self))
        for name in hyper:
            if name not in known:
                raise unknown("hyperparameter", name, known)
        for name, parameter in known.items():
            setattr(self, name, hyper.get(name, parameter.default))
        network.head.scale = self.head_scale
        self.build(training_set)

    def build(self, training_set: TrainingSet) -> None:
        """Parameters, buffers and parts of the method's own."""

    def configured(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A loss, miner or other part with this method's hyperparameters."""
        names = keywords(function)
        return partial(function, **{n: getattr(self, n) for n in names if hasattr(self, n)})

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        """Yield (indices, tag) for every step of an epoch."""
        for indices in pk_batches(epoch.labels, epoch.p, epoch.k, epoch.rng):
            yield indices, 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named terms; the loop logs each and back-propagates the sum."""
        raise NotImplementedError

    def learn_from(self, teacher: Method) -> None:
        """Take the trained `teacher`, before training and again before resuming; not part of the state."""

    def own_controls(self) -> dict[str, dict[str, Any]]:
        """The controls that this network can run."""
        return self.controls

    def after_step(self) -> None:
        """State that is not gradient descent: EMA teachers, centroids, queues."""

    def phases(self) -> dict[str, int]:
        """How often each part of a schedule of the method's own has run; {} without such a schedule."""
        return {}

    def caveat(self) -> tuple[str, str] | None:
        """What the data kept the method from learning, in English and in Chinese, for verdict and tables."""
        return None

    def after_epoch(self, epoch: Epoch) -> None:
        """What is computed from the training set as it is after the last step."""

    def embed(self, images: Tensor, role: str = "query") -> Tensor:
        """Embedding [B, D] at training and test time; `role` is "query" or "gallery"."""
        z = embed_branches(self.network, self.branches, images)
        return F.normalize(z) if self.unit else z

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Similarity [Q, G] of queries and gallery at test time; larger is nearer."""
        return pairwise_similarity(queries, gallery)

    def param_groups(self, lr: float, trunk_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Every trainable tensor exactly once: trunk, heads, and the method's own (never decayed)."""
        trunk = [*self.network.trained.parameters(), *self.network.pool.parameters()]
        heads = [*self.network.head.parameters(), *self.branches.parameters()]
        groups = [
            {"params": trunk, "lr": trunk_lr, "weight_decay": weight_decay},
            {"params": heads, "lr": lr, "weight_decay": weight_decay},
            {"params": self.extra_parameters(), "lr": self.extra_lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def extra_parameters(self) -> list[nn.Parameter]:
        """Those that are neither the network's nor of a further head: proxies, generators, codebooks."""
        known = {id(p) for module in (self.network, self.branches) for p in module.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in known]


class EmbedAll:
    """Runs a function (`method.embed` when left out) over all images of one role as at test time, in order."""

    def __init__(self, method: Method, inputs: Inputs, device: str = "cpu", step: int = 256):
        self.method, self.inputs, self.device, self.step = method, inputs, device, step

    @torch.inference_mode()
    def __call__(self, function: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        self.method.eval()
        function = function or self.method.embed
        blocks = torch.arange(len(self.inputs)).split(self.step)
        return torch.cat(
            [function(self.inputs.test_inputs(b).to(self.device)).cpu() for b in blocks]
        )


SEAMS = {
    "batches": "batch composition",
    "learn_from": "a teacher, trained first",
    "after_step": "state besides gradient descent",
    "embed": "embedding",
    "similarity": "ranking distance",
    "param_groups": "parameter groups",
}


def deviations(method: Method) -> list[str]:
    """Where a method departs from the protocol, read off its class and parameters, not declared."""
    kind = type(method)
    departures = [
        name for seam, name in SEAMS.items() if getattr(kind, seam) is not getattr(Method, seam)
    ]
    if kind.views != Method.views:
        departures.append(f"{kind.views} views per image")
    if kind.asymmetric:
        departures.append("queries and gallery embedded differently")
    if not method.unit:
        factor = f", times {method.head_scale:g}" if method.head_scale != 1 else ""
        departures.append(f"embeddings not normalised{factor}")
    if method.branches:
        departures.append(f"{1 + len(method.branches)} branches, each with its own head")
    if any(isinstance(module, Memory) for module in method.modules()):
        departures.append("a memory of past batches")
    if method.extra_parameters():
        departures.append(f"own parameters (learning rate {method.extra_lr:g})")
    if caveat := method.caveat():
        departures.append(caveat[0])
    return departures
