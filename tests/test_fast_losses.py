"""Hand-written gradients against autograd through the plain formulas, value and gradient, and against differences."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy import losses, miners
from dmlstudy.geometry import squared_distance
from dmlstudy.losses import pairwise
from dmlstudy.losses.fastap import fastap
from dmlstudy.losses.snr import snr_contrastive, snr_triplet

Loss = Callable[[Tensor, Tensor], Tensor]

CENTRES = F.normalize(
    torch.randn(9, 3, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64), dim=2
)


def soft_triple(x: Tensor, y: Tensor) -> Tensor:
    return losses.soft_triple(x, y, centres=CENTRES.to(x.dtype))


def mined_ms(x: Tensor, y: Tensor) -> Tensor:
    return losses.multi_similarity(x, y, pairs=miners.relative_similarity(x, y))


def mined_margin(x: Tensor, y: Tensor) -> Tensor:
    return losses.margin(x, y, pairs=miners.closest_negatives(x, y))


def margin_per_anchor(x: Tensor, y: Tensor) -> Tensor:
    return losses.margin(x, y, beta=torch.linspace(0.8, 1.4, len(y)))


LOSSES: dict[str, Loss] = {
    "batch hard": losses.triplet_batch_hard,
    "batch hard, hinge": lambda x, y: losses.triplet_batch_hard(x, y, margin=0.5),
    "multi-similarity": losses.multi_similarity,
    "multi-similarity, mined": mined_ms,
    "multi-similarity, cold": lambda x, y: losses.multi_similarity(x, y, alpha=1e4, beta=1e5),
    "ranked list": losses.ranked_list,
    "ranked list, T = 0": lambda x, y: losses.ranked_list(x, y, temperature=0),
    "ranked list, wide": lambda x, y: losses.ranked_list(x, y, alpha=1.6, margin=1.5, lam=0.2),
    "margin": losses.margin,
    "margin, mined": mined_margin,
    "margin, per anchor": margin_per_anchor,
    "FastAP": fastap,
    "FastAP, 3 bins": lambda x, y: fastap(x, y, bins=3),
    "FastAP, 1 bin": lambda x, y: fastap(x, y, bins=1),
    "SNR contrastive": snr_contrastive,
    "SNR contrastive, Euclidean": lambda x, y: snr_contrastive(x, y, distance=squared_distance),
    "SNR triplet": snr_triplet,
    "SNR triplet, no margin": lambda x, y: snr_triplet(x, y, margin=0.0),
    "SNR triplet, Euclidean": lambda x, y: snr_triplet(x, y, distance=squared_distance),
    "soft triple": soft_triple,
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())

RAGGED = torch.tensor([0] * 7 + [2] * 5 + [3] * 4 + [5] * 2 + [8])
LABELS = {
    "ragged": RAGGED,
    "one class": torch.full((6,), 4),
    "singletons": torch.arange(6),
    "one image": torch.tensor([4]),
    "one pair": torch.tensor([4, 4]),
    "one negative": torch.tensor([0, 4]),
    "lone positive": torch.tensor([1, 1, 2, 3, 4]),
}
each_labels = pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())


def batch(labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings [B, 8], rows of varied length, and shuffled labels."""
    g = torch.Generator().manual_seed(seed)
    y = labels[torch.randperm(len(labels), generator=g)]
    x = F.normalize(torch.randn(len(y), 8, generator=g, dtype=torch.float64))
    return x * (0.5 + torch.rand(len(y), 1, generator=g)), y


