"""Embedded data sets, validation folds, network inputs and augmentation."""

import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlstudy import data
from dmlstudy.data import Activations, Augment, Pixels, cache_activations, embedded
from dmlstudy.data.augment import augment, centre_crop
from dmlstudy.data.releases import RELEASES, read_release
from dmlstudy.errors import StudyError

REAL = Path(os.environ.get("DMLSTUDY_DATA") or Path(__file__).parents[2] / "shared" / "data")
# Images; training and test classes; groups of the training classes, of the test classes, of both.
REAL_COUNTS = {
    "omniglot": (32_460, (964, 659), (30, 20, 0)),
    "cub200_2010": (6_033, (100, 100), (48, 24, 2)),
    "cars196": (8_144, (98, 98), (14, 35, 0)),
}


@pytest.mark.parametrize("name", REAL_COUNTS)
def test_real_data_is_listed(name):
    if not any((REAL / folder).is_dir() for folder in RELEASES[name].folders):
        pytest.skip(f"{name} is not there: set DMLSTUDY_DATA to a folder that has it")
    listing = read_release(name, REAL)
    images, classes, groups = REAL_COUNTS[name]
    if name == "cars196" and listing.complete:
        images = 16_185
    train, test = (set(listing.labels[listing.roles == role]) for role in ("train", "query"))
    assert (len(listing.files), (len(train), len(test))) == (images, classes)
    assert len(listing.classes) == len(listing.groups) == sum(classes) == len(train | test)
    own, others = ({listing.groups[c] for c in side} for side in (train, test))
    assert (len(own), len(others), len(own & others)) == groups


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return data.load("digits", 8, cache=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("name", "images", "classes"), [("digits", 1797, 5), ("glyphs", 4800, 120)]
)
def test_embedded_sets_are_deterministic(name, images, classes, tmp_path):
    one, two = (data.load(name, 16, cache=tmp_path / c) for c in "ab")
    assert np.array_equal(one.train.store, two.train.store)
    assert one.train.store.shape == (images, 16, 16, 1) and one.train.classes == two.train.classes
    assert one.checksum == two.checksum and one.shareable and not one.comparable
    assert len(set(one.train.classes + one.query.classes)) == 2 * classes
    assert len(one.train) + len(one.query) == images
    scripts = {*embedded.BLOCKS} if name == "glyphs" else set()
    assert set(one.train.groups) == set(one.query.groups) == scripts
    for glyph, group in zip(one.train.classes, one.train.groups, strict=False):
        script = unicodedata.name(glyph[-1]).split()[0].capitalize()
        assert group == script or script not in ("Latin", "Greek", "Cyrillic")


def test_folds_partition_the_training_classes(digits):
    labels, names = np.repeat(np.arange(11), 2), tuple(f"c{c}" for c in range(11))
    train = replace(digits.train, rows=np.arange(22), labels=labels, classes=names)
    whole = replace(digits, train=train)
    held = []
    for fold in range(3):
        b = whole.fold(fold, 3, seed=1)
        assert b.gallery is None and not b.comparable
        assert not set(b.train.classes) & set(b.query.classes)
        assert set(b.train.classes) | set(b.query.classes) == set(whole.train.classes)
        assert not set(b.train.classes + b.query.classes) & set(whole.query.classes)
        assert set(b.train.rows) | set(b.query.rows) == set(whole.train.rows)
        held += b.query.classes
    assert sorted(held) == sorted(whole.train.classes)
    assert held[:4] == list(whole.fold(0, 3, seed=1).query.classes)
    others = {whole.fold(0, 3, seed=s).query.classes for s in range(5)}
    assert len(others) > 1


@pytest.mark.parametrize(
    ("fold", "folds", "message"),
    [(2, 2, "fold must lie in 0..1"), (-1, 2, "not -1"), (0, 3, "need 6"), (0, 1, "2 or more")],
)
def test_impossible_folds(digits, fold, folds, message):
    with pytest.raises(StudyError, match=message):
        digits.fold(fold, folds)


def test_subset_relabels_in_the_order_given(digits):
    part = replace(digits.train, groups=tuple("vwxyz")).subset([3, 1])
    assert part.classes == ("3", "1") and part.groups == ("y", "w")
    assert digits.train.subset([3, 1]).groups == ()
    was = digits.train.labels[np.isin(digits.train.labels, [1, 3])]
    assert np.array_equal(part.labels, np.where(was == 3, 0, 1))
    assert np.array_equal(digits.train.labels[np.isin(digits.train.rows, part.rows)], was)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_pixels(digits):
    pixels = Pixels(digits.query, 6, Augment(flip=True))
    indices = torch.tensor([4, 0, 2])
    plain = pixels.test_inputs(indices)
    stored = digits.query.store[digits.query.rows[[4, 0, 2]]][:, 1:7, 1:7, 0] / 255
    assert torch.allclose(plain[:, 0], torch.from_numpy(stored).float())
    views = pixels.augmented(indices, 5, seeded())
    assert views.shape == (15, 1, 6, 6) and len(pixels) == len(digits.query)
    for view in views.split(3):  # view-major, each image as it is or mirrored
        same, mirrored = (view == plain).all((1, 2, 3)), (view == plain.flip(3)).all((1, 2, 3))
        assert (same | mirrored).all()


