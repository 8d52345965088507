"""Sampling class-conditional models (configs/class_conditional.yaml)."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.device import choose_device, memory_errors
from ldm.errors import UserError
from ldm.media.tensors import tensor_to_image
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.latent_diffusion import LatentDiffusionModel
from ldm.models.diffusion.samplers import PerPictureNoise
from ldm.models.inference import load_for_inference
from ldm.modules.encoders.modules import ClassEmbedder


def load_class_model(checkpoint: str | Path, config: Path, device: str) -> LatentDiffusionModel:
    """A model to sample, on the device of that name. Raises UserError."""
    place = choose_device(device)
    return load_for_inference(checkpoint, config, LatentDiffusionModel).to(place).eval()


def check_classes(model: LatentDiffusionModel, labels: Iterable[int]) -> None:
    """Raises UserError for labels that the model does not know, its null class among them."""
    stage = model.cond_stage_model
    if not isinstance(stage, ClassEmbedder):
        raise UserError("this model knows no classes: its condition stage is no ClassEmbedder")
    for label in labels:
        if not 0 <= label < stage.n_classes - 1:
            raise UserError(f"class {label} is not one of this model's, 0 to {stage.n_classes - 2}")


@torch.no_grad()
def sample_classes(
    model: LatentDiffusionModel,
    labels: Sequence[int],
    seeds: Sequence[int],
    scale: float,
    steps: int,
    eta: float = 0.0,
) -> Tensor:
    """(N, 3, H, W) pictures of labels by DDIM, guided away from the null class; each from a noise
    of its own seed. Raises UserError."""
    check_classes(model, labels)
    if not (math.isfinite(scale) and 0 <= eta <= 1):
        raise UserError(f"scale must be a finite number and eta between 0 and 1, got {scale} and {eta}")
    if not all(0 <= seed < 2**63 for seed in seeds):
        raise UserError("seeds must be between 0 and 2**63 - 1")
    latents, _ = DDIMSampler(model).sample(
        steps,
        len(labels),
        (model.channels, model.image_size, model.image_size),
        model.get_learned_conditioning(
            {model.cond_stage_key: torch.tensor(list(labels), device=model.device)}
        ),
        eta=eta,
        ddim_discretize="trailing",
        unconditional_guidance_scale=scale,
        unconditional_conditioning=model.null_condition(len(labels)),
        noise_source=PerPictureNoise(list(seeds)),
    )
    return model.decode_first_stage(latents)


def class_pictures(model: LatentDiffusionModel, **options: Any) -> list[Image.Image]:
    """`sample_classes` as pictures, with its options. Raises UserError, also for more of them than
    memory takes."""
    with memory_errors("choose a smaller --n"):
        return [tensor_to_image(sample) for sample in sample_classes(model, **options)]
