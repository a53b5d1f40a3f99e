"""Every loss against a naive loop and against pytorch-metric-learning, in value and gradient; degenerate batches."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy import losses, miners

X = torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]], dtype=torch.float64)
EASY, HARD = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
CENTRES = F.normalize(
    torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(3)), dim=2
).double()


def mined_ms(x: Tensor, y: Tensor) -> Tensor:
    return losses.multi_similarity(x, y, pairs=miners.relative_similarity(x, y))


def mined_margin(x: Tensor, y: Tensor) -> Tensor:
    return losses.margin(x, y, pairs=miners.closest_negatives(x, y))


def with_centres(x: Tensor, y: Tensor) -> Tensor:
    return losses.soft_triple(x, y, centres=CENTRES.to(x.dtype)[..., : x.shape[1]])


# --- the formulas once more, as loops over single pairs


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum().sqrt()


def positives(y: Tensor, i: int) -> list[int]:
    return [j for j in range(len(y)) if j != i and y[j] == y[i]]


def negatives(y: Tensor, i: int) -> list[int]:
    return [j for j in range(len(y)) if y[j] != y[i]]


def naive_batch_hard(x: Tensor, y: Tensor, margin: float | None = None) -> Tensor:
    total = x.sum() * 0
    for i in range(len(x)):
        if positives(y, i) and negatives(y, i):
            v = max(distance(x[i], x[j]) for j in positives(y, i))
            v = v - min(distance(x[i], x[k]) for k in negatives(y, i))
            total = total + (F.softplus(v) if margin is None else (v + margin).clamp_min(0))
    return total / len(x)


def naive_ms(x: Tensor, y: Tensor, mine: bool = False) -> Tensor:
    total = x.sum() * 0
    for i in range(len(x)):
        p, n = positives(y, i), negatives(y, i)
        if not p or not n:
            continue
        if mine:
            low, high = min(x[i] @ x[j] for j in p), max(x[i] @ x[k] for k in n)
            p, n = (
                [j for j in p if x[i] @ x[j] - 0.1 < high],
                [k for k in n if x[i] @ x[k] + 0.1 > low],
            )
        if p and n:
            pull = sum(torch.exp(-2 * (x[i] @ x[j] - 0.5)) for j in p)
            push = sum(torch.exp(40 * (x[i] @ x[k] - 0.5)) for k in n)
            total = total + torch.log(1 + pull) / 2 + torch.log(1 + push) / 40
    return total / len(x)


def naive_ranked_list(x: Tensor, y: Tensor) -> Tensor:
    total = x.sum() * 0
    for i in range(len(x)):
        far = [d for j in positives(y, i) if (d := distance(x[i], x[j])) > 0.8]
        near = [d for k in negatives(y, i) if (d := distance(x[i], x[k])) < 1.2]
        if far:
            total = total + 0.5 * sum(d - 0.8 for d in far) / len(far)
        if near:
            weights = [math.exp(10 * (1.2 - d.item())) for d in near]
            total = total + 0.5 * sum(
                w * (1.2 - d) for w, d in zip(weights, near, strict=True)
            ) / sum(weights)
    return total / len(x)


def naive_margin(x: Tensor, y: Tensor, mine: bool = False) -> Tensor:
    terms = []
    for i in range(len(x)):
        p, n = positives(y, i), negatives(y, i)
        if mine:
            n = sorted(
                (k for k in n if distance(x[i], x[k]) >= 0.5),
                key=lambda k: float(distance(x[i], x[k])),
            )
            n = n[: len(p)]
        terms += [(distance(x[i], x[j]) - 1.0).clamp_min(0) for j in p]
        terms += [(1.4 - distance(x[i], x[k])).clamp_min(0) for k in n]
    active = sum(float(t) > 0 for t in terms)
    return sum(terms, x.sum() * 0) / max(active, 1)


def naive_soft_triple(x: Tensor, y: Tensor) -> Tensor:
    total = x.sum() * 0
    for f, c in zip(x, y, strict=True):
        s = []
        for w in CENTRES[..., : x.shape[1]]:
            q = torch.stack([f @ centre for centre in w])
            s.append(((q / 0.1).softmax(0) * q).sum())
        logits = [20 * (v - 0.01 * (i == int(c))) for i, v in enumerate(s)]
        total = total - logits[int(c)] + torch.logsumexp(torch.stack(logits), 0)
    return total / len(x)


Loss = Callable[[Tensor, Tensor], Tensor]
# name: (ours, naive loop, expects unit rows)
LOSSES: dict[str, tuple[Loss, Loss, bool]] = {
    "batch hard": (losses.triplet_batch_hard, naive_batch_hard, False),
    "batch hard, hinge": (
        lambda x, y: losses.triplet_batch_hard(x, y, margin=0.5),
        lambda x, y: naive_batch_hard(x, y, 0.5),
        False,
    ),
    "multi-similarity": (losses.multi_similarity, naive_ms, True),
    "multi-similarity, mined": (mined_ms, lambda x, y: naive_ms(x, y, True), True),
    "ranked list": (losses.ranked_list, naive_ranked_list, True),
    "margin": (losses.margin, naive_margin, True),
    "margin, closest negatives": (mined_margin, lambda x, y: naive_margin(x, y, True), True),
    "soft triple": (with_centres, naive_soft_triple, True),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def batch(seed: int, unit: bool, size: int = 19, dim: int = 6) -> tuple[Tensor, Tensor]:
    """Ragged, shuffled classes, one of them with a single image; rows of varied length unless unit."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, dim, generator=g, dtype=torch.float64) * (
        1 + torch.rand(size, 1, generator=g)
    )
    y = torch.tensor(([0] * 7 + [1] * 5 + [2] * 4 + [3] * 2 + [4])[:size])[
        torch.randperm(size, generator=g)
    ]
    return (F.normalize(x) if unit else x).requires_grad_(), y


