"""Sampling class-conditional models (configs/class_conditional.yaml)."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.files import ROOT
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.latent_diffusion import LatentDiffusionModel
from ldm.models.diffusion.samplers import PerPictureNoise
from ldm.modules.encoders.modules import ClassEmbedder

CONFIG = ROOT / "configs/class_conditional.yaml"


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
