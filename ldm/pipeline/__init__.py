"""Painting: pictures in, pictures out. The names that most need are imported when they are asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.pipeline.inputs import StyleMix, StyleRegions
    from ldm.pipeline.pipeline import PaintingStopped, StyleTransferPipeline
    from ldm.pipeline.settings import SAMPLERS, Settings

__all__ = ["SAMPLERS", "PaintingStopped", "Settings", "StyleMix", "StyleRegions", "StyleTransferPipeline"]

_HOMES = {
    "SAMPLERS": "settings", "Settings": "settings", "StyleMix": "inputs", "StyleRegions": "inputs",
    "PaintingStopped": "pipeline", "StyleTransferPipeline": "pipeline",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"ldm.pipeline.{_HOMES[name]}"), name)
