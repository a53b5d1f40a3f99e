"""Rows that compare a batch with learned or fixed vectors of each class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy import losses
from dmlstudy.methods.base import Batch, Method, TrainingSet
from dmlstudy.ranges import Count, NonNegative, Positive


class ProxyMethod(Method):
    """A loss of embeddings, labels and learned unit vectors of each class."""

    formula: ClassVar[Callable[..., Tensor]]
    argument: ClassVar[str] = "proxies"  # the loss's name for them
    term: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.parts = (cls.formula,)

    def build(self, training_set: TrainingSet) -> None:
        shape = self.proxy_shape(training_set.classes, self.network.embedding_size)
        self.proxies = nn.Parameter(F.normalize(torch.randn(shape), dim=-1))

    def proxy_shape(self, classes: int, size: int) -> tuple[int, ...]:
        """One vector per class, [C, D]."""
        return classes, size

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        proxies = F.normalize(self.proxies, dim=-1)
        return self.terms(self.embed(batch.images), batch.labels, proxies)

    def terms(self, embeddings: Tensor, labels: Tensor, proxies: Tensor) -> dict[str, Tensor]:
        """The loss's terms with unit proxies."""
        formula = self.configured(type(self).formula)
        return {self.term: formula(embeddings, labels, **{self.argument: proxies})}


class SoftTriple(ProxyMethod):
    """A softmax over classes of several centres; a regulariser lets centres of one class coincide.

    Verified in the authors' code: lam 20, gamma 0.1, tau 0.2, delta 0.01, K 10, start of the centres (uniform within
    1 / sqrt(C K), normalised only in the loss), learning rate 1e-2, Adam's eps 0.01. Not taken over: that eps for the
    network's own parameters, which the protocol optimises, and weight decay of the centres.

    Args:
        centres: K, centres per class.
        tau: weight of the regulariser.
        centre_lr: learning rate of the centres.
        centre_eps: Adam's eps for the centres; the larger, the slower they move.
    """

    number, title, kind = 15, "SoftTriple", "classification loss with learned centres"
    certainty = "high: read in the authors' code"
    formula, argument, term = losses.soft_triple, "centres", "softmax"
    controls = {
        "one centre (K = 1)": {"centres": 1},
        "no regulariser (tau = 0)": {"tau": 0.0},
        "faster centres (Adam's default eps)": {"centre_eps": 1e-8},
    }

    centres: Count = 10
    tau: NonNegative = 0.2
    centre_lr: NonNegative = 1e-2
    centre_eps: Positive = 0.01

    def build(self, training_set: TrainingSet) -> None:
        super().build(training_set)
        self.extra_lr = self.centre_lr
        bound = (training_set.classes * self.centres) ** -0.5
        nn.init.uniform_(self.proxies, -bound, bound)

    def param_groups(self, lr: float, trunk_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        *groups, centres = super().param_groups(lr, trunk_lr, weight_decay)
        return [*groups, centres | {"eps": self.centre_eps}]

    def proxy_shape(self, classes: int, size: int) -> tuple[int, ...]:
        return classes, self.centres, size

    def terms(self, embeddings: Tensor, labels: Tensor, proxies: Tensor) -> dict[str, Tensor]:
        softmax = super().terms(embeddings, labels, proxies)
        return softmax | {"regulariser": self.tau * losses.soft_triple_regulariser(proxies)}

    @torch.no_grad()
    def distinct_centres(self, threshold: float = 0.99) -> Tensor:
        """Centres that each class keeps, [C], when those more similar than `threshold` count as one."""
        w = F.normalize(self.proxies, dim=2)
        similar = torch.einsum("ckd,cld->ckl", w, w) > threshold
        # A centre is redundant if an earlier one of its class is (nearly) the same.
        earlier = torch.ones_like(similar).tril(-1)
        return (~(similar & earlier).any(2)).sum(1)


class UpperBound(Method):
    """Fixed centroids at the ends of the C axes, and a linear layer W that gives the output g = W f / |W f|.

    W has no bias, so that the unit embedding f alone decides g.

    The formula is verified by re-derivation: for classes of equal size it equals the sum over all triplets. That
    output layer, L2-normalised, is in a third-party implementation, which squares the distances although the bound
    then fails. Our choice: images are retrieved by f, the layer before the output, since the output has as many
    coordinates as there are training classes (5 here, 11318 there); the bound holds for g. The layer's learning
    rate is a default, unverified.

    Args:
        centroids: one-hot (equidistant), random, or trained from one-hot on.
        layer_lr: learning rate of the output layer W, and of trained centroids.
        bounded: the loss that it bounds, instead (control).
    """

    number, title = 1, "Upper bound (discriminative)"
    kind = "classification loss with fixed centroids"
    certainty = (
        "high for the loss: re-derived and checked against all triplets; medium for the recipe"
    )
    parts = (losses.upper_bound,)
    controls = {
        "the triplet loss that it bounds": {"bounded": True},
        "trained centroids": {"centroids": "trained"},
        "random centroids": {"centroids": "random"},
        "squared distances": {"squared": True},
    }

    centroids: Literal["one-hot", "random", "trained"] = "one-hot"
    layer_lr: NonNegative = 1e-2
    bounded: bool = False

    def build(self, training_set: TrainingSet) -> None:
        self.extra_lr, classes = self.layer_lr, training_set.classes
        self.layer = nn.Linear(self.network.embedding_size, classes, bias=False)
        random = self.centroids == "random"
        axes = F.normalize(torch.randn(classes, classes)) if random else torch.eye(classes)
        self.axes: Tensor  # [C, C]
        if self.centroids == "trained":
            self.axes = nn.Parameter(axes)
        else:
            # One-hot centroids follow from C, so a checkpoint need not carry C^2 numbers.
            self.register_buffer("axes", axes, persistent=random)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        g, y = self.output(self.embed(batch.images)), batch.labels
        if self.bounded:
            return {"triplets": losses.triplet_without_margin(g, y)}
        loss = self.configured(losses.upper_bound)
        return {"upper bound": loss(g, y, centroids=F.normalize(self.axes))}

    def output(self, f: Tensor) -> Tensor:
        """The unit output g, [B, C], that the loss sees of embeddings f, [B, D]."""
        return F.normalize(self.layer(f))
