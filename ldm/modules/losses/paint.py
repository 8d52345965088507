"""A painting's paint: which of VGG16's features occur together, and what some of its places are like.

Gram matrices (Gatys et al. 2016) tell how often features occur together in the whole picture, and
are met as well by a texture that the painting has nowhere: by the cells, say, that fill a plain
sky. So each place is to be like some place of the painting, too (Li & Wand 2016, Kolkin et al.
2022).

Pictures are (1, 3, H, W) in [-1, 1]; C, h and w are a layer's channels and positions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.modules.diffusionmodules.util import sum_of
from ldm.modules.losses.paint_features import STYLE_LAYERS, PaintFeatures, gram_sum, grey, stride_of
from ldm.modules.losses.windows import WINDOW, windows

PLACE_LAYERS = ("relu3_1", "relu4_1")  # strokes and small things; deeper ones are what is shown
MOST_PLACES = 2048  # of a layer that others are compared with
_TINY = 1e-6
_ROWS = 8192  # that are compared at once

Grams = Mapping[str, Tensor]  # of each of STYLE_LAYERS, (C, C) or (R, C, C): mean over positions
Places = Mapping[str, Tensor]  # of each of PLACE_LAYERS, (M, C): features at places drawn at random
Sums = dict[str, Tensor]  # named sums over the positions of a part of the pictures; those of all parts add up


@dataclass(frozen=True)
class Paint:
    """What pictures are to have of a painting, or of several. places: none for Gram matrices
    alone."""

    grams: Grams
    places: Places = field(default_factory=dict)


@torch.no_grad()
def paint_of(
    features: PaintFeatures,
    picture: Tensor,
    luminance: bool = False,
    shares: Tensor | None = None,
    window: int = WINDOW,
) -> Paint:
    """The paint of one picture (1, 3, H, W), whose pixels count by their shares (1, 1, H, W), if
    these are given. luminance: colours do not count."""
    picture = grey(picture) if luminance else picture
    shares = torch.ones_like(picture[:, :1]) if shares is None else shares
    small = {name: F.avg_pool2d(shares, stride_of(name)) for name in STYLE_LAYERS}
    drawn = {name: _drawn(small[name][0, 0]) for name in PLACE_LAYERS}
    parts = list[Sums]()
    found: dict[str, list[Tensor]] = {name: [] for name in PLACE_LAYERS}
    for part in windows(*picture.shape[2:], window):
        sums = {}
        for name, maps in features(part.cut(picture)).items():
            counted, (rows, columns) = part.counted_of(maps, stride_of(name)), part.place(stride_of(name))
            sums[name] = gram_sum(counted * small[name][..., rows, columns].sqrt().to(maps.dtype))[0]
            if name in drawn:
                found[name].append(counted[0][:, drawn[name][rows, columns]].T)
        parts.append(sums)
    grams = {name: value / small[name].sum().clamp_min(_TINY) for name, value in add_up(parts).items()}
    return Paint(grams, {name: _shuffled(torch.cat(some)) for name, some in found.items()})


def _drawn(shares: Tensor) -> Tensor:
    """(h, w), true at up to MOST_PLACES of those that count, the more likely the more they do. The
    same for the same shares."""
    flat = shares.flatten().cpu()
    count = min(MOST_PLACES, int((flat > 0).sum()))
    drawn = torch.zeros_like(flat, dtype=torch.bool)
    if count:
        drawn[torch.multinomial(flat, count, generator=_always_the_same())] = True
    return drawn.view(shares.shape).to(shares.device)


def _always_the_same() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)


def _shuffled(places: Tensor) -> Tensor:
    """In a random order, always the same, so that the first of them are of the whole picture."""
    order = torch.randperm(len(places), generator=_always_the_same(), device="cpu")
    return places[order.to(places.device)]


def mixed(paints: Sequence[tuple[Paint, float]]) -> Paint:
    """The paint of several pictures, each with its weight: their mean Gram matrices, and as many
    places of each as it has of the weights."""
    grams = {name: sum_of(weight * paint.grams[name] for paint, weight in paints) for name in STYLE_LAYERS}
    total = sum(weight for _, weight in paints)
    places = {
        name: torch.cat(
            [
                paint.places[name][: round(MOST_PLACES * weight / total)]
                for paint, weight in paints
                if weight > 0
            ]
        )
        for name in PLACE_LAYERS
    }
    return Paint(grams, places)


class Nearest:
    """How unlike places of a picture are to those of a painting that are most like them, (M, C): 1
    less the cosine of the angle between features less the painting's mean."""

    def __init__(self, places: Tensor):
        self.mean = places.float().mean(0) if len(places) else places.new_zeros(places.shape[1])
        self.directions = F.normalize(places.float() - self.mean, dim=1).to(places.dtype)

    def __call__(self, maps: Tensor) -> Tensor:
        """(N, h, w) in [0, 2], float32, of maps (N, C, h, w); 0 where there is nothing to be like."""
        if not len(self.directions):
            return maps.new_zeros(len(maps), *maps.shape[2:], dtype=torch.float32)
        rows = F.normalize(maps.permute(0, 2, 3, 1).flatten(0, 2).float() - self.mean, dim=1)
        return (1 - _greatest_cosines(rows, self.directions)).view(len(maps), *maps.shape[2:])


def unlikeness(maps: Tensor, places: Tensor) -> Tensor:
    """(N,) in [0, 2], float32: how unlike the places of maps (N, C, h, w) are to those of paintings,
    (N, M, C), as `Nearest` has it, averaged over the places."""
    means = places.float().mean(1, keepdim=True)
    directions = F.normalize(places.float() - means, dim=2).to(places.dtype)
    rows = F.normalize(maps.permute(0, 2, 3, 1).flatten(1, 2).float() - means, dim=2)
    return torch.stack([1 - _greatest_cosines(*each).mean() for each in zip(rows, directions)])


def _greatest_cosines(rows: Tensor, directions: Tensor) -> Tensor:
    """(P,), float32, of rows (P, C) with the directions (M, C), both of length 1."""
    with torch.no_grad():
        given = rows.to(directions.dtype)
        best = torch.cat([(part @ directions.T).argmax(1) for part in given.split(_ROWS)])
    return (rows * directions[best].float()).sum(1)


def some_places(maps: Tensor, count: int) -> Tensor:
    """(N, M, C) features at `count` places, or all, of maps (N, C, h, w): drawn at random, always the
    same."""
    order = torch.randperm(maps[0, 0].numel(), generator=_always_the_same(), device="cpu")
    return maps.flatten(2).index_select(2, order[:count].to(maps.device)).mT.contiguous()


def add_up(parts: Iterable[Sums]) -> Sums:
    """The sums of all parts."""
    total: Sums = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total
