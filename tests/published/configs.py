"""The `model` nodes of latent-diffusion's 32 published config files, in full size, by the files' names.

Only what tells them apart is written out; weights' files are left out, as there are none here.
"""

from typing import Any

FACTOR_MULT = {4: [1, 2, 4], 8: [1, 2, 4, 4], 16: [1, 1, 2, 2, 4], 32: [1, 1, 2, 2, 4, 4]}
VQ8_MULT = [1, 2, 2, 4]
IDENTITY = {"target": "torch.nn.Identity"}
NOTHING, FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"


def halves(
    z_channels: int, mult: list[int], attention: tuple[int, ...] = (), double_z: bool = False, **changes: Any
) -> dict[str, Any]:
    sizes = {
        "z_channels": z_channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": mult,
        "num_res_blocks": 2,
    }
    return {"double_z": double_z, **sizes, "attn_resolutions": [*attention], "dropout": 0.0, **changes}


def first_stage(name: str, loss: dict[str, Any], **params: Any) -> dict[str, Any]:
    return {
        "target": f"ldm.models.autoencoder.{name}",
        "params": {"monitor": "val/rec_loss", "lossconfig": loss, **params},
    }


def kl(
    factor: int, channels: int, attention: tuple[int, ...] = (), loss: dict[str, Any] = IDENTITY
) -> dict[str, Any]:
    return first_stage(
        "AutoencoderKL",
        loss,
        embed_dim=channels,
        ddconfig=halves(channels, FACTOR_MULT[factor], attention, double_z=True),
    )


def vq(
    codes: int, ddconfig: dict[str, Any], loss: dict[str, Any] = IDENTITY, name: str = "VQModelInterface"
) -> dict[str, Any]:
    return first_stage(name, loss, embed_dim=ddconfig["z_channels"], n_embed=codes, ddconfig=ddconfig)


def kl_alone(factor: int, channels: int, attention: tuple[int, ...] = ()) -> dict[str, Any]:
    loss = {"disc_start": 50001, "kl_weight": 1.0e-6, "disc_weight": 0.5}
    return kl(
        factor, channels, attention, {"target": "ldm.modules.losses.LPIPSWithDiscriminator", "params": loss}
    )


def vq_alone(codes: int, ddconfig: dict[str, Any], **changes: Any) -> dict[str, Any]:
    loss = {
        "disc_conditional": False,
        "disc_in_channels": 3,
        "disc_weight": 0.75,
        "codebook_weight": 1.0,
        **changes,
    }
    target = "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
    return vq(codes, ddconfig, {"target": target, "params": loss}, "VQModel")


VQ4 = halves(3, FACTOR_MULT[4])
VQ8 = halves(4, VQ8_MULT, (32,))
NO_ATTENTION = {"attn_type": "none"}


def unet(
    side: int, channels: int, width: int, attention: list[int], mult: list[int], **changes: Any
) -> dict[str, Any]:
    sizes = {"image_size": side, "in_channels": channels, "out_channels": channels, "model_channels": width}
    params = {
        **sizes,
        "attention_resolutions": attention,
        "num_res_blocks": 2,
        "channel_mult": mult,
        **changes,
    }
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params}


def attending(width: int, depth: int = 1) -> dict[str, Any]:
    return {"use_spatial_transformer": True, "transformer_depth": depth, "context_dim": width}


def stage(name: str, **params: Any) -> dict[str, Any]:
    return {"target": f"ldm.modules.encoders.modules.{name}", "params": params}


def diffusion(
    network: dict[str, Any], first: dict[str, Any], condition: Any, key: str = "image", **changes: Any
) -> dict[str, Any]:
    schedule = {
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "image",
    }
    sides = {"image_size": network["params"]["image_size"], "channels": network["params"]["out_channels"]}
    parts = {
        "unet_config": network,
        "first_stage_config": first,
        "cond_stage_config": condition,
        "cond_stage_key": key,
    }
    return {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {**schedule, **sides, **parts, **changes},
    }


