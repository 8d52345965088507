"""DDIM sampling (Song et al. 2021) with the published interface."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.conditions import Condition, batch_size_of, fitted
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.samplers import (
    Denoiser,
    NoiseSource,
    ddim_step,
    keep_region,
    repeated_normal,
    standard_normal,
    step_noise,
)
from ldm.modules.diffusionmodules.schedule import make_ddim_sampling_parameters, make_ddim_timesteps

log = logging.getLogger(__name__)


# The model's tables that a schedule brings along, as in the published sampler.
_TABLES = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
)  # fmt: skip


class DDIMSampler:
    """Samples from a LatentDiffusion model on whatever device it is. Never changes the tensors
    given to it.

    schedule: has no effect, as in the published code.
    """

    def __init__(self, model: Any, schedule: str = "linear"):
        self.model, self.schedule = model, schedule
        self.ddpm_num_timesteps = model.num_timesteps

    def register_buffer(self, name: str, attr: Any) -> None:
        """Keep `attr` as an attribute; a tensor goes to the model's device."""
        setattr(self, name, attr.to(self.model.betas.device) if isinstance(attr, Tensor) else attr)

    def make_schedule(
        self,
        ddim_num_steps: int,
        ddim_discretize: str = "uniform",
        ddim_eta: float = 0.0,
        verbose: bool = False,
    ) -> None:
        """Choose the time steps (ascending) and their parameters, see `make_ddim_timesteps`."""
        steps = make_ddim_timesteps(ddim_discretize, ddim_num_steps, self.ddpm_num_timesteps)
        last = self.ddpm_num_timesteps - 1
        if steps[-1] > last:
            # differs: the published code crashes where its spacing runs past the last time step.
            log.warning(
                "uniform spacing of %d steps runs past time step %d and is cut there", ddim_num_steps, last
            )
            steps = np.unique(np.minimum(steps, last))
        # The published end is time step 0, which still has noise; from the last time step down we
        # go to none.
        self._set_timesteps(steps, ddim_eta, final_alpha=1.0 if ddim_discretize == "trailing" else None)
        if verbose:
            log.info("DDIM: %d steps from %d to %d, eta %g", len(steps), steps[-1], steps[0], ddim_eta)

    def _set_timesteps(self, steps: np.ndarray, eta: float, final_alpha: float | None = None) -> None:
        self.ddim_timesteps = steps
        for name in _TABLES:
            self.register_buffer(name, getattr(self.model, name))
        alphas_cumprod = self.model.alphas_cumprod.cpu()
        sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(
            alphas_cumprod, steps, eta, final_alpha=final_alpha
        )
        self.ddim_sigmas, self.ddim_alphas, self.ddim_alphas_prev = sigmas, alphas, alphas_prev
        self.ddim_sqrt_one_minus_alphas = np.sqrt(1.0 - alphas)
        every_step = np.arange(self.ddpm_num_timesteps)
        self.ddim_sigmas_for_original_num_steps, *_ = make_ddim_sampling_parameters(
            alphas_cumprod, every_step, eta, final_alpha=1.0
        )

    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Condition = None,
        callback: Callable[[int], None] | None = None,
        normals_sequence: None = None,
        img_callback: Callable[[Tensor, int], None] | None = None,
        quantize_x0: bool = False,
        eta: float = 0.0,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        verbose: bool = True,
        x_T: Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Condition = None,
        unconditional_guidance_scale_2: float = 1.0,
        unconditional_conditioning_2: Condition = None,
        *,
        ddim_discretize: str = "uniform",
        timesteps: int | Sequence[int] | None = None,
        noise_source: NoiseSource = standard_normal,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """(samples (batch_size, *shape), intermediates), see `ddim_sampling` for the options that
        are not told here.

        S: number of steps, spaced by `ddim_discretize`. timesteps: a list of time steps of your own
            instead, or (as published) a number n: only the first n - 1 of the chosen steps, counted
            from the clean end.
        quantize_x0: `quantize_denoised` there. normals_sequence: must be None; the published
        sampler never used it. Raises ConfigError for steps out of range, ValueError for tensors
        that do not fit together.
        """
        if normals_sequence is not None:
            raise ValueError(
                "normals_sequence never had an effect; leave it out, and give the noise as x_T or noise_source"
            )
        if timesteps is None or isinstance(timesteps, (int, np.integer)):
            self.make_schedule(S, ddim_discretize, eta, verbose)
        else:
            self._set_timesteps(self._checked(timesteps), eta)
            timesteps = None
        return self.ddim_sampling(
            conditioning,
            (batch_size, *shape),
            x_T,
            callback=callback,
            timesteps=timesteps,
            quantize_denoised=quantize_x0,
            mask=mask,
            x0=x0,
            img_callback=img_callback,
            log_every_t=log_every_t,
            temperature=temperature,
            noise_dropout=noise_dropout,
            score_corrector=score_corrector,
            corrector_kwargs=corrector_kwargs,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
            unconditional_guidance_scale_2=unconditional_guidance_scale_2,
            unconditional_conditioning_2=unconditional_conditioning_2,
            noise_source=noise_source,
            verbose=verbose,
        )

    @torch.no_grad()
    def ddim_sampling(
        self,
        cond: Condition,
        shape: Sequence[int],
        x_T: Tensor | None = None,
        ddim_use_original_steps: bool = False,
        callback: Callable[[int], None] | None = None,
        timesteps: int | None = None,
        quantize_denoised: bool = False,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        img_callback: Callable[[Tensor, int], None] | None = None,
        log_every_t: int = 100,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Condition = None,
        unconditional_guidance_scale_2: float = 1.0,
        unconditional_conditioning_2: Condition = None,
        *,
        noise_source: NoiseSource = standard_normal,
        verbose: bool = True,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """(samples of `shape` (N, C, h, w), intermediates {"x_inter": [...], "pred_x0": [...]}) by
        the schedule made.

        x_T: noise to start from, drawn if not given. mask, x0: keep x0 where mask is 1.
        ddim_use_original_steps: all of the model's time steps, or the lowest `timesteps` of them,
        instead of those chosen.
        quantize_denoised: move every predicted x_0 to the nearest codes of the first stage, which
        must have some.
        unconditional_*: null conditions and their guidance scales, see Guidance.
        A condition, or a part of one, for a single sample is used for all.
        callback(i), img_callback(pred_x0, i): called after step i.
        score_corrector: its `modify_score(model, eps, x, t, c, **corrector_kwargs)` replaces the
        prediction.
        noise_source: gives all noise, for instance one generator per picture. Intermediates hold
        the start, the first step, and every step whose number divides by `log_every_t`.
        """
        cond, null_1, null_2 = (
            fitted(c, shape[0]) for c in (cond, unconditional_conditioning, unconditional_conditioning_2)
        )
        _check_fit((cond, null_1, null_2), shape, x_T, mask, x0)
        scales = unconditional_guidance_scale, unconditional_guidance_scale_2
        denoise = self._denoiser(cond, scales, (null_1, null_2), score_corrector, corrector_kwargs)
        device = self.model.betas.device
        x = noise_source(torch.empty(tuple(shape), device=device)) if x_T is None else x_T.to(device)
        steps = self._steps_to_take(timesteps, ddim_use_original_steps)
        total, intermediates = len(steps), {"x_inter": [x], "pred_x0": [x]}
        how = temperature, noise_dropout, noise_source, ddim_use_original_steps, quantize_denoised
        for i in tqdm(range(total), desc="DDIM", disable=not verbose):
            index = total - 1 - i
            t = torch.full((len(x),), int(steps[index]), device=device, dtype=torch.long)
            if mask is not None:
                x = keep_region(x, self.model.q_sample(x0, t, noise=noise_source(x0)), mask)
            x, pred_x0 = self.step(denoise, x, t, index, *how)
            if callback:
                callback(i)
            if img_callback:
                img_callback(pred_x0, i)
            if index % log_every_t == 0 or index == total - 1:
                intermediates["x_inter"].append(x)
                intermediates["pred_x0"].append(pred_x0)
        return x, intermediates

    @torch.no_grad()
    def p_sample_ddim(
        self,
        x: Tensor,
        c: Condition,
        t: Tensor,
        index: int,
        repeat_noise: bool = False,
        use_original_steps: bool = False,
        quantize_denoised: bool = False,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Condition = None,
        unconditional_guidance_scale_2: float = 1.0,
        unconditional_conditioning_2: Condition = None,
    ) -> tuple[Tensor, Tensor]:
        """(x_{t-1}, predicted x_0) of one step from x at time steps t (N,), the `index`-th of the
        schedule made.

        repeat_noise: the same noise for the whole batch. The others are `ddim_sampling`'s.
        """
        scales = unconditional_guidance_scale, unconditional_guidance_scale_2
        c, *nulls = (
            fitted(given, len(x)) for given in (c, unconditional_conditioning, unconditional_conditioning_2)
        )
        denoise = self._denoiser(c, scales, nulls, score_corrector, corrector_kwargs)
        noise_source = repeated_normal if repeat_noise else standard_normal
        return self.step(
            denoise,
            x,
            t,
            index,
            temperature,
            noise_dropout,
            noise_source,
            use_original_steps,
            quantize_denoised,
        )

    def step(
        self,
        denoise: Denoiser,
        x: Tensor,
        t: Tensor,
        index: int,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        noise_source: NoiseSource = standard_normal,
        original_steps: bool = False,
        quantize: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(x_{t-1}, predicted x_0) at the `index`-th of the chosen time steps, ascending, or of all
        the model's."""
        eps = denoise(x, t)
        # Drawn even where sigma is 0, so that a seed means the same noise whatever eta is.
        noise = step_noise(x, noise_source, temperature, noise_dropout)
        if original_steps:
            tables = (self.alphas_cumprod, self.alphas_cumprod_prev, self.ddim_sigmas_for_original_num_steps)
        else:
            tables = (self.ddim_alphas, self.ddim_alphas_prev, self.ddim_sigmas)
        alphas_and_sigma = (float(table[index]) for table in tables)
        return ddim_step(x, eps, *alphas_and_sigma, noise, self.model.quantized if quantize else None)

    def _denoiser(
        self,
        cond: Condition,
        scales: Sequence[float],
        nulls: Sequence[Condition],
        corrector: Any,
        corrector_kwargs: dict[str, Any] | None,
    ) -> Denoiser:
        """The guided and corrected prediction of the noise."""
        predict = Guidance.of(*scales).denoiser(self.model.apply_model, cond, *nulls)
        return self._as_noise(predict, corrector, cond, corrector_kwargs or {})

    def _steps_to_take(self, timesteps: int | None, original_steps: bool) -> np.ndarray:
        """The time steps of a run, ascending."""
        steps = np.arange(self.ddpm_num_timesteps) if original_steps else self.ddim_timesteps
        if timesteps is None:
            return steps
        least = 1 if original_steps else 2
        if timesteps < least:
            raise ValueError(f"timesteps={timesteps} leaves no step to take; it must be at least {least}")
        return steps[:timesteps] if original_steps else steps[: min(timesteps, len(steps)) - 1]

    def _checked(self, timesteps: Sequence[int]) -> np.ndarray:
        steps = np.unique(timesteps)
        whole = len(steps) == len(timesteps) > 0 and np.issubdtype(steps.dtype, np.integer)
        if not whole or steps[0] < 0 or steps[-1] >= self.ddpm_num_timesteps:
            raise ValueError(
                f"timesteps must be different whole numbers in [0, {self.ddpm_num_timesteps}), got {timesteps}"
            )
        return steps

    def _as_noise(
        self, predict: Denoiser, corrector: Any, condition: Condition, kwargs: dict[str, Any]
    ) -> Denoiser:
        """The guided prediction as noise, whatever the network predicts, with the score corrector
        applied."""
        if self.model.parameterization != "eps":
            if corrector is not None:
                raise ValueError(
                    "a score_corrector needs a network that predicts noise (parameterization 'eps')"
                )
            # differs: the published sampler takes the network's x0 for noise.
            return lambda x, t: self.model.predict_noise_from_start(
                x, t, self.model.start_from(predict(x, t), x, t)
            )
        if corrector is None:
            return predict
        return lambda x, t: corrector.modify_score(self.model, predict(x, t), x, t, condition, **kwargs)


def _check_fit(
    conditions: Sequence[Condition],
    shape: Sequence[int],
    x_T: Tensor | None,
    mask: Tensor | None,
    x0: Tensor | None,
) -> None:
    for given in map(batch_size_of, conditions):
        if given is not None and given != shape[0]:
            raise ValueError(f"the batch is of {shape[0]}, but a condition is for {given}")
    if mask is not None and x0 is None:
        raise ValueError("a mask needs x0, the latent to keep where the mask is 1")
    if x_T is not None and tuple(x_T.shape) != tuple(shape):
        raise ValueError(f"x_T has shape {tuple(x_T.shape)}, expected {tuple(shape)}")
