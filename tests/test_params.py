"""Parameters: every mistake is refused by name, and all committed files are sound."""

import ast
import shutil
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest

from dmlstudy.errors import StudyError
from dmlstudy.methods import METHODS, Hyperparameter, hyperparameters
from dmlstudy.networks import Pool
from dmlstudy.ranges import Count, Real, Share
from dmlstudy.study import parameter_files, params
from dmlstudy.study.parameter_files import PARAMS, load_params
from dmlstudy.study.params import Protocol, parameters_cell, settings
from dmlstudy.training import OPTIMISERS, SCHEDULES

DATASETS = sorted(path.stem for path in (PARAMS / "datasets").glob("*.yaml"))
NAN, INF = float("nan"), float("inf")
NUMBERS = [
    name
    for name, field in Protocol.model_fields.items()
    if type(field.default) in (int, float) or name == "fold"
]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"epsilom": 0.2}, "Unknown parameter 'epsilom': did you mean 'epsilon'"),
        ({"epoch": 2}, "did you mean 'epochs'"),
        ({"epochs": 2.0}, r"Parameter epochs must be int in \[1, 100000\], not 2.0"),
        ({"epochs": True}, r"Parameter epochs must be int in \[1, 100000\], not True"),
        ({"flip": 1}, "Parameter flip must be bool, not 1"),
        ({"fold": "a"}, r"Parameter fold must be int in \[0, 999\] or None, not 'a'"),
        ({"fold": -1}, r"Parameter fold must be int in \[0, 999\] or None, not -1"),
        ({"seeds": [0, "1"]}, "seeds must be non-empty list of different int in .*, not"),
        ({"seeds": 0}, "Parameter seeds must be non-empty list"),
        ({"seeds": []}, "Parameter seeds must be non-empty list"),
        ({"seeds": [1, 1]}, "Parameter seeds must be non-empty list of different int"),
        ({"seeds": [-1]}, "Parameter seeds must be"),
        ({"seeds": [2**70]}, r"int in \[0, 4294967295\], not \[1180591620717411303424\]"),
        ({"seeds": "[0"}, "Parameter seeds must be .*, not '\\[0'"),
        ({"ks": [0, 1]}, r"ks must be non-empty list of different int in \[1, 1000000\]"),
        ({"lr": "1e-4"}, r"lr must be .*, not '1e-4' \(YAML reads 1e-4 as text: write 1.0e-4"),
        ({"epsilon": "1e-1"}, "YAML reads 1e-4 as text"),
        ({"lr": None}, r"Parameter lr must be float in \[0, 10\], not None"),
        ({"lr": True}, "Parameter lr must be float"),
        ({"lr": -1.0}, r"lr must be float in \[0, 10\], not -1.0"),
        ({"lr": 10**400}, r"lr must be float in \[0, 10\], not 1000"),
        ({"epochs": 0}, "epochs must be"),
        ({"p": 1}, r"p must be int in \[2, 10000\]"),
        ({"k": 1}, r"k must be int in \[2, 10000\]"),
        ({"control_seeds": -1}, r"control_seeds must be int in \[0, 1000\]"),
        ({"cached_views": 1e9}, "cached_views must be int"),
        ({"cached_views": 10**9}, "cached_views must be int"),
        ({"threads": 10**9}, "threads must be int"),
        ({"resize": 10**9}, "resize must be int"),
        ({"crop_area": 0.0}, r"crop_area must be float in \(0, 1\]"),
        ({"crop_area": 1.5}, r"crop_area must be float in \(0, 1\]"),
        ({"label_noise": 1.0}, r"label_noise must be float in \[0, 1\), not 1.0"),
        ({"label_noise": -0.1}, "label_noise must be"),
        ({"labelled_share": 0.0}, r"labelled_share must be float in \(0, 1\]"),
        ({"noise_kind": "symetric"}, "did you mean 'symmetric'"),
        ({"crop": 9}, "crop = 9 px is larger than resize = 8 px"),
        ({"head_start": "PCA"}, "Unknown head_start 'PCA': choose one of default, pca"),
        ({"gallery": "alway"}, "did you mean 'always'"),
        ({"device": "cud"}, "did you mean 'cuda'"),
        ({"device": 0}, "Parameter device must be 'cpu' or 'cuda', not 0"),
        ({"optimiser": "adam"}, "Unknown optimiser 'adam': did you mean 'adamw'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"trunk": "resnet5"}, "did you mean 'resnet50'"),
        ({"pool": "mean"}, "Unknown pool 'mean'"),
        ({"lr": object()}, "lr is of type object: give a number, a text or a list"),
        ({"lr": np.longdouble(1)}, "lr is of type longdouble: give"),
        ({"seeds": {1}}, "seeds is of type set: give"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(StudyError, match=message):
        settings("multi_similarity", given)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, -1, 10**12])
