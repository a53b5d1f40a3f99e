"""Losses, forward and backward: ours, ours in one block, pytorch-metric-learning, and the bare matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.measure import medians, peak_bytes
from benchmarks.peers import Loss
from dmlstudy import losses, miners
from dmlstudy.losses import rows

THREADS = 2
Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A loss of embeddings [B, D] and labels [B], and the peer's with the same mathematics as far as it has it."""

    ours: Loss
    peer: Callable[[], Loss]  # built when asked for: the peer is a development dependency
    goal: float | None = None  # times the floor, at B 1024 and D 512
    peer_up_to: int = 4096  # largest batch at which the peer's memory stays below some 8 GB


CASES = {
    "multi-similarity + miner": Case(
        partial(losses.multi_similarity, pairs=miners.multi_similarity_miner),
        peers.mined_multi_similarity,
        2.0,
    ),
    "multi-similarity": Case(losses.multi_similarity, peers.multi_similarity),
    "batch hard": Case(losses.triplet_batch_hard, peers.batch_hard, 1.6),
    "ranked list": Case(losses.ranked_list, peers.ranked_list, 3.0),
    "FastAP": Case(losses.fastap, peers.fastap, 5.0, peer_up_to=2048),
    "margin": Case(losses.margin, peers.margin, 4.0, peer_up_to=512),
    "margin + miner": Case(
        partial(losses.margin, pairs=miners.nearest_negatives),
        peers.mined_margin,
        4.0,
        peer_up_to=512,
    ),
    "SNR contrastive": Case(
        losses.snr_contrastive, partial(peers.contrastive, "SNRDistance"), 4.0, peer_up_to=512
    ),
    "SNR triplet": Case(
        losses.snr_triplet, partial(peers.triplet, "SNRDistance"), 4.0, peer_up_to=512
    ),
    "contrastive": Case(
        losses.snr_contrastive.on(losses.squared),
        partial(peers.contrastive, "LpDistance", power=2),
        2.0,
    ),
    "all triplets": Case(
        losses.triplet_all.on(losses.squared),
        partial(peers.triplet, "LpDistance", power=2),
        2.5,
        peer_up_to=1024,
    ),
    "N-pair": Case(losses.npair, peers.npair),
}

# Stanford Online Products has 11,318 training classes.
PROXIES, PROXY_GOAL = "SoftTriple", 2.5
CLASSES, CENTRES = 11_318, 10
FEW_CLASSES = 1_000

# Peaks are read off the resident size. From here on a matrix, masks too, is a mapping of its own, returned when freed;
# the peer is measured where it fits into memory.
MEMORY_BATCH, PEER_MEMORY_BATCH = 8192, 1024


def table() -> pd.DataFrame:
    """The goals' table: at B 1024 and D 512, a row per loss; SoftTriple at B 256.

    Columns: loss, B, D, milliseconds of ours, plain, peer and floor; ours, plain and peer in floors, goal; peak
    memory of ours and of the peer in N x N matrices.
    """
    torch.set_num_threads(THREADS)
    found = [{**_timed(name, 1024, 512), **_peaks(name)} for name in CASES]
    return pd.DataFrame([*found, _timed(PROXIES, 256, 512)])


def small_batches() -> pd.DataFrame:
    """Never slower than the peer? Every loss at B 64 to 1024 and D 128 and 512; SoftTriple with 1,000 classes.

    Columns: loss, B, D, milliseconds of ours and peer, and ours / peer.
    """
    torch.set_num_threads(THREADS)
    found = []
    for batch in (64, 256, 512, 1024):
        for dim in (128, 512):
            for name in (*CASES, PROXIES):
                contenders = _contenders(name, batch, dim, FEW_CLASSES, ("ours", "peer"))
                seconds = medians(contenders, rounds=51, budget=1)
                ms = {who: 1e3 * value for who, value in seconds.items()}
                ratio = ms["ours"] / ms["peer"]
                found.append({"loss": name, "B": batch, "D": dim, **ms, "ours / peer": ratio})
    return pd.DataFrame(found)


def growth() -> pd.DataFrame:
    """Seconds of a step from B 64 to 4096 at D 512, long form: loss, B, contender, seconds."""
    torch.set_num_threads(THREADS)
    found = []
    for name, case in CASES.items():
        for batch in (64, 128, 256, 512, 1024, 2048, 4096):
            # A step of the peer on 1024 anchors takes up to 20 seconds; what it would at 4096, nobody waits for.
            peer = ("peer",) if batch <= min(case.peer_up_to, 2048) else ()
            contenders = _contenders(name, batch, 512, None, ("ours", "plain", *peer, "floor"))
            for who, seconds in medians(contenders, rounds=5, budget=2).items():
                found.append({"loss": name, "B": batch, "contender": who, "seconds": seconds})
    return pd.DataFrame(found)


