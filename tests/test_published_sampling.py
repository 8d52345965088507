"""Sampling under the published names: the same numbers as step by step, options in their published places, the published pictures."""

import logging
from typing import Any

import pytest
import torch
from builders import (
    CLASSES,
    SHAPE,
    SIDE,
    STEPS,
    WIDTH,
    assert_same,
    batch,
    class_ldm,
    conditions,
    dual_batch,
    half_mask,
    latents,
    seeded,
    tiny_ldm,
    tiny_options,
)
from golden_rules import rnd
from torch import Tensor

from ldm.errors import ConfigError
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.models.diffusion.published_pictures import PublishedPictures
from ldm.training.image_logger import ImageLogger
from ldm.util import log_txt_as_img


@pytest.fixture(scope="module")
def quantised() -> LatentDiffusion:
    return class_ldm(quantised=True, scale_factor=0.5)


# Latent diffusion: sampling


def test_the_first_notes_run(quantised: LatentDiffusion) -> None:
    """Labels and the null label, DDIM under guidance, decoding by codes."""
    model, scale, n = quantised, 3.0, 2
    sampler, all_samples = DDIMSampler(model), []
    with torch.no_grad(), model.ema_scope():
        uc = model.get_learned_conditioning(
            {model.cond_stage_key: torch.tensor(n * [CLASSES - 1]).to(model.device)}
        )
        for label in (1, 3):
            c = model.get_learned_conditioning(
                {model.cond_stage_key: torch.tensor(n * [label]).to(model.device)}
            )
            samples, _ = sampler.sample(
                S=4,
                conditioning=c,
                batch_size=n,
                shape=list(SHAPE),
                verbose=False,
                unconditional_guidance_scale=scale,
                unconditional_conditioning=uc,
                eta=0.0,
            )
            pictures = model.decode_first_stage(samples)
            all_samples.append(torch.clamp((pictures + 1.0) / 2.0, min=0.0, max=1.0))
            codes = model.first_stage_model.quantize(samples / model.scale_factor)[2][2]
            assert torch.equal(pictures, model.decode_first_stage(codes, predict_cids=True))
            assert torch.equal(
                pictures,
                model.decode_first_stage(
                    torch.nn.functional.one_hot(codes, 6).permute(0, 3, 1, 2).float(), True
                ),
            )
            plain = (samples / model.scale_factor)[:, :3, ::1]
            assert torch.equal(
                model.decode_first_stage(samples, force_not_quantize=True)[:, :, ::4, ::4], plain
            )
    assert torch.stack(all_samples).shape == (2, n, 3, 4 * SIDE, 4 * SIDE)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, c: DDIMSampler(model).sample(2, 2, SHAPE, c, quantize_x0=True, verbose=False),
        lambda model, c: model.sample(c, 2, quantize_denoised=True, verbose=False),
        lambda model, c: model.decode_first_stage(torch.zeros(2, SIDE, SIDE), predict_cids=True),
    ],
    ids=["DDIM", "ancestral", "codes"],
)
def test_codes_need_a_first_stage_that_has_them(dual: DualCondLDM, call: Any) -> None:
    with pytest.raises(
        ConfigError,
        match="needs a first stage with a codebook, like VQModelInterface; this model's is AutoencoderKL: leave it out",
    ):
        call(dual, conditions()[0])


def test_without_a_codebook_not_quantising_means_nothing(dual: DualCondLDM) -> None:
    z = latents("z")
    assert torch.equal(dual.decode_first_stage(z, False, True), dual.differentiable_decode_first_stage(z))


def test_a_first_stage_may_give_the_latents_themselves(quantised: LatentDiffusion) -> None:
    x = batch([0, 1])["image"].permute(0, 3, 1, 2)
    z = quantised.unscaled_latents(batch([0, 1]))
    assert torch.equal(z, quantised.first_stage_model.encode(x)) and torch.equal(
        quantised.get_input(batch([0, 1]), "image")[0], 0.5 * z
    )


