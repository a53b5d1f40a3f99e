"""The benchmark page: every section's table as Markdown, ratios first, and the growth plots."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd

INTRODUCTION = """# How fast

`make bench` measures this library, the peer (pytorch-metric-learning), faiss and the *floor*, interleaved in one
process, on two threads, in float32, and writes this page. The floor is what no implementation can do without: the bare
matrix products of the task, nothing done with them. Figures are medians; read the ratios, as times depend on the
machine. Peak memory is the resident size above the inputs, each contender in a fresh process. That results are *equal*
is asserted in `tests/test_losses.py` and `tests/test_evaluation.py`, never here.
"""

SECTIONS = {
    "evaluation": (
        "Evaluation: exact retrieval",
        "Floor: queries x D x gallery, once. Ours gives R@K for all K, R-precision and MAP@R, with ties scored by "
        "expectation; faiss gives R@K only; the peer, at its best setting, R@1, R-precision and MAP@R. Embeddings are "
        "noisy class centres at the sizes of the test sets. Where queries search each other, a product of two blocks "
        "serves both sides, so less than the full matrix is multiplied.",
    ),
    "million": (
        "A gallery of a million, in a mapped file",
        "10,000 queries, D = 128, R@1, 10, 100, R-precision and MAP@R. The approximate index holds 32 bytes an image.",
    ),
    "losses": (
        "Losses, forward and backward",
        "Floor: B x D x B and its two backward products; for SoftTriple B x D x (11,318 classes x 10 centres). *Plain* "
        "is autograd through the formula as it stands in the library; above 256 images ours takes blocks of 256 rows. "
        "*Contrastive* and *all triplets* are the SNR losses' formulas on squared Euclidean distances. N-pair looks "
        "at one anchor and one positive of each class only, less than its floor. Peak memory is given in N x N "
        "matrices of floats, at 8,192 images for ours and 1,024 for the peer.",
    ),
    "small_batches": (
        "Never slower than the peer",
        "Ours over the peer's time, by batch size B and dimension D; SoftTriple with 1,000 classes.",
    ),
    "images": (
        "Images",
        "Training batches of 80 at 224 px, images per second: from the image store, against torchvision's folder of "
        "JPEG files with two worker processes that keep running. They do not read ahead between their turns.",
    ),
    "report_cost": (
        "A report before it trains",
        "papermill from start to end: the first two cells of a report, against a notebook that holds `import torch`.",
    ),
}
COLOURS = {
    "ours": "#1b7837",
    "peer": "#c51b7d",
    "faiss": "#2166ac",
    "floor": "#888888",
    "plain": "#e08214",
}


def write_page(results: Path, folder: Path) -> None:
    """README.md and its plots, of the sections that have been measured."""
    parts = [INTRODUCTION]
    machines: list[str] = []
    for name, (title, text) in SECTIONS.items():
        path = results / f"{name}.csv"
        if path.exists():
            found = pd.read_csv(path)
            machines += found.pop("machine").unique().tolist()
            parts.append(f"## {title}\n\n{text}\n\n{_as_markdown(name, found)}\n")
    if (results / "evaluation_growth.csv").exists():
        _evaluation_growth(pd.read_csv(results / "evaluation_growth.csv"), folder)
        parts.append("## Growth of evaluation\n\n![time and memory](evaluation_growth.png)\n")
    if (results / "losses_growth.csv").exists():
        _losses_growth(pd.read_csv(results / "losses_growth.csv"), folder)
        parts.append("## Growth of losses\n\n![time of a step](losses_growth.png)\n")
    parts.append("## Machine\n\n" + "\n".join(f"* {m}" for m in dict.fromkeys(machines)) + "\n")
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def _as_markdown(name: str, found: pd.DataFrame) -> str:
    if name == "small_batches":
        found["batch"] = "B " + found["B"].astype(str) + ", D " + found["D"].astype(str)
        order = found["batch"].unique()
        wide = found.pivot(index="loss", columns="batch", values="ours / peer")[order]
        found = wide.reset_index()
    align = ["left"] + ["right"] * (len(found.columns) - 1)
    # As text, or trailing zeros are lost.
    return str(found.map(_shown).to_markdown(index=False, colalign=align, disable_numparse=True))


def _shown(value: object) -> str:
    if isinstance(value, float):
        if pd.isna(value):
            return "—"
        if value.is_integer() or abs(value) >= 100:
            return f"{value:,.0f}"
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _evaluation_growth(found: pd.DataFrame, folder: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, column, label in zip(
        axes, ("seconds", "MB"), ("seconds", "peak MB above the embeddings"), strict=True
    ):
        _lines(axis, found.dropna(subset=column), "n", column)
        axis.set(xlabel="embeddings, D = 128", ylabel=label)
    axes[0].legend(frameon=False)
    _save(figure, folder / "evaluation_growth.png")


def _losses_growth(found: pd.DataFrame, folder: Path) -> None:
    names = list(found["loss"].unique())
    columns = 4
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(11, 2.4 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        _lines(axis, found[found["loss"] == name], "B", "seconds")
        axis.set_title(name, fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("seconds")
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.supxlabel("images in the batch, D = 512", fontsize=9)
    _save(figure, folder / "losses_growth.png")


def _lines(axis: matplotlib.axes.Axes, found: pd.DataFrame, x: str, y: str) -> None:
    for contender, rows in found.groupby("contender", sort=False):
        axis.plot(
            rows[x], rows[y], marker="o", ms=3, label=contender, color=COLOURS[str(contender)]
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = sorted(found[x].unique())[::2]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: matplotlib.figure.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
