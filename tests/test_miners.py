"""Miners against loops and pytorch-metric-learning; ties, cutoffs and degenerate batches."""

from collections.abc import Callable

import pytest
import torch
from losses_naive import EASY, HARD, X, batch, split
from torch import Tensor

from dmlstudy import miners
from dmlstudy.geometry import pair_masks, pairwise_distance

Miner = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def multi_similarity_miner(x: Tensor, y: Tensor, **settings: float) -> tuple[Tensor, Tensor]:
    return miners.multi_similarity_miner(x @ x.T, *pair_masks(y), **settings)


def nearest_negatives(x: Tensor, y: Tensor, **settings: float) -> tuple[Tensor, Tensor]:
    return miners.nearest_negatives(pairwise_distance(x), *pair_masks(y), **settings)


MINERS = {"multi-similarity": multi_similarity_miner, "nearest negatives": nearest_negatives}
each_miner = pytest.mark.parametrize("mine", MINERS.values(), ids=MINERS.keys())


def as_masks(pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    positive, negative = torch.zeros(2, len(pairs), len(pairs), dtype=torch.bool)
    for i, (p, n) in enumerate(pairs):
        positive[i, p], negative[i, n] = True, True
    return positive, negative


def naive_nearest_negatives(x: Tensor, y: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    pairs = []
    for i in range(len(y)):
        p, n = split(y, i)
        d = {k: (x[i] - x[k]).norm().item() for k in n}
        pairs.append((p, sorted((k for k in n if d[k] >= cutoff), key=d.__getitem__)[: len(p)]))
    return as_masks(pairs)


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("epsilon", [-0.3, 0.0, 0.1])
def test_multi_similarity_miner_equals_pytorch_metric_learning(epsilon: float, seed: int):
    pytest.importorskip("pytorch_metric_learning", reason="the oracle is a development dependency")
    from pytorch_metric_learning.distances import DotProductSimilarity
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    x, y = batch(seed, True)
    distance = DotProductSimilarity(normalize_embeddings=False)
    a, p, b, n = MultiSimilarityMiner(epsilon, distance=distance)(x, y)
    positive, negative = torch.zeros(2, len(y), len(y), dtype=torch.bool)
    positive[a, p], negative[b, n] = True, True
    assert same(multi_similarity_miner(x, y, epsilon=epsilon), (positive, negative))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cutoff", [0.0, 0.5, 1.3])
def test_nearest_negatives_equals_the_loop(cutoff: float, seed: int):
    x, y = batch(seed, True)
    ours = nearest_negatives(x, y, cutoff=cutoff)
    assert same(ours, naive_nearest_negatives(x, y, cutoff))


def test_fixture():
    """The multi-similarity miner filters every pair of E; of H it drops the two negatives at s = -0.6."""
    assert not any(mask.any() for mask in multi_similarity_miner(X, EASY))
    positive, negative = multi_similarity_miner(X, HARD)
    assert positive.sum() == 4
    assert negative.int().tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    assert nearest_negatives(X, HARD)[1].nonzero().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
    # Past a cutoff of 0.7 the neighbours at 0.632 are too near, and the next ones take their place.
    beyond = nearest_negatives(X, HARD, cutoff=0.7)[1]
    assert beyond.nonzero().tolist() == [[0, 3], [1, 2], [2, 1], [3, 0]]


def test_anchors_with_few_candidates_get_fewer_negatives():
    # The only negative comes first, where a row of nothing but rejected candidates would start.
    positive, negative = nearest_negatives(X.flip(0), torch.tensor([1, 0, 0, 0]), cutoff=1.0)
    assert positive.sum(1).tolist() == [0, 2, 2, 2]
    assert negative.nonzero().tolist() == [[2, 0], [3, 0]]


def test_ties_go_to_the_first():
    x = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], dtype=torch.float64)
    _, negative = nearest_negatives(x, torch.tensor([0, 0, 1, 1, 1]))
    assert negative[:2].nonzero().tolist() == [[0, 2], [1, 2]]


@each_miner
def test_masks_are_pairs_and_pass_no_gradient(mine: Miner):
    x, y = batch(0, True)
    positive, negative = mine(x, y)
    assert positive.dtype == negative.dtype == torch.bool and not positive.requires_grad
    equal = y[:, None] == y
    assert not (positive & ~equal).any() and not (negative & equal).any()
    assert not positive.diagonal().any()


@each_miner
@pytest.mark.parametrize("identical", [False, True], ids=["distinct", "identical"])
@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [0], [0, 0]],
    ids=["one class", "singletons", "one image", "one pair"],
)
def test_degenerate_batches(mine: Miner, labels: list[int], identical: bool):
    """Without both kinds of pairs no anchor has a negative to keep."""
    x = X[:1].repeat(len(labels), 1) if identical else X[: len(labels)]
    positive, negative = mine(x, torch.tensor(labels))
    assert positive.shape == negative.shape == (len(labels), len(labels))
    assert not negative.any()
