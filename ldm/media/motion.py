"""Steady clips: what stands still in the clip stands still in the result, what moves takes its paint
with it, and what comes into sight is painted.

Painted each by itself, neighbouring frames end in different strokes: the camera's noise suffices,
and textures stick to the screen. So the result of the frame before is carried along by the optical
flow, and a frame shows its own painting only where that does not explain it. What the past says of
a frame follows from the clip alone; so frames are sampled in batches all the same.

Frames have one map of colours with the second before them: each would have another one as soon as something
passes in front of a wall.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from ldm.media.clips import Frame
from ldm.media.flow import Flow, Mask, beyond_edges, carried, entering, flow_between, unmatched

DEFAULT_SMOOTH = 0.9
# levels of 255: below the one a difference is noise of the camera or the file, above the other a
# change
STILL, MOVING = 8, 24
SOFTNESS = 0.01  # radius of the blur, of the shorter side
# Of the shorter side, from the edge where something comes in: there it is painted anew, less and less.
# Paint sticks to the screen until it is carried, so the same stripe of it would be laid down in every
# frame, a comb in a plain sky.
ENTRANCE = 0.2
CUT = 0.5  # share of the picture; where the past explains less than the rest, it is another scene
OTHER_COLOURS = 16  # levels of 255 from one frame to the next, where there is no flow to tell
LATELY = 24  # frames of a scene whose colours count, a second: what comes in changes the others' slowly
_COLOURS_SIDE = 32  # pixels at which these are looked at
# pixels: a shorter flow is none; where the camera stands still and so does what it sees, one up to
# the other is noise, too
STEADY, DOUBTFUL = 0.25, 1.0

# pictures and changed settings, or pictures to begin with -> the painted pictures
Paint = Callable[..., list[Image.Image]]


def change(now: Image.Image, before: Image.Image) -> Image.Image:
    """A grey picture of the same size, black where one looks like the other, white where it does
    not."""
    red, green, blue = ImageChops.difference(now, before).split()
    largest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return _softened(largest).point(
        [min(255, max(0, round(255 * (level - STILL) / (MOVING - STILL)))) for level in range(256)]
    )


def share_of(mask: Image.Image) -> float:
    """Mean of a grey picture, 1 for white."""
    return float(np.asarray(mask).mean()) / 255


@dataclass(frozen=True)
class Link:
    """What the frame before says about this one. flow: where its pixels were. keep: a grey picture,
    the share of the paint there that stays: white where it stands still, black where it is new."""

    flow: Flow
    keep: Image.Image

    def over(self, fresh: Image.Image, before: Image.Image) -> Image.Image:
        """`before`, carried along, over what is `fresh`; both of the frames' size."""
        return Image.composite(carried(before, self.flow), fresh, self.keep)

    @property
    def says_all(self) -> bool:
        """Whether nothing is to be painted."""
        return self.keep.getextrema() == (255, 255)


def link_between(now: Image.Image, seen: Image.Image, smooth: float) -> Link | None:
    """What the past says about the frame `now`; None after a cut, or where it had another size.

    seen: what of the clip the past was painted from, in its place: so flow does not drift, and what
    changes slowly is noticed in time. smooth: of what moves, (1 - smooth)^2 is painted anew in each
    frame.
    """
    if now.size != seen.size:
        return None
    flow = flow_between(now, seen)
    hidden = unmatched(flow, flow_between(seen, now))
    still = _still(flow, hidden, np.asarray(change(now, seen)) == 0)
    flow[still] = 0
    uncovered = _white_where((hidden & ~still) | beyond_edges(flow))
    new = ImageChops.lighter(change(now, carried(seen, flow)), uncovered)
    if share_of(new) > CUT:
        return None
    most = np.where(
        still, 1.0, (1 - (1 - smooth) ** 2) * (1 - entering(flow, ENTRANCE * min(now.size), DOUBTFUL))
    )
    stays = Image.fromarray(np.round(255 * most).astype(np.uint8))
    return Link(flow, ImageChops.multiply(ImageChops.invert(new), stays))


def _still(flow: Flow, hidden: Mask, unchanged: Mask) -> Mask:
    """(H, W) where nothing moves. On plain surfaces noise has a flow of its own, which does not lead
    back, or is short where the camera stands still."""
    lengths = np.abs(flow).max(-1)
    doubtful = hidden | (lengths < DOUBTFUL) if np.median(lengths) < STEADY else hidden
    still: Mask = (lengths < STEADY) | (unchanged & (doubtful | bool(unchanged.all())))
    return still


