"""What a script written for the published code calls: every name at its path, with its parameters in their places, and its numbers.

In the order of the two notes that many users learned that code from: one on latent-diffusion, one on ArtFusion.
"""

import inspect
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import (
    BACKBONE,
    CHANNELS,
    EMBEDDER,
    FIRST_STAGE,
    SHAPE,
    SIDE,
    STEPS,
    STYLE_DIM,
    WIDTH,
    Identity,
    assert_same,
    batch,
    class_ldm,
    dual_batch,
    latents,
    seeded,
    tiny_ldm,
    unconditional_ldm,
)
from golden_rules import apply_rule, rnd
from pipeline_builders import narrow_vgg16
from torch import nn

from ldm.config.factory import allowing_targets, get_obj_from_str
from ldm.errors import CheckpointError, ConfigError, UserError
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import (
    DDPM,
    DiffusionWrapper,
    LatentDiffusion,
    disabled_train,
    uniform_on_device,
)
from ldm.models.diffusion.dual_cond_ddpm import DualConditionDiffusionWrapper, DualCondLDM
from ldm.modules.diffusionmodules import util as diffusion_util
from ldm.modules.diffusionmodules.model import Decoder, Encoder, StyleUNetModel, TimestepEmbedder, modulate
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution, normal_kl
from ldm.modules.ema import LitEma
from ldm.modules.losses import lpips
from ldm.modules.losses.lpips import vgg16
from ldm.util import count_params, default, exists, get_ckpt_path, isimage, ismap, log_txt_as_img, mean_flat

# Signatures: names in their order, as calls without keywords need it

NOISE = "temperature noise_dropout score_corrector corrector_kwargs"
PLOTS = "plot_denoise_rows plot_progressive_rows plot_diffusion_rows"
TWO_WAY = "unconditional_guidance_scale unconditional_conditioning unconditional_guidance_scale_2 unconditional_conditioning_2"
SIGNATURES = {
    LatentDiffusion.register_schedule: "given_betas beta_schedule timesteps linear_start linear_end cosine_s",
    LatentDiffusion.make_cond_schedule: "",
    LatentDiffusion.instantiate_first_stage: "config",
    LatentDiffusion.instantiate_cond_stage: "config",
    LatentDiffusion.init_from_ckpt: "path ignore_keys only_model",
    LatentDiffusion.ema_scope: "context",
    LatentDiffusion.encode_first_stage: "x",
    LatentDiffusion.get_first_stage_encoding: "encoder_posterior",
    DualCondLDM.get_first_stage_encoding: "encoder_posterior",
    LatentDiffusion.get_learned_conditioning: "c",
    LatentDiffusion.get_input: "batch k return_first_stage_outputs force_c_encode cond_key return_original_cond bs",
    LatentDiffusion.decode_first_stage: "z predict_cids force_not_quantize",
    LatentDiffusion.differentiable_decode_first_stage: "z predict_cids force_not_quantize",
    LatentDiffusion.shared_step: "batch",
    LatentDiffusion.forward: "x c",
    LatentDiffusion.apply_model: "x_noisy t cond return_ids",
    LatentDiffusion.p_losses: "x_start cond t noise",
    LatentDiffusion.get_loss: "pred target mean",
    LatentDiffusion.q_sample: "x_start t noise",
    LatentDiffusion.q_mean_variance: "x_start t",
    LatentDiffusion.q_posterior: "x_start x_t t",
    LatentDiffusion.predict_start_from_noise: "x_t t noise",
    LatentDiffusion.p_mean_variance: "x c t clip_denoised return_codebook_ids quantize_denoised return_x0 score_corrector corrector_kwargs",
    LatentDiffusion.p_sample: f"x c t clip_denoised repeat_noise return_codebook_ids quantize_denoised return_x0 {NOISE}",
    LatentDiffusion.p_sample_loop: "cond shape return_intermediates x_T verbose callback timesteps quantize_denoised mask x0 "
    "img_callback start_T log_every_t",
    LatentDiffusion.progressive_denoising: f"cond shape verbose callback quantize_denoised img_callback mask x0 {NOISE} batch_size x_T start_T "
    "log_every_t",
    LatentDiffusion.sample: "cond batch_size return_intermediates x_T verbose timesteps quantize_denoised mask x0 shape",
    LatentDiffusion.sample_log: "cond batch_size ddim ddim_steps",
    LatentDiffusion.log_images: f"batch N n_row sample ddim_steps ddim_eta return_keys quantize_denoised inpaint {PLOTS}",
    DualCondLDM.get_style_features: "features flag",
    DualCondLDM.apply_model: "x_noisy t cond return_ids",
    DualCondLDM.decode_first_stage: "z predict_cids force_not_quantize",
    DualConditionDiffusionWrapper.__init__: "diff_model_config conditioning_key",
    DualConditionDiffusionWrapper.forward: "x t c1 c2",
    DiffusionWrapper.__init__: "diff_model_config conditioning_key",
    DiffusionWrapper.forward: "x t c_concat c_crossattn",
    StyleUNetModel.__init__: "in_channels content_in_dim content_refined_dim",
    StyleUNetModel.forward: "x timesteps content style",
    TimestepEmbedder.__init__: "hidden_size frequency_embedding_size",
    TimestepEmbedder.timestep_embedding: "t dim max_period",
    modulate: "x shift scale",
    DDIMSampler.__init__: "model schedule",
    DDIMSampler.register_buffer: "name attr",
    DDIMSampler.make_schedule: "ddim_num_steps ddim_discretize ddim_eta verbose",
    DDIMSampler.sample: "S batch_size shape conditioning callback normals_sequence img_callback quantize_x0 eta mask x0 "
    f"{NOISE} verbose x_T log_every_t {TWO_WAY}",
    DDIMSampler.ddim_sampling: "cond shape x_T ddim_use_original_steps callback timesteps quantize_denoised mask x0 img_callback "
    f"log_every_t {NOISE} {TWO_WAY}",
    DDIMSampler.p_sample_ddim: f"x c t index repeat_noise use_original_steps quantize_denoised {NOISE} {TWO_WAY}",
    LitEma.__init__: "model decay use_num_upates",
    LitEma.forward: "model",
    LitEma.copy_to: "model",
    LitEma.store: "parameters",
    LitEma.restore: "parameters",
    vgg16.__init__: "requires_grad pretrained",
    get_obj_from_str: "string reload",
    diffusion_util.make_beta_schedule: "schedule n_timestep linear_start linear_end cosine_s",
    diffusion_util.make_ddim_timesteps: "ddim_discr_method num_ddim_timesteps num_ddpm_timesteps verbose",
    diffusion_util.make_ddim_sampling_parameters: "alphacums ddim_timesteps eta verbose",
    diffusion_util.noise_like: "shape device repeat",
    diffusion_util.extract_into_tensor: "a t x_shape",
    diffusion_util.checkpoint: "func inputs params flag",
    disabled_train: "self mode",
    uniform_on_device: "r1 r2 shape device",
    log_txt_as_img: "wh xc size",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__qualname__)
