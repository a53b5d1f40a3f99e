"""Card 10: divide and conquer the embedding space."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.data import pk_batches
from dmlstudy.errors import StudyError, unknown
from dmlstudy.losses.margin import margin
from dmlstudy.methods.base import Batch, EmbedAll, Method, Task
from dmlstudy.miners import closest_negatives
from dmlstudy.networks import Network

WHOLE = -1  # tag of a batch that trains the whole embedding


class DivideAndConquer(Method):
    """Cluster the training set into K groups, cut the embedding into K slices, train slice k on cluster k.

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
        beta: margin loss' boundary between positive and negative distances.
        alpha: margin loss' margin.
        assignment: "kmeans", or "random" (control: clusters without meaning).
    """

    title = "Divide and conquer"
    card = "10"
    paper = (
        "Sanakoyeu, Tschernezki, Büchler, Ommer, Divide and Conquer the Embedding Space for Metric Learning, "
        "CVPR 2019"
    )
    kind = "per-epoch clustering, one learner per cluster"
    certainty = "high: read in the authors' code"
    controls = {
        "plain margin loss (K = 1)": {"clusters": 1},
        "random clusters": {"assignment": "random"},
    }

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        clusters: int = 4,
        every: int = 2,
        joint: float = 0.2,
        beta: float = 1.2,
        alpha: float = 0.2,
        assignment: str = "kmeans",
    ):
        super().__init__(network, task)
        if network.embedding_size % clusters:
            raise StudyError(
                f"divide_and_conquer cuts the embedding into equal slices: embedding_size "
                f"{network.embedding_size} is not a multiple of clusters = {clusters}."
            )
        if assignment not in ("kmeans", "random"):
            raise unknown("assignment", assignment, ("kmeans", "random"))
        self.clusters, self.every, self.beta, self.alpha = clusters, every, beta, alpha
        self.random = assignment == "random"
        self.joint_from = task.epochs - round(joint * task.epochs)
        self.cluster_of: Tensor  # [N], -1 before the first clustering
        self.register_buffer("cluster_of", torch.full((task.images,), -1))

    def plan(
        self,
        epoch: int,
        labels: np.ndarray,
        p: int,
        k: int,
        rng: np.random.Generator,
        embed_all: EmbedAll,
    ) -> Iterator[tuple[np.ndarray, int]]:
        if self.clusters == 1 or epoch >= self.joint_from:
            for indices in pk_batches(labels, p, k, rng):
                yield indices, WHOLE
            return
        if epoch % self.every == 0:
            self._recluster(embed_all, rng)
        yield from _interleave([self._batches(c, labels, p, k, rng) for c in range(self.clusters)])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        z = self.network(batch.images)
        if batch.tag != WHOLE:
            z = z.chunk(self.clusters, dim=1)[batch.tag]
        f = F.normalize(z)
        pairs = closest_negatives(f, batch.labels)
        return {"margin": margin(f, batch.labels, beta=self.beta, alpha=self.alpha, pairs=pairs)}

    def _recluster(self, embed_all: EmbedAll, rng: np.random.Generator) -> None:
        old = self.cluster_of.cpu().numpy()
        if self.random:
            # A random division keeps no data together, so there is nothing to renew.
            new = old if old[0] >= 0 else rng.integers(self.clusters, size=len(old))
        else:
            features = F.normalize(embed_all(self.network.features)).cpu().numpy()
            new = _kmeans(features, self.clusters, seed=int(rng.integers(2**31)))
            if old[0] >= 0:
                new = match_clusters(old, new, self.clusters)[new]
        self.cluster_of.copy_(torch.from_numpy(new))

    def _batches(
        self, cluster: int, labels: np.ndarray, p: int, k: int, rng: np.random.Generator
    ) -> list[tuple[np.ndarray, int]]:
        """P x K batches of one cluster; images that are alone in their class there are left out."""
        members = np.flatnonzero((self.cluster_of.cpu().numpy() == cluster) & (labels >= 0))
        sizes = np.bincount(labels[members])
        usable = int((sizes >= 2).sum())
        if usable < 2:  # one class has no negatives, so there is nothing to learn from
            return []
        return [
            (members[indices], cluster)
            for indices in pk_batches(labels[members], min(p, usable), k, rng)
        ]


def match_clusters(old: np.ndarray, new: np.ndarray, clusters: int) -> np.ndarray:
    """The old id of each new cluster, [K]: the one-to-one matching under which most samples stay.

    Minimising the L1 distance of 0/1 membership vectors is maximising the overlap.

    >>> old = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    >>> new = np.array([1, 1, 2, 2, 0, 0, 3, 3])  # a 3-cycle
    >>> match_clusters(old, new, 4)[new]
    array([0, 0, 1, 1, 2, 2, 3, 3])
    """
    from scipy.optimize import linear_sum_assignment

    overlap = np.bincount(new * clusters + old, minlength=clusters**2).reshape(clusters, clusters)
    return linear_sum_assignment(overlap, maximize=True)[1]


def _kmeans(features: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Cluster ids [N] of k-means, best of five starts as in the authors' code."""
    kmeans = faiss.Kmeans(
        features.shape[1],
        clusters,
        niter=20,
        nredo=5,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(features),
    )
    kmeans.train(features)
    return kmeans.index.search(features, 1)[1][:, 0]


def _interleave(lists: list[list[Any]]) -> Iterator[Any]:
    """One item from each list in turn, until all are used up."""
    rounds = zip_longest(*lists)
    return (item for item in chain.from_iterable(rounds) if item is not None)
