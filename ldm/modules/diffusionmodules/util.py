"""Small functions that the diffusion networks and samplers share, and those that the published code
keeps here."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import checkpoint as recomputing

from ldm.modules.diffusionmodules.schedule import (
    make_beta_schedule,
    make_ddim_sampling_parameters,
    make_ddim_timesteps,
)
from ldm.published.helpers import mean_flat

__all__ = ["make_beta_schedule", "make_ddim_sampling_parameters", "make_ddim_timesteps", "mean_flat"]

MIN_SPREAD = 0.01  # of a component, as a share of the strongest one's


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0, repeat_only: bool = False) -> Tensor:
    """(N, dim) sinusoids (Vaswani et al. 2017, section 3.5) of time steps (N,), fractions allowed:
    cosines first, an odd width padded by a zero column.

    repeat_only: the time steps themselves, dim times.
    """
    if repeat_only:
        return t[:, None].repeat(1, dim)
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    )
    angles = t[:, None].float() * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return nn.functional.pad(embedding, (0, dim % 2))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN (Peebles & Xie 2023): x (N, C, ...) with shift and scale (N, C), or (N, C, 1, ...),
    broadcast over positions."""
    return torch.addcmul(over_positions(shift, x), x, over_positions(1 + scale, x))


def over_positions(vector: Tensor, x: Tensor) -> Tensor:
    """(N, C) with as many trailing axes as x has."""
    return vector.reshape(*vector.shape, *(1,) * (x.ndim - vector.ndim))


class GroupNorm32(nn.GroupNorm):
    """GroupNorm computed in float32 whatever the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.group_norm(x.float(), self.num_groups, weight, bias, self.eps).type(x.dtype)


def conv_nd(dims: int, *args, **kwargs) -> nn.Module:
    return _of_dims({1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}, dims)(*args, **kwargs)


def avg_pool_nd(dims: int, *args, **kwargs) -> nn.Module:
    return _of_dims({1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}, dims)(*args, **kwargs)


def _of_dims(classes: dict[int, type[nn.Module]], dims: int) -> type[nn.Module]:
    if dims not in classes:
        raise ValueError(f"dims must be 1, 2 or 3, got {dims}")
    return classes[dims]


def zero_init(module: nn.Module) -> nn.Module:
    """The module with all its weights and biases set to 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Whitening(nn.Module):
    """Vectors (N, width) to their leading principal components (N, components), all of mean 0 and
    about the same spread.

    `measure` sets mean and basis; until then it is the identity on the first coordinates. What
    varies less than MIN_SPREAD of the strongest component is mostly noise, and not blown up to full
    size.
    """

    def __init__(self, width: int, components: int):
        super().__init__()
        if not 1 <= components <= width:
            raise ValueError(f"whitening: {components} components of vectors of width {width}")
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.eye(width, components))

    @torch.no_grad()
    def measure(self, vectors: Tensor) -> None:
        """Make the components of these vectors have mean 0 and variance 1; those for which there
        are too few vectors, 0."""
        vectors = vectors.double()
        mean = vectors.mean(dim=0)
        _, spread, directions = torch.linalg.svd(vectors - mean, full_matrices=False)
        known = min(self.basis.shape[1], len(vectors) - 1)
        spread = spread[:known] / len(vectors) ** 0.5
        self.mean.copy_(mean)
        self.basis.zero_()
        self.basis[:, :known] = directions[:known].T / spread.clamp_min(MIN_SPREAD * spread[0])

    def forward(self, x: Tensor) -> Tensor:
        # the weak components would drown in rounding errors
        with torch.autocast(x.device.type, enabled=False):
            return (x.float() - self.mean) @ self.basis


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one tensor or more, as `sum` adds them up."""
    return reduce(torch.add, terms)


def spatial_std_mean(x: Tensor, unbiased: bool = True) -> tuple[Tensor, Tensor]:
    """(std, mean), each (N, C), over the positions of x (N, C, h, w)."""
    # The unbiased std of a single position is not a number; such a map is flat.
    return torch.std_mean(x, dim=(-1, -2), correction=int(unbiased and x[0, 0].numel() > 1))


def weighted_std_mean(x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the positions' shares (N, 1, h, w), at least one of each above 0; those of shares
    of 1 or 0 are those of the positions with 1 alone."""
    total = shares.sum(dim=(2, 3))
    mean = (x * shares).sum(dim=(2, 3)) / total
    missed = ((x - over_positions(mean, x)).square() * shares).sum(dim=(2, 3))
    # The number of positions less 1, where they count in part; of a single one the map is flat.
    freedom = total - shares.square().sum(dim=(2, 3)) / total
    return (missed / freedom.clamp_min(1e-6)).sqrt(), mean


# Only users of the published code need these.

SiLU, linear, zero_module = nn.SiLU, nn.Linear, zero_init


def noise_like(shape: Sequence[int], device: torch.device | str, repeat: bool = False) -> Tensor:
    """Standard normal noise; with `repeat` the same for all of the batch."""
    first, *rest = shape
    return (
        torch.randn(1, *rest, device=device).repeat(first, *(1,) * len(rest))
        if repeat
        else torch.randn(*shape, device=device)
    )


def extract_into_tensor(a: Tensor, t: Tensor, x_shape: Sequence[int]) -> Tensor:
    """The entries t (N,) of a table, (N, 1, ...) with as many axes as `x_shape`."""
    return a.gather(-1, t).reshape(len(t), *(1,) * (len(x_shape) - 1))


def scale_module(module: nn.Module, scale: float) -> nn.Module:
    """The module with all its weights and biases multiplied."""
    for parameter in module.parameters():
        parameter.detach().mul_(scale)
    return module


def checkpoint(func: Callable[..., Any], inputs: Sequence[Any], params: Iterable[Tensor], flag: bool) -> Any:
    """`func(*inputs)`, recomputed in the backward pass if `flag`. `params`, what else `func`
    depends on, need not be told."""
    return recomputing.checkpoint(func, *inputs, use_reentrant=False) if flag else func(*inputs)


def normalization(channels: int) -> nn.Module:
    return GroupNorm32(32, channels)


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> NDArray[np.float64]:
    """Betas whose products of 1 - beta follow a function of the time in [0, 1]."""
    levels = np.array([alpha_bar(i / num_diffusion_timesteps) for i in range(num_diffusion_timesteps + 1)])
    return np.minimum(1 - levels[1:] / levels[:-1], max_beta)