def nearest(model: LatentDiffusion, z: Tensor) -> Tensor:
    return model.scale_factor * model.first_stage_model.quantize(z / model.scale_factor)[0]


def test_ddim_moves_every_predicted_start_to_its_codes(quantised: LatentDiffusion) -> None:
    c, x_T = rnd("c", 2, 1, WIDTH), latents("x_T")
    sampler = DDIMSampler(quantised)
    _, plain = sampler.sample(4, 2, SHAPE, c, x_T=x_T, verbose=False)
    _, moved = sampler.sample(4, 2, SHAPE, c, x_T=x_T, verbose=False, quantize_x0=True)
    assert torch.equal(moved["pred_x0"][1], nearest(quantised, plain["pred_x0"][1]))
    start = moved["pred_x0"][-1]
    assert torch.equal(start, nearest(quantised, start)) and not torch.equal(start, plain["pred_x0"][-1])
    by_the_other_name, _ = quantised.sample_log(c, 2, True, 4, x_T=x_T, quantize_denoised=True)
    assert torch.equal(
        by_the_other_name, sampler.sample(4, 2, SHAPE, c, x_T=x_T, verbose=False, quantize_x0=True)[0]
    )


def test_an_ancestral_step_moves_clips_and_tells_the_start(quantised: LatentDiffusion) -> None:
    x, t, c = latents("x"), torch.tensor([4, 9]), rnd("c", 2, 1, WIDTH)
    before, start = seeded(quantised.p_sample, x, c, t, return_x0=True)
    assert_same(start, quantised.predict_start_from_noise(x, t, quantised.apply_model(x, t, c)))
    assert torch.equal(
        quantised.p_sample(x, c, t, quantize_denoised=True, return_x0=True)[1], nearest(quantised, start)
    )
    assert (
        torch.equal(quantised.p_sample(x, c, t, True, return_x0=True)[1], start.clamp(-1, 1))
        and start.abs().max() > 1
    )
    mean, variance, log_variance, same = quantised.p_mean_variance(x, c, t, False, return_x0=True)
    assert torch.equal(same, start) and all(
        torch.equal(a, b) for a, b in zip((mean, variance, log_variance), quantised.q_posterior(start, x, t))
    )
    assert_same(before, mean + (0.5 * log_variance).exp() * seeded(torch.randn, x.shape))
    with pytest.raises(ConfigError, match="return_codebook_ids"):
        quantised.p_sample(x, c, t, return_codebook_ids=True)


def test_an_ancestral_steps_noise(dual: DualCondLDM) -> None:
    x, t, c = (
        latents("x")[:1].repeat(2, 1, 1, 1),
        torch.tensor([7, 7]),
        {key: value[:1].repeat(2, *[1] * (value.ndim - 1)) for key, value in conditions()[0].items()},
    )
    mean, _, log_variance = dual.p_mean_variance(x, c, t, clip_denoised=False)
    noise = (seeded(dual.p_sample, x, c, t, temperature=0.5) - mean) / (0.5 * log_variance).exp()
    assert_same(noise, 0.5 * seeded(torch.randn, x.shape), 1e-3)
    one, other = dual.p_sample(x, c, t, repeat_noise=True)
    assert torch.equal(one, other) and not torch.equal(*dual.p_sample(x, c, t))
    dropped = (seeded(dual.p_sample, x, c, t, noise_dropout=0.5) - mean) / (0.5 * log_variance).exp()
    assert 0.3 < (dropped.abs() < 1e-4).float().mean() < 0.7


class Half:
    def modify_score(self, model: Any, eps: Tensor, x: Tensor, t: Tensor, c: Any, factor: float) -> Tensor:
        return factor * eps


def test_an_ancestral_step_under_a_score_corrector(dual: DualCondLDM) -> None:
    x, t, (c, _, _) = latents("x"), torch.tensor([7, 7]), conditions()
    _, start = dual.p_sample(
        x, c, t, return_x0=True, score_corrector=Half(), corrector_kwargs={"factor": 0.5}
    )
    assert_same(start, dual.predict_start_from_noise(x, t, 0.5 * dual.apply_model(x, t, c)))
    with pytest.raises(ValueError, match="parameterization 'eps'"):
        tiny_ldm(timesteps=STEPS, parameterization="x0").p_sample(x, c, t, score_corrector=Half())


