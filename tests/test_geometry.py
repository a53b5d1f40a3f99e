"""Distances against torch.cdist, at and near zero; masks against loops."""

import pytest
import torch
from torch import Tensor

from dmlstudy.geometry import (
    pair_masks,
    pairwise_distance,
    pairwise_similarity,
    safe_sqrt,
    snr_distance,
    squared_distance,
)


def points(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exact_distance(x: Tensor, y: Tensor) -> Tensor:
    return (x.double()[:, None] - y.double()[None]).square().sum(2).sqrt()


def test_between_two_sets_and_within_one():
    x, y = points(7), points(4, seed=1)
    torch.testing.assert_close(pairwise_distance(x, y), exact_distance(x, y))
    torch.testing.assert_close(squared_distance(x, y), exact_distance(x, y).square())
    torch.testing.assert_close(pairwise_similarity(x, y), torch.einsum("nd,md->nm", x, y))
    torch.testing.assert_close(pairwise_distance(x), exact_distance(x, x))
    torch.testing.assert_close(pairwise_similarity(x), pairwise_similarity(x, x))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_float32_error_is_a_few_roundings_of_the_squared_norms(scale: float):
    """Also for points so near that their distance drowns in it; never negative, exactly 0 on the diagonal."""
    x = scale * points(64, dtype=torch.float32)
    x[32:] = x[:32] + 1e-5 * scale
    ours = squared_distance(x)
    norms = x.double().square().sum(1)
    allowed = 8 * torch.finfo(torch.float32).eps * (norms[:, None] + norms)
    assert ((ours.double() - exact_distance(x, x).square()).abs() <= allowed).all()
    assert (ours >= 0).all() and not ours.diagonal().any()


def test_gradients():
    x, y = points(6).requires_grad_(), points(4, seed=1).requires_grad_()
    for function in (squared_distance, pairwise_distance, pairwise_similarity):
        assert torch.autograd.gradcheck(lambda a, f=function: f(a), x)
        assert torch.autograd.gradcheck(function, (x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_coinciding_points_have_a_finite_gradient(dtype: torch.dtype):
    x = points(1, dtype=dtype).repeat(5, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(pairwise_distance(x).sum(), x)
    assert gradient.isfinite().all()
    x = torch.ones(5, 4, dtype=dtype, requires_grad=True)  # exact arithmetic: exactly zero
    (gradient,) = torch.autograd.grad(pairwise_distance(x).sum(), x)
    assert not gradient.any()


def test_safe_sqrt():
    x = torch.tensor([0.0, 1e-12, 9.0], dtype=torch.float64, requires_grad=True)
    root = safe_sqrt(x)
    torch.testing.assert_close(root, torch.tensor([0, 1e-6, 3], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(root.sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([0, 5e5, 1 / 6], dtype=torch.float64))


@pytest.mark.parametrize("labels", [[7, 0, 7, 3, 0, 7], [1, 1], [4], [0, 5, 9]])
def test_pair_masks_equal_the_loop(labels: list[int]):
    positive, negative = pair_masks(torch.tensor(labels))
    rows = range(len(labels))
    assert positive.tolist() == [[i != j and labels[i] == labels[j] for j in rows] for i in rows]
    assert negative.tolist() == [[labels[i] != labels[j] for j in rows] for i in rows]


# --- signal to noise


def test_distances_of_the_card():
    h = torch.tensor([[1.0, -1, 1, -1], [2, -2, 0, 0], [3, 1, -1, -3]])
    distances = snr_distance(h)
    for (i, j), value in {(0, 1): 1, (1, 0): 0.5, (0, 2): 4, (1, 2): 2.5}.items():
        assert float(distances[i, j]) == pytest.approx(value)
    assert torch.equal(snr_distance(h[:2], h), snr_distance(h)[:2])


def test_distance_equals_the_ratio_of_variances_in_value_and_gradient():
    x, z = points(7).requires_grad_(), points(5, seed=1).requires_grad_()
    weight = torch.randn(len(x), len(z), generator=torch.Generator().manual_seed(2)).double()
    loop = torch.stack([torch.stack([(b - a).var() / a.var() for b in z]) for a in x])
    torch.testing.assert_close(snr_distance(x, z), loop)
    ours, naive = ((m * weight).sum() for m in (snr_distance(x, z), loop))
    gradients = (torch.autograd.grad(value, (x, z)) for value in (ours, naive))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
