"""Models for the tests of published names: a class-conditional one, with a KL or a quantised first stage, of 12 time steps."""

from typing import Any

import torch
from builders import CHANNELS, LATENT, SIDE
from golden_rules import apply_rule, rnd
from torch import Tensor, nn

from ldm.config.factory import allowing_targets
from ldm.models.diffusion.ddpm import LatentDiffusion

STEPS, CLASSES, WIDTH = 12, 5, 12
SHAPE = (CHANNELS, SIDE, SIDE)
CROSS_UNET = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "image_size": SIDE, "in_channels": CHANNELS, "out_channels": CHANNELS, "model_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 2],
        "attention_resolutions": [2], "num_head_channels": 16, "use_spatial_transformer": True, "context_dim": WIDTH,
    },
}  # fmt: skip
EMBEDDER = {
    "target": "ldm.modules.encoders.modules.ClassEmbedder",
    "params": {"n_classes": CLASSES, "embed_dim": WIDTH, "key": "class_label"},
}


class Identity(nn.Module):
    """A first stage whose latents are the pictures."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


class Quantiser(nn.Module):
    """Latents to the nearest of six codes, in the form of the published quantiser's result."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, CHANNELS)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        distances = (z[:, None] - self.embedding.weight[None, :, :, None, None]).square().sum(dim=2)
        numbers = distances.argmin(dim=1)
        return self.embedding(numbers).permute(0, 3, 1, 2), distances.min(), (None, None, numbers)


class Quantised(nn.Module):
    """A vector-quantised first stage that decodes to its own first channels, larger."""

    def __init__(self):
        super().__init__()
        self.quantize = Quantiser()

    def encode(self, x: Tensor) -> Tensor:
        return nn.functional.pad(nn.functional.avg_pool2d(x, 4), (0, 0, 0, 0, 0, CHANNELS - 3))

    def decode(self, h: Tensor, force_not_quantize: bool = False) -> Tensor:
        z = h if force_not_quantize else self.quantize(h)[0]
        return z[:, :3].repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def class_ldm(
    quantised: bool = False, kind: type[LatentDiffusion] = LatentDiffusion, **changes: Any
) -> LatentDiffusion:
    """The class-conditional model of the first note: four classes and the null class."""
    options = {
        **LATENT, "unet_config": CROSS_UNET, "cond_stage_config": EMBEDDER, "cond_stage_key": "class_label", "cond_stage_trainable": True,
        "conditioning_key": "crossattn", "timesteps": STEPS, "log_every_t": 5,
    }  # fmt: skip
    if quantised:
        options["first_stage_config"] = {"target": f"{__name__}.Quantised"}
    with allowing_targets([__name__]):
        return apply_rule(kind(**{**options, **changes})).eval()


def batch(labels: list[int]) -> dict[str, Any]:
    return {
        "image": rnd("pictures", len(labels), 4 * SIDE, 4 * SIDE, 3).tanh(),
        "class_label": torch.tensor(labels),
        "human_label": [f"class {n}" for n in labels],
    }


def dual_batch(n: int = 3) -> dict[str, Tensor]:
    flags = torch.ones(n, dtype=torch.bool)
    return {
        "image": rnd("pictures", n, 4 * SIDE, 4 * SIDE, 3).tanh(),
        "style_flag": flags,
        "content_flag": flags,
    }


def seeded(function: Any, *args: Any, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return function(*args, **options)
