"""Gaussian diffusion (Ho et al. 2020): the noise schedule and what follows from it, the training loss, ancestral sampling.

Shapes: x_0, x_t (N, channels, h, w); t (N,) time steps, int64.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ldm.errors import ConfigError
from ldm.models.diffusion.guidance import Condition
from ldm.models.diffusion.samplers import keep_region, standard_normal, start_of, step_noise
from ldm.modules.diffusionmodules.schedule import diffusion_tables, make_beta_schedule
from ldm.modules.diffusionmodules.util import over_positions
from ldm.util import check_choice


class GaussianDiffusion(nn.Module):
    """Noising and denoising by a network that a subclass has: `apply_model`.

    channels, image_size: of x. timesteps, beta_schedule, linear_start, linear_end, cosine_s, given_betas: the noise
        schedule. parameterization: the network predicts the noise "eps", the clean latent "x0", or
        "v" = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022).
    loss_type: "l1" or "l2"; logvar (learned with learn_logvar): loss = loss_simple / exp(logvar_t) + logvar_t;
        plus original_elbo_weight * loss_vlb. min_snr_gamma: cap of the signal-to-noise weighting (Hang et al. 2023),
        off by default as in the published recipe.
    v_posterior: posterior variance (1 - v) beta~ + v beta, used by ancestral sampling.
    """

    saves_logvar = False  # whether checkpoints carry it though it is not learned

    def __init__(
        self,
        image_size: int = 256,
        channels: int = 3,
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Sequence[float] | None = None,
        parameterization: str = "eps",
        v_posterior: float = 0.0,
        loss_type: str = "l2",
        l_simple_weight: float = 1.0,
        original_elbo_weight: float = 0.0,
        min_snr_gamma: float | None = None,
        learn_logvar: bool = False,
        logvar_init: float = 0.0,
        log_every_t: int = 200,
    ):
        super().__init__()
        check_choice("parameterization", parameterization, ("eps", "x0", "v"))
        check_choice("loss_type", loss_type, ("l1", "l2"))
        self.image_size, self.channels, self.log_every_t = image_size, channels, log_every_t
        self.parameterization, self.loss_type, self.min_snr_gamma = parameterization, loss_type, min_snr_gamma
        self.l_simple_weight, self.original_elbo_weight = l_simple_weight, original_elbo_weight
        self.v_posterior, self.learn_logvar = v_posterior, learn_logvar
        if given_betas is None:
            given_betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        self._register_schedule(np.asarray(given_betas, dtype=np.float64), logvar_init)

    def _register_schedule(self, betas: NDArray[np.float64], logvar_init: float) -> None:
        for name, table in diffusion_tables(betas, self.v_posterior, self.parameterization).items():
            self.register_buffer(name, table, persistent=name != "lvlb_weights")
        self.num_timesteps = len(betas)
        logvar = torch.full((self.num_timesteps,), float(logvar_init))
        if self.learn_logvar:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar, persistent=self.saves_logvar)

    @property
    def device(self) -> torch.device:
        return self.betas.device

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """The network's prediction, like x_noisy."""
        raise NotImplementedError

    # Noising and its inverses

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t from x_0."""
        noise = torch.randn_like(x_start) if noise is None else noise
        mean = self._at(self.sqrt_alphas_cumprod, t, x_start) * x_start
        return mean + self._at(self.sqrt_one_minus_alphas_cumprod, t, x_start) * noise

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return self._at(recip, t, x_t) * x_t - self._at(recipm1, t, x_t) * noise

    def predict_noise_from_start(self, x_t: Tensor, t: Tensor, x_start: Tensor) -> Tensor:
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return (self._at(recip, t, x_t) * x_t - x_start) / self._at(recipm1, t, x_t)

    def start_from(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 by what the network predicts from x_t."""
        if self.parameterization == "eps":  # by the published tables, whose rounding is checked
            return self.predict_start_from_noise(x_t, t, prediction)
        return start_of(x_t, prediction, self._at(self.alphas_cumprod, t, x_t), self.parameterization)

    def target_of(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is to predict."""
        if self.parameterization == "v":
            return self._at(self.sqrt_alphas_cumprod, t, x_start) * noise - self._at(self.sqrt_one_minus_alphas_cumprod, t, x_start) * x_start
        return x_start if self.parameterization == "x0" else noise

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, variance, clipped log variance) of q(x_{t-1} | x_t, x_0)."""
        mean = self._at(self.posterior_mean_coef1, t, x_t) * x_start + self._at(self.posterior_mean_coef2, t, x_t) * x_t
        return mean, self._at(self.posterior_variance, t, x_t), self._at(self.posterior_log_variance_clipped, t, x_t)

    def _at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return over_positions(table[t][:, None], like)

    # Training

    def p_losses(
        self, x_start: Tensor, cond: Condition, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log, under `train/` or `val/`)."""
        noise = torch.randn_like(x_start) if noise is None else noise
        prediction = self.apply_model(self.q_sample(x_start, t, noise), t, cond)
        simple = self.get_loss(prediction.float(), self.target_of(x_start, noise, t)).mean(dim=(1, 2, 3))
        logvar = self.logvar[t]
        weighted = simple if self.min_snr_gamma is None else simple * self.min_snr_weight(t)
        loss = self.l_simple_weight * (weighted / logvar.exp() + logvar).mean()
        loss_vlb = (self.lvlb_weights[t] * simple).mean()
        loss = loss + self.original_elbo_weight * loss_vlb
        parts = {"loss_simple": simple.mean(), "loss_vlb": loss_vlb, "loss": loss}
        if self.learn_logvar:
            parts["logvar"] = self.logvar.mean()
        prefix = "train" if self.training else "val"
        return loss, {f"{prefix}/{name}": value.detach() for name, value in parts.items()}

    def get_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Element by element."""
        return (F.l1_loss if self.loss_type == "l1" else F.mse_loss)(prediction, target, reduction="none")

    def min_snr_weight(self, t: Tensor) -> Tensor:
        """(N,) min(SNR, gamma), as a weight of the predicted quantity's error: over SNR for eps, over SNR + 1 for v."""
        snr = self.alphas_cumprod[t] / (1 - self.alphas_cumprod[t])
        capped = snr.clamp(max=self.min_snr_gamma)
        return capped / {"eps": snr, "x0": 1, "v": snr + 1}[self.parameterization]

    # Sampling

    @torch.no_grad()
    def sample(
        self,
        cond: Condition,
        batch_size: int = 16,
        return_intermediates: bool = False,
        x_T: Tensor | None = None,
        verbose: bool = True,
        timesteps: int | None = None,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        shape: Sequence[int] | None = None,
        temperature: float = 1.0,
        callback: Callable[[int], None] | None = None,
        img_callback: Callable[[Tensor, int], None] | None = None,
        log_every_t: int | None = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Ancestral sampling over the lowest `timesteps` time steps, all of them by default: latents of `shape`.

        `shape` is (batch_size, channels, h, w). mask, x0: keep x0 where mask is 1.
        """
        if shape is None:
            shape = (batch_size, self.channels, self.image_size, self.image_size) if x_T is None else x_T.shape
        total = self.num_timesteps if timesteps is None else timesteps
        if not 1 <= total <= self.num_timesteps:
            raise ConfigError(f"timesteps must be between 1 and {self.num_timesteps}, got {timesteps}")
        if mask is not None and x0 is None:
            raise ValueError("a mask needs x0, the latent to keep where the mask is 1")
        every = log_every_t or self.log_every_t
        x = torch.randn(tuple(shape), device=self.betas.device) if x_T is None else x_T
        intermediates = [x]
        for i in tqdm(range(total - 1, -1, -1), desc="sampling", disable=not verbose):
            t = torch.full((len(x),), i, device=x.device, dtype=torch.long)
            x = self.p_sample(x, cond, t, temperature)
            if mask is not None:
                x = keep_region(x, self.q_sample(x0, t), mask)
            if i % every == 0 or i == total - 1:
                intermediates.append(x)
            if callback:
                callback(i)
            if img_callback:
                img_callback(x, i)
        return (x, intermediates) if return_intermediates else x

    @torch.no_grad()
    def p_sample(self, x: Tensor, c: Condition, t: Tensor, temperature: float = 1.0) -> Tensor:
        """x_{t-1} from x_t; no noise is added at time step 0."""
        start = self.start_from(self.apply_model(x, t, c), x, t)
        mean, _, log_variance = self.q_posterior(start, x, t)
        noise = step_noise(x, standard_normal, temperature)
        return mean + over_positions((t > 0).to(x.dtype)[:, None], x) * (0.5 * log_variance).exp() * noise
