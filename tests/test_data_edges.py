"""Own images, damaged lists, checksums by content, and the store under killed and rival processes."""

import errno
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from dmlstudy import data
from dmlstudy.data.store import cached_array, digest
from dmlstudy.errors import StudyError

FORK = multiprocessing.get_context("fork")  # a fresh interpreter would import torch each time


@pytest.fixture
def own(tmp_path):
    """Four classes of two flat 8x8 bitmaps, all files of one size; returns (folder, load)."""
    folder = tmp_path / "own"
    for c in "abcd":
        (folder / c).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (40 * i, 20, 30)).save(folder / c / f"{i}.bmp")

    def load(path=folder, **options):
        return data.load(f"folder:{path}", 8, cache=tmp_path / "cache", **options)

    return folder, load


def test_half_of_the_classes_train_by_seed(own):
    folder, load = own
    for name in ("e/deeper", "f", "lonely", ".ipynb_checkpoints"):
        (folder / name).mkdir(parents=True)
        for i in range(1 if name == "lonely" else 2):
            Image.new("RGB", (8, 8)).save(folder / name / f"{i}.png")
    splits = [load(seed=seed) for seed in (0, 1, 2, 3, 0)]
    for b in splits:
        assert len(b.train.classes) == len(b.query.classes) == 3
        assert set(b.train.classes + b.query.classes) == set("abcdef")
        assert b.completeness == "12 images of 6 classes; 1 classes with one image skipped (lonely)"
    assert splits[0].checksum == splits[-1].checksum
    assert len({b.train.classes for b in splits}) > 1


def test_own_folders_need_four_classes(own):
    folder, load = own
    with pytest.raises(StudyError, match="does not exist"):
        load(folder / "nowhere")
    (folder / "d").rename(folder / ".d")
    with pytest.raises(StudyError, match=r"has 3 class folders .* needs four"):
        load()


def test_an_edited_image_is_decoded_again_and_the_checksum_is_of_the_pixels(own):
    folder, load = own
    edited, before = folder / "a" / "0.bmp", load()
    size = edited.stat().st_size
    os.utime(edited, ns=(1, 1))  # decoded again, to the same pixels
    touched = load()
    assert before.train.key != touched.train.key and before.checksum == touched.checksum
    Image.new("RGB", (8, 8), (200, 20, 30)).save(edited)
    os.utime(edited, ns=(2, 2))
    assert edited.stat().st_size == size
    after = load()
    assert before.train.store[0, 0, 0, 0] == 0 and after.train.store[0, 0, 0, 0] == 200
    assert before.checksum != after.checksum == load().checksum


def test_digest_is_kept_and_needs_no_writable_cache(tmp_path, monkeypatch):
    array = cached_array("a", "k", (4,), "uint8", lambda a: a.fill(3), tmp_path)
    kept = digest(array)
    assert (tmp_path / "a-k.sha256").read_text() == kept == digest(array)
    (tmp_path / "a-k.sha256").unlink()
    (tmp_path / "a-k.sha256").mkdir()  # cannot be written
    assert digest(array) == kept


def test_photographs_are_turned_upright(own):
    folder, load = own
    ramp = np.repeat(np.arange(0, 240, 30, dtype=np.uint8)[:, None], 8, 1)
    tag = Image.Exif()
    tag[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    Image.fromarray(ramp).convert("RGB").save(folder / "a" / "0.jpg", exif=tag, quality=95)
    decoded = load().train.store[1, :, :, 0].astype(float)  # after 0.bmp
    assert decoded.std(axis=0).max() < 5 and decoded.std(axis=1).min() > 50


def test_deep_pixels_are_refused_rather_than_clipped(own):
    folder, load = own
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(deep).save(folder / "b" / "deep.png")
    with pytest.raises(StudyError, match=r"b/deep\.png .* more than 8 bits per pixel"):
        load()


def list_file(root, lines):
    path = root / "In-shop" / "Eval" / "list_eval_partition.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(["4", "image_name item_id evaluation_status", *lines]))
    for line in lines:
        image = root / "In-shop" / line.split()[0]
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(image)


def test_an_unknown_role_is_refused_not_dropped(tmp_path):
    roles = ["train", "query", "gallery", "galery"]
    list_file(tmp_path, [f"img/{i}.jpg id_1 {role}" for i, role in enumerate(roles)])
    with pytest.raises(StudyError, match="unknown role 'galery'"):
        data.load("inshop", 8, root=tmp_path, cache=tmp_path / "cache")
    line = next(i for i in data.inventory(tmp_path) if i.name == "inshop")
    assert line.state == "broken" and "galery" in line.detail


def test_a_damaged_product_number_does_not_stop_the_inventory(tmp_path):
    folder = tmp_path / "Stanford_Online_Products"
    (folder / "x").mkdir(parents=True)
    for part, number in (("train", "?"), ("test", "2")):
        Image.new("RGB", (8, 8)).save(folder / "x" / f"{part}.jpg")
        text = f"image_id class_id super_class_id path\n1 {number} 1 x/{part}.jpg"
        (folder / f"Ebay_{part}.txt").write_text(text)
    states = {line.name: line.state for line in data.inventory(tmp_path)}
    assert states["sop"] == "partly there"


def test_inputs_larger_than_the_store_are_refused(own):
    images = own[1]().train
    with pytest.raises(StudyError, match=r"10 px cannot be cropped from images stored at 8 px"):
        data.Pixels(images, 10, data.Augment())
    assert data.Pixels(images, 8, data.Augment()).test_inputs(torch.arange(2)).shape == (2, 3, 8, 8)


def test_a_killed_process_leaves_nothing_that_looks_complete(tmp_path):
    def die(array):
        array[0] = 1
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=cached_array, args=("a", "k", (2,), "int64", die, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "a-k.npy").exists()
    array = cached_array("a", "k", (2,), "int64", lambda a: a.fill(5), tmp_path)
    assert array.tolist() == [5, 5] and not array.flags.writeable
    assert not list(tmp_path.glob("*.partial"))


def test_two_processes_fill_a_store_once(tmp_path):
    def fill(array):
        with (tmp_path / "log").open("a") as log:
            log.write("filled\n")
        time.sleep(0.2)
        array.fill(5)

    call = {"target": cached_array, "args": ("a", "k", (2,), "int64", fill, tmp_path)}
    rivals = [FORK.Process(**call) for _ in range(3)]
    for act in (FORK.Process.start, FORK.Process.join):
        for process in rivals:
            act(process)
    assert [process.exitcode for process in rivals] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "filled\n"


def test_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StudyError, match=r"Cannot write 8\.0 MB .* free some space"):
        cached_array("a", "k", (10**6,), "int64", lambda a: None, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.[np]*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="set DMLSTUDY_CACHE"):
        cached_array("a", "k", (1,), "int64", lambda a: None, tmp_path / "file")
