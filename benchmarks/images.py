"""Training batches of photographs: from the image store, and as torchvision reads them from a folder of files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
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
TURN = 20  # batches timed in one go
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
    contenders = {"ours": Ours(spec, photos, cache), "torchvision": torchvision(spec, photos)}

    def turn(batches: Iterable[Tensor]) -> Callable[[], None]:
        def run() -> None:
            for batch in batches:
                assert batch.shape == (BATCH, 3, SIDE, SIDE)

        return run

    seconds = medians({n: turn(batches) for n, batches in contenders.items()}, rounds=5)
    speed = {n: TURN * BATCH / value for n, value in seconds.items()}
    return {
        "augmentation": name,
        "ours, images/s": speed["ours"],
        "torchvision, 2 workers, images/s": speed["torchvision"],
        "ratio": speed["ours"] / speed["torchvision"],
        "goal": GOAL,
    }


class Ours:
    """Batches from the image store."""

    def __init__(self, spec: Augment, photos: Path, cache: Path):
        self.pixels = Pixels(load(f"folder:{photos}", STORED, cache=cache).train, SIDE, spec)
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(TURN):
            indices = torch.randint(len(self.pixels), (BATCH,), generator=self.generator)
            yield self.pixels.augmented(indices, 1, self.generator)


def torchvision(spec: Augment, photos: Path) -> Iterable[Tensor]:
    """Batches decoded from the files by two workers, which keep running."""
    crop = (
        [v2.RandomResizedCrop(SIDE, (spec.crop_area, 1.0))]
        if spec.crop_area < 1
        else [v2.Resize(STORED), v2.CenterCrop(SIDE)]
    )
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*crop, v2.RandomHorizontalFlip(), *to_tensor])
    folder = datasets.ImageFolder(str(photos), transform)
    # A turn is an epoch: workers that read ahead would take the cores from ours in its turn, and start theirs ahead.
    sampler = torch.utils.data.RandomSampler(folder, replacement=True, num_samples=TURN * BATCH)
    return DataLoader(
        folder,
        BATCH,
        sampler=sampler,
        num_workers=2,
        persistent_workers=True,
        collate_fn=_images,
    )


def _images(samples: list[tuple[Tensor, int]]) -> Tensor:
    return torch.stack([image for image, _ in samples])


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
