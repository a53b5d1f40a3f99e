"""A collapse is measured, named and marked; a sound run is not; what is stored after every epoch changes no bit."""

import math
import re

import numpy as np
import pytest
import torch
from conftest import assert_same, build, whole

from dmlstudy.evaluation.spectrum import mean_cosine, relative_spread
from dmlstudy.methods import METHODS
from dmlstudy.study.collapse import state, worst
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.notebook_report import Report
from dmlstudy.study.params import settings
from dmlstudy.training import collapsed_terms

NAN = float("nan")
TRAINED = [name for name in METHODS if name not in ("untrained", "raw")]


@pytest.mark.parametrize(
    ("spread", "loss", "at_a_point", "expected"),
    [
        # Measured on validation folds: glyphs, Omniglot, heads on CUB (a photographic trunk begins at 0.99).
        pytest.param(0.219, 0.2132, 0.2, "yes", id="SCHE, R@1 69.2"),
        pytest.param(0.021, 0.2003, 0.2, "yes", id="SCHE without signatures"),
        pytest.param(0.014, 0.2042, 0.2, "yes", id="teachers"),
        pytest.param(0.119, 0.7177, 0.6931, "yes", id="batch-hard"),
        pytest.param(0.108, 0.6955, 0.6931, "yes", id="batch-hard on unit embeddings, CUB"),
        pytest.param(0.326, 0.6992, 0.6931, "partly", id="batch-hard, Omniglot"),
        pytest.param(0.635, 0.2335, 0.2, "no", id="SCHE, CUB, MAP@R above multi-similarity's"),
        pytest.param(0.827, 62.63, 8.16, "no", id="DE-DSP, CUB, at the length of the PCA start"),
        pytest.param(0.801, 0.6234, 0.9742, "no", id="multi-similarity"),
        pytest.param(0.863, 0.2096, 0.6, "no", id="ranked list"),
        pytest.param(
            0.717, 0.2101, 0.2, "no", id="SCHE without mining: a mined mean near its margin"
        ),
        pytest.param(0.545, 0.1394, 0.3613, "no", id="density aware"),
        pytest.param(0.754, 0.3309, 0.0, "no", id="margin loss, to which a point costs nothing"),
        pytest.param(0.096, NAN, NAN, "no", id="untrained ConvNet"),
        # Made up.
        (0.0, 0.0, 0.0, "yes"),
        (0.0, 0.5, 1.0, "partly"),
        (0.4, 1.0, 1.0, "partly"),
        (0.2, 0.9, 1.0, "no"),
    ],
)
def test_the_rule_names_known_collapses_and_no_sound_row(spread, loss, at_a_point, expected):
    assert state(spread, loss, at_a_point) == expected


def test_one_collapsed_seed_does_not_pass_unseen():
    assert worst(["no", "yes", "partly"]) == "yes"
    assert worst([]) == "no"


def test_spread_and_cosine_at_their_ends():
    point = torch.tensor([[3.0, 4.0]]).repeat(5, 1)
    assert mean_cosine(point) == pytest.approx(1)
    assert relative_spread(point) == pytest.approx(0, abs=1e-6)
    assert relative_spread(torch.zeros(5, 2)) == 0
    x = torch.nn.functional.normalize(torch.randn(400, 8, generator=torch.manual_seed(0)) + 1)
    assert relative_spread(x) == pytest.approx(math.sqrt(1 - mean_cosine(x)), abs=2e-3)
    assert relative_spread(100 * x) == pytest.approx(relative_spread(x))


