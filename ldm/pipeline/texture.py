"""Texture: the finest strokes of a painting, laid into what was sampled in its style.

The network is told a painting's statistics, so where a photo is plain it has to make up strokes, and
what it makes up is the same weave for all. What the painting has at its most similar places is put
there in its stead, as in image analogies (Hertzmann et al. 2001): each place of the photo's latent
is matched with one of the painting's, neighbours with neighbours where that costs little, so that
strokes hang together.

Shapes: pictures (1, 3, H, W) in [-1, 1]; latents (1, C, h, w); places (n,), numbers of positions of
a painting's latent, row by row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.device import autocast
from ldm.pipeline.brush import painting_tensors
from ldm.pipeline.codec import Codec

BLUR = 2  # pixels to each side, three times over: what that takes away is the finest band
AROUND = 4  # pixels to each side over which strengths are compared
PHOTO = 3.0  # how much the photo's own lines count against the painting's strokes, by their variances
FAINT = 1e-4  # a variance: a hundredth of the way from black to white is no stroke
SHARPNESS = 0.85  # of the painting's, to which the picture's own lines come ...
SHARPER = (0.75, 2.0)  # ... by no less and no more than that, see `most_sharpened`
LONGEST = 2.5  # times its strength is the most of a stroke: more would be an outline, a scratch in a face
COHERENCE = 1.0  # of the mean distance of matches: what each neighbour that goes on is worth
REUSE = 0.1  # of that: what is lost by each place that has it already
NEAREST = 4  # similar places to choose from
OVERLAP = 2  # pixels to each side of a place's own, over which it and its neighbours fade
UNSURE = 0.1  # of the mean distance: so much nearer, a painting counts e times as much
OPAQUE = 0.9  # of the most opaque place: what is less is none of the painting
AT_ONCE = 2**24  # distances: 64 MB

Region = Sequence[tuple[Image.Image, float]]  # its paintings and their weights


@dataclass(frozen=True)
class Swatch:
    """A painting as texture is taken of it, in n places.

    patches: (n, 9 * C) what is around each place, by the latent's own deviations. usable: (n,) where
    the painting is, and counts. width: places in a row. band: (3 * side**2, n) its finest band at
    each place and OVERLAP pixels around it. strength: of that band, the root of its mean square.
    """

    patches: Tensor
    usable: Tensor
    width: int
    band: Tensor
    strength: float


class Texturer:
    """Lays texture, with a codec's latents. Paintings are kept as swatches while it is."""

    def __init__(self, codec: Codec, precision: str, side: int):
        """side: shorter side at which paintings are looked at, in pixels."""
        self.codec, self.precision, self.side = codec, precision, side
        self._swatches: dict[int, tuple[Image.Image, Swatch | None]] = {}

    @torch.no_grad()
    def lay(
        self,
        picture: Tensor,
        content: Tensor,
        regions: Sequence[Region],
        masks: Tensor | None,
        share: float,
        enlarged: float = 1.0,
    ) -> Tensor:
        """The picture, painted of the photo `content`, a `share` of the way to its paintings'
        texture. masks: (R, H, W) shares of the regions, None for a single one. enlarged: how many times as large
        the picture will be; large strokes would cover a face."""
        known = [self._known(region) for region in regions]
        if not share or not any(known):
            return picture
        # The photo's, and not the picture's own: so the matches are the same to the last, whatever
        # else is painted in the same batch.
        latent = self._encoded(content)
        everywhere = torch.ones(latent.shape[2:], device=latent.device)
        places, size = patches_of(latent, everywhere), (latent.shape[2], latent.shape[3])
        laid, most = torch.zeros_like(picture), most_sharpened(picture, self.side)
        for i, swatches in enumerate(known):
            textured = picture
            if swatches:
                strokes, strength = self._strokes(places, size, swatches)
                strokes = strokes[..., : picture.shape[2], : picture.shape[3]]
                textured = joined(picture, content, strokes, strength, most, PHOTO * enlarged)
            laid += textured if masks is None else masks[i] * textured
        return torch.lerp(picture, laid, share)

    def _known(self, region: Region) -> list[tuple[Swatch, float]]:
        swatches = [(self._swatch(painting), weight) for painting, weight in region if weight]
        return [(swatch, weight) for swatch, weight in swatches if swatch is not None]

    def _strokes(
        self, places: Tensor, size: tuple[int, int], swatches: Sequence[tuple[Swatch, float]]
    ) -> tuple[Tensor, float]:
        """((1, 3, f * h, f * w) strokes at what is most similar to the places (n, 9 * C) of `size`
        (h, w), of several paintings at each the nearest one's, their mean strength)."""
        matches = [matched(places, swatch, size) for swatch, _ in swatches]
        distances = torch.stack(
            [
                _distance(places, swatch.patches[each]).reshape(size)
                for each, (swatch, _) in zip(matches, swatches)
            ]
        )
        weights = distances.new_tensor([weight for _, weight in swatches])
        strokes, factor = torch.zeros((), device=places.device), self.codec.factor
        for share, each, (swatch, _) in zip(chosen(distances, weights), matches, swatches):
            at_pixels = F.interpolate(share[None, None], scale_factor=factor, mode="bilinear")
            strokes = strokes + at_pixels * collage(each, swatch, size, factor)
        strengths = weights.new_tensor([swatch.strength for swatch, _ in swatches])
        return strokes, float(weights @ strengths / weights.sum())

    def _swatch(self, painting: Image.Image) -> Swatch | None:
        """None for one of which nothing counts."""
        if id(painting) not in self._swatches:
            picture, shares = painting_tensors(painting, self.side, self.codec.model.device)
            # the painting stays with its swatch, so that its id stays its own
            self._swatches[id(painting)] = painting, self._taken_of(picture, shares)
        return self._swatches[id(painting)][1]

    def _taken_of(self, picture: Tensor, shares: Tensor | None) -> Swatch | None:
        latent, factor = self._encoded(picture), self.codec.factor
        height, width = latent.shape[2:]
        usable = torch.zeros_like(latent[:, :1])
        # what was added to the painting's edges is none of it
        usable[..., : picture.shape[2] // factor, : picture.shape[3] // factor] = 1
        if shares is not None:
            there = usable * self.codec.shares(shares)
            opaque = (there > OPAQUE * there.max()).float()
            # A place next to what does not count has its colours in its band and its latent.
            inside = usable * -F.max_pool2d(F.pad(-opaque, (1,) * 4, value=-1.0), 3, stride=1)
            usable = inside if inside.any() else opaque
        if not usable.any():
            return None
        missing = width * factor - picture.shape[3], height * factor - picture.shape[2]
        padded = F.pad(finest(picture), (0, missing[0], 0, missing[1]))
        band = F.unfold(F.pad(padded, (OVERLAP,) * 4, mode="reflect"), factor + 2 * OVERLAP, stride=factor)[0]
        counts = usable.flatten() > 0
        strength = band[:, counts].square().mean().sqrt()
        longest = LONGEST * float(strength)
        return Swatch(
            patches_of(latent, usable[0, 0]), counts, width, band.clamp(-longest, longest), float(strength)
        )

    def _encoded(self, picture: Tensor) -> Tensor:
        with autocast(self.codec.model.device, self.precision):
            return self.codec.encode(picture)


def finest(pictures: Tensor) -> Tensor:
    """What blurring takes away of pictures (N, C, H, W)."""
    blurred = pictures
    for _ in range(3):  # three boxes make a bell
        blurred = _mean_around(blurred, BLUR)
    return pictures - blurred


def patches_of(latent: Tensor, usable: Tensor) -> Tensor:
    """(n, 9 * C) what is at each place of a latent and the eight around it, by the mean and deviation
    of each channel over what is usable (h, w): what is light in one picture is like what is light in
    another."""
    weights = usable / usable.sum()
    mean = (weights * latent).sum(dim=(2, 3), keepdim=True)
    variance = (weights * (latent - mean).square()).sum(dim=(2, 3), keepdim=True)
    normal = (latent - mean) / (variance.sqrt() + 1e-4)
    return F.unfold(F.pad(normal, (1,) * 4, mode="replicate"), 3)[0].T


def chosen(distances: Tensor, weights: Tensor) -> Tensor:
    """Shares (K, h, w), summing to 1, of K paintings whose matches are that far: at each place mostly
    the nearest one's, nearer by a larger weight (K,)."""
    if len(distances) == 1:
        return torch.ones_like(distances)
    # One painting's strokes at a place: several on top of each other would be a mist.
    around = F.avg_pool2d(F.pad(distances[None], (1,) * 4, mode="replicate"), 3, stride=1)[0]
    return (weights.log()[:, None, None] - around / (UNSURE * around.mean() + 1e-6)).softmax(dim=0)


def matched(patches: Tensor, swatch: Swatch, size: tuple[int, int]) -> Tensor:
    """The swatch's place for each of the places of `size` (height, width), whose patches (n, 9 * C)
    are given: a similar one, and one that goes on with the neighbours', or is not used yet, where that
    is nearly as similar.

    Places are gone through by diagonals, from the upper left and back: none of a diagonal is next to
    another, so that all of it is done at once.
    """
    height, width = size
    nearest, distances = _nearest(patches, swatch)
    worth = COHERENCE * distances[0].mean()
    used = torch.zeros(len(swatch.patches), device=patches.device)  # how often each place is
    reuse = REUSE * min(1.0, len(swatch.patches) / len(patches))  # a large picture cannot but do it
    # a frame of places that are not there
    rows, columns = (torch.full((height + 2, width + 2), -2, device=patches.device) for _ in range(2))
    diagonals = list(range(height + width - 1))
    for diagonal in [*diagonals, *reversed(diagonals)]:
        row = torch.arange(max(0, diagonal - width + 1), min(diagonal, height - 1) + 1, device=patches.device)
        column = diagonal - row
        here = row * width + column
        offered, allowed = _offers(rows, columns, row, column, swatch)
        choices = torch.cat([nearest[:, here], offered])
        of_offers = torch.stack([_distance(patches[here], swatch.patches[each]) for each in offered])
        costs = torch.cat([distances[:, here], of_offers.masked_fill(~allowed, torch.inf)])
        going_on = ((choices[:, None] == offered) & allowed).sum(dim=1)
        costs = costs + worth * (reuse * used[choices] - going_on)
        best = choices.gather(0, costs.argmin(dim=0)[None])[0]
        used.index_add_(0, best, torch.ones_like(best, dtype=used.dtype))
        rows[row + 1, column + 1], columns[row + 1, column + 1] = best // swatch.width, best % swatch.width
    return (rows * swatch.width + columns)[1:-1, 1:-1].flatten()


def _offers(
    rows: Tensor, columns: Tensor, row: Tensor, column: Tensor, swatch: Swatch
) -> tuple[Tensor, Tensor]:
    """(4, m) the places that would go on with the matches, so far, of the neighbours on each side of m
    places, and which of them there are. rows, columns: (h + 2, w + 2) of these matches, -2 where
    there are none, beside which there is none either."""
    height = len(swatch.patches) // swatch.width
    offered, allowed = [], []
    for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):  # from the left, above, the right, below
        beside = row + 1 - down, column + 1 - right
        next_row, next_column = rows[beside] + down, columns[beside] + right
        inside = (next_row >= 0) & (next_row < height) & (next_column >= 0) & (next_column < swatch.width)
        place = torch.where(inside, next_row * swatch.width + next_column, 0)
        offered.append(place)
        allowed.append(inside & swatch.usable[place])
    return torch.stack(offered), torch.stack(allowed)


