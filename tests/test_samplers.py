"""DPM-Solver++(2M) against another implementation, its order of convergence; DDIM and ancestral sampling against the
published loops; the steps that a run takes."""

import math

import numpy as np
import pytest
import torch
from builders import CHANNELS, SIDE, assert_same, conditions, latents, tiny_ldm
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.samplers import (
    StartDenoiser,
    Step,
    log_snr,
    noise_of,
    sample_ddim,
    sample_dpm_solver,
    sampling_path,
    start_of,
)
from ldm.modules.diffusionmodules.schedule import diffusion_tables, make_beta_schedule

TABLES = diffusion_tables(make_beta_schedule("linear", 1000, 0.0015, 0.0195))
ALPHAS = TABLES["alphas_cumprod"].tolist()
SPACINGS = ("time", "between")


def made_up(x: Tensor, timestep: int) -> Tensor:
    """A denoiser that is far from linear in the latent and in time."""
    return torch.tanh(1.5 * x + math.sin(timestep / 100)) + 0.3 * torch.cos(2 * x) * timestep / 1000


class Mixture:
    """The true denoiser of data that are 1 or -1, each blurred by a Gaussian of `std`, for a list of alphas."""

    def __init__(self, alphas: list[float], std: float = 0.5):
        self.alphas, self.std = alphas, std

    def __call__(self, x: Tensor, timestep: int) -> Tensor:
        alpha = self.alphas[timestep]
        variance = alpha * self.std**2 + 1 - alpha
        mean = torch.tanh(alpha**0.5 * x / variance)
        return mean + alpha**0.5 * self.std**2 / variance * (x - alpha**0.5 * mean)


# DPM-Solver++


def by_diffusers(denoise: StartDenoiser, x: Tensor, path: list[Step]) -> Tensor:
    scheduler = DPMSolverMultistepScheduler(
        trained_betas=TABLES["betas"].numpy(), algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint",
        prediction_type="epsilon", lower_order_final=True, final_sigmas_type="zero",
    )  # fmt: skip
    scheduler.set_timesteps(timesteps=[step.timestep for step in path])
    assert scheduler.timesteps.tolist() == [step.timestep for step in path]
    for t, step in zip(scheduler.timesteps, path, strict=True):
        eps = noise_of(x, denoise(x, step.timestep), step.alpha)
        x = scheduler.step(eps, t, x).prev_sample
    return x


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("count", [2, 3, 10, 20, 50])
def test_dpm_solver_equals_that_of_diffusers(count: int, strength: float, spacing: str) -> None:
    path = sampling_path(ALPHAS, count, strength, spacing)
    expected = by_diffusers(made_up, latents("x"), path)
    torch.testing.assert_close(sample_dpm_solver(made_up, latents("x"), path), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sample", [sample_dpm_solver, sample_ddim])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_a_start_that_never_changes_is_reached(sample, count: int) -> None:
    start = latents("start")
    assert_same(sample(lambda x, t: start, latents("x"), sampling_path(ALPHAS, count)), start, 1e-4)


def test_a_start_that_never_changes_is_followed_exactly_to_any_noise_level() -> None:
    """x keeps its noise and its start; only their shares change."""
    start, eps = latents("start").double(), latents("eps").double()
    path = sampling_path(ALPHAS, 10)[:-1]
    x = path[0].alpha ** 0.5 * start + (1 - path[0].alpha) ** 0.5 * eps
    end = path[-1].alpha_next
    for sample in (sample_dpm_solver, sample_ddim):
        assert_same(sample(lambda x, t: start, x, path), end**0.5 * start + (1 - end) ** 0.5 * eps, 1e-10)


def even_path(steps: int) -> tuple[list[Step], list[float]]:
    """(steps even in log-SNR between two noise levels, neither of them clean; their alphas)."""
    alphas = [1 / (1 + math.exp(-2 * level)) for level in np.linspace(-2.5, 2.5, steps + 1)]
    return [Step(i, *pair) for i, pair in enumerate(zip(alphas, alphas[1:]))], alphas


def error(sample, steps: int) -> float:
    """The distance from the solution, to which 1000 steps come close enough."""
    x = latents("x").double()
    (path, alphas), (fine, fine_alphas) = even_path(steps), even_path(1000)
    exact = sample_dpm_solver(Mixture(fine_alphas), x, fine)
    return float((sample(Mixture(alphas), x, path) - exact).square().mean().sqrt())


@pytest.mark.parametrize(
    "sample, low, high", [(sample_dpm_solver, 3.4, 4.8), (sample_ddim, 1.8, 2.2)], ids=["second", "first"]
)
def test_the_order_of_the_solver(sample, low: float, high: float) -> None:
    errors = [error(sample, steps) for steps in (20, 40, 80)]
    assert all(low < before / after < high for before, after in zip(errors, errors[1:])), errors


def test_dpm_solver_needs_fewer_steps_than_ddim() -> None:
    x, denoise = latents("x"), Mixture(ALPHAS)
    exact = sample_ddim(denoise, x, sampling_path(ALPHAS, 1000))
    solver = sample_dpm_solver(denoise, x, sampling_path(ALPHAS, 20, spacing="between"))
    ddim = sample_ddim(denoise, x, sampling_path(ALPHAS, 50))
    assert (solver - exact).square().mean() < 0.5 * (ddim - exact).square().mean()


def test_dpm_solver_asks_the_denoiser_once_a_step() -> None:
    asked = []
    path = sampling_path(ALPHAS, 7)
    sample_dpm_solver(lambda x, t: asked.append(t) or x, latents("x"), path)
    assert asked == [step.timestep for step in path]


# DDIM and ancestral sampling


def start_denoiser(model) -> StartDenoiser:
    """The model under the first of `conditions` as predictor of x_0."""
    alphas = model.alphas_cumprod.tolist()
    return lambda x, t: start_of(
        x, model.apply_model(x, torch.full((len(x),), t), conditions(len(x))[0]), alphas[t]
    )


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 4, 9])
def test_ddim_equals_the_published_sampler_with_trailing_steps(model, count: int) -> None:
    path = sampling_path(model.alphas_cumprod.tolist(), count)
    expected, _ = DDIMSampler(model).sample(
        count,
        2,
        (CHANNELS, SIDE, SIDE),
        conditions()[0],
        x_T=latents("x_T"),
        ddim_discretize="trailing",
        verbose=False,
    )
    assert_same(sample_ddim(start_denoiser(model), latents("x_T"), path), expected, 1e-4)


