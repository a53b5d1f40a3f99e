"""Card 1: the discriminative loss, a linear-time upper bound of the triplet loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy.errors import unknown
from dmlstudy.losses.upper_bound import upper_bound
from dmlstudy.methods.base import Batch, Method, Task
from dmlstudy.networks import Network

CENTROIDS = ("one-hot", "random")


class UpperBound(Method):
    """Pull an image to its class' fixed centroid, push it from all others: never less than the triplet sum.

    L = 1/B sum_i ( |g_i - c_y_i| - 1 / (3 (C - 1)) sum_{m != y_i} |g_i - c_m| ) with the centroids c at the ends of
    the C axes, all sqrt 2 apart, and the output g = W f / |W f| on the unit sphere of R^C. W is a linear layer
    without bias on the unit embedding f, so that f alone decides g.

    The formula is verified by re-derivation: for classes of equal size it equals the sum over all triplets. That
    output layer, L2-normalised, is in a third-party implementation, which squares the distances although the bound
    then fails. Our choice: images are retrieved by f, the layer before the output, since the output has as many
    coordinates as there are training classes (5 here, 11318 there); the bound holds for g. The layer's learning
    rate is a default, unverified.

    Args:
        centroids: one-hot (equidistant), or random unit vectors.
        squared: squared distances, as in the third-party implementation.
        layer_lr: learning rate of the output layer W.
    """

    title = "Upper bound (discriminative)"
    card = "01"
    paper = (
        "Do, Tran, Reid, Kumar, Hoang, Carneiro, A Theoretically Sound Upper Bound on the Triplet Loss for "
        "Improving the Efficiency of Deep Distance Metric Learning, CVPR 2019"
    )
    kind = "classification loss with fixed centroids"
    certainty = (
        "high for the loss: re-derived and checked against all triplets; medium for the recipe"
    )
    controls = {
        "random centroids": {"centroids": "random"},
        "squared distances": {"squared": True},
    }

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        centroids: str = "one-hot",
        squared: bool = False,
        layer_lr: float = 1e-2,
    ):
        super().__init__(network, task)
        if centroids not in CENTROIDS:
            raise unknown("centroids", centroids, CENTROIDS)
        self.squared, self.own_lr = squared, layer_lr
        self.layer = nn.Linear(network.embedding_size, task.classes, bias=False)
        fixed = torch.eye(task.classes)
        if centroids == "random":
            fixed = F.normalize(torch.randn(task.classes, task.classes))
        self.centroids: Tensor  # [C, C], never trained
        # One-hot centroids follow from C, so a checkpoint need not carry C^2 numbers.
        self.register_buffer("centroids", fixed, persistent=centroids == "random")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        g = self.output(self.embed(batch.images))
        value = upper_bound(g, batch.labels, centroids=self.centroids, squared=self.squared)
        return {"upper bound": value}

    def output(self, f: Tensor) -> Tensor:
        """The unit output g, [B, C], that the loss sees of embeddings f, [B, D]."""
        return F.normalize(self.layer(f))