@pytest.fixture
def plain_and_fast(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Tensor, Tensor]]]:
    """Value and gradient of a loss both ways, whatever the size of the batch."""

    def both(loss: Loss, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        results = []
        for large in (len(y) + 1, 0):
            monkeypatch.setattr(pairwise, "LARGE_BATCH", large)
            leaf = x.clone().requires_grad_()
            value = loss(leaf, y)
            # Not the loss itself but a multiple, as it would come from a sum of terms.
            results.append((value, torch.autograd.grad(3 * value, leaf)[0]))
        return results

    return both


def assert_same(
    plain: tuple[Tensor, Tensor], fast: tuple[Tensor, Tensor], tolerance: float
) -> None:
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@each_loss
@each_labels
@pytest.mark.parametrize("unit", [False, True], ids=["raw", "unit"])
def test_equals_the_plain_formula(plain_and_fast, loss: Loss, labels: Tensor, unit: bool) -> None:
    x, y = batch(labels)
    x = F.normalize(x) if unit else x
    assert_same(*plain_and_fast(loss, x, y), tolerance=1e-9)
    assert_same(*plain_and_fast(loss, x.float(), y), tolerance=2e-4)


@each_loss
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_plain_formula_among_ties(plain_and_fast, loss: Loss, seed: int) -> None:
    """Points of a coarse lattice: many coincide or are equally far, exactly, and zero distances occur."""
    y = batch(RAGGED, seed)[1]
    lattice = torch.randint(-1, 2, (len(y), 8), generator=torch.Generator().manual_seed(seed))
    x = lattice.double() / 2  # lengths, products and means of 8 coordinates are exact
    assert_same(*plain_and_fast(loss, x, y), tolerance=1e-9)
    assert_same(*plain_and_fast(loss, x.float(), y), tolerance=2e-4)


@each_loss
@each_labels
def test_equals_the_plain_formula_on_a_single_point(plain_and_fast, loss: Loss, labels) -> None:
    x = torch.full((len(labels), 8), 0.5, dtype=torch.float64)
    assert_same(*plain_and_fast(loss, x, labels), tolerance=1e-9)


@pytest.mark.parametrize(
    "loss",
    [pytest.param(loss, id=name) for name, loss in LOSSES.items() if name != "soft triple"],
)
def test_labels_may_be_anything(plain_and_fast, loss: Loss) -> None:
    """Also beyond 2^24, where float32 would merge neighbours."""
    x, y = batch(RAGGED)
    renamed = 2**24 + torch.tensor([0, 9, 1, 2, 9, 3, 9, 9, 2**40])[y]
    plain = plain_and_fast(loss, x, y)[0]
    assert_same(plain, plain_and_fast(loss, x, renamed)[1], tolerance=1e-9)


@pytest.mark.parametrize(
    # As it stands, ranked list's weights pass no gradient, so it is not the gradient of its value.
    "loss",
    [
        pytest.param(loss, id=name)
        for name, loss in LOSSES.items()
        if name not in ("ranked list", "ranked list, wide", "multi-similarity, cold")
    ],
)
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, loss: Loss) -> None:
    monkeypatch.setattr(pairwise, "LARGE_BATCH", 0)
    x, y = batch(RAGGED[::2], seed=5)
    assert torch.autograd.gradcheck(lambda z: loss(z, y), x.requires_grad_())


def test_gradient_of_the_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairwise, "LARGE_BATCH", 0)
    x, y = batch(RAGGED[::3])
    inputs = (x.requires_grad_(), CENTRES.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda z, w: losses.soft_triple(z, y, centres=w), inputs)


@pytest.mark.parametrize("loss", [losses.multi_similarity, losses.margin], ids=["ms", "margin"])
def test_a_miner_may_keep_nothing(plain_and_fast, loss: Callable[..., Tensor]) -> None:
    x, y = batch(RAGGED)
    none = torch.zeros(len(y), len(y), dtype=torch.bool)
    for value, gradient in plain_and_fast(lambda z, y: loss(z, y, pairs=(none, none)), x, y):
        assert value == 0 and not gradient.any()


def test_pairs_are_left_as_they_were(plain_and_fast) -> None:
    x, y = batch(RAGGED)
    pairs = miners.relative_similarity(x, y)
    copies = tuple(mask.clone() for mask in pairs)
    for loss in (losses.multi_similarity, losses.margin):
        plain_and_fast(lambda z, y, loss=loss: loss(z, y, pairs=pairs), x, y)
    assert all(torch.equal(a, b) for a, b in zip(pairs, copies, strict=True))


@pytest.mark.parametrize("distance", ["constant anchor", "another distance"])
def test_snr_at_its_edges(plain_and_fast, distance: str) -> None:
    """An anchor without signal, whose variance is the constant floor; a distance without a hand-written gradient."""
    x, y = batch(RAGGED)
    if distance == "constant anchor":
        x[0] = 0.7
        settings = {}
    else:
        settings = {"distance": _manhattan}
    for loss in (snr_contrastive, snr_triplet):
        both = plain_and_fast(lambda z, y, loss=loss: loss(z, y, **settings), x, y)
        scale = both[0][1].abs().max().clamp_min(1)
        assert_same(*((v / scale, g / scale) for v, g in both), tolerance=1e-9)


def _manhattan(x: Tensor) -> Tensor:
    return (x[:, None] - x).abs().sum(2)


def test_triplets_of_several_blocks(plain_and_fast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmlstudy.geometry.ROWS", 5)
    assert_same(*plain_and_fast(snr_triplet, *batch(RAGGED)), tolerance=1e-9)


def test_a_learned_boundary_keeps_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairwise, "LARGE_BATCH", 0)
    x, y = batch(RAGGED)
    beta = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: losses.margin(x, y, beta=b), beta)


@each_loss
@pytest.mark.parametrize(("rows", "by_hand"), [(-1, False), (0, True)], ids=["small", "large"])
def test_large_batches_take_the_hand_written_path(loss: Loss, rows: int, by_hand: bool) -> None:
    rows += pairwise.LARGE_BATCH
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(rows, 8, generator=g)).requires_grad_()
    value = loss(x, torch.arange(rows) % 9)
    assert (
        type(value.grad_fn).__name__ in ("_OfProductsBackward", "_SoftTripleBackward")
    ) == by_hand


def test_without_gradient() -> None:
    x, y = batch(torch.arange(300) % 9)
    assert losses.triplet_batch_hard(x, y).requires_grad is False


def test_it_is_differentiable_once() -> None:
    x, y = batch(torch.arange(300) % 9)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(losses.multi_similarity(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()
