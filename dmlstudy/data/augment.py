"""Augmentation of whole batches: one affine resampling per batch, drawn from a given generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """What may happen to a training image; the default is nothing.

    Attributes:
        flip: mirror left-right with probability 1/2.
        rotate: largest rotation either way, degrees.
        crop_area: smallest share of the stored image's area that a random crop keeps; 1 is no
            random crop.
        shift: largest shift either way, as a share of the side.
    """

    flip: bool = False
    rotate: float = 0.0
    crop_area: float = 1.0
    shift: float = 0.0

    @property
    def geometric(self) -> bool:
        """Whether images are resampled at all, beyond mirroring."""
        return self.rotate > 0 or self.crop_area < 1 or self.shift > 0


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle [B, C, size, size] of images [B, C, H, W]."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def augment(images: Tensor, spec: Augment, size: int, generator: torch.Generator) -> Tensor:
    """Randomly mirrored, cropped, rotated and shifted images.

    Args:
        images: [B, C, H, W], square; float, or of any type if nothing is resampled.
        spec: what may happen.
        size: side of the result, at most H.
        generator: the only source of randomness.

    Returns:
        [B, C, size, size]; what a rotation or shift brings in from outside repeats the border.
    """
    batch = len(images)
    mirror = torch.rand(batch, generator=generator) < (0.5 if spec.flip else 0)
    if not spec.geometric:
        cropped = centre_crop(images, size)
        return torch.where(mirror[:, None, None, None], cropped.flip(3), cropped)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(batch).uniform_(low, high, generator=generator)

    angle = uniform(-1, 1) * math.radians(spec.rotate)
    if spec.crop_area < 1:  # a random crop of this area and aspect, scaled to `size`
        area = uniform(spec.crop_area, 1).sqrt()
        aspect = (uniform(-1, 1) * math.log(4 / 3) / 2).exp()
        width, height = (area * aspect).clamp_max(1), (area / aspect).clamp_max(1)
        # The crop's centre may lie wherever the crop stays inside.
        dx, dy = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    else:
        width = height = torch.full((batch,), size / images.shape[2])
        dx = dy = torch.zeros(batch)
    # The side is 2 in the sampling grid's coordinates.
    dx, dy = dx + 2 * spec.shift * uniform(-1, 1), dy + 2 * spec.shift * uniform(-1, 1)
    sign = 1 - 2 * mirror.float()
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([cos * width * sign, -sin * height, dx], 1),
            torch.stack([sin * width * sign, cos * height, dy], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [batch, images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
