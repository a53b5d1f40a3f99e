"""Figures of supervised product quantisation: codes on a plane, recall against bits, codeword usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import matplotlib.pyplot as plt
import torch
from IPython.display import Image

from dmlstudy.evaluation import Similarity, retrieve
from dmlstudy.geometry import squared_distance
from dmlstudy.losses.product_quantisation import soft_and_hard
from dmlstudy.methods.product_quantisation import ProductQuantisation
from dmlstudy.product_codes import hard_codes
from dmlstudy.study.figures import NEGATIVE, NEUTRAL, POSITIVE, _picture

if TYPE_CHECKING:
    from dmlstudy.study.notebook_report import Report


def codes_on_a_plane() -> Image:
    """One codebook of four codewords: the soft codes of thirty points, for assignments ever nearer to one-hot."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(30, 2, generator=generator)
    codewords = torch.tensor([[1.4, 0.2], [0.1, 1.5], [-1.3, -0.1], [0.2, -1.2]])
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3))
    for axis, sharpness in zip(axes, (0.5, 2.0, 8.0), strict=True):
        p = (sharpness * points @ codewords.T).softmax(1)
        soft, hard = soft_and_hard(p[:, None], codewords[None])
        for point, s, h in zip(points, soft, hard, strict=True):
            axis.plot(*torch.stack([point, s, h]).T, color=NEUTRAL, lw=0.6, alpha=0.6, zorder=1)
        axis.scatter(*points.T, color=NEUTRAL, s=10, label="points x")
        axis.scatter(*soft.T, color=POSITIVE, s=16, label="soft codes")
        axis.scatter(
            *codewords.T, marker="*", s=140, color=NEGATIVE, label="codewords = hard codes"
        )
        impurity = float(1 - p.square().sum(1).mean())
        axis.set(title=f"Gini impurity {impurity:.2f}", xticks=[], yticks=[], aspect="equal")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=3, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return _picture(figure)


def recall_and_usage(report: Report) -> Image:
    """R@1 against bits per image (first seed), and how often every codeword is used, by codebook."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3))
    for name, (bits, recall) in recall_by_bits(report).items():
        left.plot(bits, recall, "o", label=f"{name}: {bits:g} bits, {recall:.1f}")
    left.set(xscale="log", xlabel="bits per gallery image", ylabel="R@1 (%)")
    left.margins(0.2)
    left.legend(frameon=False, fontsize=7)
    run, method = report.runs[0], cast(ProductQuantisation, report.runs[0].method)
    codebooks, size = method.codebooks.detach().cpu(), method.network.embedding_size
    stored = run.query if run.gallery is None else run.gallery
    for codes in hard_codes(stored[:, -size:], codebooks).T:
        share = torch.bincount(codes, minlength=codebooks.shape[1]) / len(codes)
        right.plot(share.sort(descending=True).values.cumsum(0), color=POSITIVE, lw=1)
    right.plot(torch.linspace(0, 1, codebooks.shape[1]), color=NEUTRAL, ls="--", lw=1)
    right.set(xlabel="codewords, most used first", ylabel="share of images", ylim=(0, 1.05))
    figure.tight_layout()
    return _picture(figure)


def recall_by_bits(report: Report) -> dict[str, tuple[float, float]]:
    """Bits of a stored image and R@1 in percent of each ranking, on the test set and the first seed."""
    run, method = report.runs[0], cast(ProductQuantisation, report.runs[0].method)
    labels = torch.from_numpy(report.benchmark.query.labels)
    others = report.benchmark.gallery
    other_labels = None if others is None else torch.from_numpy(others.labels)

    def recall(columns: slice, similarity: Similarity) -> float:
        gallery = None if run.gallery is None else run.gallery[:, columns]
        query = run.query[:, columns]
        found = retrieve(query, labels, gallery, other_labels, similarity=similarity, ks=(1,))
        return 100 * float(found.hits[1].mean())

    size = method.network.embedding_size
    bits, floats = method.bits, 32.0 * size
    points = {
        "hard to hard": (bits, recall(slice(-size, None), method.similarity)),
        "soft to hard": (bits, recall(slice(None), method.similarity)),
        "soft to soft": (floats, recall(slice(size), lambda q, g: -squared_distance(q, g))),
    }
    for control in report.control_runs.get("float embedding", [])[:1]:
        points["float embedding"] = (
            floats,
            100 * float(control.evaluation.retrieval.hits[1].mean()),
        )
    return points