HEADS = {"num_head_channels": 32}
NOISIER = {"linear_end": 0.0205, "log_every_t": 100, "loss_type": "l1"}
CROSS = {
    "cond_stage_trainable": True,
    "conditioning_key": "crossattn",
    "num_timesteps_cond": 1,
    "monitor": "val/loss_simple_ema",
}
FACES = diffusion(
    unet(64, 3, 224, [8, 4, 2], [1, 2, 3, 4], **HEADS),
    vq(8192, VQ4),
    NOTHING,
    num_timesteps_cond=1,
    monitor="val/loss_simple_ema",
)
# As the files beside the weights have it.
SAMPLED_FACES = {
    **FACES,
    "params": {
        **FACES["params"],
        "cond_stage_key": "class_label",
        "cond_stage_trainable": False,
        "concat_mode": False,
    },
}
IMAGENET = diffusion(
    unet(32, 4, 256, [4, 2, 1], [1, 2, 4], **HEADS, **attending(512)), vq(16384, VQ8),
    stage("ClassEmbedder", embed_dim=512, key="class_label"), "class_label", **CROSS,
)  # fmt: skip
IMAGENET_V2 = diffusion(
    unet(64, 3, 192, [8, 4, 2], [1, 2, 3, 5], num_heads=1, **attending(512)), vq(8192, VQ4),
    stage("ClassEmbedder", n_classes=1001, embed_dim=512, key="class_label"), "class_label", **{**CROSS, "use_ema": False, "monitor": "val/loss"},
)  # fmt: skip
WARM_UP = {
    "warm_up_steps": [10000],
    "cycle_lengths": [10000000000000],
    "f_start": [1.0e-6],
    "f_max": [1.0],
    "f_min": [1.0],
}
CHURCHES = diffusion(
    unet(32, 4, 192, [1, 2, 4, 8], [1, 2, 2, 4, 4], num_heads=8, use_scale_shift_norm=True, resblock_updown=True), kl(8, 4), NOTHING,
    linear_end=0.0155, loss_type="l1", cond_stage_trainable=False, concat_mode=False, scale_by_std=True, num_timesteps_cond=1,
    scheduler_config={"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": WARM_UP},
)  # fmt: skip
TEXTS = diffusion(
    unet(32, 4, 320, [4, 2, 1], [1, 2, 4, 4], num_heads=8, use_checkpoint=True, legacy=False, **attending(1280)), kl(8, 4),
    stage("BERTEmbedder", n_embed=1280, n_layer=32), "caption", **CROSS, linear_start=0.00085, linear_end=0.012, scale_factor=0.18215, use_ema=False,
)  # fmt: skip
SMALLER_TEXTS = diffusion(
    unet(64, 3, 192, [8, 4, 2], [1, 2, 3, 5], **HEADS, **attending(640)), vq(8192, VQ4),
    stage("BERTEmbedder", n_embed=640, n_layer=32), "caption", **CROSS,
)  # fmt: skip
LAYOUTS = diffusion(
    unet(64, 3, 128, [8, 4, 2], [1, 2, 3, 4], **HEADS, **attending(512, depth=3)), vq(8192, VQ4),
    stage("BERTEmbedder", n_embed=512, n_layer=16, vocab_size=8192, max_seq_len=92, use_tokenizer=False), "coordinates_bbox", **{**CROSS, **NOISIER},
)  # fmt: skip
RETRIEVAL = diffusion(
    unet(48, 16, 448, [4, 2, 1], [1, 2, 3, 4], use_scale_shift_norm=False, resblock_updown=False, use_checkpoint=True, **HEADS, **attending(768)),
    kl(16, 16, (16,)), IDENTITY, "nix", **{**CROSS, "cond_stage_trainable": False}, linear_end=0.015, first_stage_key="jpg", scale_by_std=False,
    scale_factor=0.22765929,
)  # fmt: skip
UPSCALING = diffusion(
    unet(64, 3, 160, [16, 8], [1, 2, 2, 4], in_channels=6, **HEADS), vq(8192, VQ4), IDENTITY, "LR_image",
    linear_end=0.0155, log_every_t=100, loss_type="l2", concat_mode=True, cond_stage_trainable=False,
)  # fmt: skip
COSINE = {
    "verbosity_interval": 0,
    "warm_up_steps": 1000,
    "max_decay_steps": 50000,
    "lr_start": 0.001,
    "lr_max": 0.1,
    "lr_min": 0.0001,
}
INPAINTING = diffusion(
    unet(64, 3, 256, [8, 4, 2], [1, 2, 3, 4], in_channels=7, num_heads=8, resblock_updown=True),
    vq(8192, {**VQ4, **NO_ATTENTION}, {"target": "ldm.modules.losses.contperceptual.DummyLoss"}), FIRST_STAGE, "masked_image", **NOISIER,
    concat_mode=True, monitor="val/loss", scheduler_config={"target": "ldm.lr_scheduler.LambdaWarmUpCosineScheduler", "params": COSINE},
)  # fmt: skip


