"""Source notebooks are clean, equal where they should be, and run to the same bytes twice."""

import itertools
import os
import re
import symtable

import nbformat
import pytest
from nbclient import NotebookClient

from dmlstudy.errors import StudyError
from dmlstudy.methods import METHODS
from dmlstudy.study.notebook_builder import build, pairs
from dmlstudy.study.notebooks import NOTEBOOKS, clean, execute, link_reports, source_notebook
from dmlstudy.study.params import settings

REPORTS = NOTEBOOKS.parent / "reports"
SOURCES = sorted(NOTEBOOKS.glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_sources_are_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    # A random id would be another one after every save in another editor.
    assert not [name for name in ids if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]{27})?", name)]
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags == ["parameters"]


def test_committed_reports_are_free_of_what_differs_between_machines():
    reports = [p for p in sorted(REPORTS.glob("*/*.ipynb")) if p.parent.name != "local"]
    assert reports
    for path in reports:
        notebook = read(path)
        assert set(notebook.metadata) <= {"kernelspec", "language_info"}, path
        injected = [c.source for c in notebook.cells if c.id == "injected-parameters"]
        assert len(injected) == 1 and "record = " not in injected[0], path


@pytest.mark.parametrize("source, notebook", pairs(), ids=lambda path: path.stem)
def test_notebooks_are_what_their_sources_say(source, notebook):
    committed = notebook.read_text(encoding="utf-8")
    assert committed == build(source), "the sources have changed: run `make notebooks`"


def test_every_source_and_notebook_has_its_other():
    sources, notebooks = zip(*pairs(), strict=True)
    assert {NOTEBOOKS / "sources" / "template.md", *sources} == {*NOTEBOOKS.glob("sources/*.md")}
    assert {*notebooks} == {*SOURCES}


def test_text_behind_the_last_cell_is_refused(tmp_path):
    source = tmp_path / "page.md"
    source.write_text("# Title\n\n```python a\n1\n```\n\n```python b\n2\n")
    with pytest.raises(StudyError, match="page.md has text behind its last code cell"):
        build(source)


@pytest.mark.parametrize("method", METHODS)
def test_papermill_lists_every_parameter_with_help(method):
    import papermill

    listed = papermill.inspect_notebook(str(source_notebook(method)))
    assert list(listed) == list(settings(method, {}).flat)
    assert all(parameter["help"] for parameter in listed.values())


def test_clean_strips_what_differs_and_keeps_the_rest(tmp_path):
    def stream(name, text):
        return nbformat.v4.new_output("stream", name=name, text=text)

    code = nbformat.v4.new_code_cell("print(1)", id="a", metadata={"papermill": {"duration": 1}})
    code.outputs = [stream("stdout", "1\n"), stream("stderr", "decoding"), stream("stdout", "2\n")]
    injected = nbformat.v4.new_code_cell(
        'epochs = 2\nrecord = "/somewhere/a.json"\n', metadata={"tags": ["injected-parameters"]}
    )
    text = nbformat.v4.new_markdown_cell("text", id="b")
    notebook = nbformat.v4.new_notebook(
        cells=[code, injected, text], metadata={"papermill": {"duration": 1}}
    )
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook, path)
    clean(path)
    once = path.read_bytes()
    clean(path)
    assert path.read_bytes() == once
    cleaned = read(path)
    nbformat.validate(cleaned)
    assert not cleaned.metadata
    assert [cell.id for cell in cleaned.cells] == ["a", "injected-parameters", "b"]
    assert cleaned.cells[0].outputs == [stream("stdout", "1\n2\n")]
    assert cleaned.cells[0].metadata == {}
    assert cleaned.cells[1].source.strip() == "epochs = 2"


