"""Did a change move a bit? Every method and control trained for three epochs on tiny images, as one hash each.

    python tests/guard.py                  # this working tree against the last commit
    python tests/guard.py --against abc12  # against another commit
    python tests/guard.py --print          # only the hashes, as JSON

Hashes differ between processors, so none is stored: the other commit runs its own guard in a checkout of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PROTOCOL = {"epochs": 3, "p": 4, "k": 4, "nmi_seeds": 1, "flip": True, "shift": 0.1, "ks": [1]}
# What no control reaches.
EXTRA = [("density_aware", {"quadruplet": True})]


def draw_images(folder: Path) -> None:
    """Sixteen classes of twelve noisy 8x8 images."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for c in range(16):
        (folder / f"class {c:02d}").mkdir(parents=True)
        pattern = rng.integers(0, 255, (8, 8, 3))
        for i in range(12):
            noisy = np.clip(pattern + rng.normal(0, 50, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"class {c:02d}" / f"{i}.png")


def hashes(images: Path) -> dict[str, str]:
    """Of every method and control: parameters (whatever their names and order), loss terms, test embeddings."""
    from dmlstudy.methods import METHODS
    from dmlstudy.study.experiment import Experiment
    from dmlstudy.study.params import settings

    cases = [(name, h) for name, m in METHODS.items() for h in ({}, *m.controls.values())]
    found = {}
    for name, hyper in [*cases, *EXTRA]:
        chosen = settings(name, {"dataset": f"folder:{images}", **PROTOCOL, **hyper})
        run = Experiment(chosen, lambda line: None).run(0)
        tensors = sorted(hashlib.sha256(_bytes(t)).hexdigest() for t in run.method.parameters())
        terms = [list(row.values()) for row in run.progress.history]
        content = json.dumps([tensors, terms]).encode() + _bytes(run.query)
        found[f"{name} {json.dumps(hyper)}"] = hashlib.sha256(content).hexdigest()[:16]
    return found


def _bytes(tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def run_guard(tree: Path, images: Path) -> dict[str, str]:
    """The hashes of a source tree, computed by its own guard in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        answer = subprocess.run(
            [sys.executable, str(tree / "tests" / "guard.py"), "--print", "--images", str(images)],
            env=os.environ | {"PYTHONPATH": str(tree), "DMLSTUDY_CACHE": cache},
            cwd=tree,
            stdout=subprocess.PIPE,
            check=True,
        )
    return json.loads(answer.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", default="HEAD")
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    if options.print:
        print(json.dumps(hashes(options.images), indent=1))
        return
    import dmlstudy  # noqa: F401  # both trees inherit today's instruction set: what moves is the code

    with tempfile.TemporaryDirectory() as folder:
        images, tree = Path(folder) / "images", Path(folder) / "tree"
        draw_images(images)
        worktree = ["git", "-C", str(PROJECT), "worktree"]
        subprocess.run([*worktree, "add", "-q", "--detach", tree, options.against], check=True)
        try:
            now, before = run_guard(PROJECT, images), run_guard(tree, images)
        finally:
            subprocess.run([*worktree, "remove", "--force", tree], check=True)
    moved = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
    fresh, gone = sorted(now.keys() - before.keys()), sorted(before.keys() - now.keys())
    print(f"{len(before.keys() & now.keys())} cases in both, {len(moved)} moved")
    print("\n".join([*(f"moved: {n}" for n in moved), *(f"new: {n}" for n in fresh)]))
    print("\n".join(f"gone: {n}" for n in gone), end="")
    sys.exit(bool(moved))


if __name__ == "__main__":
    main()
