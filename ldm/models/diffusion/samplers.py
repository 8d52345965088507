"""The arithmetic of one sampling step, for each sampler. Shapes: everything (N, C, h, w) unless said otherwise."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x (N, C, h, w), time steps (N,)) -> prediction like x
NoiseSource = Callable[[Tensor], Tensor]  # a tensor -> fresh standard normal noise of its shape


def standard_normal(like: Tensor) -> Tensor:
    """Noise of the shape, type and device of `like`, from torch's global generator."""
    # Not randn_like, whose order of drawing follows the memory format of `like`.
    return torch.randn(like.shape, dtype=like.dtype, device=like.device)


def ddim_step(
    x: Tensor, eps: Tensor, alpha: float, alpha_prev: float, sigma: float, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """(x_{t-1}, predicted x_0), equation 12 of Song et al. (2021); the alphas are cumulative products."""
    pred_x0 = (x - (1 - alpha) ** 0.5 * eps) / alpha**0.5
    direction = max(1 - alpha_prev - sigma**2, 0.0) ** 0.5 * eps
    return alpha_prev**0.5 * pred_x0 + direction + sigma * noise, pred_x0


def step_noise(x: Tensor, source: NoiseSource, temperature: float = 1.0, dropout: float = 0.0) -> Tensor:
    """The noise of one stochastic step; `dropout` zeroes a share of it and scales up the rest."""
    noise = source(x) * temperature
    return F.dropout(noise, dropout) if dropout > 0 else noise


def keep_region(x: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """`known` where `mask` (N or 1, 1 or C, h, w) is 1, `x` where it is 0."""
    return known * mask + (1.0 - mask) * x


class PerPictureNoise:
    """Noise that depends on a picture's own seed only, never on what else is in the batch.

    Drawn on the CPU, so that every device gives the same picture.
    """

    def __init__(self, seeds: list[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape, type and device of `like`, one generator per row."""
        rows = [torch.randn(like.shape[1:], generator=g) for g in self.generators]
        return torch.stack(rows).to(like.device, like.dtype)
