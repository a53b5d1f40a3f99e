"""What training and evaluation draw from: pixels, or cached activations of a frozen trunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dmlstudy.data.augment import Augment, augment, centre_crop
from dmlstudy.data.benchmark import ImageSet
from dmlstudy.data.store import cached_array, content_key, progress
from dmlstudy.errors import StudyError


class Inputs(Protocol):
    """Network inputs for one role of a benchmark; indices are positions in that role."""

    def __len__(self) -> int: ...

    def augmented(self, indices: Tensor, views: int, generator: torch.Generator) -> Tensor:
        """Randomly augmented inputs [views * B, ...], view-major, for training."""
        ...

    def test_inputs(self, indices: Tensor) -> Tensor:
        """Inputs [B, ...] as at test time."""
        ...


class Pixels:
    """Images in [0, 1], decoded from the store and augmented on the fly.

    Args:
        images: one role of a benchmark.
        size: side of the network's input; test images are the centre crop.
        spec: training augmentation.

    Raises:
        StudyError: the input is larger than the stored images.
    """

    def __init__(self, images: ImageSet, size: int, spec: Augment):
        stored = images.store.shape[1]
        if size > stored:
            raise StudyError(
                f"Inputs of {size} px cannot be cropped from images stored at {stored} px: load "
                "the data set at a larger size."
            )
        self.images, self.size, self.spec = images, size, spec

    def __len__(self) -> int:
        return len(self.images)

    def augmented(self, indices: Tensor, views: int, generator: torch.Generator) -> Tensor:
        pixels = self._bytes(indices)
        if self.spec.moves:
            pixels = _to_unit(pixels)
        drawn = [augment(pixels, self.spec, self.size, generator) for _ in range(views)]
        if views == 2 and self.spec == Augment(flip=True):  # there are two, so never the same twice
            drawn[1] = drawn[0].flip(3)
        together = torch.cat(drawn) if views > 1 else drawn[0]
        # Cropping and mirroring are done on bytes, a quarter of the memory.
        return together if self.spec.moves else _to_unit(together)

    def test_inputs(self, indices: Tensor) -> Tensor:
        return _to_unit(centre_crop(self._bytes(indices), self.size))

    def _bytes(self, indices: Tensor) -> Tensor:
        pixels = self.images.store[self.images.rows[indices.numpy()]]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _to_unit(pixels: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]."""
    return pixels.float().div_(255)


class Activations:
    """Rows of an activation cache; each training view is one of the cached views at random.

    Several views of an image are different cached ones where there are enough.

    Args:
        images: one role of a benchmark.
        cache: float16 [V, M, ...] from `cache_activations`; M runs over the whole image store.
    """

    def __init__(self, images: ImageSet, cache: np.ndarray):
        self.images, self.cache = images, cache

    def __len__(self) -> int:
        return len(self.images)

    def augmented(self, indices: Tensor, views: int, generator: torch.Generator) -> Tensor:
        rows = self.images.rows[indices.repeat(views).numpy()]
        if 1 < views <= len(self.cache):  # views of one image had better differ
            draws = torch.rand(len(indices), len(self.cache), generator=generator)
            chosen = draws.argsort(1)[:, :views].T.flatten().numpy()
        else:
            chosen = torch.randint(len(self.cache), (len(rows),), generator=generator).numpy()
        return torch.from_numpy(self.cache[chosen, rows]).float()

    def test_inputs(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(self.cache[0, self.images.rows[indices.numpy()]]).float()


def cache_activations(
    images: ImageSet,
    lower: Callable[[Tensor], Tensor],
    key: str,
    *,
    size: int,
    spec: Augment,
    views: int,
    device: str = "cpu",
    cache: Path | str | None = None,
    batch: int = 16,
) -> np.ndarray:
    """Activations [views, M, ...] in float16 of the whole image store under a frozen `lower` part.

    View 0 is the plain image, view 1 its mirror image if the augmentation mirrors, the others are
    random augmentations with seeds of their own. All roles and validation folds share the array.

    Args:
        key: names the function `lower` (weights and cut); part of the cache's address.
        batch: images at a time; more of them cost time in page faults.

    Raises:
        StudyError: the disk is full.
    """
    rows = np.arange(len(images.store))
    everything = Pixels(replace(images, rows=rows, labels=np.zeros_like(rows)), size, spec)
    with torch.inference_mode():
        shape = lower(everything.test_inputs(torch.arange(1)).to(device)).shape[1:]

    def fill(array: np.ndarray) -> None:
        starts = range(0, len(everything), batch)
        for number in progress("caching activations, batch", len(starts)):
            indices = torch.arange(number * batch, min((number + 1) * batch, len(everything)))
            plain = everything.test_inputs(indices).to(device)
            for view in range(views):
                if view == 0 or (view == 1 and spec.flip):
                    inputs = plain.flip(3) if view else plain
                else:
                    generator = torch.Generator().manual_seed(1_000_003 * view + number)
                    inputs = everything.augmented(indices, 1, generator).to(device)
                with torch.inference_mode():
                    array[view, indices.numpy()] = lower(inputs).half().cpu().numpy()

    address = content_key(images.key, key, size, str(spec), views, batch)
    total = (views, len(everything), *shape)
    return cached_array("activations", address, total, "float16", fill, cache)
