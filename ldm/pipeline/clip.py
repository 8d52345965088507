"""A clip's frames in, painted ones out: steadily, or each for itself."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from PIL import Image

from ldm.media.clips import Frame
from ldm.media.motion import ClipPainter, Paint
from ldm.pipeline.jobs import sized
from ldm.pipeline.settings import Settings


def painted_clip(
    frames: Iterator[Frame],
    paint: Paint,
    settings: Settings,
    smooth: float,
    batch_size: int,
    known: Callable[[str], Image.Image | None] = lambda name: None,
) -> Iterator[Frame]:
    """The frames as `paint`, the pipeline with a style and the settings, paints them, but for those
    that are `known` by their names and come with the others, as each may go on from those before.

    smooth: between 0, each for itself, and 1, see `ldm.media.motion`; above 0 it needs OpenCV.
    """
    # Unlike a generator, this lets go of each frame before the next is read.
    scaled = map(lambda frame: replace(frame, picture=sized(frame.picture, settings)), frames)
    return ClipPainter(paint, settings.has_brush, smooth, batch_size, known)(scaled)