def _white_where(mask: Mask) -> Image.Image:
    """The mask as a grey picture, a pixel wider and softened."""
    return _softened(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(3)))


def _softened(mask: Image.Image) -> Image.Image:
    return mask.filter(ImageFilter.GaussianBlur(SOFTNESS * min(mask.size)))


@dataclass(frozen=True)
class Linked:
    """A frame, what the one before it says about it, None for nothing, and a picture whose colours
    are those of its scene by then."""

    frame: Frame
    link: Link | None
    scene: Image.Image


def linked(frames: Iterator[Frame], smooth: float) -> Iterator[Linked]:
    """Each frame with what the past says about it: nothing where `smooth` is 0."""
    seen: Image.Image | None = None
    lately = deque[Image.Image](maxlen=LATELY)
    for frame in frames:
        now, link = frame.picture, None
        small = now.resize((_COLOURS_SIDE,) * 2)
        if smooth:
            link = None if seen is None else link_between(now, seen, smooth)
            seen = now if link is None or seen is None else link.over(now, seen)
        if link is None and (smooth or (lately and _colour_change(small, lately[-1]) > OTHER_COLOURS)):
            lately.clear()
        lately.append(small)
        yield Linked(frame, link, _side_by_side(lately))
        del frame, now  # before the next is read


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a row."""
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        row.paste(picture, (width * i, 0))
    return row


def _colour_change(now: Image.Image, before: Image.Image) -> float:
    """How far, in levels, the one's channels are from the other's, wherever they are in the picture:
    the mean of their earth mover's distances."""
    one, other = (
        np.sort(np.asarray(picture, dtype=np.float32).reshape(-1, 3), axis=0) for picture in (now, before)
    )
    return float(np.abs(one - other).mean())


@dataclass(frozen=True)
class ClipPainter:
    """Paints frames in batches, and joins each with the one before, if it is to be `smooth`.

    paint: pictures in, painted ones of the same sizes out. begins: whether it can be given pictures
    to start with, as looks with gradient steps can: what is new in a frame is then sampled, and painted
    on from the frame before. known: a frame of this name as it was painted already, or None.

    With each picture goes its `scene`: a wall keeps its colours when somebody passes.
    """

    paint: Paint
    begins: bool
    smooth: float = DEFAULT_SMOOTH
    batch_size: int = 8
    known: Callable[[str], Image.Image | None] = lambda name: None

    def __call__(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The frames, painted, but for those that are known, from which the next go on."""
        before = None
        each = linked(frames, self.smooth)
        while batch := list(islice(each, self.batch_size)):
            there = [self.known(one.frame.name) for one in batch]
            fresh = self._fresh(batch, there)
            for i, one in enumerate(batch):
                before = there[i] or self._joined(one, fresh.get(i), before)
                if there[i] is None:
                    yield replace(one.frame, picture=before)
            del one  # before the next are read
            batch.clear()

    def _fresh(self, batch: list[Linked], there: list[Image.Image | None]) -> dict[int, Image.Image]:
        """What is painted of a batch before its frames are joined, by their places in it."""
        wanted = [i for i, one in enumerate(batch) if there[i] is None]
        whole = [i for i in wanted if batch[i].link is None]
        parts = [i for i in wanted if (link := batch[i].link) and not link.says_all]
        if not self.begins:
            return self._painted(batch, sorted(whole + parts))
        # an effort is of gradient steps alone
        return self._painted(batch, whole) | self._painted(batch, parts, look="sampled", effort=1.0)

    def _painted(self, batch: list[Linked], places: list[int], **changes: object) -> dict[int, Image.Image]:
        if not places:
            return {}
        pictures, scenes = [batch[i].frame.picture for i in places], [batch[i].scene for i in places]
        return dict(zip(places, self.paint(pictures, scene=scenes, **changes), strict=True))

    def _joined(self, one: Linked, fresh: Image.Image | None, before: Image.Image | None) -> Image.Image:
        """The painted frame, of what is fresh in it and the frame before."""
        if one.link is None or before is None:
            assert fresh is not None
            return fresh
        if fresh is None:
            return carried(before, one.link.flow)
        joined = one.link.over(fresh, before)
        if not self.begins:
            return joined
        return one.link.over(self.paint([one.frame.picture], start=[joined], scene=[one.scene])[0], before)
