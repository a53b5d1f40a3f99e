"""Card 14: HDML, synthetic negatives that grow harder as training converges."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dmlstudy.errors import unknown
from dmlstudy.geometry import pairwise_similarity
from dmlstudy.losses.hdml import fading, npair_tuples, pair_indices, pull
from dmlstudy.methods.base import Batch, Method, Task
from dmlstudy.networks import Network

SYNTHESIS = ("generated", "pulled", "none")


class HDML(Method):
    """Negatives are pulled towards their anchor, made plausible by a generator, and embedded again.

    J = w J_m + (1 - w) J_syn, w = e^(-beta / J_gen): N-pair on real tuples, and on synthetic ones (anchor, positive
    and pulled negatives, all through z -> head(generator(z))). The pull keeps e^(-alpha / J_avg) of a negative's lead.
    The generator learns J_gen = (1 - lam) mean (y - y')^2 + lam kappa (CE(pulled) + CE(anchors)), with y the trunk's
    features, y' = generator(z), and CE by a linear classifier that learns from real y. J_avg and J_gen in the weights
    are means over the last complete block of steps; before the first one the loss is plain N-pair.

    One optimiser, but gradients as of the authors' three: network on J, through the generator's activations but not
    into its weights; generator on J_gen; classifier on its own CE.

    Verified in the authors' code: the above, generator FC-ReLU-BN-FC, hidden, l2 (Cars), lam, both own learning
    rates, cosine ranking of an embedding that is trained raw. Rescaled: their J_gen is summed over 128 x 1024
    features; with means, beta and kappa are theirs divided by that. Ours: alpha (theirs, 90, is tied to the weight
    decay inside their J_m; our J_avg is N-pair alone, unweighted), the block (theirs has 64 of 8000 steps), and all K/2
    pairs of a class, in turn, instead of K = 2. Left out: BN before the head, which the protocol fixes.

    Args:
        alpha: rate of the pull; larger is harder sooner.
        beta: rate at which synthetic tuples take over.
        lam: trade-off between reconstruction and cross-entropy.
        kappa: weight of the cross-entropy.
        l2: weight of N-pair's penalty on squared lengths.
        block: steps that the running means are taken over.
        hidden: width of the generator.
        synthesis: "generated"; "pulled" (control: pulled negatives themselves; the generator sets the weights
            only); or "none" (control: plain N-pair).
        generator_lr: learning rate of the generator.
        classifier_lr: learning rate of the classifier.
    """

    title = "HDML"
    card = "14"
    paper = "Zheng, Chen, Lu, Zhou, Hardness-Aware Deep Metric Learning, CVPR 2019"
    kind = "N-pair loss with generated hard negatives"
    certainty = "high: read in the authors' code; alpha is ours, beta and kappa rescaled"
    controls = {
        "pulled negatives, not generated": {"synthesis": "pulled"},
        "no synthesis: plain N-pair": {"synthesis": "none"},
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
        # One row per step: J_m, J_gen and mean distances from the anchor; the running means are read off it.
        self.trace: list[list[float]] = []
        self._latest: Tensor | None = None
        if synthesis != "none":
            self.generator = _generator(network.embedding_size, hidden, network.feature_size)
            self.classifier = nn.Linear(network.feature_size, task.classes)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        y = self.network.features(batch.images)
        z = self.network.head(y)
        self._latest = None
        pairs = pair_indices(batch.labels)
        if pairs.shape[1] < 2:
            return {"npair": z.sum() * 0}
        anchors, positives = z[pairs].unbind(2)
        real = positives[:, None].expand(-1, len(pairs[0]), -1, -1)
        j_m = npair_tuples(anchors, real, l2=self.l2)
        if self.synthesis == "none":
            return {"npair": j_m}
        keep, weight = self.adaptive_weights()
        pulled = pull(anchors[:, :, None], positives[:, :, None], real, keep)
        synthetic = self._synthesise(z, pairs, pulled)
        j_syn = npair_tuples(*synthetic, l2=self.l2)
        j_gen = self._generator_loss(y.detach(), z.detach(), pairs, pulled.detach(), batch.labels)
        found = torch.stack([j_m, j_gen]).detach()
        self._latest = torch.cat([found, _distances(anchors, real, pulled, synthetic)])
        return {
            "npair": weight * j_m,
            "synthetic": (1 - weight) * j_syn,
            "generator": j_gen,
            "classifier": F.cross_entropy(self.classifier(y.detach()), batch.labels),
        }

    def after_step(self) -> None:
        if self._latest is not None:
            self.trace.append(self._latest.tolist())

    def adaptive_weights(self, steps: int | None = None) -> tuple[float, float]:
        """What the pull keeps, e^(-alpha / J_avg), and the weight of real tuples, e^(-beta / J_gen).

        Args:
            steps: after that many steps; left out, now.
        """
        complete = (len(self.trace) if steps is None else steps) // self.block * self.block
        last = self.trace[complete - self.block : complete] if complete else [[math.inf] * 2]
        j_avg, j_gen = (sum(row[i] for row in last) / len(last) for i in range(2))
        return fading(self.alpha, j_avg), fading(self.beta, j_gen)

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return pairwise_similarity(F.normalize(queries), F.normalize(gallery))

    def param_groups(self, lr: float, trunk_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        groups = super().param_groups(lr, trunk_lr, weight_decay)
        if self.synthesis == "none":
            return groups
        *network, own = groups
        generator = own | {"params": list(self.generator.parameters())}
        classifier = {"params": list(self.classifier.parameters()), "lr": self.classifier_lr}
        return [*network, generator, own | classifier]

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.trace, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.trace = state.tolist()

    def _synthesise(self, z: Tensor, pairs: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
        """Synthetic anchors [R, P, D] and candidates [R, P, P, D], by a generator that J_syn does not change."""
        if self.synthesis == "pulled":
            return z[pairs[..., 0]], pulled
        weights = {name: p.detach() for name, p in self.generator.named_parameters()}
        rows = torch.cat([z, pulled.flatten(0, 2)])
        again = self.network.head(functional_call(self.generator, weights, (rows,)))
        return again[pairs[..., 0]], again[len(z) :].view_as(pulled)

    def _generator_loss(
        self, y: Tensor, z: Tensor, pairs: Tensor, pulled: Tensor, labels: Tensor
    ) -> Tensor:
        """J_gen: all images are reconstructed; pulled negatives and anchors keep their class."""
        generated = self.generator(torch.cat([z, pulled.flatten(0, 2)]))
        weight, bias = self.classifier.weight.detach(), self.classifier.bias.detach()
        logits = F.linear(generated, weight, bias)
        anchors, candidates = pairs.unbind(2)
        own = labels[anchors].flatten()
        kept = labels[candidates][:, None].expand(pulled.shape[:3]).flatten()
        entropy = F.cross_entropy(logits[len(z) :], kept)
        entropy = entropy + F.cross_entropy(logits[anchors.flatten()], own)
        reconstruction = (generated[: len(z)] - y).square().mean()
        return (1 - self.lam) * reconstruction + self.lam * self.kappa * entropy


def _generator(embedding_size: int, hidden: int, feature_size: int) -> nn.Sequential:
    """From embeddings to features. It only ever sees training batches, so BatchNorm needs no running statistics."""
    return nn.Sequential(
        nn.Linear(embedding_size, hidden),
        nn.ReLU(),
        nn.BatchNorm1d(hidden, track_running_stats=False),
        nn.Linear(hidden, feature_size),
    )


@torch.no_grad()
def _distances(
    anchors: Tensor, real: Tensor, pulled: Tensor, synthetic: tuple[Tensor, Tensor]
) -> Tensor:
    """Mean distance from the anchor to its positive, and to its negatives: real, pulled, synthetic, [4]."""
    d, d_pulled, d_synthetic = (
        (candidates - z[:, :, None]).norm(dim=-1)
        for z, candidates in ((anchors, real), (anchors, pulled), synthetic)
    )
    other = ~torch.eye(d.shape[-1], dtype=torch.bool, device=d.device).expand_as(d)
    return torch.stack(
        [m.mean() for m in (d[~other], d[other], d_pulled[other], d_synthetic[other])]
    )
