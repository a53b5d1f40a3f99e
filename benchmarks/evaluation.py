"""Exact retrieval at the sizes of the standard test sets: ours, faiss, the peer, and the bare product."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.measure import medians, peak_bytes
from dmlstudy.evaluation import neighbours, retrieve

Run = Callable[[], object]
Data = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
SIDE, WIDTH = 1024, 16384  # the floor's blocks: as large as helps, and small enough for the memory


@dataclass(frozen=True)
class Size:
    """A test set of unit embeddings in classes; without a gallery the queries search each other.

    Attributes:
        noise: spread of a class in units of the spread of classes; sets how hard the search is.
        goal: what issue "faster than anything" asks of our time, in units of the floor's.
    """

    name: str
    queries: int
    gallery: int
    classes: int
    dim: int
    ks: tuple[int, ...]
    noise: float
    goal: float

    def data(self) -> Data:
        g = torch.Generator().manual_seed(0)
        centres = torch.randn(self.classes, self.dim, generator=g)

        def draw(n: int) -> tuple[Tensor, Tensor]:
            labels = (torch.arange(n) % self.classes)[torch.randperm(n, generator=g)]
            x = torch.randn(n, self.dim, generator=g).mul_(self.noise).add_(centres[labels])
            return torch.nn.functional.normalize(x), labels

        queries = draw(self.queries)
        return (*queries, *(draw(self.gallery) if self.gallery else (None, None)))


CUB = Size("CUB-200-2011", 5924, 0, 100, 512, (1, 2, 4, 8), 3.3, 1.3)
CARS = Size("CARS196", 8131, 0, 98, 512, (1, 2, 4, 8), 3.3, 1.3)
IN_SHOP = Size("In-shop", 14218, 12612, 3985, 512, (1, 10, 20, 30), 2.2, 1.4)
SOP = Size("SOP", 60502, 0, 11316, 512, (1, 10, 100, 1000), 2.2, 0.75)


def table(sizes: tuple[Size, ...] = (CUB, CARS, IN_SHOP, SOP)) -> pd.DataFrame:
    """One row per test set: seconds and peak memory of each contender, and ratios to the floor."""
    torch.set_num_threads(2)
    return pd.DataFrame([_row(size) for size in sizes])


def _row(size: Size) -> dict[str, object]:
    makers = {"floor": floor, "ours": ours, "faiss": faiss_flat} | (
        {} if size.gallery else {"peer": peer}
    )
    data = size.data()
    large = size.queries > 20_000
    contenders = {name: maker(size, data) for name, maker in makers.items()}
    seconds = medians(contenders, rounds=2 if large else 7, warm=not large)
    hits = retrieve(*data, ks=size.ks).hits
    row: dict[str, object] = {"test set": size.name, "queries": size.queries}
    row |= {"gallery": size.gallery or size.queries, "R@1": 100 * float(hits[1].mean())}
    row |= {f"{name}, s": value for name, value in seconds.items()}
    row |= {f"{n} / floor": seconds[n] / seconds["floor"] for n in makers if n != "floor"}
    row["goal"] = size.goal
    for name in [n for n in ("ours", "peer") if n in makers]:
        peak = peak_bytes(_prepare, makers[name], size)
        row[f"{name}, MB"] = None if peak is None else peak / 2**20
    return row


def _prepare(maker: Callable[[Size, Data], Run], size: Size) -> Run:
    torch.set_num_threads(2)
    return maker(size, size.data())


def floor(size: Size, data: Data) -> Run:
    """Every similarity once, and nothing done with it."""
    query, _, gallery, _ = data
    return partial(_products, query, query if gallery is None else gallery)


def _products(query: Tensor, gallery: Tensor) -> None:
    out = torch.empty(SIDE, WIDTH)
    for rows in query.split(SIDE):
        for columns in gallery.split(WIDTH):
            torch.mm(rows, columns.T, out=out[: len(rows), : len(columns)])


def ours(size: Size, data: Data) -> Run:
    """R@K of all K, R-precision and MAP@R, ties accounted for."""
    return lambda: retrieve(*data, ks=size.ks)


def faiss_flat(size: Size, data: Data) -> Run:
    """R@K only, from the K nearest; a query is left out of its own list."""
    query, labels, gallery, gallery_labels = data
    alone = gallery is None
    rows = (query if gallery is None else gallery).numpy()
    names = (labels if gallery_labels is None else gallery_labels).numpy()
    faiss.omp_set_num_threads(2)

    def run() -> list[float]:
        index = faiss.IndexFlatIP(size.dim)
        index.add(rows)
        _, found = index.search(query.numpy(), max(size.ks) + alone)
        right = names[found[:, alone:]] == labels.numpy()[:, None]
        return [float(right[:, :k].any(1).mean()) for k in size.ks]

    return run


def peer(size: Size, data: Data) -> Run:
    """pytorch-metric-learning at its best setting: R@1, R-precision and MAP@R; it has no R@K for other K."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    query, labels, _, _ = data
    wanted = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(
        include=wanted, k="max_bin_count", device=torch.device("cpu"), avg_of_avgs=False
    )
    return lambda: calculator.get_accuracy(query, labels)


