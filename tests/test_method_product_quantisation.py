"""Supervised product quantisation: codes, losses and look-ups against loops, brute force and faiss."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmlstudy.data import Augment, ImageSet, Pixels
from dmlstudy.errors import StudyError
from dmlstudy.geometry import squared_distance
from dmlstudy.losses.product_quantisation import (
    asymmetric_distances,
    bits_per_image,
    faiss_index,
    gini,
    hard_codes,
    joint_central,
    query_tables,
    shared_softmax,
    soft_and_hard,
    symmetric_distances,
    symmetric_tables,
)
from dmlstudy.methods.base import Batch, Task, deviations
from dmlstudy.methods.product_quantisation import ProductQuantisation
from dmlstudy.networks import build_network
from dmlstudy.training import EmbedAll, Recipe, train

torch.set_num_threads(1)


def fixture(seed, images=7, books=3, words=4, width=2, dtype=torch.float64):
    """Assignments [B, M, K] and codebooks [M, K, W], both with gradient."""
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(images, books, words, generator=g, dtype=dtype).mul_(2).softmax(2)
    codebooks = torch.randn(books, words, width, generator=g, dtype=dtype)
    return p.requires_grad_(), codebooks.requires_grad_()


def test_card_values():
    p = torch.tensor([[[0.75, 0.25]]], dtype=torch.float64)
    codebook = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    soft, hard = soft_and_hard(p, codebook)
    assert (soft.item(), hard.item()) == (0.25, 0.0)
    label, centre = torch.tensor([0]), torch.zeros(1, 1, dtype=torch.float64)
    assert joint_central(soft, hard, label, centres=centre).item() == 0.03125
    assert gini(p)[1].item() == 0.375
    assert bits_per_image(4, 16) == 16


@pytest.mark.parametrize("seed", range(3))
def test_codes_equal_the_loop(seed):
    p, codebooks = fixture(seed)
    soft, hard = soft_and_hard(p, codebooks)
    for i in range(len(p)):
        for m in range(3):
            mean = sum(p[i, m, k] * codebooks[m, k] for k in range(4))
            torch.testing.assert_close(soft[i, 2 * m : 2 * m + 2], mean)
            best = codebooks[m, int(p[i, m].argmax())]
            assert torch.equal(hard[i, 2 * m : 2 * m + 2], best)


def test_gradient_goes_straight_through_the_arg_max():
    """dL/dp is what the one-hot vector would get, for every codeword, and codewords chosen get their own."""
    p, codebooks = fixture(0)
    _, hard = soft_and_hard(p, codebooks)
    back = torch.randn_like(hard)
    dp, dc = torch.autograd.grad((hard * back).sum(), (p, codebooks))
    expected_c = torch.zeros_like(codebooks)
    for i in range(len(p)):
        for m in range(3):
            part = back[i, 2 * m : 2 * m + 2]
            torch.testing.assert_close(dp[i, m], codebooks[m].detach() @ part)
            expected_c[m, p[i, m].argmax()] += part
    torch.testing.assert_close(dc, expected_c)


def test_gradient_of_the_soft_code():
    p, codebooks = fixture(1)
    assert torch.autograd.gradcheck(lambda a, b: soft_and_hard(a, b)[0], (p, codebooks))


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_the_loop(seed):
    p, codebooks = fixture(seed)
    soft, hard = (code.detach().requires_grad_() for code in soft_and_hard(p, codebooks))
    labels = torch.tensor([0, 2, 2, 4, 0, 0, 1])
    centres, weight = torch.randn(2, 5, 6, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    central = softmax = 0.0
    for s, h, y in zip(soft, hard, labels.tolist(), strict=True):
        central = central + 0.5 * sum((s[d] - centres[y, d]) ** 2 for d in range(6)) / 7
        central = central + 0.5 * sum((h[d] - centres[y, d]) ** 2 for d in range(6)) / 7
        for code in (s, h):
            logits = torch.stack([code @ w + b for w, b in zip(weight, bias, strict=True)])
            softmax = softmax - torch.log(logits[y].exp() / logits.exp().sum()) / 7
    pairs = (
        (joint_central(soft, hard, labels, centres=centres), central),
        (shared_softmax(soft, hard, labels, weight=weight, bias=bias), softmax),
    )
    for ours, naive in pairs:
        torch.testing.assert_close(ours, naive)
        for a, b in zip(
            *(torch.autograd.grad(v, (soft, hard)) for v in (ours, naive)), strict=True
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("seed", range(3))
def test_gini_equals_the_loop(seed):
    p, _ = fixture(seed)
    used = sharp = 0.0
    for m in range(3):
        used = used + sum((sum(p[i, m, k] for i in range(7)) / 7) ** 2 for k in range(4)) / 3
        for i in range(7):
            sharp = sharp + (1 - sum(p[i, m, k] ** 2 for k in range(4))) / 21
    for ours, naive in zip(gini(p), (used, sharp), strict=True):
        torch.testing.assert_close(ours, naive)
        torch.testing.assert_close(*(torch.autograd.grad(v, p)[0] for v in (ours, naive)))


def test_the_two_gini_terms_together_give_each_image_one_codeword_and_use_all():
    def usage(batch_weight):
        torch.manual_seed(0)
        logits = torch.randn(64, 1, 8)
        logits[:, :, 0] += 1.5  # one codeword starts ahead
        logits.requires_grad_()
        optimiser = torch.optim.Adam([logits], 0.1)
        for _ in range(300):
            used, sharp = gini(logits.softmax(2))
            optimiser.zero_grad()
            (batch_weight * used + sharp).backward()
            optimiser.step()
        p = logits.detach().softmax(2)
        assert gini(p)[1] < 0.02
        return torch.bincount(p.argmax(2).flatten(), minlength=8)

    assert usage(4.0).max() <= 12  # 8 would be equal use
    assert usage(0.0).max() > 20


# --- look-ups


@pytest.mark.parametrize("words", [2, 5, 16, 256])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_looked_up_distances_equal_brute_force(words, dtype):
    p, codebooks = (t.detach() for t in fixture(0, 40, 4, words, 3, dtype))
    soft, hard = soft_and_hard(p, codebooks)
    codes = hard_codes(hard, codebooks)
    assert codes.dtype == torch.uint8 and codes.shape == (40, 4)
    assert torch.equal(codes.long(), p.argmax(2))
    # float32 keeps a few roundings of the squared norms, about 30.
    tolerance = {"rtol": 0.0, "atol": 1e-6 if dtype == torch.float64 else 3e-5}
    looked_up = asymmetric_distances(query_tables(soft, codebooks), codes)
    brute = torch.stack([(hard - s).square().sum(1) for s in soft])
    torch.testing.assert_close(looked_up, brute, **tolerance)
    looked_up = symmetric_distances(symmetric_tables(codebooks), codes, codes)
    brute = torch.stack([(hard - h).square().sum(1) for h in hard])
    torch.testing.assert_close(looked_up, brute, **tolerance)


def test_one_hot_assignments_make_both_searches_the_same():
    _, codebooks = fixture(0, 30)
    p = F.one_hot(torch.randint(4, (30, 3)), 4).double()
    soft, hard = soft_and_hard(p, codebooks.detach())
    assert torch.equal(soft, hard)
    codes = hard_codes(hard, codebooks.detach())
    torch.testing.assert_close(
        asymmetric_distances(query_tables(soft, codebooks.detach()), codes),
        symmetric_distances(symmetric_tables(codebooks.detach()), codes, codes),
    )


@pytest.mark.parametrize("words", [4, 16, 256])
def test_faiss_agrees(words):
    p, codebooks = (t.detach() for t in fixture(1, 50, 4, words, 3, torch.float32))
    soft, hard = soft_and_hard(p, codebooks)
    codes = hard_codes(hard, codebooks)
    index = faiss_index(codes, codebooks)
    assert index.ntotal == 50 and index.sa_code_size() * 8 == bits_per_image(4, words)
    assert np.array_equal(index.reconstruct_n(0, 50), hard.numpy())
    distances, found = index.search(soft.numpy(), 50)
    ours = asymmetric_distances(query_tables(soft, codebooks), codes)
    ours = ours.gather(1, torch.from_numpy(found))
    torch.testing.assert_close(ours, torch.from_numpy(distances), rtol=1e-5, atol=1e-5)


def test_faiss_needs_a_power_of_two():
    p, codebooks = fixture(0, words=5)
    codes = p.argmax(2).to(torch.uint8)
    with pytest.raises(StudyError, match="power of two"):
        faiss_index(codes, codebooks)


# --- the method

CLASSES, EPOCHS = 4, 3
LABELS = np.repeat(np.arange(CLASSES), 10)
RECIPE = Recipe(4, 5, EPOCHS, 1e-3, 1e-3, 1e-4)
SMALL = {"codebooks": 4, "codewords": 8}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 100, (len(LABELS), 8, 8, 1))
    patterns = rng.integers(0, 150, (CLASSES, 8, 8, 1))
    store = (noise + patterns[LABELS]).astype(np.uint8)
    images = ImageSet(store, np.arange(len(LABELS)), LABELS, tuple("abcd"), "random")
    return Pixels(images, 8, Augment(shift=0.1))


def build(seed=0, size=8, classes=CLASSES, **hyper):
    torch.manual_seed(seed)
    network = build_network("convnet", channels=1, embedding_size=size)
    task = Task(classes, len(LABELS), EPOCHS)
    return ProductQuantisation(network, task, **(SMALL | hyper))


def go(method, inputs, recipe=RECIPE, **options):
    return train(method, inputs, LABELS, recipe, 0, **options)


def test_embedding_holds_both_codes_and_ranks_soft_to_hard(inputs):
    method = build()
    rows = EmbedAll(method, inputs)()
    assert rows.shape == (len(LABELS), 16)
    soft, hard = rows.chunk(2, 1)
    codewords = method.codebooks.detach().unbind()
    for part, words in zip(hard.split(2, 1), codewords, strict=True):
        assert (part[:, None] == words).all(2).any(1).all()
    expected = -torch.stack([(hard - s).square().sum(1) for s in soft])
    torch.testing.assert_close(method.similarity(rows, rows), expected, rtol=1e-5, atol=1e-5)
    assert EmbedAll(method, inputs)(lambda x: method.embed(x, "gallery")).equal(rows)


def test_equal_codes_tie_exactly(inputs):
    method = build(codewords=2, codebooks=2)
    rows = EmbedAll(method, inputs)()
    codes = hard_codes(rows[:, 8:], method.codebooks.detach())
    s = method.similarity(rows, rows)
    for column, code in zip(s.T, codes, strict=True):
        same = (codes == code).all(1)
        assert (s[:, same] == column[:, None]).all()
    assert len(codes.unique(dim=0)) <= 4 < len(codes)


def test_first_assignment_is_the_nearest_codeword(inputs):
    method = build()
    x = EmbedAll(method, inputs)(method._sub_vectors).clone()
    codewords = method.codebooks.detach()
    nearest = torch.stack([squared_distance(x[:, m], codewords[m]) for m in range(4)])
    assert torch.equal(method.assign(x).argmax(2), nearest.argmin(2).T)
    torch.testing.assert_close(x.norm(dim=2), torch.ones(len(x), 4))


def test_sub_vectors_share_the_leading_coordinates(inputs):
    method = build(intra_normalise=False)
    z = EmbedAll(method, inputs)(method.network)
    x = EmbedAll(method, inputs)(method._sub_vectors)
    for m in range(4):
        assert torch.equal(x[:, m], z[:, [m, m + 4]])


def test_symmetric_trains_the_same_network_and_ranks_hard_to_hard(inputs):
    one, other = build(), build(ranking="symmetric")
    histories = [go(method, inputs).history for method in (one, other)]
    assert histories[0] == histories[1]
    both, hard = (EmbedAll(method, inputs)() for method in (one, other))
    assert torch.equal(both[:, 8:], hard)
    torch.testing.assert_close(
        other.similarity(hard, hard), -squared_distance(hard), rtol=1e-5, atol=1e-5
    )


def test_float_control_quantises_nothing(inputs):
    method = build(ranking="float")
    start = copy.deepcopy(method.state_dict())
    assert set(go(method, inputs).history[-1]) == {"epoch", "softmax", "centre"}
    for name in ("heads", "codebooks"):
        assert torch.equal(method.state_dict()[name], start[name])
    z = EmbedAll(method, inputs)(method.network)
    f = F.normalize(z.unflatten(1, (2, 4)).mT, dim=2).flatten(1)
    torch.testing.assert_close(EmbedAll(method, inputs)(), f)
    torch.testing.assert_close(method.similarity(f, f), -squared_distance(f))


@pytest.mark.parametrize("hyper", [{}, *ProductQuantisation.controls.values()], ids=str)
def test_resumed_is_bit_identical(hyper, resumed_exactly):
    resumed_exactly(partial(build, **hyper), RECIPE, after=1)


@pytest.mark.parametrize("ranking", ["asymmetric", "float"])
def test_training_reduces_the_loss(ranking, inputs):
    # Thirty steps on noise: weak Gini terms and a fast quantiser leave the classifier time to learn.
    method = build(ranking=ranking, batch_gini=1.0, sample_gini=0.1, quantiser_lr=0.05)
    history = go(method, inputs, Recipe(4, 10, 30, 3e-3, 3e-3, 0.0)).history
    assert history[-1]["softmax"] < 0.5 * history[0]["softmax"]
    total = [sum(v for name, v in row.items() if name != "epoch") for row in history]
    assert total[-1] < 0.6 * total[0]


@pytest.mark.parametrize("size, classes", [(32, 5), (128, 964), (512, 100)])
def test_runs_at_every_size_of_the_study(size, classes):
    method = build(size=size, classes=classes, codebooks=8, codewords=256)
    assert method.bits == 64
    labels = torch.tensor([0, 1, classes - 1, classes - 1])
    losses = method.loss(Batch(torch.rand(4, 1, 8, 8), labels, torch.arange(4)))
    sum(losses.values()).backward()
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert method.heads.grad.any() and method.network.head.weight.grad.any()


@pytest.mark.parametrize("labels", [[2], [2, 2], [0, 2]], ids=str)
@pytest.mark.parametrize("same", [False, True])
def test_degenerate_batches_are_finite(labels, same):
    method = build()
    images = torch.rand(len(labels), 1, 8, 8)
    images = images[:1].expand_as(images) if same else images
    y = torch.tensor(labels)
    losses = method.eval().loss(Batch(images, y, torch.arange(len(y))))
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_zero_embeddings_pass_no_nan():
    method = build()
    torch.nn.init.zeros_(method.network.head.weight)
    torch.nn.init.zeros_(method.network.head.bias)
    losses = method.loss(Batch(torch.rand(4, 1, 8, 8), torch.arange(4), torch.arange(4)))
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "hyper, message",
    [
        ({"codebooks": 3}, "8 is not a multiple of codebooks = 3"),
        ({"codewords": 257}, "2..256"),
        ({"ranking": "symetric"}, "did you mean 'symmetric'"),
    ],
)
def test_wrong_hyperparameters(hyper, message):
    with pytest.raises(StudyError, match=message):
        build(**hyper)


def test_deviations():
    assert deviations(build()) == [
        "embedding",
        "ranking distance",
        "queries and gallery embedded differently",
        "embeddings not normalised",
        "own parameters (learning rate 0.01)",
    ]
