"""The bundled VGG16: the file, what it computes, and that every teacher and judge reads it unless told otherwise."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from pipeline_builders import ROOT, forbid_network
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.evaluation.metrics import load_vgg
from ldm.media.images import load_image, resize_short_side
from ldm.media.tensors import image_to_tensor
from ldm.modules.losses import lpips as networks
from ldm.modules.losses.lpips import BUNDLED_VGG16, LPIPS, ScalingLayer, VggOutputs, teacher_file, vgg16
from ldm.modules.losses.style_transfer import FeatureLoss, StyleTransferLoss, VggFeatures
from ldm.pipeline.pipeline import StyleTransferPipeline

CARD = (ROOT / "checkpoints/vgg16/README.md").read_text()
WIDTHS = {
    0: 64,
    2: 64,
    5: 128,
    7: 128,
    10: 256,
    12: 256,
    14: 256,
    17: 512,
    19: 512,
    21: 512,
    24: 512,
    26: 512,
    28: 512,
}
MEANS = {"relu1_2": 132.77, "relu2_2": 250.47, "relu3_3": 244.38, "relu4_3": 30.586, "relu5_3": 1.5219}


@pytest.fixture(scope="module")
def net() -> vgg16:
    return load_vgg()


@pytest.fixture(scope="module")
def photos() -> list[Tensor]:
    """The bundled ones, (1, 3, H, W) each, the shorter side 128 pixels, in [-1, 1]."""
    return [
        image_to_tensor(resize_short_side(load_image(path), 128))[None]
        for path in sorted((ROOT / "data/contents").glob("*.jpg"))
    ]


# The file


def test_the_file_is_the_one_of_the_card() -> None:
    digest = hashlib.sha256(BUNDLED_VGG16.read_bytes()).hexdigest()
    assert digest == "dd744d9d2f697f0b6f1e6c3d9067ab9cfd964d59a1588290b19875d2b68bd02f" and digest in CARD


def test_it_has_thirteen_finite_convolutions() -> None:
    state, width_in = load_file(BUNDLED_VGG16), 3
    assert (
        len(state) == 2 * len(WIDTHS) == 26 and sum(value.numel() for value in state.values()) == 14_714_688
    )
    for index, width in WIDTHS.items():
        weight, bias = (state[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
        assert (tuple(weight.shape), tuple(bias.shape)) == ((width, width_in, 3, 3), (width,))
        assert weight.isfinite().all() and bias.isfinite().all() and weight.std() > 0
        width_in = width


def test_the_card_says_whose_it_is_and_what_it_is_not() -> None:
    words = (
        "Simonyan",
        "Zisserman",
        "Visual Geometry Group",
        "CC BY 4.0",
        "creativecommons.org/licenses/by/4.0",
        "not torchvision's",
        "float32",
        "LPIPS",
    )
    assert [word for word in words if word not in CARD] == []


# What it computes


def test_it_computes_in_float32(net: vgg16) -> None:
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32} and net.has_weights


@torch.no_grad()
def test_activations_are_those_of_the_original(net: vgg16, photos: list[Tensor]) -> None:
    """Their means over the bundled photos, written down once: a wrong order of colours or another scaling moves them all."""
    means = torch.tensor(
        [[features.mean() for features in net(ScalingLayer()(photo))] for photo in photos]
    ).mean(0)
    assert VggOutputs(*means.tolist())._asdict() == pytest.approx(MEANS, rel=1e-3)


@torch.no_grad()
def test_no_channel_is_dead(net: vgg16, photos: list[Tensor]) -> None:
    maps = [VggFeatures(net)(photo) | net(ScalingLayer()(photo))._asdict() for photo in photos]
    for name in maps[0]:
        largest = torch.cat([one[name].amax((2, 3)) for one in maps])
        assert largest.isfinite().all() and (largest.amax(0) > 0).all(), name


# Who reads it


def assert_bundled(found: vgg16, expected: vgg16) -> None:
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize(
    "make", [FeatureLoss, partial(LPIPS, lin_ckpt_path="uniform")], ids=["features", "LPIPS"]
)
def test_losses_read_it_unless_told_otherwise(
    make: Callable[[], nn.Module], net: vgg16, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    loss = make()
    loss.load_weights()
    assert_bundled(next(module for module in loss.modules() if isinstance(module, vgg16)), net)


def test_the_judge_of_style_transfer_is_it(net: vgg16, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_network(monkeypatch)
    loss = StyleTransferLoss()
    loss.load_weights()
    assert torch.equal(loss.features.get_buffer("weight1_1"), net.slice1[0].weight)


def test_the_bundled_models_style_network_is_it(net: vgg16, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_network(monkeypatch)
    pipeline = StyleTransferPipeline.from_pretrained(device="cpu")
    assert_bundled(pipeline.model.vgg, net)
    leading = pipeline.brush.features.get_buffer("weight1_1")
    assert torch.equal(leading, net.slice1[0].weight.to(leading.dtype))


def test_a_file_of_ones_own_is_read_instead(tmp_path: Path) -> None:
    assert teacher_file(tmp_path / "mine.pth") == tmp_path / "mine.pth" and teacher_file() == BUNDLED_VGG16
    with pytest.raises(UserError, match="mine.pth: no such file"):
        FeatureLoss(vgg_ckpt_path=str(tmp_path / "mine.pth")).load_weights()


def test_where_it_is_gone_one_line_says_what_brings_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "BUNDLED_VGG16", tmp_path / "gone.safetensors")
    with pytest.raises(
        UserError,
        match=r"gone.safetensors: the bundled VGG16 is missing; `git checkout checkpoints/vgg16` brings it back",
    ):
        StyleTransferLoss().load_weights()
    assert teacher_file("mine.pth") == "mine.pth"
