"""Parts of a picture whose features are held at once, so that one of any size can be judged as a
whole."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

STRIDE = 16  # pixels to a position of the deepest layer: windows begin and end at multiples of it
HALO = 64  # pixels around a window that its features see: relu5_1 looks 66 pixels far
WINDOW = 768  # side of the largest part of a picture whose features are held at once


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
