"""Losses by VGG16 features: of reconstructions, and of style transfer (what is kept of the content, what is taken of the style).

Pictures are (N, 3, H, W) in [-1, 1]. Before VGG16 they go through LPIPS's scaling layer: [0, 1] less the mean
(0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225), which is what torchvision's VGG16 and the bundled one take.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.losses.lpips import ScalingLayer, teacher_file, vgg16

LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
CONTENT_LAYERS = ("relu3_1", "relu4_1")
# Y, 3 Cb, 3 Cr of red, green and blue
_OPPONENT = ((0.299, 0.587, 0.114), (-0.507, -0.993, 1.5), (1.5, -1.257, -0.243))


class VggFeatures(nn.Module):
    """The first activation of each of VGG16's first four slices, which the style losses use.

    forward: pictures, H and W >= 16, to {layer: (N, C, H', W')}.
    """

    def __init__(self, net: vgg16):
        super().__init__()
        self.scaling_layer, self.net = ScalingLayer(), net

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        x, maps = self.scaling_layer(pictures), {}
        rest: nn.Module = nn.Identity()  # what of a slice comes after its first activation
        for name, layers in zip(LAYERS, self.net.slices):
            first = 1 + next(i for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU))
            maps[name] = x = layers[:first](rest(x))
            rest = layers[first:]
        return maps


def mean_and_std(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) each, of the values of a channel at all positions of (N, C, H, W); the standard deviation divides by H*W."""
    std, mean = torch.std_mean(maps, dim=(2, 3), correction=0)
    return mean, std


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """(N,) in [0, 2]: 1 less the cosine of the angle between whole maps (N, C, H, W), each channel normalised first.

    Normalised over positions, a channel keeps where things are and loses its mean and contrast, which are style.
    """
    return (1 - F.cosine_similarity(F.instance_norm(a).flatten(1), F.instance_norm(b).flatten(1))).clamp(min=0)


class VggLoss(nn.Module):
    """The base of losses by these features. `vgg_ckpt_path`: a file of VGG16's weights, by default the bundled one."""

    def __init__(self, vgg_ckpt_path: str | None = None):
        super().__init__()
        self.vgg_ckpt_path = vgg_ckpt_path
        self.features = VggFeatures(vgg16())
        self.requires_grad_(False)

    def load_weights(self) -> None:
        """Read the VGG16 weights, unless a checkpoint has brought them. Raises UserError where they cannot be had."""
        if not self.features.net.has_weights:
            self.features.net.load_weights(teacher_file(self.vgg_ckpt_path))


class FeatureLoss(VggLoss):
    """Perceptual distance of pictures and their reconstructions, (N, 1, 1, 1): the L1 distance of features, place by
    place, and `style_weight` times that of their means and deviations, which is where brush work and canvas show.

    Of each layer the share of its mean activation in the whole batch, averaged over layers: were it each picture's own,
    flat pictures would count most, and their flatness would be filled with a pattern.
    """

    def __init__(self, vgg_ckpt_path: str | None = None, style_weight: float = 0.5):
        super().__init__(vgg_ckpt_path)
        self.style_weight = style_weight

    def forward(self, x: Tensor, reconstructions: Tensor) -> Tensor:
        wanted, got = ({name: maps.float() for name, maps in self.features(pictures).items()} for pictures in (x, reconstructions))
        return sum(self._distance(wanted[name], got[name]) for name in LAYERS)[:, None, None, None] / len(LAYERS)

    def _distance(self, wanted: Tensor, got: Tensor) -> Tensor:
        """(N,) of one layer."""
        places = (wanted - got).abs().mean(dim=(1, 2, 3))
        style = sum((p - q).abs().mean(1) for p, q in zip(mean_and_std(wanted), mean_and_std(got)))
        return (places + self.style_weight * style) / wanted.mean().clamp(min=1e-3)


Moments = Mapping[str, tuple[Tensor, Tensor]]  # mean and standard deviation of each of LAYERS, (N, C) each


class Traits(NamedTuple):
    """What the losses of style transfer compare of N pictures, in float32."""

    maps: dict[str, Tensor]  # of CONTENT_LAYERS, (N, C, H', W')
    moments: Moments

    def rows(self, which: Tensor) -> "Traits":
        """Those of pictures `which`, (M,) indices."""
        moments = {name: (mean[which], std[which]) for name, (mean, std) in self.moments.items()}
        return Traits({name: maps[which] for name, maps in self.maps.items()}, moments)


class TraitFeatures(VggFeatures):
    """VGG16's features, taken down to what the losses need in one piece: compiled, the large maps are never written as float32."""

    def forward(self, pictures: Tensor) -> Traits:
        maps = {name: value.float() for name, value in super().forward(pictures).items()}
        return Traits({name: maps[name] for name in CONTENT_LAYERS}, {name: mean_and_std(value) for name, value in maps.items()})


