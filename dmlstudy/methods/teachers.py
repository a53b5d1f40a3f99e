"""Card 8: learning metrics from teachers."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlstudy.errors import StudyError, unknown
from dmlstudy.losses.teachers import absolute_distillation, relative_distillation
from dmlstudy.losses.triplet import triplet_batch_hard
from dmlstudy.methods.base import Batch, Method, Task
from dmlstudy.networks import Network


class Teachers(Method):
    """A trained teacher's distances (or positions) are a second target beside the triplet loss.

    L = L_tri + lam L_rel / B with L_rel = |D^S - D^T|_F, or L = L_tri + lam L_abs; L_tri is batch-hard on unit
    embeddings. The teacher is trained first, with L_tri alone, and embeds the same augmented view.

    Verified in the authors' code: both distillation losses, the Frobenius norm, lam on CUB (relative 0.3 at
    B = 32, here 0.3 x 32 because L_rel grows with B; absolute 1.0). Theirs compresses a ResNet-101 into a smaller
    trunk; the protocol has one trunk for all rows, so here the student is as large as its teacher. Their triplet
    margin defaults to 0, with which the hinge soon stops; 0.2 is ours.

    Args:
        distil: "relative" (distances) or "absolute" (positions).
        lam: weight of the distillation term; 0 is the student alone.
        margin: hinge margin of the triplet term.
    """

    title = "Metrics from teachers"
    card = "08"
    paper = (
        "Yu, Yazici, Liu, van de Weijer, Cheng, Ramisa, Learning Metrics from Teachers: Compact Networks for "
        "Image Embedding, CVPR 2019"
    )
    kind = "distillation from a trained embedding"
    certainty = "high for the losses: read in the authors' code; teacher as large as the student"
    controls = {
        "student alone, as is its teacher (lam = 0)": {"lam": 0.0},
        "absolute": {"distil": "absolute", "lam": 1.0},
    }
    teacher = ("triplet_batch_hard", {"unit": True, "margin": 0.2})

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        distil: str = "relative",
        lam: float = 9.6,
        margin: float = 0.2,
    ):
        super().__init__(network, task)
        if distil not in ("relative", "absolute"):
            raise unknown("distillation", distil, ("relative", "absolute"))
        self.distil, self.lam, self.margin = distil, lam, margin
        # In a list, so that torch does not take the teacher for a part that is trained and saved with the student.
        self._teacher: list[Method] = []

    def learn_from(self, teacher: Method) -> None:
        self._teacher = [teacher.eval().requires_grad_(False)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f = self.embed(batch.images)
        triplet = triplet_batch_hard(f, batch.labels, margin=self.margin)
        return {"triplet": triplet, "teacher": self.lam * self._distillation(f, batch.images)}

    def _distillation(self, f: Tensor, images: Tensor) -> Tensor:
        if not self._teacher:
            raise StudyError("teachers has no teacher yet: call learn_from before training.")
        with torch.no_grad():
            target = self._teacher[0].embed(images)
        if self.distil == "absolute":
            return absolute_distillation(f, target)
        return relative_distillation(f, target) / len(f)
