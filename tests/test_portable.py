"""One instruction set: settled before the libraries start, however a run starts; told when it comes too late."""

import json
import os
import subprocess
import sys

import pytest

from dmlstudy import portable
from dmlstudy.data import Track
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.params import settings

HAS_AVX2 = "avx2" in portable.cpu("flags").split()
needs_avx2 = pytest.mark.skipif(not HAS_AVX2, reason="this processor has no AVX2: nothing is set")
REPORT = "import json, dmlstudy.portable as p; print(json.dumps(p.in_force()))"


def fresh(code, **environment):
    """Standard output and error of a fresh process without the study's variables."""
    env = {k: v for k, v in os.environ.items() if k not in (*portable.VARIABLES, portable.SWITCH)}
    command = [sys.executable, "-W", "always::RuntimeWarning", "-c", code]
    done = subprocess.run(
        command, env=env | environment, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


@needs_avx2
def test_importing_the_study_settles_the_instruction_set():
    out, err = fresh(f"import dmlstudy, torch; {REPORT}")
    assert json.loads(out) == {"torch": "AVX2"} | portable.VARIABLES
    assert err == ""


@needs_avx2
def test_numpy_sees_no_more_than_avx2():
    code = "import dmlstudy; from numpy._core._multiarray_umath import __cpu_features__ as f; print(f['X86_V4'])"
    assert fresh(code) == ("False\n", "")


@needs_avx2
@pytest.mark.skipif(os.environ.get(portable.SWITCH) == "0", reason="switched off")
def test_these_tests_run_under_it():
    assert portable.in_force() == {"torch": "AVX2"} | portable.VARIABLES


def test_it_can_be_switched_off():
    out, err = fresh(f"import numpy, dmlstudy; {REPORT}", DMLSTUDY_PORTABLE="0")
    assert json.loads(out).keys() == {"torch"}
    assert err == ""


@needs_avx2
def test_too_late_is_told_in_one_sentence():
    err = fresh("import numpy, torch, dmlstudy")[1]
    assert "torch and numpy came before dmlstudy" in err
    assert "import dmlstudy first" in err
    assert "scipy" not in err


@needs_avx2
def test_a_process_started_by_the_study_is_not_warned():
    assert fresh("import torch, dmlstudy", **portable.VARIABLES) == ("", "")


@pytest.mark.parametrize("text", ["", "Features\t: fp asimd\n", "flags\t\t: sse2 avx512f\n"])
def test_processors_without_avx2_are_left_alone(text, tmp_path, monkeypatch, recwarn):
    file = tmp_path / "cpuinfo"
    if text:
        file.write_text(text)
    monkeypatch.setattr(portable, "CPUINFO", file)
    monkeypatch.setattr(os, "environ", {})
    portable.settle()
    assert os.environ == {}
    assert not recwarn.list


@needs_avx2
def test_plain_papermill_runs_under_it(tmp_path):
    """The kernel imports nothing of it before the study, as the first code cell does."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    source, target = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    cell = (
        "import warnings; warnings.simplefilter('error', RuntimeWarning); import dmlstudy; "
        + REPORT
    )
    nbformat.write(new_notebook(cells=[new_code_cell(cell)]), source)
    paths = f"{str(source)!r}, {str(target)!r}, kernel_name='python3'"
    fresh(f"import papermill; papermill.execute_notebook({paths})")
    shown = nbformat.read(target, as_version=4).cells[0].outputs[0].text
    assert json.loads(shown)["torch"] == "AVX2"


@needs_avx2
def test_first_code_cells_import_the_study_before_the_libraries():
    """The others are built from the same template."""
    from dmlstudy.study.notebooks import NOTEBOOKS

    for name in ("00_data", "06_multi_similarity", "summary"):
        cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        code = "".join("".join(c["source"]) + "\n" for c in cells if c["cell_type"] == "code")
        imports = [
            line.split()[1] for line in code.splitlines() if line.startswith(("import ", "from "))
        ]
        libraries = [
            i for i, m in enumerate(imports) if m.split(".")[0] in (*portable.READERS, "pandas")
        ]
        study = [i for i, m in enumerate(imports) if m.startswith("dmlstudy")]
        assert study[0] < min(libraries, default=len(imports)), name


def test_results_of_other_instruction_sets_are_not_reused(monkeypatch):
    experiment = Experiment(settings("untrained", {}))
    paths = []
    for branch in ("COMPATIBLE", "AVX2", "COMPATIBLE"):
        monkeypatch.setenv("MKL_CBWR", branch)
        paths.append(
            experiment._checkpoint("untrained", {}, Track(), experiment.protocol.recipe, 0)
        )
    assert paths[0] == paths[2] != paths[1]
