"""How far a result is from its content and its style: VGG16 features, structural similarity, LPIPS.

Pictures are (N, 3, H, W) in [-1, 1].

Losses of features grow with the features' size, so `content_vgg`, `style_mean_std` and `gram` of
two runs compare only if both read the same weights file.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.modules.diffusionmodules.util import spatial_std_mean, sum_of
from ldm.modules.losses.lpips import LPIPS, teacher_file, vgg16
from ldm.modules.losses.style_transfer import (
    CONTENT_LAYERS,
    LAYERS,
    VggFeatures,
    cosine_distance,
    moments_distance,
)

METRICS = ("content_cosine", "content_vgg", "style_mean_std", "style_share", "gram", "ssim", "lpips")


class Statistics(NamedTuple):
    """What style losses keep of N pictures at one layer of C channels."""

    std: Tensor  # (N, C)
    mean: Tensor  # (N, C)
    gram: Tensor  # (N, C, C)


def gram_matrix(maps: Tensor) -> Tensor:
    """(N, C, C) products of every two channels of (N, C, H, W), summed over positions, over C*H*W
    (Gatys et al. 2016)."""
    flat = maps.flatten(2)
    return flat @ flat.mT / flat[0].numel()


def statistics(maps: Mapping[str, Tensor]) -> list[Statistics]:
    """One for each layer."""
    return [
        Statistics(*spatial_std_mean(maps[name], unbiased=False), gram_matrix(maps[name])) for name in LAYERS
    ]


def mean_std_loss(a: Sequence[Statistics], b: Sequence[Statistics]) -> Tensor:
    """(N,) style loss of AdaIN (Huang & Belongie 2017): squared differences of means and of
    deviations, summed over layers."""
    return sum_of(moments_distance((x.mean, x.std), (y.mean, y.std)) for x, y in zip(a, b, strict=True))


def gram_loss(a: Sequence[Statistics], b: Sequence[Statistics]) -> Tensor:
    """(N,) mean squared differences of Gram matrices, summed over layers."""
    return sum_of(((x.gram - y.gram) ** 2).mean((1, 2)) for x, y in zip(a, b, strict=True))


def luminance(pictures: Tensor) -> Tensor:
    """(N, 1, H, W) in [0, 1], weighted as in ITU-R 601."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=pictures.device)[:, None, None]
    return ((pictures + 1) / 2 * weights).sum(1, keepdim=True)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(N,) structural similarity (Wang et al. 2004) of the luminance of pictures: 1 for equal
    ones."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes a second to import

    similarity: Any = structural_similarity_index_measure(
        luminance(a), luminance(b), data_range=1.0, reduction="none"
    )
    return similarity.reshape(-1)


@dataclass(frozen=True)
class Content:
    """What is needed of one content picture to measure all its results."""

    picture: Tensor  # (1, 3, H, W)
    maps: Mapping[str, Tensor]  # of the content layers
    statistics: Sequence[Statistics]


class PairMetrics:
    """All metrics of results against their contents and styles; LPIPS is not run where there is
    none."""

    def __init__(self, vgg: vgg16, lpips: LPIPS | None = None, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.features = VggFeatures(vgg).to(self.device).eval()
        self.lpips = None if lpips is None else lpips.to(self.device).eval()

    @torch.no_grad()
    def content(self, picture: Tensor) -> Content:
        """Of one picture (1, 3, H, W)."""
        picture = picture.to(self.device)
        maps = self.features(picture)
        return Content(picture, {name: maps[name] for name in CONTENT_LAYERS}, statistics(maps))

    @torch.no_grad()
    def styles(self, pictures: Sequence[Tensor]) -> list[Statistics]:
        """Of all style pictures, given in batches."""
        batches = [statistics(self.features(batch.to(self.device))) for batch in pictures]
        return [Statistics(*map(torch.cat, zip(*layer))) for layer in zip(*batches)]

    @torch.no_grad()
    def measure(
        self, results: Tensor, content: Content, styles: Sequence[Statistics]
    ) -> list[dict[str, float | None]]:
        """METRICS of each of N results of one content; `styles` has what each was painted with
        (N)."""
        results = results.to(self.device)
        columns = {
            "ssim": ssim(results, content.picture.expand_as(results)).tolist(),
            **self._vgg_metrics(results, content, styles),
        }
        if self.lpips is not None:
            columns["lpips"] = self.lpips(results, content.picture).flatten().tolist()
        return [
            {name: columns[name][i] if name in columns else None for name in METRICS}
            for i in range(len(results))
        ]

    def _vgg_metrics(
        self, results: Tensor, content: Content, styles: Sequence[Statistics]
    ) -> dict[str, list[float | None]]:
        maps = self.features(results)
        stats = statistics(maps)
        distances = [
            cosine_distance(maps[name], content.maps[name].expand_as(maps[name])) for name in CONTENT_LAYERS
        ]
        losses, untouched = (mean_std_loss(s, styles).tolist() for s in (stats, content.statistics))
        return {
            "content_cosine": (sum_of(distances) / len(distances)).tolist(),
            "content_vgg": ((maps["relu4_1"] - content.maps["relu4_1"]) ** 2).mean((1, 2, 3)).tolist(),
            "style_mean_std": losses,
            # A content that has its style's statistics already has no share to speak of.
            "style_share": [loss / whole if whole else None for loss, whole in zip(losses, untouched)],
            "gram": gram_loss(stats, styles).tolist(),
        }


def chosen(styles: Sequence[Statistics], indices: Sequence[int]) -> list[Statistics]:
    """Those of some of the style pictures, which may repeat."""
    return [Statistics(*(values[list(indices)] for values in layer)) for layer in styles]


def load_vgg(path: str | Path | None = None) -> vgg16:
    """VGG16 from a file, by default the bundled one. Raises UserError."""
    net = vgg16()
    net.load_weights(teacher_file(path))
    return net.eval()


def load_lpips(linear_weights: str, vgg: vgg16, vgg_path: str | Path | None) -> LPIPS:
    """LPIPS with its linear weights from a file, or "uniform" ones, on this VGG16,
    `load_vgg(vgg_path)`. Raises UserError.

    Linear weights from a file do not fit the bundled VGG16: without a path they get torchvision's
    download for themselves.
    """
    lpips = LPIPS(None if vgg_path is None else str(vgg_path), linear_weights, use_dropout=False)
    with redirect_stdout(sys.stderr):  # torch prints that it downloads
        lpips.load_weights()
    if vgg_path is not None or linear_weights == "uniform":
        lpips.net = vgg  # the same weights: one copy will do
    return lpips.eval()
