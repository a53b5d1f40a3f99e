"""Card C3: triplet loss with batch-hard mining."""

from __future__ import annotations

from torch import Tensor

from dmlstudy.geometry import squared_distance
from dmlstudy.losses.triplet import triplet_batch_hard
from dmlstudy.methods.base import Batch, Method, Task
from dmlstudy.networks import Network


class TripletBatchHard(Method):
    """In a P x K batch only the farthest positive and the nearest negative of each anchor count.

    L = 1/B sum_a softplus(max_p d_ap - min_n d_an), or the hinge [m + max_p d_ap - min_n d_an]_+,
    with Euclidean d of embeddings that are NOT normalised, in training and in ranking.

    Verified in the authors' code: formula, soft margin, P = 32, K = 4, un-normalised embeddings.

    Args:
        margin: hinge margin m; None is the soft margin.
        unit: normalise the embeddings all the same (control).
    """

    title = "Triplet, batch-hard"
    card = "c3"
    paper = "Hermans, Beyer, Leibe, In Defense of the Triplet Loss, arXiv 1703.07737, 2017"
    kind = "triplet loss"
    certainty = "high: read in the authors' code"
    controls = {"hinge, m = 0.2": {"margin": 0.2}, "unit embeddings": {"unit": True}}

    def __init__(
        self, network: Network, task: Task, *, margin: float | None = None, unit: bool = False
    ):
        super().__init__(network, task)
        self.margin, self.unit = margin, unit

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        z = self.embed(batch.images)
        return {"triplet": triplet_batch_hard(z, batch.labels, margin=self.margin)}

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return -squared_distance(queries, gallery)
