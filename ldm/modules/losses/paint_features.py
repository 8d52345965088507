"""VGG16's features as painting wants them, and their Gram matrices.

Pictures are (N, 3, H, W) in [-1, 1]; C, h and w are a layer's channels and positions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.losses.lpips import ScalingLayer, vgg16

# Weights of Gram matrices that fall with depth: deep layers' are met last, and the way there leads past
# the photo's forms.
STYLE_LAYERS = {"relu1_1": 8.0, "relu2_1": 4.0, "relu3_1": 2.0, "relu4_1": 1.0, "relu5_1": 0.5}
_LUMA = (0.299, 0.587, 0.114)
_BLOCK = 256  # positions, at least, that are added up at once


class _ConvRelu(torch.autograd.Function):
    """ReLU of a 3x3 convolution. Its gradient is a convolution too, with the weights turned round:
    on CPUs that runs twice as fast as the library's own backward pass, and on GPUs it is the same
    every time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, turned: Tensor, padding: int) -> Tensor:
        y = F.relu_(F.conv2d(x, weight, bias, padding=padding))
        ctx.save_for_backward(y, turned)
        ctx.padding = 2 - padding
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        y, turned = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        return F.conv2d(gradient, turned, padding=ctx.padding), None, None, None, None


class _GramSum(torch.autograd.Function):
    """(N, C, C) products of every two channels of rows (N, positions, C), summed over positions, in
    float32.

    The products are exact and added up in float32 in blocks; only a block's sum is rounded to the
    features' own format. Small maps have fewer blocks, each of which costs a whole matrix of every
    two channels.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        blocks = next(
            count
            for count in (16, 8, 4, 2, 1)
            if count == 1 or (rows.shape[1] % count == 0 and rows.shape[1] >= count * _BLOCK)
        )
        parts = rows.unflatten(1, (blocks, -1)).flatten(0, 1)
        return (parts.mT @ parts).float().unflatten(0, (-1, blocks)).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        return rows @ (gradient + gradient.mT).to(rows.dtype)


def gram_sum(maps: Tensor) -> Tensor:
    """(N, C, C), float32, of maps (N, C, h, w)."""
    return _GramSum.apply(maps.permute(0, 2, 3, 1).flatten(1, 2))


def mean_gram(maps: Tensor) -> Tensor:
    """(N, C, C), float32, of maps (N, C, h, w): averaged over positions."""
    return gram_sum(maps) / (maps.shape[2] * maps.shape[3])


class PaintFeatures(nn.Module):
    """VGG16 as painting wants it: average pooling, which leaves no dotted gradients (Gatys et al.
    2016), and edges repeated before the first convolution, which leaves less of a frame.

    forward: pictures, H and W >= 16, to {layer: (N, C, h, w)} in `dtype`. The weights get no
    gradient.
    """

    def __init__(self, net: vgg16, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dtype = dtype
        for (
            name,
            value,
            # a judge's numbers, like its weights, are in no model's checkpoint
        ) in ScalingLayer().named_buffers():
            self.register_buffer(name, value, persistent=False)
        self._slices: list[list[str]] = []
        for number, layers in enumerate(net.slices, start=1):
            convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)][
                : 1 if number == len(net.slices) else None
            ]
            self._slices.append([f"{number}_{i}" for i in range(1, 1 + len(convolutions))])
            for name, layer in zip(self._slices[-1], convolutions):
                self._add(name, layer)

    def _add(self, name: str, layer: nn.Conv2d) -> None:
        weight = layer.weight.detach().to(self.dtype)
        turned = weight.transpose(0, 1).flip(2, 3)
        for kind, value in (("weight", weight), ("turned", turned)):
            self.register_buffer(
                f"{kind}{name}", value.contiguous(memory_format=torch.channels_last), persistent=False
            )
        self.register_buffer(f"bias{name}", layer.bias.detach().to(self.dtype), persistent=False)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures (N, 3, H, W) in [-1, 1] to {layer: (N, C, h, w)}, in the number format of the
        network."""
        x = (
            ((pictures - self.shift) / self.scale)
            .to(self.dtype)
            .contiguous(memory_format=torch.channels_last)
        )
        maps = {}
        for names in self._slices:
            for name in names:
                x = self._first(x) if name == "1_1" else self._convolved(name, x)
                maps[f"relu{name}"] = x
            x = F.avg_pool2d(x, 2) if names is not self._slices[-1] else x
        return {name: value for name, value in maps.items() if name in STYLE_LAYERS}

    def _first(self, x: Tensor) -> Tensor:
        # Not F.pad, whose gradient is not the same every time on GPUs.
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
        return self._convolved("1_1", torch.cat([x[..., :1], x, x[..., -1:]], dim=3), padding=0)

    def _convolved(self, name: str, x: Tensor, padding: int = 1) -> Tensor:
        buffers = [self.get_buffer(kind + name) for kind in ("weight", "bias", "turned")]
        return _ConvRelu.apply(x, *buffers, padding)


def stride_of(layer: str) -> int:
    """Pixels to a position of the layer."""
    return 2 ** (int(layer[4]) - 1)


def grey(pictures: Tensor) -> Tensor:
    """The luma of pictures (BT.601), three times."""
    luma = (pictures * pictures.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    return luma.expand_as(pictures)
