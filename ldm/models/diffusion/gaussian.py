"""Gaussian diffusion (Ho et al. 2020): the noise schedule and what follows from it, ancestral
sampling. Training is in `ddpm`.

Shapes: x_0, x_t (N, channels, h, w); t (N,) time steps, int64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldm.checks import check_choice, check_count, check_fractions, check_number
from ldm.config.groups import flat_keys
from ldm.models.diffusion.conditions import Condition
from ldm.models.diffusion.samplers import Denoiser, keep_region, standard_normal, start_of, step_noise
from ldm.modules.diffusionmodules.schedule import checked_betas, diffusion_tables, make_beta_schedule
from ldm.modules.diffusionmodules.util import over_positions


@dataclass(frozen=True)
class NoiseSchedule:
    """The betas, by name (see `make_beta_schedule`) or as `given_betas`.

    v_posterior: the posterior's variance is (1 - v) beta~ + v beta, which ancestral sampling uses.
    """

    timesteps: int = 1000
    beta_schedule: str = "linear"
    linear_start: float = 1e-4
    linear_end: float = 2e-2
    cosine_s: float = 8e-3
    given_betas: Sequence[float] | None = None
    v_posterior: float = 0.0

    def __post_init__(self) -> None:
        check_count("timesteps", self.timesteps)
        for name in ("linear_start", "linear_end"):
            check_number(name, getattr(self, name), above=0)
        check_number("cosine_s", self.cosine_s, least=0)
        check_fractions(v_posterior=self.v_posterior)


class GaussianDiffusion(nn.Module):
    """Noising and denoising by a network that a subclass has: `apply_model`.

    channels, image_size: of x. parameterization: the network predicts the noise "eps", the clean
        latent "x0", or "v" = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022,
        section 4). Further parameters: NoiseSchedule's.
    """

    alphas_cumprod: Tensor

    @flat_keys
    def __init__(
        self,
        image_size: int = 256,
        channels: int = 3,
        parameterization: str = "eps",
        *,
        schedule: NoiseSchedule,
    ):
        super().__init__()
        check_choice("parameterization", parameterization, ("eps", "x0", "v"))
        check_count("image_size", image_size)
        check_count("channels", channels)
        self.image_size, self.channels, self.parameterization = image_size, channels, parameterization
        names = asdict(schedule)
        self.v_posterior = names.pop("v_posterior")
        self.register_schedule(**names)

    def register_schedule(
        self,
        given_betas: Sequence[float] | NDArray | None = None,
        beta_schedule: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
    ) -> None:
        """Set the noise schedule and all tables that follow from it, on the device where they
        were. Raises ConfigError for betas out of range."""
        if given_betas is None:
            given_betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        device = self.betas.device if hasattr(self, "betas") else None
        betas = checked_betas(given_betas)
        for name, table in diffusion_tables(betas, self.v_posterior, self.parameterization).items():
            self.register_buffer(name, table.to(device), persistent=name != "lvlb_weights")
        self.num_timesteps, self.linear_start, self.linear_end = len(betas), linear_start, linear_end

    @property
    def device(self) -> torch.device:
        """Where the tables, and so the model, are."""
        return self.betas.device

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """The network's prediction, like x_noisy."""
        raise NotImplementedError

    # Noising and its inverses

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise (Ho et al. 2020, equation 4)."""
        noise = torch.randn_like(x_start) if noise is None else noise
        mean = self._at(self.sqrt_alphas_cumprod, t, x_start) * x_start
        return mean + self._at(self.sqrt_one_minus_alphas_cumprod, t, x_start) * noise

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_0 = x_t / sqrt(alpha_bar) - sqrt(1 / alpha_bar - 1) noise: `q_sample` solved for it."""
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return self._at(recip, t, x_t) * x_t - self._at(recipm1, t, x_t) * noise

    def predict_noise_from_start(self, x_t: Tensor, t: Tensor, x_start: Tensor) -> Tensor:
        """The noise that makes x_t of x_0."""
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return (self._at(recip, t, x_t) * x_t - x_start) / self._at(recipm1, t, x_t)

    def start_from(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 by what the network predicts from x_t."""
        if self.parameterization == "eps":  # by the published tables, whose rounding is checked
            return self.predict_start_from_noise(x_t, t, prediction)
        return start_of(x_t, prediction, self._at(self.alphas_cumprod, t, x_t), self.parameterization)

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, variance, clipped log variance) of q(x_{t-1} | x_t, x_0) (Ho et al. 2020,
        equations 6 and 7)."""
        mean = (
            self._at(self.posterior_mean_coef1, t, x_t) * x_start
            + self._at(self.posterior_mean_coef2, t, x_t) * x_t
        )
        return (
            mean,
            self._at(self.posterior_variance, t, x_t),
            self._at(self.posterior_log_variance_clipped, t, x_t),
        )

    def _at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return over_positions(table[t][:, None], like)

    # Sampling

    @torch.no_grad()
    def ancestral_steps(
        self,
        predict_start: Denoiser,
        x: Tensor,
        total: int,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Ancestral sampling over the lowest `total` time steps: (time step, x_{t-1}, the x_0
        predicted from x_t), one by one.

        predict_start(x_t, t): x_0. mask, x0: keep x0 where mask is 1.
        """
        for i in range(total - 1, -1, -1):
            t = torch.full((len(x),), i, device=x.device, dtype=torch.long)
            start = predict_start(x, t)
            x = self.ancestral_step(start, x, t, step_noise(x, standard_normal, temperature, noise_dropout))
            if mask is not None:
                x = keep_region(x, self.q_sample(x0, t), mask)
            yield i, x, start

    def ancestral_step(self, start: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_{t-1} from x_t and the x_0 predicted from it (Ho et al. 2020, algorithm 2); no noise is
        added at time step 0."""
        mean, _, log_variance = self.q_posterior(start, x, t)
        return mean + over_positions((t > 0).to(x.dtype)[:, None], x) * (0.5 * log_variance).exp() * noise