def test_parameters_stand_in_their_published_places(function: Any) -> None:
    own = [
        name
        for name in inspect.signature(function).parameters
        if name != "self" or function is disabled_train
    ]
    published = SIGNATURES[function].split()
    assert own[: len(published)] == published


# Latent diffusion: the model's parts


def test_the_published_constructors_options_at_their_defaults() -> None:
    published = {
        "cond_stage_config": "__is_unconditional__", "num_timesteps_cond": None, "cond_stage_key": "image",
        "cond_stage_trainable": False, "concat_mode": True, "cond_stage_forward": None, "conditioning_key": None,
        "scale_factor": 1.0, "scale_by_std": False, "timesteps": 1000, "beta_schedule": "linear", "loss_type": "l2",
        "ckpt_path": None, "ignore_keys": [], "load_only_unet": False, "monitor": "val/loss", "monitor_mode": "min",
        "use_ema": True, "first_stage_key": "image", "log_every_t": 200, "clip_denoised": True, "linear_start": 1e-4,
        "linear_end": 2e-2, "cosine_s": 8e-3, "given_betas": None, "original_elbo_weight": 0.0, "v_posterior": 0.0,
        "l_simple_weight": 1.0, "parameterization": "eps", "scheduler_config": None, "use_positional_encodings": False,
        "learn_logvar": False, "logvar_init": 0.0, "model_class": DiffusionWrapper,
    }  # fmt: skip
    assert isinstance(unconditional_ldm(**published).model, DiffusionWrapper)


