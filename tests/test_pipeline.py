"""ldm.pipeline.pipeline, the one door for inference: any pictures and settings in, the same pictures out every time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import (
    ROOT,
    forbid_network,
    largest_difference,
    mean_difference,
    model_config,
    picture,
    save_config,
    tiny_model,
)
from torchvision.models import VGG16_Weights

from ldm.checkpoint import save_safetensors
from ldm.config.factory import instantiate_from_config, load_config
from ldm.device import choose_device, choose_precision
from ldm.errors import CheckpointError, ConfigError, UserError
from ldm.media.images import resize_short_side, without_alpha
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.samplers import sampling_path
from ldm.modules.losses import lpips
from ldm.pipeline.bundled import BUNDLED, resolve_checkpoint
from ldm.pipeline.engine import Batch
from ldm.pipeline.looks import SAMPLERS
from ldm.pipeline.pipeline import StyleTransferPipeline, build_model
from ldm.pipeline.settings import Settings

SAMPLED = {"look": "sampled", "size": 32, "steps": 2}


@pytest.fixture(scope="module")
def pipeline(tiny: StyleTransferPipeline) -> StyleTransferPipeline:
    return tiny


@pytest.fixture(scope="module")
def painting() -> Image.Image:
    return picture(40, 52, seed=2)


# Pictures in and out


@pytest.mark.parametrize(
    "size, expected",
    [
        ((64, 64), (32, 32)),
        ((100, 50), (64, 32)),
        ((50, 90), (32, 58)),
        ((16, 16), (32, 32)),
        ((33, 47), (32, 46)),
    ],
)
def test_the_result_has_the_photos_aspect(
    pipeline: StyleTransferPipeline, painting: Image.Image, size: tuple, expected: tuple
) -> None:
    assert pipeline(picture(*size), painting, **SAMPLED).size == expected


def test_the_size_is_that_of_the_shorter_side(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    assert pipeline(photo, painting, **{**SAMPLED, "size": 64}).size == (96, 64)


def test_paths_and_pictures_give_the_same(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image, tmp_path: Path
) -> None:
    photo.save(tmp_path / "photo.png")
    painting.save(tmp_path / "painting.png")
    from_pictures = pipeline(photo, painting, **SAMPLED)
    assert isinstance(from_pictures, Image.Image) and from_pictures.mode == "RGB"
    assert from_pictures == pipeline(tmp_path / "photo.png", str(tmp_path / "painting.png"), **SAMPLED)


def test_an_opened_picture_is_taken_upright_as_its_file_is(
    pipeline: StyleTransferPipeline, painting: Image.Image, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture(48, 32).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert pipeline(opened, painting, **SAMPLED) == pipeline(tmp_path / "turned.png", painting, **SAMPLED)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_pictures_of_any_mode_are_taken(
    pipeline: StyleTransferPipeline, painting: Image.Image, mode: str
) -> None:
    given = Image.new("I;16", (32, 32), 30000) if mode == "I;16" else picture(32, 32).convert(mode)
    assert pipeline(given, painting, **SAMPLED).mode == "RGB"


def test_a_photos_transparency_is_the_results(pipeline: StyleTransferPipeline, painting: Image.Image) -> None:
    logo = picture(64, 48, 1)
    logo.putalpha(Image.linear_gradient("L").resize((64, 48)))
    result = pipeline(logo, painting, **SAMPLED)
    assert result.mode == "RGBA"
    wanted = logo.resize(result.size, Image.Resampling.LANCZOS).getchannel("A")
    assert np.abs(np.asarray(result.getchannel("A"), int) - np.asarray(wanted)).max() <= 1
    ground, _ = without_alpha(resize_short_side(logo, 32))
    assert result.convert("RGB") == pipeline(ground, painting, **SAMPLED)
    # in company of others, and where it is kept, too
    first, second = pipeline([logo, logo.convert("RGB")], painting, **SAMPLED)
    assert (first.mode, second.mode) == ("RGBA", "RGB")


def test_a_look_is_the_dials_that_it_stands_for(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    options = {"size": 32, "steps": 1, "effort": 0.1}
    free = pipeline(photo, painting, look="free", **options)
    assert free == pipeline(photo, painting, look="fine", content_scale=0.5, style_scale=1.5, **options)
    assert pipeline(photo, painting, look="balanced", **options) == pipeline(photo, painting, **options)
    assert pipeline(photo, painting, look="free", content_scale=1, style_scale=1, **options) == pipeline(
        photo, painting, **options
    )


def test_lists_of_the_same_length_pair_up(pipeline: StyleTransferPipeline) -> None:
    contents, styles = [picture(48, 32, 1), picture(32, 32, 2)], [picture(32, 32, 3), picture(40, 32, 4)]
    both = pipeline(contents, styles, **SAMPLED)
    assert [image.size for image in both] == [(48, 32), (32, 32)]
    for result, content, style in zip(both, contents, styles):
        assert largest_difference(result, pipeline(content, style, **SAMPLED)) <= 1


@pytest.mark.parametrize("several", ["content", "style"])
def test_one_picture_goes_with_all_of_the_other_list(
    pipeline: StyleTransferPipeline, photo: Image.Image, several: str
) -> None:
    many = [picture(32, 32, seed) for seed in range(3)]
    results = pipeline(many, [photo], **SAMPLED) if several == "content" else pipeline(photo, many, **SAMPLED)
    alone = [
        pipeline(one, photo, **SAMPLED) if several == "content" else pipeline(photo, one, **SAMPLED)
        for one in many
    ]
    assert [largest_difference(a, b) <= 1 for a, b in zip(results, alone)] == [True] * 3


def test_a_list_of_one_gives_a_list_of_one(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    assert [type(result) for result in pipeline([photo], painting, **SAMPLED)] == [Image.Image]


def test_a_missing_file_is_named(pipeline: StyleTransferPipeline, photo: Image.Image) -> None:
    with pytest.raises(UserError, match="nowhere.png: no such file"):
        pipeline(photo, "nowhere.png", **SAMPLED)


def test_a_picture_that_breaks_while_it_is_read_is_a_user_error(
    pipeline: StyleTransferPipeline, painting: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / "cut.jpg"
    picture(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:700])
    with (
        Image.open(path) as opened,
        pytest.raises(UserError, match="cut.jpg: the picture is broken or cut short"),
    ):
        pipeline(opened, painting, **SAMPLED)


def test_nothing_given_is_written_into(pipeline: StyleTransferPipeline) -> None:
    contents, styles, seeds = (
        [picture(48, 32, 1), picture(40, 36, 2)],
        [picture(33, 32, 3).convert("P")],
        [4, 5],
    )
    before = [image.copy() for image in (*contents, *styles)]
    weights = {name: value.clone() for name, value in pipeline.model.state_dict().items()}
    pipeline(contents, styles, seed=seeds, style_scale=2.0, **SAMPLED)
    assert [*contents, *styles] == before and seeds == [4, 5] and len(contents) == 2
    assert all(torch.equal(value, weights[name]) for name, value in pipeline.model.state_dict().items())


def test_tensors_given_are_not_written_into(pipeline: StyleTransferPipeline) -> None:
    left, keep = torch.zeros(1, 1, 32, 40), torch.rand(1, 1, 32, 40)
    left[..., :20] = 1.0
    given = {
        "content": torch.rand(1, 3, 32, 40) * 2 - 1,
        "style": torch.rand(1, 2, 40),
        "masks": torch.cat([left, 1 - left], dim=1),
        "keep": keep,
    }
    before = {name: tensor.clone() for name, tensor in given.items()}
    pipeline.painter.paint(
        Batch(**given, size=(32, 40), seeds=[0], content_scales=[2.0], style_scales=[2.0]),
        Settings(look="sampled", steps=2, strength=0.5),
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.items())


# Seeds


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "ancestral"},
        {"content_scale": 2.0, "style_scale": 0.0, "sampler": "ddim", "eta": 0.5},
        {"strength": 0.5},
    ],
)
def test_the_same_call_gives_the_same_picture_bit_by_bit(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image, options
) -> None:
    torch.manual_seed(1)
    first = pipeline(photo, painting, seed=7, **SAMPLED, **options)
    torch.manual_seed(2)
    torch.randn(3)
    assert pipeline(photo, painting, seed=7, **SAMPLED, **options) == first


def test_the_callers_random_numbers_go_on_undisturbed(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    torch.manual_seed(1)
    expected = torch.randn(4)
    torch.manual_seed(1)
    pipeline(photo, painting, sampler="ancestral", **SAMPLED)
    assert torch.equal(torch.randn(4), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_what_else_is_in_the_batch(
    pipeline: StyleTransferPipeline, sampler: str
) -> None:
    contents, styles = [picture(48, 32, s) for s in range(3)], [picture(32, 32, 10 + s) for s in range(3)]
    together = pipeline(contents, styles, seed=[5, 6, 7], sampler=sampler, style_scale=2.0, **SAMPLED)
    for i in range(3):
        alone = pipeline(contents[i], styles[i], seed=5 + i, sampler=sampler, style_scale=2.0, **SAMPLED)
        assert largest_difference(together[i], alone) <= 1


def test_the_batch_size_changes_nothing(pipeline: StyleTransferPipeline, painting: Image.Image) -> None:
    contents = [picture(width, 32, width) for width in (48, 32, 48, 32, 48)]
    one_by_one, three_by_three = (
        pipeline(contents, painting, seed=list(range(5)), batch_size=n, **SAMPLED) for n in (1, 3)
    )
    assert [image.size[0] for image in three_by_three] == [48, 32, 48, 32, 48]
    assert max(map(largest_difference, one_by_one, three_by_three)) <= 1


def test_other_seeds_give_other_pictures(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    first, second, again = pipeline([photo] * 3, painting, seed=[1, 2, 1], **SAMPLED)
    assert largest_difference(first, second) > 20 and largest_difference(first, again) <= 1


@pytest.mark.parametrize("seed", [-1, 2**64 - 1, np.int64(3)])
def test_any_64_bit_number_is_a_seed(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image, seed: int
) -> None:
    assert pipeline(photo, painting, seed=seed, **SAMPLED).size == (48, 32)


# Settings


@pytest.mark.parametrize(
    "one, other",
    [
        ({"style_scale": 1.0}, {"style_scale": 3.0}),
        ({"style_scale": 1.0}, {"style_scale": 0.0}),
        ({"content_scale": 1.0}, {"content_scale": 3.0}),
        ({"content_scale": 1.0}, {"content_scale": 0.0}),
        ({"sampler": "ddim", "eta": 0.0}, {"sampler": "ddim", "eta": 1.0}),
        ({"sampler": "dpm-solver++", "steps": 4}, {"sampler": "ddim", "steps": 4}),
        ({"sampler": "ddim"}, {"sampler": "ancestral"}),
        ({"steps": 1}, {"steps": 4}),
        ({"detail": 0.0}, {"detail": 0.5}),
        ({"strength": 1.0}, {"strength": 0.6}),
        (
            {"guidance_interval": None, "style_scale": 3.0},
            {"guidance_interval": (0.0, 0.5), "style_scale": 3.0},
        ),
        ({"style_size": 32, "style_scale": 5.0}, {"style_size": 300, "style_scale": 5.0}),
        ({"size": 64, "tile": 32}, {"size": 64, "tile": 96}),
        ({"size": 64, "refine": 0.5}, {"size": 64, "refine": 1.0}),
        ({"preserve_color": False}, {"preserve_color": True}),
    ],
)
def test_every_dial_changes_the_picture(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image, one: dict, other: dict
) -> None:
    results = [pipeline(photo, painting, **{**SAMPLED, **options}) for options in (one, other)]
    assert mean_difference(*results) > 0.5  # the same call twice: exactly 0


def test_each_scale_is_about_the_loss_of_its_own_condition_alone(
    pipeline: StyleTransferPipeline, painting: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(
        x: torch.Tensor, content: torch.Tensor, content_vectors: torch.Tensor, modulations: list
    ) -> torch.Tensor:
        calls.append((content, modulations[0]))
        return original(x, content, content_vectors, modulations)

    def of(
        content_scales: list, style_scales: list, interval: tuple | None, device: torch.device
    ) -> Guidance:
        scales.append((content_scales, style_scales, interval))
        return make(content_scales, style_scales, interval, device)

    calls, scales, network = [], [], pipeline.model.model.diffusion_model
    original, make = network.predict, Guidance.of
    monkeypatch.setattr(network, "predict", predict)
    monkeypatch.setattr(Guidance, "of", of)
    pipeline(picture(32, 32), painting, content_scale=2.0, style_scale=3.0, **SAMPLED)
    assert scales == [([2.0], [3.0], None)]
    (both, no_content, no_style), (style, same_style, null_style) = calls[0]
    assert not no_content.any() and torch.equal(no_style, both)
    null = network.embed(torch.tensor([999]), pipeline.model.null_style_vector.weight)
    assert torch.equal(same_style, style) and torch.allclose(
        null_style, network.modulations(null)[0], atol=1e-5
    )
    assert (style - null_style).abs().max() > 0.01


@pytest.mark.parametrize("part", ["content", "style"])
def test_a_scale_of_0_ignores_that_picture(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image, part: str
) -> None:
    pictures, others = ({"content": photo, "style": painting, part: picture(48, 32, seed)} for seed in (8, 9))
    scales = {"content_scale": 1.0, "style_scale": 1.0, f"{part}_scale": 0.0}
    ignored = [pipeline(**p, **SAMPLED, **scales) for p in (pictures, others)]
    assert (
        largest_difference(*ignored) <= 1
        and largest_difference(*(pipeline(**p, **SAMPLED) for p in (pictures, others))) > 1
    )


def test_the_default_is_10_guided_steps_of_dpm_solver(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    assert pipeline(photo, painting, look="sampled", size=32) == pipeline(
        photo,
        painting,
        look="sampled",
        size=32,
        sampler="dpm-solver++",
        steps=10,
        content_scale=1.25,
        style_scale=1.75,
    )


@pytest.mark.parametrize("sampler, steps", [("ddim", 50), ("ancestral", 250)])
def test_other_samplers_take_more_steps(
    pipeline: StyleTransferPipeline,
    photo: Image.Image,
    painting: Image.Image,
    monkeypatch,
    sampler: str,
    steps: int,
) -> None:
    def path(alphas: list, count: int, *options: object) -> list:
        counts.append(count)
        return sampling_path(alphas, 1, *options)

    counts = []
    monkeypatch.setattr("ldm.pipeline.engine.sampling_path", path)
    pipeline(photo, painting, look="sampled", size=32, sampler=sampler)
    assert set(counts) == {steps}


@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number, got 1.5"),
        ({"settings": {"steps": 3}}, "settings must be a Settings"),
        ({"effort": 2.0, "look": "sampled"}, "effort is for looks with gradient steps"),
        ({"styel_scale": 2.0}, "there is no setting 'styel_scale'.*style_scale"),
    ],
)
def test_impossible_settings_are_refused_before_any_picture_is_read(
    pipeline: StyleTransferPipeline, wrong: dict, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        pipeline("nowhere.png", "nowhere.png", **wrong)


def test_a_model_of_fewer_time_steps_allows_fewer_steps(
    pipeline: StyleTransferPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.model, "num_timesteps", 40)
    with pytest.raises(UserError, match="steps must be between 1 and 40, got 41"):
        pipeline("nowhere.png", "nowhere.png", steps=41)


# Devices and number formats


@pytest.mark.parametrize(
    "features, expected", [({}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")]
)
def test_the_cpu_computes_in_bf16_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, features: dict, expected: str
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: features, raising=False)
    assert choose_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize("name", ["tpu", "gpu", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"device '{name}' is not one of auto, cpu, cuda, mps"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match=f"device '{name}' is not available here"):
        choose_device(name)


@pytest.mark.parametrize("name, problem", [("fp8", "not one of"), ("fp16", "for GPUs")])
def test_a_precision_that_cannot_be_is_refused(name: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        choose_precision(name, torch.device("cpu"))


def test_bf16_is_near_float32(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    rough = StyleTransferPipeline(pipeline.model, "bf16")(photo, painting, **SAMPLED)
    exact = pipeline(photo, painting, **SAMPLED)
    assert rough != exact and mean_difference(rough, exact) < 5


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_too_little_memory_is_a_user_error(
    pipeline: StyleTransferPipeline, photo: Image.Image, monkeypatch, error: Exception
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(pipeline.model, "decode_first_stage", fail)
    with pytest.raises(UserError, match="not enough memory: choose a smaller size, batch_size or tile"):
        pipeline(photo, photo, **SAMPLED)


@pytest.mark.parametrize(
    "size, options, told",
    [
        ((50, 1), {"look": "sampled", "size": 96}, "a picture of 4800x96 pixels would take about 0.4 GB"),
        ((50, 1), {}, "a picture of 1600x32 pixels would take about 0.6 GB"),
        ((32, 32), {"look": "sampled", "size": 640}, "3 pictures of 640x640 pixels would take about 0.5 GB"),
    ],
)
def test_a_result_that_would_take_too_much_memory_is_refused_before_it_is_begun(
    pipeline: StyleTransferPipeline, monkeypatch: pytest.MonkeyPatch, size: tuple, options: dict, told: str
) -> None:
    monkeypatch.setattr("ldm.pipeline.pipeline.total_memory", lambda device: 400_000_000)
    monkeypatch.setattr(pipeline, "_paint_all", lambda *given: pytest.fail("begun"))
    contents = [picture(*size)] * (3 if "3 pictures" in told else 1)
    with pytest.raises(UserError) as caught:
        pipeline(contents, picture(32, 32), **{"size": 32, **options})
    assert str(caught.value).startswith(told) and "more than 80% of the 0.4 GB there are" in str(caught.value)


def test_a_painting_that_would_take_too_much_memory_is_refused_before_it_is_looked_at(
    pipeline: StyleTransferPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the result is."""
    monkeypatch.setattr("ldm.pipeline.pipeline.total_memory", lambda device: 400_000_000)
    monkeypatch.setattr(pipeline, "_paint_all", lambda *given: pytest.fail("begun"))
    with pytest.raises(
        UserError, match="^a style picture of 6400x32 pixels would take about 0.4 GB.*crop it$"
    ):
        pipeline(picture(32, 32), picture(200, 1), **SAMPLED)


