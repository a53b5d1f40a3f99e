"""The loop: the same bits from the same seed, resumed or not, and no silent mistakes."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmlstudy.data import Augment, ImageSet, Pixels
from dmlstudy.errors import StudyError
from dmlstudy.losses import margin
from dmlstudy.methods import METHODS, Batch, Method, Task, deviations, find_method, hyperparameters
from dmlstudy.methods.divide_and_conquer import WHOLE, DivideAndConquer
from dmlstudy.miners import closest_negatives
from dmlstudy.networks import build_network
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.params import settings
from dmlstudy.training import EmbedAll, Recipe, make_optimiser, train

CLASSES, PER_CLASS, EPOCHS = 6, 8, 4
RECIPE = Recipe(4, 4, EPOCHS, 1e-3, 1e-3, 1e-4, "adamw", "cosine")
# Every method, each of its controls, and the ranked list loss with branches.
CASES = [(name, h) for name, m in METHODS.items() for h in ({}, *m.controls.values())]
CASES.append(("ranked_list", {"variant": "LMH"}))
every_case = pytest.mark.parametrize("name, hyper", CASES, ids=lambda x: str(x))


@pytest.fixture(scope="module")
def inputs() -> Pixels:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    noise = rng.integers(0, 120, (len(labels), 8, 8, 1))
    store = (noise + 20 * labels[:, None, None, None]).astype(np.uint8)
    images = ImageSet(store, np.arange(len(labels)), labels, tuple("abcdef"), "random")
    return Pixels(images, 8, Augment(flip=True, rotate=10.0, crop_area=0.8, shift=0.1))


def build(kind, hyper=None, seed=0) -> Method:
    torch.manual_seed(seed)
    network = build_network("convnet", channels=1, embedding_size=8)
    method = kind(network, Task(CLASSES, CLASSES * PER_CLASS, EPOCHS), **(hyper or {}))
    if kind.teacher:
        name, given = kind.teacher
        method.learn_from(build(METHODS[name], given, seed=7))
    return method


def go(method, inputs, seed=0, recipe=RECIPE, **options):
    return train(method, inputs, inputs.images.labels, recipe, seed, **options)


def assert_same(a, b):
    """Equal to the last bit: nested dictionaries and lists of tensors and numbers."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@every_case
def test_resumed_is_bit_identical_and_finite(name, hyper, inputs):
    saved = {}

    def keep(progress):
        torch.save(progress, saved.setdefault(progress.epoch, io.BytesIO()))

    whole = build(find_method(name), hyper)
    done = go(whole, inputs, after_epoch=keep)
    assert [row["epoch"] for row in done.history] == [1, 2, 3, 4]
    for epoch in (1, 3):
        saved[epoch].seek(0)
        again = build(find_method(name), hyper, seed=99)  # what it starts from must not matter
        progress = go(again, inputs, resume=torch.load(saved[epoch], weights_only=False))
        for part in ("epoch", "history", "method", "optimiser"):
            assert_same(getattr(progress, part), getattr(done, part))
    z = EmbedAll(whole, inputs)()
    # Asymmetric product quantisation keeps two codes per image, side by side.
    codes = 2 if getattr(whole, "ranking", "") == "asymmetric" else 1
    assert z.shape == (len(inputs), codes * whole.network.embedding_size)
    assert z.isfinite().all()
    trained = any(set(row) > {"epoch"} for row in done.history)
    assert trained == (name != "untrained")


def test_same_seed_same_bits_and_another_seed_others(inputs):
    first, second, other = (
        go(build(METHODS["multi_similarity"]), inputs, seed, RECIPE) for seed in (0, 0, 1)
    )
    assert_same(first.method, second.method)
    assert_same(first.history, second.history)
    assert first.history != other.history


def test_a_random_frozen_part_is_each_seeds_own(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path))
    given = {"trained": "from block 2", "nmi_seeds": 1}

    def run(*seeds):
        experiment = Experiment(settings("untrained", given), lambda line: None)
        return [experiment.run(seed) for seed in seeds][-1].query

    assert torch.equal(run(0, 1), run(1))


def test_embed_all_is_in_order_and_as_at_test_time(inputs):
    method = build(METHODS["multi_similarity"])
    method.train()
    a, b = EmbedAll(method, inputs)(), EmbedAll(method, inputs, step=7)()
    torch.testing.assert_close(a, b)
    assert not method.training
    assert EmbedAll(method, inputs)(method.network.features).shape == (len(inputs), 64)


class NaNLater(Method):
    """Its second term breaks in the second step."""

    steps = 0

    def loss(self, batch):
        self.steps += 1
        good = self.embed(batch.images).square().sum()
        return {"good": good, "bad": good * (float("nan") if self.steps == 5 else 0.0)}


def test_nan_stops_naming_epoch_step_and_term(inputs):
    method = build(NaNLater)
    steps = sum(
        1 for _ in method.plan(0, inputs.images.labels, 4, 4, np.random.default_rng([0, 0]), None)
    )
    epoch, step = divmod(4, steps)
    with pytest.raises(StudyError, match=rf"epoch {epoch + 1}, step {step + 1} \(.*bad = nan\)"):
        go(method, inputs)
    assert all(p.isfinite().all() for p in method.parameters())