def test_reports_link_to_the_summary_and_to_each_other(tmp_path):
    """Only to what there is: a failed run has no record."""
    for dataset in ("digits", "folder_my [$1] photos", "glyphs", "failed"):
        report = tmp_path / dataset / "snr.ipynb"
        report.parent.mkdir()
        report.write_bytes(source_notebook("snr").read_bytes())
        if dataset != "failed":
            report.with_suffix(".json").write_text("{}")
    for _ in range(2):
        link_reports(tmp_path)
        lines = read(tmp_path / "digits" / "snr.ipynb").cells[0].source.splitlines()
        assert lines[-1] == (
            "[All results · 全部结果](../summary.ipynb) · "
            r"[folder\_my \[\$1\] photos](../folder_my%20%5B%241%5D%20photos/snr.ipynb) · "
            "[glyphs](../glyphs/snr.ipynb)"
        )
    assert read(tmp_path / "failed" / "snr.ipynb") == read(source_notebook("snr"))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """Runs code in one kernel: "", or the name and text of the error that it ended in."""
    cache = tmp_path_factory.mktemp("cache")
    notebook = nbformat.v4.new_notebook()
    client = NotebookClient(notebook, allow_errors=True, resources={"metadata": {"path": cache}})
    with client.setup_kernel(env=os.environ | {"DMLSTUDY_CACHE": str(cache)}):
        place = itertools.count()

        def run(code):
            cell = nbformat.v4.new_code_cell(code)
            notebook.cells.append(cell)
            client.execute_cell(cell, next(place))
            errors = [o for o in cell.outputs if o.output_type == "error"]
            return errors[0].evalue if errors else ""

        yield run


def cell(method, name):
    return next(c.source for c in read(source_notebook(method)).cells if c.id == name)


@pytest.mark.parametrize(
    "injected, message",
    [
        ("seeds = [0, 1]", ""),
        ("epochss = (1,)", "'epochss': did you mean 'epochs'"),
        ("seedz = range(3)", "'seedz': did you mean 'seeds'"),
        ("import numpy\nepoch = numpy.int64(3)", "'epoch': did you mean 'epochs'"),
        ("epochs = 'many'", "epochs must be"),
        ("", ""),
    ],
)
def test_misspelt_parameters_are_refused_whatever_their_type(kernel, injected, message):
    kernel("from pathlib import Path\nhere, count, label = Path(), {1}, 'the reader\\'s own'")
    assert not kernel(cell("untrained", "parameters"))
    kernel(f"# Parameters\n{injected}\n")
    ended = kernel(cell("untrained", "verdict"))
    assert message in ended and bool(message) == bool(ended)


def test_a_notebook_may_be_run_twice_in_one_kernel(kernel):
    for _ in range(2):
        for name in ("parameters", "verdict", "conditions", "source"):
            assert not kernel(cell("untrained", name))
        assert not kernel("labels, run, data, epochss = [0], 'run', {}, 3")


@pytest.mark.parametrize("method", METHODS)
def test_no_cell_hides_a_parameter(method):
    """It would be taken for the parameter's value when the cells are run again."""
    for code in read(source_notebook(method)).cells:
        if code.cell_type == "code" and code.id != "parameters":
            symbols = symtable.symtable(code.source, code.id, "exec").get_symbols()
            bound = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
            assert not bound & set(settings(method, {}).flat)


def test_unknown_parameter_fails_with_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path / "cache"))
    target = tmp_path / "06.ipynb"
    with pytest.raises(StudyError, match="'epsilom': did you mean 'epsilon'.*executed part"):
        execute(source_notebook("multi_similarity"), target, {"epsilom": 0.2})
    assert "papermill" not in read(target).metadata  # what was reached is kept, and cleaned


def test_two_executions_are_byte_identical(tmp_path, monkeypatch):
    smoke = {"nmi_seeds": 1, "control_seeds": 0, "ks": [1], "gallery": "never"}
    smoke |= {"seeds": [0, 1], "epochs": 1}
    written = []
    for name in ("a", "b"):
        # A cache of its own for each: with the first one's checkpoint the second would say that it resumed.
        monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path / "cache" / name))
        target = tmp_path / name / "06.ipynb"
        record = {"record": str(tmp_path / name / "06.json")}
        execute(source_notebook("multi_similarity"), target, smoke | record)
        written.append(target.read_bytes())
        assert (tmp_path / name / "06.json").is_file()
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]
