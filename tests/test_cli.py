"""Command line: what it lists, runs and refuses."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dmlstudy.__main__ import app, main, parse_overrides
from dmlstudy.data import DATASETS
from dmlstudy.errors import StudyError
from dmlstudy.methods import METHODS
from dmlstudy.study.params import short_name
from dmlstudy.study.results import load


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the entry point in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DMLSTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dmlstudy", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


def test_list_shows_every_method(call):
    code, out, err = call("list")
    assert (code, err) == (0, "")
    for number, name in enumerate(METHODS):
        assert re.search(rf" {number:02d} +│ {name} ", out)


COMMANDS = [c.name or c.callback.__name__ for c in app.registered_commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example_of_it(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    example = shlex.split(re.search(r"Example: (python -m dmlstudy .*?)\s*$", out, re.M)[1])
    assert example[3] == command
    given = {item.partition("=")[0] for item in example if item.startswith("--")}
    assert all(option in out for option in given)


def test_data_shows_every_set(call, tmp_path):
    code, out, _ = call("data")
    assert code == 0
    assert all(f" {name} " in out for name in DATASETS)
    assert out.count(" missing ") == len(DATASETS) - 2
    assert f"Data root: {tmp_path / 'data'}" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "multi_simlarity", "digits"], "did you mean 'multi_similarity'"),
        (["run", "multi_similarity", "digit"], "did you mean 'digits'"),
        (["run", "multi_similarity", "digits", "-p", "epoch=2"], "did you mean 'epochs'"),
        (["run", "multi_similarity", "digits", "-p", "lr=1e-4"], "write 1.0e-4"),
        (["run", "multi_similarity", "digits", "-p", "epochs"], "-p takes key=value"),
        (["run", "multi_similarity", "digits", "-p", "seeds=[0"], "not valid YAML"),
        (["validate", "multi_similarity", "digits", "--fold", "5"], "fold must lie in 0..1"),
        (["study", "--methods", "soft_tripple"], "did you mean 'soft_triple'"),
    ],
)
def test_mistakes_end_in_one_sentence(call, tmp_path, arguments, message):
    if arguments[0] in ("run", "study"):
        arguments = [*arguments, "--reports", tmp_path / "reports"]
    code, _, err = call(*arguments)
    assert code == 1
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "reports").exists()


def test_a_typo_shows_no_traceback():
    command = [sys.executable, "-m", "dmlstudy", "run", "untraind", "digits"]
    project = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "Error: Unknown method 'untraind': did you mean 'untrained'?\n"


def test_run_writes_a_notebook_and_a_record(call, tmp_path):
    few = [f"-p{item}" for item in ("seeds=[3]", "nmi_seeds=1", "gallery=never", "ks=[1, 2]")]
    code, out, _ = call("run", "untrained", "digits", *few, "--reports", tmp_path)
    assert code == 0
    assert "untrained on digits: R@1 " in out
    record = load(tmp_path / "digits" / "untrained.json")
    assert (record.method, record.dataset, record.seeds) == ("untrained", "digits", [3])
    assert record.metrics["R@1"] == record.baseline["R@1"]
    assert record.params["ks"] == [1, 2]
    assert (tmp_path / "digits" / "untrained.ipynb").is_file()


def test_a_failed_run_leaves_no_old_record(call, tmp_path):
    old = tmp_path / "omniglot" / "untrained.json"
    old.parent.mkdir()
    old.write_text("{}")
    code, _, err = call("run", "untrained", "omniglot", "--reports", tmp_path)
    assert code == 1
    assert "omniglot" in err
    assert not old.exists()


def test_validate_reads_a_fold(call):
    code, out, _ = call("validate", "untrained", "digits", "-pseeds=[0, 1]", "-pnmi_seeds=1")
    assert code == 0
    assert out.count("R@1 ") == 2


@pytest.mark.parametrize("folds", ["", "0,0", "0,4", "-1", "0;1", "some"])
def test_folds_are_refused_before_anything_is_trained(call, folds):
    code, _, err = call("controls", "fastap", "glyphs", "--folds", folds)
    assert code == 1
    assert f"from 0 to 3 such as 0,1, not '{folds}'" in err


def test_overrides_are_yaml():
    given = ["epochs=2", "seeds=[0, 1]", "epsilon=null", "dataset=folder:a=b", " flip = true"]
    assert parse_overrides(given) == {
        "epochs": 2,
        "seeds": [0, 1],
        "epsilon": None,
        "dataset": "folder:a=b",
        "flip": True,
    }
    with pytest.raises(StudyError, match="not 'epochs'"):
        parse_overrides(["epochs"])


def test_folder_of_a_data_set():
    assert short_name("digits") == "digits"
    assert short_name("folder:some/birds/") == "folder_birds"


def test_the_data_set_is_an_argument_not_an_override(call):
    code, _, err = call("run", "untrained", "digits", "-p", "dataset=glyphs")
    assert code == 1
    assert "second argument: run untrained glyphs" in err
