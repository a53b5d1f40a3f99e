"""Rows that learn from synthetic embeddings, and the generator that they share."""

from __future__ import annotations

from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dmlstudy import losses
from dmlstudy.geometry import pairwise_cosine
from dmlstudy.methods.base import Batch, Method, TrainingSet
from dmlstudy.ranges import Count, NonNegative, Positive, Share


def generator(embedding_size: int, hidden: int, feature_size: int) -> nn.Sequential:
    """From embeddings to features. It only ever sees training batches, so BatchNorm needs no running statistics."""
    return nn.Sequential(
        nn.Linear(embedding_size, hidden),
        nn.ReLU(),
        nn.BatchNorm1d(hidden, track_running_stats=False),
        nn.Linear(hidden, feature_size),
    )


def frozen(module: nn.Module, x: Tensor) -> Tensor:
    """The module's output, from which gradients reach x but not its weights."""
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return functional_call(module, weights, (x,))


# Columns of HDML's history; the last four are mean distances from the anchor to its positive and to its negatives.
HISTORY = (
    "J_m",
    "J_gen",
    "kept share",
    "weight",
    "positive",
    "real",
    "interpolated",
    "synthetic",
)


class HDML(Method):
    """Negatives are moved towards their anchor, made plausible by a generator, and embedded again.

    J = w J_m + (1 - w) J_syn, w = e^(-beta / J_gen): N-pair on real tuples, and on synthetic ones (anchor, positive
    and moved negatives, all through z -> head(generator(z))). A negative keeps e^(-alpha / J_m) of its lead.
    The generator learns J_gen = (1 - lam) mean (y - y')^2 + lam kappa (CE(moved) + CE(anchors)), with y the trunk's
    features, y' = generator(z), and CE by a linear classifier that learns from real y. J_m and J_gen in the exponents
    are means over the last complete window of steps; before the first one the loss is plain N-pair.

    One optimiser, but gradients as of the authors' three: network on J, through the generator's activations but not
    into its weights; generator on J_gen; classifier on its own CE.

    Verified in the authors' code: the above, the generator (whose BatchNorm sees the anchors twice), l2 (Cars; 1.5e-2
    on CUB), lam, both own learning rates. Rescaled: their
    J_gen is a sum over 128 x 1024 features; with means, beta and kappa are theirs divided by that. Ours: alpha (theirs,
    90, is tied to the weight decay inside their J_m, which is weighted, too), the window (theirs has 64 of 8000 steps),
    all K/2 pairs of a class in turn instead of K = 2. Left out: BatchNorm before the head, which the protocol fixes.

    Args:
        alpha: rate at which negatives move; larger is harder sooner.
        beta: rate at which synthetic tuples take over.
        lam: trade-off between reconstruction and cross-entropy.
        kappa: weight of the cross-entropy.
        window: steps that the running means are taken over.
        hidden: width of the generator.
        synthesis: generated, or for controls interpolated (no generator) or none.
        generator_lr: learning rate of the generator.
        classifier_lr: learning rate of the classifier.
        head_scale: factor on the head's output, for embeddings of free length.
    """

    number, title, kind = 14, "HDML", "N-pair loss with generated hard negatives"
    certainty = "high: read in the authors' code; alpha is ours, beta and kappa rescaled"
    parts = (losses.interpolate_negatives, losses.npair_tuples)
    controls = {
        "interpolated negatives, no generator": {"synthesis": "interpolated"},
        "plain N-pair": {"synthesis": "none"},
    }
    unit = False

    l2 = 3e-3
    alpha: NonNegative = 1.0
    beta: NonNegative = 0.076
    lam: Share = 0.5
    kappa: NonNegative = 0.076
    window: Count = 8
    hidden: Count = 512
    synthesis: Literal["generated", "interpolated", "none"] = "generated"
    generator_lr: NonNegative = 1e-2
    classifier_lr: NonNegative = 1e-3
    head_scale: Positive = 1.0

    def build(self, training_set: TrainingSet) -> None:
        self.extra_lr = self.generator_lr
        self.history: list[list[float]] = []  # a row per step; the running means are read off it
        self._row: Tensor | None = None
        if self.synthesis != "none":
            self.least_steps = self.window + 1
            # "interpolated" needs both as well: J_gen sets the weight of its synthetic tuples.
            sizes = self.network.embedding_size, self.hidden, self.network.feature_size
            self.generator = generator(*sizes)
            self.classifier = nn.Linear(self.network.feature_size, training_set.classes)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        y = self.network.features(batch.images)
        z = self.network.head(y)
        npair = self.configured(losses.npair_tuples)
        self._row = None
        pairs = losses.pair_indices(batch.labels)
        if pairs.shape[1] < 2:
            return {"npair": z.sum() * 0}
        anchors, positives = z[pairs].unbind(2)
        real = positives[:, None].expand(-1, pairs.shape[1], -1, -1)
        j_m = npair(anchors, real)
        if self.synthesis == "none":
            return {"npair": j_m}
        kept, weight = self.adaptive_weights()
        moved = losses.interpolate_negatives(
            anchors[:, :, None], positives[:, :, None], real, kept_share=kept
        )
        # Anchors once more, as in the authors' code: its BatchNorm weighs them twice.
        given = torch.cat([z, anchors.flatten(0, 1), moved.flatten(0, 2)])
        sizes = len(z), anchors.shape[:2].numel(), moved.shape[:3].numel()
        synthetic = anchors, moved
        if self.synthesis == "generated":
            _, again, others = self.network.head(frozen(self.generator, given)).split(sizes)
            synthetic = again.view_as(anchors), others.view_as(moved)
        generated = self.generator(given.detach()).split(sizes)
        j_gen = self._generator_loss(generated, y.detach(), batch.labels[pairs[..., 0]])
        distances = _distances((anchors, real), (anchors, moved), synthetic)
        self._row = torch.stack([j_m, j_gen, *z.new_tensor([kept, weight]), *distances]).detach()
        return {
            "npair": weight * j_m,
            "synthetic": (1 - weight) * npair(*synthetic),
            "generator": j_gen,
            "classifier": F.cross_entropy(self.classifier(y.detach()), batch.labels),
        }

    def phases(self) -> dict[str, int]:
        if self.synthesis == "none":
            return {}
        plain = min(self.window, len(self.history))
        return {"plain steps": plain, "steps with synthetic tuples": len(self.history) - plain}

    def after_step(self) -> None:
        if self._row is not None:
            self.history.append(self._row.tolist())

    def adaptive_weights(self) -> tuple[float, float]:
        """Share of its lead that a negative keeps, e^(-alpha / J_m), and weight of real tuples, e^(-beta / J_gen)."""
        complete = len(self.history) // self.window * self.window
        if not complete:
            return 1.0, 1.0
        j_m, j_gen, *_ = zip(*self.history[complete - self.window : complete], strict=True)
        weight = losses.exponential_weight
        return weight(self.alpha, fmean(j_m)), weight(self.beta, fmean(j_gen))

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return pairwise_cosine(queries, gallery)

    def param_groups(self, lr: float, trunk_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        groups = super().param_groups(lr, trunk_lr, weight_decay)
        if self.synthesis != "none":
            own = groups.pop()
            groups.append(own | {"params": list(self.generator.parameters())})
            classifier = list(self.classifier.parameters())
            groups.append(own | {"params": classifier, "lr": self.classifier_lr})
        return groups

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.history, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.history = state.tolist()

    def _generator_loss(self, generated: tuple[Tensor, ...], y: Tensor, classes: Tensor) -> Tensor:
        """J_gen: all images are reconstructed; anchors and moved negatives keep their class.

        Args:
            generated: from the images' embeddings [B, F], from anchors [R P, F], from moved negatives [R P P, F].
            y: features [B, F].
            classes: of the anchors, [R, P].
        """
        images, anchors, moved = generated
        reconstruction = (images - y).square().mean()
        own, others = (frozen(self.classifier, x) for x in (anchors, moved))
        kept = classes[:, None].expand(
            -1, classes.shape[1], -1
        )  # negative j is of anchor j's class
        entropy = F.cross_entropy(others, kept.flatten())
        entropy = entropy + F.cross_entropy(own, classes.flatten())
        return (1 - self.lam) * reconstruction + self.lam * self.kappa * entropy


def _distances(*tuples: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Mean distance from anchors to their positives in the first kind of tuples, and to negatives in each kind."""
    apart = [(candidates - anchors[:, :, None]).norm(dim=-1) for anchors, candidates in tuples]
    itself = torch.eye(apart[0].shape[1], dtype=torch.bool, device=apart[0].device)
    return [apart[0][:, itself].mean(), *(d[:, ~itself].mean() for d in apart)]
