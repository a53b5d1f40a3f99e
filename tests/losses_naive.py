"""Batches for the tests of losses, and every formula once more, as a loop over single pairs in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy import losses, miners
from dmlstudy.geometry import pair_masks, pairwise_distance

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
PROXIES = CENTRES[:, 0]


def batch(seed: int, unit: bool = False, labels: Tensor = LABELS) -> tuple[Tensor, Tensor]:
    """Embeddings [B, 6] and shuffled labels; rows of varied length unless unit."""
    g = torch.Generator().manual_seed(seed)
    y = labels[torch.randperm(len(labels), generator=g)]
    x = F.normalize(torch.randn(len(y), 6, generator=g, dtype=torch.float64))
    return (x * (1 if unit else 0.5 + torch.rand(len(y), 1, generator=g))).requires_grad_(), y


def agree(ours: Tensor, other: Tensor, x: Tensor, tolerance: float = 1e-9) -> None:
    """Same value, same gradient."""
    torch.testing.assert_close(ours, other, rtol=tolerance, atol=tolerance)
    da, db = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (ours, other))
    torch.testing.assert_close(da, db, rtol=tolerance, atol=tolerance)


# --- loops over single pairs


def square(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum()


def euclid(a: Tensor, b: Tensor) -> Tensor:
    squared = square(a, b)
    return squared.sqrt() if squared > 0 else 0 * squared


def noise(a: Tensor, b: Tensor) -> Tensor:
    return (b - a).var() / a.var()


def split(y: Tensor, i: int, pairs: Pairs | None = None) -> tuple[list[int], list[int]]:
    """Positives and negatives of anchor i."""
    positive, negative = pair_masks(y) if pairs is None else pairs
    return positive[i].nonzero()[:, 0].tolist(), negative[i].nonzero()[:, 0].tolist()


def mean_of_active(terms: list[Tensor], x: Tensor) -> Tensor:
    return sum(terms, 0 * x.sum()) / max(sum(t.item() > 0 for t in terms), 1)


def hardest(x: Tensor, y: Tensor, metric: Callable[..., Tensor]) -> list[Tensor]:
    groups = [split(y, i) for i in range(len(y))]
    return [
        max(metric(x[i], x[j]) for j in p) - min(metric(x[i], x[k]) for k in n)
        for i, (p, n) in enumerate(groups)
        if p and n
    ]


def batch_hard(x: Tensor, y: Tensor, margin: float | None = None) -> Tensor:
    terms = [
        torch.log1p(v.exp()) if margin is None else (v + margin).clamp_min(0)
        for v in hardest(x, y, euclid)
    ]
    return sum(terms, 0 * x.sum()) / len(y)


def triplet_without_margin(x: Tensor, y: Tensor) -> Tensor:
    terms = [
        euclid(x[i], x[j]) - euclid(x[i], x[k])
        for i in range(len(y))
        for j in split(y, i)[0]
        for k in split(y, i)[1]
    ]
    return sum(terms, 0 * x.sum()) / max(len(terms), 1)


def triplet_all(x: Tensor, y: Tensor, metric: Callable[..., Tensor], margin=0.2) -> Tensor:
    terms = []
    for i in range(len(y)):
        p, n = split(y, i)
        near = [metric(x[i], x[j]) for j in p]
        far = [metric(x[i], x[k]) for k in n]
        terms += [(a - b + margin).clamp_min(0) for a in near for b in far]
    return mean_of_active(terms, x)


def contrastive(x: Tensor, y: Tensor, metric: Callable[..., Tensor], margin=1.0) -> Tensor:
    groups = [split(y, i) for i in range(len(y))]
    near = [metric(x[i], x[j]) for i, (p, _) in enumerate(groups) for j in p]
    far = [(margin - metric(x[i], x[k])).clamp_min(0) for i, (_, n) in enumerate(groups) for k in n]
    return sum(near, 0 * x.sum()) / max(len(near), 1) + mean_of_active(far, x)


def hadsell(x: Tensor, y: Tensor, one_mean: bool = False) -> Tensor:
    groups = [split(y, i) for i in range(len(y))]
    near = [square(x[i], x[j]) for i, (p, _) in enumerate(groups) for j in p]
    far = [(1 - euclid(x[i], x[k])).clamp_min(0) ** 2 for i, (_, n) in enumerate(groups) for k in n]
    kinds = (near + far,) if one_mean else (near, far)
    return sum((sum(terms) / max(len(terms), 1) for terms in kinds), 0 * x.sum())


def ms(x: Tensor, y: Tensor, pairs: Pairs | None = None) -> Tensor:
    total = 0 * x.sum()
    for i in range(len(y)):
        p, n = split(y, i, pairs)
        if p and n:
            pull = sum(torch.exp(-2 * (x[i] @ x[j] - 0.5)) for j in p)
            push = sum(torch.exp(40 * (x[i] @ x[k] - 0.5)) for k in n)
            total = total + torch.log(1 + pull) / 2 + torch.log(1 + push) / 40
    return total / len(y)


def ms_pairs(x: Tensor, y: Tensor) -> Pairs:
    return miners.multi_similarity_miner(x.detach() @ x.detach().T, *pair_masks(y))


def ranked_list(x: Tensor, y: Tensor, temperature: float = 10) -> Tensor:
    total = 0 * x.sum()
    for i in range(len(y)):
        p, n = split(y, i)
        far = [d for j in p if (d := euclid(x[i], x[j])) > 0.8]
        near = [d for k in n if (d := euclid(x[i], x[k])) < 1.2]
        if far:
            total = total + 0.5 * sum(d - 0.8 for d in far) / len(far)
        if near:
            w = [math.exp(temperature * (1.2 - d.item())) for d in near]  # numbers: no gradient
            push = sum(v * (1.2 - d) for v, d in zip(w, near, strict=True))
            total = total + 0.5 * push / sum(w)
    return total / len(y)


def margin(x: Tensor, y: Tensor, pairs: Pairs | None = None, beta: Tensor | None = None) -> Tensor:
    terms = []
    for i in range(len(y)):
        b = 1.2 if beta is None else beta[i]
        p, n = split(y, i, pairs)
        terms += [(euclid(x[i], x[j]) - b + 0.2).clamp_min(0) for j in p]
        terms += [(b - euclid(x[i], x[k]) + 0.2).clamp_min(0) for k in n]
    return mean_of_active(terms, x)


def margin_pairs(x: Tensor, y: Tensor) -> Pairs:
    return miners.nearest_negatives(pairwise_distance(x.detach()), *pair_masks(y))


def boundaries(y: Tensor) -> Tensor:
    return torch.linspace(0.8, 1.4, len(y), dtype=torch.float64)


def fastap(x: Tensor, y: Tensor, bins: int = 10) -> Tensor:
    width, scores = 4 / bins, []
    for i in range(len(y)):
        p, n = split(y, i)
        if not p or not n:
            continue
        d2 = {j: square(x[i], x[j]) for j in (*p, *n)}
        H = H_positive = score = 0.0
        for b in range(bins + 1):
            kernel = {j: (1 - (d2[j] - b * width).abs() / width).clamp_min(0) for j in d2}
            h_positive = sum(kernel[j] for j in p)
            H, H_positive = H + sum(kernel.values()), H_positive + h_positive
            score = score + (h_positive * H_positive / H if H > 0 else 0)
        scores.append(1 - score / len(p))
    return sum(scores, 0 * x.sum()) / max(len(scores), 1)


def npair(x: Tensor, y: Tensor, l2: float = 0.02) -> Tensor:
    images = {c: [i for i in range(len(y)) if y[i] == c] for c in y.tolist()}
    pairs = [members[:2] for members in images.values() if len(members) >= 2]
    total = 0 * x.sum()
    for a, p in pairs if len(pairs) > 1 else ():
        others = [x[a] @ x[n] - x[a] @ x[p] for _, n in pairs if n != p]
        total = total + torch.log(1 + sum(d.exp() for d in others))
        total = total + l2 / 4 * (x[a].square().sum() + x[p].square().sum())
    return total / max(len(pairs), 1)


def soft_triple(x: Tensor, y: Tensor) -> Tensor:
    total = 0 * x.sum()
    for f, c in zip(x, y.tolist(), strict=True):
        logits = []
        for i, w in enumerate(CENTRES.to(x)):
            s = torch.stack([f @ centre for centre in w])
            logits.append(20 * (((s / 0.1).softmax(0) * s).sum() - 0.01 * (i == c)))
        total = total - torch.stack(logits).log_softmax(0)[c]
    return total / len(y)


def signature_softmax(x: Tensor, y: Tensor) -> Tensor:
    logits = [torch.stack([20 * f @ w for w in PROXIES.to(x)]) for f in x]
    return sum(-row.log_softmax(0)[c] for row, c in zip(logits, y, strict=True)) / len(y)


def upper_bound(x: Tensor, y: Tensor) -> Tensor:
    total = 0 * x.sum()
    for f, own in zip(x, y.tolist(), strict=True):
        for c, w in enumerate(PROXIES.to(x)):
            total = total + euclid(f, w) * (1 if c == own else -1 / (3 * 8))
    return total / len(y)


def density(x: Tensor, y: Tensor, quadruplet: bool, margin: float, metric=square) -> Tensor:
    terms = []
    for i in range(len(y)):
        pull = metric(x[i], PROXIES.to(x)[y[i]])
        for n in split(y, i)[1]:
            apart = metric(x[i], x[n])
            if quadruplet:
                third = [j for j in range(len(y)) if y[j] not in (y[i], y[n])]
                if not third:
                    continue
                apart = min((square(x[n], x[j]) for j in third), key=Tensor.item)
            terms.append((pull - apart + margin).clamp_min(0))
    return mean_of_active(terms, x)


def tree_pairs(x: Tensor, y: Tensor, scale: float = 5.0) -> Tensor:
    edges, terms = losses.minimum_spanning_trees(pairwise_distance(x.detach()), y), []
    for i, j in edges.nonzero().tolist():
        negatives, d = split(y, i)[1], euclid(x[i], x[j])
        push = [(scale * (d - euclid(x[i], x[n]) + 0.2)).exp() for n in negatives]
        terms.append(torch.log(1 + sum(push, 0 * x.sum())) / scale)
    return sum(terms, 0 * x.sum()) / max(len(terms), 1)
