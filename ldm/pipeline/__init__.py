"""Painting: pictures in, pictures out. The names that most need are imported when they are asked
for."""

from typing import TYPE_CHECKING

from ldm.lazy import names_from

if TYPE_CHECKING:
    from ldm.pipeline.inputs import StyleMix, StyleRegions
    from ldm.pipeline.jobs import PaintingStopped
    from ldm.pipeline.looks import SAMPLERS
    from ldm.pipeline.pipeline import StyleTransferPipeline
    from ldm.pipeline.settings import Settings

__all__ = ["SAMPLERS", "PaintingStopped", "Settings", "StyleMix", "StyleRegions", "StyleTransferPipeline"]

__getattr__ = names_from(
    __name__,
    {
        "SAMPLERS": "ldm.pipeline.looks",
        "Settings": "ldm.pipeline.settings",
        **dict.fromkeys(["StyleMix", "StyleRegions"], "ldm.pipeline.inputs"),
        "PaintingStopped": "ldm.pipeline.jobs",
        "StyleTransferPipeline": "ldm.pipeline.pipeline",
    },
)
