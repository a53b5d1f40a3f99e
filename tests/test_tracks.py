"""Tracks: which labels are wrong or hidden, the same for every method and seed, and never the test labels."""

from dataclasses import replace

import numpy as np
import pytest

from dmlstudy.data import Track
from dmlstudy.data.tracks import confused_labels, hide_labels, similar_classes, wrong_labels
from dmlstudy.errors import StudyError
from dmlstudy.methods import METHODS, TrainingSet
from dmlstudy.networks import build_network
from dmlstudy.samplers import pk_batches
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.notebook_report import Report
from dmlstudy.study.params import settings
from dmlstudy.training import Recipe, train

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 40))
SIMILAR = similar_classes(10)
RATES = (0.0, 0.1, 0.25, 0.4, 0.9)
KINDS = {
    "symmetric": lambda rate: wrong_labels(LABELS, rate, 10),
    "asymmetric": lambda rate: confused_labels(LABELS, rate, SIMILAR),
}


@pytest.mark.parametrize("corrupt", KINDS.values(), ids=KINDS)
def test_the_rate_is_exact_and_a_larger_one_keeps_the_wrong_labels(corrupt):
    untouched = LABELS.copy()
    for rate, more in zip(RATES, RATES[1:], strict=False):
        shown, worse = corrupt(rate), corrupt(more)
        wrong = shown != LABELS
        assert wrong.sum() == round(rate * 400) and shown.dtype == np.int64
        assert np.array_equal(worse[wrong], shown[wrong])
        assert np.array_equal(shown, corrupt(rate))
    assert np.array_equal(LABELS, untouched)


def test_symmetric_noise_goes_to_every_other_class_alike():
    counts = np.bincount(wrong_labels(np.zeros(3000, dtype=np.int32), 0.999, 4), minlength=4)
    assert counts[0] == 3 and counts[1:] == pytest.approx(999, abs=100)


def test_asymmetric_noise_takes_its_share_of_each_class_to_the_similar_one():
    shown = confused_labels(LABELS, 0.3, SIMILAR)
    for c, given in enumerate(shown[LABELS.argsort(kind="stable")].reshape(10, 40)):
        assert (given == c).sum() == 28 and (given == (c + 1) % 10).sum() == 12


def test_similar_classes_are_of_one_group_where_it_has_two():
    groups = ["a", "b", "a", "c", "b", "a"]
    similar = similar_classes(6, groups)
    assert sorted(similar[[0, 1, 2, 4, 5]]) == [0, 1, 2, 4, 5]
    assert all(groups[similar[c]] == groups[c] for c in (0, 1, 2, 4, 5)) and similar[3] == 4
    assert (similar != np.arange(6)).all()


@pytest.mark.parametrize(("share", "kept"), [(1.0, 40), (0.5, 20), (0.1, 4), (0.01, 2)])
def test_every_class_keeps_its_share_of_labels_and_two_at_least(share, kept):
    shown = hide_labels(LABELS, share)
    labelled = shown >= 0
    assert (np.bincount(LABELS[labelled]) == kept).all()
    assert np.array_equal(shown[labelled], LABELS[labelled]) and (shown[~labelled] == -1).all()
    assert (hide_labels(LABELS, min(1, 2 * share))[labelled] >= 0).all()


def test_batches_hold_labelled_images_only():
    shown = hide_labels(LABELS, 0.5)
    drawn = np.concatenate(list(pk_batches(shown, 5, 4, np.random.default_rng(0))))
    assert np.array_equal(np.sort(drawn), np.flatnonzero(shown >= 0))
    compact = list(pk_batches(shown[shown >= 0], 5, 4, np.random.default_rng(0)))
    assert np.array_equal(drawn, np.flatnonzero(shown >= 0)[np.concatenate(compact)])
    few = np.where(shown < 3, shown, -1)
    with pytest.raises(StudyError, match="two labelled images or more.*raise labelled_share"):
        next(pk_batches(few, 4, 4, np.random.default_rng(0)))
    with pytest.raises(StudyError, match="has 0"):
        next(pk_batches(np.full(9, -1), 4, 4, np.random.default_rng(0)))


