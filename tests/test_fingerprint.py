"""The code fingerprint: what decides a trained network counts, and nothing else."""

import pytest

from dmlstudy.methods import METHODS
from dmlstudy.study import fingerprint
from dmlstudy.study.fingerprint import LIBRARY, code_fingerprint, training_code


def names(method):
    return {file.relative_to(LIBRARY).as_posix() for file in training_code(method)}


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_own_file_the_loop_and_the_base_count(method):
    assert {f"methods/{method}.py", "methods/base.py", "training.py", "networks.py"} <= names(
        method
    )
    others = {f"methods/{name}.py" for name in METHODS} - {f"methods/{method}.py"}
    assert not names(method) & others
    assert not any(name.startswith(("study/", "evaluation/")) for name in names(method))


def test_imports_are_followed():
    assert {"losses/margin.py", "miners.py", "geometry.py"} <= names("divide_and_conquer")
    assert "losses/margin.py" not in names("soft_triple")


def test_only_code_changes_the_fingerprint(tmp_path, monkeypatch):
    for file in LIBRARY.rglob("*.py"):
        copy = tmp_path / file.relative_to(LIBRARY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    monkeypatch.setattr(fingerprint, "LIBRARY", tmp_path)
    registries = {tmp_path / part / "__init__.py" for part in ("methods", "losses")}
    monkeypatch.setattr(fingerprint, "REGISTRIES", registries)

    def now():
        fingerprint._imported.cache_clear()
        fingerprint._normalised.cache_clear()
        return [code_fingerprint(name) for name in ("soft_triple", "divide_and_conquer")]

    before = now()
    loss = tmp_path / "losses" / "margin.py"
    loss.write_text("# a comment\n" + loss.read_text().replace("Margin loss", "The margin loss"))
    assert now() == before
    loss.write_text(loss.read_text() + "\nNEW = 1\n")
    assert now()[0] == before[0]
    assert now()[1] != before[1]
