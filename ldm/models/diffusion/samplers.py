"""The samplers: short functions over a plain denoiser. Shapes: everything (N, C, h, w) unless said
otherwise."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.modules.diffusionmodules.schedule import make_ddim_timesteps

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x (N, C, h, w), time steps (N,)) -> prediction like x
StartDenoiser = Callable[[Tensor, int], Tensor]  # (x, time step) -> predicted x_0
NoiseSource = Callable[[Tensor], Tensor]  # a tensor -> fresh standard normal noise of its shape


def standard_normal(like: Tensor) -> Tensor:
    """Noise of the shape, type and device of `like`, from torch's global generator."""
    # Not randn_like, whose order of drawing follows the memory format of `like`.
    return torch.randn(like.shape, dtype=like.dtype, device=like.device)


def repeated_normal(like: Tensor) -> Tensor:
    """One picture's noise for the whole batch."""
    return standard_normal(like[:1]).expand(like.shape)


def ddim_step(
    x: Tensor,
    eps: Tensor,
    alpha: float,
    alpha_prev: float,
    sigma: float,
    noise: Tensor,
    quantize: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(x_{t-1}, predicted x_0), equation 12 of Song et al. (2021); the alphas are cumulative
    products. `quantize`: done to x_0."""
    pred_x0 = start_of(x, eps, alpha)
    if quantize is not None:
        pred_x0 = quantize(pred_x0)
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
        rows = [
            torch.randn(like.shape[1:], generator=g, device=g.device, dtype=torch.float32)
            for g in self.generators
        ]
        return torch.stack(rows).to(like.device, like.dtype)


@dataclass(frozen=True)
class Step:
    """One step of a sampling run: from the noise level of `timestep` to the next one, 1 at the
    clean end."""

    timestep: int
    alpha: float  # cumulative product: the signal's share of the variance
    alpha_next: float


def sampling_path(
    alphas_cumprod: Sequence[float], count: int, strength: float = 1.0, spacing: str = "time"
) -> list[Step]:
    """At most `count` steps from the noise level `strength` (1: pure noise) to the clean end.

    spacing: even in "time", or half-way ("between") from there to even in log-SNR, the solver's own
    time. The first is the last time step itself (Lin et al. 2024). A part of the way gets that part
    of the steps.
    """
    total = max(1, round(strength * len(alphas_cumprod)))
    count = min(total, max(1, round(strength * count)))
    steps = make_ddim_timesteps("trailing", count, total)[::-1].tolist()
    if spacing == "between":
        levels = np.array([log_snr(alpha) for alpha in alphas_cumprod[:total]])  # falling with time
        wanted = (levels[steps] + np.linspace(levels[-1], levels[0], count)) / 2
        nearest = np.abs(levels[:, None] - wanted).argmin(axis=0)
        steps = sorted(set(nearest.tolist()), reverse=True)
    alphas = [*(float(alphas_cumprod[t]) for t in steps), 1.0]
    return [Step(t, alpha, after) for t, alpha, after in zip(steps, alphas, alphas[1:])]


def sample_ddim(
    denoise: StartDenoiser,
    x: Tensor,
    path: Iterable[Step],
    eta: float = 0.0,
    noise: NoiseSource = standard_normal,
) -> Tensor:
    """DDIM (Song et al. 2021): deterministic with eta 0, ancestral sampling (DDPM, Ho et al. 2020)
    with eta 1."""
    for step in path:
        eps = noise_of(x, denoise(x, step.timestep), step.alpha)
        sigma = eta * ((1 - step.alpha_next) / (1 - step.alpha) * (1 - step.alpha / step.alpha_next)) ** 0.5
        fresh = noise(x) if sigma > 0 else torch.zeros_like(x)
        x, _ = ddim_step(x, eps, step.alpha, step.alpha_next, sigma, fresh)
    return x


def sample_dpm_solver(denoise: StartDenoiser, x: Tensor, path: Iterable[Step]) -> Tensor:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. (2022): the second order costs no further
    evaluation."""
    before, h_before = None, 0.0
    for step in path:
        start = denoise(x, step.timestep)
        if step.alpha_next == 1.0:  # an infinite step in log-SNR, which lands on the prediction
            x = start
            continue
        h = log_snr(step.alpha_next) - log_snr(step.alpha)
        # Extrapolate the prediction to the middle of the step, by the one before.
        middle = start if before is None else start + (start - before) * (h / (2 * h_before))
        shrink = ((1 - step.alpha_next) / (1 - step.alpha)) ** 0.5
        x = shrink * x - step.alpha_next**0.5 * math.expm1(-h) * middle
        before, h_before = start, h
    return x


def log_snr(alpha: float) -> float:
    """lambda = log(signal / noise) of a cumulative product, half the log of the signal-to-noise
    ratio."""
    return 0.5 * math.log(alpha / (1 - alpha))


def noise_of(x: Tensor, start: Tensor, alpha: float) -> Tensor:
    """The noise that makes `x` of the clean `start`."""
    return (x - alpha**0.5 * start) / (1 - alpha) ** 0.5


def start_of(x: Tensor, prediction: Tensor, alpha: float | Tensor, parameterization: str = "eps") -> Tensor:
    """The clean latent of `x` by what a network predicts from it: the noise "eps", "x0" itself, or
    "v"."""
    if parameterization == "x0":
        return prediction
    if parameterization == "v":
        return alpha**0.5 * x - (1 - alpha) ** 0.5 * prediction
    return (x - (1 - alpha) ** 0.5 * prediction) / alpha**0.5
