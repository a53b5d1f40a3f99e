"""Rows whose embedding is made of several learners."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy import losses, miners
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
    f^(k) = z^(k) / |z^(k)|. The last `joint` part of the epochs, and the test, use the whole z / |z|.

    Verified in the authors' code: loss, beta 1.2 constant, alpha 0.2, miner, features, period 2. Three
    departures from that code, all towards the paper's text: clusters are matched by the assignment itself (the code
    applies its inverse), the joint phase comes at the end only, and its batches come from the whole set.

    Args:
        clusters: K; 1 is the plain margin loss, bit for bit.
        every: T, epochs between clusterings.
        joint: fraction of the epochs, at the end, that train the whole embedding.
        assignment: kmeans, or random (control: clusters without meaning).
    """

    number, title = 10, "Divide and conquer"
    kind = "per-epoch clustering, one learner per cluster"
    certainty = "high: read in the authors' code"
    parts = (losses.margin,)
    controls = {
        "plain margin loss (K = 1)": {"clusters": 1},
        "random clusters": {"assignment": "random"},
    }

    clusters: Count = 4
    every: Count = 2
    joint: Share = 0.2
    assignment: Literal["kmeans", "random"] = "kmeans"

    def build(self, training_set: TrainingSet) -> None:
        equal_slices(self.network.embedding_size, self.clusters, "clusters")
        self.joint_from = training_set.epochs - round(self.joint * training_set.epochs)
        self.cluster_of: Tensor  # [N], -1 before the first clustering
        self.register_buffer("cluster_of", torch.full((training_set.images,), -1))

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        if self.clusters == 1 or epoch.number >= self.joint_from:
            for indices in pk_batches(epoch.labels, epoch.p, epoch.k, epoch.rng):
                yield indices, WHOLE
            return
        if epoch.number % self.every == 0:
            self._recluster(epoch)
        cluster_of = self.cluster_of.cpu().numpy()
        yield from cluster_batches(cluster_of, epoch.labels, epoch.p, epoch.k, epoch.rng)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        z = self.network(batch.images)
        if batch.tag != WHOLE:
            z = z.chunk(self.clusters, dim=1)[batch.tag]
        margin = self.configured(losses.margin)
        return {"margin": margin(F.normalize(z), batch.labels, pairs=miners.nearest_negatives)}

    def _recluster(self, epoch: Epoch) -> None:
        old = self.cluster_of.cpu().numpy()
        if self.assignment == "random":
            # A random division keeps no data together, so there is nothing to renew.
            new = old if old[0] >= 0 else epoch.rng.integers(self.clusters, size=len(old))
        else:
            features = F.normalize(epoch.embed_all(self.network.features)).cpu()
            seed = int(epoch.rng.integers(2**31))
            # Best of five starts, as in the authors' code.
            new = kmeans(features, self.clusters, seed, restarts=5).numpy()
            if old[0] >= 0:
                new = match_clusters(old, new, self.clusters)[new]
        self.cluster_of.copy_(torch.from_numpy(new))