def scenes(side: int) -> dict[str, Any]:
    network = unet(side, 3, 128, [32, 16, 8], [1, 4, 8], in_channels=6, num_heads=8)
    rescaler = stage("SpatialRescaler", n_stages=2, in_channels=182, out_channels=3)
    return diffusion(
        network,
        vq(8192, VQ4),
        rescaler,
        "segmentation",
        **NOISIER,
        concat_mode=True,
        cond_stage_trainable=True,
    )


PUBLISHED = {
    "configs/autoencoder/autoencoder_kl_64x64x3": kl_alone(4, 3),
    "configs/autoencoder/autoencoder_kl_32x32x4": kl_alone(8, 4),
    "configs/autoencoder/autoencoder_kl_16x16x16": kl_alone(16, 16, (16,)),
    "configs/autoencoder/autoencoder_kl_8x8x64": kl_alone(32, 64, (16, 8)),
    "configs/latent-diffusion/celebahq-ldm-vq-4": FACES,
    "configs/latent-diffusion/cin-ldm-vq-f8": IMAGENET,
    "configs/latent-diffusion/cin256-v2": IMAGENET_V2,
    "configs/latent-diffusion/ffhq-ldm-vq-4": FACES,
    "configs/latent-diffusion/lsun_bedrooms-ldm-vq-4": FACES,
    "configs/latent-diffusion/lsun_churches-ldm-kl-8": CHURCHES,
    "configs/latent-diffusion/txt2img-1p4B-eval": TEXTS,
    "configs/retrieval-augmented-diffusion/768x768": RETRIEVAL,
    "models/first_stage_models/kl-f4": kl_alone(4, 3),
    "models/first_stage_models/kl-f8": kl_alone(8, 4),
    "models/first_stage_models/kl-f16": kl_alone(16, 16, (16,)),
    "models/first_stage_models/kl-f32": kl_alone(32, 64, (16, 8)),
    "models/first_stage_models/vq-f4": vq_alone(8192, VQ4, disc_start=0),
    "models/first_stage_models/vq-f4-noattn": vq_alone(8192, {**VQ4, **NO_ATTENTION}, disc_start=11),
    "models/first_stage_models/vq-f8": vq_alone(16384, VQ8, disc_start=1, disc_num_layers=2, disc_weight=0.6),
    "models/first_stage_models/vq-f8-n256": vq_alone(256, VQ8, disc_start=250001),
    "models/first_stage_models/vq-f16": vq_alone(
        16384, halves(8, FACTOR_MULT[16], (16,)), disc_start=250001, disc_num_layers=2
    ),
    "models/ldm/bsr_sr": UPSCALING,
    "models/ldm/celeba256": SAMPLED_FACES,
    "models/ldm/cin256": IMAGENET,
    "models/ldm/ffhq256": SAMPLED_FACES,
    "models/ldm/inpainting_big": INPAINTING,
    "models/ldm/layout2img-openimages256": LAYOUTS,
    "models/ldm/lsun_beds256": SAMPLED_FACES,
    "models/ldm/lsun_churches256": CHURCHES,
    "models/ldm/semantic_synthesis256": scenes(64),
    "models/ldm/semantic_synthesis512": scenes(128),
    "models/ldm/text2img256": SMALLER_TEXTS,
}
BERT = (
    "configs/latent-diffusion/txt2img-1p4B-eval",
    "models/ldm/layout2img-openimages256",
    "models/ldm/text2img256",
)
