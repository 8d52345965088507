"""ArtFusion: arbitrary style transfer with a dual-conditional latent diffusion model."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.pipeline import Settings, StyleMix, StyleRegions, StyleTransferPipeline

__version__ = "0.1.0"
__all__ = ["Settings", "StyleMix", "StyleRegions", "StyleTransferPipeline"]


def __getattr__(name: str) -> Any:
    """What most need, imported when it is asked for: torch takes a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("ldm.pipeline"), name)
