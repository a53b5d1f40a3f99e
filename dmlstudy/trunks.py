"""Trunks: each gives its blocks, its feature size, and its taps: blocks after which further heads may start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmlstudy.errors import StudyError

CONVNET_WIDTHS = (32, 64, 64)
# Blocks in order, feature size, {block: channels} of the taps: one a third, one two thirds of the way up.
Blocks = tuple[list[nn.Module], int, dict[int, int]]


def _convnet(channels: int, weights: str, weights_root: Path) -> Blocks:
    """Three blocks of 3x3 convolution, BatchNorm, ReLU, 2x2 maximum; for images of 8 to 64 px."""
    if weights != "none":
        raise StudyError(
            f"The convnet trunk has no pretrained weights: set weights to 'none', not '{weights}'."
        )
    sizes = (channels, *CONVNET_WIDTHS)
    # Channels last, which the activations follow: pooling small images takes half the time on a CPU.
    blocks: list[nn.Module] = [
        nn.Sequential(
            nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)
        ).to(memory_format=torch.channels_last)
        for i, o in zip(sizes, sizes[1:], strict=False)
    ]
    return blocks, sizes[-1], {0: sizes[1], 1: sizes[2]}


def _mobilenet_v2(channels: int, weights: str, weights_root: Path) -> Blocks:
    return list(_torchvision("mobilenet_v2", weights, weights_root).features), 1280, {6: 32, 13: 96}


def _resnet(name: str) -> Callable[[int, str, Path], Blocks]:
    def blocks(channels: int, weights: str, weights_root: Path) -> Blocks:
        net = _torchvision(name, weights, weights_root)
        stages = [net.layer1, net.layer2, net.layer3, net.layer4]
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        second = len(net.layer1) + len(net.layer2)
        width = net.fc.in_features // 8
        return (
            [stem, *(block for stage in stages for block in stage)],
            net.fc.in_features,
            {second: 2 * width, second + len(net.layer3): 4 * width},
        )

    return blocks


def _googlenet(channels: int, weights: str, weights_root: Path) -> Blocks:
    net = _torchvision("googlenet", weights, weights_root)
    names = "conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3 inception4a inception4b"
    names += " inception4c inception4d inception4e maxpool4 inception5a inception5b"
    return [getattr(net, name) for name in names.split()], 1024, {6: 480, 12: 832}


TRUNKS: dict[str, Callable[[int, str, Path], Blocks]] = {
    "convnet": _convnet,
    "mobilenet_v2": _mobilenet_v2,
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "googlenet": _googlenet,
}


def _torchvision(name: str, weights: str, weights_root: Path) -> Any:
    import torchvision.models as models  # seconds to import: only where a trunk is built

    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    if weights == "torchvision":
        # GoogLeNet's pretrained weights come with auxiliary classifiers, which are dropped here.
        return models.get_model(name, weights="DEFAULT")
    net = models.get_model(name, weights=None, **options)
    if weights != "none":
        _load_weights(net, weights_root / weights)
    return net


def _load_weights(net: nn.Module, path: Path) -> None:
    from safetensors.torch import load_file

    if not path.is_file():
        raise StudyError(
            f"The trunk weights {path} do not exist: put the file there, point DMLSTUDY_DATA at the folder "
            "that has it, or set weights to 'torchvision' or 'none'."
        )
    missing, unexpected = net.load_state_dict(load_file(path), strict=False)
    wrong = unexpected + [key for key in missing if not key.endswith("num_batches_tracked")]
    if wrong:
        raise StudyError(
            f"The trunk weights {path} do not fit {type(net).__name__}: {len(wrong)} keys differ, "
            f"the first is '{wrong[0]}'."
        )
