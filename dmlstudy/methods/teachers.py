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
    embeddings. The teacher is trained first, on the same seed, and embeds the same augmented view. Its own row is
    the first control.

    Verified in the authors' code: both distillation losses, the Frobenius norm, the triplet. Theirs compresses a
    ResNet-101 into a smaller trunk; the protocol has one trunk for all rows, so here the student is as large as its
    teacher. Ours: the teacher learns by the multi-similarity loss, because batch-hard alone collapses under short
    protocols and a collapsed teacher has nothing to teach; lam, chosen on validation characters (theirs on CUB:
    relative 0.3 at B = 32, which is 9.6 here as L_rel grows with B, absolute 1.0); the margin 0.2, as with theirs,
    0, the hinge soon stops.

    Args:
        distil: relative (distances) or absolute (positions).
        lam: weight of the distillation term; 0 is the student alone.
    """

    number, title = 8, "Metrics from teachers"
    kind = "distillation from a trained embedding"
    certainty = "high for the losses: read in the authors' code; teacher as large as the student"
    parts = (losses.relative_distillation, losses.absolute_distillation, losses.triplet_batch_hard)
    controls = {
        "student alone (lam = 0)": {"lam": 0.0},
        "absolute": {"distil": "absolute", "lam": 1.0},
    }
    teacher = ("multi_similarity", {})

    distil: Literal["relative", "absolute"] = "relative"
    lam: NonNegative = 1.0
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
