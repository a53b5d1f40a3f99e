"""Metrics from teachers: both distillation losses, the frozen teacher, and the run that trains it first."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmlstudy.errors import StudyError
from dmlstudy.losses.teachers import absolute_distillation, relative_distillation
from dmlstudy.losses.triplet import triplet_batch_hard
from dmlstudy.methods import METHODS, Batch, Task
from dmlstudy.networks import build_network
from dmlstudy.study.experiment import Experiment
from dmlstudy.study.params import settings

TASK = Task(3, 12, 1)


def unit(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, dtype=torch.double, generator=generator))


def rotation(d, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.double, generator=generator))[0]


def build(hyper=None, teacher=True):
    torch.manual_seed(0)
    method = METHODS["teachers"](
        build_network("convnet", channels=1, embedding_size=8), TASK, **(hyper or {})
    )
    if teacher:
        torch.manual_seed(1)
        network = build_network("convnet", channels=1, embedding_size=8)
        method.learn_from(METHODS["triplet_batch_hard"](network, TASK, unit=True))
    return method


def batch():
    generator = torch.Generator().manual_seed(3)
    return Batch(
        torch.rand(12, 1, 8, 8, generator=generator),
        torch.arange(3).repeat_interleave(4),
        torch.arange(12),
    )


@pytest.mark.parametrize("d_teacher", [5, 9])
def test_relative_is_a_loop_over_pairs_in_value_and_gradient(d_teacher):
    student, teacher = unit(7, 5, 0).requires_grad_(), unit(7, d_teacher, 1)
    squares = sum(
        ((student[i] - student[j]).norm() - (teacher[i] - teacher[j]).norm()) ** 2
        for i in range(7)
        for j in range(7)
        if i != j
    )
    expected, gradient = squares.sqrt(), None
    (gradient,) = torch.autograd.grad(expected, student)
    found = relative_distillation(student, teacher)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, student)[0], gradient)


def test_absolute_is_a_loop_over_images_in_value_and_gradient():
    student, teacher = unit(7, 5, 0).requires_grad_(), unit(7, 5, 1)
    expected = sum((student[i] - teacher[i]).square().sum().sqrt() for i in range(7)) / 7
    found = absolute_distillation(student, teacher)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, student)[0], torch.autograd.grad(expected, student)[0]
    )


def test_only_relative_ignores_a_rotated_teacher():
    student = unit(7, 5, 0)
    turned = student @ rotation(5)
    assert relative_distillation(student, turned) < 1e-7
    assert absolute_distillation(student, turned) > 0.1


@pytest.mark.parametrize("loss", [absolute_distillation, relative_distillation])
def test_a_perfect_student_feels_nothing(loss):
    student = unit(7, 5, 0).requires_grad_()
    value = loss(student, student.detach().clone())
    value.backward()
    assert value == 0
    assert student.grad.isfinite().all()
    assert not student.grad.any()


def test_the_teacher_is_frozen_and_not_saved_with_the_student():
    method = build()
    teacher = method._teacher[0]
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    method.train()
    sum(method.loss(batch()).values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    own = set(build(teacher=False).state_dict())
    assert set(method.state_dict()) == own == set(method.network.state_dict(prefix="network."))


def test_without_distillation_it_is_the_teachers_own_loss():
    method = build({"lam": 0.0})
    terms = method.loss(batch())
    f = method.embed(batch().images)
    assert terms["teacher"] == 0
    assert torch.equal(terms["triplet"], triplet_batch_hard(f, batch().labels, margin=0.2))


def test_the_weight_does_not_depend_on_the_batch():
    student, teacher = unit(8, 5, 0), unit(8, 5, 1)
    once = relative_distillation(student, teacher) / 8
    twice = relative_distillation(student.repeat(2, 1), teacher.repeat(2, 1)) / 16
    torch.testing.assert_close(once, twice)


def test_no_teacher_is_an_error_in_one_sentence():
    with pytest.raises(StudyError, match="call learn_from before training"):
        build(teacher=False).loss(batch())


def test_the_run_trains_the_teacher_first_and_shares_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLSTUDY_CACHE", str(tmp_path))
    given = {"nmi_seeds": 1, "p": 4, "k": 4}
    lines = []
    experiment = Experiment(settings("teachers", given), log=lines.append)
    run = experiment.run(0)
    assert any("teacher first: Triplet" in line for line in lines)
    trained = run.method._teacher[0]
    name, hyper = METHODS["teachers"].teacher
    checkpoints = {path.name.split("-")[1] for path in (tmp_path / "runs").glob("*.pt")}
    assert checkpoints == {"teachers", name}
    row = Experiment(settings(name, given | hyper), log=lambda line: None).run(0)
    assert len(list((tmp_path / "runs").glob("*.pt"))) == 2
    for a, b in zip(row.method.parameters(), trained.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
