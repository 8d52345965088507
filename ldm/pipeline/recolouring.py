"""Photos in the colours of paintings: to be painted, or, in the look palette, as they are, without a
model. Nothing here imports torch, so that this takes no longer than it must."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ldm.media.recolouring import recoloured
from ldm.memory import installed_memory
from ldm.pipeline.inputs import Picture, Style
from ldm.pipeline.jobs import Job, Request
from ldm.pipeline.memory import Size, check_recoloured
from ldm.pipeline.settings import Settings

STYLE_SIDE = 256  # shorter side at which paintings are kept: their colours are all that is wanted


class Recolourer:
    """Does what the pipeline does in the look palette."""

    def __call__(
        self,
        content: Picture | Sequence[Picture],
        style: Style | Sequence[Style],
        *,
        settings: Settings,
        **others: Any,
    ) -> Image.Image | list[Image.Image]:
        """See `StyleTransferPipeline.__call__`; `others` that are not of Request make no
        difference."""
        known = {name: value for name, value in others.items() if name in Request.__dataclass_fields__}
        request = Request(content, style, **known)
        results = recolour(request, settings)
        return results[0] if request.is_single else results

    def work_at(self, size: tuple[int, int], settings: Settings) -> float:
        """Each picture's counts as 1: its map takes the time, whatever its size."""
        return 1.0

    def check_memory(self, sizes: Sequence[Size], settings: Settings) -> None:
        """Raises UserError for results of these (width, height) that take too much together."""
        check_recoloured(sizes, 1, installed_memory())


def recolour(request: Request, settings: Settings) -> list[Image.Image]:
    """The pictures of a request. Raises UserError, also for those that would take more than 0.8 of
    the memory together, of photos in files before these are read."""
    there = installed_memory()
    check_recoloured(request.sizes_of_files(settings), 1, there)
    jobs = request.jobs(settings, STYLE_SIDE)
    check_recoloured([job.size for job in jobs], max(len(job.style.regions) for job in jobs), there)
    return [_recoloured(job, settings) for job in jobs]


def _recoloured(job: Job, settings: Settings) -> Image.Image:
    return job.finished(_in_colours_of_style(job, settings.strength), settings)


def _in_colours_of_style(job: Job, share: float, keep_forms: bool = False) -> Image.Image:
    """A job's photo, RGB, in each region a `share` of the way to the colours of its own style, see
    `recoloured`."""
    assert job.content is not None  # as the request is checked
    photo = job.content.copy()
    if job.alpha is not None:
        photo.putalpha(job.alpha)
    pictures = [
        recoloured(photo, region, share, keep_forms, job.scene).convert("RGB") for region in job.style.regions
    ]
    shares = job.style.shares(job.size)
    if shares is None:
        return pictures[0]
    joined = sum(part[..., None] * np.asarray(each) for part, each in zip(shares, pictures, strict=True))
    return Image.fromarray(np.asarray(joined).round().astype(np.uint8))


def to_paint(job: Job, share: float) -> Image.Image:
    """A job's photo, a `share` of the way to its style's colours, or less where its style scale asks
    for less of the style, or a painting has next to no contrast: what is not to be seen cannot be
    painted. Where it is kept it is as it is."""
    assert job.content is not None
    share *= job.style_share
    if not share:
        return job.content
    coloured = _in_colours_of_style(job, share, keep_forms=True)
    return coloured if job.held is None else Image.composite(job.content, coloured, job.held)
