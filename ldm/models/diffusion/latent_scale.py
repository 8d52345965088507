"""How latents are scaled for the diffusion model: they ought to have about mean 0 and std 1.

A scale says which tables it needs; the model keeps these as buffers under their published names and
hands them to `apply` and `undo`.
scale_by_std: training measures the scale, so that checkpoints have it; else config files give it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.checks import check_flags, check_number
from ldm.errors import ConfigError
from ldm.modules.diffusionmodules.util import over_positions

MIN_STD = 1e-4  # below this a channel counts as flat: what is left of it is rounding error


@dataclass(frozen=True)
class OneFactor:
    """One factor for all channels: scale_factor z, with 1 / std where it is measured (Rombach et
    al. 2022, appendix G)."""

    scale_factor: float = 1.0
    scale_by_std: bool = False

    def __post_init__(self) -> None:
        check_number("scale_factor", self.scale_factor)
        check_flags(scale_by_std=self.scale_by_std)

    @property
    def persistent(self) -> bool:
        """Whether checkpoints have the tables."""
        return self.scale_by_std

    def tables(self, channels: int) -> dict[str, Tensor]:
        """By name, at first."""
        return {"scale_factor": torch.tensor(float(self.scale_factor))}

    @staticmethod
    def apply(z: Tensor, scale_factor: Tensor) -> Tensor:
        """Scaled latents of those that the first stage makes, (N, channels, h, w)."""
        return scale_factor * z

    @staticmethod
    def undo(z: Tensor, scale_factor: Tensor) -> Tensor:
        """What `apply` was given."""
        return z / scale_factor

    @staticmethod
    def measure(z: Tensor) -> dict[str, Tensor]:
        """The tables with which these latents get std 1."""
        return {"scale_factor": 1 / z.std()}


@dataclass(frozen=True)
class PerChannel:
    """A factor and a shift for every channel: (z - shift_values) scale_factors; 1 and 0 by
    default."""

    scale_factors: Sequence[float] | None = None
    shift_values: Sequence[float] | None = None
    scale_by_std: bool = False

    persistent = True

    def __post_init__(self) -> None:
        check_flags(scale_by_std=self.scale_by_std)

    def tables(self, channels: int) -> dict[str, Tensor]:
        """By name, at first."""
        return {
            "scale_factors": self._table("scale_factors", channels, neutral=1.0),
            "shift_values": self._table("shift_values", channels, neutral=0.0),
        }

    def _table(self, name: str, channels: int, neutral: float) -> Tensor:
        """With a value for each channel, or a single one for all where it is not measured."""
        values = getattr(self, name)
        counts = (channels,) if self.scale_by_std else (channels, 1)
        if values is None:
            return torch.full((counts[-1],), neutral)
        if len(values) not in counts:
            raise ConfigError(f"DualCondLDM: {len(values)} {name} for {channels} channels")
        return torch.tensor(list(values), dtype=torch.float32)

    @staticmethod
    def apply(z: Tensor, scale_factors: Tensor, shift_values: Tensor) -> Tensor:
        """Scaled latents of those that the first stage makes, (N, channels, h, w)."""
        return (z - over_positions(shift_values[None], z)) * over_positions(scale_factors[None], z)

    @staticmethod
    def undo(z: Tensor, scale_factors: Tensor, shift_values: Tensor) -> Tensor:
        """What `apply` was given."""
        # differs: the published code unscales the caller's tensor in place.
        return z / over_positions(scale_factors[None], z) + over_positions(shift_values[None], z)

    @staticmethod
    def measure(z: Tensor) -> dict[str, Tensor]:
        """The tables with which every channel of these latents gets mean 0 and std 1."""
        std, mean = torch.std_mean(z, dim=(0, 2, 3))
        return {"scale_factors": 1 / std.clamp_min(MIN_STD), "shift_values": mean}


LatentScale = OneFactor | PerChannel
