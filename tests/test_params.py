"""Parameters: every mistake is refused by name, and all committed files are sound."""

import ast
import shutil

import pytest

from dmlstudy.errors import StudyError
from dmlstudy.methods import METHODS
from dmlstudy.study import params
from dmlstudy.study.params import load_params, parameters_cell, settings

DATASETS = sorted(path.stem for path in (params.PARAMS / "datasets").glob("*.yaml"))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"epsilom": 0.2}, "Unknown parameter 'epsilom': did you mean 'epsilon'"),
        ({"epoch": 2}, "did you mean 'epochs'"),
        ({"epochs": 2.0}, "Parameter epochs must be int, not 2.0"),
        ({"epochs": True}, "Parameter epochs must be int, not True"),
        ({"flip": 1}, "Parameter flip must be bool"),
        ({"fold": "a"}, "Parameter fold must be int or None, not 'a'"),
        ({"seeds": [0, "1"]}, "Parameter seeds must be"),
        ({"seeds": 0}, "Parameter seeds must be"),
        ({"lr": "1e-4"}, r"lr must be float, not '1e-4' \(YAML reads 1e-4 as text: write 1.0e-4"),
        ({"epsilon": "1e-1"}, "YAML reads 1e-4 as text"),
        ({"lr": None}, "Parameter lr must be float, not None"),
        ({"lr": -1.0}, "lr must be at least 0, not -1.0"),
        ({"lr": float("nan")}, "lr must be at least 0, not nan"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"p": 1}, "p must be at least 2"),
        ({"k": 1}, "k must be at least 2"),
        ({"control_seeds": -1}, "control_seeds must be at least 0"),
        ({"crop_area": 0.0}, r"crop_area must lie in \(0, 1\]"),
        ({"crop_area": 1.5}, r"crop_area must lie in \(0, 1\]"),
        ({"label_noise": 1.0}, r"label_noise must lie in \[0, 1\)"),
        ({"label_noise": -0.1}, r"label_noise must lie in \[0, 1\)"),
        ({"labelled_share": 0.0}, r"labelled_share must lie in \(0, 1\]"),
        ({"noise_kind": "symetric"}, "did you mean 'symmetric'"),
        ({"crop": 9}, "crop = 9 px is larger than resize = 8 px"),
        ({"seeds": []}, "seeds must be a list of different whole numbers"),
        ({"seeds": [1, 1]}, "seeds must be a list of different whole numbers"),
        ({"seeds": [-1]}, "seeds must be a list of different whole numbers"),
        ({"ks": [0, 1]}, "ks must be a list of different whole numbers"),
        ({"head_start": "PCA"}, "Unknown head_start 'PCA'"),
        ({"gallery": "alway"}, "did you mean 'always'"),
        ({"device": "cud"}, "did you mean 'cuda'"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(StudyError, match=message):
        settings("multi_similarity", given)


def test_papermill_hands_lists_over_as_text() -> None:
    assert settings("untrained", {"seeds": "[0,1]"}).protocol.seeds == [0, 1]


def test_whole_numbers_pass_as_floats_and_none_where_allowed():
    chosen = settings("multi_similarity", {"lr": 1, "epsilon": None, "control_seeds": 0})
    assert chosen.protocol.lr == 1.0
    assert type(chosen.protocol.lr) is float
    assert chosen.hyper == {"alpha": 2.0, "beta": 40.0, "lam": 0.5, "epsilon": None}
    assert chosen.flat["epsilon"] is None


def test_hyperparameters_of_other_methods_are_unknown():
    with pytest.raises(StudyError, match="Unknown parameter 'centres'"):
        settings("multi_similarity", {"centres": 2})
    with pytest.raises(StudyError, match="did you mean 'soft_triple'"):
        settings("softtriple", {})


def test_lists_are_not_shared_between_runs():
    settings("untrained", {}).protocol.seeds.append(7)
    assert settings("untrained", {}).protocol.seeds == [0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_committed_files_are_sound(method, dataset):
    name = "folder:somewhere" if dataset == "folder" else dataset
    chosen = settings(method, load_params(method, name, {"epochs": 7}))
    assert chosen.protocol.dataset == name
    assert chosen.protocol.epochs == 7


@pytest.mark.parametrize("method", METHODS)
def test_committed_hyperparameters_are_the_constructors_defaults(method):
    """The files repeat the defaults with their sources; they must not drift apart."""
    chosen, plain = settings(method, load_params(method, "digits")), settings(method, {})
    assert chosen.hyper == plain.hyper


def test_unknown_data_set_suggests_the_nearest():
    with pytest.raises(StudyError, match="Unknown data set 'digit': did you mean 'digits'"):
        load_params("untrained", "digit")


@pytest.fixture
def own_params(tmp_path, monkeypatch):
    shutil.copytree(params.PARAMS, tmp_path / "params")
    monkeypatch.setattr(params, "PARAMS", tmp_path / "params")
    return tmp_path / "params"


def test_precedence_is_protocol_data_set_method_override(own_params):
    (own_params / "methods" / "multi_similarity.yaml").write_text("alpha: 3.0\n")
    (own_params / "methods" / "multi_similarity.glyphs.yaml").write_text("alpha: 4.0\n")
    assert load_params("multi_similarity", "digits")["alpha"] == 3.0
    assert load_params("multi_similarity", "glyphs")["alpha"] == 4.0
    assert load_params("multi_similarity", "glyphs", {"alpha": 5.0})["alpha"] == 5.0


@pytest.mark.parametrize("file", ["multi_similarity.yaml", "multi_similarity.digits.yaml"])
def test_a_method_may_not_shadow_the_protocol(own_params, file):
    (own_params / "methods" / file).write_text("lr: 0.1\n")
    with pytest.raises(StudyError, match="sets the protocol key 'lr': a method may only set"):
        load_params("multi_similarity", "digits")


def test_broken_and_missing_files_are_named(own_params):
    (own_params / "protocol.yaml").write_text("a: [")
    with pytest.raises(StudyError, match=r"protocol.yaml is not valid YAML"):
        load_params("untrained", "digits")
    (own_params / "methods" / "untrained.yaml").unlink()
    with pytest.raises(StudyError, match=r"untrained.yaml is missing"):
        load_params("untrained", "digits")


@pytest.mark.parametrize("method", METHODS)
def test_parameters_cell_lists_every_parameter_with_its_default(method):
    cell = parameters_cell(method)
    listed = {}
    for statement in ast.parse(cell).body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
        listed[target.id] = ast.literal_eval(statement.value)
    assert list(listed.items()) == list(settings(method, {}).flat.items())
    assert all(line.partition("  # ")[2] for line in cell.splitlines())
