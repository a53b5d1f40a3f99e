"""Card 14: HDML, synthetic negatives that grow harder as training converges."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dmlstudy.errors import unknown
from dmlstudy.geometry import pairwise_similarity
from dmlstudy.losses.hdml import (
    exponential_weight,
    interpolate_negatives,
    npair_tuples,
    pair_indices,
)
from dmlstudy.methods.base import Batch, Method, Task
from dmlstudy.networks import Network

SYNTHESIS = ("generated", "pulled", "none")
# Columns of `trace`; the last four are mean distances from the anchor to its positive and to its negatives.
TRACE = ("J_m", "J_gen", "keep", "weight", "positive", "real", "pulled", "synthetic")


class HDML(Method):
    """Negatives are pulled towards their anchor, made plausible by a generator, and embedded again.

    J = w J_m + (1 - w) J_syn, w = e^(-beta / J_gen): N-pair on real tuples, and on synthetic ones (anchor, positive
    and pulled negatives, all through z -> head(generator(z))). The pull keeps e^(-alpha / J_m) of a negative's lead.
    The generator learns J_gen = (1 - lam) mean (y - y')^2 + lam kappa (CE(pulled) + CE(anchors)), with y the trunk's
    features, y' = generator(z), and CE by a linear classifier that learns from real y. J_m and J_gen in the exponents
    are means over the last complete block of steps; before the first one the loss is plain N-pair.

    One optimiser, but gradients as of the authors' three: network on J, through the generator's activations but not
    into its weights; generator on J_gen; classifier on its own CE.

    Verified in the authors' code: the above, the generator, l2 (Cars), lam, both own learning rates. Rescaled: their
    J_gen is a sum over 128 x 1024 features; with means, beta and kappa are theirs divided by that. Ours: alpha (theirs,
    90, is tied to the weight decay inside their J_m, which is weighted, too), the block (theirs has 64 of 8000 steps),
    all K/2 pairs of a class in turn instead of K = 2. Left out: BatchNorm before the head, which the protocol fixes.

    Args:
        alpha: rate of the pull; larger is harder sooner.
        beta: rate at which synthetic tuples take over.
        lam: trade-off between reconstruction and cross-entropy.
        kappa: weight of the cross-entropy.
        l2: weight of N-pair's penalty on squared lengths.
        block: steps that the running means are taken over.
        hidden: width of the generator.
        synthesis: generated, or for controls pulled (no generator) or none.
        generator_lr: learning rate of the generator.
        classifier_lr: learning rate of the classifier.
    """

    title = "HDML"
    card = "14"
    paper = "Zheng, Chen, Lu, Zhou, Hardness-Aware Deep Metric Learning, CVPR 2019"
    kind = "N-pair loss with generated hard negatives"
    certainty = "high: read in the authors' code; alpha is ours, beta and kappa rescaled"
    controls = {
        "pulled negatives, no generator": {"synthesis": "pulled"},
        "plain N-pair": {"synthesis": "none"},
    }
    unit = False

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        alpha: float = 1.0,
        beta: float = 0.076,
        lam: float = 0.5,
        kappa: float = 0.076,
        l2: float = 3e-3,
        block: int = 8,
        hidden: int = 512,
        synthesis: str = "generated",
        generator_lr: float = 1e-2,
        classifier_lr: float = 1e-3,
    ):
        super().__init__(network, task)
        if synthesis not in SYNTHESIS:
            raise unknown("synthesis", synthesis, SYNTHESIS)
        self.alpha, self.beta, self.lam, self.kappa, self.l2 = alpha, beta, lam, kappa, l2
        self.block, self.synthesis = block, synthesis
        self.own_lr, self.classifier_lr = generator_lr, classifier_lr
        self.trace: list[list[float]] = []  # a row per step; the running means are read off it
        self._row: Tensor | None = None
        if synthesis != "none":
            # "pulled" needs both as well: J_gen sets the weight of its synthetic tuples.
            self.generator = _generator(network.embedding_size, hidden, network.feature_size)
            self.classifier = nn.Linear(network.feature_size, task.classes)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        y = self.network.features(batch.images)
        z = self.network.head(y)
        self._row = None
        pairs = pair_indices(batch.labels)
        if pairs.shape[1] < 2:
            return {"npair": z.sum() * 0}
        anchors, positives = z[pairs].unbind(2)
        real = positives[:, None].expand(-1, pairs.shape[1], -1, -1)
        j_m = npair_tuples(anchors, real, l2=self.l2)
        if self.synthesis == "none":
            return {"npair": j_m}
        keep, weight = self.adaptive_weights()
        pulled = interpolate_negatives(
            anchors[:, :, None], positives[:, :, None], real, kept_share=keep
        )
        synthetic = anchors, pulled
        if self.synthesis == "generated":
            again = self.network.head(_frozen(self.generator, torch.cat([z, pulled.flatten(0, 2)])))
            synthetic = again[pairs[..., 0]], again[len(z) :].view_as(pulled)
        j_gen = self._generator_loss(y.detach(), z.detach(), pulled.detach(), pairs, batch.labels)
        distances = _distances((anchors, real), (anchors, pulled), synthetic)
        self._row = torch.stack([j_m, j_gen, *z.new_tensor([keep, weight]), *distances]).detach()
        return {
            "npair": weight * j_m,
            "synthetic": (1 - weight) * npair_tuples(*synthetic, l2=self.l2),
            "generator": j_gen,
            "classifier": F.cross_entropy(self.classifier(y.detach()), batch.labels),
        }

    def after_step(self) -> None:
        if self._row is not None:
            self.trace.append(self._row.tolist())

    def adaptive_weights(self) -> tuple[float, float]:
        """What the pull keeps, e^(-alpha / J_m), and the weight of real tuples, e^(-beta / J_gen)."""
        complete = len(self.trace) // self.block * self.block
        if not complete:
            return 1.0, 1.0
        j_m, j_gen, *_ = zip(*self.trace[complete - self.block : complete], strict=True)
        return exponential_weight(self.alpha, fmean(j_m)), exponential_weight(
            self.beta, fmean(j_gen)
        )

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return pairwise_similarity(F.normalize(queries), F.normalize(gallery))

    def param_groups(self, lr: float, trunk_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        groups = super().param_groups(lr, trunk_lr, weight_decay)
        if self.synthesis != "none":
            own = groups.pop()
            groups.append(own | {"params": list(self.generator.parameters())})
            classifier = list(self.classifier.parameters())
            groups.append(own | {"params": classifier, "lr": self.classifier_lr})
        return groups

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.trace, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.trace = state.tolist()

    def _generator_loss(
        self, y: Tensor, z: Tensor, pulled: Tensor, pairs: Tensor, labels: Tensor
    ) -> Tensor:
        """J_gen: all images are reconstructed; pulled negatives and anchors keep their class."""
        generated = self.generator(torch.cat([z, pulled.flatten(0, 2)]))
        reconstruction = (generated[: len(z)] - y).square().mean()
        logits = _frozen(self.classifier, generated)
        anchors = pairs[..., 0]
        classes = labels[anchors]
        kept = classes[:, None].expand(pulled.shape[:3])  # negative j is of anchor j's class
        entropy = F.cross_entropy(logits[len(z) :], kept.flatten())
        entropy = entropy + F.cross_entropy(logits[anchors.flatten()], classes.flatten())
        return (1 - self.lam) * reconstruction + self.lam * self.kappa * entropy


def _generator(embedding_size: int, hidden: int, feature_size: int) -> nn.Sequential:
    """From embeddings to features. It only ever sees training batches, so BatchNorm needs no running statistics."""
    return nn.Sequential(
        nn.Linear(embedding_size, hidden),
        nn.ReLU(),
        nn.BatchNorm1d(hidden, track_running_stats=False),
        nn.Linear(hidden, feature_size),
    )


def _frozen(module: nn.Module, x: Tensor) -> Tensor:
    """The module's output, from which gradients reach x but not its weights."""
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return functional_call(module, weights, (x,))


def _distances(*tuples: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Mean distance from anchors to their positives in the first kind of tuples, and to negatives in each kind."""
    apart = [(candidates - anchors[:, :, None]).norm(dim=-1) for anchors, candidates in tuples]
    itself = torch.eye(apart[0].shape[1], dtype=torch.bool, device=apart[0].device)
    return [apart[0][:, itself].mean(), *(d[:, ~itself].mean() for d in apart)]
