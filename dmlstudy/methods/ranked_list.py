"""Card 3: ranked list loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dmlstudy.errors import unknown
from dmlstudy.losses.ranked_list import ranked_list
from dmlstudy.methods.base import Batch, Method, Task
from dmlstudy.networks import Network


class RankedList(Method):
    """Positives belong inside a ball of radius alpha - m, negatives beyond alpha; only violators count.

    L = 1/B sum_i [(1 - lam) mean_{p violating} (d_ip - (alpha - m)) + lam sum_{n violating} w_in (alpha - d_in)],
    w_in = softmax over violating negatives of T (alpha - d_in), constant for the gradient.

    Verified in the authors' code: formula, T 10; alpha 1.2, m 0.4, lam 0.5 are from memory of the paper
    (default, unverified; the authors' CUB script has alpha 1.4, m 0.2).

    Args:
        alpha: radius beyond which negatives are left alone.
        margin: m.
        temperature: T; 0 weights all violating negatives alike.
        lam: weight of the negative term, lambda.
        variant: "H" is the head after the last block; "LMH" adds a low and a middle branch
            with their own heads, three equal losses, embeddings side by side (three times embedding_size).
    """

    title = "Ranked list"
    card = "03"
    paper = "Wang, Hua, Kodirov, Hu, Garnier, Robertson, Ranked List Loss for Deep Metric Learning, CVPR 2019"
    kind = "list-wise loss"
    certainty = "high for the formula, default unverified for alpha, m, lam"
    controls = {"no weighting (T = 0)": {"temperature": 0.0}}

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        alpha: float = 1.2,
        margin: float = 0.4,
        temperature: float = 10.0,
        lam: float = 0.5,
        variant: str = "H",
    ):
        super().__init__(network, task)
        if variant not in ("H", "LMH"):
            raise unknown("ranked list variant", variant, ("H", "LMH"))
        if variant == "LMH":
            network.add_branch_heads()
        self.alpha, self.margin, self.temperature, self.lam = alpha, margin, temperature, lam

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f = self.embed(batch.images)
        branches = f.chunk(1 + len(self.network.branch_heads), dim=1)
        names = ("ranked list",) if len(branches) == 1 else ("low", "middle", "high")
        return {
            name: self._ranked_list(f_b, batch.labels)
            for name, f_b in zip(names, branches, strict=True)
        }

    def _ranked_list(self, f: Tensor, labels: Tensor) -> Tensor:
        return ranked_list(
            F.normalize(f),
            labels,
            alpha=self.alpha,
            margin=self.margin,
            temperature=self.temperature,
            lam=self.lam,
        )