def test_the_first_stages_halves_are_where_latent_diffusion_has_them() -> None:
    assert (Encoder, Decoder) == tuple(
        get_obj_from_str(f"ldm.modules.vae.model.{half}") for half in ("Encoder", "Decoder")
    )


def test_every_latent_diffusion_is_a_ddpm() -> None:
    assert issubclass(DualCondLDM, LatentDiffusion) and issubclass(LatentDiffusion, DDPM)


def test_a_ddpm_by_itself_learns_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.models.autoencoder.IdentityFirstStage", Identity, raising=False)
    unet = {"target": "builders.PlainUNet", "params": {**BACKBONE, "in_channels": 3, "out_channels": 3}}
    with allowing_targets(["builders", "ldm.models.autoencoder"]):
        model = apply_rule(DDPM(unet, image_size=SIDE, channels=3, timesteps=STEPS)).eval()
    pictures = rnd("pictures", 2, SIDE, SIDE, 3).tanh()
    assert torch.equal(model.get_input({"image": pictures}, "image")[0], pictures.permute(0, 3, 1, 2))
    assert model.shared_step({"image": pictures})[0].isfinite()
    assert model.sample(None, batch_size=2, verbose=False).shape == (2, 3, SIDE, SIDE)


def test_the_schedule_can_be_set_again() -> None:
    model = unconditional_ldm(timesteps=STEPS)
    model.register_schedule(None, "cosine", 7, 1e-4, 2e-2, 8e-3)
    expected = unconditional_ldm(timesteps=7, beta_schedule="cosine")
    for name, table in expected.named_buffers():
        if name.startswith(("betas", "alphas", "sqrt", "log_one", "posterior", "lvlb")):
            assert torch.equal(model.get_buffer(name), table), name
    assert seeded(model.sample, None, 2, verbose=False).equal(seeded(expected.sample, None, 2, verbose=False))
    model.register_schedule([0.1, 0.2])
    assert_same(model.alphas_cumprod, torch.tensor([0.9, 0.72]))
    assert model.num_timesteps == 2


def test_the_schedule_of_the_condition_has_one_step(classes: LatentDiffusion) -> None:
    classes.make_cond_schedule()
    assert classes.cond_ids.tolist() == [0, *[STEPS - 1] * (STEPS - 1)] and not classes.shorten_cond_schedule


def test_the_first_stage_is_frozen_for_good(classes: LatentDiffusion) -> None:
    classes.instantiate_first_stage(FIRST_STAGE)
    apply_rule(classes)
    assert not any(p.requires_grad for p in classes.first_stage_model.parameters())
    assert (
        not classes.train().first_stage_model.training
        and classes.eval().cond_stage_model.embedding.weight.requires_grad
    )
    module = nn.Dropout()
    module.train = disabled_train
    assert module.train(module, False) is module and module.training


@pytest.mark.parametrize("trainable", [True, False])
def test_the_condition_stage_learns_or_is_frozen(trainable: bool) -> None:
    model = class_ldm(cond_stage_trainable=trainable)
    model.instantiate_cond_stage(EMBEDDER)
    assert model.cond_stage_model.embedding.weight.requires_grad == trainable
    model.cond_stage_trainable = False
    model.instantiate_cond_stage("__is_first_stage__")
    assert model.cond_stage_model is model.first_stage_model
    model.instantiate_cond_stage("__is_unconditional__")
    assert model.cond_stage_model is None


def test_an_input_is_a_latent_and_what_the_condition_stage_takes(classes: LatentDiffusion) -> None:
    given = batch([2, 0, 3])
    x = given["image"].permute(0, 3, 1, 2)
    z, labels = seeded(classes.get_input, given, "image")
    assert torch.equal(z, seeded(lambda: classes.get_first_stage_encoding(classes.encode_first_stage(x))))
    assert labels.tolist() == [2, 0, 3]
    z, c, pictures, reconstruction, original = classes.get_input(given, "image", True, True, None, True, 2)
    assert (
        torch.equal(c, classes.get_learned_conditioning({"class_label": torch.tensor([2, 0])}))
        and not c.requires_grad
    )
    assert (
        torch.equal(pictures, x[:2])
        and torch.equal(reconstruction, classes.decode_first_stage(z))
        and original.tolist() == [2, 0]
    )


