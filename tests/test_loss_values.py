"""Losses against pytorch-metric-learning, the cards' values, and the limits that a formula must have."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from losses_cases import CASES, PAIR_CASES, mined_ms
from losses_naive import CENTRES, EASY, HARD, PROXIES, Loss, X, agree, batch, margin_pairs, ms_pairs
from torch import Tensor

from dmlstudy import losses
from dmlstudy.geometry import pair_masks

# --- pytorch-metric-learning, an independent implementation


def oracle(name: str) -> Loss:
    """Their loss of that name, with distance, reducer and margin made explicit."""
    reason = "pytorch-metric-learning, the oracle, is a development dependency"
    pytest.importorskip("pytorch_metric_learning", reason=reason)
    from pytorch_metric_learning import distances, reducers
    from pytorch_metric_learning import losses as theirs
    from pytorch_metric_learning import miners as their_miners

    euclid = distances.LpDistance(normalize_embeddings=False)
    squared = distances.LpDistance(power=2, normalize_embeddings=False)
    snr = distances.SNRDistance(normalize_embeddings=False)
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
        mined = "mined" in name
        pairs = ms_pairs(x, y) if mined else pair_masks(y)
        terms = loss(
            x, y, their_miners.MultiSimilarityMiner(0.1, distance=dot)(x, y) if mined else None
        )
        return terms["loss"]["losses"][pairs[0].any(1) & pairs[1].any(1)].sum() / len(y)

    def margin(x: Tensor, y: Tensor) -> Tensor:
        # Theirs wants triplets; pairing every positive with one negative counts each pair once.
        positive, negative = margin_pairs(x, y)
        assert torch.equal(positive.sum(1), negative.sum(1)), "too few negatives beyond the cutoff"
        (a, p), (_, n) = positive.nonzero().T, negative.nonzero().T
        return theirs.MarginLoss(0.2, beta=1.2, distance=euclid)(x, y, (a, p, n))

    def datl(x: Tensor, y: Tensor) -> Tensor:
        # Its triplets may point into a second set: the centres, and the batch again.
        i, n = (y[:, None] != y).nonzero().T
        both = torch.cat([PROXIES, x]), torch.cat([torch.arange(9), y])
        loss = theirs.TripletMarginLoss(0.2, distance=euclid)
        return loss(x, y, (i, y[i], len(PROXIES) + n), *both)

    def contrastive(x: Tensor, y: Tensor) -> Tensor:
        # Theirs has a linear hinge, so its terms are squared here.
        loss = theirs.ContrastiveLoss(0, 1, distance=euclid, reducer=reducers.DoNothingReducer())
        terms = [kind["losses"].square() for kind in loss(x, y).values()]
        return torch.cat(terms).mean() if "one" in name else sum(t.mean() for t in terms)

    temperature = 10 if name == "ranked list" else 0
    return {
        "batch hard": batch_hard,
        "batch hard, hinge": batch_hard,
        "multi-similarity": ms,
        "multi-similarity, mined": ms,
        "ranked list": theirs.RankedListLoss(0.4, temperature, 0.5, 1.2, distance=euclid),
        "ranked list, T = 0": theirs.RankedListLoss(0.4, temperature, 0.5, 1.2, distance=euclid),
        "margin, mined": margin,
        "all triplets": theirs.TripletMarginLoss(0.2, distance=euclid),
        "all triplets, squared": theirs.TripletMarginLoss(0.2, distance=squared),
        # A margin that every triplet violates, taken off again.
        "triplet without margin": lambda x, y: (
            theirs.TripletMarginLoss(99, distance=euclid)(x, y) - 99
        ),
        "SNR triplet": theirs.TripletMarginLoss(0.2, distance=snr),
        "SNR contrastive": theirs.ContrastiveLoss(0, 1, distance=snr),
        "contrastive, squared": theirs.ContrastiveLoss(0, 1, distance=squared),
        "contrastive": contrastive,
        "contrastive, one mean": contrastive,
        "DATL": datl,
    }[name]


# Not plain margin: over all pairs theirs counts a pair once per triplet, on H 0.528217 for 0.573818.
NO_PEER = (
    "margin",
    "margin, per anchor",
    "ranked list",
    "FastAP",
    "FastAP, 3 bins",
    "FastAP, 1 bin",
)
PEERS = [*(name for name in PAIR_CASES if name not in NO_PEER), "DATL"]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", PEERS)
def test_equals_pytorch_metric_learning(name: str, seed: int):
    # Their ranked list adds 1e-5 to every weight, their beta is a float32.
    tolerance = {"ranked list, T = 0": 1e-3, "margin, mined": 1e-6}.get(name, 1e-9)
    x, y = batch(seed, CASES[name].unit)
    agree(CASES[name].ours(x, y), oracle(name)(x, y), x, tolerance)


@pytest.mark.filterwarnings("ignore:Values of Tp or Tn")
@pytest.mark.parametrize("seed", range(2))
def test_ranked_list_equals_pytorch_metric_learning_in_value(seed: int):
    """In value only: theirs lets gradient through the weights, in the paper's code they are constants."""
    x, y = batch(seed, True)
    their = oracle("ranked list")(x, y)
    torch.testing.assert_close(losses.ranked_list(x, y), their, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_soft_triple_equals_pytorch_metric_learning(seed: int):
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


@pytest.mark.parametrize("seed", range(2))
def test_fastap_softmaxes_and_the_regulariser_equal_pytorch_metric_learning(seed: int):
    theirs = pytest.importorskip("pytorch_metric_learning.losses", reason="development dependency")
    from pytorch_metric_learning import distances, regularizers

    x, y = batch(seed)
    raw = distances.DotProductSimilarity(normalize_embeddings=False)
    agree(losses.npair(x, y), theirs.NPairsLoss(distance=raw)(x, y), x)
    agree(losses.zero_mean(x), regularizers.ZeroMeanRegularizer()(x), x)
    softmax = theirs.NormalizedSoftmaxLoss(9, 6, temperature=1 / 20).double()
    with torch.no_grad():
        softmax.W.copy_(PROXIES.T)
    f = F.normalize(x)
    for bins in (3, 10):
        agree(losses.fastap(f, y, bins=bins), theirs.FastAPLoss(bins)(x, y), x)
    agree(losses.signature_softmax(f, y, signatures=PROXIES), softmax(f, y), x)


# --- soft triple's regulariser


def test_regulariser_equals_the_loop():
    w = CENTRES.clone().requires_grad_()

    def naive(w: Tensor) -> Tensor:
        pairs = [(s, t) for s in range(2) for t in range(s + 1, 3)]
        roots = [(2 - 2 * c[s] @ c[t] + 1e-5).sqrt() for c in w for s, t in pairs]
        return torch.stack(roots).sum() / (9 * 3 * 2)

    agree(losses.soft_triple_regulariser(w), naive(w), w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_regulariser_of_merged_and_of_single_centres(dtype: torch.dtype):
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


def regularised(x: Tensor, y: Tensor, centres: Tensor) -> Tensor:
    penalty = losses.soft_triple_regulariser(centres)
    return losses.soft_triple(x, y, centres=centres) + 0.2 * penalty


@pytest.mark.parametrize(
    ("loss", "settings", "easy", "hard"),
    [
        (losses.triplet_batch_hard, {"margin": 0.5}, 0.119014, 1.281758),
        (losses.triplet_batch_hard, {}, 0.473754, 1.158550),
        (losses.contrastive, {"split": False}, 0.135191, 0.713554),
        (losses.margin, {}, 0.505573, 0.573818),
        (mined_ms, {}, 0.0, 0.956635),
        (losses.multi_similarity, {}, 0.268971, 0.956635),
        (losses.multi_similarity, {"beta": 50, "lam": 1}, 0.456508, 1.063465),
        (losses.ranked_list, {}, 0.076393, 0.586433),
        (losses.ranked_list, {"alpha": 1.4, "margin": 0.2}, 0.126393, 0.486433),
        (losses.ranked_list, {"temperature": 0}, 0.076393, 0.558133),
        (losses.soft_triple, {"centres": ONE}, 0.005531, 6.103721),
        (losses.soft_triple, {"centres": TWO}, 0.006732, 2.736177),
        (regularised, {"centres": TWO}, 0.096175, 2.825621),
        (losses.fastap, {"bins": 2}, 0.296429, 0.625),
        (losses.fastap, {"bins": 4}, 0.175, 0.583333),
        (losses.fastap, {}, 0.0, 0.583333),
    ],
)
def test_values_of_table_f(
    loss: Callable[..., Tensor], settings: dict[str, float], easy: float, hard: float
):
    assert float(loss(X, EASY, **settings)) == pytest.approx(easy, abs=6e-7)
    assert float(loss(X, HARD, **settings)) == pytest.approx(hard, abs=6e-7)


def test_ms_becomes_hinges():
    """alpha, beta -> infinity: [lam - min s_p]_+ + [max s_n - lam]_+; also the test against overflow."""
    ours = losses.multi_similarity(X, HARD, alpha=1e5, beta=1e5)
    # Every anchor has its positive at s = 0 and its hardest negative at 0.8.
    assert float(ours) == pytest.approx(0.5 + 0.3, abs=1e-4)


def test_ranked_list_becomes_the_hardest_negative():
    x, y = batch(0, True)
    d = torch.cdist(x, x)
    hardest = d.masked_fill(y[:, None] == y, torch.inf).amin(1)
    ours = losses.ranked_list(x, y, temperature=1e5, lam=1)
    torch.testing.assert_close(ours, (1.2 - hardest).clamp_min(0).mean(), rtol=1e-4, atol=1e-4)
