"""Models small enough for tests: 8x8 latents of 4 channels, widths of 8 to 32, weights by golden_rules."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from golden_rules import apply_rule, rnd
from torch import Tensor

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