def test_an_input_is_taken_from_any_key(classes: LatentDiffusion) -> None:
    given = batch([2, 0])
    z, labels = seeded(
        classes.get_input,
        {"photo": given["image"], "image": 0 * given["image"], "kind": given["class_label"]},
        "photo",
        cond_key="kind",
    )
    assert torch.equal(z, seeded(classes.get_input, given, "image")[0]) and labels.tolist() == [2, 0]


def test_training_and_its_pictures_go_through_what_a_subclass_overrides(tmp_path: Path) -> None:
    calls = []

    class Own(LatentDiffusion):
        def get_input(self, batch: dict[str, Any], k: str, **options: Any) -> list[Any]:
            calls.append("get_input")
            return super().get_input(
                {"image": batch["mine"], "class_label": torch.zeros(len(batch["mine"]), dtype=torch.long)},
                k,
                **options,
            )

        def forward(self, x: torch.Tensor, c: Any, *args: Any, **options: Any) -> Any:
            calls.append("forward")
            return super().forward(x, c, *args, **options)

    model = class_ldm(kind=Own)
    given = {"mine": batch([0, 1])["image"]}
    model.training_step = lambda batch, index: model.shared_step(batch)[0]  # without a trainer to log to
    model.training_step(given, 0).backward()
    assert calls == ["get_input", "forward"] and model.cond_stage_model.embedding.weight.grad.any()
    model.log_dict = lambda values, **options: calls.append(set(values))
    calls.clear()
    model.validation_step(given, 0)
    own, averaged = (
        {"val/loss_simple", "val/loss_vlb", "val/loss"},
        {"val/loss_simple_ema", "val/loss_vlb_ema", "val/loss_ema"},
    )
    assert calls == ["get_input", "forward"] * 2 + [own | averaged]
    calls.clear()
    model.preview(given, max_images=1, ddim_steps=1)
    model.log_images(given, N=2, sample=False, plot_progressive_rows=False)
    assert calls == ["get_input"] * 2


def test_a_step_gives_loss_and_values(classes: LatentDiffusion) -> None:
    loss, values = seeded(classes.shared_step, batch([1, 2]))
    by_hand, same = seeded(lambda: classes(*classes.get_input(batch([1, 2]), classes.first_stage_key)))
    assert torch.equal(loss, by_hand) and loss.requires_grad
    assert (
        values.keys() == same.keys() == {"val/loss_simple", "val/loss_vlb", "val/loss"}
        and values["val/loss"] == loss
    )


@pytest.mark.parametrize("kind, difference", [("l1", 2.0), ("l2", 4.0)])
def test_a_loss_is_a_mean_or_of_every_element(kind: str, difference: float) -> None:
    model, x = unconditional_ldm(loss_type=kind), latents("x")
    assert model.get_loss(x + 2, x).item() == pytest.approx(difference, rel=1e-5)
    assert_same(model.get_loss(x + 2, x, mean=False), torch.full_like(x, difference))


def test_a_network_of_several_results_gives_the_first_unless_asked_for_all(
    classes: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, t, c = latents("x"), torch.tensor([1, 5]), rnd("c", 2, 1, WIDTH)
    prediction = classes.apply_model(x, t, c, return_ids=True)
    monkeypatch.setattr(classes.model, "forward", lambda x, t, **cond: (prediction, "ids"))
    assert classes.apply_model(x, t, c) is prediction and classes.apply_model(x, t, c, True) == (
        prediction,
        "ids",
    )


def test_weights_of_the_network_alone(classes: LatentDiffusion, tmp_path: Path) -> None:
    path, wanted = (
        tmp_path / "model.ckpt",
        {name: value + 1 for name, value in classes.model.state_dict().items()},
    )
    torch.save({"state_dict": wanted}, path)
    fresh = class_ldm()
    fresh.init_from_ckpt(path, list(), only_model=True)
    assert all(torch.equal(value, wanted[name]) for name, value in fresh.model.state_dict().items())
    torch.save({"state_dict": {f"model.{name}": value for name, value in wanted.items()}}, path)
    fresh.init_from_ckpt(path, only_model=True)
    with pytest.raises(CheckpointError, match="does not fit"):
        fresh.init_from_ckpt(path)


def test_averages_are_left_out_of_a_model_that_has_none(
    classes: LatentDiffusion, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"state_dict": classes.state_dict()}, tmp_path / "model.ckpt")
    model = class_ldm(use_ema=False)
    with caplog.at_level(logging.WARNING):
        model.init_from_ckpt(tmp_path / "model.ckpt", ignore_keys=[])
    assert "averaged weights are left out" in caplog.text and model.restarted_from_ckpt