def test_activation_cache(digits, tmp_path):
    calls = []

    def lower(x):
        calls.append(len(x))
        return x.flatten(1) * 2

    def cached(images, spec=Augment(flip=True, rotate=10), cache=tmp_path):  # noqa: B008 - frozen
        options = {"size": 8, "spec": spec, "views": 3, "batch": 1000, "cache": cache}
        return cache_activations(images, lower, "double", **options)

    array = cached(digits.train)
    filled = len(calls)
    everything = torch.from_numpy(np.array(digits.train.store)).permute(0, 3, 1, 2).float() / 255
    expected = [(x.flatten(1) * 2).half().numpy() for x in (everything, everything.flip(3))]
    assert array.shape == (3, 1797, 64) and array.dtype == np.float16
    assert np.array_equal(array[:2], expected)
    assert not np.array_equal(array[2], array[0])
    fold = digits.fold(0, 2)
    for images in (digits.query, fold.train, fold.query):  # shared: only the shape is asked for
        assert np.array_equal(cached(images), array)
    assert calls[filled:] == [1, 1, 1] and len(list(tmp_path.glob("*.npy"))) == 1
    assert np.array_equal(cached(digits.train, cache=tmp_path / "again"), array)
    cached(digits.train, Augment())
    assert len(list(tmp_path.glob("*.npy"))) == 2

    inputs = Activations(fold.query, array)
    indices = torch.tensor([5, 1])
    rows = fold.query.rows[[5, 1]]
    assert np.array_equal(inputs.test_inputs(indices).numpy(), array[0, rows].astype(np.float32))
    views = inputs.augmented(indices, 4, seeded()).numpy()
    assert views.shape == (8, 64) and len(inputs) == len(fold.query)
    for i, view in enumerate(views):
        assert any(np.array_equal(view, array[v, rows[i % 2]]) for v in range(3))
    assert np.array_equal(views, inputs.augmented(indices, 4, seeded()).numpy())
    # Where there are enough cached views, those of one image differ: all three of them here.
    three = inputs.augmented(indices, 3, seeded()).numpy().reshape(3, 2, 64)
    for i in range(2):
        assert sorted(v.sum() for v in three[:, i]) == sorted(
            array[v, rows[i]].astype(np.float32).sum() for v in range(3)
        )


IMAGES = torch.rand(16, 3, 12, 12, generator=seeded(9))


def test_no_augmentation_is_the_centre_crop():
    assert torch.equal(augment(IMAGES, Augment(), 12, seeded()), IMAGES)
    assert torch.equal(augment(IMAGES, Augment(), 8, seeded()), IMAGES[:, :, 2:10, 2:10])
    assert torch.equal(centre_crop(IMAGES, 12), IMAGES)


SPECS = [
    Augment(rotate=20),
    Augment(shift=0.2),
    Augment(crop_area=0.5),
    Augment(flip=True, rotate=10, crop_area=0.3, shift=0.1),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("size", [12, 8])
def test_geometric_augmentation(spec, size):
    out = augment(IMAGES, spec, size, seeded())
    assert out.shape == (16, 3, size, size)
    assert out.min() >= IMAGES.min() - 1e-6 and out.max() <= IMAGES.max() + 1e-6
    assert torch.equal(out, augment(IMAGES, spec, size, seeded()))
    assert not torch.allclose(out, augment(IMAGES, spec, size, seeded(1)))
    assert not torch.allclose(out, centre_crop(IMAGES, size))


def test_random_crops_have_the_drawn_area_and_aspect_and_reach_every_border():
    side, share = 200, 0.25
    across = torch.arange(side, dtype=torch.uint8).expand(side, side)
    images = torch.stack([across, across.T]).expand(400, 2, side, side)
    out = augment(images, Augment(crop_area=share), 100, seeded())
    assert out.dtype == torch.uint8
    x, y = out[:, 0, 50].float(), out[:, 1, :, 50].float()
    width, height = ((line[:, -1] - line[:, 0] + 1) / side for line in (x, y))
    area, aspect = width * height, width / height
    assert share - 0.02 < area.min() < share + 0.05 and area.max() > 0.9
    assert 3 / 4 - 0.05 < aspect.min() < 0.8 and 1.25 < aspect.max() < 4 / 3 + 0.05
    for line in (x, y):
        assert line[:, 0].min() <= 2 and line[:, -1].max() >= side - 3
    mirrored = augment(images, Augment(flip=True, crop_area=share), 100, seeded())
    assert 0.4 < (mirrored[:, 0, 0, 0] > mirrored[:, 0, 0, -1]).float().mean() < 0.6


def test_a_vanishing_transformation_changes_almost_nothing():
    assert torch.allclose(augment(IMAGES, Augment(rotate=1e-4), 12, seeded()), IMAGES, atol=1e-3)
    assert torch.allclose(
        augment(IMAGES, Augment(shift=1e-6), 8, seeded()), centre_crop(IMAGES, 8), atol=1e-3
    )


def test_shift_is_a_share_of_the_side():
    ramp = torch.linspace(0, 1, 101).expand(64, 1, 101, 101)
    moved = augment(ramp, Augment(shift=0.1), 101, seeded())[:, 0, 50, 50] - 0.5
    assert moved.abs().max() <= 0.102 and moved.abs().max() > 0.08
