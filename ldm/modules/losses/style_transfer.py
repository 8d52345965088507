"""Losses by VGG16 features: of reconstructions, and of style transfer (what is kept of the content,
what is taken of the style).

Pictures are (N, 3, H, W) in [-1, 1]. Before VGG16 they go through LPIPS's scaling layer: [0, 1]
less the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225), which is what torchvision's
VGG16 and the bundled one take.
"""

from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import spatial_std_mean, sum_of
from ldm.modules.losses.energy import correlation, moments_with, photo_features
from ldm.modules.losses.lpips import ScalingLayer, teacher_file, vgg16
from ldm.modules.losses.paint import PLACE_LAYERS, some_places, unlikeness
from ldm.modules.losses.paint_features import STYLE_LAYERS, PaintFeatures, mean_gram

LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
CONTENT_LAYERS = ("relu3_1", "relu4_1")
PLACES = {f"places {name}": name for name in PLACE_LAYERS}  # what they are called -> their layers
_PLACES = 512  # of a painting that others are compared with: 0.4 MB of each layer
_TINY = 1e-6
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
        """Pictures (N, 3, H, W) in [-1, 1] to {layer: (N, C, h, w)} of LAYERS."""
        x, maps = self.scaling_layer(pictures), {}
        rest: nn.Module = nn.Identity()  # what of a slice comes after its first activation
        for name, layers in zip(LAYERS, self.net.slices):
            first = 1 + next(i for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU))
            maps[name] = x = layers[:first](rest(x))
            rest = layers[first:]
        return maps


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """(N,) in [0, 2]: 1 less the cosine of the angle between whole maps (N, C, H, W), each channel
    normalised first.

    Normalised over positions, a channel keeps where things are and loses its mean and contrast,
    which are style.
    """
    return (1 - F.cosine_similarity(F.instance_norm(a).flatten(1), F.instance_norm(b).flatten(1))).clamp(
        min=0
    )


class VggLoss(nn.Module):
    """The base of losses by these features. `vgg_ckpt_path`: a file of VGG16's weights, by default
    the bundled one."""

    def __init__(self, vgg_ckpt_path: str | None = None):
        super().__init__()
        self.vgg_ckpt_path = vgg_ckpt_path
        self.features = VggFeatures(vgg16())
        self.requires_grad_(False)

    def load_weights(self) -> None:
        """Read the VGG16 weights, unless a checkpoint has brought them. Raises UserError where they
        cannot be had."""
        if not self.features.net.has_weights:
            self.features.net.load_weights(teacher_file(self.vgg_ckpt_path))


class FeatureLoss(VggLoss):
    """Perceptual distance of pictures and their reconstructions, (N, 1, 1, 1): the L1 distance of
    features, place by place, and `style_weight` times that of their means and deviations, which is
    where brush work and canvas show.

    Of each layer the share of its mean activation in the whole batch, averaged over layers: were it
    each picture's own, flat pictures would count most, and their flatness would be filled with a
    pattern.
    """

    def __init__(self, vgg_ckpt_path: str | None = None, style_weight: float = 0.5):
        super().__init__(vgg_ckpt_path)
        self.style_weight = style_weight

    def forward(self, x: Tensor, reconstructions: Tensor) -> Tensor:
        """(N, 1, 1, 1) of pictures (N, 3, H, W) in [-1, 1] and their reconstructions."""
        wanted, got = (
            {name: maps.float() for name, maps in self.features(pictures).items()}
            for pictures in (x, reconstructions)
        )
        return sum(self._distance(wanted[name], got[name]) for name in LAYERS)[:, None, None, None] / len(
            LAYERS
        )

    def _distance(self, wanted: Tensor, got: Tensor) -> Tensor:
        """(N,) of one layer."""
        places = (wanted - got).abs().mean(dim=(1, 2, 3))
        style = sum(
            (p - q).abs().mean(1)
            for p, q in zip(*(spatial_std_mean(maps, unbiased=False) for maps in (wanted, got)))
        )
        return (places + self.style_weight * style) / wanted.mean().clamp(min=1e-3)