def test_averages_of_which_a_state_has_none_start_at_its_weights(dual: DualCondLDM) -> None:
    state = {name: value.clone() for name, value in dual.state_dict().items()}
    bare = {name: value for name, value in state.items() if "_ema." not in name}
    model = tiny_ldm(timesteps=STEPS)
    model.load_state_dict(
        {name: value + 1 if name.startswith("model.") else value for name, value in bare.items()},
        strict=False,
    )
    with model.ema_scope():
        assert all(
            torch.equal(weight, bare[f"model.{name}"] + 1) for name, weight in model.model.named_parameters()
        )
    model.load_state_dict(state)
    average = next(iter(dual.model_ema.shadow_names.values()))
    half = {name: value for name, value in state.items() if name != f"model_ema.{average}"}
    model.load_state_dict(half, strict=False)
    assert all(
        torch.equal(getattr(model.model_ema, shadow), weight)
        for shadow, weight in zip(model.model_ema.shadow_names.values(), model.model.parameters())
    )
    model.load_state_dict(state)
    for harmless in ({name: value for name, value in bare.items() if name.startswith("vgg.")}, {}):
        model.load_state_dict(harmless, strict=False)
        assert torch.equal(getattr(model.model_ema, average), getattr(dual.model_ema, average))


def test_names_out_of_scope_can_be_imported_beside_others() -> None:
    from ldm.models.diffusion.plms import PLMSSampler
    from ldm.modules.encoders.modules import BERTEmbedder, TransformerEmbedder

    for name, reason in (
        (PLMSSampler, "PLMS sampling is out of scope"),
        (BERTEmbedder, "BERT text"),
        (TransformerEmbedder, "BERT text"),
    ):
        with pytest.raises(ConfigError, match=reason):
            name(1, n_embed=2)


def test_input_is_never_split(classes: LatentDiffusion) -> None:
    assert not hasattr(classes, "split_input_params")
    with pytest.raises(ConfigError, match="split input is out of scope; .*tile"):
        classes.split_input_params = {"ks": (128, 128)}
    with pytest.raises(ConfigError, match="split input is out of scope"):
        classes.get_fold_unfold(latents("x"), (4, 4), (2, 2))


def test_lpips_weights_are_found_and_never_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vgg.pth: no such file"):
        get_ckpt_path("vgg_lpips", tmp_path)
    (tmp_path / "vgg.pth").touch()
    assert get_ckpt_path("vgg_lpips", str(tmp_path)) == tmp_path / "vgg.pth"


def test_maps_are_shown_in_colours(classes: LatentDiffusion) -> None:
    maps = torch.eye(5)[None].permute(0, 2, 1)[..., None].expand(1, 5, 5, 3)  # one channel in each row
    shown = classes.to_rgb(maps)
    assert shown.shape == (1, 3, 5, 3) and shown.min() == -1 and shown.max() == 1
    assert len({tuple(colour) for colour in shown[0, :, :, 0].T.tolist()}) == 5 and torch.equal(
        shown, classes.to_rgb(maps)
    )


def test_the_prior_in_bits() -> None:
    model, x = unconditional_ldm(timesteps=4), latents("x")
    abar = model.alphas_cumprod[-1]
    expected = normal_kl(abar.sqrt() * x, (1 - abar).log(), torch.tensor(0.0), torch.tensor(0.0)).mean(
        dim=(1, 2, 3)
    ) / math.log(2)
    assert_same(model._prior_bpd(x), expected)


def test_a_first_stage_of_codes_is_told_to_give_latents() -> None:
    model = class_ldm()
    model.first_stage_model.encode = lambda x: (x, None, (None, None, None))
    with pytest.raises(ConfigError, match="gives codes, not latents; its target must be VQModelInterface"):
        model.shared_step(batch([0]))


# ArtFusion: the model's parts, and the notebook's cell that shows styles without a content


def test_the_wrapper_and_the_networks_own_numbers() -> None:
    model = tiny_ldm()
    assert type(model.model) is DualConditionDiffusionWrapper and isinstance(
        model.model.diffusion_model, StyleUNetModel
    )
    assert (model.model.diffusion_model.content_in_dim, model.model.diffusion_model.content_refined_dim) == (
        CHANNELS,
        3,
    )
    assert (model.linear_start, model.linear_end, model.clip_denoised, model.use_scheduler) == (
        1e-4,
        2e-2,
        False,
        False,
    )


