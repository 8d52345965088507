"""Texture: the finest strokes of a painting, laid into what was sampled in its style.

The network is told a painting's statistics, so where a photo is plain it has to make up strokes, and
what it makes up is the same weave for all. What the painting has at its most similar places is put
there in its stead, as in image analogies (Hertzmann et al. 2001): each place of the picture's latent
is matched with one of the painting's, neighbours with neighbours where that costs little, so that
strokes hang together.

Shapes: pictures (1, 3, H, W) in [-1, 1]; latents (1, C, h, w); places (n,), numbers of positions of
a painting's latent, row by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.device import autocast
from ldm.pipeline.brush import painting_tensors
from ldm.pipeline.codec import Codec
from ldm.pipeline.tiles import Tile, Tiling, blend, cut

BLUR = 2  # pixels to each side, three times over: what that takes away is the finest band
AROUND = 4  # pixels to each side over which strengths are compared
PHOTO = 3.0  # how much the photo's own lines count against the painting's strokes
FAINT = 1e-4  # a variance: a hundredth of the way from black to white is no stroke
SHARPNESS = 0.85  # of the painting's, to which the picture's own lines come ...
SHARPER = (0.5, 2.0)  # ... by no less and no more than that
COHERENCE = 0.3  # of the mean distance of matches: what each neighbour that goes on is worth
ROUNDS = 4  # in which every place looks at its neighbours
OVERLAP = 2  # pixels to each side of a place's own, over which it and its neighbours fade
UNSURE = 0.1  # of the mean distance: so much nearer, a painting counts e times as much
TILE = 96  # positions a side that are matched at once, and ...
AT_ONCE = 2**24  # ... distances: 64 MB


@dataclass(frozen=True)
class Swatch:
    """A painting as texture is taken of it.

    patches: (n, 9 * C) what is around each place, by the latent's own deviations. usable: (n,) where
    the painting is, and counts. width: places in a row. band: (3, ...) its finest band around each
    place, as `F.unfold` puts it, (3 * side * side, n). strength: of that band, the root of its mean
    square.
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
        self, picture: Tensor, content: Tensor, paintings: Sequence[tuple[Image.Image, float]], share: float
    ) -> Tensor:
        """The picture, painted of the photo `content`, a `share` of the way to the paintings'
        texture. Of several each place takes that which is most similar, by their weights."""
        swatches = [(self._swatch(painting), weight) for painting, weight in paintings if weight]
        known = [(swatch, weight) for swatch, weight in swatches if swatch is not None]
        if not share or not known:
            return picture
        places, (height, width) = _normal(self._encoded(picture)), picture.shape[2:]
        found = torch.cat([self._found(places, swatch)[..., :height, :width] for swatch, _ in known])
        weights = picture.new_tensor([weight for _, weight in known])
        strokes = (chosen(found[:, 3:], weights) * found[:, :3]).sum(dim=0, keepdim=True)
        strength = float(
            weights @ picture.new_tensor([swatch.strength for swatch, _ in known]) / weights.sum()
        )
        return torch.lerp(picture, _joined(picture, content, strokes, strength), share)

    def _found(self, places: Tensor, swatch: Swatch) -> Tensor:
        """(1, 4, f * h, f * w) the swatch's band at what is most similar to the places (1, C, h, w),
        and how far that is from them."""

        def found(tiles: Sequence[Tile]) -> Tensor:
            part = cut(places, tiles)
            patches, size, factor = _around(part), (part.shape[2], part.shape[3]), self.codec.factor
            matches = matched(patches, swatch, size)
            distances = _distance(patches, swatch.patches[matches]).reshape(1, 1, *size)
            return torch.cat(
                [collage(matches, swatch, size, factor), F.interpolate(distances, scale_factor=factor)], dim=1
            )

        return blend(found, Tiling(places.shape[2], places.shape[3], TILE), scale=self.codec.factor)

    def _swatch(self, painting: Image.Image) -> Swatch | None:
        """None for one of which too little counts."""
        if id(painting) not in self._swatches:
            picture, shares = painting_tensors(painting, self.side, self.codec.model.device)
            # the painting stays with its swatch, so that its id stays its own
            self._swatches[id(painting)] = painting, self._taken_of(picture, shares)
        return self._swatches[id(painting)][1]

    def _taken_of(self, picture: Tensor, shares: Tensor | None) -> Swatch | None:
        latent, factor = self._encoded(picture), self.codec.factor
        height, width = latent.shape[2:]
        there = torch.zeros_like(latent[:, :1])
        # what was added to the painting's edges is none of it
        there[..., : picture.shape[2] // factor, : picture.shape[3] // factor] = 1
        if shares is not None:
            there *= self.codec.shares(shares) > 0.999
        usable = there.flatten() > 0
        if not usable.any():
            return None
        band = finest(picture)
        padded = F.pad(
            F.pad(band, (0, width * factor - band.shape[3], 0, height * factor - band.shape[2])),
            (OVERLAP,) * 4,
            mode="reflect",
        )
        return Swatch(
            _around(_normal(latent)),
            usable,
            width,
            F.unfold(padded, factor + 2 * OVERLAP, stride=factor)[0],
            float(band.square().mean().sqrt()),
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


def chosen(distances: Tensor, weights: Tensor) -> Tensor:
    """Shares (n, 1, H, W), summing to 1, of n paintings: at each place mostly the nearest one's,
    nearer by a larger weight (n,)."""
    if len(distances) == 1:
        return torch.ones_like(distances)
    # One painting's strokes at a place: several on top of each other would be a mist.
    around = _mean_around(distances, AROUND)
    return (weights.log()[:, None, None, None] - around / (UNSURE * around.mean())).softmax(dim=0)


def matched(patches: Tensor, swatch: Swatch, size: tuple[int, int]) -> Tensor:
    """The swatch's place for each of the places of `size` (height, width), whose patches (n, 9 * C)
    are given: a similar one, and next to the neighbours' where that is nearly as similar."""
    height, width = size
    nearest, distances = _nearest(patches, swatch)
    worth = COHERENCE * distances.mean()
    rows, columns = torch.meshgrid(
        torch.arange(height, device=patches.device), torch.arange(width, device=patches.device), indexing="ij"
    )
    black = ((rows + columns) % 2 == 0).flatten()
    matches = nearest
    # Neighbours take turns, as the squares of a chessboard, or they would swap for ever.
    for turn in (black, ~black) * ROUNDS:
        offered, valid = _offers(matches.reshape(size), swatch)
        choices = torch.cat([nearest[None], offered])
        costs = torch.stack([distances, *(_distance(patches, swatch.patches[each]) for each in offered)])
        agreeing = ((choices[:, None] == offered[None]) & valid[None]).sum(dim=1)
        costs = (costs - worth * agreeing).masked_fill(
            torch.cat([torch.zeros_like(valid[:1]), ~valid]), torch.inf
        )
        best = choices.gather(0, costs.argmin(dim=0)[None])[0]
        matches = torch.where(turn, best, matches)
    return matches


def _nearest(patches: Tensor, swatch: Swatch) -> tuple[Tensor, Tensor]:
    """The most similar usable places, and how far they are."""
    squares = swatch.patches.square().sum(dim=1).masked_fill(~swatch.usable, torch.inf)
    count = max(1, AT_ONCE // len(squares))
    nearest = torch.cat(
        [(squares - 2 * some @ swatch.patches.T).argmin(dim=1) for some in torch.split(patches, count)]
    )
    return nearest, _distance(patches, swatch.patches[nearest])


def _distance(patches: Tensor, others: Tensor) -> Tensor:
    return (patches - others).square().sum(dim=1)


def _offers(matches: Tensor, swatch: Swatch) -> tuple[Tensor, Tensor]:
    """(4, n) the places that would go on with the matches (h, w) of the neighbours on each side, and
    where there are such."""
    height = len(swatch.patches) // swatch.width
    offered, valid = [], []
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        row = torch.roll(matches // swatch.width, (down, right), (0, 1)) + down
        column = torch.roll(matches % swatch.width, (down, right), (0, 1)) + right
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < swatch.width)
        # what comes in at the other side is no neighbour
        if down:
            inside[0 if down > 0 else -1] = False
        else:
            inside[:, 0 if right > 0 else -1] = False
        place = torch.where(inside, row * swatch.width + column, 0).flatten()
        offered.append(place)
        valid.append(inside.flatten() & swatch.usable[place])
    return torch.stack(offered), torch.stack(valid)


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


def _joined(picture: Tensor, content: Tensor, strokes: Tensor, strength: float) -> Tensor:
    """The picture with the strokes where the photo is plain, its own lines elsewhere, both as strong
    as the painting's."""
    own = finest(picture)
    sharper = (SHARPNESS * strength / own.square().mean().sqrt().clamp_min(1e-6)).clamp(*SHARPER)
    of_photo, of_strokes = (
        _mean_around(band.mean(dim=1, keepdim=True).square(), AROUND) for band in (finest(content), strokes)
    )
    share = of_strokes / (of_strokes + PHOTO * of_photo + FAINT)
    # by their squares: two that know nothing of each other are as strong together as either
    return picture - own + sharper * (1 - share).sqrt() * own + share.sqrt() * strokes


def _mean_around(x: Tensor, reach: int) -> Tensor:
    return F.avg_pool2d(F.pad(x, (reach,) * 4, mode="reflect"), 2 * reach + 1, stride=1)


def _normal(latent: Tensor) -> Tensor:
    """By each channel's own mean and deviation, so that what is light in one picture is like what is
    light in another."""
    deviation, mean = torch.std_mean(latent, dim=(2, 3), keepdim=True)
    return (latent - mean) / (deviation + 1e-4)


def _around(latent: Tensor) -> Tensor:
    """(n, 9 * C) what is at each place of a latent and the eight around it."""
    return F.unfold(F.pad(latent, (1,) * 4, mode="replicate"), 3)[0].T
