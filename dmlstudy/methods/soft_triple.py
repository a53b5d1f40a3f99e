"""Card B2: SoftTriple, several learned centres per class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy.losses.soft_triple import soft_triple, soft_triple_regulariser
from dmlstudy.methods.base import Batch, Method, Task
from dmlstudy.networks import Network


class SoftTriple(Method):
    """Softmax over classes that each have several learned centres; a regulariser merges redundant ones.

    S_ic = sum_k q_ick f_i.w_ck with q = softmax_k(f_i.w_ck / gamma), and
    L = 1/B sum_i -log softmax_c(lam (S_ic - delta [c = y_i])) + tau R(w).

    Verified in the authors' code: lam 20, gamma 0.1, tau 0.2, delta 0.01, K 10, centres at learning rate 1e-2.

    Args:
        centres: K, centres per class.
        lam: scale of the class softmax.
        gamma: temperature of the softmax over a class' centres.
        tau: weight of the regulariser.
        delta: margin on the true class.
        centre_lr: learning rate of the centres.
    """

    title = "SoftTriple"
    card = "b2"
    paper = "Qian, Shang, Sun, Hu, Li, Jin, SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, ICCV 2019"
    kind = "classification loss with learned centres"
    certainty = "high: read in the authors' code"
    controls = {"one centre (K = 1)": {"centres": 1}, "no regulariser (tau = 0)": {"tau": 0.0}}

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        centres: int = 10,
        lam: float = 20.0,
        gamma: float = 0.1,
        tau: float = 0.2,
        delta: float = 0.01,
        centre_lr: float = 1e-2,
    ):
        super().__init__(network, task)
        self.lam, self.gamma, self.tau, self.delta = lam, gamma, tau, delta
        self.own_lr = centre_lr
        self.centres = nn.Parameter(
            F.normalize(torch.randn(task.classes, centres, network.embedding_size), dim=2)
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        centres = F.normalize(self.centres, dim=2)
        softmax = soft_triple(
            self.embed(batch.images),
            batch.labels,
            centres=centres,
            lam=self.lam,
            gamma=self.gamma,
            delta=self.delta,
        )
        return {"softmax": softmax, "regulariser": self.tau * soft_triple_regulariser(centres)}

    @torch.no_grad()
    def distinct_centres(self, threshold: float = 0.99) -> Tensor:
        """How many centres each class keeps, [C], when those more similar than `threshold` count as one."""
        w = F.normalize(self.centres, dim=2)
        similar = torch.einsum("ckd,cld->ckl", w, w) > threshold
        # A centre is redundant if an earlier one of its class is (nearly) the same.
        earlier = torch.ones_like(similar).tril(-1)
        return (~(similar & earlier).any(2)).sum(1)