@pytest.mark.parametrize(
    ("name", "hyper", "expected"),
    [
        ("triplet_batch_hard", {}, math.log(2)),
        ("triplet_batch_hard", {"margin": 0.3}, 0.3),
        ("sche", {}, 0.2),
        ("fastap", {}, 1 - 7 / 47),
        ("hdml", {"l2": 0.0}, math.log(6)),
    ],
)
def test_the_loss_itself_says_what_a_point_costs(inputs, name, hyper, expected):
    """Six classes of eight images: an image has 7 positives among 47 others."""
    terms = collapsed_terms(build(METHODS[name], **hyper), whole(inputs))
    assert next(iter(terms.values())) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_asking_for_it_changes_nothing(inputs, name):
    method, batch = build(METHODS[name]), whole(inputs)
    method.train()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    random = torch.get_rng_state()
    terms = collapsed_terms(method, batch)
    assert_same(dict(method.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert list(terms) == list(method.loss(batch))


SMOKE = {"epochs": 2, "nmi_seeds": 1, "control_seeds": 0, "ks": [2, 4]}
ABSURD = {"lr": 10.0, "trunk_lr": 10.0}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The finished report of a method on the digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMLSTUDY_CACHE", str(tmp_path_factory.mktemp("cache")))

        def run(method, **given):
            made = Report(Experiment(settings(method, SMOKE | given), lambda line: None))
            made.train()
            return made

        yield run


def test_a_collapsing_run_is_named(report):
    made = report("fastap", **ABSURD)
    record = made.record()
    assert record.collapsed() == "yes"
    assert record.metrics["mean cosine"][0] > 0.99 > record.baseline["mean cosine"][0]
    said = made.verdict_text()
    assert "**Collapsed** in 1 of 1 seeds: mean cosine of random test pairs 1.00" in said
    assert "1 个种子中有 1 个**坍缩**" in said


def test_a_sound_run_is_not(report):
    made = report("fastap", control_seeds=1)
    record = made.record()
    assert set(record.collapse) == {"method", "5 bins", "20 bins"}
    assert {record.collapsed(name) for name in record.collapse} == {"no"}
    assert "ollapsed" not in made.verdict_text()


def test_an_untrained_trunk_has_no_loss_to_collapse(report):
    record = report("untrained").record()
    assert (record.collapse, record.epochs) == ({}, {})


def test_a_collapsed_control_is_named(report):
    made = report("fastap", control_seeds=1, **ABSURD)
    assert made.record().collapsed("20 bins") == "yes"
    assert "20 bins ‡" in made.controls().text()
    assert re.search("Fully or partly collapsed controls:.* 20 bins", made.verdict_text())


def test_scores_of_every_epoch_are_stored_and_the_last_one_counts(report):
    made = report("fastap", control_seeds=1)
    record = made.record()
    for name in ("R@1", "MAP@R"):
        (scores,) = record.epochs[f"test {name}"]
        assert len(scores) == 2
        assert [scores[-1]] == record.metrics[name]
        queries = np.array(record.per_class["queries"], float)
        for start, metrics in (("", record.metrics), ("baseline ", record.baseline)):
            mean = np.average(record.per_class[start + name][0], weights=queries)
            assert mean == pytest.approx(metrics[name][0], abs=1e-3)
    last, best = record.epochs["test R@1"][0][-1], max(record.epochs["test R@1"][0])
    (note,) = [n for n in made.table().notes if "never used" in n.en]
    assert f"which counts: {last:.2f}; " in note.en
    assert f"never used: {best:.2f}; difference: {best - last:.2f} points" in note.en
    on_a_fold = report("fastap", fold=0, folds=2, p=2).record()
    assert [*on_a_fold.epochs] == ["validation R@1", "validation MAP@R"]


def test_scores_change_no_bit_and_outlast_an_interruption(tmp_path, monkeypatch):
    def run(folder, **given):
        monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path / folder))
        return Experiment(settings("snr", SMOKE | given), lambda line: None).run(0).progress

    whole_run, without = run("a"), run("b", epoch_scores=False)
    assert (len(whole_run.scores), without.scores) == (2, [])
    for part in ("method", "optimiser", "history", "steps", "collapsed"):
        assert_same(getattr(whole_run, part), getattr(without, part))

    def stop(self, seed, row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Experiment, "_log_epoch", stop)
        run("c")
    resumed = run("c")
    for part in ("method", "history", "steps", "collapsed", "scores"):
        assert_same(getattr(resumed, part), getattr(whole_run, part))
    steps = [row["contrastive"] for row in resumed.steps[-len(resumed.steps) // 2 :]]
    assert np.mean(steps) == pytest.approx(resumed.history[-1]["contrastive"], rel=1e-5)
