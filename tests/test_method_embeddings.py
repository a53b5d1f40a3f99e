"""What methods embed, rank by and save: codes, branches, teachers, proxies, views."""

from __future__ import annotations

import math
from functools import partial

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
from dmlstudy.methods.product_quantisation import ProductQuantisation
from dmlstudy.methods.proxies import SoftTriple, UpperBound
from dmlstudy.methods.teachers import Teachers
from dmlstudy.product_codes import faiss_index, hard_codes
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


# --- product quantisation


quantised = partial(build, ProductQuantisation, codebooks=4, codewords=8)


def test_embedding_holds_both_codes_and_ranks_soft_to_hard(inputs):
    method = quantised()
    z = EmbedAll(method, inputs)()
    soft, hard = z.chunk(2, 1)
    vectors = method.vectors().detach()
    for part, words in zip(hard.split(2, 1), vectors, strict=True):
        assert (part[:, None] == words).all(2).any(1).all()
    distances = torch.stack([(hard - s).square().sum(1) for s in soft])
    ours = method.similarity(z, z)
    torch.testing.assert_close(ours, -distances, rtol=1e-5, atol=1e-5)
    assert EmbedAll(method, inputs)(lambda x: method.embed(x, "gallery")).equal(z)
    index = faiss_index(hard_codes(hard, vectors), vectors)
    assert index.ntotal == 48 and index.sa_code_size() == 2  # 4 x 3 bits
    assert np.array_equal(index.reconstruct_n(0, 48), hard.numpy())
    theirs, nearest = index.search(soft.numpy(), 48)
    theirs = -torch.from_numpy(theirs)
    torch.testing.assert_close(ours.gather(1, torch.from_numpy(nearest)), theirs, rtol=0, atol=1e-5)


def test_faiss_needs_a_power_of_two_of_codewords():
    with pytest.raises(StudyError, match="power of two"):
        faiss_index(torch.zeros(3, 4, dtype=torch.uint8), torch.zeros(4, 5, 2))


def test_equal_codes_tie_exactly(inputs):
    method = quantised(codebooks=2, codewords=2)
    z = EmbedAll(method, inputs)()
    codes = hard_codes(z[:, 8:], method.vectors().detach())
    for column, code in zip(method.similarity(z, z).T, codes, strict=True):
        same = (codes == code).all(1)
        assert (method.similarity(z, z)[:, same] == column[:, None]).all()
    assert len(codes.unique(dim=0)) <= 4 < len(codes)


def test_sub_vectors_and_codes_are_unit_and_first_assigned_to_the_nearest_codeword(inputs):
    method, plain = quantised(), quantised(intra_normalise=False)
    x, z = (EmbedAll(method, inputs)(f).clone() for f in (method._sub_vectors, method.network))
    with torch.no_grad():
        method.codeword_vectors.mul_(3)  # their length must not matter
    for vectors in (x, EmbedAll(method, inputs)().unflatten(1, (8, 2))):
        torch.testing.assert_close(vectors.norm(dim=2), torch.ones(vectors.shape[:2]))
    vectors = method.codeword_vectors.detach() / 3
    nearest = torch.stack([squared_distance(x[:, m], vectors[m]).argmin(1) for m in range(4)], 1)
    assert torch.equal(method.assign(x).argmax(2), nearest)
    soft = torch.einsum("bmk,mkw->bmw", method.assign(x), vectors)
    ours = EmbedAll(method, inputs)()[:, :8].unflatten(1, (4, 2))
    torch.testing.assert_close(ours, F.normalize(soft, dim=2))
    raw = EmbedAll(plain, inputs)(plain._sub_vectors)
    for m in range(4):  # each has its share of the leading coordinates
        assert torch.equal(raw[:, m], z[:, [m, m + 4]])
    assert (EmbedAll(plain, inputs)().unflatten(1, (8, 2)).norm(dim=2) < 0.99).any()


def test_k_means_control_is_the_float_network_quantised_after_training(inputs):
    plain, after = quantised(ranking="float"), quantised(ranking="k-means")
    assert_same(*(go(method, inputs).history for method in (plain, after)))
    x, z = EmbedAll(plain, inputs)().clone(), EmbedAll(after, inputs)()
    query, stored = z.chunk(2, 1)
    assert torch.equal(query, x)
    for m, vectors in enumerate(after.codeword_vectors.detach()):
        part, code = (rows[:, 2 * m : 2 * m + 2] for rows in (x, stored))
        distance = squared_distance(part, vectors)
        assert torch.equal(code, vectors[distance.argmin(1)])
        for k in range(8):  # Lloyd's condition: a codeword is the mean of what it stands for
            mine = part[distance.argmin(1) == k]
            torch.testing.assert_close(vectors[k], mine.mean(0), rtol=0, atol=0.05)
    expected = -torch.stack([(stored - q).square().sum(1) for q in x])
    torch.testing.assert_close(after.similarity(z, z), expected, rtol=1e-4, atol=1e-5)


def test_symmetric_trains_the_same_network_and_ranks_hard_to_hard(inputs):
    one, other = quantised(), quantised(ranking="symmetric")
    assert_same(*(go(method, inputs).history for method in (one, other)))
    both, hard = (EmbedAll(method, inputs)() for method in (one, other))
    assert torch.equal(both[:, 8:], hard)
    expected = -squared_distance(hard)
    torch.testing.assert_close(other.similarity(hard, hard), expected, rtol=1e-5, atol=1e-5)


def test_float_control_quantises_nothing(inputs):
    method = quantised(ranking="float")
    assert set(go(method, inputs).history[-1]) == {"epoch", "softmax", "centre"}
    z = EmbedAll(method, inputs)(method.network)
    f = F.normalize(z.unflatten(1, (2, 4)).mT, dim=2).flatten(1)
    torch.testing.assert_close(EmbedAll(method, inputs)(), f)
    torch.testing.assert_close(method.similarity(f, f), -squared_distance(f))


def test_zero_embeddings_pass_no_nan(inputs):
    method = quantised()
    torch.nn.init.zeros_(method.network.head.weight)
    torch.nn.init.zeros_(method.network.head.bias)
    sum(method.loss(whole(inputs)).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