class StyleTransferLoss(VggLoss):
    """Content and style loss of painted pictures, measured as `scripts/evaluate.py` measures them."""

    def __init__(self, vgg_ckpt_path: str | None = None):
        super().__init__(vgg_ckpt_path)
        self.features = TraitFeatures(self.features.net)

    def forward(self, painted: Tensor, contents: Traits, styles: Traits) -> tuple[Tensor, Tensor]:
        """(content loss, style loss), (N,) each, of painted pictures against the features of contents and styles.

        Content: the mean cosine distance of normalised features, contents of the size of the pictures. Style: the squared
        differences of means and deviations, summed over layers, as a share of the content's own.
        """
        got = self.features(painted)
        content = sum(cosine_distance(got.maps[name], contents.maps[name]) for name in CONTENT_LAYERS) / len(CONTENT_LAYERS)
        with torch.no_grad():
            untouched = statistics_distance(contents.moments, styles.moments)
        return content, share_of(statistics_distance(got.moments, styles.moments), untouched)


def share_of(distances: Tensor, untouched: Tensor) -> Tensor:
    """Distances of painted pictures (N,) as a share of the untouched contents' (N,): half of that pair's, half of the
    average pair's, so that a content much like its style does not outweigh the rest."""
    return distances / ((untouched + untouched.mean()) / 2)


def palette_distance(a: Tensor, b: Tensor, colors: int = 2048, directions: int = 16) -> Tensor:
    """(N,) how far the colours of pictures a are from those of pictures b, of any size, wherever they are in the picture.

    The sliced 2-Wasserstein distance, squared (Rabin et al. 2011): of that many random colours of each picture along random
    directions; 0 where both have the same colours equally often. The axes are luma and, counted three times as far, the
    two of chroma (BT.601): by red, green and blue, light and dark are nearly all of the distance, and a wrong hue nearly none.
    """
    along = F.normalize(torch.randn(directions, 3, device=a.device), dim=1) @ torch.tensor(_OPPONENT, device=a.device)
    values = [along @ x.float().flatten(2)[..., torch.randint(x[0, 0].numel(), (colors,), device=x.device)] for x in (a, b)]
    sorted_a, sorted_b = (v.sort(dim=2).values for v in values)
    return (sorted_a - sorted_b).square().mean(dim=(1, 2))


PERIODS = 4.0, 24.0  # of patterns, in pixels: from single dabs of paint to large strokes
_MARGIN = 0.5  # by chance a smoothed spectrum varies by about half of this


def regularity(pictures: Tensor, side: int) -> Tensor:
    """(N, F): how much stronger each frequency and direction of patterns is in pictures (N, 3, H, W) than the others of its frequency.

    By the logarithm of the smoothed power spectrum of luma, averaged over the windows of `side` pixels that the picture divides
    into. A regular weave stands out; strokes in all directions do not.
    """
    # No matrix product, which autocast would round.
    luma = (pictures.float() * torch.tensor(_OPPONENT[0], device=pictures.device)[:, None, None]).sum(dim=1)
    windows = luma.unfold(1, side, side).unfold(2, side, side).flatten(1, 2)
    hann = torch.hann_window(side, device=luma.device)
    power = torch.fft.fft2((windows - windows.mean(dim=(2, 3), keepdim=True)) * hann * hann[:, None]).abs().square().mean(dim=1)
    smooth = F.avg_pool2d(F.pad(power[:, None], (2, 2, 2, 2), mode="circular"), 5, stride=1)[:, 0]
    along = torch.fft.fftfreq(side, device=luma.device)
    frequency = (along.square() + along[:, None].square()).sqrt()
    patterns = (frequency >= 1 / PERIODS[1]) & (frequency <= 1 / PERIODS[0])
    logs, ring = (smooth[:, patterns] + 0.01).log(), (frequency[patterns] * side).round().long()
    sums = logs.new_zeros(len(logs), side).index_add(1, ring, logs)
    return logs - (sums / torch.bincount(ring, minlength=side).clamp(min=1))[:, ring]


def pattern_loss(painted: Tensor, contents: Tensor, styles: Tensor) -> Tensor:
    """(N,) squared excess of `regularity` over that of both the content and the style, which may well be striped themselves.

    Statistics of features do not tell a regular weave from brush work; Liu et al. (2016) mend it by spectra, too. Pictures (N, 3, H, W),
    of any size of at least 16 pixels; painted ones and their contents are of one size.
    """
    side = min(*painted.shape[2:], *styles.shape[2:])
    with torch.no_grad():
        natural = torch.maximum(regularity(contents, side), regularity(styles, side))
    return (regularity(painted, side) - natural - _MARGIN).clamp(min=0).square().mean(dim=1)


def statistics_distance(a: Moments, b: Moments) -> Tensor:
    """(N,) style loss of AdaIN (Huang & Belongie 2017): `moments_distance`, summed over layers."""
    return sum(moments_distance(a[name], b[name]) for name in LAYERS)


def moments_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """(N,) squared differences of one layer's means and deviations (N, C), each averaged over channels."""
    return sum(((p - q) ** 2).mean(1) for p, q in zip(a, b, strict=True))
