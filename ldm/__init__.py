"""ArtFusion: arbitrary style transfer with a dual-conditional latent diffusion model."""

from typing import TYPE_CHECKING

from ldm.lazy import names_from

if TYPE_CHECKING:
    from ldm.errors import UserError
    from ldm.pipeline import Settings, StyleMix, StyleRegions, StyleTransferPipeline

__version__ = "0.1.0"
__all__ = ["Settings", "StyleMix", "StyleRegions", "StyleTransferPipeline", "UserError"]

# What most need, imported when it is asked for: torch takes a second.
__getattr__ = names_from(__name__, {**dict.fromkeys(__all__, "ldm.pipeline"), "UserError": "ldm.errors"})
