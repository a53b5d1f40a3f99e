"""The code fingerprint: what decides a trained network counts, and nothing else."""

import pytest

from dmlstudy.methods import METHODS, Method
from dmlstudy.study import fingerprint
from dmlstudy.study.fingerprint import LIBRARY, code_fingerprint, training_code

# Two rows in one file, as an author may write them.
ROWS = """
from dmlstudy import losses
from dmlstudy.losses import soft_triple
from dmlstudy.methods.base import Method

SCALE = 2.0


class Row(Method):
    def loss(self, batch):
        return SCALE * self.formula(batch)


class One(Row):
    formula = losses.margin


class Other(Row):
    formula = soft_triple
"""


def names(method):
    return {file.relative_to(fingerprint.LIBRARY).as_posix() for file in training_code(method)}


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A copy of the library with the two rows in a file of their own."""
    for file in LIBRARY.rglob("*.py"):
        copy = tmp_path / file.relative_to(LIBRARY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    (tmp_path / "methods" / "rows.py").write_text(ROWS)
    monkeypatch.setattr(fingerprint, "LIBRARY", tmp_path)
    for name in ("One", "Other"):
        row = type(name, (Method,), {"__module__": "dmlstudy.methods.rows"})
        monkeypatch.setitem(METHODS, name.lower(), row)
    return tmp_path


def hashes(*methods):
    fingerprint._body.cache_clear()
    return [code_fingerprint(name) for name in methods]


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_own_file_the_loop_and_the_base_count(method):
    own = {METHODS[method].__module__.split(".")[-1]}
    if METHODS[method].teacher:
        own.add(METHODS[METHODS[method].teacher[0]].__module__.split(".")[-1])
    declaring = {kind.__module__.split(".")[-1] for kind in METHODS.values()}
    assert {"methods/base.py", "training.py", "networks.py"} <= names(method)
    assert {f"methods/{name}.py" for name in own} <= names(method)
    assert not names(method) & {f"methods/{name}.py" for name in declaring - own}
    assert not any(name.startswith(("study/", "evaluation/")) for name in names(method))


def test_imports_are_followed():
    assert {"losses/margin.py", "miners.py", "geometry.py"} <= names("divide_and_conquer")
    assert "losses/margin.py" not in names("soft_triple")
    # Reached through `losses/__init__.py` and `samplers/__init__.py`.
    through_lists = {
        "losses/signal_to_noise.py",
        "losses/rows.py",
        "losses/triplet.py",
        "samplers/pk.py",
    }
    assert through_lists <= names("snr")


def test_only_code_changes_the_fingerprint(library):
    before = hashes("soft_triple", "divide_and_conquer")
    loss = library / "losses" / "margin.py"
    loss.write_text("# a comment\n" + loss.read_text().replace("Margin loss", "The margin loss"))
    assert hashes("soft_triple", "divide_and_conquer") == before
    loss.write_text(loss.read_text() + "\nNEW = 1\n")
    after = hashes("soft_triple", "divide_and_conquer")
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_row_reaches_its_own_loss_alone(library):
    fingerprint._body.cache_clear()
    assert "losses/margin.py" in names("one") - names("other")
    assert "losses/soft_triple.py" in names("other") - names("one")


@pytest.mark.parametrize(
    "old, new, moved",
    [
        ("class Other", "class Third(Row):\n    k = 1\n\n\nclass Other", ""),
        ("import soft_triple", "import ranked_list, soft_triple", ""),
        ("formula = soft_triple", "formula, m = soft_triple, 1", "other"),
        ("SCALE = 2.0", "SCALE = 3.0", "one other"),
        ("SCALE = 2.0", "SCALE = 2.0\nUNUSED = 1", ""),
        ("SCALE = 2.0", "SCALE = 2.0\nlosses.margin.scale = SCALE", "one other"),
    ],
)
def test_of_a_file_of_rows_only_what_a_row_uses_counts(library, old, new, moved):
    before = hashes("one", "other")
    file = library / "methods" / "rows.py"
    file.write_text(file.read_text().replace(old, new))
    after = hashes("one", "other")
    changed = [n for n, a, b in zip(("one", "other"), before, after, strict=True) if a != b]
    assert changed == moved.split()


def test_a_teachers_code_counts_for_its_student(library):
    before = hashes("teachers")
    file = library / "methods" / "pairs.py"
    file.write_text(
        file.read_text().replace(
            "class MultiSimilarity(PairMethod):",
            "class MultiSimilarity(PairMethod):\n    new = 1",
        )
    )
    assert hashes("teachers") != before
