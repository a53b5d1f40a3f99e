"""The loop: the same bits from the same seed, and no silent mistakes."""

import numpy as np
import pytest
import torch
from conftest import EPOCHS, RECIPE, assert_same, build, go

from dmlstudy.errors import StudyError
from dmlstudy.methods import METHODS, EmbedAll, Epoch, Method
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.params import settings
from dmlstudy.training import Recipe, make_optimiser


def test_same_seed_same_bits_and_another_seed_others(inputs):
    first, second, other = (
        go(build(METHODS["multi_similarity"]), inputs, seed) for seed in (0, 0, 1)
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
    """Its second term breaks in the fifth step."""

    steps = 0

    def loss(self, batch):
        self.steps += 1
        good = self.embed(batch.images).square().sum()
        return {"good": good, "bad": good * (float("nan") if self.steps == 5 else 0.0)}


def test_nan_stops_naming_epoch_step_and_term(inputs):
    method = build(NaNLater)
    epoch = Epoch(0, inputs.images.labels, 4, 4, np.random.default_rng([0, 0]), None)
    steps = sum(1 for _ in method.batches(epoch))
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


def experiment(method, **given):
    small = {"nmi_seeds": 1, "epochs": 1, "p": 4, "k": 4, "cached_views": 0}
    return Experiment(settings(method, small | given), lambda line: None)


@pytest.mark.parametrize("method", ["snr", "triplet_batch_hard", "multi_similarity"])
def test_the_untrained_trunk_is_the_row_itself_before_its_first_step(method, tmp_path, monkeypatch):
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path))
    start = experiment(method).baseline(0)
    assert isinstance(start.method, METHODS[method]) and not start.progress.history
    still = experiment(method, lr=0.0, trunk_lr=0.0, freeze_bn=True).run(0)
    assert torch.equal(start.query, still.query)
    assert start.evaluation.metrics == still.evaluation.metrics
    cosine = experiment("untrained").run(0)
    same = start.evaluation.metrics == cosine.evaluation.metrics
    assert same == (method == "multi_similarity")


def test_without_trained_codes_the_untrained_trunk_is_the_float_embedding(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path))
    start = experiment("product_quantisation").baseline(0)
    assert start.method.ranking == "float"
    assert start.query.shape[1] == start.method.network.embedding_size


def test_raw_pixels_from_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path))
    run = experiment("raw")
    images = run._inputs(run.benchmark.query).test_inputs(torch.arange(3)).flatten(1)
    query = run.run(0).query[:3]
    torch.testing.assert_close(query * images.norm(dim=1, keepdim=True), images)


def test_a_pretrained_network_is_built_once_and_starts_alike(tmp_path, monkeypatch):
    """Seeds share trunk and PCA head; a random head is each seed's own, whatever ran before."""
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path))
    given = {"trunk": "tf_efficientnet_lite0", "weights": "package", "trained": "head"}
    given |= {"embedding_size": 4, "resize": 32, "crop": 32, "cached_views": 1, "dataset": "digits"}
    for start, alike in (("pca", True), ("default", False)):
        one = experiment("untrained", head_start=start, **given)
        first, second = one.run(0).query, one.run(1).query
        assert torch.equal(first, second) == alike
        assert torch.equal(one.run(0).query, first)
        raw = experiment("raw", head_start=start, **given).run(0).query
        assert raw.shape == (len(first), 1280)