@torch.no_grad()
def test_styles_without_a_content(dual: DualCondLDM) -> None:
    model, styles = dual, rnd("styles", 3, 3, 32, 32).tanh()
    with model.ema_scope("Plotting"):
        content = torch.zeros(3, model.channels, model.image_size, model.image_size)
        style = model.get_style_features(model.vgg(model.vgg_scaling_layer(styles)))
        assert style.shape == (3, STYLE_DIM) and torch.equal(style, model.get_style_statistics(styles))
        samples = seeded(
            model.sample_log,
            cond={"c1": content, "c2": style},
            batch_size=3,
            ddim=True,
            ddim_steps=3,
            eta=1.0,
        )[0]
        assert model.decode_first_stage(samples).shape == (3, 3, 32, 32)
        same, _ = seeded(
            DDIMSampler(model).sample, 3, 3, SHAPE, {"c1": content, "c2": style}, eta=1.0, verbose=False
        )
        assert torch.equal(samples, same)


def test_input_of_the_dual_model(dual: DualCondLDM) -> None:
    z, c, x, reconstruction = dual.get_input(dual_batch(), "image", True, bs=2)
    assert torch.equal(x, dual_batch()["image"][:2].permute(0, 3, 1, 2)) and reconstruction.shape == x.shape
    assert torch.equal(c["c1"], dual.get_content_features(z)) and torch.equal(
        c["c2"], dual.get_style_statistics(x)
    )
    loss, _ = seeded(dual, z, c)
    assert torch.equal(
        loss, seeded(dual.shared_step, {**{key: value[:2] for key, value in dual_batch().items()}})[0]
    )


def test_averages_keep_and_give_back_parameters_or_a_whole_model(dual: DualCondLDM) -> None:
    live = [p.detach().clone() for p in dual.model.parameters()]
    for given in (lambda: dual.model.parameters(), lambda: dual.model):
        dual.model_ema.store(given())
        dual.model_ema.copy_to(dual.model)
        assert not torch.equal(live[0], next(dual.model.parameters()))
        dual.model_ema.restore(given())
        assert all(torch.equal(a, b) for a, b in zip(live, dual.model.parameters(), strict=True))
    assert set(dual.model_ema.m_name2s_name) == {name for name, _ in dual.model.named_parameters()}


def test_averages_of_a_fixed_decay() -> None:
    layer = apply_rule(nn.Linear(3, 2))
    average, before = LitEma(layer, 0.75, use_num_upates=False), layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1)
    average(layer)
    assert_same(average.weight, before + 0.25)
    assert average.num_updates == -1
    average.start_at(layer)
    assert average.num_updates == -1 and torch.equal(average.weight, layer.weight)


def test_a_pretrained_vgg16_has_weights_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = narrow_vgg16()
    monkeypatch.setattr(lpips, "_download_vgg16", network.state_dict)
    trained = vgg16(pretrained=True, requires_grad=False, channels=network.channels)
    assert trained.has_weights and not any(p.requires_grad for p in trained.parameters())
    assert torch.equal(trained.slice1[0].weight, network.slice1[0].weight)
    assert not vgg16(True, channels=network.channels).has_weights


def test_content_may_be_modulated_by_vectors_with_the_axes_of_positions() -> None:
    x, shift, scale = latents("x"), rnd("shift", 2, CHANNELS), rnd("scale", 2, CHANNELS)
    expected = x * (1 + scale[..., None, None]) + shift[..., None, None]
    assert_same(modulate(x, shift, scale), expected)
    assert_same(modulate(x, shift[..., None, None], scale[..., None, None]), expected)


def test_an_embedders_sinusoid() -> None:
    t = torch.tensor([0.0, 3.5])
    assert torch.equal(TimestepEmbedder.timestep_embedding(t, 6), diffusion_util.timestep_embedding(t, 6))
    assert_same(
        TimestepEmbedder.timestep_embedding(t, 2, max_period=10), torch.stack([t.cos(), t.sin()], dim=1)
    )


# Small functions


def test_objects_of_names_may_be_read_anew() -> None:
    before, module = get_obj_from_str("ldm.modules.losses.lpips.ScalingLayer"), dict(vars(lpips))
    try:
        assert get_obj_from_str("ldm.modules.losses.lpips.ScalingLayer", reload=True) is not before
    finally:
        vars(lpips).update(module)  # else no class of it would be another test's
    assert get_obj_from_str(string="ldm.modules.ema.LitEma", reload=False) is LitEma