def test_noising_has_a_mean_and_a_variance(dual: DualCondLDM) -> None:
    x, t = latents("x"), torch.tensor([3, 11])
    mean, variance, log_variance = dual.q_mean_variance(x, t)
    assert_same(dual.q_sample(x, t, noise=torch.ones_like(x)), mean + variance.sqrt())
    assert_same(variance.flatten(), 1 - dual.alphas_cumprod[t])
    assert_same(log_variance.exp(), variance)


@torch.no_grad()
def loop_by_hand(
    model: LatentDiffusion, c: Any, x: Tensor, steps: int, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Every x and every predicted start of a run of `p_sample`."""
    states, starts = [x], []
    for i in reversed(range(steps)):
        x, start = model.p_sample(x, c, torch.full((len(x),), i), return_x0=True, **options)
        states.append(x)
        starts.append(start)
    return states, starts


@pytest.mark.parametrize(
    "options, steps",
    [({}, STEPS), ({"timesteps": 7}, 7), ({"start_T": 4}, 4), ({"timesteps": 7, "start_T": 9}, 7)],
)
def test_the_ancestral_loop(dual: DualCondLDM, options: dict[str, int], steps: int) -> None:
    c, x_T = conditions()[0], latents("x_T")
    states, _ = seeded(loop_by_hand, dual, c, x_T, steps)
    numbers: list[int] = []
    out, kept = seeded(dual.p_sample_loop, c, x_T.shape, True, x_T, False, numbers.append, **options)
    assert torch.equal(out, states[-1]) and numbers == list(reversed(range(steps)))
    logged = [x_T] + [states[steps - i] for i in reversed(range(steps)) if i % 5 == 0 or i == steps - 1]
    assert all(torch.equal(a, b) for a, b in zip(kept, logged, strict=True))
    if "start_T" not in options:
        assert torch.equal(out, seeded(dual.sample, c, 2, False, x_T, False, **options))
        assert torch.equal(
            out, seeded(dual.sample_log, c, 2, False, None, x_T=x_T, verbose=False, eta=1.0, **options)[0]
        )


def test_ancestral_sampling_has_no_eta(dual: DualCondLDM) -> None:
    with pytest.raises(ValueError, match="eta is DDIM's"):
        dual.sample_log(conditions()[0], 2, ddim=False, ddim_steps=None, eta=0.0)


def test_progressive_denoising_tells_the_predicted_starts(dual: DualCondLDM) -> None:
    c, x_T = conditions()[0], latents("x_T")
    states, starts = seeded(loop_by_hand, dual, c, x_T, 8, temperature=0.5, noise_dropout=0.2)
    out, progress = seeded(
        dual.progressive_denoising,
        c,
        SHAPE,
        False,
        batch_size=2,
        x_T=x_T,
        start_T=8,
        log_every_t=3,
        temperature=0.5,
        noise_dropout=0.2,
    )
    assert torch.equal(out, states[-1])
    assert all(torch.equal(a, starts[7 - i]) for a, i in zip(progress, (7, 6, 3, 0), strict=True))
    plain, _ = seeded(dual.progressive_denoising, c, (2, *SHAPE), False)
    assert torch.equal(plain, seeded(dual.sample, c, 2, verbose=False))


def test_ancestral_sampling_takes_its_share_of_a_longer_condition(dual: DualCondLDM) -> None:
    x_T = latents("x_T")
    assert torch.equal(
        *(
            seeded(
                dual.sample, conditions(n)[0] if n == 2 else longer(), 2, x_T=x_T, verbose=False, timesteps=2
            )
            for n in (2, 4)
        )
    )


def longer() -> dict[str, Tensor]:
    return {key: torch.cat([value, value + 1]) for key, value in conditions(2)[0].items()}


# DDIM


def test_ddim_takes_its_options_by_place(model: DualCondLDM) -> None:
    c, null_content, null_style = conditions()
    numbers: list[int] = []
    pictures: list[Tensor] = []
    positional = (
        4, 2, SHAPE, c, numbers.append, None, lambda start, i: pictures.append(start), False, 0.7, half_mask(), latents("known"), 0.8, 0.1, Half(),
        {"factor": 0.9}, False, latents("x_T"), 2, 0.6, null_content, 2.0, null_style,
    )  # fmt: skip
    by_place, intermediates = seeded(DDIMSampler(model, "linear").sample, *positional)
    by_name, _ = seeded(
        DDIMSampler(model, schedule="linear").sample,
        S=4, batch_size=2, shape=SHAPE, conditioning=c, eta=0.7, mask=half_mask(), x0=latents("known"), temperature=0.8, noise_dropout=0.1,
        score_corrector=Half(), corrector_kwargs={"factor": 0.9}, verbose=False, x_T=latents("x_T"), unconditional_guidance_scale=0.6,
        unconditional_conditioning=null_content, unconditional_guidance_scale_2=2.0, unconditional_conditioning_2=null_style,
    )  # fmt: skip
    assert torch.equal(by_place, by_name) and numbers == [0, 1, 2, 3] and len(pictures) == 4
    assert len(intermediates["x_inter"]) == 1 + 3


def test_a_sequence_of_normals_is_refused(model: DualCondLDM) -> None:
    with pytest.raises(ValueError, match="normals_sequence never had an effect; leave it out"):
        DDIMSampler(model).sample(4, 2, SHAPE, conditions()[0], None, [latents("noise")])


def guidance(n: int = 2) -> dict[str, Any]:
    _, null_content, null_style = conditions(n)
    return {
        "unconditional_guidance_scale": 0.6, "unconditional_conditioning": null_content,
        "unconditional_guidance_scale_2": 2.0, "unconditional_conditioning_2": null_style,
    }  # fmt: skip


def test_ddim_step_by_step_is_the_run(model: DualCondLDM) -> None:
    sampler, c, x = DDIMSampler(model), conditions()[0], latents("x_T")
    expected, _ = seeded(sampler.sample, 4, 2, SHAPE, c, eta=0.5, x_T=x, verbose=False, **guidance())
    sampler.make_schedule(4, "uniform", 0.5, False)
    torch.manual_seed(0)
    for index, step in reversed(list(enumerate(sampler.ddim_timesteps))):
        x, _ = sampler.p_sample_ddim(x, c, torch.full((2,), int(step)), index, **guidance())
    assert torch.equal(x, expected)
    assert torch.equal(
        seeded(sampler.ddim_sampling, c, (2, *SHAPE), latents("x_T"), verbose=False, **guidance())[0],
        expected,
    )


def test_a_ddim_step_may_repeat_its_noise(model: DualCondLDM) -> None:
    sampler, c = (
        DDIMSampler(model),
        {key: value[:1].repeat(2, *[1] * (value.ndim - 1)) for key, value in conditions()[0].items()},
    )
    sampler.make_schedule(4, ddim_eta=1.0)
    one, other = sampler.p_sample_ddim(
        latents("x")[:1].repeat(2, 1, 1, 1), c, torch.tensor([501, 501]), 2, True
    )[0]
    assert torch.equal(one, other)


@pytest.mark.parametrize("timesteps, start", [(None, STEPS), (5, 5)])
def test_ddim_by_all_time_steps_of_the_model(dual: DualCondLDM, timesteps: int | None, start: int) -> None:
    sampler, c, x = DDIMSampler(dual), conditions()[0], latents("x_T")
    sampler.make_schedule(3, ddim_eta=0.5)
    out, _ = seeded(sampler.ddim_sampling, c, (2, *SHAPE), x, True, None, timesteps, verbose=False)
    sampler.make_schedule(STEPS, "trailing", 0.5)  # the same steps, chosen one by one
    torch.manual_seed(0)
    for index in reversed(range(start)):
        x, _ = sampler.p_sample_ddim(x, c, torch.full((2,), index), index)
    assert_same(out, x, 1e-4)


def test_a_schedule_brings_the_models_tables_along(model: DualCondLDM) -> None:
    sampler = DDIMSampler(model)
    sampler.make_schedule(4, ddim_eta=1.0)
    assert torch.equal(sampler.alphas_cumprod, model.alphas_cumprod) and torch.equal(
        sampler.sqrt_recipm1_alphas_cumprod, model.sqrt_recipm1_alphas_cumprod
    )
    assert len(sampler.ddim_sigmas) == 4 and len(sampler.ddim_sigmas_for_original_num_steps) == 1000
    sampler.register_buffer("own", torch.ones(2))
    assert sampler.own.device == model.device


@pytest.mark.parametrize("singles", [("c1", "c2"), ("c2",)])
def test_a_condition_for_one_sample_serves_all_with_a_warning(
    model: DualCondLDM, caplog: pytest.LogCaptureFixture, singles: tuple[str, ...]
) -> None:
    c = conditions()[0]
    single = {key: value[:1] if key in singles else value for key, value in c.items()}
    repeated = {
        key: value[:1].expand_as(value).clone() if key in singles else value for key, value in c.items()
    }
    with caplog.at_level(logging.WARNING):
        out, _ = DDIMSampler(model).sample(
            3, 2, SHAPE, single, x_T=latents("x_T"), verbose=False, **guidance()
        )
    assert "a condition for a single sample is used for all 2" in caplog.text
    expected, _ = DDIMSampler(model).sample(
        3, 2, SHAPE, repeated, x_T=latents("x_T"), verbose=False, **guidance()
    )
    assert torch.equal(out, expected)
    ancestral = [
        seeded(model.sample, given, 2, x_T=latents("x_T"), timesteps=2, verbose=False)
        for given in (single, repeated)
    ]
    assert torch.equal(*ancestral)


# Pictures of a batch


def test_published_pictures(classes: LatentDiffusion) -> None:
    pictures = classes.log_images(batch([0, 1, 2]), N=2, n_row=1, ddim_steps=2, plot_denoise_rows=True)
    side, cell = 4 * SIDE, 4 * SIDE + 2
    assert {name: tuple(images.shape) for name, images in pictures.items()} == {
        **{
            name: (2, 3, side, side)
            for name in (
                "inputs",
                "reconstruction",
                "conditioning",
                "samples",
                "samples_inpainting",
                "samples_outpainting",
            )
        },
        "mask": (2, 1, SIDE, SIDE),
        "diffusion_row": (3, cell + 2, 4 * cell + 2),  # time steps 0, 5, 10 and the last
        "progressive_row": (3, 2 * cell + 2, 4 * cell + 2),
        "denoise_row": (3, 2 * cell + 2, 3 * cell + 2),  # the start and both steps
    }
    assert torch.equal(pictures["conditioning"], log_txt_as_img((side, side), ["class 0", "class 1"]))


@pytest.mark.parametrize(
    "options, drawn",
    [
        ({"sample": False, "plot_diffusion_rows": False, "plot_progressive_rows": False}, set()),
        ({"sample": False, "plot_progressive_rows": False}, {"diffusion_row"}),
        ({"sample": False, "plot_diffusion_rows": False}, {"progressive_row"}),
        (
            {
                "inpaint": False,
                "plot_diffusion_rows": False,
                "plot_progressive_rows": False,
                "ddim_steps": None,
            },
            {"samples"},
        ),
    ],
)
def test_published_pictures_are_left_out(dual: DualCondLDM, options: dict[str, Any], drawn: set[str]) -> None:
    assert set(dual.log_images(dual_batch(), split="train", **options)) == {
        "inputs",
        "reconstruction",
        *drawn,
    }


def test_pictures_by_codes_where_there_are_some(quantised: LatentDiffusion) -> None:
    rows = {"plot_diffusion_rows": False, "plot_progressive_rows": False, "inpaint": False, "ddim_steps": 2}
    assert "samples_x0_quantized" in quantised.log_images(batch([0, 1]), **rows)
    assert "samples_x0_quantized" not in quantised.log_images(batch([0, 1]), quantize_denoised=False, **rows)


def test_only_the_pictures_asked_for(dual: DualCondLDM) -> None:
    assert list(
        dual.log_images(
            dual_batch(), ddim_steps=1, plot_progressive_rows=False, return_keys=["samples", "inputs"]
        )
    ) == ["samples", "inputs"]
    with pytest.raises(ValueError, match="return_keys has 'sample', but drawn are inputs, reconstruction"):
        dual.log_images(
            dual_batch(),
            sample=False,
            plot_progressive_rows=False,
            plot_diffusion_rows=False,
            return_keys=["sample"],
        )


def test_inpainting_keeps_what_the_mask_says(dual: DualCondLDM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual, "decode_first_stage", lambda z: z)
    pictures = dual.log_images(
        dual_batch(), ddim_steps=STEPS, plot_progressive_rows=False, plot_diffusion_rows=False
    )
    z, mask = pictures["reconstruction"], pictures["mask"]
    assert mask[0, 0].sum() == SIDE**2 - (SIDE // 2) ** 2 and mask[0, 0, SIDE // 2, SIDE // 2] == 0
    change = {name: (pictures[f"samples_{name}"] - z).abs() for name in ("inpainting", "outpainting")}
    for name, kept in (("inpainting", mask), ("outpainting", 1 - mask)):
        assert (change[name] * kept).sum() / kept.sum() < 0.7 * (change[name] * (1 - kept)).sum() / (
            1 - kept
        ).sum()


def test_rows_show_the_averaged_weights_way(dual: DualCondLDM) -> None:
    rows = {"sample": False, "plot_diffusion_rows": False}
    given, _ = dual.get_input(dual_batch(1), "image")
    drawn = seeded(dual.log_images, dual_batch(1), **rows)["progressive_row"]
    with dual.ema_scope():
        c = dual.get_input(dual_batch(1), "image")[1]
        _, starts = seeded(
            lambda: (
                dual.get_input(dual_batch(1), "image"),
                dual.progressive_denoising(c, given.shape, False),
            )[1]
        )
        assert_same(drawn, dual.row_of(starts), 1e-3)


# The callback that draws while training


@pytest.mark.parametrize(
    "options, drawn",
    [
        ({}, "preview"),
        ({"ddim_steps": 5}, "preview"),
        ({"plot_denoise_rows": True}, "log_images"),
        ({"n_row": 2}, "log_images"),
    ],
)
def test_the_image_logger_draws_the_published_pictures_where_their_options_are_given(
    dual: DualCondLDM, options: dict[str, Any], drawn: str
) -> None:
    assert ImageLogger(log_images_kwargs=options).drawing_of(dual).__name__ == drawn


def test_the_image_logger_draws_what_a_model_draws_itself() -> None:
    class Own(DualCondLDM):
        def log_images(self, batch: Any, **kwargs: Any) -> dict[str, Tensor]:
            return {}

    model = Own(**tiny_options())
    callback = ImageLogger(log_images_kwargs={"colour": "red"})
    callback.check_model(model)
    assert callback.drawing_of(model).__func__ is Own.log_images and callback.options == {"colour": "red"}
    assert Own.log_images is not PublishedPictures.log_images


def test_options_that_no_picture_has_are_refused(dual: DualCondLDM) -> None:
    with pytest.raises(ConfigError, match="log_images_kwargs.ddim_step is unknown; did you mean ddim_steps"):
        ImageLogger(log_images_kwargs={"ddim_step": 5}).check_model(dual)
    with pytest.raises(ConfigError, match="Identity has no `log_images`"):
        ImageLogger().check_model(torch.nn.Identity())
