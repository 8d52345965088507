"""latent-diffusion's published config files: each builds in full size, or says in one line what is out of scope."""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import HALVES, assert_same
from golden_rules import apply_rule, rnd
from omegaconf import OmegaConf
from published.configs import BERT, IMAGENET_V2, INPAINTING, PUBLISHED, UPSCALING, scenes, vq_alone
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ldm.checkpoint import compare
from ldm.checkpoint.fitting import published_config
from ldm.config.factory import (
    get_obj_from_str,
    instantiate_from_config,
    load_config,
    parameters_of,
    to_plain,
)
from ldm.errors import ConfigError
from ldm.models.autoencoder import VQModel
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.latent_diffusion import LatentDiffusionModel
from ldm.models.first_stage import VQLatents
from ldm.models.inference import WITHOUT_TRAINING, build_for_inference, load_for_inference
from ldm.modules.encoders.modules import SpatialRescaler
from ldm.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from ldm.modules.vae.model import AttnBlock, Decoder, Encoder
from ldm.published.configs import MOVED, OUT_OF_SCOPE, our_target, with_published_keys

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/latent-diffusion/cin256-v2.yaml"


def on_meta(node: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return instantiate_from_config(node)


def millions(module: nn.Module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)


# All of them


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in BERT])
def test_a_published_config_builds_in_full_size(name: str) -> None:
    assert millions(on_meta(PUBLISHED[name])) > 55


@pytest.mark.parametrize("name", BERT)
def test_text_models_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="BERT text models are out of scope") as caught:
        on_meta(PUBLISHED[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, network, first_stage",
    [
        ("models/ldm/celeba256", 274.06, 55.32),
        ("configs/latent-diffusion/cin256-v2", 400.92, 55.32),
        ("models/ldm/lsun_churches256", 294.97, 83.65),
        ("models/ldm/inpainting_big", 387.25, 53.22),
        ("models/ldm/bsr_sr", 113.62, 55.32),
    ],
)
def test_published_sizes(name: str, network: float, first_stage: float) -> None:
    model = on_meta(PUBLISHED[name])
    assert (millions(model.model), millions(model.first_stage_model)) == (network, first_stage)


# The models of a few, narrow, at work


def narrow(node: dict[str, Any], **params: Any) -> LatentDiffusion:
    """A published model at an eighth of its width, in which every layer acts."""
    node = copy.deepcopy(node)
    node["params"] |= params
    node["params"]["unet_config"]["params"]["model_channels"] = 32
    node["params"]["first_stage_config"]["params"]["ddconfig"]["ch"] = 8
    return apply_rule(instantiate_from_config(node)).eval()


def sampled(model: LatentDiffusion, c: Any, n: int, side: int = 64, **options: Any) -> Tensor:
    latents, _ = DDIMSampler(model).sample(
        S=2, conditioning=c, batch_size=n, shape=[3, side, side], verbose=False, eta=0.0, **options
    )
    return latents


@torch.no_grad()
def test_the_class_conditional_run_of_the_published_notebook() -> None:
    model = narrow(IMAGENET_V2)
    with model.ema_scope():
        uc, c = (
            model.get_learned_conditioning({model.cond_stage_key: torch.tensor([label])})
            for label in (1000, 25)
        )
        assert torch.equal(uc, model.null_condition(1)) and c.shape == (1, 1, 512)
        latents = sampled(model, c, 1, unconditional_guidance_scale=3.0, unconditional_conditioning=uc)
        pictures = model.decode_first_stage(latents)
    assert pictures.shape == (1, 3, 256, 256) and pictures.isfinite().all()
    first_stage = model.first_stage_model
    assert_same(pictures, first_stage.decode(first_stage.quantize(latents)[0], force_not_quantize=True))


def test_a_model_with_a_vector_quantised_first_stage_trains() -> None:
    model = narrow(IMAGENET_V2, image_size=8, scale_by_std=True).train()
    batch = {"image": rnd("pictures", 2, 32, 32, 3).tanh(), "class_label": torch.tensor([3, 1000])}
    z = model.unscaled_latents(batch)
    assert torch.equal(z, model.first_stage_model.encode_to_prequant(batch["image"].permute(0, 3, 1, 2)))
    model.set_scale(z)
    assert_same(model.get_input(batch, model.first_stage_key)[0], z / z.std())
    model.shared_step(batch)[0].backward()
    assert model.cond_stage_model.embedding.weight.grad.any() and all(
        p.grad is None for p in model.first_stage_model.parameters()
    )


@torch.no_grad()
def test_a_masked_picture_as_condition_by_the_first_stage() -> None:
    model = narrow(INPAINTING)
    assert model.cond_stage_model is model.first_stage_model
    masked, mask = rnd("masked", 1, 3, 32, 32).tanh(), torch.ones(1, 1, 8, 8)
    c = model.cond_stage_model.encode(masked)
    assert_same(
        model.get_learned_conditioning(model.condition_input({"masked_image": masked.permute(0, 2, 3, 1)})), c
    )
    assert sampled(model, torch.cat([c, mask], dim=1), 1, side=8).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "node, shape, size",
    [(UPSCALING, (8, 8, 3), 8), (scenes(64), (32, 32, 182), 8)],
    ids=["LR_image", "segmentation"],
)
@torch.no_grad()
def test_maps_as_conditions(node: dict[str, Any], shape: tuple[int, ...], size: int) -> None:
    model = narrow(node)
    c = model.get_learned_conditioning(
        model.condition_input({node["params"]["cond_stage_key"]: rnd("condition", 2, *shape)})
    )
    assert model.model.conditioning_key == "concat" and c.shape == (2, 3, size, size)
    assert sampled(model, c, 2, side=size).shape == (2, 3, size, size)


