"""Small functions that the published code has in `diffusionmodules.util`, which hands them on from here; ours need none of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import checkpoint as recomputing

from ldm.published.helpers import mean_flat

__all__ = [
    "SiLU", "betas_for_alpha_bar", "checkpoint", "extract_into_tensor", "linear", "mean_flat", "noise_like", "scale_module",
]  # fmt: skip

SiLU, linear = nn.SiLU, nn.Linear


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
    """`func(*inputs)`, recomputed in the backward pass if `flag`. `params`, what else `func` depends on, need not be told."""
    return recomputing.checkpoint(func, *inputs, use_reentrant=False) if flag else func(*inputs)


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> NDArray[np.float64]:
    """Betas whose products of 1 - beta follow a function of the time in [0, 1]."""
    levels = np.array([alpha_bar(i / num_diffusion_timesteps) for i in range(num_diffusion_timesteps + 1)])
    return np.minimum(1 - levels[1:] / levels[:-1], max_beta)
