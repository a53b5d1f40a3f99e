"""Card 6: multi-similarity loss with its miner."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from dmlstudy.losses.multi_similarity import multi_similarity
from dmlstudy.methods.base import Batch, Method, Task
from dmlstudy.miners import multi_similarity_miner
from dmlstudy.networks import Network


class MultiSimilarity(Method):
    """Mine pairs by relative similarity, then weight them by self and relative similarity.

    A negative k is kept if s_ik + epsilon > min_j s_ij over positives, a positive j if
    s_ij - epsilon < max_k s_ik over negatives; then
    L = 1/B sum_i { 1/alpha log[1 + sum_j exp(-alpha (s_ij - lam))] + 1/beta log[1 + sum_k exp(beta (s_ik - lam))] }.

    Verified in the authors' code: alpha 2, beta 40, lam 0.5, epsilon 0.1 (the paper's text has beta 50, lam 1).

    Args:
        alpha: weight temperature of positives.
        beta: weight temperature of negatives.
        lam: similarity threshold lambda.
        epsilon: mining slack; None keeps all pairs.
    """

    title = "Multi-similarity"
    card = "06"
    paper = (
        "Wang, Han, Huang, Dong, Scott, Multi-Similarity Loss with General Pair Weighting for Deep Metric "
        "Learning, CVPR 2019"
    )
    kind = "pair loss with a miner"
    certainty = "high: read in the authors' code"
    controls = {"no mining": {"epsilon": None}}

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        alpha: float = 2.0,
        beta: float = 40.0,
        lam: float = 0.5,
        epsilon: float | None = 0.1,
    ):
        super().__init__(network, task)
        self.alpha, self.beta, self.lam, self.epsilon = alpha, beta, lam, epsilon

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f = self.embed(batch.images)
        pairs = None
        if self.epsilon is not None:
            pairs = partial(multi_similarity_miner, epsilon=self.epsilon)
        value = multi_similarity(
            f, batch.labels, alpha=self.alpha, beta=self.beta, lam=self.lam, pairs=pairs
        )
        return {"multi-similarity": value}