def value_and_gradient(loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(x, y)
    return value.detach(), torch.autograd.grad(value, x)[0]


def agree(ours: Loss, other: Loss, x: Tensor, y: Tensor, tolerance: float = 1e-9) -> None:
    for a, b in zip(value_and_gradient(ours, x, y), value_and_gradient(other, x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@each_loss
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loop(name: str, seed: int) -> None:
    ours, naive, unit = LOSSES[name]
    agree(ours, naive, *batch(seed, unit))


@each_loss
def test_order_of_the_batch_and_precision_do_not_matter(name: str) -> None:
    ours, _, unit = LOSSES[name]
    x, y = batch(0, unit)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x, y), ours(x[order], y[order]))
    torch.testing.assert_close(ours(x.float(), y).double(), ours(x, y), rtol=1e-4, atol=1e-5)


@each_loss
@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [0], [0, 0]],
    ids=["one class", "singletons", "one", "pair"],
)
@pytest.mark.parametrize("same", [False, True], ids=["", "identical"])
def test_degenerate_batches_are_finite(name: str, labels: list[int], same: bool) -> None:
    ours, _, _ = LOSSES[name]
    x = (X[:1].expand(len(labels), 2) if same else X[: len(labels)]).clone().requires_grad_()
    value, gradient = value_and_gradient(ours, x, torch.tensor(labels))
    assert value.isfinite() and gradient.isfinite().all()
    if len(set(labels)) == 1 and name.startswith(("batch hard", "multi")):
        assert value == 0 and (gradient == 0).all()


@each_loss
def test_gradcheck(name: str) -> None:
    ours, _, unit = LOSSES[name]
    if name == "ranked list":
        pytest.skip(
            "its weights are constants for the gradient by definition; the loop test covers it"
        )
    x, y = batch(5, unit, size=10)
    assert torch.autograd.gradcheck(lambda z: ours(z, y), x)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "name", ["batch hard, hinge", "multi-similarity", "multi-similarity, mined"]
)
def test_equals_pytorch_metric_learning(name: str, seed: int) -> None:
    pytest.importorskip("pytorch_metric_learning", reason="the oracle is a development dependency")
    from pytorch_metric_learning import distances, reducers
    from pytorch_metric_learning import losses as theirs
    from pytorch_metric_learning import miners as their_miners

    euclid = distances.LpDistance(normalize_embeddings=False)
    dot = distances.DotProductSimilarity(normalize_embeddings=False)
    ms = theirs.MultiSimilarityLoss(alpha=2, beta=40, base=0.5, distance=dot)
    x, y = batch(seed, LOSSES[name][2])
    # Their multi-similarity counts anchors that have no positive or no negative; leave the singleton out.
    if name.startswith("multi"):
        kept = y != 4
        x, y = x.detach()[kept].requires_grad_(), y[kept]

    def oracle(z: Tensor, labels: Tensor) -> Tensor:
        if name == "batch hard, hinge":
            loss = theirs.TripletMarginLoss(0.5, distance=euclid, reducer=reducers.SumReducer())
            return loss(z, labels, their_miners.BatchHardMiner(distance=euclid)(z, labels)) / len(
                labels
            )
        if name == "multi-similarity":
            return ms(z, labels)
        miner = their_miners.MultiSimilarityMiner(0.1, distance=dot)
        return ms(z, labels, miner(z, labels))

    if name == "multi-similarity, mined":
        # An anchor that lost all pairs of one kind still counts there, in the paper it does not: compare the
        # anchors that kept both.
        p, n = miners.relative_similarity(x, y)
        if not bool((p.any(1) == n.any(1)).all()):
            pytest.skip("an anchor kept pairs of one kind only")
    agree(LOSSES[name][0], oracle, x, y, 1e-6)


