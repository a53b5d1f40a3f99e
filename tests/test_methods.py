"""Every method and control through one suite: training and restart, invariance, degenerate batches, declarations."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, EPOCHS, RECIPE, assert_same, build, go, whole
from torch import Tensor

from dmlstudy.data import Pixels
from dmlstudy.errors import StudyError
from dmlstudy.methods import (
    METHODS,
    Batch,
    EmbedAll,
    Epoch,
    Method,
    citation,
    deviations,
    find_method,
    hyperparameters,
)
from dmlstudy.training import Progress, Recipe


def own(method: type[Method], overrides: dict) -> dict:
    """A control's hyperparameters without the protocol's keys."""
    return {k: v for k, v in overrides.items() if k in hyperparameters(method)}


# Every method, each of its controls, and what no control reaches.
CASES = [(name, own(m, h)) for name, m in METHODS.items() for h in ({}, *m.controls.values())]
CASES += [("density_aware", {"quadruplet": True})]
CASES = [case for i, case in enumerate(CASES) if case not in CASES[:i]]
every_case = pytest.mark.parametrize("name, hyper", CASES, ids=str)
every_method = pytest.mark.parametrize("name", METHODS)

# A batch's order means something to them: the first image of a class is its anchor, or views follow each other.
ORDERED = {"discriminative_sampling", "hdml", "invariant_spreading"}
# They know a class by its number: by a learned or fixed vector, or a centre.
BY_NUMBER = {
    "upper_bound",
    "product_quantisation",
    "density_aware",
    "sche",
    "discriminative_sampling",
    "hdml",
    "soft_triple",
}


def first_batch(method: Method, inputs: Pixels) -> Batch | None:
    """The first batch of an epoch, as the loop makes it; None if nothing is trained."""
    rng, labels = np.random.default_rng(0), inputs.images.labels
    epoch = Epoch(0, labels, RECIPE.p, RECIPE.k, rng, EmbedAll(method, inputs))
    for indices, tag in method.batches(epoch):
        index = torch.from_numpy(indices)
        images = inputs.augmented(index, method.views, torch.Generator().manual_seed(0))
        y = torch.from_numpy(labels[indices]).repeat(method.views)
        method.train()
        return Batch(images, y, index.repeat(method.views), tag)
    return None


def total(method: Method, batch: Batch) -> Tensor:
    torch.manual_seed(0)
    return torch.stack(list(method.loss(batch).values())).sum()


# Controls that leave a part without work: no policy to learn, no codes, no weight on the signatures.
POLICY = {f"policy.layers.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
STILL = "untrained", "raw"  # not trained
UNUSED = {
    ("product_quantisation", "{'ranking': 'float'}"): {"codeword_vectors", "assignment"},
    ("product_quantisation", "{'ranking': 'k-means'}"): {"assignment"},
    ("discriminative_sampling", "{'sampler': 'uniform'}"): POLICY,
    ("discriminative_sampling", "{'sampler': 'nearest'}"): POLICY,
    ("sche", "{'classes': 'random', 'lam': 0.0}"): {"signatures"},
}


def trained(name: str, hyper: dict, inputs: Pixels) -> tuple[Method, Progress]:
    """A method after training, which moved what it should and goes on bit for bit after a restart."""
    method, first = build(METHODS[name], **hyper), io.BytesIO()
    if name == "divide_and_conquer":  # a random head crowds all images, and no pair is active
        method.network.start_head(EmbedAll(method, inputs)(method.network.features), pca=True)
    before = {n: p.clone() for n, p in method.named_parameters()}

    def keep(progress):
        if progress.epoch == 1:
            torch.save(progress, first)

    recipe = Recipe(4, 4, EPOCHS, 3e-3, 3e-3, 1e-4)
    done = go(method, inputs, after_epoch=keep, recipe=recipe)
    still = {n for n, p in method.named_parameters() if torch.equal(p, before[n])}
    assert still == (set(before) if name in STILL else UNUSED.get((name, str(hyper)), set()))
    first.seek(0)
    again = build(METHODS[name], seed=99, **hyper)  # what it starts from must not matter
    progress = go(again, inputs, recipe=recipe, resume=torch.load(first, weights_only=False))
    for part in ("epoch", "history", "method", "optimiser"):
        assert_same(getattr(progress, part), getattr(done, part))
    return method, done


@every_method
def test_training(name, inputs):
    """Resumes to the bit, moves every parameter, lowers the loss, and every control is another method."""
    seen = []
    for case, hyper in CASES:
        if case != name:
            continue
        method, done = trained(name, hyper, inputs)
        assert [row["epoch"] for row in done.history] == [1, 2, 3, 4]
        if name not in STILL:  # a policy's rewards rise as it learns
            totals = [
                sum(v for k, v in row.items() if k not in ("epoch", "policy"))
                for row in done.history
            ]
            assert totals[-1] < 0.99 * totals[0], hyper
        z = EmbedAll(method, inputs)()
        # Asymmetric product quantisation keeps two codes per image, side by side.
        coded = getattr(method, "ranking", "") in ("asymmetric", "k-means")
        parts = 2 if coded else 1 + len(method.branches)
        size = inputs.size**2 if name == "raw" else parts * method.network.embedding_size
        assert z.shape == (len(inputs), size)
        assert z.isfinite().all()
        assert (done.history, z.tolist()) not in seen, hyper
        seen.append((done.history, z.tolist()))


@every_case
def test_order_and_names_of_classes_do_not_matter(name, hyper, inputs):
    method = build(METHODS[name], **hyper)
    batch = first_batch(method, inputs)
    if batch is None or "random" in hyper.values():
        return
    order = torch.randperm(len(batch.labels), generator=torch.Generator().manual_seed(1))
    moved = Batch(batch.images[order], batch.labels[order], batch.indices[order], batch.tag)
    renamed = Batch(batch.images, (batch.labels + 2) % CLASSES, batch.indices, batch.tag)
    expected = total(method, batch)
    for other, exceptions in ((moved, ORDERED), (renamed, BY_NUMBER)):
        if name not in exceptions:
            torch.testing.assert_close(total(method, other), expected, rtol=1e-4, atol=1e-5)


@every_case
@pytest.mark.parametrize("kind", ["one class", "no positives", "one image", "equal images"])
def test_degenerate_batches_are_finite(name, hyper, kind, inputs):
    method = build(METHODS[name], **hyper)
    batch = first_batch(method, inputs)
    if batch is None:
        return
    images, y = batch.images, batch.labels
    if name == "invariant_spreading":  # two views of each image, so that halves belong together
        rows = torch.tensor([0, len(y) // 2]) if kind == "one image" else torch.arange(len(y))
        images, y = images[rows], y[rows]
    elif kind == "one class":
        y = torch.zeros_like(y)
    elif kind == "no positives":
        images, y = images[:: RECIPE.k], y[:: RECIPE.k]
    elif kind == "one image":
        images, y = images[:1], y[:1]
    if kind == "equal images":
        images = images[:1].expand_as(images)
    if len(images) == 1:  # BatchNorm of a single image has no variance in training
        method.eval()
    value = total(method, Batch(images, y, batch.indices[: len(y)], batch.tag))
    assert value.isfinite()
    if value.requires_grad:
        value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_labels_that_are_not_one_number_per_image_are_refused():
    images, index = torch.zeros(4, 1, 8, 8), torch.arange(4)
    for labels in (index[:, None], index[:3], index.float(), index > 1):
        with pytest.raises(StudyError, match=r"needs as many labels, int64 \[4\], not .*: flatten"):
            Batch(images, labels, index)


DEVIATIONS = {
    "untrained": ["batch composition"],
    "raw": ["batch composition", "embedding"],
    "upper_bound": ["own parameters (learning rate 0.01)"],
    "product_quantisation": [
        "embedding",
        "ranking distance",
        "queries and gallery embedded differently",
        "embeddings not normalised",
        "own parameters (learning rate 0.01)",
    ],
    "ranked_list": [],
    "density_aware": ["batch composition"],
    "sche": ["batch composition", "own parameters (learning rate 0.01)"],
    "multi_similarity": [],
    "fastap": [],
    "teachers": ["a teacher, trained first"],
    "discriminative_sampling": [
        "batch composition",
        "state besides gradient descent",
        "ranking distance",
        "embeddings not normalised",
        "own parameters (learning rate 0.01)",
    ],
    "damlrrm": ["batch composition"],
    "hdml": [
        "state besides gradient descent",
        "ranking distance",
        "parameter groups",
        "embeddings not normalised",
        "own parameters (learning rate 0.01)",
    ],
    "divide_and_conquer": ["batch composition"],
    "invariant_spreading": ["batch composition", "2 views per image"],
    "snr": ["ranking distance", "embeddings not normalised"],
    "soft_triple": ["parameter groups", "own parameters (learning rate 0.01)"],
    "triplet_batch_hard": ["ranking distance", "embeddings not normalised"],
    "contrastive": [],
}


def test_branches_and_learning_rates_are_deviations():
    branched = build(METHODS["ranked_list"], variant="LMH")
    assert deviations(branched) == ["3 branches, each with its own head"]
    fast = build(METHODS["soft_triple"], centre_lr=0.5)
    assert "own parameters (learning rate 0.5)" in deviations(fast)


FREE = [name for name, kind in METHODS.items() if "head_scale" in hyperparameters(kind)]


@pytest.mark.parametrize("name", FREE)
def test_the_factor_on_the_heads_output_reaches_every_use_of_it(name, inputs):
    """Of the batch and of features: a quarter of the length; another loss, said among the deviations."""
    batch = whole(inputs)
    plain, scaled = build(METHODS[name]).eval(), build(METHODS[name], head_scale=0.25).eval()
    assert torch.equal(scaled.embed(batch.images), 0.25 * plain.embed(batch.images))
    features = plain.network.features(batch.images)
    assert torch.equal(scaled.network.head(features), 0.25 * plain.network.head(features))
    assert "embeddings not normalised, times 0.25" in deviations(scaled)
    assert total(scaled, batch) != total(plain, batch)
    if "unit" in hyperparameters(METHODS[name]):
        ones = build(METHODS[name], unit=True).eval().embed(batch.images).norm(dim=1)
        torch.testing.assert_close(ones, torch.ones(len(ones)))


@every_method
def test_declarations(name, inputs):
    """Every hyperparameter has a comment, every method a paper; deviations and norms are what is embedded."""
    kind, method = METHODS[name], build(METHODS[name])
    z = EmbedAll(method, inputs)()
    assert torch.allclose(z, F.normalize(z), atol=1e-6) == method.unit
    assert deviations(method) == DEVIATIONS[name]
    assert all(h.comment for h in hyperparameters(kind).values())
    assert (citation(kind) == "no paper") == (name in STILL)
    with pytest.raises(StudyError, match="Unknown hyperparameter 'margn'"):
        build(kind, margn=0.1)


def test_numbers_are_those_of_the_table():
    assert [method.number for method in METHODS.values()] == list(range(len(METHODS)))
    with pytest.raises(StudyError, match="did you mean 'multi_similarity'"):
        find_method("multi_simlarity")
