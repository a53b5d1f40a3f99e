"""Card 12: signal-to-noise ratio as the distance."""

from __future__ import annotations

from torch import Tensor

from dmlstudy.errors import unknown
from dmlstudy.geometry import snr_distance, squared_distance
from dmlstudy.losses.rows import snr, squared
from dmlstudy.losses.signal_to_noise import snr_contrastive, snr_triplet, zero_mean
from dmlstudy.methods.base import Batch, Method, Task
from dmlstudy.networks import Network

DISTANCES = {"snr": (snr_distance, snr), "euclidean": (squared_distance, squared)}
FORMS = {"contrastive": snr_contrastive, "triplet": snr_triplet}


class SNR(Method):
    """A pair is as far apart as the noise between its two vectors is strong against the anchor's own signal.

    d(h_i, h_j) = var(h_j - h_i) / var(h_i), var over the coordinates of one raw vector; a contrastive or triplet
    loss on it, plus lam/B sum_i |sum_d h_id|. The query is the anchor in ranking: its variance is the same for
    the whole gallery, so a ranking is that of Euclidean distances between centred vectors, and the division
    acts in training (and where pairs of several queries are compared, as in AUROC).

    After the abstract and two third-party ports: the distance is certain, margins 1
    (contrastive) and 0.2 (triplet) and lam 0.005 are those ports' defaults, and which loss made the paper's row
    is unknown. Contrastive is our choice: on validation characters it kept MAP@R higher.

    Args:
        form: "contrastive" or "triplet".
        margin: m, of the contrastive loss' negatives or of the triplet.
        lam: weight of the zero-mean term.
        distance: "snr", or "euclidean", squared (control: the twin), in loss and ranking.
        unit: normalise the embeddings (for the twin).
    """

    title = "SNR distance"
    card = "12"
    paper = (
        "Yuan, Deng, Tang, Tang, Chen, Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric Learning, "
        "CVPR 2019"
    )
    kind = "pair loss with its own distance"
    certainty = "high for the distance; low for the recipe: third-party ports"
    controls = {
        "Euclidean twin": {"distance": "euclidean"},
        "Euclidean twin, unit embeddings": {"distance": "euclidean", "unit": True},
        "triplet form": {"form": "triplet", "margin": 0.2},
    }

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        form: str = "contrastive",
        margin: float = 1.0,
        lam: float = 0.005,
        distance: str = "snr",
        unit: bool = False,
    ):
        super().__init__(network, task)
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        if distance not in DISTANCES:
            raise unknown("distance", distance, DISTANCES)
        self.form = form
        self.distance, metric = DISTANCES[distance]
        self.formula = FORMS[form].on(metric)
        self.margin, self.lam, self.unit = margin, lam, unit

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        h = self.embed(batch.images)
        value = self.formula(h, batch.labels, margin=self.margin)
        return {self.form: value, "zero mean": self.lam * zero_mean(h)}

    def similarity(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return -self.distance(queries, gallery)
