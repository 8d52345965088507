"""Overlapping tiles: work on a large picture or latent piece by piece, with the pieces blended
where they overlap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

OVERLAP = 0.25  # of a tile's side
UNCUT = 1.5  # a side of up to that many tiles stays whole: cutting it would cost more than it gives

Tile = tuple[slice, slice]  # its rows and columns


@dataclass(frozen=True)
class Tiling:
    """How to cut `height` x `width` positions into tiles of `size` positions a side, all of the
    same shape."""

    height: int
    width: int
    size: int

    @property
    def tiles(self) -> list[Tile]:
        """Evenly spread, the last ones ending with the picture."""
        return [
            (rows, columns)
            for rows in _spans(self.height, self.size)
            for columns in _spans(self.width, self.size)
        ]


def _spans(length: int, size: int) -> list[slice]:
    if length <= UNCUT * size:
        return [slice(0, length)]
    stride = max(1, size - round(OVERLAP * size))
    count = -(-(length - size) // stride) + 1
    starts = [round(i * (length - size) / (count - 1)) for i in range(count)]
    return [slice(start, start + size) for start in starts]


def mirrored_out(x: Tensor, margin: int) -> Tensor:
    """Pictures or masks (N, C, H, W) with a margin in which they are mirrored, narrower than the
    picture."""
    return F.pad(x, (margin,) * 4, mode="reflect")


def cut(x: Tensor, tiles: Sequence[Tile]) -> Tensor:
    """The tiles of x (N, C, H, W), one below the other: (len(tiles) * N, C, h, w)."""
    return (
        torch.cat([x[:, :, rows, columns] for rows, columns in tiles])
        if len(tiles) > 1
        else x[:, :, tiles[0][0], tiles[0][1]]
    )


def blend(
    function: Callable[[Sequence[Tile]], Tensor], tiling: Tiling, at_once: int = 1, scale: int = 1
) -> Tensor:
    """What `function` makes of the tiles, `at_once` at a time as `cut` gives them, put together:
    (N, C, scale * H, scale * W).

    Where tiles overlap, each counts less the nearer its own edge is, so that there is no seam.
    """
    tiles = tiling.tiles
    if len(tiles) == 1:
        return function(tiles)
    total = weights = torch.empty(0)  # until the first part tells their shape
    for some in (tiles[i : i + at_once] for i in range(0, len(tiles), at_once)):
        for (rows, columns), part in zip(some, function(some).chunk(len(some))):
            if not total.numel():
                total = part.new_zeros(*part.shape[:2], tiling.height * scale, tiling.width * scale)
                weights = torch.zeros_like(total[:1, :1])
            place = (
                ...,
                slice(rows.start * scale, rows.stop * scale),
                slice(columns.start * scale, columns.stop * scale),
            )
            weight = _ramp(part.shape[2], part)[:, None] * _ramp(part.shape[3], part)
            total[place] += weight * part
            weights[place] += weight
    return total / weights


def _ramp(length: int, like: Tensor) -> Tensor:
    """(length,) 1 in the middle, falling to almost 0 over the overlap at both ends."""
    reach = max(1, round(OVERLAP * length))
    from_edge = torch.arange(length, device=like.device, dtype=torch.float32) + 0.5
    return torch.minimum(from_edge, length - from_edge).div(reach).clamp(max=1.0)
