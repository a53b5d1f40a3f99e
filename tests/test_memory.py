"""Memory: a ring buffer that any pair row can be compared with."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same, build, go, whole

from dmlstudy.errors import StudyError
from dmlstudy.geometry import pair_masks
from dmlstudy.losses import Keys
from dmlstudy.memory import Memory
from dmlstudy.methods import METHODS, deviations
from dmlstudy.methods.pairs import PairMethod

PAIR_ROWS = [kind for kind in METHODS.values() if issubclass(kind, PairMethod)]
each_row = pytest.mark.parametrize("kind", PAIR_ROWS, ids=lambda kind: kind.__name__)


def batch(size, start=0):
    numbers = torch.arange(start, start + size)
    return numbers[:, None].float(), numbers % 3


@pytest.mark.parametrize("sizes", [[2, 2, 2, 2], [3, 4, 1], [5], [9, 2], [1] * 12], ids=str)
def test_it_keeps_the_newest(sizes):
    memory, pushed = Memory(5, 1), []
    for size in sizes:
        x, y = batch(size, len(pushed))
        memory.push(x, y)
        pushed += x[:, 0].tolist()
        keys = memory.keys()
        assert sorted(keys.embeddings[:, 0].tolist()) == pushed[-5:]
        assert torch.equal(keys.labels, keys.embeddings[:, 0].long() % 3)
        own = keys.itself >= 0
        assert torch.equal(keys.embeddings[keys.itself[own]], x[own])
        assert own.sum() == min(size, 5)


def test_it_begins_after_its_start_and_is_all_in_the_state():
    memory = Memory(4, 1, start=2)
    for step in range(4):
        memory.push(*batch(3, 3 * step))
        assert (memory.keys() is None) == (step < 2)
    again = Memory(4, 1, start=2)
    again.load_state_dict(memory.state_dict())
    for one in (memory, again):
        one.push(*batch(2, 90))
    assert_same(dict(memory.state_dict()), dict(again.state_dict()))


@each_row
def test_a_memory_of_the_batch_alone_doubles_the_loss(kind, inputs):
    method = build(kind, memory=48)
    terms = method.loss(whole(inputs))
    torch.testing.assert_close(terms["memory"], terms[kind.term], rtol=1e-4, atol=1e-6)
    assert terms["memory"] > 0


@each_row
def test_the_memorys_loss_is_that_of_its_pairs(kind, inputs):
    """Anchors against the memory are the first rows of the matrix of anchors and memory together."""
    method = build(kind, memory=20)
    f = F.normalize(torch.randn(30, 8, dtype=torch.float64))
    y = torch.arange(30) % 4
    keys = Keys(f[10:], y[10:], torch.full((10,), -1))
    formula = method.configured(kind.formula)
    f_, y_ = f[:10].clone().requires_grad_(), y[:10]
    value = formula(f_, y_, keys=keys)
    rows = torch.arange(30)[:, None] < 10
    kept = rows & (torch.arange(30) >= 10)
    positive, negative = pair_masks(y)
    whole_value = formula(f, y, pairs=(positive & kept, negative & kept))
    scale = 3 if kind.__name__ in ("MultiSimilarity", "RankedList", "TripletBatchHard") else 1
    torch.testing.assert_close(value, scale * whole_value)  # means over 10 and over 30 anchors
    assert torch.autograd.grad(value, f_)[0].any()
    assert not keys.embeddings.requires_grad


@each_row
def test_it_trains_and_resumes_to_the_bit(kind, inputs):
    saved = {}

    def keep(progress):
        torch.save(progress, saved.setdefault(progress.epoch, io.BytesIO()))

    done = go(build(kind, memory=30, memory_start=3), inputs, after_epoch=keep)
    assert "memory" in done.history[-1]
    saved[2].seek(0)
    resume = torch.load(saved[2], weights_only=False)
    again = go(build(kind, seed=5, memory=30, memory_start=3), inputs, resume=resume)
    assert_same(again.method, done.method)
    assert_same(again.history, done.history)


@each_row
def test_a_memory_is_a_deviation(kind):
    assert ("a memory of past batches" in deviations(build(kind, memory=8))) is True
    assert ("a memory of past batches" in deviations(build(kind))) is False


def test_branches_have_no_memory():
    with pytest.raises(StudyError, match="set memory to 0 or variant to H"):
        build(METHODS["ranked_list"], memory=8, variant="LMH")
