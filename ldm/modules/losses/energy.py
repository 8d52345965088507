"""An energy of pictures: how far their paint is from a painting's, and their layout from a photo's.

Paint is the Gram matrices of VGG16's features, and that each place is like one of the painting's
(`ldm.modules.losses.paint`); layout is the correlation of its features with the photo's, place by
place. All follow from sums over positions, so that a picture of any size is judged as a whole
though only a window of it is in memory at a time.

Pictures are (N, 3, H, W) in [-1, 1]; R regions have a style each; C, h and w are a layer's channels
and positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.modules.diffusionmodules.util import sum_of
from ldm.modules.losses.paint import Grams, Nearest, Paint, Sums, add_up
from ldm.modules.losses.paint_features import STYLE_LAYERS, PaintFeatures, gram_sum, grey, stride_of
from ldm.modules.losses.windows import WINDOW, Window, windows

CONTENT_LAYERS = ("relu4_1",)
LIKENESS = 6.0  # weight of the places in the style term, beside those of the Gram matrices
_TINY = 1e-6


@dataclass(frozen=True)
class Energy:
    """The energy of pictures of one size: make it with `energy_of`.

    styles: the wanted Gram matrices. places: what each region's places are to be like, by layer.
    content: per layer the photo's normalised features (1, C, h, w), empty for none.
    masks: (R, H, W) shares of the regions at every pixel, None for a single one. luminance: colours
    do not count.
    """

    features: PaintFeatures
    styles: Grams
    places: Sequence[Mapping[str, Nearest]]
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
        for name in self.places[0]:
            counted = part.counted_of(maps[name], stride_of(name))
            sums[f"unlike {name}"] = self._unlike(name, counted, part)
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

    def _unlike(self, name: str, counted: Tensor, part: Window) -> Tensor:
        """(N, R)"""
        unlike = torch.stack([places[name](counted) for places in self.places], dim=1)
        return (unlike if self.masks is None else unlike * self._mask(name, part)).sum(dim=(2, 3))

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
        for name in self.places[0]:
            unlike = sums[f"unlike {name}"].sum(dim=1) / sums[f"positions {name}"].sum().clamp_min(1)
            style = style + LIKENESS * unlike / len(self.places[0])
        for name, wanted in self.content.items():
            content = content + (1 - correlation(sums[f"content {name}"], wanted)) / len(self.content)
        return style, content


def energy_of(
    features: PaintFeatures,
    paints: Sequence[Paint],
    content: Tensor | None,
    style_weight: float = 1.0,
    content_weight: float = 1.0,
    **options: Any,
) -> Energy:
    """The energy of pictures against the paint of a style for each region and the photo (1, 3, H,
    W). options: as of Energy."""
    luminance = options.get("luminance", False)
    wanted = (
        {}
        if content is None
        else photo_features(features, grey(content) if luminance else content, options.get("window", WINDOW))
    )
    stacked = {name: torch.stack([paint.grams[name] for paint in paints]) for name in STYLE_LAYERS}
    places = [{name: Nearest(some) for name, some in paint.places.items()} for paint in paints]
    return Energy(features, stacked, places, wanted, style_weight, content_weight, **options)


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


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of the sum of what the function gives, like x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(function(x).sum(), x)[0]