class Twice(Method):
    def param_groups(self, lr, trunk_lr, weight_decay):
        own = {"params": list(self.network.head.parameters()), "lr": lr}
        return [*super().param_groups(lr, trunk_lr, weight_decay), own]


class Never(Method):
    def param_groups(self, lr, trunk_lr, weight_decay):
        return super().param_groups(lr, trunk_lr, weight_decay)[:1]


@pytest.mark.parametrize("kind, times", [(Twice, 2), (Never, 0)])
def test_each_tensor_is_optimised_once(kind, times):
    with pytest.raises(StudyError, match=rf"{kind.__name__}.*network.head.* {times} times"):
        make_optimiser(build(kind), RECIPE)


def test_wrong_recipe_names_suggest_the_nearest():
    for change, hint in [({"optimiser": "adam"}, "adamw"), ({"schedule": "cosin"}, "cosine")]:
        with pytest.raises(StudyError, match=f"did you mean '{hint}'"):
            make_optimiser(build(Method), Recipe(**{**vars(RECIPE), **change}))


def test_cosine_falls_from_one_towards_zero():
    factors = [RECIPE.factor(epoch) for epoch in range(EPOCHS)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 0.2


class PlainMargin(Method):
    """What divide and conquer must be with one cluster."""

    def loss(self, batch):
        f = self.embed(batch.images)
        pairs = closest_negatives(f, batch.labels)
        return {"margin": margin(f, batch.labels, beta=1.2, alpha=0.2, pairs=pairs)}


def test_one_cluster_is_the_plain_margin_loss_bit_for_bit(inputs):
    one, plain = build(DivideAndConquer, {"clusters": 1}), build(PlainMargin)
    histories = [go(method, inputs).history for method in (one, plain)]
    assert_same(*histories)
    assert_same(one.network.state_dict(), plain.network.state_dict())


def test_a_cluster_moves_its_own_slice_only(inputs):
    method = build(DivideAndConquer)
    # A random head crowds all images into a cone, where no pair is active.
    method.network.start_head_from_pca(EmbedAll(method, inputs)(method.network.features))
    labels = torch.from_numpy(inputs.images.labels)
    for tag in range(4):
        method.zero_grad()
        index = torch.arange(len(inputs))
        method.loss(Batch(inputs.plain(index), labels, index, tag))["margin"].backward()
        rows = torch.arange(8) // 2 == tag
        for gradient in (method.network.head.weight.grad, method.network.head.bias.grad):
            assert not gradient[~rows].any()
            assert gradient[rows].any()


def test_clusters_partition_then_the_whole_trains(inputs):
    method, labels = build(DivideAndConquer), inputs.images.labels
    rng, embed_all = np.random.default_rng(0), EmbedAll(method, inputs)
    for indices, tag in list(method.plan(0, labels, 4, 4, rng, embed_all)):
        assert (method.cluster_of[indices] == tag).all()
    assert set(method.cluster_of.tolist()) <= {0, 1, 2, 3}
    before = method.cluster_of.clone()
    list(method.plan(1, labels, 4, 4, rng, embed_all))
    assert torch.equal(method.cluster_of, before)  # renewed every second epoch
    last = list(method.plan(3, labels, 4, 4, rng, embed_all))
    assert {tag for _, tag in last} == {WHOLE}


def test_slices_must_be_equal():
    with pytest.raises(StudyError, match="8 is not a multiple of clusters = 3"):
        build(DivideAndConquer, {"clusters": 3})


DEVIATIONS = {
    "untrained": ["batch composition"],
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
    "soft_triple": ["own parameters (learning rate 0.01)"],
    "triplet_batch_hard": ["ranking distance", "embeddings not normalised"],
}


@pytest.mark.parametrize("name", METHODS)
def test_deviations_are_read_off_the_class(name):
    assert deviations(build(METHODS[name])) == DEVIATIONS[name]


def test_branches_and_learning_rates_are_deviations():
    branched = build(METHODS["ranked_list"], {"variant": "LMH"})
    assert deviations(branched) == ["3 branches, each with its own head"]
    fast = build(METHODS["soft_triple"], {"centre_lr": 0.5})
    assert deviations(fast) == ["own parameters (learning rate 0.5)"]


@pytest.mark.parametrize("name", METHODS)
def test_embeddings_are_unit_unless_declared(name, inputs):
    method = build(METHODS[name])
    z = EmbedAll(method, inputs)()
    assert torch.allclose(z, F.normalize(z), atol=1e-6) == method.unit


def test_controls_are_hyperparameters_that_exist():
    for method in METHODS.values():
        for overrides in method.controls.values():
            assert set(overrides) <= set(hyperparameters(method))
    with pytest.raises(StudyError, match="did you mean 'multi_similarity'"):
        find_method("multi_simlarity")
