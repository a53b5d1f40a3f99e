"""Augmentation of whole batches, drawn from a given generator."""

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
    def moves(self) -> bool:
        """Whether images are rotated or shifted, which takes floats between whole pixels."""
        return self.rotate > 0 or self.shift > 0


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle [B, C, size, size] of images [B, C, H, W]."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def augment(images: Tensor, spec: Augment, size: int, generator: torch.Generator) -> Tensor:
    """Randomly mirrored, cropped, rotated and shifted images.

    Args:
        images: [B, C, H, H]; float, or bytes if nothing is rotated or shifted.
        spec: what may happen.
        size: side of the result, at most H.
        generator: the only source of randomness.

    Returns:
        [B, C, size, size]; what a rotation or shift brings in from outside repeats the border.
    """
    batch = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(batch).uniform_(low, high, generator=generator)

    mirror = torch.rand(batch, generator=generator) < (0.5 if spec.flip else 0)
    angle = uniform(-1, 1) * math.radians(spec.rotate) if spec.moves else torch.zeros(batch)
    if spec.crop_area < 1:  # a random crop of this area and aspect, scaled to `size`
        area = uniform(spec.crop_area, 1).sqrt()
        aspect = (uniform(-1, 1) * math.log(4 / 3) / 2).exp()
        width, height = (area * aspect).clamp_max(1), (area / aspect).clamp_max(1)
        # The crop's centre may lie wherever the crop stays inside.
        dx, dy = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    else:
        width = height = torch.full((batch,), size / images.shape[2])
        dx = dy = torch.zeros(batch)
    if not spec.moves:
        return _cropped(images, torch.stack([dy, dx, height, width], 1), mirror, size)
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


def _cropped(images: Tensor, boxes: Tensor, mirror: Tensor, size: int) -> Tensor:
    """Crops of whole pixels, scaled to [B, C, size, size].

    Image by image, as the crops differ in size: several times faster than one resampling of the batch, and a
    mirror image costs a copy where it is alone.

    Args:
        boxes: [B, 4] centre (y, x) with the image from -1 to 1, height and width as shares of the side.
        mirror: bool [B].
    """
    side = images.shape[2]
    extent = (boxes[:, 2:] * side).round().clamp_min(1)
    start = ((boxes[:, :2] + 1) * side / 2 - extent / 2).floor().clamp_min(0).minimum(side - extent)
    out = torch.empty_like(images[:, :, :size, :size])
    for i, (top, left, height, width) in enumerate(torch.cat([start, extent], 1).int().tolist()):
        crop = images[i : i + 1, :, top : top + height, left : left + width]
        if (height, width) != (size, size):
            crop = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)
        out[i] = crop[0].flip(2) if mirror[i] else crop[0]
    return out
