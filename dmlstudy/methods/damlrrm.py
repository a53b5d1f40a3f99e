"""Card 13: DAMLRRM, spanning trees as positive pairs and two streams of images that slip past each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dmlstudy.data import pk_batches
from dmlstudy.data.sampling import images_by_class
from dmlstudy.errors import unknown
from dmlstudy.geometry import pair_masks
from dmlstudy.losses.damlrrm import minimum_spanning_trees, spanning_tree
from dmlstudy.methods.base import Batch, EmbedAll, Method, Task
from dmlstudy.networks import Network

EDGES = ("tree", "random", "all")


class DAMLRRM(Method):
    """Positives are the edges of each class' minimum spanning tree; half the images come from a second stream.

    L = 1 / (2 |T| s) sum over edges (i, j), in both directions, of log(1 + sum_{n in N_i} exp(s (d_ij - d_in + m))).

    Two streams pass over a fixed order of each class' images. The second takes its images ever further ahead of the
    first, as from a longer queue, and the two periods are co-prime: no meeting repeats before all pairs of the class
    have met. Classes, batch size and number of steps are the protocol's.

    From the abstract: the spanning tree, and two streams of unequal length that interlace. Reconstructed: the loss on
    the edges, unit embeddings, the streams' arrangement. m is a default, unverified; s was chosen on validation
    characters, where 1 is far too soft. The protocol shuffles its images anew every epoch, so here "one stream" meets
    new pairs too; against a fixed order the second would gain more.

    Args:
        margin: m.
        scale: s.
        edges: tree, or for controls random (trees) or all (positives).
        second_stream: take half the images from the second stream.
    """

    title = "DAMLRRM"
    card = "13"
    paper = (
        "Xu, Yang, Deng, Zheng, Deep Asymmetric Metric Learning via Rich Relationship Mining, "
        "CVPR 2019"
    )
    kind = "pair loss on spanning trees, two data streams"
    certainty = "high for the tree, low for loss and streams: after the abstract and summaries"
    controls = {
        "all positives": {"edges": "all"},
        "random tree": {"edges": "random"},
        "one stream": {"second_stream": False},
    }

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        margin: float = 0.2,
        scale: float = 20.0,
        edges: str = "tree",
        second_stream: bool = True,
    ):
        super().__init__(network, task)
        if edges not in EDGES:
            raise unknown("edges", edges, EDGES)
        self.margin, self.scale = margin, scale
        self.edges, self.second_stream = edges, second_stream
        self.order: Tensor  # [N], the order in which both streams pass over the training images
        self.meetings: Tensor  # [C], how often a class has been in a batch
        self.register_buffer("order", torch.randperm(task.images))
        self.register_buffer("meetings", torch.zeros(task.classes, dtype=torch.int64))

    def plan(
        self,
        epoch: int,
        labels: np.ndarray,
        p: int,
        k: int,
        rng: np.random.Generator,
        embed_all: EmbedAll,
    ) -> Iterator[tuple[np.ndarray, int]]:
        order = self.order.cpu().numpy()
        rings = [order[ring] for ring in images_by_class(labels[order], len(self.meetings))]
        for indices in pk_batches(labels, p, k, rng):
            if self.second_stream:
                classes = labels[indices[::k]]
                indices = np.concatenate(
                    [two_streams(rings[c], k, int(self.meetings[c])) for c in classes]
                )
                self.meetings[classes] += 1
            yield indices, 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f, y = self.embed(batch.images), batch.labels
        match self.edges:
            case "tree":
                edges = None
            case "random":
                costs = torch.rand(len(y), len(y), device=y.device)
                edges = minimum_spanning_trees(costs, y)
            case _:
                edges, _ = pair_masks(y)
        value = spanning_tree(f, y, margin=self.margin, scale=self.scale, edges=edges)
        return {"spanning tree": value}


def two_streams(ring: np.ndarray, k: int, meeting: int) -> np.ndarray:
    """K images of a class: half of them next in its order, half from a second stream further ahead.

    With n images and h = K/2, the first stream is back at its start after n / gcd(n, h) meetings. The second is
    ahead by one image more at each meeting, until it would run into the first from behind; the number of its
    places is made co-prime to that period, so that every place of the one meets every place of the other.

    Args:
        ring: the class' images in a fixed order, [n]; if there are K or more, none comes twice.
        k: K, 2 or more.
        meeting: how many came before.

    >>> [two_streams(np.arange(8), 4, meeting).tolist() for meeting in range(3)]
    [[0, 1, 2, 3], [2, 3, 5, 6], [4, 5, 0, 1]]
    """
    n, first = len(ring), k - k // 2
    period = n // math.gcd(n, first)
    places = next(m for m in range(max(n - k + 1, 1), 0, -1) if math.gcd(m, period) == 1)
    start = meeting * first
    ahead = start + first + meeting % places
    return ring[
        np.concatenate([np.arange(start, start + first), np.arange(ahead, ahead + k - first)]) % n
    ]
