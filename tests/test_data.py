"""Readers on small official trees, and bad input."""

import shutil
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dmlstudy import data
from dmlstudy.data.releases import RELEASES
from dmlstudy.errors import StudyError

SIZE = 8


def picture(path, shade=0, grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 256, (12, 10) if grey else (12, 10, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


# Each builder below writes an official layout with few images, and returns the expected counts
# (train, query, gallery) and completeness.
def omniglot_tree(root):
    for part, alphabet in (("images_background", "Greek"), ("images_evaluation", "Tengwar")):
        for i in range(6):
            name = f"character{i // 2 + 1:02d}/{i:04d}_{i % 2 + 1:02d}.png"
            picture(root / "omniglot-py" / part / alphabet / name, i, grey=True)
    return (6, 6, 0), "12 of 32,460 images: incomplete"


def omniglot_zips(root):
    expected = omniglot_tree(root)
    for part in ("images_background", "images_evaluation"):
        shutil.make_archive(str(root / "omniglot-py" / part), "zip", root / "omniglot-py", part)
        shutil.rmtree(root / "omniglot-py" / part)
    return expected


def cub2010_tree(root):
    for i, species in enumerate(("001.Albatross", "100.Pelican", "101.Ani", "200.Warbler") * 2):
        picture(root / "CUB_200_2010" / "images" / species / f"bird_{i:04d}.jpg", i)
    (root / "CUB_200_2010" / "images" / "001.Albatross" / "._bird_0000.jpg").write_bytes(b"macOS")
    return (4, 4, 0), "8 of 6,033 images: incomplete"


def cub2011_tree(root):
    folder = root / "CUB_200_2011"
    pairs = [(c, i) for c in (1, 100, 101, 200) for i in (1, 2)]
    names = [f"{c:03d}.Species_{c}/Image_{c:04d}_{i}.jpg" for c, i in pairs]
    for i, name in enumerate(names):
        picture(folder / "images" / name, i)
    (folder / "images.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(names, 1)))
    return (4, 4, 0), "8 of 11,788 images: incomplete"


def matlab_structs(column, names, ids):
    """A 1xN struct array as in the official devkit, boxes and all."""
    fields = [(f, object) for f in ("bbox_x1", "bbox_x2", "class", column)]
    rows = np.zeros((1, len(names)), dtype=fields)
    for i, (name, c) in enumerate(zip(names, ids, strict=True)):
        rows[0, i] = (np.uint16(1), np.uint16(9), np.uint8(c), name)
    return rows


CAR_NAMES = np.array([f"Model {i} 2012" for i in range(1, 197)], dtype=object)


def cars_old_tree(root, ids=(1, 98, 99, 196)):
    names = [f"car_ims/{i:06d}.jpg" for i in range(1, len(ids) + 1)]
    for i, name in enumerate(names):
        picture(root / "cars196" / name, i)
    rows = matlab_structs("relative_im_path", names, ids)
    savemat(root / "cars196" / "cars_annos.mat", {"annotations": rows, "class_names": CAR_NAMES})
    return (2, 2, 0), "4 of 16,185 images: incomplete"


def cars_part(root, part, annotations, ids):
    folder = root / "cars196"
    names = [f"{i:05d}.jpg" for i in range(1, len(ids) + 1)]
    for i, name in enumerate(names):
        picture(folder / part / name, i)
    (folder / "devkit").mkdir(exist_ok=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": CAR_NAMES})
    rows = matlab_structs("fname", names, ids)
    savemat(folder / "devkit" / annotations, {"annotations": rows})


def cars_train_tree(root):
    cars_part(root, "cars_train", "cars_train_annos.mat", (1, 1, 98, 99, 196))
    return (3, 2, 0), "5 of 16,185 images: train part only"


def cars_both_tree(root):
    cars_train_tree(root)
    cars_part(root, "cars_test", "cars_test_annos_withlabels.mat", (99,))  # one row: no array
    return (3, 3, 0), "6 of 16,185 images: incomplete"


def sop_tree(root):
    folder = root / "Stanford_Online_Products"
    rows = [(i, i // 2 + 1, 1, f"chair_final/{111 + i}_{i % 2}.JPG") for i in range(8)]
    for row in rows:
        picture(folder / row[3], row[0])
    for name, part in (("Ebay_train.txt", rows[:4]), ("Ebay_test.txt", rows[4:])):
        lines = [" ".join(map(str, row)) for row in part]
        (folder / name).write_text("\n".join(["image_id class_id super_class_id path", *lines]))
    return (4, 4, 0), "8 of 120,053 images: incomplete"


def inshop_tree(root, base="Img"):
    folder = root / "In-shop"
    roles = ["train"] * 4 + ["query", "gallery", "gallery", "query", "gallery"]
    items = [1, 1, 2, 2, 3, 3, 3, 4, 4]
    names = [f"img/WOMEN/Dresses/id_{c:08d}/{i:02d}_1_front.jpg" for i, c in enumerate(items)]
    (folder / "Img").mkdir(parents=True)  # there even when the images lie beside it
    for i, name in enumerate(names):
        picture(folder / base / name, i)
    rows = [f"{n}   id_{c:08d}  {r}" for n, c, r in zip(names, items, roles, strict=True)]
    (folder / "Eval").mkdir()
    text = "\n".join([str(len(rows)), "image_name item_id evaluation_status", *rows])
    (folder / "Eval" / "list_eval_partition.txt").write_text(text)
    return (4, 2, 3), "9 of 52,712 images: incomplete"


TREES = {
    "omniglot": omniglot_tree,
    "omniglot zipped": omniglot_zips,
    "cub200_2010": cub2010_tree,
    "cub200_2011": cub2011_tree,
    "cars196 old": cars_old_tree,
    "cars196 train": cars_train_tree,
    "cars196 both": cars_both_tree,
    "sop": sop_tree,
    "inshop": inshop_tree,
    "inshop beside": partial(inshop_tree, base="."),
}


@pytest.fixture
def load(tmp_path):
    """`load(name)` from tmp_path/data with a cache of its own."""
    (tmp_path / "data").mkdir()

    def run(name, size=SIZE, **options):
        return data.load(name, size, root=tmp_path / "data", cache=tmp_path / "cache", **options)

    return run


@pytest.fixture
def root(load, tmp_path):
    return tmp_path / "data"


@pytest.mark.parametrize("layout", TREES)
def test_official_layout(layout, load, root):
    counts, completeness = TREES[layout](root)
    name = layout.split()[0]
    b = load(name)
    roles = [b.train, b.query] + [b.gallery] * (b.gallery is not None)
    assert tuple(map(len, roles)) == tuple(n for n in counts if n)
    assert b.completeness == completeness
    assert not b.comparable and not b.shareable
    assert not set(b.train.classes) & set(b.query.classes)
    assert b.gallery is None or b.gallery.classes == b.query.classes
    assert len(np.unique(np.concatenate([r.rows for r in roles]))) == sum(counts)
    assert np.array_equal(np.unique(b.train.labels), np.arange(len(b.train.classes)))
    assert b.train.store.shape[1:3] == (SIZE, SIZE) and b.train.store.std() > 10
    line = next(i for i in data.inventory(root) if i.name == name)
    assert (line.state, line.detail) == ("partly there", completeness)


def test_a_complete_set_is_comparable(load, root, monkeypatch):
    sop_tree(root)
    monkeypatch.setitem(RELEASES, "sop", replace(RELEASES["sop"], images=8))
    b = load("sop")
    assert b.comparable and b.completeness == "all 8 images"


def test_omniglot_zips_hold_the_same_pixels_bright_on_dark(load, root):
    omniglot_tree(root)
    blank = root / "omniglot-py/images_background/Greek/character01/0000_01.png"
    Image.new("L", (10, 12), 255).save(blank)
    folders = load("omniglot")
    assert folders.train.store[0].max() == 0
    omniglot_zips(root)  # rebuilds the pictures, then zips them
    zips = load("omniglot")
    assert np.array_equal(zips.train.store[1:], folders.train.store[1:])
    assert zips.train.classes == folders.train.classes
    assert zips.train.classes == tuple(f"Greek/character0{i}" for i in "123")
    assert zips.train.groups == ("Greek",) * 3 and zips.query.groups == ("Tengwar",) * 3


def test_labels_name_the_classes(load, root):
    cars_train_tree(root)
    b = load("cars196")
    assert b.train.classes == ("001 Model 1 2012", "098 Model 98 2012")
    assert b.train.labels.tolist() == [0, 0, 1]
    assert b.query.classes == ("099 Model 99 2012", "196 Model 196 2012")
    assert b.train.groups == ("Model", "Model")


def test_unknown_name_and_missing_root(load, tmp_path):
    with pytest.raises(StudyError, match="did you mean 'cub200_2011'"):
        load("cub200-2011")
    with pytest.raises(StudyError, match=r"not under .*CUB_200_2011/"):
        load("cub200_2011")
    with pytest.raises(StudyError, match=r"data root .* does not exist"):
        data.load("sop", SIZE, root=tmp_path / "nowhere")
    states = {i.name: i.state for i in data.inventory(tmp_path / "nowhere")}
    assert set(states) == set(data.DATASETS)
    assert states["sop"] == "missing" and states["digits"] == "embedded"


def test_missing_files_are_counted(load, root):
    sop_tree(root)
    for path in sorted((root / "Stanford_Online_Products/chair_final").iterdir())[:3]:
        path.unlink()
    with pytest.raises(StudyError, match=r"3 of 8 images of sop .* missing \(first: .*111_0"):
        load("sop")
    assert next(i for i in data.inventory(root) if i.name == "sop").state == "broken"


def test_broken_image_is_named_and_mended(load, root, tmp_path):
    cub2010_tree(root)
    victim = root / "CUB_200_2010/images/101.Ani/bird_0002.jpg"
    whole = victim.read_bytes()
    for broken in (whole[: len(whole) // 2], b"not an image", b""):
        victim.write_bytes(broken)
        with pytest.raises(StudyError, match=r"Cannot read the image .*101\.Ani/bird_0002\.jpg"):
            load("cub200_2010")
        assert not list((tmp_path / "cache").glob("*.[np]*"))
    victim.write_bytes(whole)
    assert len(load("cub200_2010").query) == 4


def test_broken_zip(load, root, tmp_path):
    omniglot_zips(root)
    archive = root / "omniglot-py/images_evaluation.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:200])
    with pytest.raises(StudyError, match=r"images_evaluation\.zip is not a whole zip"):
        load("omniglot")
    with zipfile.ZipFile(archive.with_name("images_background.zip")) as other:
        member = other.infolist()[-1]
    start = member.header_offset + 30 + len(member.filename)
    with archive.with_name("images_background.zip").open("r+b") as file:
        file.seek(start)
        file.write(bytes(40))  # the directory is whole, the last image is not
    archive.write_bytes(whole)
    with pytest.raises(StudyError, match=r"Cannot read the image .*zip::images_background/Greek"):
        load("omniglot")
    assert not list((tmp_path / "cache").glob("*.[np]*"))


CUB, CARS = "CUB_200_2010", "cars196/devkit/cars_train_annos.mat"
PARTITION = "In-shop/Eval/list_eval_partition.txt"


def cut_a_line(path):
    path.write_text(path.read_text().replace("00000001  train", "00000001", 1))


def garble(path):
    path.write_bytes(b"garbage" * 50)


@pytest.mark.parametrize(
    ("name", "tree", "file", "damage", "message"),
    [
        ("inshop", inshop_tree, PARTITION, cut_a_line, "line 3: 3 columns expected, 2 found"),
        ("inshop", inshop_tree, PARTITION, Path.unlink, r"list_eval_partition\.txt is missing"),
        (
            "cars196",
            cars_train_tree,
            CARS,
            garble,
            "Cannot read the annotations .*cars_train_annos",
        ),
        ("cars196", cars_train_tree, CARS, Path.unlink, "neither"),
        ("cub200_2010", Path, CUB, Path.mkdir, "no training images"),
        ("cub200_2010", Path, f"{CUB}/images/birds/1.jpg", picture, "birds .* no species number"),
    ],
)
def test_broken_lists(name, tree, file, damage, message, load, root):
    tree(root)
    damage(root / file)
    with pytest.raises(StudyError, match=message):
        load(name)
