"""Where a result comes from: commit, lock, versions, data, machine."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import version
from typing import Any

import torch

from dmlstudy import portable
from dmlstudy.data import Benchmark
from dmlstudy.project import PROJECT
from dmlstudy.study.fingerprint import code_fingerprint

PACKAGES = ("torch", "torchvision", "numpy", "faiss-cpu", "papermill")


def provenance(method: str, benchmark: Benchmark, device: str) -> dict[str, Any]:
    """What must be equal for the same bits to come out again."""
    lock = PROJECT / "requirements.lock"
    return {
        "git": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "dmlstudy", "params", "notebooks")),
        "code": code_fingerprint(method),
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest()[:12] if lock.exists() else None,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "data": benchmark.checksum,
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"cpu ({platform.machine()})",
        "processor": portable.cpu("model name") or platform.processor(),
        "instructions": portable.in_force(),
    }


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # not a checkout, or no git: the code fingerprint still tells
    return answer.stdout.strip()
