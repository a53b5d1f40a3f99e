"""The same bits on every x86 processor with AVX2: each numerical library is held to one instruction set.

By default a library picks its code by what the processor offers, and each variant adds up in another order. It reads
the choice from the environment when it starts, too early for a parameter of a notebook: `DMLSTUDY_PORTABLE=0` in the
environment leaves the libraries alone. On other processors (Arm, x86 without AVX2) they are always left alone.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
SWITCH = "DMLSTUDY_PORTABLE"
VARIABLES = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own loops
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    # Matrix products, decompositions, exp and log: the one branch that is the same on Intel's processors and AMD's.
    # Without it, 10 of 17 records of digits differ between them; it makes products 2.4 times as slow, runs 10 %.
    "MKL_CBWR": "COMPATIBLE",
    "FAISS_SIMD_LEVEL": "AVX2",  # k-means
    "OPENBLAS_CORETYPE": "Haswell",  # matrix products of NumPy, SciPy and faiss
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # all above AVX2; absent ones may be named
}
READERS = ("torch", "numpy", "scipy", "faiss")


def settle() -> None:
    """Set the variables for this process and those it starts; called before the libraries are imported.

    Warns in one sentence if one of them came first under another setting.
    """
    if os.environ.get(SWITCH) == "0" or "avx2" not in cpu("flags").split():
        return
    changed = [name for name, value in VARIABLES.items() if os.environ.get(name) != value]
    early = [name for name in READERS if name in sys.modules]
    os.environ.update(VARIABLES)
    if changed and early:
        warnings.warn(
            f"{' and '.join(early)} came before dmlstudy and may already use this processor's own instructions, so "
            f"that results can differ from those of other machines: import dmlstudy first (or set {SWITCH}=0).",
            RuntimeWarning,
            stacklevel=3,
        )


def cpu(field: str) -> str:
    """A field of the first processor as Linux describes it, such as "flags" or "model name"; "" if unknown."""
    if not CPUINFO.is_file():
        return ""
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.split("\t")[0] == field), "")


def in_force() -> dict[str, str]:
    """The instruction set that torch chose, and the variables as they stand; they decide a run's bits."""
    from torch.backends.cpu import get_cpu_capability

    set_here = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return {"torch": get_cpu_capability()} | set_here
