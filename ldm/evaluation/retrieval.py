"""Whose result is it? Each result is compared with every painting and every photo of the run: its
own should be the nearest.

A loss tells how near a result is to its painting; these tell whether it is nearer to it than to the
others, which a result in a general "painted" manner is not. The network that judges had no part in
the making.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.evaluation.efficientnet import EfficientNetLite0
from ldm.modules.diffusionmodules.util import sum_of

STYLE_STAGES = (0, 1, 2, 3, 5)
CONTENT_STAGES = (3, 5)
LAST_STAGE = 5
RANKS = ("style_rank", "content_rank")


class Features(NamedTuple):
    """What is compared of N pictures."""

    grams: list[Tensor]  # (N, C, C) of each of STYLE_STAGES, float32
    layouts: list[Tensor]  # (N, C * H * W) of each of CONTENT_STAGES, of length 1


class Retrieval:
    """Compares results with all paintings and all photos of a run, given in batches (N, 3, H, W) in
    [-1, 1], of one size."""

    def __init__(self, judge: EfficientNetLite0, contents: Iterable[Tensor], styles: Iterable[Tensor]):
        self.judge = judge
        self.layouts = [
            torch.cat(stage) for stage in zip(*(self.features(batch).layouts for batch in contents))
        ]
        self.grams = [torch.cat(stage) for stage in zip(*(self.features(batch).grams for batch in styles))]

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Features:
        """The Gram matrices are means over positions. Layouts are without each channel's mean and
        contrast, which are style."""
        maps = self.judge(pictures.to(next(self.judge.parameters()).device))
        flat = [maps[stage].flatten(2) for stage in STYLE_STAGES]
        layouts = [F.normalize(F.instance_norm(maps[stage]).flatten(1)) for stage in CONTENT_STAGES]
        return Features([channels @ channels.mT / channels.shape[2] for channels in flat], layouts)

    def compare(self, results: Tensor) -> tuple[Tensor, Tensor]:
        """(style distances (N, paintings), content distances (N, photos)) of N results, on the CPU.

        Style: squared differences of Gram matrices as a share of the painting's own, summed over
        stages. Content: 1 less the cosine of the angle between layouts, the mean over stages.
        """
        features = self.features(results)
        style = sum_of(
            (mine[:, None] - theirs).square().sum(dim=(2, 3)) / theirs.square().sum(dim=(1, 2))
            for mine, theirs in zip(features.grams, self.grams)
        )
        cosines = sum_of(mine @ theirs.mT for mine, theirs in zip(features.layouts, self.layouts))
        content = 1 - cosines / len(CONTENT_STAGES)
        return style.cpu(), content.cpu()


def standardised(distances: Tensor) -> Tensor:
    """Distances (results, paintings) in deviations from each painting's mean over all results.

    Some paintings, of plain colours or average texture, are nearer to everything than others:
    unlike this, they would be everyone's nearest.
    """
    std, mean = torch.std_mean(distances, dim=0, correction=0)
    return (distances - mean) / std.clamp(min=1e-12)


def ranks(distances: Tensor, own: Sequence[int]) -> list[int]:
    """Of each row (N, M), which place the distance at its index `own` takes among all: 1 is the
    nearest, and equal ones go first."""
    mine = distances.gather(1, torch.tensor(own)[:, None])
    return (distances <= mine).sum(dim=1).tolist()
