"""An energy of pictures: how far their paint is from a painting's, and their layout from a photo's.

Paint is the Gram matrices of VGG16's features (Gatys et al. 2016), layout the correlation of its
features with the photo's, place by place. Both follow from sums over positions, so that a picture
of any size is judged as a whole though only a window of it is in memory at a time.

Pictures are (N, 3, H, W) in [-1, 1]; R regions have a style each; C, h and w are a layer's channels
and positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import sum_of
from ldm.modules.losses.lpips import ScalingLayer, vgg16

# Weights that fall with depth: deep layers' Grams are met last, and the way there leads past the
# photo's forms.
STYLE_LAYERS = {"relu1_1": 8.0, "relu2_1": 4.0, "relu3_1": 2.0, "relu4_1": 1.0, "relu5_1": 0.5}
CONTENT_LAYERS = ("relu4_1",)
STRIDE = 16  # pixels to a position of the deepest layer: windows begin and end at multiples of it
HALO = 64  # pixels around a window that its features see: relu5_1 looks 66 pixels far
WINDOW = 768  # side of the largest part of a picture whose features are held at once
_LUMA = (0.299, 0.587, 0.114)
_TINY = 1e-6
_BLOCK = 256  # positions, at least, that are added up at once

Grams = Mapping[str, Tensor]  # of each of STYLE_LAYERS, (C, C) or (R, C, C): mean over positions
Sums = dict[str, Tensor]  # named sums over the positions of a part of the pictures; those of all parts add up


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


@dataclass(frozen=True)
class Window:
    """A part of a picture, as (top, bottom, left, right) in pixels: what is looked at, and the part
    of it that counts."""

    seen: tuple[int, int, int, int]
    counted: tuple[int, int, int, int]

    def cut(self, x: Tensor) -> Tensor:
        """What is looked at of (..., H, W)."""
        top, bottom, left, right = self.seen
        return x[..., top:bottom, left:right]

    def place(self, stride: int) -> tuple[slice, slice]:
        """Rows and columns of the whole picture's maps, `stride` pixels a position, that count."""
        top, bottom, left, right = self.counted
        return slice(top // stride, bottom // stride), slice(left // stride, right // stride)

    def counted_of(self, maps: Tensor, stride: int) -> Tensor:
        """The part of the window's own maps that counts."""
        rows, columns = self.place(stride)
        top, left = self.seen[0] // stride, self.seen[2] // stride
        return maps[..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def windows(height: int, width: int, side: int = WINDOW) -> list[Window]:
    """Windows that together count every position of every layer once; a single one where the
    picture is no larger than `side`."""
    return [
        Window(
            (*_with_halo(top, bottom, height), *_with_halo(left, right, width)), (top, bottom, left, right)
        )
        for top, bottom in _parts(height, side)
        for left, right in _parts(width, side)
    ]


def _parts(length: int, side: int) -> Iterator[tuple[int, int]]:
    count = -(-length // side)
    edges = [round(length * i / count / STRIDE) * STRIDE for i in range(count)] + [length]
    return zip(edges, edges[1:])


def _with_halo(start: int, stop: int, length: int) -> tuple[int, int]:
    return max(0, start - HALO), min(length, stop + HALO)


def stride_of(layer: str) -> int:
    """Pixels to a position of the layer."""
    return 2 ** (int(layer[4]) - 1)


@dataclass(frozen=True)
class Energy:
    """The energy of pictures of one size: make it with `energy_of`.

    styles: the wanted Gram matrices. content: per layer the photo's normalised features (1, C, h,
    w), empty for none.
    masks: (R, H, W) shares of the regions at every pixel, None for a single one. luminance: colours
    do not count.
    """

    features: PaintFeatures
    styles: Grams
    content: Mapping[str, Tensor]
    style_weight: float = 1.0
    content_weight: float = 1.0
    masks: Tensor | None = None
    luminance: bool = False
    window: int = WINDOW
    _small_masks: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, pictures: Tensor) -> Tensor:
        """(N,) energies of pictures that fit into memory as a whole."""
        return self._weighed(self._sums(pictures))

    def _weighed(self, sums: Sums) -> Tensor:
        style, content = self._terms(sums)
        return self.style_weight * style + self.content_weight * content

    def terms(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(style term, content term), (N,) each, unweighted; 0 for what there is no target for."""
        return self._terms(self._sums(pictures))

    def gradient(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) gradient of the summed energies, of pictures of any size: window by window,
        exact up to the windows' halo."""
        parts = windows(*pictures.shape[2:], self.window)
        if len(parts) == 1:
            return gradient(self, pictures)
        with torch.no_grad():
            total = add_up(self._sums(pictures, part) for part in parts)
        slopes = self._slopes(total)
        result = torch.zeros_like(pictures)
        for part in parts:
            part.cut(result).add_(gradient(partial(self._along, slopes, part), part.cut(pictures)))
        return result

    def _slopes(self, total: Sums) -> dict[str, Tensor | None]:
        """The derivative of the energy by each of the whole picture's sums."""
        total = {name: value.requires_grad_() for name, value in total.items()}
        with torch.enable_grad():
            return dict(
                zip(
                    total,
                    torch.autograd.grad(self._weighed(total).sum(), list(total.values()), allow_unused=True),
                )
            )

    def _along(self, slopes: Mapping[str, Tensor | None], part: Window, cut: Tensor) -> Tensor:
        """What a window adds to the energy to first order."""
        sums = self._sums_of(self.features(self._seen(cut)), part)
        return sum_of(
            (slope * value).sum()
            for name, value in sums.items()
            if (slope := slopes[name]) is not None and value.requires_grad
        )

    def _sums(self, pictures: Tensor, part: Window | None = None) -> Sums:
        part = part or windows(*pictures.shape[2:], max(pictures.shape[2:]))[0]
        return self._sums_of(self.features(self._seen(part.cut(pictures))), part)

    def _seen(self, pictures: Tensor) -> Tensor:
        return grey(pictures) if self.luminance else pictures

    def _sums_of(self, maps: Mapping[str, Tensor], part: Window) -> Sums:
        sums: Sums = {}
        for name in self.styles:
            counted = part.counted_of(maps[name], stride_of(name))
            sums |= {
                f"gram {name}": self._grams(name, counted, part),
                f"positions {name}": self._positions(name, counted, part),
            }
        for name, wanted in self.content.items():
            counted = part.counted_of(maps[name], stride_of(name))
            rows, columns = part.place(stride_of(name))
            sums[f"content {name}"] = moments_with(counted, wanted[..., rows, columns])
        return sums

    def _grams(self, name: str, counted: Tensor, part: Window) -> Tensor:
        """(N, R, C, C)"""
        if self.masks is None:
            return gram_sum(counted)[:, None]
        roots = self._mask(name, part).sqrt().to(counted.dtype)
        return torch.stack([gram_sum(counted * root) for root in roots], dim=1)

    def _positions(self, name: str, counted: Tensor, part: Window) -> Tensor:
        """(R,)"""
        if self.masks is None:
            return counted.new_full((1,), counted.shape[2] * counted.shape[3], dtype=torch.float32)
        return self._mask(name, part).sum(dim=(1, 2))

    def _mask(self, name: str, part: Window) -> Tensor:
        """(R, h, w) shares at the counted positions of a layer."""
        if name not in self._small_masks:
            self._small_masks[name] = F.avg_pool2d(self.masks, stride_of(name))
        rows, columns = part.place(stride_of(name))
        return self._small_masks[name][..., rows, columns]

    def _terms(self, sums: Sums) -> tuple[Tensor, Tensor]:
        anything = next(iter(sums.values()))
        style = content = anything.new_zeros(())
        for name, wanted in self.styles.items():
            positions = sums[f"positions {name}"]
            grams = sums[f"gram {name}"] / positions.clamp_min(1)[:, None, None]
            missed = (grams - wanted).square().sum(dim=(2, 3)) / wanted.square().sum(dim=(1, 2)).clamp_min(
                _TINY
            )
            style = style + STYLE_LAYERS[name] * (missed * positions / positions.sum().clamp_min(1)).sum(
                dim=1
            )
        for name, wanted in self.content.items():
            content = content + (1 - correlation(sums[f"content {name}"], wanted)) / len(self.content)
        return style, content


def energy_of(
    features: PaintFeatures,
    styles: Sequence[Grams],
    content: Tensor | None,
    style_weight: float = 1.0,
    content_weight: float = 1.0,
    **options: Any,
) -> Energy:
    """The energy of pictures against the Grams of a style for each region and the photo (1, 3, H,
    W). options: as of Energy."""
    luminance = options.get("luminance", False)
    wanted = (
        {}
        if content is None
        else photo_features(features, grey(content) if luminance else content, options.get("window", WINDOW))
    )
    stacked = {name: torch.stack([grams[name] for grams in styles]) for name in STYLE_LAYERS}
    return Energy(features, stacked, wanted, style_weight, content_weight, **options)


@torch.no_grad()
def grams_of(
    features: PaintFeatures,
    picture: Tensor,
    luminance: bool = False,
    shares: Tensor | None = None,
    window: int = WINDOW,
) -> dict[str, Tensor]:
    """The mean Grams (C, C) of one picture (1, 3, H, W), whose pixels count by their shares (1, 1, H,
    W), if these are given."""
    picture = grey(picture) if luminance else picture
    shares = torch.ones_like(picture[:, :1]) if shares is None else shares
    small = {name: F.avg_pool2d(shares, stride_of(name)) for name in STYLE_LAYERS}
    total: Sums = add_up(
        {
            name: _weighed_sum(
                part.counted_of(maps, stride_of(name)), small[name], part.place(stride_of(name))
            )
            for name, maps in features(part.cut(picture)).items()
        }
        for part in windows(*picture.shape[2:], window)
    )
    return {name: value / small[name].sum().clamp_min(_TINY) for name, value in total.items()}


def _weighed_sum(maps: Tensor, shares: Tensor, place: tuple[slice, slice]) -> Tensor:
    """(C, C) of the maps (1, C, h, w) at a place of those that the shares (1, 1, h, w) are for."""
    rows, columns = place
    return gram_sum(maps * shares[..., rows, columns].sqrt().to(maps.dtype))[0]


@torch.no_grad()
def photo_features(features: PaintFeatures, photos: Tensor, window: int = WINDOW) -> dict[str, Tensor]:
    """Of each of CONTENT_LAYERS the photos' (N, C, h, w), every channel with mean 0 and variance 1;
    0 where it is flat."""
    result: dict[str, Tensor] = {}
    for part in windows(*photos.shape[2:], window):
        for name, maps in features(part.cut(photos)).items():
            if name in CONTENT_LAYERS:
                size = [side // stride_of(name) for side in photos.shape[2:]]
                whole = result.setdefault(name, maps.new_zeros(*maps.shape[:2], *size, dtype=torch.float32))
                rows, columns = part.place(stride_of(name))
                whole[..., rows, columns] = part.counted_of(maps, stride_of(name)).float()
    return {name: F.instance_norm(maps, eps=_TINY) for name, maps in result.items()}


def moments_with(maps: Tensor, wanted: Tensor) -> Tensor:
    """(3, N, C), float32: sums over positions of maps (N, C, h, w), of their squares, and of their
    products with what is wanted there."""
    maps = maps.float()
    return torch.stack([value.sum(dim=(2, 3)) for value in (maps, maps.square(), maps * wanted)])


def correlation(sums: Tensor, wanted: Tensor) -> Tensor:
    """(N,) the mean correlation of the channels of pictures' features with the photo's, normalised
    (1 or N, C, h, w), of the sums that `moments_with` gives. Flat channels of a photo do not
    count."""
    total, squares, products = sums
    positions, alive = wanted[0, 0].numel(), (wanted != 0).flatten(2).any(dim=2).sum(dim=1).clamp_min(1)
    variance = (squares - total.square() / positions).clamp_min(0) / positions
    return (products / (positions * (variance + _TINY).sqrt())).sum(dim=1) / alive


def grey(pictures: Tensor) -> Tensor:
    """The luma of pictures (BT.601), three times."""
    luma = (pictures * pictures.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    return luma.expand_as(pictures)


def add_up(parts: Iterator[Sums]) -> Sums:
    """The sums of all parts."""
    total = dict(next(parts))
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value
    return total


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of the sum of what the function gives, like x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(function(x).sum(), x)[0]
