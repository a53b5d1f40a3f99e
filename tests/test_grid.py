"""The grid: what it runs again, and that no name of a path is executed."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmlstudy.study.grid import inputs

PROJECT = Path(__file__).parents[1]
ODD = "Anna's photos $(touch HACKED)"
SMALL = {
    "weights": "none", "trunk": "convnet", "trained": "all", "head_start": "default",
    "resize": 8, "crop": 8, "embedding_size": 8, "p": 2, "k": 2, "epochs": 1, "seeds": [0],
    "nmi_seeds": 1, "ks": [1], "control_seeds": 0, "gallery": "never",
}  # fmt: skip


@pytest.fixture
def project(tmp_path):
    """A copy of the project in a folder whose name a shell would take apart, with a tiny protocol."""
    copy = tmp_path / ODD
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("dmlstudy", "notebooks", "params"):
        shutil.copytree(PROJECT / part, copy / part, ignore=ignored)
    for name in ("Snakefile", "Makefile", "requirements.lock"):
        shutil.copy(PROJECT / name, copy)
    (copy / "params" / "protocol.yaml").write_text("")
    (copy / "params" / "datasets" / "folder.yaml").write_text(
        "\n".join(f"{key}: {value}" for key, value in SMALL.items())
    )
    return copy


def call(project, *arguments):
    environment = os.environ | {"PYTHONPATH": str(project), "DMLSTUDY_CACHE": str(project / "c")}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def test_names_of_paths_are_not_executed(project):
    rng = np.random.default_rng(0)
    for name in ("a", "b'", "$(touch HACKED)", "c;d"):
        (project / ODD / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(project / ODD / name / f"{i}.png")
    chosen = ["--datasets", f"folder:{ODD}", "--methods", "untrained", "--reports", f"r {ODD}"]
    ended = call(project, "dmlstudy", "study", *chosen, "--jobs", "1")
    assert not ended.returncode, ended.stdout + ended.stderr
    reports = project / f"r {ODD}"
    assert (reports / f"folder_{ODD}" / "untrained.json").is_file()
    assert (reports / "summary.html").is_file()
    assert not list(project.rglob("HACKED"))


def test_a_touched_loss_is_run_again_where_it_is_used(project):
    """One of two records of the method is older than the loss, and the other method's record is older, too."""
    touched = time.time() + 10
    os.utime(project / "dmlstudy" / "losses" / "margin.py", (touched, touched))
    older, newer = touched - 5, touched + 5
    records = {
        "digits/divide_and_conquer": older,
        "digits/soft_triple": older,
        "glyphs/divide_and_conquer": newer,
        "glyphs/soft_triple": newer,
    }
    for name, made in records.items():
        record = project / "reports" / "local" / f"{name}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("{}")
        os.utime(record, (made, made))
    arguments = ["snakemake", "--dry-run", "--nolock", "--rerun-triggers", "mtime", "--config"]
    arguments += ["datasets=digits,glyphs", "methods=divide_and_conquer,soft_triple"]
    planned = call(project, *arguments).stdout
    outputs = [name for name in records if f"output: reports/local/{name}.json" in planned]
    assert outputs == ["digits/divide_and_conquer"]


def test_inputs_are_the_code_the_notebook_and_the_parameters():
    named = inputs("hdml", "cub200_2010")
    assert {
        "dmlstudy/losses/hdml.py",
        "dmlstudy/methods/generators.py",
        "dmlstudy/training.py",
        "notebooks/14_hdml.ipynb",
        "params/datasets/cub200_2010.yaml",
        "params/methods/hdml.yaml",
        "params/protocol.yaml",
    } <= set(named)
    special = [path.name for path in (PROJECT / "params" / "methods").glob("*.*.yaml")]
    for method, dataset, _ in (name.split(".") for name in special):
        assert f"params/methods/{method}.{dataset}.yaml" in inputs(method, dataset)
