"""Noise schedules: betas, the tables derived from them, and the time steps that DDIM visits.

Everything is computed in float64 and stored in float32.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.errors import ConfigError

DISCRETIZATIONS = ("uniform", "quad", "trailing")


def make_beta_schedule(
    schedule: str,
    n_timestep: int,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> NDArray[np.float64]:
    """(n_timestep,) betas. "linear" is linear in sqrt(beta); "cosine" is Nichol & Dhariwal's
    (2021)."""
    if schedule == "linear":
        return np.linspace(linear_start**0.5, linear_end**0.5, n_timestep) ** 2
    if schedule == "cosine":
        steps = np.arange(n_timestep + 1) / n_timestep + cosine_s
        alphas_cumprod = np.cos(steps / (1 + cosine_s) * np.pi / 2) ** 2
        return np.clip(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0, 0.999)
    if schedule == "sqrt_linear":
        return np.linspace(linear_start, linear_end, n_timestep)
    if schedule == "sqrt":
        return np.linspace(linear_start, linear_end, n_timestep) ** 0.5
    raise ConfigError(f"beta_schedule must be linear, cosine, sqrt_linear or sqrt, got {schedule!r}")


def checked_betas(betas: Sequence[float] | NDArray) -> NDArray[np.float64]:
    """(T,) betas. Raises ConfigError unless all are between 0 and 1, the ends left out."""
    try:
        array = np.asarray(betas, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 1 or not array.size or not ((array > 0) & (array < 1)).all():
        raise ConfigError(
            "the noise schedule's betas (given_betas, or linear_start to linear_end) must be numbers above 0 and below 1"
        )
    return array


def diffusion_tables(
    betas: NDArray[np.float64], v_posterior: float = 0.0, parameterization: str = "eps"
) -> dict[str, Tensor]:
    """All (T,) float32 tables of q(x_t | x_0), q(x_{t-1} | x_t, x_0) and the variational bound's
    weights, by name.

    The posterior's variance is (1 - v) * beta~ + v * beta with v = `v_posterior`.
    """
    alphas = 1.0 - betas
    bar = np.cumprod(alphas)
    bar_prev = np.append(1.0, bar[:-1])
    variance = (1 - v_posterior) * betas * (1 - bar_prev) / (1 - bar) + v_posterior * betas
    tables = {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": bar_prev,
        "sqrt_alphas_cumprod": np.sqrt(bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - bar),
        "log_one_minus_alphas_cumprod": np.log(1 - bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / bar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / bar - 1),
        "posterior_variance": variance,
        # The variance is 0 at the first step, hence the floor.
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(bar_prev) / (1 - bar),
        "posterior_mean_coef2": (1 - bar_prev) * np.sqrt(alphas) / (1 - bar),
        "lvlb_weights": _vlb_weights(betas, bar, variance, parameterization),
    }
    return {name: torch.tensor(table, dtype=torch.float32) for name, table in tables.items()}


def _vlb_weights(
    betas: NDArray[np.float64], bar: NDArray[np.float64], variance: NDArray[np.float64], parameterization: str
) -> NDArray[np.float64]:
    # Ho et al. 2020, equation 12, for the noise
    if parameterization == "x0":
        weights = 0.5 * np.sqrt(bar) / (2 - bar)
    else:
        with np.errstate(divide="ignore"):
            weights = betas**2 / (2 * variance * (1 - betas) * (1 - bar))
        if parameterization == "v":
            weights = weights * bar  # an error of v is that of the noise, over sqrt(bar)
    weights[0] = weights[min(1, len(weights) - 1)]  # infinite at the first step, where the variance is 0
    return weights


def make_ddim_timesteps(
    ddim_discr_method: str, num_ddim_timesteps: int, num_ddpm_timesteps: int, verbose: bool = False
) -> NDArray[np.int64]:
    """Ascending time steps for DDIM.

    "uniform" and "quad" are the published ones: evenly (which may give more steps than asked for,
    and never the last) or quadratically spaced, plus one. "trailing" gives exactly the number asked
    for, ending with the last time step (Lin et al. 2024).
    """
    count, total = num_ddim_timesteps, num_ddpm_timesteps
    if not 1 <= count <= total:
        raise ConfigError(f"the number of sampling steps must be between 1 and {total}, got {count}")
    if ddim_discr_method == "uniform":
        return np.arange(0, total, total // count) + 1
    if ddim_discr_method == "quad":
        return (np.linspace(0, np.sqrt(total * 0.8), count) ** 2).astype(np.int64) + 1
    if ddim_discr_method == "trailing":
        return np.round(total - np.arange(count)[::-1] * (total / count)).astype(np.int64) - 1
    raise ConfigError(f"time step spacing must be {', '.join(DISCRETIZATIONS)}, got {ddim_discr_method!r}")


def make_ddim_sampling_parameters(
    alphacums: Tensor | NDArray,
    ddim_timesteps: Sequence[int] | NDArray,
    eta: float,
    verbose: bool = False,
    final_alpha: float | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(sigmas, alphas, previous alphas), all (S,), equation 16 of Song et al. (2021).

    The step below the first has `final_alpha`, by default (as published) that of time step 0.
    """
    alphacums = np.asarray(alphacums, dtype=np.float64)
    steps = np.asarray(ddim_timesteps)
    alphas = alphacums[steps]
    alphas_prev = np.append(alphacums[0] if final_alpha is None else final_alpha, alphacums[steps[:-1]])
    sigmas = eta * np.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev))
    return sigmas, alphas, alphas_prev
