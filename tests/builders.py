"""Models small enough for tests: 8x8 latents of 4 channels, widths of 8 to 32, weights by golden_rules.

The dual-conditional model, the one without conditions, and the class-conditional one of the published notes.
"""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from golden_rules import apply_rule, rnd
from torch import Tensor, nn

from ldm.config.factory import allowing_targets
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.modules.diffusionmodules.model import StyleUNetModel, UNetModel

CHANNELS, SIDE = 4, 8
VGG = (2, 2, 3, 3, 4)
STYLE_DIM = 2 * sum(VGG)

BACKBONE = {
    "image_size": SIDE, "out_channels": CHANNELS, "model_channels": 16, "num_norm_groups": 8, "num_res_blocks": 1,
    "attention_resolutions": [2], "channel_mult": [1, 2], "hidden_time_embed_dim": 16, "time_embed_dim": 32,
    "num_head_channels": 8,
}  # fmt: skip
UNET = {
    **BACKBONE,
    "in_channels": CHANNELS,
    "content_in_dim": CHANNELS,
    "content_refined_dim": 3,
    "context_dim": STYLE_DIM,
}
HALVES = {
    "ch": 8, "out_ch": 3, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "in_channels": 3,
    "resolution": 32, "z_channels": CHANNELS,
}  # fmt: skip
FIRST_STAGE = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": CHANNELS,
        "ddconfig": HALVES,
        "lossconfig": {"target": "ldm.modules.losses.contperceptual.DummyLoss"},
    },
}
LATENT = {"first_stage_config": FIRST_STAGE, "channels": CHANNELS, "image_size": SIDE}

# The class-conditional model, of few time steps.
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


class PlainUNet(UNetModel):
    """An unconditional network of (x, t)."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, self.time_embed(t))


def untrained_unet(**changes) -> StyleUNetModel:
    return StyleUNetModel(**{**UNET, **changes})


def tiny_unet(**changes) -> StyleUNetModel:
    """One in which every layer acts."""
    return apply_rule(untrained_unet(**changes)).eval()


def tiny_options(unet: dict | None = None, **changes) -> dict:
    """What the dual-conditional model is built from."""
    unet_config = {
        "target": "ldm.modules.diffusionmodules.model.StyleUNetModel",
        "params": {**UNET, **(unet or {})},
    }
    return {
        "unet_config": unet_config,
        "style_dim": STYLE_DIM,
        "vgg_channels": VGG,
        "cond_stage_config": "__is_adaptive__",
        **LATENT,
        **changes,
    }


def tiny_ldm(unet: dict | None = None, **changes) -> DualCondLDM:
    """The dual-conditional model; every average is 0.9 times its live weight."""
    return apply_rule(DualCondLDM(**tiny_options(unet, **changes))).eval()


def unconditional_ldm(**changes) -> LatentDiffusion:
    """The base model without a condition."""
    unet_config = {"target": "builders.PlainUNet", "params": {**BACKBONE, "in_channels": CHANNELS}}
    with allowing_targets(["builders"]):
        return apply_rule(LatentDiffusion(unet_config=unet_config, **{**LATENT, **changes})).eval()


def latents(tag: str, n: int = 2, side: int = SIDE) -> Tensor:
    return rnd(tag, n, CHANNELS, side, side)


def conditions(n: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Both conditions, null content, null style."""
    content, style, null = (
        latents("content", n),
        rnd("style", n, STYLE_DIM),
        rnd("null", 1, STYLE_DIM).repeat(n, 1),
    )
    return (
        {"c1": content, "c2": style},
        {"c1": torch.zeros_like(content), "c2": style},
        {"c1": content, "c2": null},
    )


def half_mask() -> Tensor:
    """1 in the left half, 0 in the right."""
    return torch.cat([torch.ones(1, 1, SIDE, SIDE // 2), torch.zeros(1, 1, SIDE, SIDE // 2)], dim=-1)


def fit(model: pl.LightningModule, pictures: Tensor, folder: Path, batch_size: int = 1, **options) -> None:
    """Train on pictures (N, H, W, 3) in their order."""
    batches = torch.utils.data.DataLoader([{"image": picture} for picture in pictures], batch_size)
    pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    ).fit(model, batches)  # fmt: skip


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to rounding: within `tolerance` of every value, or of their standard deviation."""
    spread = float(expected.detach().double().std(correction=0)) or float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * spread, check_dtype=False)


# The class-conditional model, with a KL or a quantised first stage


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
