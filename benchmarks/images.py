"""Training batches of photographs: from the image store, and as torchvision reads them from a folder of files."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from benchmarks.measure import medians
from dmlstudy.data import Augment, Pixels, load

BATCH, STORED, SIDE, CLASSES, EACH = 80, 256, 224, 10, 64
GOAL = 5.0  # our images per second over those of torchvision
CROPS = {"flip": Augment(flip=True), "random crop, flip": Augment(flip=True, crop_area=0.16)}


def table() -> pd.DataFrame:
    """Images per second over a folder of JPEG files of 500 x 375 px, once decoded into the store."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        photos, cache = Path(folder) / "photos", Path(folder) / "cache"
        _write_photos(photos)
        rows = [_row(name, spec, photos, cache) for name, spec in CROPS.items()]
    return pd.DataFrame(rows)


def _row(name: str, spec: Augment, photos: Path, cache: Path) -> dict[str, object]:
    contenders = {"ours": ours(spec, photos, cache), "torchvision": torchvision(spec, photos)}
    # A loader hands out what its workers prepared while nobody asked: time several batches in one go.
    per_turn = 10

    def several(batches: Iterator[Tensor]) -> Callable[[], None]:
        def run() -> None:
            for batch in itertools.islice(batches, per_turn):
                assert batch.shape == (BATCH, 3, SIDE, SIDE)

        return run

    seconds = medians({n: several(batches) for n, batches in contenders.items()}, rounds=5)
    speed = {n: per_turn * BATCH / value for n, value in seconds.items()}
    return {
        "augmentation": name,
        "ours, images/s": speed["ours"],
        "torchvision, 2 workers, images/s": speed["torchvision"],
        "ratio": speed["ours"] / speed["torchvision"],
        "goal": GOAL,
    }


def ours(spec: Augment, photos: Path, cache: Path) -> Iterator[Tensor]:
    pixels = Pixels(load(f"folder:{photos}", STORED, cache=cache).train, SIDE, spec)
    generator = torch.Generator().manual_seed(0)
    while True:
        indices = torch.randint(len(pixels), (BATCH,), generator=generator)
        yield pixels.views(indices, 1, generator)


def torchvision(spec: Augment, photos: Path) -> Iterator[Tensor]:
    crop = (
        [v2.RandomResizedCrop(SIDE, (spec.crop_area, 1.0))]
        if spec.crop_area < 1
        else [v2.Resize(STORED), v2.CenterCrop(SIDE)]
    )
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*crop, v2.RandomHorizontalFlip(), *to_tensor])
    folder = datasets.ImageFolder(str(photos), transform)
    sampler = torch.utils.data.RandomSampler(folder, replacement=True, num_samples=10**6)
    loader = DataLoader(folder, BATCH, sampler=sampler, num_workers=2)
    return (images for images, _ in loader)


def _write_photos(folder: Path) -> None:
    """Smooth random pictures with some noise, about as long to decode as photographs."""
    rng = np.random.default_rng(0)
    for number in range(CLASSES * EACH):
        path = folder / f"class {number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = smooth + rng.integers(-12, 13, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
