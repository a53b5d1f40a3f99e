"""The method interface: what a row of the results table may decide for itself, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy.data import pk_batches
from dmlstudy.geometry import pairwise_similarity
from dmlstudy.networks import Network


@dataclass
class Batch:
    """One training step's input.

    Attributes:
        images: [V*B, C, H, W], view-major, or cached trunk activations.
        labels: int64 [V*B], training-class ids 0..C-1.
        indices: int64 [V*B], positions in the training set.
        tag: what `plan` attached to this batch: cluster, learner, phase.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    tag: int = 0


@dataclass(frozen=True)
class Task:
    """What a method may know in advance: training classes C, training images N, epochs, and class groups.

    Attributes:
        groups: group name of each class, () where the data set has none.
    """

    classes: int
    images: int
    epochs: int
    groups: tuple[str, ...] = ()


class EmbedAll(Protocol):
    """Runs a function (`method.embed` when left out) over all training images, unaugmented, in order."""

    def __call__(self, function: Callable[[Tensor], Tensor] | None = None) -> Tensor: ...


class Method(nn.Module):
    """A row of the results table. What is not overridden is identical for all rows.

    Class attributes describe the paper; the constructor's keyword-only arguments are the method's
    hyperparameters, with the paper's names and defaults.

    Args:
        network: trunk and head; its lower part may have been split off and cached.
        task: numbers of training classes, images and epochs.
    """

    title: ClassVar[str]
    card: ClassVar[str]  # number of the method's card, and of its notebook
    paper: ClassVar[str]
    kind: ClassVar[str]
    certainty: ClassVar[str]
    # Control experiments: a name, and the hyperparameters that make it.
    controls: ClassVar[dict[str, dict[str, Any]]] = {}

    # A method that is trained first, on the same seed, and handed to `learn_from`: its name, its hyperparameters.
    teacher: ClassVar[tuple[str, dict[str, Any]] | None] = None

    views = 1  # augmented views per image
    asymmetric = False  # queries and gallery are embedded differently
    own_lr = 1e-2  # learning rate of parameters that are not the network's
    unit = True  # embeddings are L2-normalised

    def __init__(self, network: Network, task: Task):
        super().__init__()
        self.network = network

    def plan(
        self,
        epoch: int,
        labels: np.ndarray,
        p: int,
        k: int,
        rng: np.random.Generator,
        embed_all: EmbedAll,
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Yield (indices, tag) for every step of an epoch; `embed_all` costs a pass and runs only if called."""
        for indices in pk_batches(labels, p, k, rng):
            yield indices, 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named terms; the loop logs each and back-propagates the sum."""
        raise NotImplementedError

    def learn_from(self, teacher: Method) -> None:
        """Take the trained `teacher`, before training and again before resuming; not part of the state."""

    def after_step(self) -> None:
        """State that is not gradient descent: EMA teachers, centroids, queues."""

    def embed(self, images: Tensor, role: str = "query") -> Tensor:
        """Embedding [B, D] at training and test time; `role` is "query" or "gallery"."""
        z = self.network(images)
        return F.normalize(z) if self.unit else z

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """How near [Q, G] each gallery embedding is to each query at test time; larger is nearer."""
        return pairwise_similarity(queries, gallery)

    def param_groups(self, lr: float, trunk_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Every trainable tensor exactly once: trunk, head, and the method's own (never decayed)."""
        trunk = [*self.network.upper.parameters(), *self.network.pool.parameters()]
        head = [*self.network.head.parameters(), *self.network.branch_heads.parameters()]
        network = {id(parameter) for parameter in self.network.parameters()}
        own = [parameter for parameter in self.parameters() if id(parameter) not in network]
        groups = [
            {"params": trunk, "lr": trunk_lr, "weight_decay": weight_decay},
            {"params": head, "lr": lr, "weight_decay": weight_decay},
            {"params": own, "lr": self.own_lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


SEAMS = {
    "plan": "batch composition",
    "learn_from": "a teacher, trained first",
    "after_step": "state besides gradient descent",
    "embed": "embedding",
    "similarity": "ranking distance",
    "param_groups": "parameter groups",
}


def deviations(method: Method) -> list[str]:
    """Where a method departs from the protocol, read off its class and parameters, not declared."""
    kind = type(method)
    found = [
        name for seam, name in SEAMS.items() if getattr(kind, seam) is not getattr(Method, seam)
    ]
    if kind.views != Method.views:
        found.append(f"{kind.views} views per image")
    if kind.asymmetric:
        found.append("queries and gallery embedded differently")
    if not method.unit:
        found.append("embeddings not normalised")
    if method.network.branch_heads:
        found.append(f"{1 + len(method.network.branch_heads)} branches, each with its own head")
    network = {id(parameter) for parameter in method.network.parameters()}
    if any(id(parameter) not in network for parameter in method.parameters()):
        found.append(f"own parameters (learning rate {method.own_lr:g})")
    return found
