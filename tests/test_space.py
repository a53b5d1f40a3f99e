"""Clustering, verification and the shape of the space, against scikit-learn and loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import clustered
from torch import Tensor

from dmlstudy.evaluation import (
    auroc,
    inner_product,
    nmi,
    ordered_pairs,
    pair_histograms,
)
from dmlstudy.evaluation.clustering import mutual_information
from dmlstudy.evaluation.search import Similarity
from dmlstudy.evaluation.spectrum import alignment, density, spectral_decay, uniformity
from dmlstudy.kmeans import kmeans


def test_more_starts_of_k_means_never_fit_worse():
    x, _ = clustered(2)

    def spread(clusters: Tensor) -> float:
        members = [x[clusters == c] for c in clusters.unique()]
        return float(sum((m - m.mean(0)).square().sum() for m in members))

    for seed in range(5):
        one, best = kmeans(x, 8, seed), kmeans(x, 8, seed, restarts=5)
        assert spread(best) <= spread(one) + 1e-3
        assert torch.equal(best, kmeans(x, 8, seed, restarts=5))


def test_mutual_information_agrees_with_scikit_learn():
    from sklearn.metrics import normalized_mutual_info_score

    g = torch.Generator().manual_seed(1)
    a, b = (torch.randint(5, (80,), generator=g) for _ in range(2))
    assert mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b))
    x, y = clustered(3)
    assert nmi(x, y) == nmi(x, y)


def minus_distance(a: Tensor, b: Tensor) -> Tensor:
    return -(a[:, None] - b[None]).square().sum(-1)


def long_tail(a: Tensor, b: Tensor) -> Tensor:
    return -(12 * (1 - a @ b.T)).exp()


@pytest.mark.parametrize(
    ("similarity", "scale", "outlier"),
    [
        pytest.param(inner_product, 1, 1, id="cosine"),
        pytest.param(minus_distance, 1e-4, 1, id="nearly collapsed"),
        pytest.param(minus_distance, 1, 1e5, id="one far outlier"),
        pytest.param(long_tail, 1, 1, id="long tail"),
    ],
)
def test_auroc_whatever_the_range_of_similarities(
    similarity: Similarity, scale: float, outlier: float
):
    from sklearn.metrics import roc_auc_score

    x, y = clustered(1.5)
    x = x * scale
    x[0] *= outlier  # ties its 190 of 9,120 pairs at most: 0.02 points
    itself = torch.eye(len(x), dtype=torch.bool)
    same = (y[:, None] == y[None, :])[~itself]
    positives, negatives = ordered_pairs(x, y, similarity=similarity)
    assert (int(positives.sum()), int(negatives.sum())) == (int(same.sum()), int((~same).sum()))
    exact = 100 * roc_auc_score(same, similarity(x, x)[~itself])
    assert auroc(positives, negatives) == pytest.approx(exact, abs=0.02 if outlier > 1 else 0.01)
    if similarity is inner_product:  # bins of equal width do as well
        binned = pair_histograms(x, y, similarity=similarity)[1:]
        assert auroc(*binned) == pytest.approx(exact, abs=0.01)


def test_shape_of_the_space_against_loops():
    x, y = clustered(1)
    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    squared = {(i, j): float((x[i] - x[j]).square().sum()) for i, j in pairs}
    same = [squared[i, j] for i, j in pairs if y[i] == y[j]]
    assert alignment(x, y) == pytest.approx(np.mean(same), rel=1e-5)
    assert uniformity(x) == pytest.approx(
        np.log(np.mean([np.exp(-2 * d) for d in squared.values()])), rel=1e-4
    )
    inner = [
        np.mean([d**0.5 for (i, j), d in squared.items() if y[i] == y[j] == c]) for c in range(8)
    ]
    centres = F.normalize(torch.stack([x[y == c].mean(0) for c in range(8)]))
    assert density(x, y) == pytest.approx(
        np.mean(inner) / float(torch.pdist(centres).mean()), rel=1e-4
    )


def test_spectrum():
    assert spectral_decay(torch.eye(4)) == pytest.approx(0, abs=1e-9)
    assert np.isfinite(spectral_decay(torch.zeros(5, 3)))
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 9, generator=g)
    share = torch.linalg.svdvals(wide.double()) / torch.linalg.svdvals(wide.double()).sum()
    assert spectral_decay(wide) == pytest.approx(float(-(3 * share).log().mean()), rel=1e-6)
    # Empty directions have the floor, not the rounding.
    flat = torch.cat([F.normalize(torch.randn(200, 8, generator=g)), torch.zeros(200, 8)], 1)
    turned = flat @ torch.linalg.qr(torch.randn(16, 16, generator=g))[0]
    assert spectral_decay(turned) == pytest.approx(spectral_decay(flat), abs=1e-6)
