"""Losses against loops over single pairs, pytorch-metric-learning and the cards; degenerate batches."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy import losses, miners

Loss = Callable[[Tensor, Tensor], Tensor]
Pairs = tuple[Tensor, Tensor]

# The cards' fixture: four unit vectors in the plane, labelled the easy and the hard way.
X = torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]], dtype=torch.float64)
EASY, HARD = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])

# Ragged classes, one of them a singleton; labels have gaps, so some of the centres' classes are absent.
LABELS = torch.tensor([0] * 7 + [2] * 5 + [3] * 4 + [5] * 2 + [8])
CENTRES = F.normalize(
    torch.randn(9, 3, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64), dim=2
)


def batch(seed: int, unit: bool, labels: Tensor = LABELS) -> tuple[Tensor, Tensor]:
    """Embeddings [B, 6] and shuffled labels; rows of varied length unless unit."""
    g = torch.Generator().manual_seed(seed)
    y = labels[torch.randperm(len(labels), generator=g)]
    x = torch.randn(len(y), 6, generator=g, dtype=torch.float64)
    x = F.normalize(x) * (1 if unit else 0.5 + torch.rand(len(y), 1, generator=g))
    return x.requires_grad_(), y


# --- the formulas once more, as loops over single pairs


def distance(a: Tensor, b: Tensor) -> Tensor:
    squared = (a - b).square().sum()
    return squared.sqrt() if squared > 0 else 0 * squared


def positives(y: Tensor, i: int) -> list[int]:
    return [j for j in range(len(y)) if j != i and y[j] == y[i]]


def negatives(y: Tensor, i: int) -> list[int]:
    return [j for j in range(len(y)) if y[j] != y[i]]


def chosen(y: Tensor, i: int, pairs: Pairs | None) -> tuple[list[int], list[int]]:
    if pairs is None:
        return positives(y, i), negatives(y, i)
    return pairs[0][i].nonzero()[:, 0].tolist(), pairs[1][i].nonzero()[:, 0].tolist()


def naive_batch_hard(x: Tensor, y: Tensor, margin: float | None = None) -> Tensor:
    total = 0 * x.sum()
    for i in range(len(y)):
        if positives(y, i) and negatives(y, i):
            v = max(distance(x[i], x[j]) for j in positives(y, i))
            v = v - min(distance(x[i], x[k]) for k in negatives(y, i))
            total = total + (torch.log1p(v.exp()) if margin is None else (v + margin).clamp_min(0))
    return total / len(y)


def naive_ms(x: Tensor, y: Tensor, pairs: Pairs | None = None) -> Tensor:
    total = 0 * x.sum()
    for i in range(len(y)):
        p, n = chosen(y, i, pairs)
        if p and n:
            pull = sum(torch.exp(-2 * (x[i] @ x[j] - 0.5)) for j in p)
            push = sum(torch.exp(40 * (x[i] @ x[k] - 0.5)) for k in n)
            total = total + torch.log(1 + pull) / 2 + torch.log(1 + push) / 40
    return total / len(y)


def naive_ranked_list(x: Tensor, y: Tensor, temperature: float = 10) -> Tensor:
    total = 0 * x.sum()
    for i in range(len(y)):
        far = [d for j in positives(y, i) if (d := distance(x[i], x[j])) > 0.8]
        near = [d for k in negatives(y, i) if (d := distance(x[i], x[k])) < 1.2]
        if far:
            total = total + 0.5 * sum(d - 0.8 for d in far) / len(far)
        if near:
            w = [math.exp(temperature * (1.2 - d.item())) for d in near]  # numbers: no gradient
            push = sum(v * (1.2 - d) for v, d in zip(w, near, strict=True))
            total = total + 0.5 * push / sum(w)
    return total / len(y)


def naive_margin(
    x: Tensor, y: Tensor, pairs: Pairs | None = None, beta: Tensor | None = None
) -> Tensor:
    terms = []
    for i in range(len(y)):
        b = 1.2 if beta is None else beta[i]
        p, n = chosen(y, i, pairs)
        terms += [(distance(x[i], x[j]) - b + 0.2).clamp_min(0) for j in p]
        terms += [(b - distance(x[i], x[k]) + 0.2).clamp_min(0) for k in n]
    return sum(terms, 0 * x.sum()) / max(sum(t.item() > 0 for t in terms), 1)


def naive_soft_triple(x: Tensor, y: Tensor) -> Tensor:
    total = 0 * x.sum()
    for f, c in zip(x, y.tolist(), strict=True):
        logits = []
        for i, w in enumerate(CENTRES):
            s = torch.stack([f @ centre for centre in w])
            logits.append(20 * (((s / 0.1).softmax(0) * s).sum() - 0.01 * (i == c)))
        total = total - torch.stack(logits).log_softmax(0)[c]
    return total / len(y)


# --- the table of losses


def hinge(x: Tensor, y: Tensor) -> Tensor:
    return losses.triplet_batch_hard(x, y, margin=0.5)


def mined_ms(x: Tensor, y: Tensor) -> Tensor:
    return losses.multi_similarity(x, y, pairs=miners.relative_similarity(x, y))


def mined_margin(x: Tensor, y: Tensor) -> Tensor:
    return losses.margin(x, y, pairs=miners.closest_negatives(x, y))


def flat_ranked_list(x: Tensor, y: Tensor) -> Tensor:
    return losses.ranked_list(x, y, temperature=0)


def soft_triple(x: Tensor, y: Tensor) -> Tensor:
    return losses.soft_triple(x, y, centres=CENTRES.to(x.dtype))


class Case(NamedTuple):
    ours: Loss
    naive: Loss
    unit: bool = True  # expects unit rows
    zero: str = "pairs"  # when it must be zero: nothing to compare with, or no complete triplet


CASES = {
    "batch hard": Case(losses.triplet_batch_hard, naive_batch_hard, False, "triplets"),
    "batch hard, hinge": Case(hinge, lambda x, y: naive_batch_hard(x, y, 0.5), False, "triplets"),
    "multi-similarity": Case(losses.multi_similarity, naive_ms, zero="triplets"),
    "multi-similarity, mined": Case(
        mined_ms, lambda x, y: naive_ms(x, y, miners.relative_similarity(x, y)), zero="triplets"
    ),
    "ranked list": Case(losses.ranked_list, naive_ranked_list),
    "ranked list, T = 0": Case(flat_ranked_list, lambda x, y: naive_ranked_list(x, y, 0)),
    "margin": Case(losses.margin, naive_margin),
    "margin, mined": Case(
        mined_margin, lambda x, y: naive_margin(x, y, miners.closest_negatives(x, y))
    ),
    "soft triple": Case(soft_triple, naive_soft_triple, zero="never"),
}
each_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def agree(ours: Loss, other: Loss, x: Tensor, y: Tensor, tolerance: float = 1e-9) -> None:
    """Same value, same gradient."""
    a, b = ours(x, y), other(x, y)
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    da, db = torch.autograd.grad(a, x)[0], torch.autograd.grad(b, x)[0]
    torch.testing.assert_close(da, db, rtol=tolerance, atol=tolerance)


@each_loss
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loop(case: Case, seed: int) -> None:
    agree(case.ours, case.naive, *batch(seed, case.unit))


@each_loss
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loop_on_three_images(case: Case, seed: int) -> None:
    """Two of one class and a negative: an only negative keeps its whole gradient."""
    agree(case.ours, case.naive, *batch(seed, case.unit, torch.tensor([0, 0, 2])))


@each_loss
def test_equals_the_loop_with_duplicate_points(case: Case) -> None:
    """Copies, of the same class and of another, tie; the gradient of the point itself is still defined."""
    x, y = batch(0, case.unit)
    rows = torch.cat([torch.arange(len(y)), torch.tensor([0, 1, 1])])
    labels = torch.cat([y, y[:1], y[:1], y[1:2]])
    # sqrt turns rounding of 1e-16 in a copy's squared distance into 1e-8.
    ours, naive = (lambda z, _, f=f: f(z[rows], labels) for f in (case.ours, case.naive))
    agree(ours, naive, x, y, tolerance=1e-6)


@each_loss
def test_order_of_the_batch_does_not_matter(case: Case) -> None:
    x, y = batch(0, case.unit)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    agree(lambda z, _: case.ours(z[order], y[order]), case.ours, x, y)


@each_loss
def test_float32_is_enough(case: Case) -> None:
    x, y = batch(0, case.unit)
    agree(lambda z, _: case.ours(z.float(), y).double(), case.ours, x, y, 1e-4)


@pytest.mark.parametrize(
    # By definition ranked list's weights pass no gradient, so only T = 0 is the gradient of its value.
    "case",
    [pytest.param(case, id=name) for name, case in CASES.items() if name != "ranked list"],
)
def test_gradcheck(case: Case) -> None:
    x, y = batch(5, case.unit, LABELS[::2])
    assert torch.autograd.gradcheck(lambda z: case.ours(z, y), x)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("same", [False, True], ids=["distinct", "identical"])
@pytest.mark.parametrize(
    "labels",
    [[2, 2, 2, 2], [0, 2, 3, 5], [2], [2, 2], [0, 2]],
    ids=["one class", "singletons", "one image", "one pair", "one negative"],
)
def test_degenerate_batches(case: Case, labels: list[int], same: bool, dtype: torch.dtype) -> None:
    x, y = batch(0, case.unit, torch.tensor(labels))
    x = (x[:1].expand_as(x) if same else x).detach().to(dtype, copy=True).requires_grad_()
    value = case.ours(x, y)
    gradient = torch.autograd.grad(value, x)[0]
    assert value.shape == () and value.isfinite() and gradient.isfinite().all()
    one_class = len(set(labels)) == 1
    one_point = one_class and (same or len(labels) == 1)
    if case.zero == "triplets" or (case.zero == "pairs" and one_point):
        assert value == 0 and not gradient.any()


@pytest.mark.parametrize("loss", [losses.multi_similarity, losses.margin], ids=["ms", "margin"])
def test_a_miner_may_keep_nothing(loss: Callable[..., Tensor]) -> None:
    x, y = batch(0, True)
    none = torch.zeros(len(y), len(y), dtype=torch.bool)
    value = loss(x, y, pairs=(none, none))
    assert value == 0 and not torch.autograd.grad(value, x)[0].any()


def test_margin_learns_its_boundary() -> None:
    x, y = batch(0, True)
    beta = torch.linspace(0.8, 1.4, len(y), dtype=torch.float64).requires_grad_()
    pairs = miners.closest_negatives(
        x, y
    )  # over all pairs, beta_i and beta_j would change places unseen
    agree(
        lambda b, _: losses.margin(x, y, beta=b, pairs=pairs),
        lambda b, _: naive_margin(x, y, pairs, b),
        beta,
        y,
    )
    scalar = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: losses.margin(x.detach(), y, beta=b), scalar)


# --- pytorch-metric-learning, an independent implementation


def oracle(name: str) -> Loss:
    """Their loss of that name, with distance, reducer and margin made explicit."""
    reason = "pytorch-metric-learning, the oracle, is a development dependency"
    pytest.importorskip("pytorch_metric_learning", reason=reason)
    from pytorch_metric_learning import distances, reducers
    from pytorch_metric_learning import losses as theirs
    from pytorch_metric_learning import miners as their_miners

    euclid = distances.LpDistance(normalize_embeddings=False)
    dot = distances.DotProductSimilarity(normalize_embeddings=False)

    def batch_hard(x: Tensor, y: Tensor) -> Tensor:
        soft = name == "batch hard"
        loss = theirs.TripletMarginLoss(
            0 if soft else 0.5, smooth_loss=soft, distance=euclid, reducer=reducers.SumReducer()
        )
        return loss(x, y, their_miners.BatchHardMiner(distance=euclid)(x, y)) / len(y)

    def ms(x: Tensor, y: Tensor) -> Tensor:
        # Theirs counts anchors that have pairs of one kind only, the paper and its code do not.
        loss = theirs.MultiSimilarityLoss(2, 40, 0.5, distance=dot)
        loss.reducer = reducers.DoNothingReducer()
        if name == "multi-similarity":
            pairs = ((y[:, None] == y) & ~torch.eye(len(y), dtype=torch.bool), y[:, None] != y)
            terms = loss(x, y)
        else:
            mined = their_miners.MultiSimilarityMiner(0.1, distance=dot)(x, y)
            kept = torch.zeros(2, len(y), len(y), dtype=torch.bool)
            kept[0, mined[0], mined[1]] = kept[1, mined[2], mined[3]] = True
            pairs = (kept[0], kept[1])
            terms = loss(x, y, mined)
        return terms["loss"]["losses"][pairs[0].any(1) & pairs[1].any(1)].sum() / len(y)

    def margin(x: Tensor, y: Tensor) -> Tensor:
        # Theirs wants triplets; pairing every positive with one negative counts each pair once.
        positive, negative = miners.closest_negatives(x, y)
        assert torch.equal(positive.sum(1), negative.sum(1)), "too few negatives beyond the cutoff"
        (a, p), (_, n) = positive.nonzero().T, negative.nonzero().T
        return theirs.MarginLoss(0.2, beta=1.2, distance=euclid)(x, y, (a, p, n))

    temperature = 10 if name == "ranked list" else 0
    return {
        "batch hard": batch_hard,
        "batch hard, hinge": batch_hard,
        "multi-similarity": ms,
        "multi-similarity, mined": ms,
        "ranked list": theirs.RankedListLoss(0.4, temperature, 0.5, 1.2, distance=euclid),
        "ranked list, T = 0": theirs.RankedListLoss(0.4, temperature, 0.5, 1.2, distance=euclid),
        "margin, mined": margin,
    }[name]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "name",
    # Not "margin": over all pairs theirs counts a pair once per triplet, on H 0.528217 for 0.573818.
    # Ranked list with T = 10 and soft triple have tests of their own below.
    [name for name in CASES if name not in ("margin", "ranked list", "soft triple")],
)
def test_equals_pytorch_metric_learning(name: str, seed: int) -> None:
    # Their ranked list adds 1e-5 to every weight, their beta is a float32.
    tolerance = {"ranked list, T = 0": 1e-3, "margin, mined": 1e-6}.get(name, 1e-9)
    agree(CASES[name].ours, oracle(name), *batch(seed, CASES[name].unit), tolerance)


@pytest.mark.filterwarnings("ignore:Values of Tp or Tn")
@pytest.mark.parametrize("seed", range(4))
def test_ranked_list_equals_pytorch_metric_learning_in_value(seed: int) -> None:
    """In value only: theirs lets gradient through the weights, in the paper's code they are constants."""
    x, y = batch(seed, True)
    their = oracle("ranked list")(x, y)
    torch.testing.assert_close(losses.ranked_list(x, y), their, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_soft_triple_equals_pytorch_metric_learning(seed: int) -> None:
    """Theirs normalises rows and centres, so both see them un-normalised; the centres' gradient too."""
    theirs = pytest.importorskip("pytorch_metric_learning.losses", reason="development dependency")
    oracle = theirs.SoftTripleLoss(9, 6, centers_per_class=3, la=20, gamma=0.1, margin=0.01)
    x, y = batch(seed, False)
    w = (2 * CENTRES).requires_grad_()
    oracle.fc = torch.nn.Parameter(w.detach().flatten(0, 1).T.clone())  # theirs is [D, C K]
    ours = losses.soft_triple(F.normalize(x), y, centres=F.normalize(w, dim=2))
    dx, dw = torch.autograd.grad(ours, (x, w))
    their = oracle(x, y)
    their_dx, their_dw = torch.autograd.grad(their, (x, oracle.fc))
    their_dw = their_dw.T.reshape_as(w)
    for a, b in ((ours, their), (dx, their_dx), (dw, their_dw)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# --- soft triple's regulariser


def test_regulariser_equals_the_loop() -> None:
    w = CENTRES.clone().requires_grad_()

    def naive(w: Tensor, _: Tensor) -> Tensor:
        pairs = [(s, t) for s in range(3) for t in range(s + 1, 3)]
        roots = [(2 - 2 * c[s] @ c[t] + 1e-5).sqrt() for c in w for s, t in pairs]
        return torch.stack(roots).sum() / (9 * 3 * 2)

    agree(lambda w, _: losses.soft_triple_regulariser(w), naive, w, LABELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_regulariser_of_merged_and_of_single_centres(dtype: torch.dtype) -> None:
    merged = CENTRES[:, :1].expand(-1, 4, -1).to(dtype, copy=True).requires_grad_()
    value = losses.soft_triple_regulariser(merged)
    assert torch.autograd.grad(value, merged)[0].isfinite().all()
    assert value.item() == pytest.approx(math.sqrt(1e-5) / 2, rel=0.1)
    single = merged[:, :1]
    value = losses.soft_triple_regulariser(single)
    assert value == 0 and not torch.autograd.grad(value, single)[0].any()


# --- the cards' values and limits

ONE = torch.tensor([[[1, 0]], [[0, 1]]], dtype=torch.float64)
TWO = torch.tensor([[[1, 0], [0.6, 0.8]], [[0, 1], [-0.8, 0.6]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "settings", "easy", "hard"),
    [
        (losses.triplet_batch_hard, {"margin": 0.5}, 0.119014, 1.281758),
        (losses.triplet_batch_hard, {}, 0.473754, 1.158550),
        (losses.margin, {}, 0.505573, 0.573818),
        (mined_ms, {}, 0.0, 0.956635),
        (losses.multi_similarity, {}, 0.268971, 0.956635),
        (losses.multi_similarity, {"beta": 50, "lam": 1}, 0.456508, 1.063465),
        (losses.ranked_list, {}, 0.076393, 0.586433),
        (losses.ranked_list, {"alpha": 1.4, "margin": 0.2}, 0.126393, 0.486433),
        (losses.ranked_list, {"temperature": 0}, 0.076393, 0.558133),
        (losses.soft_triple, {"centres": ONE}, 0.005531, 6.103721),
        (losses.soft_triple, {"centres": TWO}, 0.006732, 2.736177),
    ],
)
def test_values_of_table_f(
    loss: Callable[..., Tensor], settings: dict[str, float], easy: float, hard: float
) -> None:
    assert float(loss(X, EASY, **settings)) == pytest.approx(easy, abs=6e-7)
    assert float(loss(X, HARD, **settings)) == pytest.approx(hard, abs=6e-7)


def test_soft_triple_with_its_regulariser() -> None:
    for y, value in ((EASY, 0.096175), (HARD, 2.825621)):
        total = losses.soft_triple(X, y, centres=TWO) + 0.2 * losses.soft_triple_regulariser(TWO)
        assert float(total) == pytest.approx(value, abs=6e-7)


def test_one_centre_is_cosine_softmax_with_a_margin() -> None:
    x, y = batch(0, True)
    logits = 20 * (x @ CENTRES[:, 0].T - 0.01 * F.one_hot(y, 9))
    for gamma in (0.1, 7.0):  # nothing to assign softly, so gamma does not matter
        ours = losses.soft_triple(x, y, centres=CENTRES[:, :1], gamma=gamma)
        torch.testing.assert_close(ours, F.cross_entropy(logits, y))


def test_batch_hard_of_a_collapsed_embedding() -> None:
    point = torch.ones(4, 2, dtype=torch.float64)
    assert float(losses.triplet_batch_hard(point, HARD)) == pytest.approx(math.log(2))
    assert float(losses.triplet_batch_hard(point, HARD, margin=0.5)) == pytest.approx(0.5)


@pytest.mark.parametrize(("beta", "value"), [(40, 0.363902), (50, 0.360437)])
def test_ms_of_one_positive_and_one_negative_at_lambda(beta: float, value: float) -> None:
    x = torch.tensor([[1, 0], [0.5, 0.75**0.5], [0.5, -(0.75**0.5)]], dtype=torch.float64)
    first = torch.tensor([[True], [False], [False]])
    pairs = first & torch.tensor([False, True, False]), first & torch.tensor([False, False, True])
    ours = 3 * losses.multi_similarity(x, torch.tensor([0, 0, 1]), beta=beta, pairs=pairs)
    assert float(ours) == pytest.approx(value, abs=6e-7)


def test_ms_becomes_hinges() -> None:
    """alpha, beta -> infinity: [lam - min s_p]_+ + [max s_n - lam]_+; also the test against overflow."""
    ours = losses.multi_similarity(X, HARD, alpha=1e5, beta=1e5)
    # Every anchor has its positive at s = 0 and its hardest negative at 0.8.
    assert float(ours) == pytest.approx(0.5 + 0.3, abs=1e-4)


def test_ranked_list_becomes_the_hardest_negative() -> None:
    x, y = batch(0, True)
    d = torch.cdist(x, x)
    hardest = d.masked_fill(y[:, None] == y, torch.inf).amin(1)
    ours = losses.ranked_list(x, y, temperature=1e5, lam=1)
    torch.testing.assert_close(ours, (1.2 - hardest).clamp_min(0).mean(), rtol=1e-4, atol=1e-4)


def test_ranked_list_is_content_with_a_ball() -> None:
    """Zero if and only if positives lie within alpha - m and negatives beyond alpha."""
    x = F.normalize(torch.tensor([[1, 0.1], [1, -0.1], [-1, 0.1], [-1, -0.1]]).double())
    assert losses.ranked_list(x, EASY) == 0
    assert losses.ranked_list(x, EASY, alpha=2.0) > 0  # negatives at 1.99
    assert losses.ranked_list(x, EASY, alpha=1.2, margin=1.1) > 0  # positives at 0.199


def test_margin_with_a_far_boundary_has_negatives_only() -> None:
    x, y = batch(0, True)
    d = torch.cdist(x, x)[y[:, None] != y]
    torch.testing.assert_close(losses.margin(x, y, beta=9.0), (9.2 - d).mean())
