"""Colours of results against those of their photos and paintings, and how much alike the results of
one photo are.

Pictures are (N, 3, H, W) in [-1, 1], on the CPU.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.evaluation.metrics import luminance
from ldm.modules.losses.style_transfer import palette_distance

COLOUR_METRICS = ("palette_distance", "palette_untouched", "chroma_bw")
BLACK_AND_WHITE = 4.0  # of mean chroma, in levels of 255; scans of prints and drawings are seldom quite grey
_BLUR = 9  # pixels; finer than that is texture
_PLAIN = 1e-4  # deviation of luma, of 1: less is rounding, which is much the same in all pictures


def palettes_apart(pictures: Tensor, others: Tensor) -> Tensor:
    """(N,) `palette_distance` of pictures in pairs. The same pictures give the same number: the
    random draws are always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return palette_distance(pictures, others, colors=4096, directions=32)


def chroma(pictures: Tensor) -> Tensor:
    """(N,) mean over pixels of the length of (Cb, Cr) of ITU-R 601, in levels from 0 (grey) to
    about 130."""
    levels, luma = pictures * 127.5 + 127.5, luminance(pictures)[:, 0] * 255
    cb, cr = (levels[:, 2] - luma) / 1.772, (levels[:, 0] - luma) / 1.402
    return (cb.square() + cr.square()).sqrt().mean(dim=(1, 2))


class Colours:
    """The colours of results against these styles (S, 3, H, W)."""

    def __init__(self, styles: Tensor):
        self.styles, self.grey = styles, chroma(styles) < BLACK_AND_WHITE

    def untouched(self, content: Tensor) -> Tensor:
        """(S,) how far one photo's palette (1, 3, H, W) is from each style's before anything is
        painted."""
        return palettes_apart(content.expand_as(self.styles), self.styles)

    def measure(
        self, results: Tensor, untouched: Tensor, styles: Sequence[int]
    ) -> list[dict[str, float | None]]:
        """COLOUR_METRICS of each of N results of one content in the styles of these indices. Chroma
        is that of results of black and white paintings only."""
        styles = list(styles)
        columns = (palettes_apart(results, self.styles[styles]), untouched[styles], chroma(results))
        rows = [dict(zip(COLOUR_METRICS, row)) for row in zip(*(column.tolist() for column in columns))]
        return [row if self.grey[style] else row | {"chroma_bw": None} for row, style in zip(rows, styles)]


class Alike:
    """How much alike the textures of pictures are, which are added in batches: the mean correlation
    of each two."""

    def __init__(self) -> None:
        self.total = torch.zeros(())
        self.count, self.own = 0, 0.0

    def add(self, pictures: Tensor) -> None:
        """Pictures (N, 3, H, W) of one size."""
        luma = luminance(pictures)
        # The mean of what of the window is within the picture.
        fine = luma - F.avg_pool2d(luma, _BLUR, stride=1, padding=_BLUR // 2, count_include_pad=False)
        fine = (fine - fine.mean(dim=(1, 2, 3), keepdim=True)).flatten(1)
        fine = F.normalize(fine, eps=_PLAIN * fine.shape[1] ** 0.5)
        self.total, self.own, self.count = (
            self.total + fine.sum(0),
            self.own + fine.square().sum().item(),
            self.count + len(fine),
        )

    def value(self) -> float | None:
        """1: one texture in all; 0: nothing in common; None for fewer than two pictures. Plain
        surfaces have no texture and count 0."""
        if self.count < 2:
            return None
        # |a + b + ...|^2 is the sum over all pairs, each twice, and over each with itself.
        return (self.total.square().sum().item() - self.own) / (self.count * (self.count - 1))