# --- a gallery in a mapped file

MILLION = Size("a million", 10_000, 1_000_000, 100_000, 128, (1, 10, 100), 1.2, 1.5)


def million(size: Size = MILLION) -> pd.DataFrame:
    """A gallery that stays in its file: exact by ours, approximate by faiss with its recall, and the floor."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gallery.npy"
        query, labels, gallery, gallery_labels = size.data()
        assert gallery is not None and gallery_labels is not None
        np.save(path, gallery.numpy())
        np.savez(Path(folder) / "rest.npz", query=query, labels=labels, names=gallery_labels)
        del gallery
        contenders = {"floor": mapped_floor, "ours": mapped_ours}
        runs = {k: run(path, size) for k, run in contenders.items()}
        seconds = medians(runs, rounds=3, warm=False)
        peaks = {k: peak_bytes(_prepare_mapped, run, path, size) for k, run in contenders.items()}
        rows: list[dict[str, object]] = [
            {
                "search": name,
                "seconds": seconds[name],
                "/ floor": seconds[name] / seconds["floor"],
                "peak MB": (peaks[name] or 0) / 2**20,
                "recall of the 10 nearest": 1.0 if name == "ours" else None,
                "goal": size.goal if name == "ours" else None,
            }
            for name in contenders
        ]
        return pd.DataFrame(rows + _approximate(path, size, seconds["floor"]))


def _open(path: Path) -> Data:
    rest = np.load(path.with_name("rest.npz"))
    query, labels, names = (torch.from_numpy(rest[k]) for k in ("query", "labels", "names"))
    # Copy on write: torch wants a writable array, and nobody writes.
    return query, labels, torch.from_numpy(np.load(path, mmap_mode="c")), names


def _prepare_mapped(maker: Callable[[Path, Size], Run], path: Path, size: Size) -> Run:
    torch.set_num_threads(2)
    return maker(path, size)


def mapped_floor(path: Path, size: Size) -> Run:
    return floor(size, _open(path))


def mapped_ours(path: Path, size: Size) -> Run:
    return ours(size, _open(path))


def _approximate(path: Path, size: Size, floor_seconds: float) -> list[dict[str, object]]:
    """faiss' inverted file with product quantisation: 32 bytes an image, a few of 1,024 cells looked at."""
    query, _, gallery, _ = _open(path)
    assert gallery is not None
    sample = query[:1000]
    exact = neighbours(sample, gallery, 10)[1].numpy()
    quantiser = faiss.IndexFlatIP(size.dim)
    index = faiss.IndexIVFPQ(quantiser, size.dim, 1024, 32, 8, faiss.METRIC_INNER_PRODUCT)
    index.train(gallery[:: len(gallery) // 50_000].numpy())
    for start in range(0, len(gallery), 100_000):
        index.add(gallery[start : start + 100_000].numpy())
    rows: list[dict[str, object]] = []
    for cells in (8, 64, 256):
        index.nprobe = cells
        seconds = medians({"ivf": lambda: index.search(query.numpy(), 10)}, rounds=3)["ivf"]
        found = index.search(sample.numpy(), 10)[1]
        shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)])
        rows.append(
            {
                "search": f"faiss IVF-PQ, {cells} of 1,024 cells",
                "seconds": seconds,
                "/ floor": seconds / floor_seconds,
                "recall of the 10 nearest": shared,
            }
        )
    return rows


# --- growth


def growth(
    sizes: tuple[int, ...] = (5_000, 10_000, 20_000, 40_000, 60_000, 120_000), others: int = 40_000
) -> pd.DataFrame:
    """Seconds and peak MB over the number of embeddings, D = 128, classes of five; long form.

    Args:
        sizes: how many embeddings.
        others: up to so many, faiss and the peer take part.
    """
    torch.set_num_threads(2)
    rows = []
    for n in sizes:
        size = Size(f"{n:,}", n, 0, n // 5, 128, (1, 10, 100), 1.5, 1.0)
        makers = {"floor": floor, "ours": ours}
        makers |= {"faiss": faiss_flat, "peer": peer} if n <= others else {}
        data = size.data()
        contenders = {k: maker(size, data) for k, maker in makers.items()}
        seconds = medians(contenders, rounds=3, budget=15, warm=n <= 20_000)
        for name, maker in makers.items():
            row = {"n": n, "contender": name, "seconds": seconds[name]}
            if name in ("ours", "peer"):
                peak = peak_bytes(_prepare, maker, size)
                row["MB"] = None if peak is None else peak / 2**20
            rows.append(row)
    return pd.DataFrame(rows)