def test_a_rescaler_halves_and_maps_channels() -> None:
    x, stage = rnd("maps", 2, 5, 16, 8), SpatialRescaler(n_stages=2, in_channels=5, out_channels=3)
    # bilinear at one half takes the mean of four
    smaller = x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    smaller = smaller.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    assert_same(SpatialRescaler(n_stages=2)(x), smaller)
    assert_same(
        stage.encode(x), torch.einsum("oc,nchw->nohw", stage.channel_mapper.weight[..., 0, 0], smaller)
    )
    assert (
        stage.channel_mapper.bias is None
        and SpatialRescaler(out_channels=1, bias=True).channel_mapper.bias is not None
    )
    with pytest.raises(ConfigError, match="method must be one of nearest, bilinear"):
        SpatialRescaler(method="lanczos")


# The file that we have of cin256-v2, and inference without Lightning


def test_our_file_describes_the_published_model() -> None:
    ours, published = (
        on_meta(node).state_dict() for node in (to_plain(load_config(CONFIG).model), IMAGENET_V2)
    )
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in published.items()
    }
    with torch.device("meta"):
        assert isinstance(build_for_inference(CONFIG, LatentDiffusionModel).first_stage_model, VQLatents)


def test_the_published_weights_are_told_by_their_shapes() -> None:
    find = published_config
    config = load_config(ROOT / "configs/vq4_first_stage.yaml")
    first_stage = on_meta(to_plain(config).pop("model"))
    assert find(first_stage.state_dict()).name == "vq4_first_stage.yaml"
    assert not compare(first_stage, on_meta(PUBLISHED["models/first_stage_models/vq-f4"]).state_dict())
    assert find(on_meta(IMAGENET_V2).state_dict()) == CONFIG
    assert (
        find(on_meta(PUBLISHED["models/first_stage_models/kl-f16"]).state_dict()).name
        == "kl16_first_stage.yaml"
    )
    for other in ("first_stage_models/vq-f4-noattn", "ldm/cin256", "ldm/celeba256"):
        assert find(on_meta(PUBLISHED[f"models/{other}"]).state_dict()) is None


def test_a_pixel_model_needs_no_weights_of_its_first_stage(tmp_path: Path) -> None:
    node = copy.deepcopy(IMAGENET_V2)
    node["params"]["first_stage_config"] = {"target": "ldm.models.autoencoder.IdentityFirstStage"}
    node["params"]["unet_config"]["params"] |= {"model_channels": 32, "channel_mult": [1]}
    OmegaConf.save({"model": node}, tmp_path / "model.yaml")
    torch.save(instantiate_from_config(node).state_dict(), tmp_path / "model.ckpt")
    model = load_for_inference(tmp_path / "model.ckpt", tmp_path / "model.yaml", LatentDiffusionModel)
    x = rnd("pictures", 1, 3, 8, 8)
    assert torch.equal(model.decode_first_stage(model.encode_first_stage(x)), x)