@torch.no_grad()
def test_ddim_with_noise_equals_the_published_sampler(model) -> None:
    path = sampling_path(model.alphas_cumprod.tolist(), 5)
    torch.manual_seed(0)
    expected, _ = DDIMSampler(model).sample(
        5,
        2,
        (CHANNELS, SIDE, SIDE),
        conditions()[0],
        x_T=latents("x_T"),
        ddim_discretize="trailing",
        eta=0.7,
        verbose=False,
    )
    torch.manual_seed(0)
    assert_same(sample_ddim(start_denoiser(model), latents("x_T"), path, eta=0.7), expected, 1e-4)


@torch.no_grad()
def test_eta_1_over_every_time_step_is_ancestral_sampling() -> None:
    model = tiny_ldm(timesteps=40, linear_start=0.01, linear_end=0.3)
    path = sampling_path(model.alphas_cumprod.tolist(), 40)
    torch.manual_seed(0)
    expected = model.sample(conditions()[0], 2, x_T=latents("x_T"), verbose=False)
    torch.manual_seed(0)
    assert_same(sample_ddim(start_denoiser(model), latents("x_T"), path, eta=1.0), expected, 1e-3)


def test_noise_is_drawn_for_every_step_but_the_last_and_only_where_it_is_used() -> None:
    path, drawn = sampling_path(ALPHAS, 5), []
    for eta in (0.0, 1.0):
        sample_ddim(
            made_up, latents("x"), path, eta, lambda like: drawn.append(eta) or torch.zeros_like(like)
        )
    assert drawn == [1.0] * 4


# Steps


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.1, 0.001])
@pytest.mark.parametrize("count", [1, 2, 7, 20, 50, 250, 1000])
def test_a_path_descends_from_its_noise_level_to_the_clean_end(
    count: int, strength: float, spacing: str
) -> None:
    path = sampling_path(ALPHAS, count, strength, spacing)
    steps = [step.timestep for step in path]
    assert steps[0] == round(1000 * strength) - 1 and steps[-1] >= 0
    assert steps == sorted(set(steps), reverse=True)
    assert [step.alpha for step in path] == [ALPHAS[t] for t in steps]
    assert [step.alpha_next for step in path] == [*(ALPHAS[t] for t in steps[1:]), 1.0]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "count, strength, expected", [(20, 1.0, 20), (20, 0.5, 10), (50, 0.3, 15), (1, 0.5, 1), (1, 0.001, 1)]
)
def test_a_part_of_the_way_takes_its_part_of_the_steps(
    count: int, strength: float, expected: int, spacing: str
) -> None:
    assert len(sampling_path(ALPHAS, count, strength, spacing)) == expected


@pytest.mark.parametrize("count", [1, 20, 333, 1000])
def test_every_step_asked_for_is_taken_where_they_are_even_in_time(count: int) -> None:
    assert len(sampling_path(ALPHAS, count)) == count


def test_a_schedule_may_be_short() -> None:
    assert [step.timestep for step in sampling_path(ALPHAS[:3], 20)] == [2, 1, 0]


def test_steps_between_the_spacings_lie_between_them() -> None:
    count = 20
    in_time, between = (
        [log_snr(step.alpha) for step in sampling_path(ALPHAS, count, spacing=s)] for s in SPACINGS
    )
    in_snr = np.linspace(log_snr(ALPHAS[-1]), log_snr(ALPHAS[0]), count)
    middle = (np.array(in_time) + in_snr) / 2
    finest = np.abs(np.diff([log_snr(alpha) for alpha in ALPHAS[::-1]]))
    assert np.abs(np.array(between) - middle).max() <= finest.max() / 2
    assert np.abs(np.array(between) - in_time).max() > 0.3