def test_memory_that_is_not_known_stops_no_picture(
    pipeline: StyleTransferPipeline,
    monkeypatch: pytest.MonkeyPatch,
    photo: Image.Image,
    painting: Image.Image,
) -> None:
    monkeypatch.setattr("ldm.pipeline.pipeline.total_memory", lambda device: 0)
    assert isinstance(pipeline(photo, painting, **SAMPLED), Image.Image)


def test_other_errors_of_torch_are_not_taken_for_memory(
    pipeline: StyleTransferPipeline, photo: Image.Image, monkeypatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(pipeline.model, "decode_first_stage", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        pipeline(photo, photo, **SAMPLED)


def test_numbers_that_overflow_are_an_error_not_a_picture(
    pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    with pytest.raises(UserError, match="overflowed, .*choose smaller scales"):
        pipeline(photo, painting, style_scale=1e38, **SAMPLED)


def test_attention_is_laid_out_for_the_fast_kernels(
    pipeline: StyleTransferPipeline, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others need memory that grows with the fourth power of the size."""

    def attend(*parts: torch.Tensor) -> torch.Tensor:
        strides.extend(part.stride(-1) for part in parts)
        return original(*parts)

    strides, original = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", attend)
    pipeline(photo, photo, **SAMPLED)
    assert set(strides) == {1}


# Checkpoints


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_config({"model": model_config()}, tmp_path_factory.mktemp("config") / "tiny.yaml")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_safetensors(tiny_model(use_ema=False).state_dict(), path)
    return path


def without(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


def test_a_safetensors_file_is_loaded(
    weights: Path, config: Path, pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    loaded = StyleTransferPipeline.from_pretrained(weights, config, device="cpu", precision="fp32")
    assert loaded(photo, painting, **SAMPLED) == pipeline(photo, painting, **SAMPLED)


def test_a_lightning_checkpoint_is_used_with_its_averaged_weights(
    config: Path, pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image, tmp_path: Path
) -> None:
    trained = tiny_model()
    with torch.no_grad():  # the averages stay what they were
        for weight in trained.trained_parameters():
            weight.add_(1.0)
    extra = {"first_stage_model.loss.logvar": torch.zeros(())}
    torch.save(
        {"state_dict": {**trained.state_dict(), **extra}, "global_step": 9, "optimizer_states": [{}]},
        tmp_path / "last.ckpt",
    )
    loaded = StyleTransferPipeline.from_pretrained(
        str(tmp_path / "last.ckpt"), str(config), device="cpu", precision="fp32"
    )
    assert loaded(photo, painting, **SAMPLED) == pipeline(photo, painting, **SAMPLED)
    plain = SAMPLED | {"content_scale": 1.0, "style_scale": 1.0}  # the others are too large for guidance
    assert loaded(photo, painting, **plain) != StyleTransferPipeline(trained)(photo, painting, **plain)


def test_a_written_checkpoint_can_be_read_by_whoever_may_read_other_files(
    weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "plain").touch()
    assert weights.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_bundled_weights_that_are_gone_are_told_how_to_get_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUNDLED, "mini", ("checkpoints/mini/gone.safetensors", "configs/mini.yaml"))
    with pytest.raises(
        UserError,
        match=r"the bundled weights are missing; `git checkout checkpoints/mini/gone.safetensors` brings them back",
    ):
        StyleTransferPipeline.from_pretrained()


@pytest.mark.parametrize("given", [(3,), (b"mini",), ("mini", 3)])
def test_files_are_given_by_their_paths(given: tuple[Any, ...]) -> None:
    with pytest.raises(UserError, match="(checkpoint|config) must be a path, got"):
        StyleTransferPipeline.from_pretrained(*given)


def test_the_model_is_ready_for_inference(weights: Path, config: Path) -> None:
    model = StyleTransferPipeline.from_pretrained(weights, config, device="cpu").model
    assert not model.training


def test_a_checkpoint_with_wrong_names_fails_and_mentions_the_config(config: Path, tmp_path: Path) -> None:
    state = {f"wrong.{name}": value for name, value in tiny_model(use_ema=False).state_dict().items()}
    save_safetensors(state, tmp_path / "wrong.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is .*tiny.yaml its config\? \(--config.*: \d+ missing .*, \d+ unexpected "
    ) as caught:
        StyleTransferPipeline.from_pretrained(tmp_path / "wrong.safetensors", config)
    assert "wrong.safetensors" in str(caught.value)


def test_a_checkpoint_of_another_width_fails_and_names_the_shapes(weights: Path, tmp_path: Path) -> None:
    unet = model_config()["params"]["unet_config"]
    unet["params"]["time_embed_dim"] = 24
    other = save_config({"model": model_config(unet_config=unet)}, tmp_path / "other.yaml")
    with pytest.raises(CheckpointError, match=r"misshapen .*\(16.*not \(24"):
        StyleTransferPipeline.from_pretrained(weights, other)


@pytest.mark.parametrize("checkpoint, config_name", [("nowhere.ckpt", "tiny"), ("tiny", "nowhere.yaml")])
def test_missing_files_are_named(weights: Path, config: Path, checkpoint: str, config_name: str) -> None:
    paths = [
        weights if checkpoint == "tiny" else checkpoint,
        config if config_name == "tiny" else config_name,
    ]
    with pytest.raises(UserError, match="nowhere.*no such file"):
        StyleTransferPipeline.from_pretrained(*paths)


@pytest.mark.parametrize(
    "content", [{}, {"model": None}, {"model": {"target": "torch.nn.SiLU"}}, {"model": {"params": []}}]
)
def test_a_config_without_a_style_transfer_model_is_refused(
    weights: Path, tmp_path: Path, content: dict
) -> None:
    with pytest.raises(ConfigError, match="a.yaml: not the config of a style transfer model"):
        StyleTransferPipeline.from_pretrained(weights, save_config(content, tmp_path / "a.yaml"))


def test_a_config_of_another_kind_of_model_is_refused(weights: Path, tmp_path: Path) -> None:
    node = model_config()
    node["target"] = "ldm.models.diffusion.ddpm.LatentDiffusion"
    for name in ("style_dim", "vgg_channels"):
        del node["params"][name]
    with pytest.raises(ConfigError, match="describes a LatentDiffusion"):
        StyleTransferPipeline.from_pretrained(weights, save_config({"model": node}, tmp_path / "a.yaml"))


def test_a_network_without_style_is_refused() -> None:
    model = tiny_model(use_ema=False)
    model.model.diffusion_model = torch.nn.Identity()
    with pytest.raises(ConfigError, match="needs a StyleUNetModel, not a Identity"):
        StyleTransferPipeline(model)


def test_untrusted_targets_need_to_be_allowed(weights: Path, tmp_path: Path) -> None:
    node = model_config(first_stage_config={"target": "tests.parts.Autoencoder", "params": {}})
    path = save_config({"model": node}, tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="--allow-target"):
        StyleTransferPipeline.from_pretrained(weights, path)
    with pytest.raises(ConfigError, match="No module named"):
        StyleTransferPipeline.from_pretrained(weights, path, allow_targets=["tests.parts"])


# The style network's weights


def test_a_checkpoint_with_a_style_network_needs_no_other_file(
    weights: Path, tmp_path: Path, photo: Image.Image, monkeypatch
) -> None:
    forbid_network(monkeypatch)
    path = save_config({"model": model_config(vgg_ckpt_path="nowhere.ckpt")}, tmp_path / "a.yaml")
    loaded = StyleTransferPipeline.from_pretrained(weights, path, device="cpu")
    assert loaded(photo, photo, **SAMPLED).size == (48, 32)


def test_a_checkpoint_without_one_takes_that_of_the_config(
    weights: Path, pipeline: StyleTransferPipeline, tmp_path: Path, monkeypatch
) -> None:
    forbid_network(monkeypatch)
    save_safetensors(without(pipeline.model.state_dict(), "vgg."), tmp_path / "bare.safetensors")
    path = save_config({"model": model_config(vgg_ckpt_path=str(weights))}, tmp_path / "a.yaml")
    loaded = StyleTransferPipeline.from_pretrained(tmp_path / "bare.safetensors", path, device="cpu").model
    assert all(
        torch.equal(value, pipeline.model.vgg.state_dict()[name])
        for name, value in loaded.vgg.state_dict().items()
    )


def test_a_narrow_style_network_without_weights_is_an_error(
    config: Path, pipeline: StyleTransferPipeline, tmp_path: Path
) -> None:
    save_safetensors(without(pipeline.model.state_dict(), "vgg."), tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match="narrow style network .*vgg_ckpt_path"):
        StyleTransferPipeline.from_pretrained(tmp_path / "bare.safetensors", config)


@pytest.fixture(scope="module")
def vgg_width_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint without style network, config) of a model whose style network is VGG16, as published."""
    folder = tmp_path_factory.mktemp("vgg")
    unet = model_config()["params"]["unet_config"]
    unet["params"]["context_dim"] = 2944
    node = model_config(
        style_dim=2944, vgg_channels=list(lpips.VGG_CHANNELS), unet_config=unet, use_ema=False
    )
    save_safetensors(without(instantiate_from_config(node).state_dict(), "vgg."), folder / "bare.safetensors")
    return folder / "bare.safetensors", save_config({"model": node}, folder / "a.yaml")


def test_vgg16_is_downloaded_where_nothing_else_names_it(
    vgg_width_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []
    state = {name: torch.full_like(value, 0.5) for name, value in lpips.vgg16().state_dict().items()}
    monkeypatch.setattr(
        VGG16_Weights, "get_state_dict", lambda self, **options: downloads.append(self) or state
    )
    loaded = StyleTransferPipeline.from_pretrained(*vgg_width_files, device="cpu").model
    assert len(downloads) == 1 and loaded.vgg.slice5[-2].weight.eq(0.5).all()


def test_offline_without_vgg16_the_error_says_what_to_do(
    vgg_width_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"could not be downloaded .*fetch https://\S+vgg16\S+ .*`vgg_ckpt_path`"
    ):
        StyleTransferPipeline.from_pretrained(*vgg_width_files)


def test_building_the_published_model_needs_no_file_and_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = load_config(ROOT / "configs/kl16_content12.yaml")
    config.model.params.first_stage_config.params.ckpt_path = None
    config.model.params.use_ema = False  # only to spare memory
    monkeypatch.chdir(tmp_path)
    model = instantiate_from_config(config.model)
    assert not model.vgg.has_weights and model.model.diffusion_model.out_channels == 16


def test_the_bundled_weights_go_with_their_config_by_name_and_by_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    by_name, by_path = (
        resolve_checkpoint(name, None) for name in ("mini", "checkpoints/mini/model.safetensors")
    )
    assert by_name[0].samefile(by_path[0]) and by_name[1] == by_path[1] == ROOT / "configs/mini.yaml"


@pytest.mark.parametrize("name, expected", [(None, "kl16_content12.yaml"), ("own.yaml", "own.yaml")])
def test_a_checkpoints_config_is_the_published_one_unless_named(
    weights: Path, monkeypatch, name: str | None, expected: str
) -> None:
    def build(path: Path, kind: type, allow_targets: list) -> None:
        raise ConfigError(f"builds {path.name}")

    monkeypatch.setattr("ldm.models.inference.build_for_inference", build)
    with pytest.raises(ConfigError, match=f"builds {expected}"):
        StyleTransferPipeline.from_pretrained(weights, name)


def test_the_pipeline_builds_no_averages(config: Path) -> None:
    assert not any("_ema." in name for name in build_model(config).state_dict())


# What callers have set torch to


@contextmanager
def of_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "setting", [of_float64, lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")]
)
@pytest.mark.parametrize("look", ["sampled", "fine"])
def test_what_torch_is_set_to_changes_no_picture(
    pipeline: StyleTransferPipeline, setting: Callable[[], AbstractContextManager[None]], look: str
) -> None:
    content, style = picture(48, 40), picture(40, 40, seed=1)
    options: dict[str, Any] = {"look": look, "size": 32, "steps": 2, "seed": 3, "style_scale": 1.5}
    expected = pipeline(content, style, **options)
    pipeline.brush._paints.clear()
    with setting():
        assert largest_difference(pipeline(content, style, **options), expected) == 0


@pytest.mark.parametrize("setting", [of_float64, lambda: torch.device("meta")])
def test_a_model_is_loaded_the_same_whatever_torch_is_set_to_and_draws_nothing(
    model_files: list[str], setting: Callable[[], AbstractContextManager[None]]
) -> None:
    def load() -> StyleTransferPipeline:
        return StyleTransferPipeline.from_pretrained(model_files[1], model_files[3], "cpu", "fp32")

    torch.manual_seed(4)
    before, expected = torch.get_rng_state(), load().model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    with setting():
        loaded = load().model.state_dict()
    for name, value in expected.items():
        assert value.dtype == loaded[name].dtype and torch.equal(value, loaded[name]), name
