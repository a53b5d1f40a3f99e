"""SNR: its edges, ranking, and the Euclidean twin."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dmlstudy.errors import StudyError
from dmlstudy.geometry import snr_distance, squared_distance
from dmlstudy.losses import snr_contrastive, snr_triplet, squared, zero_mean
from dmlstudy.methods.base import Batch, Task
from dmlstudy.methods.snr import SNR
from dmlstudy.networks import build_network
from dmlstudy.training import Recipe

# Ragged classes, two of them singletons.
LABELS = torch.tensor([0] * 7 + [2] * 5 + [3] * 4 + [5] * 2 + [8, 9])
LOSSES = {"contrastive": (snr_contrastive, 1.9), "triplet": (snr_triplet, 0.2)}


def batch(seed, labels=LABELS):
    """Embeddings of varied length, mean and variance, and shuffled labels."""
    g = torch.Generator().manual_seed(seed)
    y = labels[torch.randperm(len(labels), generator=g)]
    x = torch.randn(len(y), 6, generator=g, dtype=torch.float64)
    x = x * (0.5 + torch.rand(len(y), 1, generator=g)) + torch.randn(len(y), 1, generator=g)
    return x.detach().requires_grad_(), y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_anchor_without_variance_stays_finite(dtype):
    x = torch.tensor([[2.0, 2, 2], [0, 0, 0], [1, -1, 0], [1, 0, -1]], dtype=dtype).requires_grad_()
    for form, margin in LOSSES.values():
        value = form(x, torch.tensor([0, 1, 0, 1]), margin=margin)
        assert value.isfinite() and torch.autograd.grad(value, x)[0].isfinite().all()
    assert snr_distance(x).isfinite().all()


def test_satisfied_triplets_are_silent():
    """Roth's port divides 0 by 0 here."""
    x = torch.tensor([[1, -1, 0.0], [1.01, -1, 0], [-1, 1, 0], [-1.01, 1, 0]]).requires_grad_()
    value = snr_triplet(x, torch.tensor([0, 0, 1, 1]))
    assert value == 0 and not torch.autograd.grad(value, x)[0].any()


# --- the method


def build(seed=0, **hyper):
    torch.manual_seed(seed)
    network = build_network("convnet", channels=1, embedding_size=8)
    return SNR(network, Task(6, 48, 4), **hyper)


def test_the_query_is_the_anchor_and_ranks_as_centred_euclid():
    (q, _), (g, _) = batch(0), batch(1)
    s = build().similarity(q, g)
    assert torch.equal(s, -snr_distance(q, g))
    assert not torch.allclose(s, -snr_distance(g, q).T)
    centred = [v - v.mean(1, keepdim=True) for v in (q, g)]
    assert torch.equal(s.argsort(1), torch.cdist(*centred).argsort(1, descending=True))


def test_the_twin_differs_in_the_distance_alone(inputs):
    y, index = torch.from_numpy(inputs.images.labels), torch.arange(48)
    batch = Batch(inputs.plain(index), y, index)
    for unit in (False, True):
        twin = build(distance="euclidean", unit=unit)
        z = twin.network(batch.images)
        z = F.normalize(z) if unit else z
        terms = twin.loss(batch)
        assert terms["contrastive"] == snr_contrastive.on(squared)(z, y)
        assert terms["zero mean"] == 0.005 * zero_mean(z)
        assert torch.equal(twin.similarity(z, z[:9]), -squared_distance(z, z[:9]))
    default, twin = build(), build(distance="euclidean")
    assert default.loss(batch)["contrastive"] != twin.loss(batch)["contrastive"]
    assert not default.unit


def test_the_triplet_form_and_no_zero_mean(inputs):
    y, index = torch.from_numpy(inputs.images.labels), torch.arange(48)
    batch = Batch(inputs.plain(index), y, index)
    method = build(form="triplet", margin=0.2, lam=0.0)
    terms = method.loss(batch)
    assert terms["triplet"] == snr_triplet(method.embed(batch.images), y, margin=0.2)
    assert terms["zero mean"] == 0


@pytest.mark.parametrize("hyper", [{}, *SNR.controls.values()], ids=str)
def test_training_lowers_the_loss_and_resumes_exactly(hyper, resumed_exactly):
    recipe = Recipe(4, 4, 4, 3e-3, 3e-3, 1e-4)
    method, done = resumed_exactly(partial(build, **hyper), recipe, after=1)
    assert done.history[-1][method.form] < done.history[0][method.form]


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(StudyError, match="did you mean 'triplet'"):
        build(form="triplets")
    with pytest.raises(StudyError, match="did you mean 'euclidean'"):
        build(distance="euclid")
