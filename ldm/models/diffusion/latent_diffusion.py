"""Latent diffusion (Ho et al. 2020, Rombach et al. 2022): schedule, losses, EMA, first stage, ancestral sampling.

Shapes: x (N, 3, H, W) pictures in [-1, 1]; z, x_0, x_t (N, channels, h, w) latents; t (N,) time steps, int64.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ldm.checkpoint import load_strict, read_state_dict
from ldm.errors import ConfigError
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.guidance import Condition
from ldm.models.diffusion.samplers import keep_region, standard_normal, start_of, step_noise
from ldm.modules.diffusionmodules.schedule import diffusion_tables, make_beta_schedule
from ldm.modules.diffusionmodules.util import over_positions
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.util import instantiate_from_config

log = logging.getLogger(__name__)


class LatentDiffusionModel(nn.Module):
    """What every latent diffusion model here shares, without Lightning; `ddpm.LatentDiffusion` adds the training loop.

    unet_config: the network, called through `model_class(unet_config, conditioning_key)`.
    first_stage_config: the frozen autoencoder. cond_stage_config: "__is_adaptive__" (the child class makes the
        conditions) or "__is_unconditional__".
    channels, image_size: of the latent. timesteps, beta_schedule, linear_start, linear_end, cosine_s, given_betas:
        the noise schedule. parameterization: the network predicts the noise "eps", the clean latent "x0", or
        "v" = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022).
    loss_type: "l1" or "l2"; logvar (learned with learn_logvar): loss = loss_simple / exp(logvar_t) + logvar_t;
        plus original_elbo_weight * loss_vlb. min_snr_gamma: cap of the signal-to-noise weighting (Hang et al. 2023),
        off by default as in the published recipe.
    scale_by_std: set the latent's scale (and shift, where there is one) from the first `scale_batches` training batches,
        unless a whole model's weights came from `ckpt_path`.
    v_posterior: posterior variance (1 - v) beta~ + v beta, used by ancestral sampling.
    """

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        cond_stage_config: str = "__is_unconditional__",
        num_timesteps_cond: int | None = None,
        cond_stage_key: str = "image",
        cond_stage_trainable: bool = False,
        conditioning_key: Any = None,
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        scale_batches: int = 16,
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        loss_type: str = "l2",
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        monitor: str = "val/loss",
        monitor_mode: str = "min",
        use_ema: bool = True,
        first_stage_key: str = "image",
        image_size: int = 256,
        channels: int = 3,
        log_every_t: int = 200,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Sequence[float] | None = None,
        original_elbo_weight: float = 0.0,
        v_posterior: float = 0.0,
        l_simple_weight: float = 1.0,
        min_snr_gamma: float | None = None,
        parameterization: str = "eps",
        scheduler_config: Mapping[str, Any] | None = None,
        learn_logvar: bool = False,
        logvar_init: float = 0.0,
        learning_rate: float = 1e-4,
        # Published config files may give these four; they have no effect in the published code either.
        concat_mode: bool = True,
        clip_denoised: bool = True,
        use_positional_encodings: bool = False,
        cond_stage_forward: None = None,
        model_class: Callable[[Mapping[str, Any], Any], nn.Module] | None = None,
    ):
        super().__init__()
        _check_choice("parameterization", parameterization, ("eps", "x0", "v"))
        _check_choice("loss_type", loss_type, ("l1", "l2"))
        _check_choice("cond_stage_config", cond_stage_config, ("__is_adaptive__", "__is_unconditional__"))
        if cond_stage_trainable or (num_timesteps_cond or 1) != 1:
            raise ConfigError("LatentDiffusion: cond_stage_trainable and num_timesteps_cond > 1 are not supported")
        self.parameterization, self.loss_type = parameterization, loss_type
        self.first_stage_key, self.cond_stage_key = first_stage_key, cond_stage_key
        self.image_size, self.channels = image_size, channels
        self.log_every_t, self.monitor, self.monitor_mode = log_every_t, monitor, monitor_mode
        self.v_posterior, self.original_elbo_weight = v_posterior, original_elbo_weight
        self.l_simple_weight, self.min_snr_gamma = l_simple_weight, min_snr_gamma
        self.learn_logvar, self.learning_rate, self.scheduler_config = learn_logvar, learning_rate, scheduler_config
        self.use_ema, self.scale_by_std, self.scale_batches = use_ema, scale_by_std, scale_batches
        self._scale_is_known = False

        if given_betas is None:
            given_betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        self._register_schedule(np.asarray(given_betas, dtype=np.float64), logvar_init)
        self.register_buffer("scale_factor", torch.tensor(float(scale_factor)))

        self.model = (model_class or DiffusionWrapper)(unet_config, conditioning_key)
        if use_ema:
            self.model_ema = LitEma(self.model)
        self.first_stage_model = instantiate_from_config(first_stage_config).eval().requires_grad_(False)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys, load_only_unet)

    def _register_schedule(self, betas: NDArray[np.float64], logvar_init: float) -> None:
        for name, table in diffusion_tables(betas, self.v_posterior, self.parameterization).items():
            self.register_buffer(name, table, persistent=name != "lvlb_weights")
        self.num_timesteps = len(betas)
        logvar = torch.full((self.num_timesteps,), float(logvar_init))
        if self.learn_logvar:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar)

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = (), only_unet: bool = False) -> None:
        """Load weights strictly (with `only_unet`, the network's alone). Raises CheckpointError.

        From a file without moving averages, as made for inference, these start at the weights.
        """
        state = read_state_dict(path)
        averages = tuple(f"{name}." for name, child in self.named_children() if isinstance(child, LitEma))
        has_averages = not only_unet and any(name.startswith(averages) for name in state)
        if only_unet:
            unet = {name.removeprefix("model."): v for name, v in state.items() if name.startswith("model.")}
            load_strict(self.model, unet, ignore_keys, where=str(path))
        else:
            left_out = (*ignore_keys, *self.optional_keys(state), *(() if has_averages else averages))
            load_strict(self, state, left_out, where=str(path))
            self._scale_is_known = True
        if not has_averages:
            for average, module in self.averaged():
                average.start_at(module)

    def optional_keys(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Prefixes of names that a whole checkpoint may have or lack."""
        return ("first_stage_model.loss.",)

    def train(self, mode: bool = True) -> "LatentDiffusionModel":
        super().train(mode)
        self.first_stage_model.eval()  # frozen: its dropout and norms must not wake up with the rest
        return self

    # Weights for inference

    def averaged(self) -> list[tuple[LitEma, nn.Module]]:
        """What has a moving average: (the average, the module)."""
        return [(self.model_ema, self.model)] if self.use_ema else []

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Within it the averaged weights are in place; the live ones come back even if the body raises."""
        pairs = self.averaged()
        for average, module in pairs:
            average.store(module)
        try:
            for average, module in pairs:
                average.copy_to(module)
            if context is not None:
                log.debug("%s: averaged weights in place", context)
            yield
        finally:
            for average, module in pairs:
                average.restore(module)

    @property
    def device(self) -> torch.device:
        return self.betas.device

    # First stage

    def encode_first_stage(self, x: Tensor) -> DiagonalGaussianDistribution:
        return self.first_stage_model.encode(x)

    def get_first_stage_encoding(self, posterior: DiagonalGaussianDistribution | Tensor) -> Tensor:
        """The scaled latent of a posterior (drawn from it) or of an unscaled latent."""
        z = posterior if isinstance(posterior, Tensor) else posterior.sample()
        return self.scale_factor * z

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Pictures (N, 3, H, W), about [-1, 1], from scaled latents."""
        return self.first_stage_model.decode(z / self.scale_factor)

    # Diffusion

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """The network's prediction, like x_noisy."""
        return self.model(x_noisy, t)

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

    def forward(self, x: Tensor, c: Condition = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log) of latents x at random time steps."""
        t = torch.randint(0, self.num_timesteps, (len(x),), device=x.device)
        return self.p_losses(x, c, t)

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

    def get_input(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Condition]:
        """(scaled latents, condition) of a batch."""
        encoded = self.encode_batch(batch)
        return encoded[0], self.condition_of(batch, *encoded)

    def encode_batch(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What the frozen networks make of a batch of channels-last pictures: the scaled latents, first of all."""
        x = batch[self.first_stage_key].permute(0, 3, 1, 2).float()
        with torch.no_grad():
            return (self.get_first_stage_encoding(self.encode_first_stage(x)),)

    def condition_of(self, batch: Mapping[str, Tensor], x: Tensor) -> Condition:
        """The condition, by the present weights, of what `encode_batch` gave."""
        return None

    def unscaled_latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self.encode_first_stage(batch[self.first_stage_key].permute(0, 3, 1, 2).float()).sample()

    def set_scale(self, z: Tensor) -> None:
        """Scale so that these unscaled latents, with those of all other processes, get std 1."""
        self.scale_factor.fill_(1 / self.gathered(z).std())

    def shared_step(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], int]:
        x, c = self.get_input(batch)
        return *self(x, c), len(x)

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Tensor], max_images: int = 4, ddim_steps: int = 20) -> dict[str, Tensor]:
        """Named (N, 3, H, W) pictures for the image logger: reconstructions, and samples of the averaged weights."""
        x, c = self.get_input(first_samples(batch, max_images))
        with self.ema_scope():
            samples, _ = self.sample_log(c, len(x), ddim=True, ddim_steps=ddim_steps, ddim_discretize="trailing")
        return {"reconstructions": self.decode_first_stage(x), "samples": self.decode_first_stage(samples)}

    def trained_parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *([self.logvar] if self.learn_logvar else [])]

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

    @torch.no_grad()
    def sample_log(
        self, cond: Condition, batch_size: int, ddim: bool, ddim_steps: int | None = None, **options: Any
    ) -> tuple[Tensor, Any]:
        """(latents, intermediates) by DDIM or ancestral sampling; `options` go to the sampler."""
        if not ddim:
            return self.sample(cond, batch_size, return_intermediates=True, **options)
        x_T = options.get("x_T")
        shape = (self.channels, self.image_size, self.image_size) if x_T is None else x_T.shape[1:]
        return DDIMSampler(self).sample(ddim_steps, batch_size, shape, cond, **{"verbose": False, **options})


class DiffusionWrapper(nn.Module):
    """Holds the network under the published name `model.diffusion_model`; unconditional."""

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: None = None):
        super().__init__()
        if conditioning_key is not None:
            raise ConfigError(f"LatentDiffusion is unconditional; conditioning_key {conditioning_key!r} is not supported")
        self.diffusion_model = instantiate_from_config(diff_model_config)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.diffusion_model(x, t)


def first_samples(batch: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The first n samples of a batch of tensors and lists."""
    return {key: value[:n] for key, value in batch.items()}


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
