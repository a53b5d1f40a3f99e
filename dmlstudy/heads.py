"""Embedding heads beside the network's own: branches that leave the trunk at its taps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlstudy.errors import StudyError
from dmlstudy.networks import Network


def branch_heads(network: Network) -> nn.ModuleList:
    """A head for each tap of the trunk, low and middle, of the network's embedding size.

    Raises:
        StudyError: a tap lies in the frozen part of the trunk.
    """
    if not network.taps:
        raise StudyError(
            "The low and middle branches leave from the frozen part of the trunk: set trained to 'all' "
            "or to an earlier block."
        )
    return nn.ModuleList(_branch_head(c, network.embedding_size) for c in network.taps.values())


def embed_branches(network: Network, branches: nn.ModuleList, images: Tensor) -> Tensor:
    """The network's embedding [B, D]; with branches, unit embeddings of all side by side, the network's own last."""
    if not branches:
        return network(images)
    *tapped, last = network.activations(images)
    parts = [head(x) for head, x in zip(branches, tapped, strict=True)]
    parts.append(network.head(network.pool(last)))
    return torch.cat([F.normalize(part) for part in parts], 1)


def _branch_head(channels: int, embedding_size: int) -> nn.Sequential:
    """Coarse average pooling, 1x1 convolution, a hidden layer, embedding: as in the ranked list authors' code."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(3),
        nn.Conv2d(channels, 128, 1),
        nn.Flatten(),
        nn.Linear(128 * 9, 1024),
        nn.BatchNorm1d(1024),
        nn.ReLU(),
        nn.Linear(1024, embedding_size),
    )


def equal_slices(size: int, count: int, name: str) -> int:
    """The width of `count` equal slices of an embedding of `size` coordinates.

    Raises:
        StudyError: the slices would not be equal.
    """
    if size % count:
        raise StudyError(
            f"The embedding is cut into equal slices, but embedding_size = {size} is not a multiple of "
            f"{name} = {count}: change one of them."
        )
    return size // count
