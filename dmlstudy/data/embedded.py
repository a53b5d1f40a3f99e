"""Embedded data sets: digits from scikit-learn, glyphs drawn from matplotlib's own fonts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmlstudy.data.benchmark import Benchmark
from dmlstudy.data.listing import VERSION, Listing, split, square
from dmlstudy.data.store import cached_array, content_key

PER_GLYPH = 20
STYLES = "Sans Sans-Bold Sans-Oblique SansMono Serif Serif-Bold Serif-Italic"
FONTS = tuple(f"DejaVu{style}" for style in STYLES.split())
# Code points, first and last; characters that a font lacks are passed over.
BLOCKS = {
    "Latin": (0x21, 0x7E),
    "Greek": (0x391, 0x3C9),
    "Cyrillic": (0x410, 0x44F),
    "arrows": (0x2190, 0x21FF),
    "mathematics": (0x2200, 0x22FF),
}
GLYPHS = 240


def load_digits(size: int, cache: Path | str | None = None) -> Benchmark:
    """1,797 handwritten digits, 8x8: classes 0-4 train, 5-9 test (UCI, scikit-learn's copy)."""

    # Importing scikit-learn takes seconds, so the labels are kept beside the images.
    def fill(labels: np.ndarray) -> None:
        labels[:] = _sklearn_digits()[1]

    labels = cached_array("labels-digits", str(VERSION), (1797,), "int64", fill, cache)
    key = content_key(VERSION, "digits", size)
    names = [str(digit) for digit in range(10)]
    listing = _listing("digits", "Handwritten digits 8x8", np.array(labels), names)
    return _benchmark(listing, lambda: _sklearn_digits()[0], size, key, cache)


def _sklearn_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    return (bunch.images * (255 / 16)).round().astype(np.uint8), bunch.target


def load_glyphs(size: int, cache: Path | str | None = None) -> Benchmark:
    """240 Unicode characters x 20: random font, affine map, noise; half of the characters train."""
    labels = np.repeat(np.arange(GLYPHS), PER_GLYPH)
    # Choosing the characters draws hundreds, so their code points are kept for all sizes.
    choice = content_key(VERSION, "glyphs", FONTS, [*BLOCKS.values()], GLYPHS)
    chars = cached_array("characters-glyphs", choice, (GLYPHS,), "int64", _choose_characters, cache)
    key = content_key(choice, size, PER_GLYPH)
    names = [f"U+{c:04X} {chr(c)}" for c in chars]
    groups = [block for c in chars for block, (low, high) in BLOCKS.items() if low <= c <= high]
    listing = _listing("glyphs", "Unicode glyphs 32x32", labels, names, groups)
    return _benchmark(listing, lambda: _draw([chr(c) for c in chars]), size, key, cache)


def _listing(
    name: str, title: str, labels: np.ndarray, classes: list[str], groups: Sequence[str] = ()
) -> Listing:
    roles = np.where(labels < len(classes) // 2, "train", "query")
    completeness = f"all {len(labels):,} images, embedded"
    return Listing(name, title, (), labels, roles, classes, 1, completeness, groups)


def _benchmark(
    listing: Listing,
    draw: Callable[[], np.ndarray],
    size: int,
    key: str,
    cache: Path | str | None,
) -> Benchmark:
    """The listed images, drawn as uint8 [M, H, H] on first use and stored at this size."""
    from PIL import Image

    def fill(store: np.ndarray) -> None:
        for slot, pixels in zip(store, draw(), strict=True):
            slot[..., 0] = square(Image.fromarray(pixels), size)

    shape = (len(listing.labels), size, size, 1)
    store = cached_array(f"images-{listing.name}", key, shape, "uint8", fill, cache)
    return split(listing, store, key, shareable=True)


def _fonts(px: int) -> list[Any]:
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [ImageFont.truetype(str(folder / f"{name}.ttf"), px) for name in FONTS]


def _plain(char: str, font: Any) -> np.ndarray:
    """A character filling its box, 24x24: equal for those that differ only in size and place."""
    from PIL import Image

    mask = font.getmask(char)
    if 0 in mask.size:
        return np.zeros((24, 24), np.uint8)
    image = Image.frombytes("L", mask.size, bytes(mask))
    return np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR))


def _choose_characters(chosen: np.ndarray) -> None:
    """A seeded choice of characters that every font draws and that do not look alike."""
    fonts = _fonts(48)
    codes = [c for low, high in BLOCKS.values() for c in range(low, high + 1)]
    missing = [_plain("\uffff", font) for font in fonts]
    kept: list[int] = []
    shapes: list[np.ndarray] = []
    for code in np.random.default_rng(0).permutation(codes):
        looks = [_plain(chr(code), font).astype(float) for font in fonts]
        drawn = all(np.abs(a - b).mean() > 8 for a, b in zip(looks, missing, strict=True))
        if drawn and all(np.abs(looks[0] - other).mean() > 20 for other in shapes):
            kept.append(int(code))
            shapes.append(looks[0])
        if len(kept) == len(chosen):
            break
    chosen[:] = kept


def _draw(characters: list[str]) -> np.ndarray:
    """uint8 [len(characters) * PER_GLYPH, 32, 32], bright on dark."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(1)
    fonts = _fonts(40)
    images = []
    for char in np.repeat(characters, PER_GLYPH):
        image = Image.new("L", (64, 64))
        font = fonts[rng.integers(len(fonts))]
        ImageDraw.Draw(image).text((32, 32), str(char), fill=255, font=font, anchor="mm")
        angle, shear = rng.uniform(-0.35, 0.35), rng.uniform(-0.25, 0.25)
        scale = rng.uniform(0.8, 1.5, size=2)
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = matrix @ np.array([[1, shear], [0, 1]]) @ np.diag(scale)
        offset = np.array([32, 32]) - matrix @ (np.array([16, 16]) + rng.uniform(-3, 3, size=2))
        affine = np.column_stack([matrix, offset]).ravel().tolist()
        small = image.transform((32, 32), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        images.append(np.asarray(small) * rng.uniform(0.6, 1) + rng.normal(0, 25, size=(32, 32)))
    return np.clip(np.stack(images), 0, 255).astype(np.uint8)
