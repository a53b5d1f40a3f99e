"""Every loss of the table: against its loop, on batches that degenerate, and pair losses in blocks of rows."""

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from losses_cases import CASES, PAIR_CASES, Case, mined_margin, mined_ms
from losses_naive import LABELS, agree, batch
from torch import Tensor

from dmlstudy import losses
from dmlstudy.errors import StudyError
from dmlstudy.geometry import pair_masks
from dmlstudy.losses import rows


def each(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


@each(CASES)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("labels", [LABELS, torch.tensor([0, 0, 2])], ids=["ragged", "three"])
def test_equals_the_loop(case: Case, seed: int, labels: Tensor):
    """Of three images, two are of one class: an only negative keeps its whole gradient."""
    x, y = batch(seed, case.unit, labels)
    agree(case.ours(x, y), case.naive(x, y), x)


@each(CASES)
def test_equals_the_loop_with_duplicate_points(case: Case):
    """Copies, of the same class and of another, tie; the gradient of the point itself is still defined."""
    x, y = batch(0, case.unit)
    of = torch.cat([torch.arange(len(y)), torch.tensor([0, 1, 1])])
    labels = torch.cat([y, y[:1], y[:1], y[1:2]])
    # sqrt turns rounding of 1e-16 in a copy's squared distance into 1e-8.
    agree(case.ours(x[of], labels), case.naive(x[of], labels), x, 1e-6)


@each(CASES)
def test_float32_is_enough(case: Case):
    x, y = batch(0, case.unit)
    agree(case.ours(x.float(), y).double(), case.ours(x, y), x, 1e-4)


@each(CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("same", [False, True], ids=["distinct", "identical"])
@pytest.mark.parametrize(
    "labels",
    [[2, 2, 2, 2], [0, 2, 3, 5], [2], [2, 2], [0, 2]],
    ids=["one class", "singletons", "one image", "one pair", "one negative"],
)
def test_degenerate_batches(case: Case, labels: list[int], same: bool, dtype: torch.dtype):
    x, y = batch(0, case.unit, torch.tensor(labels))
    x = (x[:1].expand_as(x) if same else x).detach().to(dtype, copy=True).requires_grad_()
    value = case.ours(x, y)
    gradient = torch.autograd.grad(value, x)[0]
    assert value.shape == () and value.isfinite() and gradient.isfinite().all()
    one_class = len(set(labels)) == 1
    one_point = one_class and (same or len(labels) == 1)
    if {"triplet": True, "negative": one_class, "pair": one_point, "never": False}[case.zero]:
        assert value == 0 and not gradient.any()


@each({name: case for name, case in CASES.items() if not case.proxies})
def test_labels_may_be_anything(case: Case):
    """Also beyond 2^24, where float32 would merge neighbours."""
    x, y = batch(0, case.unit)
    renamed = 2**24 + torch.tensor([0, 9, 1, 2, 9, 3, 9, 9, 2**40])[y]
    agree(case.ours(x, renamed), case.ours(x, y), x)


# --- pair losses: blocks of rows

BATCHES = {
    "ragged": LABELS,
    "one class": torch.full((6,), 4),
    "singletons": torch.arange(6),
    "lone positive": torch.tensor([1, 1, 2, 3, 4, 5, 6]),
}


def in_blocks(monkeypatch: pytest.MonkeyPatch, loss: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """The loss in one block, and in blocks of five rows."""
    one = loss()
    monkeypatch.setattr(rows, "ROWS", 5)
    return one, loss()


@each(PAIR_CASES)
@pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("points", ["unit", "raw", "lattice", "one point"])
def test_many_blocks_equal_one(monkeypatch, case: Case, labels: Tensor, points: str):
    """On the lattice many points coincide or are equally far, exactly, as its arithmetic is exact."""
    x, y = batch(0, points == "unit", labels)
    if points in ("lattice", "one point"):
        generator = torch.Generator().manual_seed(1)
        coarse = torch.randint(-1, 2, (len(y), 8), generator=generator) / 2
        x = (coarse if points == "lattice" else 0 * coarse + 0.5).double().requires_grad_()
    one, many = in_blocks(monkeypatch, lambda: 3 * case.ours(x, y))
    scale = 1 + torch.autograd.grad(one, x, retain_graph=True)[0].abs().max()
    agree(many / scale, one / scale, x)


@each(PAIR_CASES)
def test_many_blocks_in_float32(monkeypatch, case: Case):
    x, y = batch(1, case.unit)
    agree(*in_blocks(monkeypatch, lambda: case.ours(x.float(), y).double()), x, 2e-4)


@pytest.mark.parametrize("several", [False, True], ids=["one block", "many blocks"])
def test_a_hyperparameter_may_learn(monkeypatch, several: bool):
    x, y = batch(0, True)
    monkeypatch.setattr(rows, "ROWS", 5 if several else 99)
    for beta in (torch.tensor(1.1), torch.linspace(0.8, 1.4, len(y))):
        learned = beta.double().requires_grad_()
        of = mined_margin if beta.dim() else losses.margin
        assert torch.autograd.gradcheck(lambda b, of=of: of(x, y, beta=b), learned)
        assert torch.autograd.gradcheck(lambda b, of=of: of(x.detach(), y, beta=b), learned)


@pytest.mark.parametrize("mined", [mined_ms, mined_margin], ids=["ms", "margin"])
def test_masks_are_as_good_as_their_miner_and_left_as_they_were(monkeypatch, mined):
    x, y = batch(0, True)
    loss, miner = mined.func, mined.keywords["pairs"]
    masks = miner(loss.metric.of_all(x.detach()), *pair_masks(y))
    before = [mask.clone() for mask in masks]
    given = in_blocks(monkeypatch, lambda: loss(x, y, pairs=masks))
    monkeypatch.undo()
    for value, other in zip(given, in_blocks(monkeypatch, lambda: mined(x, y)), strict=True):
        agree(value, other, x)
    assert all(torch.equal(a, b) for a, b in zip(masks, before, strict=True))
    for value in in_blocks(
        monkeypatch, lambda: loss(x, y, pairs=(0 * masks[0]).bool().repeat(2, 1, 1).unbind())
    ):
        assert value == 0 and not torch.autograd.grad(value, x)[0].any()


@each(PAIR_CASES)
def test_the_labels_must_be_one_integer_each(case: Case):
    x, y = batch(0, case.unit)
    for wrong in (y[:, None], y[:-1], y.double(), y > 2):
        with pytest.raises(StudyError, match="wants one integer label for each of the 19"):
            case.ours(x, wrong)


def test_without_gradient_and_twice(monkeypatch):
    x, y = batch(0)
    one, many = in_blocks(monkeypatch, lambda: losses.snr_contrastive(x.detach(), y))
    assert not many.requires_grad
    torch.testing.assert_close(one, many)
    (gradient,) = torch.autograd.grad(losses.multi_similarity(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


# --- what others read off a loss


def test_the_signature_is_that_of_the_call_with_ranges():
    parameters = inspect.signature(losses.multi_similarity).parameters
    assert list(parameters) == ["embeddings", "labels", "alpha", "beta", "lam", "pairs"]
    assert parameters["beta"].default == 40 and parameters["beta"].annotation.__metadata__
    assert "def multi_similarity(\n    s: Tensor" in inspect.getsource(losses.multi_similarity)
    assert "CVPR 2019" in losses.multi_similarity.__doc__


def test_every_public_formula_is_exported_under_its_name():
    """Also where a file bears the name of its function."""
    for module in pkgutil.iter_modules(losses.__path__):
        own = import_module(f"dmlstudy.losses.{module.name}")
        for name, member in vars(own).items():
            ours = getattr(member, "__module__", None) == own.__name__ and callable(member)
            if ours and not name.startswith("_") and name not in ("ROWS",):
                assert name in losses.__all__ and getattr(losses, name) is member
    assert not any(inspect.ismodule(getattr(losses, name)) for name in losses.__all__)


def test_every_hyperparameter_has_a_range():
    for name in losses.__all__:
        member = getattr(losses, name)
        if inspect.isclass(member) or not callable(member):
            continue
        for parameter in inspect.signature(member, eval_str=True).parameters.values():
            assert parameter.annotation not in (float, int, str), f"{name}: {parameter}"
