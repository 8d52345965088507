"""DDIM sampling (Song et al. 2021) with the published interface."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.guidance import Condition, TwoWayGuidance, batch_size
from ldm.models.diffusion.samplers import Denoiser, NoiseSource, ddim_step, keep_region, standard_normal, step_noise
from ldm.modules.diffusionmodules.schedule import make_ddim_sampling_parameters, make_ddim_timesteps

log = logging.getLogger(__name__)


class DDIMSampler:
    """Samples from a LatentDiffusion model on whatever device it is. Never changes the tensors given to it."""

    def __init__(self, model: Any):
        self.model = model
        self.ddpm_num_timesteps = model.num_timesteps

    def make_schedule(
        self, ddim_num_steps: int, ddim_discretize: str = "uniform", ddim_eta: float = 0.0, verbose: bool = False
    ) -> None:
        """Choose the time steps (ascending) and their parameters, see `make_ddim_timesteps`."""
        steps = make_ddim_timesteps(ddim_discretize, ddim_num_steps, self.ddpm_num_timesteps)
        last = self.ddpm_num_timesteps - 1
        if steps[-1] > last:
            # differs: the published code crashes where its spacing runs past the last time step.
            log.warning("uniform spacing of %d steps runs past time step %d and is cut there", ddim_num_steps, last)
            steps = np.unique(np.minimum(steps, last))
        # The published end is time step 0, which still has noise; from the last time step down we go to none.
        self._set_timesteps(steps, ddim_eta, final_alpha=1.0 if ddim_discretize == "trailing" else None)
        if verbose:
            log.info("DDIM: %d steps from %d to %d, eta %g", len(steps), steps[-1], steps[0], ddim_eta)

    def _set_timesteps(self, steps: np.ndarray, eta: float, final_alpha: float | None = None) -> None:
        self.ddim_timesteps = steps
        sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(
            self.model.alphas_cumprod.cpu(), steps, eta, final_alpha=final_alpha
        )
        self.ddim_sigmas, self.ddim_alphas, self.ddim_alphas_prev = sigmas, alphas, alphas_prev
        self.ddim_sqrt_one_minus_alphas = np.sqrt(1.0 - alphas)

    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Condition = None,
        *,
        eta: float = 0.0,
        ddim_discretize: str = "uniform",
        timesteps: int | Sequence[int] | None = None,
        verbose: bool = True,
        **options: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """(samples (batch_size, *shape), intermediates), see `ddim_sampling`, whose other options are these too.

        S: number of steps, spaced by `ddim_discretize`. timesteps: a list of time steps of your own instead, or
            (as published) a number n: only the first n - 1 of the chosen steps, counted from the clean end.
        Raises ConfigError for steps out of range, ValueError for tensors that do not fit together.
        """
        if timesteps is None or isinstance(timesteps, (int, np.integer)):
            self.make_schedule(S, ddim_discretize, eta, verbose)
        else:
            self._set_timesteps(self._checked(timesteps), eta)
            timesteps = None
        return self.ddim_sampling(conditioning, (batch_size, *shape), timesteps=timesteps, verbose=verbose, **options)

    @torch.no_grad()
    def ddim_sampling(
        self,
        cond: Condition,
        shape: Sequence[int],
        *,
        x_T: Tensor | None = None,
        timesteps: int | None = None,
        callback: Callable[[int], None] | None = None,
        img_callback: Callable[[Tensor, int], None] | None = None,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        log_every_t: int = 100,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Condition = None,
        unconditional_guidance_scale_2: float = 1.0,
        unconditional_conditioning_2: Condition = None,
        noise_source: NoiseSource = standard_normal,
        verbose: bool = True,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """(samples of `shape` (N, C, h, w), intermediates {"x_inter": [...], "pred_x0": [...]}) by the schedule made.

        x_T: noise to start from, drawn if not given. mask, x0: keep x0 where mask is 1.
        unconditional_*: null conditions and their guidance scales, see TwoWayGuidance.
        callback(i), img_callback(pred_x0, i): called after step i.
        score_corrector: its `modify_score(model, eps, x, t, c, **corrector_kwargs)` replaces the prediction.
        noise_source: gives all noise, for instance one generator per picture.
        Intermediates hold the start, the first step, and every step whose number divides by `log_every_t`.
        """
        conditions = (cond, unconditional_conditioning, unconditional_conditioning_2)
        _check_fit(conditions, shape, x_T, mask, x0)
        guidance = TwoWayGuidance(
            self.model.apply_model,
            cond,
            unconditional_guidance_scale,
            unconditional_conditioning,
            unconditional_guidance_scale_2,
            unconditional_conditioning_2,
        )
        denoise = self._as_noise(guidance, score_corrector, cond, corrector_kwargs or {})
        device = self.model.betas.device
        x = noise_source(torch.empty(tuple(shape), device=device)) if x_T is None else x_T.to(device)
        total = self._steps_to_take(timesteps)
        intermediates = {"x_inter": [x], "pred_x0": [x]}
        for i in tqdm(range(total), desc="DDIM", disable=not verbose):
            index = total - 1 - i
            t = torch.full((len(x),), int(self.ddim_timesteps[index]), device=device, dtype=torch.long)
            if mask is not None:
                x = keep_region(x, self.model.q_sample(x0, t, noise=noise_source(x0)), mask)
            x, pred_x0 = self.step(denoise, x, t, index, temperature, noise_dropout, noise_source)
            if callback:
                callback(i)
            if img_callback:
                img_callback(pred_x0, i)
            if index % log_every_t == 0 or index == total - 1:
                intermediates["x_inter"].append(x)
                intermediates["pred_x0"].append(pred_x0)
        return x, intermediates

    def step(
        self,
        denoise: Denoiser,
        x: Tensor,
        t: Tensor,
        index: int,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        noise_source: NoiseSource = standard_normal,
    ) -> tuple[Tensor, Tensor]:
        """(x_{t-1}, predicted x_0) at the `index`-th of the chosen time steps, ascending."""
        eps = denoise(x, t)
        # Drawn even where sigma is 0, so that a seed means the same noise whatever eta is.
        noise = step_noise(x, noise_source, temperature, noise_dropout)
        parameters = (self.ddim_alphas[index], self.ddim_alphas_prev[index], self.ddim_sigmas[index])
        return ddim_step(x, eps, *map(float, parameters), noise)

    def _steps_to_take(self, timesteps: int | None) -> int:
        total = len(self.ddim_timesteps)
        if timesteps is None:
            return total
        if timesteps < 2:
            raise ValueError(f"timesteps={timesteps} leaves no step to take; it must be at least 2")
        return min(timesteps, total) - 1

    def _checked(self, timesteps: Sequence[int]) -> np.ndarray:
        steps = np.unique(timesteps)
        whole = len(steps) == len(timesteps) > 0 and np.issubdtype(steps.dtype, np.integer)
        if not whole or steps[0] < 0 or steps[-1] >= self.ddpm_num_timesteps:
            raise ValueError(f"timesteps must be different whole numbers in [0, {self.ddpm_num_timesteps}), got {timesteps}")
        return steps

    def _as_noise(self, predict: Denoiser, corrector: Any, condition: Condition, kwargs: dict[str, Any]) -> Denoiser:
        """The guided prediction as noise, whatever the network predicts, with the score corrector applied."""
        if self.model.parameterization != "eps":
            if corrector is not None:
                raise ValueError("a score_corrector needs a network that predicts noise (parameterization 'eps')")
            # differs: the published sampler takes the network's x0 for noise.
            return lambda x, t: self.model.predict_noise_from_start(x, t, self.model.start_from(predict(x, t), x, t))
        if corrector is None:
            return predict
        return lambda x, t: corrector.modify_score(self.model, predict(x, t), x, t, condition, **kwargs)


def _check_fit(
    conditions: Sequence[Condition], shape: Sequence[int], x_T: Tensor | None, mask: Tensor | None, x0: Tensor | None
) -> None:
    for given in map(batch_size, conditions):
        if given is not None and given != shape[0]:
            raise ValueError(f"the batch is of {shape[0]}, but a condition is for {given}")
    if mask is not None and x0 is None:
        raise ValueError("a mask needs x0, the latent to keep where the mask is 1")
    if x_T is not None and tuple(x_T.shape) != tuple(shape):
        raise ValueError(f"x_T has shape {tuple(x_T.shape)}, expected {tuple(shape)}")
