"""What methods embed, rank by and save: codes, branches, teachers, proxies, views."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, EPOCHS, RECIPE, assert_same, build, go, whole

from dmlstudy import losses
from dmlstudy.data import Activations, Augment, Pixels
from dmlstudy.errors import StudyError
from dmlstudy.geometry import pairwise_distance, snr_distance, squared_distance
from dmlstudy.methods import METHODS, Batch, EmbedAll, TrainingSet, deviations
from dmlstudy.methods.invariant_spreading import InvariantSpreading
from dmlstudy.methods.pairs import SNR, FastAP, MultiSimilarity, RankedList
from dmlstudy.methods.proxies import SoftTriple, UpperBound
from dmlstudy.methods.teachers import Teachers
from dmlstudy.study.controls import control_overrides
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.params import settings
from dmlstudy.training import make_optimiser


@pytest.mark.parametrize("hyper", [{}, {"distance": "euclidean"}], ids=str)
def test_snr_regularises_the_mean_and_ranks_by_its_distance(hyper, inputs):
    method = build(SNR, **hyper)
    z = method.embed(whole(inputs).images)
    mean = z.sum(1).abs().mean()
    torch.testing.assert_close(method.loss(whole(inputs))["zero mean"], 0.005 * mean)
    queries, gallery = z[:9], 3 * z  # the query is the anchor
    distance = (squared_distance if hyper else snr_distance)(queries, gallery)
    torch.testing.assert_close(method.similarity(queries, gallery), -distance, rtol=1e-4, atol=1e-4)


def test_branches_have_a_loss_each_and_stand_side_by_side(inputs):
    method, batch = build(RankedList, variant="LMH"), whole(inputs)
    f = method.embed(batch.images)
    assert f.shape == (48, 24)
    terms = method.loss(batch)
    assert list(terms) == ["low", "middle", "high"]
    for value, branch in zip(terms.values(), f.chunk(3, dim=1), strict=True):
        torch.testing.assert_close(value, losses.ranked_list(F.normalize(branch), batch.labels))
    torch.testing.assert_close(F.normalize(f[:, 16:]), F.normalize(method.network(batch.images)))


def test_branches_are_a_control_where_their_taps_are_trained():
    method = build(RankedList)
    assert method.own_controls() == RankedList.controls
    method.network.taps = {}
    assert list(method.own_controls().values()) == [{"temperature": 0.0}]


@pytest.mark.parametrize("name", ["discriminative_sampling", "hdml"])
def test_raw_embeddings_are_ranked_by_cosine(name, inputs):
    method = build(METHODS[name])
    z = EmbedAll(method, inputs)()
    cosine = F.cosine_similarity(z[:5, None], z, dim=2)
    torch.testing.assert_close(method.similarity(z[:5], 3 * z), cosine)


@pytest.mark.parametrize("hyper", [{}, *UpperBound.controls.values()], ids=str)
def test_the_upper_bound_is_of_a_unit_output_around_axes_that_stay(hyper, inputs):
    method, batch = build(UpperBound, **hyper), whole(inputs)
    f, axes = method.embed(batch.images), method.axes.clone()
    g = F.normalize(f @ method.layer.weight.T)
    torch.testing.assert_close(method.output(3 * f), g)
    (value,) = method.loss(batch).values()
    if hyper.get("bounded"):
        assert value == losses.triplet_without_margin(g, batch.labels)
    else:
        squared = hyper.get("squared", False)
        expected = losses.upper_bound(g, batch.labels, centroids=axes, squared=squared)
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(axes.norm(dim=1), torch.ones(CLASSES))
    kind = hyper.get("centroids")
    assert torch.equal(axes, torch.eye(CLASSES)) == (kind != "random")
    assert ("axes" in method.state_dict()) == (kind is not None)  # one-hot ones follow from C
    go(method, inputs)
    assert torch.equal(method.axes, axes) == (kind != "trained")


def test_the_bound_is_above_what_it_bounds(inputs):
    """The whole set has classes of equal size, so that with its constants the bound holds."""
    batch, n, size = whole(inputs), 48, 8
    for seed in range(3):
        bound, triplets = (
            next(iter(build(UpperBound, seed, bounded=b).loss(batch).values()))
            for b in (False, True)
        )
        constants = 3 * (CLASSES - 1) * (size - 1) * size * n
        assert constants * bound >= n * (size - 1) * (n - size) * triplets


def test_soft_triple_counts_the_centres_that_stay_apart(inputs):
    method = build(SoftTriple, centres=4)
    with torch.no_grad():
        method.proxies.copy_(torch.eye(8)[:4].expand(CLASSES, 4, 8))
        method.proxies[0] = torch.eye(8)[0]  # all alike
        method.proxies[1, 2] = 2 * torch.eye(8)[1] + 0.1 * torch.eye(8)[5]  # near the second
    assert method.distinct_centres().tolist() == [1, 3, 4, 4, 4, 4]
    assert method.distinct_centres(0.9999).tolist() == [1, 4, 4, 4, 4, 4]
    batch, terms = whole(inputs), method.loss(whole(inputs))
    w = F.normalize(method.proxies, dim=2)
    f = method.embed(batch.images)
    torch.testing.assert_close(terms["softmax"], losses.soft_triple(f, batch.labels, centres=w))
    torch.testing.assert_close(terms["regulariser"], 0.2 * losses.soft_triple_regulariser(w))
    assert build(SoftTriple, tau=0.0).loss(batch)["regulariser"] == 0
    assert build(SoftTriple, centres=1).loss(batch)["regulariser"] == 0


def test_soft_triples_centres_start_and_move_as_the_authors():
    method = build(SoftTriple, centres=5, centre_lr=0.5, centre_eps=0.02)
    theirs = torch.nn.init.kaiming_uniform_(torch.empty(8, CLASSES * 5), a=math.sqrt(5))
    ours = method.proxies.detach()
    assert ours.abs().max() <= theirs.abs().max() * 1.1 <= 30**-0.5 * 1.1
    torch.testing.assert_close(ours.std(), theirs.std(), rtol=0.15, atol=0)
    *network, centres = make_optimiser(method, RECIPE).param_groups
    assert (centres["lr"], centres["eps"], centres["weight_decay"]) == (0.5, 0.02, 0)
    assert {group["eps"] for group in network} == {1e-8}


# --- instances


def test_labels_are_never_seen(inputs):
    """Other labels, even of other classes: the same network bit for bit."""
    states = []
    labels = inputs.images.labels
    for given in (labels, np.random.default_rng(1).permutation(labels), 0 * labels):
        method = build(InvariantSpreading)
        inputs.images.labels[:] = given
        go(method, inputs)
        states.append(method.state_dict())
    for state in states[1:]:
        assert_same(state, states[0])


def test_coinciding_views_are_counted(inputs):
    """One cached view makes both views the same; with two, the views of an image are different ones."""
    cache = whole(inputs).images.numpy()[None].astype(np.float16)
    assert build(InvariantSpreading).coinciding == 0
    for cached, expected in ((cache, 1.0), (np.concatenate([cache, cache[..., ::-1]]), 0.0)):
        method = build(InvariantSpreading)
        go(method, Activations(inputs.images, cached))
        assert method.coinciding == expected
        assert method.pairs[0] == EPOCHS * 48
        said = [text for text in deviations(method) if "views are the same in 100 %" in text]
        assert len(said) == expected


@pytest.mark.parametrize("spec, expected", [(Augment(flip=True), 0.0), (Augment(), 1.0)], ids=str)
def test_an_image_and_its_mirror_are_the_two_views(spec, expected, tiny_images):
    """By chance alone half of the pairs would be twice the same."""
    method = build(InvariantSpreading)
    go(method, Pixels(tiny_images, 8, spec))
    assert method.coinciding == expected


def test_without_the_second_sum_it_is_the_instance_softmax(inputs):
    images = whole(inputs).images[:12]
    images = torch.cat([images, images.flip(3)])
    batch = Batch(images, torch.zeros(24, dtype=torch.long), torch.arange(12).repeat(2))
    without = build(InvariantSpreading, spreading=0.0)
    f = F.normalize(without.network(images))
    logits = (f @ f.T / 0.1).masked_fill(torch.eye(24, dtype=torch.bool), -torch.inf)
    softmax = F.cross_entropy(logits, torch.arange(24).roll(12))
    torch.testing.assert_close(without.loss(batch)["instance"], softmax)
    assert build(InvariantSpreading).loss(batch)["instance"] > softmax


# --- teachers


@pytest.mark.parametrize("distil, lam", [("relative", 1.0), ("absolute", 1.0), ("relative", 0.0)])
def test_a_frozen_teacher_that_is_not_saved_sees_the_same_view(distil, lam, inputs):
    method, batch = build(Teachers, distil=distil, lam=lam), whole(inputs)
    teacher = build(MultiSimilarity, seed=7)  # as `build` makes it
    f, target = method.embed(batch.images), teacher.embed(batch.images).detach()
    terms = method.loss(batch)
    if distil == "absolute":
        expected = (f - target).norm(dim=1).mean()
    else:
        expected = (pairwise_distance(f) - pairwise_distance(target)).norm() / 48
    torch.testing.assert_close(terms["teacher"], lam * expected)
    sum(terms.values()).backward()
    go(method, inputs)
    assert not any(p.requires_grad for p in method._teacher[0].parameters())
    assert_same(method._teacher[0].state_dict(), teacher.state_dict())
    assert set(method.state_dict()) == set(method.network.state_dict(prefix="network."))


def test_no_teacher_is_an_error_in_one_sentence(inputs):
    alone = Teachers(build(FastAP).network, TrainingSet(CLASSES, 48, EPOCHS))
    with pytest.raises(StudyError, match="call learn_from before training"):
        alone.loss(whole(inputs))


def test_the_run_trains_the_teacher_first_and_its_row_is_a_control(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path))
    given, lines = {"dataset": "digits", "epochs": 1, "nmi_seeds": 1, "p": 4, "k": 4}, []
    experiment = Experiment(settings("teachers", given), lines.append)
    student = experiment.run(0)
    assert any("teacher first: Multi-similarity" in line for line in lines)
    checkpoints = {path.name.split("-")[1] for path in (tmp_path / "runs").glob("*.pt")}
    assert checkpoints == {"teachers", "multi_similarity"}
    title, overrides = next(iter(control_overrides(experiment.settings, student.method).items()))
    assert title == "its teacher: Multi-similarity"
    row = experiment.run(0, overrides)
    assert len(list((tmp_path / "runs").glob("*.pt"))) == 2  # trained once
    assert_same(row.method.state_dict(), student.method._teacher[0].state_dict())
    assert not torch.equal(row.query, student.query)
    plain = Experiment(settings("multi_similarity", given), lines.append)
    assert torch.equal(plain.run(0).query, row.query)