@pytest.mark.parametrize("target", WITHOUT_TRAINING)
def test_inference_takes_all_that_training_takes_and_knows_what_to_leave_out(target: str) -> None:
    """Every option of a class is one of its class without training, or of the groups that this one lacks."""
    plain, groups = WITHOUT_TRAINING[target]
    accepted, inference = (set(parameters_of(get_obj_from_str(name))[0]) for name in (target, plain))
    training = {field.name for group in groups for field in fields(group)}
    assert accepted == inference | training and not inference & training


@pytest.mark.parametrize("target", WITHOUT_TRAINING)
def test_what_inference_builds_knows_nothing_of_training(target: str) -> None:
    trained, plain = (get_obj_from_str(name) for name in (target, WITHOUT_TRAINING[target][0]))
    assert issubclass(trained, plain) and not issubclass(plain, LightningModule)
    for name in ("training_step", "log_images", "configure_optimizers", "get_input"):
        assert hasattr(trained, name) and not hasattr(plain, name), name
    for name in ("preview", "shared_step", "p_losses", "ema_scope", "set_scale", "condition_of"):
        assert not hasattr(plain, name), name


def test_a_model_for_inference_has_no_options_of_training() -> None:
    with torch.device("meta"):
        model = build_for_inference(CONFIG, LatentDiffusionModel)
    for module in (model, model.first_stage_model):
        for name in ("learning_rate", "monitor", "scheduler_config", "use_ema", "image_key", "logvar"):
            assert not hasattr(module, name), name


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"num_timesteps_cond": 2}, "num_timesteps_cond > 1 is not supported"),
        ({"loss_type": "l3"}, "loss_type must be one of l1, l2"),
        ({"parametrization": "v"}, "no parameter 'parametrization'; did you mean parameterization"),
    ],
)
def test_inference_refuses_what_training_refuses(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    OmegaConf.save(
        {"model": {**IMAGENET_V2, "params": {**IMAGENET_V2["params"], **change}}}, tmp_path / "model.yaml"
    )
    with torch.device("meta"), pytest.raises(ConfigError, match=problem):
        build_for_inference(tmp_path / "model.yaml", LatentDiffusionModel)


# Options that have one value here


@pytest.mark.parametrize(
    "target, accepted, refused",
    [
        (
            "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            {"use_fp16": False, "num_heads_upsample": -1, "n_embed": None},
            {"use_fp16": True},
        ),
        (
            "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            {"legacy": True, "use_new_attention_order": False},
            {"n_embed": 8192},
        ),
        ("ldm.modules.diffusionmodules.openaimodel.UNetModel", {"legacy": False}, {"num_heads_upsample": 4}),
        (
            "ldm.modules.diffusionmodules.model.UNetModel",
            {"use_spatial_transformer": False, "num_classes": None},
            {"use_spatial_transformer": True},
        ),
        (
            "ldm.modules.diffusionmodules.model.StyleUNetModel",
            {"use_fp16": False, "transformer_depth": 1, "legacy": True},
            {"num_classes": 10},
        ),
        (
            "ldm.modules.vae.model.Encoder",
            {"use_linear_attn": False, "attn_type": "vanilla", "tanh_out": True},
            {"use_linear_attn": True},
        ),
        (
            "ldm.modules.vae.model.Decoder",
            {"give_pre_end": False, "attn_type": "none"},
            {"give_pre_end": True},
        ),
        ("ldm.models.autoencoder.AutoencoderKL", {"colorize_nlabels": None}, {"colorize_nlabels": 182}),
        ("ldm.models.autoencoder.VQModel", {"lr_g_factor": 1.0, "use_ema": False}, {"lr_g_factor": 2.0}),
        ("ldm.models.autoencoder.VQModel", {"remap": None, "sane_index_shape": False}, {"remap": "used.npy"}),
        (
            "ldm.models.autoencoder.VQModelInterface",
            {"batch_resize_range": None, "colorize_nlabels": None},
            {"batch_resize_range": [128, 256]},
        ),
        (
            "ldm.modules.vqvae.quantize.VectorQuantizer",
            {"unknown_index": "random"},
            {"sane_index_shape": True},
        ),
        (
            "ldm.modules.losses.LPIPSWithDiscriminator",
            {"use_actnorm": False, "disc_conditional": False},
            {"use_actnorm": True},
        ),
        (
            "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
            {"perceptual_loss": "lpips", "pixel_loss": "l1"},
            {"pixel_loss": "l2"},
        ),
    ],
)
def test_other_values_of_published_options_are_refused_with_a_reason(
    target: str, accepted: dict[str, Any], refused: dict[str, Any]
) -> None:
    params = {**REQUIRED[target.rpartition(".")[2]], **accepted}
    on_meta({"target": target, "params": params})
    ((name, value),) = refused.items()
    with pytest.raises(ConfigError, match=rf"{name} can only be .*, not .*: \w+"):
        on_meta({"target": target, "params": {**params, name: value}})
    with pytest.raises(ConfigError, match=f"no parameter '{name}_'; did you mean {name}"):
        on_meta({"target": target, "params": {**params, f"{name}_": value}})


UNET = {
    "image_size": 8,
    "in_channels": 4,
    "model_channels": 32,
    "out_channels": 4,
    "num_res_blocks": 1,
    "attention_resolutions": [],
    "num_heads": 1,
}
STAGE = {
    "ddconfig": {**HALVES, "double_z": False},
    "lossconfig": {"target": "torch.nn.Identity"},
    "embed_dim": 4,
}
LOSS = {"disc_start": 0, "perceptual_weight": 0.0}
REQUIRED: dict[str, dict[str, Any]] = {
    "UNetModel": UNET, "StyleUNetModel": {**UNET, "content_in_dim": 4}, "Encoder": HALVES, "Decoder": HALVES,
    "AutoencoderKL": {**STAGE, "ddconfig": HALVES}, "VQModel": {**STAGE, "n_embed": 8}, "VQModelInterface": {**STAGE, "n_embed": 8},
    "VectorQuantizer": {"n_e": 8, "e_dim": 4}, "LPIPSWithDiscriminator": LOSS, "VQLPIPSWithDiscriminator": LOSS,
}  # fmt: skip


def test_an_option_given_in_python_is_checked_too() -> None:
    @with_published_keys(old=(None, "it is old"))
    class Part:
        def __init__(self, width: int):
            self.width = width

    assert Part(3, old=None).width == 3
    with pytest.raises(ConfigError, match="^Part: old can only be None, not 1: it is old$"):
        Part(3, old=1)


@pytest.mark.parametrize("attn_type, layer", [("vanilla", AttnBlock), ("none", nn.Identity)])
def test_halves_without_attention(attn_type: str, layer: type[nn.Module]) -> None:
    for half in (Encoder(**HALVES, attn_type=attn_type), Decoder(**HALVES, attn_type=attn_type)):
        assert type(half.mid.attn_1) is layer and any(isinstance(m, AttnBlock) for m in half.modules()) == (
            attn_type == "vanilla"
        )
    with pytest.raises(ConfigError, match="vanilla, none, got 'linear'"):
        Encoder(**HALVES, attn_type="linear")


# Other packages' names


@pytest.mark.parametrize("theirs, ours", MOVED.items())
def test_classes_of_taming_are_ours(theirs: str, ours: str) -> None:
    assert get_obj_from_str(theirs) is get_obj_from_str(ours)


def test_a_published_loss_is_built_by_its_own_name() -> None:
    model = on_meta(vq_alone(8, {**HALVES, "double_z": False}, disc_start=3))
    assert (
        isinstance(model, VQModel)
        and isinstance(model.loss, VQLPIPSWithDiscriminator)
        and model.loss.disc_start == 3
    )


@pytest.mark.parametrize("beginning, reason", OUT_OF_SCOPE)
def test_what_is_out_of_scope_says_so(beginning: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        instantiate_from_config({"target": f"{beginning}Anything"})
    assert str(caught.value) == f"target '{beginning}Anything': {reason}" and "\n" not in reason


def test_an_allowed_prefix_is_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taming").mkdir()
    (tmp_path / "taming/parts.py").write_text("class Part:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        type(instantiate_from_config({"target": "taming.parts.Part"}, ["taming"])).__module__
        == "taming.parts"
    )
    assert our_target("ldm.modules.vae.model.Encoder") == "ldm.modules.vae.model.Encoder"