def test_ranked_list_equals_pytorch_metric_learning_in_value() -> None:
    """Theirs lets gradient through the weights and adds 1e-5, so values agree to 1e-4 and gradients do not."""
    pytest.importorskip("pytorch_metric_learning", reason="the oracle is a development dependency")
    from pytorch_metric_learning.losses import RankedListLoss

    oracle = RankedListLoss(margin=0.4, Tn=10, Tp=0, imbalance=0.5, alpha=1.2)
    for seed in range(3):
        x, y = batch(seed, True, size=18)
        torch.testing.assert_close(losses.ranked_list(x, y), oracle(x, y), rtol=2e-4, atol=2e-4)


def test_soft_triple_equals_pytorch_metric_learning() -> None:
    pytest.importorskip("pytorch_metric_learning", reason="the oracle is a development dependency")
    from pytorch_metric_learning.losses import SoftTripleLoss

    oracle = SoftTripleLoss(
        num_classes=5, embedding_size=6, centers_per_class=3, la=20, gamma=0.1, margin=0.01
    )
    oracle = oracle.double()
    with torch.no_grad():  # theirs is [D, C * K]
        oracle.fc.copy_(CENTRES.flatten(0, 1).T)
    x, y = batch(0, True)
    # Theirs normalises, so it sees the same through non-unit rows.
    x = (3 * x.detach()).requires_grad_()
    agree(lambda z, c: with_centres(F.normalize(z), c), oracle, x, y, 1e-6)


def test_card_values() -> None:
    y = torch.tensor([0, 0, 1])
    at_threshold = torch.tensor(
        [[1, 0], [0.5, 0.75**0.5], [0.5, -(0.75**0.5)]], dtype=torch.float64
    )
    # One positive and one negative, both at lambda: ln 2 / alpha + ln 2 / beta for the first anchor.
    first = torch.zeros(3, 3, dtype=torch.bool)
    p, n = first.clone(), first.clone()
    p[0, 1] = n[0, 2] = True
    for beta, value in ((40, 0.363902), (50, 0.360437)):
        ours = 3 * losses.multi_similarity(at_threshold, y, beta=beta, pairs=(p, n))
        assert float(ours) == pytest.approx(value, abs=1e-6)
    assert float(losses.ranked_list(X, HARD, temperature=0)) == pytest.approx(0.558133, abs=1e-6)
    assert float(losses.multi_similarity(X, EASY, beta=50, lam=1)) == pytest.approx(
        0.456508, abs=1e-6
    )
    assert float(losses.multi_similarity(X, HARD, beta=50, lam=1)) == pytest.approx(
        1.063465, abs=1e-6
    )
    one_point = torch.ones(4, 2, dtype=torch.float64)
    assert float(losses.triplet_batch_hard(one_point, HARD)) == pytest.approx(math.log(2))
    assert float(losses.triplet_batch_hard(one_point, HARD, margin=0.5)) == pytest.approx(0.5)


def test_one_centre_is_cosine_softmax_with_a_margin() -> None:
    x, y = batch(0, True)
    w = CENTRES[:, :1]
    logits = x @ w[:, 0].T - 0.01 * F.one_hot(y, 5)
    torch.testing.assert_close(losses.soft_triple(x, y, centres=w), F.cross_entropy(20 * logits, y))


def test_ranked_list_is_content_with_a_ball() -> None:
    """Zero exactly when positives lie within alpha - m and negatives beyond alpha."""
    near = F.normalize(
        torch.tensor([[1, 0.1], [1, -0.1], [-1, 0.1], [-1, -0.1]], dtype=torch.float64)
    )
    assert losses.ranked_list(near, EASY) == 0
    assert losses.ranked_list(near, HARD) > 0
