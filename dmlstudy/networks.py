"""Networks: a trunk cut into blocks, pooling, and a linear embedding head."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy.errors import StudyError, unknown
from dmlstudy.trunks import TRUNKS

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Normalise(nn.Module):
    """(x - mean) / std per channel; grey images are repeated to three channels where the trunk needs them."""

    def __init__(self, channels: int, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.channels = channels
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.expand(-1, self.channels, -1, -1) - self.mean) / self.std


class Pool(nn.Module):
    """Spatial pooling [B, F, H, W] -> [B, F]: average, maximum, their sum, or generalised mean (GeM).

    GeM (Radenovic et al., TPAMI 2019) is (mean x^p)^(1/p) with p learned from 3.
    """

    KINDS = ("avg", "max", "avg+max", "gem")

    def __init__(self, kind: str):
        super().__init__()
        if kind not in self.KINDS:
            raise unknown("pooling", kind, self.KINDS)
        self.kind = kind
        if kind == "gem":
            self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "avg":
                return x.mean((2, 3))
            case "max":
                return x.amax((2, 3))
            case "avg+max":
                return x.mean((2, 3)) + x.amax((2, 3))
            case _:
                return x.clamp_min(1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)


class Network(nn.Module):
    """images -> frozen -> trained -> pool -> head -> embedding.

    Attributes:
        frozen: first blocks; after `split_frozen` the identity, and the network is fed their cached activations
            instead of images.
        trained: last blocks, in order.
        head: linear map from `feature_size` pooled features to `embedding_size` coordinates.
        taps: {number of a trained block: its channels} after which further heads may start; empty when one of
            them lies in the frozen part.
    """

    def __init__(
        self,
        frozen: nn.Sequential,
        trained: nn.Sequential,
        pool: nn.Module,
        feature_size: int,
        embedding_size: int,
        taps: dict[int, int] | None = None,
        freeze_bn: bool = True,
    ):
        super().__init__()
        self.frozen: nn.Module = frozen.requires_grad_(False)
        self.trained = trained
        self.pool = pool
        self.head = nn.Linear(feature_size, embedding_size)
        self.feature_size, self.embedding_size = feature_size, embedding_size
        self.taps = taps or {}
        self.freeze_bn = freeze_bn
        self.train()

    def features(self, images: Tensor) -> Tensor:
        """Pooled trunk features [B, feature_size] ("penultimate")."""
        return self.pool(self.trained(self._frozen(images)))

    def forward(self, images: Tensor) -> Tensor:
        """Raw embedding [B, embedding_size] of images, or of cached activations after `split_frozen`."""
        return self.head(self.features(images))

    def activations(self, images: Tensor) -> list[Tensor]:
        """Activations [B, F_t, H_t, W_t] after each tap, then after the last block."""
        x, tapped = self._frozen(images), []
        for number, block in enumerate(self.trained):
            x = block(x)
            if number in self.taps:
                tapped.append(x)
        return [*tapped, x]

    def _frozen(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.frozen(images)

    def split_frozen(self) -> nn.Module | None:
        """Take off the frozen part so that its activations can be cached; None if nothing is frozen."""
        if not any(True for _ in self.frozen.parameters()):
            return None
        frozen, self.frozen = self.frozen, nn.Identity()
        return frozen

    def start_head_from_pca(self, features: Tensor) -> None:
        """Set the head to the first principal components of these features [N, feature_size].

        Raises:
            StudyError: fewer images or features than embedding coordinates.
        """
        rank = min(features.shape)
        if rank < self.head.out_features:
            raise StudyError(
                f"A PCA start needs at least embedding_size = {self.head.out_features} images and trunk "
                f"features, but there are {len(features)} images x {features.shape[1]} features: "
                "lower embedding_size or set head_start to 'default'."
            )
        mean = features.double().mean(0)
        centred = features.double() - mean
        _, axes = torch.linalg.eigh(centred.T @ centred)
        axes = axes.flip(1)[:, : self.head.out_features].T
        # eigh leaves each axis' sign free; fix it so that the start does not depend on the LAPACK build.
        axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        with torch.no_grad():
            self.head.weight.copy_(axes)
            self.head.bias.copy_(-axes @ mean)

    def train(self, mode: bool = True) -> Network:
        """As in torch, but the frozen part, and BatchNorm if frozen, never leave eval mode."""
        super().train(mode)
        self.frozen.eval()
        if self.freeze_bn:
            for module in self.trained.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def build_network(
    trunk: str,
    *,
    channels: int,
    embedding_size: int,
    trained: str = "all",
    weights: str = "none",
    weights_root: Path = Path(),
    tf_padding: bool = False,
    pool: str = "avg",
    freeze_bn: bool = True,
) -> Network:
    """A network of the study.

    Args:
        trunk: a key of `TRUNKS`.
        channels: of the images, 1 or 3.
        embedding_size: D.
        trained: "all", "head", or "from block N" (N counts the trunk's blocks from 0).
        weights: "none", "torchvision" (downloaded by torchvision), or a safetensors file in torchvision's
            key names, looked up under `weights_root`.
        tf_padding: TensorFlow "SAME" padding in stride-2 convolutions and inputs scaled to [-1, 1],
            for weights that were trained so.
        pool: a kind of `Pool`.
        freeze_bn: keep BatchNorm's running statistics fixed in the trained blocks.

    Raises:
        StudyError: an unknown name, a block that does not exist, or weights that do not fit.
    """
    if trunk not in TRUNKS:
        raise unknown("trunk", trunk, TRUNKS)
    blocks, feature_size, taps = TRUNKS[trunk](channels, weights, weights_root)
    if tf_padding:
        _pad_like_tensorflow(blocks)
    cut = _cut(trained, len(blocks), trunk)
    in_channels = channels if trunk == "convnet" else 3
    mean, std = IMAGENET if trunk != "convnet" and not tf_padding else ((0.5,), (0.5,))
    frozen = nn.Sequential(Normalise(in_channels, mean, std), *blocks[:cut])
    pooling: nn.Module = Pool(pool)
    if trained == "head":  # nothing above the pool is trained, so it belongs to what is cached
        frozen, pooling = frozen.append(pooling), nn.Identity()
    return Network(
        frozen,
        nn.Sequential(*blocks[cut:]),
        pooling,
        feature_size,
        embedding_size,
        {block - cut: size for block, size in taps.items()} if min(taps) >= cut else {},
        freeze_bn,
    )


def _cut(trained: str, blocks: int, trunk: str) -> int:
    if trained in ("all", "head"):
        return 0 if trained == "all" else blocks
    match = re.fullmatch(r"from block (\d+)", trained)
    if match is None or int(match[1]) >= blocks:
        raise StudyError(
            f"trained must be 'all', 'head' or 'from block N' with N in 0..{blocks - 1} for {trunk}, "
            f"not '{trained}'."
        )
    return int(match[1])


class SamePad(nn.Module):
    """Pads as TensorFlow "SAME" does for stride 2 and kernel 3: by one right and bottom, on odd sizes all around."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return F.pad(x, (width % 2, 1, height % 2, 1))


def _pad_like_tensorflow(blocks: list[nn.Module]) -> None:
    for block in blocks:
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if (
                    isinstance(child, nn.Conv2d)
                    and child.stride == (2, 2)
                    and child.kernel_size == (3, 3)
                ):
                    child.padding = (0, 0)
                    setattr(parent, name, nn.Sequential(SamePad(), child))
