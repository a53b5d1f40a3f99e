"""The loop and the methods in it: determinism, resuming, what it refuses, divide and conquer's controls."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.data import Augment, ImageSet, Pixels
from dmlstudy.errors import StudyError
from dmlstudy.losses import margin
from dmlstudy.methods import METHODS, Batch, Method, Task, deviations
from dmlstudy.methods.divide_and_conquer import WHOLE, DivideAndConquer, match_clusters
from dmlstudy.miners import closest_negatives
from dmlstudy.networks import build_network
from dmlstudy.training import EmbedAll, Progress, Recipe, train

EPOCHS = 5
RECIPE = Recipe(
    p=3, k=4, epochs=EPOCHS, lr=1e-2, trunk_lr=1e-2, weight_decay=1e-4, schedule="cosine"
)
each_method = pytest.mark.parametrize("name", METHODS)


class PlainMargin(Method):
    """The margin loss with divide and conquer's miner, and nothing else."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        f = self.embed(batch.images)
        return {"margin": margin(f, batch.labels, pairs=closest_negatives(f, batch.labels))}


def make(kind: type[Method], images: ImageSet, **hyper: object) -> Method:
    torch.manual_seed(1)
    network = build_network("convnet", channels=1, embedding_size=8, freeze_bn=False)
    return kind(network, Task(len(images.classes), len(images), EPOCHS), **hyper)


def run(method: Method, images: ImageSet, recipe: Recipe = RECIPE, **options: object) -> Progress:
    inputs = Pixels(images, 8, Augment(flip=True, shift=0.1))
    return train(method, inputs, images.labels, recipe, 0, **options)  # type: ignore[arg-type]


def same_bits(a: Method, b: Method) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@each_method
def test_resumed_is_bit_identical(name: str, tiny_images: ImageSet) -> None:
    whole = make(METHODS[name], tiny_images)
    saved: list[bytes] = []

    def keep(progress: Progress) -> None:
        buffer = io.BytesIO()
        torch.save(progress, buffer)
        saved.append(buffer.getvalue())

    done = run(whole, tiny_images, after_epoch=keep)
    assert EmbedAll(whole, Pixels(tiny_images, 8, Augment()))().isfinite().all()
    resumed = make(METHODS[name], tiny_images)
    again = run(resumed, tiny_images, resume=torch.load(io.BytesIO(saved[2]), weights_only=False))
    assert same_bits(whole, resumed)
    assert again.history == done.history


@pytest.mark.parametrize("name", [name for name in METHODS if name != "untrained"])
def test_training_lowers_the_loss(name: str, tiny_images: ImageSet) -> None:
    history = run(make(METHODS[name], tiny_images), tiny_images).history
    totals = [sum(value for term, value in row.items() if term != "epoch") for row in history]
    assert (
        totals[-1] < totals[0] or name == "divide_and_conquer"
    )  # whose last epochs train another thing


def test_one_cluster_is_the_plain_loss_bit_for_bit(tiny_images: ImageSet) -> None:
    plain = make(PlainMargin, tiny_images)
    divided = make(DivideAndConquer, tiny_images, clusters=1)
    assert run(plain, tiny_images).history == run(divided, tiny_images).history
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, divided.state_dict()[name])


def test_a_cluster_trains_its_own_slice(tiny_images: ImageSet) -> None:
    method = make(DivideAndConquer, tiny_images, clusters=4)
    inputs = Pixels(tiny_images, 8, Augment())
    index = torch.arange(24)
    labels = torch.from_numpy(tiny_images.labels[:24])
    sum(method.loss(Batch(inputs.plain(index), labels, index, tag=2)).values()).backward()
    gradient = method.network.head.weight.grad.abs().sum(1)
    assert (gradient[4:6] > 0).all()
    assert (gradient[:4] == 0).all() and (gradient[6:] == 0).all()


def test_divide_and_conquer_ends_with_the_whole_embedding(tiny_images: ImageSet) -> None:
    method = make(DivideAndConquer, tiny_images, clusters=2)
    embed_all = EmbedAll(method, Pixels(tiny_images, 8, Augment()))
    tags = [
        {
            tag
            for _, tag in method.plan(
                e, tiny_images.labels, 3, 4, np.random.default_rng(e), embed_all
            )
        }
        for e in range(EPOCHS)
    ]
    assert tags[-1] == {WHOLE} and all(WHOLE not in some for some in tags[:-1])


@pytest.mark.parametrize("seed", range(5))
def test_matching_recovers_any_permutation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, permutation = rng.integers(6, size=200), rng.permutation(6)
    assert (match_clusters(old, permutation[old], 6)[permutation[old]] == old).all()


def test_slices_must_divide_the_embedding(tiny_images: ImageSet) -> None:
    with pytest.raises(StudyError, match="not a multiple of clusters = 3"):
        make(DivideAndConquer, tiny_images, clusters=3)


def test_deviations_are_read_off_the_methods(tiny_images: ImageSet) -> None:
    found = {name: deviations(make(kind, tiny_images)) for name, kind in METHODS.items()}
    assert found == {
        "untrained": ["batch composition"],
        "triplet_batch_hard": ["ranking distance", "embeddings not normalised"],
        "soft_triple": ["own parameters (learning rate 0.01)"],
        "ranked_list": [],
        "multi_similarity": [],
        "divide_and_conquer": ["batch composition"],
    }


class Broken(PlainMargin):
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"fine": self.embed(batch.images).sum(), "bad": torch.tensor(torch.nan)}


class Twice(PlainMargin):
    def parameters_of_head(self) -> Iterator[Tensor]:
        return self.network.head.parameters()

    def param_groups(self, lr: float, trunk_lr: float, weight_decay: float) -> list[dict]:
        return [
            *super().param_groups(lr, trunk_lr, weight_decay),
            {"params": [*self.parameters_of_head()]},
        ]


class Forgotten(PlainMargin):
    def param_groups(self, lr: float, trunk_lr: float, weight_decay: float) -> list[dict]:
        return super().param_groups(lr, trunk_lr, weight_decay)[:1]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Broken, r"epoch 1, step 1 \(fine = .*, bad = nan\)"),
        (Twice, "'network.head.weight' to the optimiser 2 times"),
        (Forgotten, "'network.head.weight' to the optimiser 0 times"),
    ],
)
def test_the_loop_refuses(kind: type[Method], message: str, tiny_images: ImageSet) -> None:
    with pytest.raises((StudyError, ValueError), match=message):
        run(make(kind, tiny_images), tiny_images)


def test_soft_triple_counts_merged_centres(tiny_images: ImageSet) -> None:
    method = make(METHODS["soft_triple"], tiny_images, centres=3)
    with torch.no_grad():
        method.centres.copy_(F.normalize(torch.eye(8)[:3].expand(6, 3, 8), dim=2))
        method.centres[0, 2] = method.centres[0, 0]
    assert method.distinct_centres().tolist() == [2, 3, 3, 3, 3, 3]
    assert copy.deepcopy(method).distinct_centres().tolist() == [2, 3, 3, 3, 3, 3]
