"""Steady clips in the fine look: what stands still in the clip stands still in the result.

Painted each by itself, neighbouring frames end in different strokes, since small differences grow
from one gradient step to the next: the camera's noise suffices. So a frame is painted only where
the clip moves, and begins with the frame painted before.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from ldm.media.clips import Frame

# levels of 255: below the one a difference is noise of the camera or the file, above the other
# movement
STILL, MOVING = (
    8,
    24,
)
SOFTNESS = 0.01  # radius of the blur, of the shorter side
CUT = 0.5  # share of the picture; where more of it moves, it is another scene

Paint = Callable[..., Image.Image]  # a content picture and changed settings -> the painted picture


def movement(now: Image.Image, before: Image.Image) -> Image.Image:
    """A grey picture of the same size, black where a clip stands still from one to the other, white
    where it moves."""
    red, green, blue = ImageChops.difference(now, before).split()
    largest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    blurred = largest.filter(ImageFilter.GaussianBlur(SOFTNESS * min(now.size)))
    return blurred.point(
        [min(255, max(0, round(255 * (level - STILL) / (MOVING - STILL)))) for level in range(256)]
    )


def share_of(mask: Image.Image) -> float:
    """Mean of a grey picture, 1 for white."""
    return float(np.asarray(mask).mean()) / 255


@dataclass(frozen=True)
class Past:
    """The frame before. seen: what of the clip each of its pixels was painted from, which may be
    older: so what changes slowly is noticed in time. clip_size: the (width, height) of the clip's
    frame."""

    clip_size: tuple[int, int]
    seen: Image.Image
    painted: Image.Image


def next_frame(
    picture: Image.Image, past: Past | None, paint: Paint, known: Image.Image | None = None
) -> Past:
    """The frame, painted where it moves, all of it where there is none before and after a cut.
    known: painted already."""
    if past is None or picture.size != past.clip_size:
        painted = known or paint(picture)
        return Past(picture.size, picture.resize(painted.size, Image.Resampling.BILINEAR), painted)
    now = picture.resize(past.seen.size, Image.Resampling.BILINEAR)
    mask = movement(now, past.seen)
    if share_of(mask) > CUT:
        return Past(picture.size, now, known or paint(picture))
    seen = Image.composite(now, past.seen, mask)
    return Past(picture.size, seen, known or _painted_where(mask, picture, past.painted, paint))


def _painted_where(mask: Image.Image, picture: Image.Image, before: Image.Image, paint: Paint) -> Image.Image:
    if mask.getextrema() == (0, 0):
        return before
    sampled = paint(picture, look="fast", effort=1.0)  # an effort is of the fine look alone
    start = Image.composite(sampled, before, mask)
    return Image.composite(paint(picture, start=start), before, mask)


def steadily_painted(
    frames: Iterator[Frame], paint: Paint, known: Callable[[str], Image.Image | None]
) -> Iterator[Frame]:
    """The frames as `paint` paints their pictures, but for those that are `known` by their name,
    from which the next go on."""
    past = None
    for frame in frames:
        there = known(frame.name)
        past = next_frame(frame.picture, past, paint, there)
        if there is None:
            yield replace(frame, picture=past.painted)
