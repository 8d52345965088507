"""Ways to paint the same pictures: as published, with a faster solver, and ours in the look sampled.
Each gives (pictures, seconds).

Counted is what a picture takes: encoding content and style, all sampling steps, decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.benchmark import timer

from benchmarks.options import PUBLISHED_STEPS
from ldm.device import autocast
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.samplers import PerPictureNoise, sample_dpm_solver, sampling_path, start_of
from ldm.pipeline.cuda_graphs import Recorder
from ldm.pipeline.engine import Batch, Painter, centred
from ldm.pipeline.looks import SAMPLERS
from ldm.pipeline.settings import Settings

Condition = dict[str, Tensor]
Painted = tuple[Tensor, float]  # pictures (N, 3, H, W), seconds


@dataclass(frozen=True)
class Task:
    """What to paint: content (N, 3, H, W), style (N, 3, h, w), a seed for each picture, the two
    scales of all."""

    content: Tensor
    style: Tensor
    seeds: list[int]
    scales: tuple[float, float]


@torch.no_grad()
def published(model: DualCondModel, task: Task, steps: int = PUBLISHED_STEPS) -> Painted:
    """DDIM with fresh noise at every step (eta 1), 250 steps, nothing computed ahead.

    With fewer `steps` only the last of the 250 are run, and sampling is counted as if all had been.
    """
    began = timer()
    (_, *conditions), noise = _conditions(model, task), PerPictureNoise(task.seeds)
    x = noise(conditions[0]["c1"])
    sampler, prepared = DDIMSampler(model), timer()
    latents, _ = sampler.sample(
        PUBLISHED_STEPS, len(x), x.shape[1:], **_guidance_options(conditions, task.scales),
        # As published, a number n of time steps means n - 1 steps from the clean end.
        timesteps=steps + 1 if steps < PUBLISHED_STEPS else None, eta=1.0, x_T=x, noise_source=noise, verbose=False,
    )  # fmt: skip
    sampling = timer() - prepared
    pictures = model.decode_first_stage(latents)
    left_out = len(sampler.ddim_timesteps) / steps - 1 if steps < PUBLISHED_STEPS else 0.0
    return pictures, timer() - began + left_out * sampling


@torch.no_grad()
def unprepared(model: DualCondModel, task: Task, precision: str = "fp32") -> Painted:
    """DPM-Solver++ in place of DDIM, nothing computed ahead."""
    began = timer()
    with autocast(model.device, precision):
        pictures = _unprepared(model, task).float()
    return pictures, timer() - began


def _unprepared(model: DualCondModel, task: Task) -> Tensor:
    z, condition, no_content, no_style = _conditions(model, task)
    predict = Guidance.of(*task.scales).denoiser(model.apply_model, condition, no_content, no_style)
    alphas = model.alphas_cumprod.tolist()

    def denoise(x: Tensor, timestep: int) -> Tensor:
        prediction = predict(x, torch.full((len(x),), timestep, device=x.device)).float()
        return start_of(x, prediction, alphas[timestep], model.parameterization)

    path = sampling_path(alphas, SAMPLERS["dpm-solver++"].steps, spacing=SAMPLERS["dpm-solver++"].spacing)
    x = centred(PerPictureNoise(task.seeds)(condition["c1"]))
    pictures = model.decode_first_stage(sample_dpm_solver(denoise, x, path))
    return (
        pictures + model.detail * (task.content - model.decode_first_stage(z)) if model.detail else pictures
    )


def prepared(
    model: DualCondModel, task: Task, settings: Settings, precision: str, recorder: Recorder | None = None
) -> Painted:
    """The pipeline's way to sample: what does not depend on the noisy latent is computed once.
    recorder: as in Painter."""
    began = timer()
    painter, n = Painter(model, precision, recorder), len(task.seeds)
    batch = Batch(
        style=painter.style_statistics(task.style)[:, None],
        size=(task.content.shape[2], task.content.shape[3]),
        seeds=task.seeds,
        content_scales=[task.scales[0]] * n,
        style_scales=[task.scales[1]] * n,
        content=task.content,
    )
    pictures = painter.paint(batch, settings)
    return pictures, timer() - began


def _conditions(model: DualCondModel, task: Task) -> tuple[Tensor, Condition, Condition, Condition]:
    """The content's latent; both conditions, without the content, without the style."""
    z = model.get_first_stage_encoding(model.encode_first_stage(task.content)).float()
    content = model.get_content_features(z)
    style = model.get_style_statistics(task.style).float()
    pairs = ((content, style), (torch.zeros_like(content), style), (content, model.null_style(len(style))))
    return z, *(model.condition(*pair) for pair in pairs)


def _guidance_options(conditions: Sequence[Condition], scales: tuple[float, float]) -> dict[str, object]:
    condition, no_content, no_style = conditions
    return {
        "conditioning": condition,
        "unconditional_guidance_scale": scales[0],
        "unconditional_conditioning": no_content,
        "unconditional_guidance_scale_2": scales[1],
        "unconditional_conditioning_2": no_style,
    }
