"""Card 5: SCHE, stochastic class-based hard example mining."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy.data import pk_batches
from dmlstudy.errors import unknown
from dmlstudy.geometry import pair_masks
from dmlstudy.losses.sche import in_hard_classes, signature_softmax
from dmlstudy.losses.triplet import mined_triplet
from dmlstudy.methods.base import Batch, EmbedAll, Method, Task
from dmlstudy.miners import one_at_random
from dmlstudy.networks import Network

CLASSES = ("signatures", "random")
INSTANCES = ("hard", "random")


class SCHE(Method):
    """A learned signature per class finds confusable classes cheaply; hard images are sought only inside those.

    Batches are made of random anchor classes, each with the classes whose signatures are nearest to its own. In the
    batch, H_i = the classes c != y_i with the largest f_i . w_c, and
    L = mean of [max_p d_ip^2 - min_{n in H_i} d_in^2 + m]_+ where positive + lam L_sig,
    L_sig = 1/B sum_i -log softmax_c(tau f_i . w_c).

    The idea, unit embeddings and the mean over positive terms are from summaries of the paper; no code was released.
    Reconstructed: L_sig (it also trains the network), anchors' classes by signature against signature, farthest
    positive. All numbers are defaults, unverified; lam was chosen on validation characters. Not taken over: input of
    336 px, features of an earlier stage and second-order pooling, which carry much of the reported gain.

    Args:
        hard_classes: the paper's k, classes beside an anchor's own.
        margin: m, on squared distances.
        lam: weight of the signatures' loss.
        tau: scale of the signatures' softmax.
        classes: signatures, or random (control: H_i is the whole batch).
        instances: hard, or random (control: drawn for each anchor).
        signature_lr: learning rate of the signatures.
    """

    title = "SCHE"
    card = "05"
    paper = (
        "Suh, Han, Kim, Lee, Stochastic Class-Based Hard Example Mining for Deep Metric Learning, "
        "CVPR 2019"
    )
    kind = "triplet loss, classes mined by learned signatures"
    certainty = "low to medium: the idea is sure, the details are not; no code was released"
    controls = {
        "random classes, same mining": {"classes": "random"},
        "signatures without mining": {"classes": "random", "instances": "random"},
        "no signatures": {"classes": "random", "lam": 0.0},
    }

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        hard_classes: int = 3,
        margin: float = 0.2,
        lam: float = 0.1,
        tau: float = 20.0,
        classes: str = "signatures",
        instances: str = "hard",
        signature_lr: float = 1e-2,
    ):
        super().__init__(network, task)
        if classes not in CLASSES:
            raise unknown("classes", classes, CLASSES)
        if instances not in INSTANCES:
            raise unknown("instances", instances, INSTANCES)
        self.hard_classes, self.margin, self.lam, self.tau = hard_classes, margin, lam, tau
        self.by_signature, self.hardest = classes == "signatures", instances == "hard"
        self.own_lr = signature_lr
        self.signatures = nn.Parameter(
            F.normalize(torch.randn(task.classes, network.embedding_size))
        )

    def plan(
        self,
        epoch: int,
        labels: np.ndarray,
        p: int,
        k: int,
        rng: np.random.Generator,
        embed_all: EmbedAll,
    ) -> Iterator[tuple[np.ndarray, int]]:
        batches = pk_batches(labels, p, k, rng)
        if self.by_signature:
            batches = confusable_batches(
                list(batches), labels, p, self.hard_classes, self.unit_signatures, rng
            )
        for indices in batches:
            yield indices, 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f, y = self.embed(batch.images), batch.labels
        w = F.normalize(self.signatures)
        positive, negative = pair_masks(y)
        if self.by_signature:
            negative = in_hard_classes(f, y, signatures=w, k=self.hard_classes)
        if not self.hardest:
            positive, negative = one_at_random(positive), one_at_random(negative)
        return {
            "triplet": mined_triplet(f, y, margin=self.margin, pairs=(positive, negative)),
            "signatures": self.lam * signature_softmax(f, y, signatures=w, tau=self.tau),
        }

    @torch.no_grad()
    def unit_signatures(self) -> Tensor:
        """The signatures as they are now, [C, D], on the CPU."""
        return F.normalize(self.signatures).cpu()

    def most_confusable(self, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Similarities and ids of the classes whose signatures are nearest to those of `classes`, two [M, count]."""
        w = self.unit_signatures()
        similarity = (w[classes] @ w.T).scatter(1, classes[:, None], -torch.inf)
        nearest = similarity.topk(min(count, len(w) - 1), dim=1)
        return nearest.values, nearest.indices


def confusable_batches(
    epoch: list[np.ndarray],
    labels: np.ndarray,
    p: int,
    hard: int,
    signatures: Callable[[], Tensor],
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """The groups of an epoch's P x K batches dealt anew, confusable classes together.

    As many batches of the same images; only who meets whom is different.

    Args:
        epoch: of `pk_batches`, [P*K] each.
        hard: confusable classes beside each anchor class.
        signatures: asked for every batch, so that mining goes on-line with training.
    """
    groups: dict[int, list[np.ndarray]] = defaultdict(list)
    for group in np.concatenate(epoch).reshape(len(epoch) * p, -1):
        groups[labels[group[0]]].append(group)
    left = np.array([len(groups[c]) for c in range(labels.max() + 1)])
    for steps in range(len(epoch), 0, -1):
        chosen = confusable_classes(left, steps, p, hard, signatures(), rng)
        yield np.concatenate([groups[c].pop() for c in chosen])
        left[chosen] -= 1


def confusable_classes(
    left: np.ndarray, steps: int, p: int, hard: int, signatures: Tensor, rng: np.random.Generator
) -> list[int]:
    """P different classes for a batch: random anchors, each followed by its `hard` nearest by signature.

    Args:
        left: groups left of each class, [C]; P for each of the `steps` batches to come, none above `steps`.

    >>> w = F.normalize(torch.tensor([[1., 0], [.9, .1], [0, 1], [.1, .9]]))
    >>> sorted(confusable_classes(np.full(4, 2), 4, 2, 1, w, np.random.default_rng(0)))
    [2, 3]
    """
    free = left > 0
    due = left == steps  # a class in every batch to come: left out now, it could not be used up
    order = [rng.permutation(np.flatnonzero(part)) for part in (due, free & ~due)]
    chosen: list[int] = []
    for anchor in np.concatenate(order):
        if len(chosen) == p:
            break
        if not free[anchor]:
            continue
        free[anchor] = False
        room = min(hard, p - len(chosen) - 1 - int((due & free).sum()))
        similarity = (signatures @ signatures[anchor]).numpy()
        nearest = np.argsort(np.where(free, -similarity, np.inf), kind="stable")
        nearest = nearest[: min(room, free.sum())]
        free[nearest] = False
        chosen += [int(anchor), *map(int, nearest)]
    return chosen