def test_every_number_of_the_protocol_has_two_ends(name, value):
    with pytest.raises(StudyError, match=f"Parameter {name} must be"):
        settings("untrained", {name: value})


@pytest.mark.parametrize("method", METHODS)
def test_no_hyperparameter_takes_what_is_no_finite_number(method):
    for name, own in hyperparameters(METHODS[method]).items():
        for value in (NAN, INF, -INF):
            with pytest.raises(StudyError, match=f"Parameter {name} must be"):
                settings(method, {name: value})
        assert settings(method, {name: own.default}).hyper[name] == own.default


@pytest.mark.parametrize("method", METHODS)
def test_controls_are_parameters_that_pass(method):
    for changed in METHODS[method].controls.values():
        assert settings(method, changed).flat.items() >= changed.items()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"share": 1.5}, r"Parameter share must be float in \[0, 1\] or None, not 1.5"),
        ({"steps": 0}, "Parameter steps must be int of at least 1, not 0"),
        ({"form": "tripelt"}, "Unknown form 'tripelt': did you mean 'triplet'"),
        ({"beta": "x"}, "Parameter beta must be finite float, not 'x'"),
        ({"form": 3}, "Parameter form must be 'pairs' or 'triplet', not 3"),
    ],
)
def test_annotations_of_hyperparameters_are_kept(monkeypatch, given, message):
    own = {
        "share": Hyperparameter(Share | None, None, "a share"),
        "steps": Hyperparameter(Count, 1, "how many"),
        "beta": Hyperparameter(Real, 1.2, "a boundary"),
        "form": Hyperparameter(Literal["pairs", "triplet"], "pairs", "which"),
    }
    monkeypatch.setattr(params, "hyperparameters", lambda method: own)
    with pytest.raises(StudyError, match=message):
        settings("untrained", given)
    lines = parameters_cell("untrained").splitlines()[-4:]
    assert lines == [
        "share = None  # a share",
        "steps: int = 1  # how many",
        "beta: float = 1.2  # a boundary",
        'form: str = "pairs"  # which',
    ]


def test_choices_are_those_that_the_library_knows():
    known = {"optimiser": OPTIMISERS, "schedule": SCHEDULES, "pool": Pool.KINDS}
    for name, names in known.items():
        assert get_args(Protocol.model_fields[name].annotation) == tuple(names)


@pytest.mark.parametrize(
    "given, plain",
    [
        ({"seeds": (1, 2)}, [1, 2]),
        ({"seeds": range(2)}, [0, 1]),
        ({"seeds": np.arange(2)}, [0, 1]),
        ({"seeds": "[0,1]"}, [0, 1]),  # papermill hands lists over as text
        ({"epochs": np.int64(3)}, 3),
        ({"lr": np.float32(0.5)}, 0.5),
        ({"lr": 1}, 1.0),
        ({"flip": np.bool_(True)}, True),
        ({"weights": Path("a/b")}, "a/b"),
        ({"epsilon": None}, None),
    ],
)
def test_what_has_a_plain_value_is_taken_as_that(given, plain):
    (name,) = given
    taken = settings("multi_similarity", given).flat[name]
    assert taken == plain and type(taken) is type(plain)


