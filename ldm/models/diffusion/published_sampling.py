"""Sampling under latent-diffusion's names and signatures, over `GaussianDiffusion.ancestral_steps`.

Scripts written for the published code call these; nothing here computes anything of its own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import ConfigError
from ldm.models.diffusion.conditions import Condition, fitted, over_parts
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.samplers import repeated_normal, standard_normal, step_noise
from ldm.modules.distributions.distributions import normal_kl
from ldm.published.helpers import mean_flat


class PublishedSampling:
    """Methods of a DDPM. Options that several of them have:

    quantize_denoised: move every predicted x_0 to the nearest codes of the first stage, which must
    have some.
    clip_denoised: clip it to [-1, 1]. repeat_noise: the same noise for the whole batch.
    score_corrector: its `modify_score(model, eps, x, t, c, **corrector_kwargs)` replaces the
    predicted noise.
    mask, x0: keep x0 where mask is 1. timesteps, start_T: only so many time steps, the lowest. x_T:
    what to start from.
    callback(i), img_callback(x, i): called after time step i. log_every_t: which time steps the
    intermediates hold.
    """

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, variance, log variance) of q(x_t | x_0)."""
        log_variance = self._at(self.log_one_minus_alphas_cumprod, t, x_start)
        return (
            self._at(self.sqrt_alphas_cumprod, t, x_start) * x_start,
            1.0 - self._at(self.alphas_cumprod, t, x_start),
            log_variance,
        )

    def _prior_bpd(self, x_start: Tensor) -> Tensor:
        """(N,) how far q(x_T | x_0) is from pure noise: the Kullback-Leibler divergence L_T (Ho et
        al. 2020, equation 5), in bits per dimension."""
        last = torch.full((len(x_start),), self.num_timesteps - 1, device=x_start.device)
        mean, _, log_variance = self.q_mean_variance(x_start, last)
        return mean_flat(normal_kl(mean, log_variance, 0.0, 0.0)) / math.log(2)

    def p_mean_variance(
        self,
        x: Tensor,
        c: Condition,
        t: Tensor,
        clip_denoised: bool,
        return_codebook_ids: bool = False,
        quantize_denoised: bool = False,
        return_x0: bool = False,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, ...]:
        """(mean, variance, clipped log variance) of p(x_{t-1} | x_t) and, with `return_x0`, the
        predicted x_0."""
        _refuse_codebook_ids(return_codebook_ids)
        start = self.denoised(x, c, t, clip_denoised, quantize_denoised, score_corrector, corrector_kwargs)
        return (*self.q_posterior(start, x, t), *([start] if return_x0 else []))

    @torch.no_grad()
    def p_sample(
        self,
        x: Tensor,
        c: Condition,
        t: Tensor,
        clip_denoised: bool = False,
        repeat_noise: bool = False,
        return_codebook_ids: bool = False,
        quantize_denoised: bool = False,
        return_x0: bool = False,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x_{t-1} and, with `return_x0`, the predicted x_0."""
        _refuse_codebook_ids(return_codebook_ids)
        start = self.denoised(x, c, t, clip_denoised, quantize_denoised, score_corrector, corrector_kwargs)
        noise = step_noise(
            x, repeated_normal if repeat_noise else standard_normal, temperature, noise_dropout
        )
        before = self.ancestral_step(start, x, t, noise)
        return (before, start) if return_x0 else before

    def denoised(
        self,
        x: Tensor,
        c: Condition,
        t: Tensor,
        clip_denoised: bool = False,
        quantize_denoised: bool = False,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """The x_0 predicted from x at time steps t (N,)."""
        prediction = self.apply_model(x, t, c)
        if score_corrector is not None:
            if self.parameterization != "eps":
                raise ValueError(
                    "a score_corrector needs a network that predicts noise (parameterization 'eps')"
                )
            prediction = score_corrector.modify_score(self, prediction, x, t, c, **(corrector_kwargs or {}))
        start = self.start_from(prediction, x, t)
        if clip_denoised:
            start = start.clamp(-1.0, 1.0)
        return self.quantized(start) if quantize_denoised else start

    @torch.no_grad()
    def p_sample_loop(
        self,
        cond: Condition,
        shape: Sequence[int],
        return_intermediates: bool = False,
        x_T: Tensor | None = None,
        verbose: bool = True,
        callback: Callable[[int], None] | None = None,
        timesteps: int | None = None,
        quantize_denoised: bool = False,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        img_callback: Callable[[Tensor, int], None] | None = None,
        start_T: int | None = None,
        log_every_t: int | None = None,
        *,
        temperature: float = 1.0,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Latents of `shape` (N, channels, h, w) and, with `return_intermediates`, the x_t on the
        way, the start first."""
        x = self._start(shape, x_T)
        steps = {"quantize_denoised": quantize_denoised, "mask": mask, "x0": x0, "temperature": temperature}
        kept = self._ancestral(
            cond, x, timesteps, start_T, log_every_t, verbose, callback, img_callback, **steps
        )
        intermediates = [x, *(state for state, _ in kept)]
        return (intermediates[-1], intermediates) if return_intermediates else intermediates[-1]

    @torch.no_grad()
    def progressive_denoising(
        self,
        cond: Condition,
        shape: Sequence[int],
        verbose: bool = True,
        callback: Callable[[int], None] | None = None,
        quantize_denoised: bool = False,
        img_callback: Callable[[Tensor, int], None] | None = None,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        batch_size: int | None = None,
        x_T: Tensor | None = None,
        start_T: int | None = None,
        log_every_t: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """(latents, the x_0 predicted on the way). `shape` is without the batch where `batch_size`
        is given."""
        x = self._start(shape if batch_size is None else (batch_size, *shape), x_T)
        steps = {
            "quantize_denoised": quantize_denoised,
            "mask": mask,
            "x0": x0,
            "temperature": temperature,
            "noise_dropout": noise_dropout,
        }
        corrector = {"score_corrector": score_corrector, "corrector_kwargs": corrector_kwargs}
        kept = self._ancestral(
            cond, x, None, start_T, log_every_t, verbose, callback, img_callback, **steps, **corrector
        )
        return kept[-1][0], [start for _, start in kept]

    def sample(
        self,
        cond: Condition,
        batch_size: int = 16,
        return_intermediates: bool = False,
        x_T: Tensor | None = None,
        verbose: bool = True,
        timesteps: int | None = None,
        quantize_denoised: bool = False,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        shape: Sequence[int] | None = None,
        **options: Any,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Ancestral sampling: `p_sample_loop`, whose further options these are too, of latents of
        the model's own shape."""
        if shape is None:
            shape = (
                (batch_size, self.channels, self.image_size, self.image_size) if x_T is None else x_T.shape
            )
        keywords = {
            "verbose": verbose,
            "timesteps": timesteps,
            "quantize_denoised": quantize_denoised,
            "mask": mask,
            "x0": x0,
        }
        return self.p_sample_loop(cond, shape, return_intermediates, x_T, **keywords, **options)

    @torch.no_grad()
    def sample_log(
        self, cond: Condition, batch_size: int, ddim: bool, ddim_steps: int | None = None, **options: Any
    ) -> tuple[Tensor, Any]:
        """(latents, intermediates) by DDIM or ancestral sampling; `options` go to the sampler."""
        if not ddim:
            if options.pop("eta", 1.0) != 1.0:
                raise ValueError("eta is DDIM's: ancestral sampling has the noise of eta 1, leave it out")
            return self.sample(cond, batch_size, return_intermediates=True, **options)
        if "quantize_denoised" in options:  # its name in the other sampler
            options["quantize_x0"] = options.pop("quantize_denoised")
        x_T = options.get("x_T")
        shape = (self.channels, self.image_size, self.image_size) if x_T is None else x_T.shape[1:]
        return DDIMSampler(self).sample(ddim_steps, batch_size, shape, cond, **{"verbose": False, **options})

    def _start(self, shape: Sequence[int], x_T: Tensor | None) -> Tensor:
        return torch.randn(tuple(shape), device=self.betas.device) if x_T is None else x_T

    def _ancestral(
        self,
        cond: Condition,
        x: Tensor,
        timesteps: int | None,
        start_T: int | None,
        log_every_t: int | None,
        verbose: bool,
        callback: Callable[[int], None] | None,
        img_callback: Callable[[Tensor, int], None] | None,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        **prediction: Any,
    ) -> list[tuple[Tensor, Tensor]]:
        """(x_{t-1}, predicted x_0) of the first time step, the last, and all whose number divides
        by `log_every_t`."""
        for given in (timesteps, start_T):
            if given is not None and not 1 <= given <= self.num_timesteps:
                raise ConfigError(f"timesteps must be between 1 and {self.num_timesteps}, got {given}")
        total = min(self.num_timesteps if given is None else given for given in (timesteps, start_T))
        if mask is not None and x0 is None:
            raise ValueError("a mask needs x0, the latent to keep where the mask is 1")
        cond = over_parts(lambda part: part[: len(x)], fitted(cond, len(x)))  # cut as in the published code
        every, kept = log_every_t or self.log_every_t, []
        steps = self.ancestral_steps(
            lambda x, t: self.denoised(x, cond, t, **prediction),
            x,
            total,
            temperature,
            noise_dropout,
            mask,
            x0,
        )
        for i, x, start in tqdm(steps, desc="sampling", total=total, disable=not verbose):
            if i % every == 0 or i == total - 1:
                kept.append((x, start))
            if callback:
                callback(i)
            if img_callback:
                img_callback(x, i)
        return kept


def _refuse_codebook_ids(asked: bool) -> None:
    if asked:
        raise ConfigError(
            "return_codebook_ids: networks that predict code numbers (n_embed of the UNet) are not supported"
        )