class StyleTransferLoss(nn.Module):
    """Content and style loss of painted pictures by the features that lead the fine look, each
    picture against givens of its own.

    `vgg_ckpt_path`: a file of VGG16's weights, by default the bundled one; `load_weights` reads it,
    before anything else.
    layer_weights: of the style loss, by layer.
    """

    def __init__(self, vgg_ckpt_path: str | None = None, layer_weights: Mapping[str, float] | None = None):
        super().__init__()
        self.vgg_ckpt_path, self.layer_weights = (
            vgg_ckpt_path,
            dict(layer_weights or dict.fromkeys(STYLE_LAYERS, 1.0)),
        )
        self.features: PaintFeatures | None = None

    def load_weights(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """Read VGG16's weights, to compute in `dtype`. Raises UserError where they cannot be
        had."""
        net = vgg16()
        net.load_weights(teacher_file(self.vgg_ckpt_path))
        self.features = PaintFeatures(net, dtype).to(device)

    def content_of(self, photos: Tensor) -> dict[str, Tensor]:
        """What photos (N, 3, H, W) ask for: {layer: (N, C, h, w)}, normalised."""
        return photo_features(self.features, photos)

    @torch.no_grad()
    def style_of(self, paintings: Tensor) -> dict[str, Tensor]:
        """What paintings (N, 3, H, W) ask for: {layer: (N, C * (C + 1) / 2)} Gram matrices as
        vectors, and by the names of PLACES (N, M, C) features of some places."""
        maps = self.features(paintings)
        grams = {name: as_vector(mean_gram(value)) for name, value in maps.items()}
        return grams | {name: some_places(maps[layer], _PLACES) for name, layer in PLACES.items()}

    def forward(
        self, painted: Tensor, contents: Mapping[str, Tensor], styles: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(content loss in [0, 2], style loss in [0, 1], places loss in [0, 2]), (N,) each, of painted
        pictures of the contents' size.

        Content: 1 less the mean correlation of features. Style: per layer the squared distance of
        Gram matrices as a share of the sum of both squares, so that no painting, however strong its
        contrasts, drowns the others; averaged by weight. Places: how unlike each place is to all of the
        painting's (see `ldm.modules.losses.paint`); 0 where `styles` has none of these.
        """
        maps = self.features(painted)
        style = sum_of(
            weight * gram_distance(mean_gram(maps[name]), as_matrices(styles[name]))
            for name, weight in self.layer_weights.items()
        )
        losses = [
            1 - correlation(moments_with(maps[name], wanted), wanted) for name, wanted in contents.items()
        ]
        content = sum_of(losses) / len(losses)
        unlike = [unlikeness(maps[layer], styles[name]) for name, layer in PLACES.items() if name in styles]
        places = sum_of(unlike) / len(unlike) if unlike else torch.zeros_like(content)
        return content, style / sum(self.layer_weights.values()), places


def as_vector(grams: Tensor) -> Tensor:
    """(N, C * (C + 1) / 2) of symmetric matrices (N, C, C): half of the numbers, the same squared
    distances."""
    rows, columns = torch.triu_indices(grams.shape[1], grams.shape[1], device=grams.device)
    return grams[:, rows, columns] * torch.where(rows == columns, 1.0, 2**0.5)


def as_matrices(vectors: Tensor) -> Tensor:
    """The symmetric matrices (N, C, C), float32, of `as_vector`'s vectors.

    A gradient by matrices is a sum; one by vectors would be scattered, which GPUs do slowly.
    """
    channels = int((2 * vectors.shape[1]) ** 0.5)
    at = torch.arange(channels, device=vectors.device)
    first, second = torch.minimum(at, at[:, None]), torch.maximum(at, at[:, None])
    place = first * (2 * channels - first - 1) // 2 + second
    return vectors[:, place].float() * torch.where(first == second, 1.0, 0.5**0.5)


def gram_distance(a: Tensor, b: Tensor) -> Tensor:
    """(N,) in [0, 1] for Gram matrices (N, C, C)."""
    sums = [value.square().sum(dim=(1, 2)) for value in (a - b, a, b)]
    return sums[0] / (sums[1] + sums[2]).clamp_min(_TINY)


def share_of(distances: Tensor, untouched: Tensor) -> Tensor:
    """Distances of painted pictures (N,) as a share of the untouched contents' (N,): half of that
    pair's, half of the average pair's, so that a content much like its style does not outweigh the
    rest."""
    return distances / ((untouched + untouched.mean()) / 2)


def palette_distance(a: Tensor, b: Tensor, colors: int = 2048, directions: int = 16) -> Tensor:
    """(N,) how far the colours of pictures a are from those of pictures b, of any size, wherever
    they are in the picture.

    The sliced 2-Wasserstein distance, squared (Rabin et al. 2011): of that many random colours of
    each picture along random directions; 0 where both have the same colours equally often. The axes
    are luma and, counted three times as far, the two of chroma (BT.601): by red, green and blue,
    light and dark are nearly all of the distance, and a wrong hue nearly none.
    """
    along = F.normalize(torch.randn(directions, 3, device=a.device), dim=1) @ _opponent_axes(a.device)
    values = [along @ _some_colors(x, colors) for x in (a, b)]
    sorted_a, sorted_b = (v.sort(dim=2).values for v in values)
    return (sorted_a - sorted_b).square().mean(dim=(1, 2))


def _some_colors(x: Tensor, count: int) -> Tensor:
    """(N, 3, count) random colours of pictures, of the same places in all."""
    places = torch.randint(x[0, 0].numel(), (count,), device=x.device)
    return x.float().flatten(2).index_select(2, places)


@cache  # what is copied to a GPU anew at every step makes it wait
def _opponent_axes(device: torch.device) -> Tensor:
    """(3, 3) of red, green and blue."""
    with torch.inference_mode(False):  # training may use it, too
        return torch.tensor(_OPPONENT, device=device)


PERIODS = 4.0, 24.0  # of patterns, in pixels: from single dabs of paint to large strokes
_MARGIN = 0.5  # by chance a smoothed spectrum varies by about half of this


def regularity(pictures: Tensor, side: int) -> Tensor:
    """(N, F): how much stronger each frequency and direction of patterns is in pictures (N, 3, H,
    W) than the others of its frequency.

    By the logarithm of the smoothed power spectrum of luma, averaged over the windows of `side`
    pixels that the picture divides into. A regular weave stands out; strokes in all directions do
    not.
    """
    # No matrix product, which autocast would round.
    luma = (pictures.float() * _opponent_axes(pictures.device)[0, :, None, None]).sum(dim=1)
    windows = luma.unfold(1, side, side).unfold(2, side, side).flatten(1, 2)
    hann = torch.hann_window(side, device=luma.device)
    power = (
        torch.fft.fft2((windows - windows.mean(dim=(2, 3), keepdim=True)) * hann * hann[:, None])
        .abs()
        .square()
        .mean(dim=1)
    )
    smooth = F.avg_pool2d(F.pad(power[:, None], (2, 2, 2, 2), mode="circular"), 5, stride=1)
    places, ring, sizes = _rings(side, luma.device)
    logs = (smooth.flatten(1).index_select(1, places) + 0.01).log()
    means = logs.new_zeros(len(logs), side).index_add(1, ring, logs) / sizes
    return logs - means.index_select(1, ring)


@cache
def _rings(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of a spectrum of side x side: the places (F,) of the frequencies of patterns, the ring that
    each is in, and the sizes (side,) of the rings."""
    with torch.inference_mode(False):  # training may use them, too
        along = torch.fft.fftfreq(side)
        frequency = (along.square() + along[:, None].square()).sqrt().flatten()
        places = ((frequency >= 1 / PERIODS[1]) & (frequency <= 1 / PERIODS[0])).nonzero()[:, 0]
        ring = (frequency[places] * side).round().long()
        sizes = torch.bincount(ring, minlength=side).clamp(min=1)
        return places.to(device), ring.to(device), sizes.to(device)


def pattern_loss(painted: Tensor, contents: Tensor, styles: Tensor) -> Tensor:
    """(N,) squared excess of `regularity` over that of both the content and the style, which may
    well be striped themselves.

    Statistics of features do not tell a regular weave from brush work; Liu et al. (2016) mend it by
    spectra, too. Pictures (N, 3, H, W), of any size of at least 16 pixels; painted ones and their
    contents are of one size.
    """
    side = min(*painted.shape[2:], *styles.shape[2:])
    with torch.no_grad():
        natural = torch.maximum(regularity(contents, side), regularity(styles, side))
    return (regularity(painted, side) - natural - _MARGIN).clamp(min=0).square().mean(dim=1)


CELLS = 16  # along each side of a picture, of which a layout consists


def layout_loss(painted: Tensor, contents: Tensor, photos: int) -> Tensor:
    """(N,) in [0, 1]: how much of what was made of each picture is where it is in the pictures of
    other photos, too, averaged over these; 0 where there is one photo alone.

    A frame, or one arrangement of patches over whatever photo, suits any painting's Gram matrices.
    What a layout has in common with another is told by linear centred kernel alignment (Kornblith et
    al. 2019) of the difference from the photo, in cells: whatever the colours, and less what a change
    of contrast makes of the photo. Pictures (N, 3, H, W); rows are turns of so many `photos`, one
    after the other.
    """
    painted, contents = (F.adaptive_avg_pool2d(x.float(), CELLS).flatten(2) for x in (painted, contents))
    photo = contents - contents.mean(2, keepdim=True)
    change = painted - contents
    change = change - change.mean(2, keepdim=True)
    along = (change * photo).sum(2, keepdim=True) / photo.square().sum(2, keepdim=True).clamp_min(_TINY)
    change = change - along * photo
    # Autocast would round the products.
    with torch.autocast(painted.device.type, enabled=False):
        kernels = F.normalize((change.mT @ change).flatten(1), dim=1)
        alike = kernels @ kernels.T
    photo_of = torch.arange(len(painted), device=painted.device) % photos
    others = (photo_of != photo_of[:, None]).float()
    return (alike * others).sum(1) / others.sum(1).clamp_min(1)


def moments_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """(N,) squared differences of one layer's means and deviations (N, C), each averaged over
    channels."""
    return sum_of(((p - q) ** 2).mean(1) for p, q in zip(a, b, strict=True))