def test_helpers(caplog: pytest.LogCaptureFixture) -> None:
    assert exists(0) and not exists(None)
    assert (default(0, 5), default(None, 5), default(None, lambda: 7)) == (0, 5, 7)
    with caplog.at_level(logging.INFO):
        assert count_params(nn.Linear(3, 2), verbose=True) == 8
    assert "Linear has" in caplog.text
    assert torch.equal(mean_flat(torch.arange(8.0).reshape(2, 2, 2)), torch.tensor([1.5, 5.5]))
    assert isimage(torch.zeros(1, 3, 2, 2)) and not isimage(torch.zeros(1, 4, 2, 2)) and not isimage(["text"])
    assert ismap(torch.zeros(1, 4, 2, 2)) and not ismap(torch.zeros(1, 1, 2, 2))
    drawn = log_txt_as_img((64, 32), ["cat", ""])
    assert drawn.shape == (2, 3, 32, 64) and drawn[0].min() < 0 and (drawn[1] == 1).all()
    torch.manual_seed(0)
    uniform = uniform_on_device(2.0, 5.0, (1000,), "cpu")
    assert 2 <= uniform.min() < 2.1 and 4.9 < uniform.max() <= 5


def test_functions_of_the_diffusion_networks() -> None:
    assert torch.equal(seeded(diffusion_util.noise_like, (2, 3), "cpu"), seeded(torch.randn, 2, 3))
    assert torch.equal(*diffusion_util.noise_like((2, 3, 4), "cpu", repeat=True))
    table = diffusion_util.extract_into_tensor(torch.tensor([5.0, 6, 7]), torch.tensor([2, 0]), (2, 4, 8, 8))
    assert table.shape == (2, 1, 1, 1) and table.flatten().tolist() == [7, 5]
    layer = diffusion_util.scale_module(apply_rule(diffusion_util.linear(3, 2)), 2.0)
    assert torch.equal(layer.weight, 2 * apply_rule(nn.Linear(3, 2)).weight)
    assert not any(p.any() for p in diffusion_util.zero_module(layer).parameters())
    norm = diffusion_util.normalization(64)
    assert isinstance(norm, diffusion_util.GroupNorm32) and norm.num_groups == 32
    t = torch.tensor([3, 8])
    assert diffusion_util.timestep_embedding(t, 2, repeat_only=True).tolist() == [[3, 3], [8, 8]]
    with pytest.raises(ImportError, match="noise_liek"):
        exec("from ldm.modules.diffusionmodules.util import noise_liek")


@pytest.mark.parametrize("flag", [True, False])
def test_a_checkpointed_function_has_the_same_gradient(flag: bool) -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    diffusion_util.checkpoint(lambda x: (x**3).sum(), (x,), (), flag).backward()
    assert x.grad.tolist() == [3, 12]


def test_betas_of_a_level_are_the_cosine_schedules() -> None:
    betas = diffusion_util.betas_for_alpha_bar(50, lambda s: math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2)
    assert betas == pytest.approx(diffusion_util.make_beta_schedule("cosine", 50), abs=1e-12)


def test_distances_of_normal_distributions() -> None:
    a, b = (DiagonalGaussianDistribution(rnd(tag, 2, 8, 4, 4)) for tag in "ab")
    torch_a, torch_b = (torch.distributions.Normal(d.mean, d.std) for d in (a, b))
    expected = torch.distributions.kl_divergence(torch_a, torch_b)
    assert_same(normal_kl(a.mean, a.logvar, b.mean, b.logvar), expected)
    assert_same(a.kl(b), expected.sum(dim=(1, 2, 3)), 1e-4)
    assert_same(normal_kl(a.mean, a.logvar, 0.0, 0.0).sum(dim=(1, 2, 3)), a.kl(), 1e-4)
    x = rnd("x", 2, 4, 4, 4)
    assert_same(a.nll(x), -torch_a.log_prob(x).sum(dim=(1, 2, 3)), 1e-4)
    still = DiagonalGaussianDistribution(rnd("a", 2, 8, 4, 4), deterministic=True)
    assert still.kl(b).tolist() == still.nll(x).tolist() == [0, 0]
