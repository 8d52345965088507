"""VGG16 features and the LPIPS distance built on them (Zhang et al. 2018).

Constructing any of these never needs weights or the network: weights are read when `load_weights`
is called, or asked for.
"""

import logging
from collections import namedtuple
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from ldm.checkpoint import load_strict, part_of, read_state_dict
from ldm.errors import UserError
from ldm.files import ROOT

log = logging.getLogger(__name__)

# Oxford's weights, beside the package: not torchvision's, on which the published models were
# trained.
BUNDLED_VGG16 = ROOT / "checkpoints/vgg16/vgg16_features.safetensors"
VGG_CHANNELS = (64, 128, 256, 512, 512)
_CONVS_PER_SLICE = (2, 2, 3, 3, 3)

VggOutputs = namedtuple("VggOutputs", ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"])


class ScalingLayer(nn.Module):
    """Pictures in [-1, 1] to the normalisation that torchvision's VGG16 and the bundled one
    take."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] to what VGG16 was trained on: per channel, mean 0 and
        variance 1."""
        return (x - self.shift) / self.scale


class vgg16(nn.Module):
    """The convolutional part of VGG16 (Simonyan & Zisserman 2015), cut into five slices.

    forward: scaled pictures (N, 3, H, W), H and W >= 16, to the activations relu1_2, 2_2, 3_3, 4_3
    and 5_3. `channels` are the widths of the slices; narrower ones make a light network of the same
    shape.
    pretrained: `load_weights` at once. differs: the published class does by default.
    """

    def __init__(
        self, requires_grad: bool = False, pretrained: bool = False, channels: Sequence[int] = VGG_CHANNELS
    ):
        super().__init__()
        self.channels = tuple(channels)
        self.has_weights = False
        index, width_in = 0, 3
        for number, (width, convs) in enumerate(zip(self.channels, _CONVS_PER_SLICE, strict=True), start=1):
            # Layers keep their number within torchvision's `features`: these are the names in
            # checkpoints.
            layers = nn.Sequential()
            if number > 1:
                layers.add_module(str(index), nn.MaxPool2d(2))
                index += 1
            for _ in range(convs):
                layers.add_module(str(index), nn.Conv2d(width_in, width, 3, padding=1))
                layers.add_module(str(index + 1), nn.ReLU())
                index, width_in = index + 2, width
            self.add_module(f"slice{number}", layers)
        self.requires_grad_(requires_grad)
        if pretrained:
            self.load_weights()

    @property
    def slices(self) -> list[nn.Sequential]:
        """The parts up to each of the five activations, in order."""
        return [getattr(self, f"slice{number}") for number in range(1, 6)]

    def forward(self, x: Tensor) -> VggOutputs:
        """Scaled pictures (N, 3, H, W) to the five activations."""
        features = []
        for layers in self.slices:
            x = layers(x)
            features.append(x)
        return VggOutputs(*features)

    def load_weights(self, path: str | Path | None = None) -> None:
        """Read weights from a file (VGG16 under torchvision's names, or a checkpoint of ours that
        has one), "bundled" being the one that comes along, or torchvision's download if none is
        given: the weights of the published models. Teachers and judges read `teacher_file`.

        Raises UserError where neither can be had.
        """
        path = teacher_file() if path == "bundled" else path
        state = _download_vgg16() if path is None else read_state_dict(path)
        for part in ("vgg.", "student."):
            state = part_of(state, part)
        load_strict(self, _to_slices(state), where=str(path or "torchvision's VGG16 weights"))

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        # Whatever way the weights come in (a whole model's checkpoint too), remember that they did.
        self.has_weights |= f"{prefix}slice1.0.weight" in state_dict
        super()._load_from_state_dict(state_dict, prefix, *args)


def teacher_file(path: str | Path | None = None) -> str | Path:
    """The VGG16 of a teacher or judge: this file, by default the bundled one. Raises UserError
    where that is gone."""
    if path is None and not BUNDLED_VGG16.is_file():
        raise UserError(
            f"{BUNDLED_VGG16}: the bundled VGG16 is missing; `git checkout checkpoints/vgg16` brings it back"
        )
    return BUNDLED_VGG16 if path is None else path


def _to_slices(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's `features.N.weight` as `sliceK.N.weight`; the classifier left out."""
    if not any(name.startswith("features.") for name in state):
        return state
    starts = (4, 9, 16, 23)
    named = {}
    for name, value in state.items():
        if name.startswith("features."):
            index = int(name.split(".")[1])
            named[f"slice{1 + sum(index >= s for s in starts)}.{name.removeprefix('features.')}"] = value
    return named


def _download_vgg16() -> dict[str, Tensor]:
    from torchvision.models import VGG16_Weights  # takes a second to import, and inference seldom needs it

    log.info("VGG16 weights: torchvision's copy, downloaded once (528 MB) if it is not in torch's cache yet")
    try:
        return VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:  # the last: a file with the wrong check sum
        raise UserError(
            f"the VGG16 weights could not be downloaded ({error}); fetch {VGG16_Weights.IMAGENET1K_V1.url} on a machine "
            "with network and give its path as `vgg_ckpt_path`, to artfusion evaluate as --vgg-weights"
        ) from error


class LPIPS(nn.Module):
    """Perceptual distance of two batches of pictures in [-1, 1]: (N, 1, 1, 1), 0 for equal
    pictures.

    `lin_ckpt_path` is the file of the five published 1x1 layers, or "uniform" for the plain mean
    over layers of the unit features' squared distances, which suits any VGG16 weights but is not
    comparable with published LPIPS. `vgg_ckpt_path` is a file of VGG16's weights: by default
    torchvision's download, which the published layers were trained on, and with "uniform" the
    bundled file.
    """

    def __init__(
        self, vgg_ckpt_path: str | None = None, lin_ckpt_path: str | None = None, use_dropout: bool = True
    ):
        super().__init__()
        self.vgg_ckpt_path, self.lin_ckpt_path = vgg_ckpt_path, lin_ckpt_path
        self.scaling_layer = ScalingLayer()
        self.net = vgg16()
        for i, width in enumerate(VGG_CHANNELS):
            self.add_module(f"lin{i}", _NetLinLayer(width, use_dropout))
        self.requires_grad_(False)

    def load_weights(self) -> None:
        """Read the VGG16 and the linear weights, unless a checkpoint has brought them. Raises
        UserError where they cannot be had."""
        if self.net.has_weights:
            return
        if self.lin_ckpt_path is None:
            raise UserError(
                "LPIPS needs its linear weights: give their file (vgg.pth of the LPIPS authors), or uniform for weights of one, as "
                "`lin_ckpt_path`; in the config of a first stage that is model.params.lossconfig.params.lin_ckpt_path=FILE"
            )
        if self.lin_ckpt_path == "uniform":
            for layer in self._lins:
                layer.model[-1].weight.data.fill_(1.0 / len(VGG_CHANNELS))
            self.net.load_weights(teacher_file(self.vgg_ckpt_path))
        else:
            self._load_lins(read_state_dict(self.lin_ckpt_path))  # before the download
            self.net.load_weights(self.vgg_ckpt_path)

    def _load_lins(self, state: dict[str, Tensor]) -> None:
        # Published files name the layers `lin0.model.1.weight`, collections of several networks
        # `vgg.lin0`.
        named = {name.removeprefix("vgg."): value for name, value in state.items() if "lin" in name}
        for i, layer in enumerate(self._lins):
            value = named.get(f"lin{i}.model.1.weight", named.get(f"lin{i}"))
            if value is None or value.shape != layer.model[-1].weight.shape:
                raise UserError(f"{self.lin_ckpt_path}: no weights of LPIPS layer lin{i} for VGG16 in it")
            layer.model[-1].weight.data.copy_(value)

    @property
    def _lins(self) -> list["_NetLinLayer"]:
        return [getattr(self, f"lin{i}") for i in range(len(VGG_CHANNELS))]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] to distances (N, 1, 1, 1), 0 for equal ones."""
        pairs = zip(self.net(self.scaling_layer(x)), self.net(self.scaling_layer(y)), self._lins)
        return sum(lin((_unit(a) - _unit(b)) ** 2).mean(dim=(2, 3), keepdim=True) for a, b, lin in pairs)


class _NetLinLayer(nn.Module):
    def __init__(self, channels: int, use_dropout: bool):
        super().__init__()
        layers: list[nn.Module] = [nn.Dropout()] if use_dropout else [nn.Identity()]
        self.model = nn.Sequential(*layers, nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _unit(features: Tensor, eps: float = 1e-10) -> Tensor:
    # The 1e-8 inside the root keeps the gradient finite where a position has no activation at all.
    return features / ((features**2).sum(dim=1, keepdim=True) + 1e-8).sqrt().add(eps)