def _nearest(patches: Tensor, swatch: Swatch) -> tuple[Tensor, Tensor]:
    """The most similar usable places (NEAREST, n), the first of them first, and how far they are."""
    squares = swatch.patches.square().sum(dim=1).masked_fill(~swatch.usable, torch.inf)
    count = max(1, AT_ONCE // len(squares))
    few = min(NEAREST, int(swatch.usable.sum()))
    nearest = torch.cat(
        [
            (squares - 2 * some @ swatch.patches.T).topk(few, dim=1, largest=False).indices
            for some in torch.split(patches, count)
        ]
    ).T
    return nearest, torch.stack([_distance(patches, swatch.patches[each]) for each in nearest])


def _distance(patches: Tensor, others: Tensor) -> Tensor:
    return (patches - others).square().sum(dim=1)


def collage(matches: Tensor, swatch: Swatch, size: tuple[int, int], factor: int) -> Tensor:
    """(1, 3, factor * h, factor * w) of the swatch's band at the matches (n,) of `size` (h, w), fading
    into each other."""
    height, width = size
    side = factor + 2 * OVERLAP
    from_edge = torch.arange(side, device=matches.device) + 0.5
    ramp = torch.minimum(from_edge, side - from_edge).div(2 * OVERLAP).clamp(max=1)
    window = (ramp[:, None] * ramp).flatten()
    pieces = swatch.band[:, matches].reshape(3, side**2, -1) * window[:, None]
    canvas = (height - 1) * factor + side, (width - 1) * factor + side
    laid = F.fold(pieces.flatten(0, 1)[None], canvas, side, stride=factor)
    weights = F.fold(window[None, :, None].expand(1, -1, len(matches)), canvas, side, stride=factor)
    return (laid / weights)[..., OVERLAP:-OVERLAP, OVERLAP:-OVERLAP]


def most_sharpened(picture: Tensor, side: int) -> float:
    """How many times as strong the picture's own lines become at most, beside paintings looked at
    with this shorter side."""
    # What is soft in a large photo is soft for its lens, and sharpened at size after size it has halos.
    larger = max(1.0, min(picture.shape[2:]) / side)
    return max(1.0, SHARPER[1] / math.sqrt(larger))


def joined(
    picture: Tensor, content: Tensor, strokes: Tensor, strength: float, most: float, photo: float = PHOTO
) -> Tensor:
    """The picture with the strokes where the photo `content` is plain and its own lines elsewhere,
    both as strong as the painting's, but these at most `most` times what they are. photo: how much
    its lines count against the strokes."""
    own = finest(picture)
    sharper = (SHARPNESS * strength / own.square().mean().sqrt().clamp_min(1e-6)).clamp(SHARPER[0], most)
    of_photo, of_strokes = (
        _mean_around(band.square().mean(dim=1, keepdim=True), AROUND) for band in (finest(content), strokes)
    )
    share = of_strokes / (of_strokes + photo * of_photo + FAINT)
    # by their squares: two that know nothing of each other are as strong together as either
    return picture - own + sharper * (1 - share).sqrt() * own + share.sqrt() * strokes


def _mean_around(x: Tensor, reach: int) -> Tensor:
    return F.avg_pool2d(F.pad(x, (reach,) * 4, mode="reflect"), 2 * reach + 1, stride=1)
