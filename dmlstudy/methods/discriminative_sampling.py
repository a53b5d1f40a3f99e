"""Discriminative sampling: a policy, trained by reinforcement, decides which classes meet in a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy import losses
from dmlstudy.class_means import class_means
from dmlstudy.geometry import pairwise_cosine
from dmlstudy.methods.base import Batch, Epoch, Method, TrainingSet
from dmlstudy.ranges import Count, Momentum, NonNegative, Positive
from dmlstudy.samplers import Policy, draw_log_probabilities, images_by_class, pk_batches


class DiscriminativeSampling(Method):
    """A small network proposes the negative classes of an anchor class, and is rewarded where the loss is high.

    Duan, Chen, Lu, Zhou, "Deep Embedding Learning with Discriminative Sampling Policy", CVPR 2019:
    pi(c | a) = softmax over c != a of g([e_a; e_c; e_a . e_c]), with e a moving average of the class centroids.
    A batch is a random class a and P - 1 others, drawn from pi(. | a) without replacement. The embedding learns by
    the N-pair loss of the batch; each drawn class c gets the reward r_c = min(log(1 + exp(z.z_c - z.z+)), clip), the
    N-pair loss of a and c alone, and g descends -mean_c (r_c - r) log pi(c | a, those drawn before), r a running mean.

    After the abstract: two networks trained at once, the sampler from the relations among samples, N-pair as the
    metric loss. Reconstructed: classes rather than images, the policy's form, REINFORCE, reward per class, and one
    optimiser for both networks (g's gradient comes from its own term only, the embedding's from none of it). The
    N-pair weight l2 is that of third-party code, cosine similarity at test time a default, as are all other numbers.

    Args:
        sampler: policy, or for controls uniform or nearest (centroids).
        clip: largest reward, so that wrongly labelled images do not attract the policy.
        hidden: width of g.
        policy_lr: learning rate of g.
        centroid_momentum: of the moving average of centroids, per batch that holds the class.
        reward_momentum: of the running mean of rewards, per batch.
        unit: normalise the embeddings.
        head_scale: factor on the head's output, for embeddings of free length.
    """

    number, title = 9, "DE-DSP (after the abstract)"
    kind = "N-pair loss, classes proposed by a learned policy"
    certainty = "low: after the abstract"
    parts = (losses.npair,)
    controls = {
        "uniform sampler": {"sampler": "uniform"},
        "fixed hard classes": {"sampler": "nearest"},
    }

    l2 = 0.02
    sampler: Literal["policy", "uniform", "nearest"] = "policy"
    clip: Positive = 5.0
    hidden: Count = 32
    policy_lr: NonNegative = 1e-2
    centroid_momentum: Momentum = 0.5
    reward_momentum: Momentum = 0.9
    unit: bool = False
    head_scale: Positive = 1.0

    def build(self, training_set: TrainingSet) -> None:
        classes, size = training_set.classes, self.network.embedding_size
        self.extra_lr = self.policy_lr
        self.policy = Policy(size, self.hidden)
        self.centroids: Tensor  # [C, D], of unit embeddings; shorter than 1
        self.usable: Tensor  # [C], classes with two images or more
        self.mean_reward: Tensor  # starts at the reward of a tuple whose images all look alike
        self.register_buffer("centroids", torch.zeros(classes, size))
        self.register_buffer("usable", torch.ones(classes, dtype=torch.bool))
        self.register_buffer("mean_reward", torch.tensor(2.0).log())

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        labels, rng = epoch.labels, epoch.rng
        steps = sum(1 for _ in pk_batches(labels, epoch.p, epoch.k, rng))
        members = images_by_class(labels, len(self.centroids))
        if epoch.number == 0:
            self.usable.copy_(torch.tensor([len(images) >= 2 for images in members]))
            f, y = F.normalize(epoch.embed_all()), torch.from_numpy(labels)
            f, y = (x[y >= 0].to(self.usable.device) for x in (f, y))
            self._move_centroids(f, y, momentum=0.0)
        for _ in range(steps):
            classes = self.propose(epoch.p, rng)
            images = [np.resize(rng.permutation(members[c]), epoch.k) for c in classes]
            yield np.concatenate(images), 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of a batch as `batches` makes it: K images of each class together, the anchor class first."""
        z, y = self.embed(batch.images), batch.labels
        classes = torch.unique_consecutive(y)
        pairs = class_pairs(z, len(classes))
        own = classes.repeat_interleave(2)
        npair = self.configured(losses.npair)
        rounds = [npair(pair.flatten(0, 1), own) for pair in pairs.unbind(1)] or [z.sum() * 0]
        terms, rewards = {"npair": torch.stack(rounds).mean()}, z.new_zeros(0)
        if self.sampler == "policy" and pairs[1:].numel():
            rewards = tuple_losses(pairs.detach()).clamp_max(self.clip)
            log_pi = draw_log_probabilities(self.logits(classes[0]), classes[1:])
            terms["policy"] = -((rewards - self.mean_reward) * log_pi).mean()
        self._latest = F.normalize(z.detach()), y, rewards
        return terms

    def after_step(self) -> None:
        f, y, rewards = self._latest
        self._move_centroids(f, y, self.centroid_momentum)
        if len(rewards):
            self.mean_reward.lerp_(rewards.mean(), 1 - self.reward_momentum)

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return pairwise_cosine(queries, gallery)

    def logits(self, anchor: int | Tensor) -> Tensor:
        """What classes are drawn by beside an anchor class, [C]; -inf for itself and for classes of one image."""
        e = F.normalize(self.centroids)
        match self.sampler:
            case "policy":
                logits = self.policy(e[anchor], e)
            case "nearest":
                logits = e @ e[anchor]
            case _:
                logits = e.new_zeros(len(e))
        possible = self.usable & (torch.arange(len(e), device=e.device) != anchor)
        return logits.masked_fill(~possible, -torch.inf)

    @torch.no_grad()
    def propose(self, p: int, rng: np.random.Generator) -> list[int]:
        """P different classes: a random anchor class, then the others in the order in which they are drawn."""
        anchor = int(rng.choice(np.flatnonzero(self.usable.cpu().numpy())))
        logits = self.logits(anchor).cpu().numpy()
        if self.sampler != "nearest":
            # Adding Gumbel noise and taking the largest is drawing from the softmax without replacement.
            logits = logits + rng.gumbel(size=len(logits))
        return [anchor, *map(int, np.argsort(-logits, kind="stable")[: p - 1])]

    @torch.no_grad()
    def _move_centroids(self, f: Tensor, y: Tensor, momentum: float) -> None:
        there = torch.bincount(y, minlength=len(self.centroids))[:, None] > 0
        means = class_means(f, y, len(self.centroids))
        self.centroids.lerp_(means, (1 - momentum) * there)


def class_pairs(embeddings: Tensor, classes: int) -> Tensor:
    """The K images of each class as K/2 pairs of anchor and positive, [P, K/2, 2, D]; an odd last one is left out."""
    z = embeddings.unflatten(0, (classes, -1))
    even = z.shape[1] // 2 * 2
    return z[:, :even].unflatten(1, (-1, 2))


def tuple_losses(pairs: Tensor) -> Tensor:
    """N-pair loss of the first class with each other class alone, log(1 + exp(z.z_c - z.z+)), [P - 1].

    Args:
        pairs: of `class_pairs`, [P, M, 2, D]; the mean is over the M.

    >>> pairs = torch.tensor([[[[1., 0.], [1., 0.]]], [[[9., 9.], [1., 5.]]]])
    >>> tuple_losses(pairs)  # log 2: the other class' positive is as near as the own
    tensor([0.6931])
    """
    similarity = (pairs[0, :, 0] * pairs[:, :, 1]).sum(2)
    return F.softplus(similarity[1:] - similarity[0]).mean(1)
