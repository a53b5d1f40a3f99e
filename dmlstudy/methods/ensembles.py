"""Rows whose embedding is made of several learners."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy import losses, miners
from dmlstudy.errors import StudyError
from dmlstudy.heads import equal_slices
from dmlstudy.kmeans import kmeans
from dmlstudy.methods.base import Batch, Epoch, Method, TrainingSet
from dmlstudy.ranges import Count, Share
from dmlstudy.samplers import cluster_batches, match_clusters, pk_batches

WHOLE = -1  # tag of a batch that trains the whole embedding


class DivideAndConquer(Method):
    """Cluster the training set into K groups, cut the embedding into K slices, train slice k on cluster k.

    Sanakoyeu, Tschernezki, Büchler, Ommer, "Divide and Conquer the Embedding Space for Metric Learning", CVPR 2019.
    Every `every` epochs k-means on unit penultimate features gives new clusters, matched to the old ones so
    that each slice keeps its data. A batch from cluster k puts the margin loss on the unit slice
    f^(k) = z^(k) / |z^(k)|. The last `joint` part of the steps, and the test, use the whole z / |z|.

    Verified in the authors' code: loss, beta 1.2 constant, alpha 0.2, miner, features, period 2. Three
    departures from that code, all towards the paper's text: clusters are matched by the assignment itself (the code
    applies its inverse), the joint phase comes at the end only, and its batches come from the whole set. Its share is
    ours; the code's is 0.58, from epoch 80 of 190 on. The authors train 200 epochs; so that few epochs are still this
    method, the set is clustered twice at least, and the joint phase has an epoch at least (half the steps, if there
    is one epoch). An epoch has the protocol's number of steps.

    Args:
        clusters: K; 1 is the plain margin loss, bit for bit.
        every: T, epochs between clusterings; fewer where they would be less than two.
        joint: share of the steps, at the end, that train the whole embedding.
        assignment: kmeans, or random (control: one division, without meaning).
    """

    number, title = 10, "Divide and conquer"
    kind = "clustering, one learner per cluster"
    certainty = "high: read in the authors' code"
    parts = (losses.margin,)
    controls = {
        "plain margin loss (K = 1)": {"clusters": 1},
        "random clusters": {"assignment": "random"},
    }

    clusters: Count = 4
    every: Count = 2
    joint: Share = 0.5
    assignment: Literal["kmeans", "random"] = "kmeans"

    def build(self, training_set: TrainingSet) -> None:
        equal_slices(self.network.embedding_size, self.clusters, "clusters")
        self.epochs, self.least_steps = training_set.epochs, 1 if self.clusters == 1 else 3
        self.cluster_of: Tensor  # [N], -1 before the first clustering
        self.cluster_before: Tensor  # [N], -1 before the second one
        self.counts: Tensor  # clusterings, steps of a slice, steps of the whole embedding
        for name in ("cluster_of", "cluster_before"):
            self.register_buffer(name, torch.full((training_set.images,), -1))
        self.register_buffer("counts", torch.zeros(3, dtype=torch.long))

    def schedule(self, steps: int) -> tuple[int, int]:
        """Steps before the joint phase, and steps from one clustering to the next, if an epoch has so many steps."""
        total = self.epochs * steps
        joint = max(round(self.joint * total), min(steps, total // 2))
        divided = max(total - joint, 2)
        if self.assignment == "random":  # keeps no data together, so there is nothing to renew
            return divided, divided
        return divided, min(self.every * steps, -(-divided // 2))

    def phases(self) -> dict[str, int]:
        names = ("clusterings", "steps of a slice", "joint steps")
        return {} if self.clusters == 1 else dict(zip(names, self.counts.tolist(), strict=True))

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        whole = list(pk_batches(epoch.labels, epoch.p, epoch.k, epoch.rng))
        divided, period = self.schedule(len(whole))
        of_clusters = self._passes(epoch)
        for step, indices in enumerate(whole, epoch.number * len(whole)):
            if self.clusters == 1 or step >= divided:
                yield indices, WHOLE
                continue
            if step // period >= self.counts[0]:
                self._recluster(epoch)
                of_clusters = self._passes(epoch)
            yield next(of_clusters)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        z = self.network(batch.images)
        if batch.tag != WHOLE:
            z = z.chunk(self.clusters, dim=1)[batch.tag]
        self.counts[2 if batch.tag == WHOLE else 1] += 1
        margin = self.configured(losses.margin)
        return {"margin": margin(F.normalize(z), batch.labels, pairs=miners.nearest_negatives)}

    def _passes(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        """Batches of the clusters as they are now, without end."""
        cluster_of = self.cluster_of.cpu().numpy()
        while True:
            batches = list(cluster_batches(cluster_of, epoch.labels, epoch.p, epoch.k, epoch.rng))
            if not batches:
                raise StudyError(
                    f"None of the {self.clusters} clusters holds two classes, so no slice has negatives to learn "
                    "from: lower clusters."
                )
            yield from batches

    def _recluster(self, epoch: Epoch) -> None:
        old = self.cluster_of.cpu().numpy()
        if self.assignment == "random":
            new = epoch.rng.integers(self.clusters, size=len(old))
        else:
            features = F.normalize(epoch.embed_all(self.network.features)).cpu()
            seed = int(epoch.rng.integers(2**31))
            # Best of five starts, as in the authors' code.
            new = kmeans(features, self.clusters, seed, restarts=5).numpy()
            if old[0] >= 0:
                new = match_clusters(old, new, self.clusters)[new]
        self.cluster_before.copy_(self.cluster_of)
        self.cluster_of.copy_(torch.from_numpy(new))
        self.counts[0] += 1
