"""Networks: cutting, freezing, pooling, heads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from dmlstudy.errors import StudyError
from dmlstudy.networks import Pool, build_network

SHARED = Path(os.environ.get("DMLSTUDY_DATA") or Path(__file__).parents[2] / "shared" / "data")
WEIGHTS = SHARED / "weights" / "mobilenet_v2_imagenet.safetensors"


def test_frozen_part_can_be_taken_off() -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", channels=3, embedding_size=8, trained="from block 6").eval()
    images = torch.rand(2, 3, 64, 64)
    whole = network(images)
    lower = network.split_lower()
    assert lower is not None
    torch.testing.assert_close(network(lower(images)), whole)
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in lower.parameters())


def test_nothing_is_frozen_when_all_is_trained() -> None:
    assert build_network("convnet", channels=1, embedding_size=8).split_lower() is None


def test_head_alone() -> None:
    network = build_network("resnet18", channels=3, embedding_size=8, trained="head")
    lower = network.split_lower()
    assert lower is not None and lower(torch.rand(2, 3, 64, 64)).shape == (2, 512)
    assert {name for name, _ in network.named_parameters()} == {"head.weight", "head.bias"}


def test_frozen_parts_never_leave_eval_mode() -> None:
    network = build_network(
        "resnet18", channels=3, embedding_size=8, trained="from block 6"
    ).train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    free = build_network("convnet", channels=1, embedding_size=8, freeze_bn=False).train()
    assert all(m.training for m in free.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("trunk", ["mobilenet_v2", "resnet18", "resnet50", "googlenet", "convnet"])
def test_every_trunk_embeds_and_branches(trunk: str) -> None:
    network = build_network(trunk, channels=1, embedding_size=4)
    network.add_branch_heads()
    size = 32 if trunk == "convnet" else 64
    assert network.eval()(torch.rand(2, 1, size, size)).shape == (2, 12)
    assert network.embedding_size == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trunk": "resnet81"}, "did you mean 'resnet18'"),
        ({"trained": "from block 30"}, "N in 0..8"),
        ({"trained": "everything"}, "'all', 'head' or 'from block N'"),
        ({"pool": "average"}, "Unknown pooling"),
        ({"weights": "none.safetensors"}, "do not exist"),
    ],
)
def test_mistakes_are_named(change: dict[str, str], message: str) -> None:
    options = {"trunk": "resnet18", "channels": 3, "embedding_size": 8} | change
    with pytest.raises(StudyError, match=message):
        build_network(**options)  # type: ignore[arg-type]


def test_branches_need_a_trained_trunk() -> None:
    network = build_network("resnet18", channels=3, embedding_size=8, trained="from block 8")
    with pytest.raises(StudyError, match="frozen part"):
        network.add_branch_heads()


def test_pools() -> None:
    x = torch.rand(2, 3, 4, 4)
    gem = Pool("gem")
    with torch.no_grad():
        gem.p.fill_(1)
    torch.testing.assert_close(gem(x), Pool("avg")(x))
    torch.testing.assert_close(Pool("avg+max")(x), x.mean((2, 3)) + x.amax((2, 3)))


def test_pca_start_is_scikit_learns_up_to_sign() -> None:
    from sklearn.decomposition import PCA

    features = torch.randn(60, 64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 65)
    network = build_network("convnet", channels=1, embedding_size=8)
    network.start_head_from_pca(features)
    ours = network.head(features).detach()
    theirs = torch.from_numpy(PCA(8).fit_transform(features.double().numpy())).float()
    torch.testing.assert_close(ours.abs(), theirs.abs(), rtol=1e-3, atol=1e-2)
    with pytest.raises(StudyError, match="PCA start"):
        network.start_head_from_pca(features[:5])


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs the development weights (DMLSTUDY_DATA)")
def test_development_weights_load() -> None:
    network = build_network(
        "mobilenet_v2", channels=3, embedding_size=8, weights=str(WEIGHTS), tf_padding=True
    )
    assert network.eval()(torch.rand(1, 3, 63, 63)).isfinite().all()
