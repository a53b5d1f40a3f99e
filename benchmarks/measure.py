"""Time and memory of contenders: timed in turns, so that a busy machine hurts all alike; each one's memory alone."""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmlstudy.study.notebooks import KEEP_MEMORY

Contenders = dict[str, Callable[[], object]]


def medians(
    contenders: Contenders, *, rounds: int = 7, budget: float = 60.0, warm: bool = True
) -> dict[str, float]:
    """Seconds of each contender: the median over rounds in which all of them take their turn.

    Args:
        contenders: name -> what is timed, inputs already built.
        rounds: how often each is timed.
        budget: seconds that each may take in all; a slow one, after its first turn, misses the later rounds.
        warm: whether to run each once beforehand, untimed; what takes many seconds needs no warming.
    """
    for run in contenders.values() if warm else ():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            if sum(seconds[name]) < budget:
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int | None:
    """Peak resident bytes of `prepare(*arguments)()` above what was resident once it was prepared.

    Measured in a fresh process, because a resident size never shrinks reliably. None if that process died, as one
    does that asks for more memory than there is.
    """
    spawn = multiprocessing.get_context("spawn")
    receive, send = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_report_peak, args=(send, prepare, arguments))
    # With the C library's defaults, a large buffer is a mapping of its own and leaves the resident size when freed.
    kept = {name: os.environ.pop(name) for name in KEEP_MEMORY if name in os.environ}
    process.start()
    os.environ.update(kept)
    send.close()
    try:
        return int(receive.recv())
    except EOFError:
        return None
    finally:
        process.join()


def _report_peak(send: Any, prepare: Callable[..., Callable[[], object]], arguments: Any) -> None:
    run = prepare(*arguments)
    _forget_peak()
    before = _resident()
    run()
    send.send(_peak() - before)


def _forget_peak() -> None:
    """Start the process' high-water mark anew, so that building the inputs does not count (Linux only)."""
    mark = Path("/proc/self/clear_refs")
    if mark.exists():
        mark.write_text("5")


def _status(key: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def _resident() -> int:
    return _status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _peak() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
