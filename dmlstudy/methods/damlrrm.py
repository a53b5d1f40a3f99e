"""DAMLRRM: spanning trees as positive pairs, and two streams of images of unequal step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dmlstudy import losses
from dmlstudy.geometry import pair_masks
from dmlstudy.methods.base import Batch, Epoch, Method, TrainingSet
from dmlstudy.samplers import TwoStreams, pk_batches


class DAMLRRM(Method):
    """Positives are the edges of each class' minimum spanning tree; half the images come from a second stream.

    Two streams pass over a fixed order of each class' images. The second takes its images ever further ahead of the
    first, as from a longer queue, and the two periods are co-prime: no meeting repeats before all pairs of the class
    have met. Classes, batch size and number of steps are the protocol's.

    From the abstract: the spanning tree, and two streams of unequal length that interlace. Reconstructed: the loss on
    the edges, unit embeddings, the streams' arrangement. m is a default, unverified; s was chosen on validation
    characters, where 1 is far too soft. The protocol shuffles its images anew every epoch, so here "one stream" meets
    new pairs too; against a fixed order the second would gain more.

    Args:
        edges: tree, or for controls random (trees) or all (positives).
        second_stream: take half the images from the second stream.
    """

    number, title = 13, "DAMLRRM"
    kind = "pair loss on spanning trees, two data streams"
    certainty = "high for the tree, low for loss and streams: after the abstract and summaries"
    parts = (losses.tree_pairs,)
    controls = {
        "all positives": {"edges": "all"},
        "random tree": {"edges": "random"},
        "one stream": {"second_stream": False},
    }

    edges: Literal["tree", "random", "all"] = "tree"
    second_stream: bool = True

    def build(self, training_set: TrainingSet) -> None:
        self.streams = TwoStreams(training_set.images, training_set.classes)

    def batches(self, epoch: Epoch) -> Iterator[tuple[np.ndarray, int]]:
        batches = pk_batches(epoch.labels, epoch.p, epoch.k, epoch.rng)
        if self.second_stream:
            batches = self.streams.batches(batches, epoch.labels, epoch.k)
        for indices in batches:
            yield indices, 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f, y = self.embed(batch.images), batch.labels
        match self.edges:
            case "tree":
                edges = None
            case "random":
                costs = torch.rand(len(y), len(y), device=y.device)
                edges = losses.minimum_spanning_trees(costs, y)
            case _:
                edges, _ = pair_masks(y)
        return {"spanning tree": self.configured(losses.tree_pairs)(f, y, edges=edges)}
