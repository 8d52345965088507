"""ArtFusion: arbitrary style transfer with a dual-conditional latent diffusion model."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.pipeline import StyleTransferPipeline
    from ldm.settings import Settings
    from ldm.styles import StyleMix, StyleRegions

__version__ = "0.1.0"
__all__ = ["Settings", "StyleMix", "StyleRegions", "StyleTransferPipeline"]

_HOMES = {"StyleTransferPipeline": "ldm.pipeline", "Settings": "ldm.settings", "StyleMix": "ldm.styles", "StyleRegions": "ldm.styles"}


def __getattr__(name: str) -> Any:
    """What most need, imported when it is asked for: torch takes a second."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
