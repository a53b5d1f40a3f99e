"""P x K batches: composition, coverage of an epoch, filling up, determinism."""

import numpy as np
import pytest

from dmlstudy.errors import StudyError
from dmlstudy.samplers import pk_batches


def epoch(labels, p, k, seed=0):
    return list(pk_batches(np.asarray(labels), p, k, np.random.default_rng(seed)))


def ragged(seed=0, classes=40, most=17):
    sizes = np.random.default_rng(seed).integers(1, most, classes)
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), sizes))


@pytest.mark.parametrize(("p", "k"), [(2, 2), (5, 4), (20, 3), (3, 7)])
def test_every_batch_is_p_distinct_classes_times_k(p, k):
    labels = ragged()
    for batch in epoch(labels, p, k):
        by_class = labels[batch].reshape(p, k)
        assert (by_class == by_class[:, :1]).all()
        assert len(np.unique(by_class[:, 0])) == p


def test_equal_classes_are_drawn_exactly_once():
    labels = np.repeat(np.arange(12), 8)
    batches = epoch(labels, 4, 4)
    assert len(batches) == len(labels) // 16
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(labels)))


def test_nearly_every_image_of_ragged_classes_is_drawn_once():
    labels = ragged()
    usable = np.flatnonzero(np.bincount(labels)[labels] >= 2)
    times = np.bincount(np.concatenate(epoch(labels, 4, 4)), minlength=len(labels))
    assert (times[usable] > 0).mean() > 0.95
    assert times[usable].mean() < 1.5  # short groups are filled up, nothing else repeats


def test_a_huge_class_ends_the_epoch_early():
    # 1 large and 3 small classes, p = 2: every batch needs a second class, so 3 batches at most.
    assert len(epoch(np.repeat([0, 1, 2, 3], [100, 2, 2, 2]), 2, 2)) == 3


def test_filling_up_does_not_repeat_where_the_class_is_large_enough():
    labels = np.repeat([0, 1, 2], [5, 6, 7])
    for seed in range(20):
        for batch in epoch(labels, 3, 4, seed):
            assert len(np.unique(batch)) == len(batch)


def test_small_classes_are_repeated_evenly():
    labels = np.repeat([0, 1], [2, 3])
    (batch,) = epoch(labels, 2, 5)
    counts = np.bincount(batch)
    assert sorted(counts[:2]) == [2, 3]
    assert sorted(counts[2:]) == [1, 2, 2]


def test_singletons_are_left_out():
    labels = np.repeat([0, 1, 2, 3], [1, 4, 1, 4])
    drawn = np.concatenate(epoch(labels, 2, 2))
    assert set(labels[drawn]) == {1, 3}


def test_the_generator_is_the_only_randomness():
    labels = ragged()
    first, again, other = (np.concatenate(epoch(labels, 4, 3, seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_label_gaps_are_no_classes():
    assert {0, 9} == {
        int(c) for c in np.repeat([0, 9], 2)[np.concatenate(epoch([0, 0, 9, 9], 2, 2))]
    }


def test_too_many_classes_per_batch_are_refused():
    with pytest.raises(StudyError, match=r"p = 3 .* has 2: lower p"):
        epoch([0, 0, 1, 1, 2], 3, 2)
