"""Losses of first stages and of painting, and the networks that judge by features."""

from typing import Any


def __getattr__(name: str) -> Any:
    """The published package's own name. What trains is not loaded with the other modules of this
    package, which painting uses."""
    if name != "LPIPSWithDiscriminator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ldm.modules.losses.contperceptual import LPIPSWithDiscriminator

    return LPIPSWithDiscriminator
