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