def _timed(name: str, batch: int, dim: int) -> dict[str, object]:
    everyone = ("ours", "plain", "peer", "floor")
    seconds = medians(_contenders(name, batch, dim, CLASSES, everyone), rounds=25, budget=15)
    floors = {f"{who} / floor": seconds[who] / seconds["floor"] for who in everyone[:3]}
    ms = {who: 1e3 * value for who, value in seconds.items()}
    goal = CASES[name].goal if name in CASES else PROXY_GOAL
    return {"loss": name, "B": batch, "D": dim, **ms, **floors, "goal": goal}


def _peaks(name: str) -> dict[str, float]:
    """Peak memory of a step in N x N matrices of floats; not a number where it ran out of memory."""
    sizes = {"ours": MEMORY_BATCH, "peer": PEER_MEMORY_BATCH}
    peaks = {}
    for who, batch in sizes.items():
        peak = peak_bytes(_prepare, name, who, batch, 512)
        peaks[f"{who}, N x N"] = float("nan") if peak is None else peak / (4 * batch**2)
    return peaks


def _prepare(name: str, who: str, batch: int, dim: int) -> Step:
    """A step in a fresh process, after a small one that loads what loads once (threads, kernels, autograd)."""
    torch.set_num_threads(THREADS)
    for step in _contenders(name, rows.ROWS + 1, dim, None, (who,)).values():
        step()
    return _contenders(name, batch, dim, None, (who,))[who]


def _contenders(
    name: str, batch: int, dim: int, classes: int | None, who: Iterable[str]
) -> dict[str, Step]:
    x, y = _batch(batch, dim)
    if name == PROXIES:
        assert classes is not None
        steps = _proxy_steps(x, y, classes)
    else:
        case = CASES[name]
        ours = _step(lambda: case.ours(x, y), x)
        steps = {"ours": lambda: ours, "plain": lambda: _plainly(ours)}
        steps["peer"] = lambda: _peer_step(case, x, y)
        steps["floor"] = lambda: _products(x, x)
    return {contender: steps[contender]() for contender in who}


def _batch(batch: int, dim: int) -> tuple[Tensor, Tensor]:
    """Unit embeddings and shuffled labels, four images of a class."""
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(batch, dim, generator=g)).requires_grad_()
    labels = torch.arange(batch) // 4
    return x, labels[torch.randperm(batch, generator=g)]


def _step(loss: Callable[[], Tensor], *leaves: Tensor) -> Step:
    """Forward and backward."""

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return run


def _plainly(step: Step) -> Step:
    """The step in one block: autograd through the whole formula."""

    def run() -> None:
        several, rows.ROWS = rows.ROWS, 2**62
        try:
            step()
        finally:
            rows.ROWS = several

    return run


def _peer_step(case: Case, x: Tensor, y: Tensor) -> Step:
    peer = case.peer()
    return _step(lambda: peer(x, y), x)


def _products(x: Tensor, y: Tensor) -> Step:
    """The floor: X Y^T, [N, M], and the two products of its backward."""
    x, y = x.detach(), y.detach()
    gradient = torch.randn(len(x), len(y))
    return lambda: (x @ y.T, gradient @ y, gradient.T @ x)


def _proxy_steps(x: Tensor, y: Tensor, classes: int) -> dict[str, Callable[[], Step]]:
    """SoftTriple with learned centres; as the peer does, ours normalises embeddings and centres in the step."""
    g = torch.Generator().manual_seed(1)
    centres = F.normalize(torch.randn(classes, CENTRES, x.shape[1], generator=g), dim=2)
    centres.requires_grad_()

    def loss() -> Tensor:
        return losses.soft_triple(F.normalize(x), y, centres=F.normalize(centres, dim=2))

    def peer() -> Step:
        from pytorch_metric_learning.losses import SoftTripleLoss

        theirs = SoftTripleLoss(classes, x.shape[1], CENTRES, la=20, gamma=0.1, margin=0.01)
        return _step(lambda: theirs(x, y), x, theirs.fc)

    ours = _step(loss, x, centres)
    return {
        "ours": lambda: ours,
        "plain": lambda: _plainly(ours),
        "peer": peer,
        "floor": lambda: _products(x, centres.flatten(0, 1)),
    }
