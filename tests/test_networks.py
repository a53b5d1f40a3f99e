"""Networks: where they are cut, what stays frozen, how they pool, pad and start."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dmlstudy.errors import StudyError
from dmlstudy.heads import branch_heads, embed_branches, equal_slices
from dmlstudy.networks import Normalise, Pool, SamePad, build_network
from dmlstudy.trunks import TRUNKS

DATA = Path(os.environ.get("DMLSTUDY_DATA") or Path(__file__).parents[2] / "shared" / "data")
WEIGHTS = "weights/mobilenet_v2_imagenet.safetensors"


def convnet(**options):
    torch.manual_seed(0)
    return build_network("convnet", **{"channels": 1, "embedding_size": 6} | options)


def grey(n=5, size=8):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("trained, blocks", [("all", 3), ("from block 0", 3), ("from block 1", 2)])
@pytest.mark.parametrize("pool", Pool.KINDS)
def test_cut_network_composes_to_the_uncut_one(trained, blocks, pool):
    net = convnet(trained=trained, pool=pool).eval()
    assert len(net.trained) == blocks
    whole = net(grey())
    assert torch.equal(whole, convnet(pool=pool).eval()(grey()))
    frozen = net.split_frozen()
    assert (frozen is None) == (blocks == 3)
    if frozen is not None:
        assert torch.equal(net(frozen(grey())), whole)


@pytest.mark.parametrize("pool", Pool.KINDS)
def test_head_alone_is_fed_pooled_features(pool):
    net = convnet(trained="head", pool=pool).eval()
    whole = net(grey())
    assert [name for name, p in net.named_parameters() if p.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    pooled = net.split_frozen()(grey())
    assert pooled.shape == (5, net.feature_size)
    assert torch.equal(net(pooled), whole)


@pytest.mark.parametrize("trained", ["from block 3", "from block -1", "tail", "from block 1 "])
def test_bad_cut_names_the_blocks(trained):
    with pytest.raises(StudyError, match=rf"N in 0\.\.2 for convnet, not '{trained}'"):
        convnet(trained=trained)


@pytest.mark.parametrize(
    ("trunk", "options", "message"),
    [
        ("mobilenetv2", {}, "did you mean 'mobilenet_v2'"),
        ("convnet", {"pool": "maxx"}, "did you mean 'max'"),
        ("convnet", {"weights": "torchvision"}, "no pretrained weights"),
        ("resnet18", {"weights": "b.safetensors"}, r"b\.safetensors do not exist: .*DMLSTUDY_DATA"),
        (
            "resnet18",
            {"weights": "a.safetensors"},
            r"do not fit ResNet: \d+ keys differ.*'other.weight'",
        ),
    ],
)
def test_wrong_names_and_weights_say_how_to_mend(trunk, options, message, tmp_path):
    save_file({"other.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(StudyError, match=message):
        build_network(trunk, channels=1, embedding_size=4, weights_root=tmp_path, **options)


def test_grey_is_repeated_to_three_channels():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    normalise, x = Normalise(3, mean, std), grey()
    expected = (x.repeat(1, 3, 1, 1) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )
    assert torch.equal(normalise(x), expected)
    assert not normalise.state_dict()


def test_pools():
    x = torch.rand(2, 3, 4, 5)
    avg, largest = x.flatten(2).mean(2), x.flatten(2).max(2).values
    gem = Pool("gem")
    torch.testing.assert_close(gem(x), x.pow(3).mean((2, 3)).pow(1 / 3))
    with torch.no_grad():
        gem.p.fill_(1)
    for pool, expected in [
        (gem, avg),
        (Pool("avg"), avg),
        (Pool("max"), largest),
        (Pool("avg+max"), avg + largest),
    ]:
        torch.testing.assert_close(pool(x), expected)
    gem(torch.zeros(1, 1, 2, 2)).sum().backward()
    assert gem.p.grad.isfinite()


@pytest.mark.parametrize("n", [4, 5, 12, 13])
def test_same_padding_is_tensorflows(n):
    # TensorFlow: ceil(n / 2) outputs; the padding they need is halved, the odd one goes right and bottom.
    total = (math.ceil(n / 2) - 1) * 2 + 3 - n
    x = torch.rand(1, 1, n, n)
    expected = torch.nn.functional.pad(x, (total // 2, total - total // 2) * 2)
    taken = torch.nn.functional.conv2d(SamePad()(x), torch.ones(1, 1, 3, 3), stride=2)
    assert taken.shape[-1] == math.ceil(n / 2)
    torch.testing.assert_close(
        taken, torch.nn.functional.conv2d(expected, torch.ones(1, 1, 3, 3), stride=2)
    )


@pytest.mark.parametrize("size", [33, 64, 96, 100])
def test_tensorflow_padding_halves_rounding_up(size):
    net = build_network("mobilenet_v2", channels=3, embedding_size=4, tf_padding=True).eval()
    assert sum(isinstance(m, SamePad) for m in net.modules()) == 5
    with torch.inference_mode():
        assert net.trained(torch.rand(1, 3, size, size)).shape[-1] == math.ceil(size / 32)


def test_real_weights_load():
    if not (DATA / WEIGHTS).is_file():
        pytest.skip(f"no {WEIGHTS} under the data root")
    given = {"weights": WEIGHTS, "weights_root": DATA, "tf_padding": True}
    net = build_network("mobilenet_v2", channels=1, embedding_size=4, **given).eval()
    stem = load_file(DATA / WEIGHTS)["features.0.0.weight"]
    assert torch.equal(net.trained[0][0][1].weight, stem)
    assert net(grey(1, 64)).isfinite().all()


@pytest.mark.parametrize("trunk", TRUNKS)
def test_branches_leave_with_the_channels_they_declare(trunk):
    net = build_network(trunk, channels=3, embedding_size=4)
    branches = branch_heads(net).eval()
    net.eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        z = embed_branches(net, branches, images)
        channels = [x.shape[1] for x in net.activations(images)]
    assert channels == [*net.taps.values(), net.feature_size]
    torch.testing.assert_close(z.unflatten(1, (3, 4)).norm(dim=2), torch.ones(1, 3))


def test_without_branches_the_embedding_is_the_networks():
    net = convnet().eval()
    assert torch.equal(embed_branches(net, torch.nn.ModuleList(), grey()), net(grey()))


def test_frozen_branches_are_refused():
    with pytest.raises(StudyError, match="frozen part of the trunk: set trained"):
        branch_heads(convnet(trained="from block 1"))


def test_slices_must_be_equal():
    assert equal_slices(8, 4, "clusters") == 2
    with pytest.raises(StudyError, match="embedding_size = 8 is not a multiple of clusters = 3"):
        equal_slices(8, 3, "clusters")


def test_pca_start_is_sklearns_up_to_sign():
    from sklearn.decomposition import PCA

    features = np.random.default_rng(0).normal(size=(100, 64)) * np.geomspace(5, 0.1, 64) + 3
    net = convnet()
    net.start_head_from_pca(torch.from_numpy(features).float())
    here = net.head(torch.from_numpy(features).float()).detach().numpy()
    there = PCA(6, svd_solver="full").fit_transform(features)
    np.testing.assert_allclose(here * np.sign((here * there).sum(0)), there, atol=1e-3)
    weight = net.head.weight
    assert (weight.gather(1, weight.abs().argmax(1, keepdim=True)) > 0).all()


def test_pca_start_needs_enough_images():
    with pytest.raises(StudyError, match="at least embedding_size = 6 .* 5 images x 64"):
        convnet().start_head_from_pca(torch.rand(5, 64))


@pytest.mark.parametrize("freeze_bn", [True, False])
def test_frozen_parts_never_train(freeze_bn):
    net = convnet(trained="from block 1", freeze_bn=freeze_bn)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for mode in (True, False, True):
        net.train(mode)
        assert not any(m.training for m in net.frozen.modules())
        norms = [m for m in net.trained.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert len(norms) == 2
        assert {m.training for m in norms} == {mode and not freeze_bn}
    net(grey()).sum().backward()
    assert all(p.grad is None for p in net.frozen.parameters())
    assert all(p.grad is not None for p in net.trained.parameters())
    changed = {n for n, value in net.state_dict().items() if not torch.equal(value, before[n])}
    assert all(n.startswith("trained") and not freeze_bn for n in changed)
    assert bool(changed) != freeze_bn
