"""Learning metrics from teachers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dmlstudy import losses
from dmlstudy.errors import StudyError
from dmlstudy.methods.base import Batch, Method, TrainingSet
from dmlstudy.ranges import NonNegative


class Teachers(Method):
    """A trained teacher's distances (or positions) are a second target beside the triplet loss.

    Yu, Yazici, Liu, van de Weijer, Cheng, Ramisa, "Learning Metrics from Teachers: Compact Networks for Image
    Embedding", CVPR 2019. L = L_tri + lam L_rel / B, or L = L_tri + lam L_abs; L_tri is batch-hard on unit
    embeddings. The teacher is trained first, with L_tri alone, and embeds the same augmented view.

    Verified in the authors' code: both distillation losses, the Frobenius norm, lam on CUB (relative 0.3 at
    B = 32, here 0.3 x 32 because L_rel grows with B; absolute 1.0). Theirs compresses a ResNet-101 into a smaller
    trunk; the protocol has one trunk for all rows, so here the student is as large as its teacher. Their triplet
    margin defaults to 0, with which the hinge soon stops; 0.2 is ours.

    Args:
        distil: relative (distances) or absolute (positions).
        lam: weight of the distillation term; 0 is the student alone.
    """

    number, title = 8, "Metrics from teachers"
    kind = "distillation from a trained embedding"
    certainty = "high for the losses: read in the authors' code; teacher as large as the student"
    parts = (losses.relative_distillation, losses.absolute_distillation, losses.triplet_batch_hard)
    controls = {
        "student alone, as is its teacher (lam = 0)": {"lam": 0.0},
        "absolute": {"distil": "absolute", "lam": 1.0},
    }
    teacher = ("triplet_batch_hard", {"unit": True, "margin": 0.2})

    distil: Literal["relative", "absolute"] = "relative"
    lam: NonNegative = 9.6
    margin = 0.2

    def build(self, training_set: TrainingSet) -> None:
        # In a list, so that torch does not take the teacher for a part that is trained and saved with the student.
        self._teacher: list[Method] = []

    def learn_from(self, teacher: Method) -> None:
        self._teacher = [teacher.eval().requires_grad_(False)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f = self.embed(batch.images)
        triplet = self.configured(losses.triplet_batch_hard)(f, batch.labels)
        return {"triplet": triplet, "teacher": self.lam * self._distillation(f, batch.images)}

    def _distillation(self, f: Tensor, images: Tensor) -> Tensor:
        if not self._teacher:
            raise StudyError("teachers has no teacher yet: call learn_from before training.")
        with torch.no_grad():
            target = self._teacher[0].embed(images)
        if self.distil == "absolute":
            return losses.absolute_distillation(f, target)
        return losses.relative_distillation(f, target) / len(f)