def test_a_track_follows_the_groups_and_reports_what_it_did(tiny_images):
    assert np.array_equal(Track().labels(tiny_images), tiny_images.labels)
    track = Track(0.25, "asymmetric", 0.5)
    images = replace(tiny_images, groups=tuple("xyxyzz"))
    shown, wrong = track.labels(images), np.zeros(6, int)
    for c in range(6):
        wrong[c] = np.setdiff1d(shown[images.labels == c], [c, -1]).sum()
    assert set(wrong[:4]) <= {0, 1, 2, 3} and set(wrong[:2]) <= {0, 2, 3}
    labelled = shown >= 0
    assert track.realised(images) == {
        "labelled": labelled.mean(),
        "wrong": (shown[labelled] != images.labels[labelled]).mean(),
    }


@pytest.mark.parametrize("track", [Track(0.3, "asymmetric"), Track(labelled_share=0.5)], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_labelled_images_only(name, track, inputs, monkeypatch):
    def build(name):
        network = build_network("convnet", channels=1, embedding_size=8)
        return METHODS[name](network, TrainingSet(6, 48, 3))

    shown, drawn, method = track.labels(inputs.images), [], build(name)
    if method.teacher:
        method.learn_from(build(method.teacher[0]))
    loss = method.loss
    monkeypatch.setattr(method, "loss", lambda batch: (drawn.append(batch), loss(batch))[1])
    train(method, inputs, shown, Recipe(3, 2, 3, 1e-3, 1e-3, 1e-4), seed=0)
    assert drawn or name in ("untrained", "raw")
    for batch in drawn if name != "invariant_spreading" else ():  # it needs no labels
        assert (batch.labels >= 0).all()
        assert np.array_equal(batch.labels, shown[batch.indices])


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path))

    def build(method="multi_similarity", **given):
        smoke = {"dataset": "digits", "folds": 2, "p": 2, "nmi_seeds": 1, "gallery": "never"}
        return Experiment(settings(method, smoke | given), log=lambda line: None)

    return build


TRACK = {"label_noise": 0.2, "labelled_share": 0.5}


def test_a_control_may_change_the_track(experiment):
    plain, tracked = experiment(), experiment(**TRACK)
    control, own = plain.run(0, TRACK), tracked.run(0)
    assert control.evaluation.metrics == own.evaluation.metrics
    assert control.evaluation.metrics != plain.run(0).evaluation.metrics
    assert np.array_equal(control.labels, own.labels)
    assert np.array_equal(own.labels, experiment("fastap", **TRACK).run(1).labels)
    assert np.array_equal(plain.run(0).labels, plain.benchmark.train.labels)
    untrained = [e.baseline(0).evaluation.metrics for e in (plain, tracked)]
    assert untrained[0] == untrained[1]


def test_a_validation_fold_has_the_track_on_its_training_classes_only(experiment):
    clean, tracked = experiment(fold=0), experiment(fold=0, **TRACK)
    assert np.array_equal(clean.benchmark.query.labels, tracked.benchmark.query.labels)
    assert np.array_equal(tracked.benchmark.train.labels, clean.benchmark.train.labels)
    shown = tracked.run(0).labels
    assert len(shown) == len(clean.benchmark.train) and (shown == -1).mean() == pytest.approx(
        0.5, abs=0.02
    )


def test_the_record_tells_the_realised_track_and_nothing_without_one(experiment):
    records = []
    for given in ({}, TRACK | {"noise_kind": "asymmetric"}):
        report = Report(experiment("untrained", control_seeds=0, **given))
        report.train()
        report.train()  # as when the cell is run again
        records.append(report.record())
    without, record = records
    assert not set(vars(Track())) & set(without.params) and "labels" not in without.provenance
    assert {**record.params, **TRACK} == record.params
    assert record.params["noise_kind"] == "asymmetric"
    realised = record.provenance["labels"]
    assert realised["labelled"] == pytest.approx(0.5, abs=0.02)
    assert realised["wrong"] == pytest.approx(0.2, abs=0.03)
    assert "20" in report.conditions().text() and "% wrong" in report.conditions().text()