def test_hyperparameters_of_other_methods_are_unknown():
    with pytest.raises(StudyError, match="Unknown parameter 'centres'"):
        settings("multi_similarity", {"centres": 2})
    with pytest.raises(StudyError, match="did you mean 'soft_triple'"):
        settings("softtriple", {})


def test_lists_are_not_shared_between_runs():
    settings("untrained", {}).protocol.seeds.append(7)
    assert settings("untrained", {}).protocol.seeds == [0]


@pytest.mark.parametrize("method", METHODS)
def test_committed_files_are_sound_and_repeat_the_constructors_defaults(method):
    """The files give the defaults with their sources; they must not drift apart."""
    defaults = settings(method, {}).hyper
    for dataset in DATASETS:
        name = "folder:somewhere" if dataset == "folder" else dataset
        chosen = settings(method, load_params(method, name, {"epochs": 7}))
        assert (chosen.protocol.full_name, chosen.protocol.epochs) == (name, 7)
        given = load_params(method, name, tuned=False)
        assert settings(method, given).hyper == defaults


def test_unknown_data_set_suggests_the_nearest():
    with pytest.raises(StudyError, match="Unknown data set 'digit': did you mean 'digits'"):
        load_params("untrained", "digit")


@pytest.fixture
def own_params(tmp_path, monkeypatch):
    shutil.copytree(PARAMS, tmp_path / "params")
    monkeypatch.setattr(parameter_files, "PARAMS", tmp_path / "params")
    return tmp_path / "params"


def test_precedence_is_protocol_data_set_method_override(own_params):
    (own_params / "methods" / "multi_similarity.yaml").write_text("alpha: 3.0\n")
    (own_params / "tuned" / "glyphs").mkdir(parents=True, exist_ok=True)
    (own_params / "tuned" / "glyphs" / "multi_similarity.yaml").write_text("alpha: 4.0\nlr: 0.5\n")
    assert load_params("multi_similarity", "digits")["alpha"] == 3.0
    given = load_params("multi_similarity", "glyphs")
    assert (given["alpha"], given["lr"]) == (4.0, 0.5)
    assert load_params("multi_similarity", "glyphs", tuned=False)["alpha"] == 3.0
    assert load_params("multi_similarity", "glyphs", {"alpha": 5.0})["alpha"] == 5.0


def test_a_named_protocol_lies_over_its_data_set(own_params):
    (own_params / "datasets" / "glyphs.odd.yaml").write_text("epochs: 31\n")
    (own_params / "tuned" / "glyphs").mkdir(parents=True, exist_ok=True)
    (own_params / "tuned" / "glyphs" / "fastap.yaml").write_text("bins: 7\n")
    given = load_params("fastap", "glyphs.odd")
    chosen = settings("fastap", given).protocol
    assert (chosen.dataset, chosen.protocol, chosen.full_name) == ("glyphs", "odd", "glyphs.odd")
    assert (given["epochs"], given["bins"], given["p"]) == (31, 7, 16)
    (own_params / "tuned" / "glyphs.odd").mkdir()
    (own_params / "tuned" / "glyphs.odd" / "fastap.yaml").write_text("lr: 0.5\n")
    given = load_params("fastap", "glyphs.odd")
    assert given["lr"] == 0.5 and given.get("bins") != 7
    with pytest.raises(
        StudyError, match=r"Unknown data set 'glyphs.od': did you mean 'glyphs.odd'"
    ):
        load_params("fastap", "glyphs.od")


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("methods/untrained.yaml", "lr: 0.1", "sets the protocol key 'lr': a method may only set"),
        ("tuned/digits/untrained.yaml", "epochs: 2", "sets the protocol key 'epochs'"),
        ("protocol.yaml", "a: [", "protocol.yaml is not valid YAML"),
        ("protocol.yaml", "[1, 2]", "protocol.yaml must hold one 'name: value' a line"),
        ("methods/untrained.yaml", None, "untrained.yaml is missing"),
    ],
)
def test_broken_files_are_named(own_params, file, text, message):
    (own_params / file).unlink(missing_ok=True)
    (own_params / file).parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        (own_params / file).write_text(text)
    with pytest.raises(StudyError, match=message):
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
