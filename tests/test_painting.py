"""What the pipeline paints: any size, styles alone, mixed and by region, parts kept, large pictures in tiles."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pipeline_builders import (
    ROOT,
    largest_difference,
    left_half,
    mean_difference,
    picture,
    pixels,
    tiny_model,
)
from torch import Tensor

from ldm.errors import ConfigError, UserError
from ldm.media.images import resize_short_side
from ldm.media.tensors import image_to_tensor, tensor_to_image
from ldm.pipeline.engine import SOLVERS, Batch, Painter, centred
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.looks import SAMPLERS
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings

SAMPLED = {"look": "sampled", "size": 32, "steps": 2}


@pytest.fixture(scope="module")
def paintings() -> list[Image.Image]:
    return [picture(40, 52, seed=2), picture(44, 40, seed=3)]


def white(width: int, height: int) -> Image.Image:
    return Image.new("L", (width, height), 255)


def batch_of(
    pipeline: StyleTransferPipeline, photo: Image.Image, statistics: torch.Tensor, **changes
) -> Batch:
    """One photo in the style of these (1, style_dim) statistics."""
    given = image_to_tensor(photo)[None]
    options = {
        "size": tuple(given.shape[2:]),
        "seeds": [0],
        "content_scales": [1.0],
        "style_scales": [1.0],
        "content": given,
        **changes,
    }
    return Batch(statistics[None], **options)


# Sizes


@pytest.mark.parametrize(
    "given, size, expected",
    [
        ((50, 37), 37, (50, 37)),
        ((50, 37), 32, (43, 32)),
        ((37, 50), 33, (33, 45)),
        ((50, 37), (45, 33), (45, 33)),
        ((50, 37), (33, 97), (33, 97)),
        ((64, 64), 65, (65, 65)),
    ],
)
def test_any_size_from_32_pixels_on_is_painted(
    tiny: StyleTransferPipeline, paintings: list, given: tuple, size: int | tuple, expected: tuple
) -> None:
    assert tiny(picture(*given), paintings[0], **{**SAMPLED, "size": size, "steps": 1}).size == expected


def test_width_and_height_crop_the_photo_and_do_not_squeeze_it(
    tiny: StyleTransferPipeline, paintings: list
) -> None:
    wide = picture(128, 64, 5)
    assert tiny(wide, paintings[0], **{**SAMPLED, "size": (64, 64)}) == tiny(
        wide.crop((32, 0, 96, 64)), paintings[0], **{**SAMPLED, "size": 64}
    )


def test_a_photo_is_padded_by_its_edges_and_the_result_cropped(
    tiny: StyleTransferPipeline, paintings: list
) -> None:
    odd = picture(50, 37, 5)
    padded = Image.fromarray(np.pad(np.asarray(odd), ((0, 27), (0, 14), (0, 0)), mode="edge"))
    options = {"look": "sampled", "steps": 2, "tile": 64, "style_scale": 2.0}
    assert tiny(odd, paintings[0], size=37, **options) == tiny(padded, paintings[0], size=64, **options).crop(
        (0, 0, 50, 37)
    )


def test_pictures_of_any_sizes_go_in_one_call(tiny: StyleTransferPipeline, paintings: list) -> None:
    contents = [picture(50, 37), picture(33, 33), picture(37, 50)]
    results = tiny(contents, paintings[0], **{**SAMPLED, "size": 33})
    assert [result.size for result in results] == [(45, 33), (33, 33), (33, 45)]


# Styles alone


@pytest.mark.parametrize("size, expected", [(33, (33, 33)), ((64, 40), (64, 40))])
def test_a_style_alone_has_the_size_asked_for(
    tiny: StyleTransferPipeline, paintings: list, size: int | tuple, expected: tuple
) -> None:
    assert tiny(None, paintings[0], **{**SAMPLED, "size": size, "steps": 1}).size == expected


def test_the_content_scale_means_nothing_to_a_style_alone(
    tiny: StyleTransferPipeline, paintings: list
) -> None:
    assert tiny(None, paintings[0], content_scale=5.0, **SAMPLED) == tiny(None, paintings[0], **SAMPLED)


@pytest.mark.parametrize(
    "options",
    [
        {"keep": white(32, 32)},
        {"detail": 0.5},
        {"recolor": 0.5},
        {"texture": 0.5},
        {"strength": 0.5},
        {"preserve_color": True},
        {"scene": white(32, 32)},
    ],
)
def test_what_needs_a_photo_is_refused_without_one(
    tiny: StyleTransferPipeline, paintings: list, options: dict
) -> None:
    with pytest.raises(
        UserError,
        match="keep, detail, recolor, texture, strength, face_detail, preserve_color and scene need a content picture",
    ):
        tiny(None, paintings[0], **SAMPLED, **options)


# The margin


@pytest.fixture
def with_margin(tiny: StyleTransferPipeline, monkeypatch: pytest.MonkeyPatch) -> StyleTransferPipeline:
    monkeypatch.setattr(tiny.model, "margin", 8)
    return tiny


def mirrored(photo: Image.Image, margin: int) -> Image.Image:
    return Image.fromarray(np.pad(np.asarray(photo), ((margin,) * 2, (margin,) * 2, (0, 0)), mode="reflect"))


def test_a_margin_is_painted_around_a_picture_and_cut_off(
    with_margin: StyleTransferPipeline, paintings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, given = with_margin, picture(48, 32, seed=1)
    statistics = tiny.encode_style(paintings[0], 32)
    settings = Settings(look="sampled", steps=2, detail=0.5, tile=64)
    painted = tiny.painter.paint(batch_of(tiny, given, statistics), settings)
    monkeypatch.setattr(tiny.model, "margin", 0)
    whole = tiny.painter.paint(batch_of(tiny, mirrored(given, 8), statistics), settings)
    assert painted.shape == (1, 3, 32, 48)
    torch.testing.assert_close(painted, whole[:, :, 8:-8, 8:-8])
    bare = tiny.painter.paint(batch_of(tiny, given, statistics), settings)
    assert not torch.allclose(painted, bare, atol=1e-2)


def test_regions_kept_parts_and_previews_lie_where_they_do_without_a_margin(
    with_margin: StyleTransferPipeline, paintings: list
) -> None:
    tiny, given, seen = with_margin, picture(32, 32, seed=1), []
    keep = Image.fromarray(np.kron(np.eye(2), np.full((16, 16), 255)).astype(np.uint8))

    def watch(progress: Any) -> None:
        seen.extend(progress.preview())

    options = {"size": 32, "steps": 2, "look": "sampled", "detail": 1.0}
    result = tiny(given, paintings[0], keep=keep, watch=watch, **options)
    kept = np.asarray(keep) > 0
    assert (pixels(result)[kept] == pixels(given)[kept]).all() and all(each.size == (32, 32) for each in seen)
    regions = StyleRegions(paintings, [left_half(32, 32)])
    left, right = (tiny(given, painting, **options) for painting in paintings)
    both = pixels(tiny(given, regions, **options)).astype(int)
    for half, alone in ((slice(0, 8), left), (slice(24, 32), right)):
        assert np.abs(both[:, half] - pixels(alone)[:, half]).mean() < 12


@pytest.mark.parametrize("size", [(40, 100), (112, 80)])
def test_large_pictures_have_the_margin_at_every_size(
    with_margin: StyleTransferPipeline, paintings: list, size: tuple[int, int]
) -> None:
    """Painted small first, then larger over that, in tiles as large as before and the margin."""
    tiny = with_margin
    result = tiny(picture(*size, seed=1), paintings[0], size=size, steps=2, look="sampled", tile=32)
    assert result.size == size
    assert tiny.painter._tile(Settings(tile=32), 8) > tiny.painter._tile(Settings(tile=32))


def test_a_picture_smaller_than_the_margin_has_a_narrower_one(
    with_margin: StyleTransferPipeline, paintings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(with_margin.model, "margin", 40)
    given = batch_of(with_margin, picture(24, 24, seed=1), with_margin.encode_style(paintings[0], 32))
    assert with_margin.painter.paint(given, Settings(look="sampled", steps=1)).shape == (1, 3, 24, 24)


# Mixtures


def test_a_mixture_of_one_is_that_style(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list
) -> None:
    assert tiny(photo, StyleMix(paintings, [1, 0]), **SAMPLED) == tiny(photo, paintings[0], **SAMPLED)
    assert tiny(photo, StyleMix(paintings, [0, 2]), **SAMPLED) == tiny(photo, paintings[1], **SAMPLED)


def test_a_mixture_averages_the_statistics(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list
) -> None:
    first, second = (tiny.encode_style(painting, 32) for painting in paintings)
    painted = tiny.painter.paint(
        batch_of(tiny, photo, 0.25 * first + 0.75 * second), Settings(look="sampled", steps=2)
    )
    options = SAMPLED | {"content_scale": 1.0, "style_scale": 1.0}
    mixed = tiny(photo, StyleMix(paintings, [1, 3]), **options)
    assert largest_difference(mixed, tensor_to_image(painted[0])) <= 1


# Regions


def test_a_region_that_is_everywhere_is_its_style_alone(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list
) -> None:
    alone = tiny(photo, paintings[0], style_scale=2.0, **SAMPLED)
    assert (
        largest_difference(
            tiny(photo, StyleRegions(paintings, [white(48, 32)]), style_scale=2.0, **SAMPLED), alone
        )
        <= 1
    )


def test_regions_of_one_style_are_that_style(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list
) -> None:
    regions = StyleRegions([paintings[0]] * 3, [left_half(48, 32), white(48, 32)])
    assert largest_difference(tiny(photo, regions, **SAMPLED), tiny(photo, paintings[0], **SAMPLED)) <= 1


def test_every_picture_may_have_regions_of_its_own(tiny: StyleTransferPipeline, paintings: list) -> None:
    contents = [picture(48, 32, seed) for seed in (5, 6, 7)]
    styles = [
        StyleRegions(paintings, [left_half(48, 32)]),
        paintings[0],
        StyleRegions(paintings[::-1], [white(48, 32)]),
    ]
    together = tiny(contents, styles, seed=[1, 2, 3], style_scale=2.0, **SAMPLED)
    for i in range(3):
        assert (
            largest_difference(
                together[i], tiny(contents[i], styles[i], seed=i + 1, style_scale=2.0, **SAMPLED)
            )
            <= 1
        )


@pytest.mark.parametrize(
    "masks, problem",
    [
        ([white(32, 48)], "a mask of 32x48 pixels does not have the picture's aspect, 48x32"),
        ([left_half(48, 32)] * 2, "black in every mask"),
        ([], "0 masks for 2 styles"),
    ],
)
def test_masks_that_do_not_fit_are_refused_before_any_work(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list, monkeypatch, masks: list, problem: str
) -> None:
    monkeypatch.setattr(Painter, "style_statistics", lambda *args: pytest.fail("works"))
    with pytest.raises(UserError, match=problem):
        tiny(photo, StyleRegions(paintings, masks), **SAMPLED)


# Kept parts, strength, colours


def test_what_is_kept_is_the_photos_own(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list
) -> None:
    kept = tiny(photo, paintings[0], keep=left_half(48, 32), **SAMPLED)
    assert np.array_equal(pixels(kept)[:, :24], pixels(photo)[:, :24])
    assert mean_difference(kept, photo, slice(24, None)) > 20


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_in_the_latent_too(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list, sampler: str
) -> None:
    """What lies beside the kept part sees the photo there, so that both fit."""
    batch = batch_of(tiny, photo, tiny.encode_style(paintings[0], 32), keep=torch.ones(1, 1, 32, 48))
    painter, settings = tiny.painter, Settings(look="sampled", sampler=sampler, steps=3, style_scale=2.0)
    with torch.no_grad():
        copied = painter.codec.decode(painter.codec.encode(batch.content), (32, 48))
    torch.testing.assert_close(painter.paint(batch, settings), copied, rtol=1e-4, atol=1e-4)


def test_one_mask_keeps_its_part_of_every_photo(tiny: StyleTransferPipeline, paintings: list) -> None:
    contents = [picture(48, 32, seed) for seed in (5, 6)]
    for kept, given in zip(tiny(contents, paintings[0], keep=left_half(96, 64), **SAMPLED), contents):
        assert np.array_equal(pixels(kept)[:, :22], pixels(given)[:, :22])


@pytest.mark.parametrize(
    "options", [{"size": (33, 47)}, {"size": 64, "tile": 32}, {"size": 64, "tile": 32, "refine": 1.0}]
)
def test_detail_puts_back_what_the_first_stage_loses(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list, options: dict
) -> None:
    """Where all of the photo is kept in the latent, all of its detail makes it the photo again."""
    batch = batch_of(
        tiny,
        resize_short_side(photo, 64) if options["size"] == 64 else photo.resize(options["size"]),
        tiny.encode_style(paintings[0], 32),
    )
    batch = replace(batch, keep=torch.ones(1, 1, *batch.size))
    none, half, all_of_it = (
        tiny.painter.paint(batch, Settings(look="sampled", steps=2, detail=detail, **options))
        for detail in (0.0, 0.5, 1.0)
    )
    assert (all_of_it - batch.content).abs().max() < 1e-3 < (none - batch.content).abs().mean()
    torch.testing.assert_close(half, (none + all_of_it) / 2)


def test_the_models_config_says_how_much_detail(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list
) -> None:
    detailed = StyleTransferPipeline(tiny_model(use_ema=False, detail=0.7))
    assert detailed(photo, paintings[0], **SAMPLED) == tiny(photo, paintings[0], detail=0.7, **SAMPLED)
    assert detailed(photo, paintings[0], detail=0.0, **SAMPLED) == tiny(photo, paintings[0], **SAMPLED)
    assert detailed(None, paintings[0], **SAMPLED) == tiny(None, paintings[0], **SAMPLED)


def test_strength_1_is_the_default(tiny: StyleTransferPipeline, photo: Image.Image, paintings: list) -> None:
    assert tiny(photo, paintings[0], strength=1.0, **SAMPLED) == tiny(photo, paintings[0], **SAMPLED)


@pytest.mark.parametrize("strength, expected", [(1.0, 10), (0.5, 5), (0.01, 1)])
def test_less_strength_takes_fewer_steps(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list, strength: float, expected: int
) -> None:
    lengths = []
    batch = batch_of(tiny, photo, tiny.encode_style(paintings[0], 32))
    tiny.painter.paint(
        batch,
        Settings(look="sampled", strength=strength),
        watch=lambda path, preview: lengths.append(len(path)) or path,
    )
    assert lengths == [expected]


@pytest.mark.parametrize("strength, expected", [(1.0, (0.6, 3.0)), (0.5, (0.8, 2.0))])
def test_less_strength_is_less_guidance(
    tiny: StyleTransferPipeline,
    photo: Image.Image,
    paintings: list,
    monkeypatch: pytest.MonkeyPatch,
    strength: float,
    expected: tuple[float, float],
) -> None:
    seen, paint = [], tiny.painter.paint
    monkeypatch.setattr(tiny.painter, "paint", lambda batch, *rest: seen.append(batch) or paint(batch, *rest))
    tiny(photo, paintings[0], strength=strength, **SAMPLED | {"content_scale": 0.6, "style_scale": 3.0})
    assert (seen[0].content_scales, seen[0].style_scales) == tuple([scale] for scale in expected)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_preview_is_what_is_predicted_by_then(tiny: StyleTransferPipeline, sampler: str) -> None:
    """With every sampler; the last one is the picture."""
    previews: list[list[Image.Image]] = []
    photos = [picture(40, 32, seed=1), picture(40, 32, seed=2)]
    painted = tiny(
        photos,
        picture(32, 32, seed=3),
        look="sampled",
        size=32,
        sampler=sampler,
        steps=3,
        watch=lambda progress: previews.append(progress.preview()),
    )
    assert [len(pictures) for pictures in previews] == [2, 2, 2]
    assert previews[-1] == painted and previews[0] != painted


# Large pictures


@pytest.fixture
def sizes(tiny: StyleTransferPipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """(height, width) in pixels of every latent that is decoded."""
    decoded, decode = [], tiny.painter.codec.decode
    monkeypatch.setattr(
        tiny.painter.codec,
        "decode",
        lambda z, size: decoded.append(tuple(16 * side for side in z.shape[2:])) or decode(z, size),
    )
    return decoded


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"size": 32}, [(32, 32)]),
        ({"size": 64}, [(32, 32), (64, 64)]),
        ({"size": 128}, [(32, 32), (64, 64), (128, 128)]),
        ({"size": 128, "refine": 1}, [(128, 128)]),
        ({"size": 128, "tile": 128}, [(128, 128)]),
        ({"size": (128, 32)}, [(32, 128)]),
    ],
)
def test_a_large_picture_is_painted_small_first(
    tiny: StyleTransferPipeline, paintings: list, sizes: list, options: dict, expected: list
) -> None:
    result = tiny(picture(64, 64), paintings[0], **{**SAMPLED, **options})
    assert sizes == expected and result.size == expected[-1][::-1]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"size": 64}, [(32, 32)]),
        ({"size": 200}, [(32, 32)]),
        ({"size": 32}, [(32, 32)]),
        ({"size": 128, "tile": 128}, [(128, 128)]),
    ],
)
def test_without_refining_a_large_picture_is_sampled_only_small(
    tiny: StyleTransferPipeline, paintings: list, sizes: list, options: dict, expected: list
) -> None:
    seen: list[float] = []
    options = {**SAMPLED, "refine": 0, **options}
    result = tiny(picture(64, 64), paintings[0], watch=lambda progress: seen.append(progress.done), **options)
    assert sizes == expected and result.size == (options["size"],) * 2
    assert seen == [0.5, 1.0]  # no steps are waited for that are not made


@pytest.mark.parametrize(
    "size, expected",
    [
        ((64, 128), [(24, 48), (39, 78), (64, 128)]),  # in one piece
        ((32, 57), [(27, 48), (32, 57)]),
        ((32, 48), [(32, 48)]),
        ((64, 400), [(16, 100), (32, 200), (64, 400)]),  # in tiles, but not too narrow for anything
        ((32, 400), [(16, 200), (32, 400)]),
        ((16, 200), [(16, 200)]),
    ],
)
def test_what_is_only_enlarged_begins_in_one_piece(
    tiny: StyleTransferPipeline, size: tuple[int, int], expected: list
) -> None:
    enlarged = Settings(look="sampled", refine=0)
    for turned in (1, -1):
        sizes = tiny.painter.sizes(size[::turned], enlarged)
        assert sizes == [each[::turned] for each in expected]
        assert tiny.painter.finished_sizes(size[::turned], enlarged) == sizes
    assert tiny.painter.sizes(size, enlarged.but(refine=1)) == [size]
    sampled_over = enlarged.but(refine=0.25)
    assert tiny.painter.finished_sizes(size, sampled_over) == [size]
    assert min(tiny.painter.sizes(size, sampled_over)[0]) == min(32, *size)


def test_what_is_enlarged_has_the_photos_detail(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list
) -> None:
    batch = batch_of(tiny, photo.resize((64, 96)), tiny.encode_style(paintings[0], 32))
    none, half, all_of_it = (
        tiny.painter._enlarged(small, batch, Settings(look="sampled", detail=detail))
        for small in [torch.full((1, 3, 48, 32), 0.25)]
        for detail in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(none, torch.full((1, 3, 96, 64), 0.25))
    torch.testing.assert_close(half, (none + all_of_it) / 2)
    lost = batch.content - F.interpolate(batch.resized((48, 32)).content, (96, 64), mode="bicubic")
    torch.testing.assert_close(all_of_it - none, lost)
    kept = replace(batch, keep=torch.ones(1, 1, 96, 64))
    of_kept = tiny.painter._enlarged(torch.zeros(1, 3, 48, 32), kept, Settings(look="sampled", detail=0.0))
    assert torch.equal(of_kept, batch.content)


@pytest.mark.parametrize("refine, expected", [(0, [32, 63, 125]), (0.25, [125])])
def test_what_is_laid_over_is_so_at_every_size_that_stays(
    tiny: StyleTransferPipeline, paintings: list, refine: float, expected: list
) -> None:
    """What is sampled over does not: there it would be lost."""
    laid: list[tuple[int, int]] = []

    def white(pictures: Tensor, batch: Batch) -> Tensor:
        assert pictures.shape[2:] == batch.size == batch.content.shape[2:]
        laid.append(batch.size[0])
        return torch.ones_like(pictures)

    batch = batch_of(tiny, picture(125, 125), tiny.encode_style(paintings[0], 32))
    settings = Settings(look="sampled", steps=1, refine=refine, detail=0.0)
    result = tiny.painter.paint(batch, settings, finish=white)
    assert laid == expected and result.eq(1).all()


def test_the_models_config_says_whether_large_pictures_are_refined(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list, sizes: list
) -> None:
    enlarging, large = StyleTransferPipeline(tiny_model(use_ema=False, refine=0)), {**SAMPLED, "size": 64}
    assert enlarging(photo, paintings[0], **large) == tiny(photo, paintings[0], refine=0, **large)
    assert type(enlarging.painter.value("refine", Settings(look="sampled"))) is float  # as the command line's
    assert enlarging(photo, paintings[0], refine=0.25, **large) == tiny(photo, paintings[0], **large)
    # without a photo there is no detail to enlarge with
    assert enlarging(None, paintings[0], **large) == tiny(None, paintings[0], **large)
    with pytest.raises(ConfigError, match="refine must be between 0 and 1"):
        tiny_model(refine=2)


def test_only_the_smallest_size_is_guided(
    tiny: StyleTransferPipeline, paintings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The larger ones have it from there; but scales below 1 hold for all of them."""
    scales, paint_at = [], Painter._paint_at

    def seen(self: Painter, batch: Batch, *others: Any) -> Tensor:
        scales.append((list(batch.content_scales), list(batch.style_scales)))
        return paint_at(self, batch, *others)

    monkeypatch.setattr(Painter, "_paint_at", seen)
    tiny(picture(64, 64), paintings[0], content_scale=0.5, style_scale=2.0, **{**SAMPLED, "size": 64})
    assert scales == [([0.5], [2.0]), ([0.5], [1.0])]
    tiny(picture(64, 64), paintings[0], style_scale=2.0, **{**SAMPLED, "size": 64, "refine": 1})
    assert scales[2:] == [([1.25], [2.0])]


def test_masks_and_kept_parts_go_with_every_size(tiny: StyleTransferPipeline, paintings: list) -> None:
    given = picture(96, 64, 5)
    regions = StyleRegions(paintings, [left_half(96, 64)])
    kept = tiny(given, regions, keep=left_half(96, 64), **{**SAMPLED, "size": 64})
    assert (
        np.array_equal(pixels(kept)[:, :48], pixels(given)[:, :48])
        and mean_difference(kept, given, slice(48, None)) > 20
    )


def test_a_batch_of_another_size_has_all_its_parts_at_that_size() -> None:
    torch.manual_seed(0)  # its halves are compared, which not all random ones stand
    left = torch.zeros(1, 1, 64, 96)
    left[..., :48] = 1
    batch = Batch(
        torch.rand(1, 2, 40),
        (64, 96),
        [0],
        [1.0],
        [1.0],
        content=torch.rand(1, 3, 64, 96),
        masks=torch.cat([left, 1 - left], dim=1),
        keep=left,
    )
    small = batch.resized((32, 48))
    assert small.size == (32, 48) and small.style is batch.style
    assert [tuple(part.shape) for part in (small.content, small.masks, small.keep)] == [
        (1, 3, 32, 48),
        (1, 2, 32, 48),
        (1, 1, 32, 48),
    ]
    assert (
        torch.allclose(small.masks.sum(dim=1), torch.ones(1, 32, 48))
        and small.keep[..., :22].eq(1).all()
        and small.keep[..., 26:].eq(0).all()
    )
    assert torch.allclose(small.content, F.avg_pool2d(batch.content, 2), atol=0.3)
    assert Batch(batch.style, (64, 96), [0], [1.0], [1.0]).resized((32, 48)).content is None


# Batches


def test_every_picture_may_have_scales_of_its_own(tiny: StyleTransferPipeline, paintings: list) -> None:
    contents, seeds = [picture(48, 32, seed) for seed in (5, 6, 7)], [1, 2, 3]
    content_scales, style_scales = [1.0, 2.0, 0.5], [3.0, 1.0, 0.0]
    together = tiny(
        contents, paintings[0], seed=seeds, content_scale=content_scales, style_scale=style_scales, **SAMPLED
    )
    for i in range(3):
        alone = tiny(
            contents[i],
            paintings[0],
            seed=seeds[i],
            content_scale=content_scales[i],
            style_scale=style_scales[i],
            **SAMPLED,
        )
        assert largest_difference(together[i], alone) <= 1
    assert largest_difference(together[1], tiny(contents[1], paintings[0], seed=2, **SAMPLED)) > 1


def test_a_style_that_is_not_wanted_takes_the_null_styles_place(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"style_scale": 2.0, **SAMPLED}
    away = tiny(photo, paintings[0], not_style=paintings[1], **given)
    statistics = tiny.encode_style(paintings[1], tiny.painter.native_size)
    monkeypatch.setattr(tiny.model, "null_style", lambda n: statistics.expand(n, -1))
    assert largest_difference(tiny(photo, paintings[0], **given), away) <= 1
    monkeypatch.undo()
    assert largest_difference(tiny(photo, paintings[0], **given), away) > 1


@pytest.mark.parametrize("scale", [1.0, 0.5, [2.0, 1.0]])
def test_where_style_guidance_leads_nowhere_there_is_nothing_to_lead_away_from(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list, scale: Any
) -> None:
    with pytest.raises(UserError, match="style_scale is above 1, and it is .*; give a larger one"):
        tiny([photo, photo], paintings[0], not_style=paintings[1], style_scale=scale, **SAMPLED)


def test_a_style_picture_is_looked_at_once(
    tiny: StyleTransferPipeline, paintings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, statistics = [], tiny.model.get_style_statistics
    monkeypatch.setattr(
        tiny.model, "get_style_statistics", lambda x, *shares: counts.append(len(x)) or statistics(x, *shares)
    )
    tiny([picture(48, 32, seed) for seed in range(3)], paintings[0], batch_size=1, **SAMPLED)
    assert counts == [1]


def test_the_starting_noise_depends_on_the_seed_alone(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded(sample):
        return lambda denoise, x, *rest: starts.append(x.clone()) or sample(denoise, x, *rest)

    starts = []
    for name, sample in SOLVERS.items():
        monkeypatch.setitem(SOLVERS, name, recorded(sample))
    for options in (
        {},
        {"style_scale": 3.0},
        {"content_scale": 0.5},
        {"sampler": "ddim"},
        {"sampler": "ancestral"},
        {"steps": 1},
    ):
        tiny(photo, paintings[0], **{**SAMPLED, **options})
    tiny(picture(48, 32, 9), paintings[1], **SAMPLED)
    tiny(None, paintings[1], **{**SAMPLED, "size": (48, 32)})
    assert len(starts) == 8 and all(torch.equal(x, starts[0]) for x in starts)
    tiny(photo, paintings[0], seed=1, **SAMPLED)
    assert not torch.equal(starts[-1], starts[0])


def test_centred_noise_has_mean_0_and_keeps_the_rest() -> None:
    noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) + 1
    moved = noise - centred(noise)
    assert (
        centred(noise).mean(dim=(2, 3)).abs().max() < 1e-6
        and (moved - moved[:, :, :1, :1]).abs().max() < 1e-6
    )


# Number formats


def overflow(monkeypatch: pytest.MonkeyPatch, formats: set[str]) -> list[str]:
    """Make painting in these number formats give numbers that are none. Returns the formats tried, as they are."""

    def paint(self: Painter, *arguments: Any) -> torch.Tensor:
        tried.append(self.precision)
        painted = original(self, *arguments)
        return painted.index_fill(3, torch.tensor([3]), torch.inf) if self.precision in formats else painted

    tried, original = [], Painter._paint
    monkeypatch.setattr(Painter, "_paint", paint)
    return tried


def test_what_overflows_in_bf16_is_painted_again_in_float32(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list, monkeypatch, caplog
) -> None:
    rough = StyleTransferPipeline(tiny.model, "bf16")
    tried = overflow(monkeypatch, {"bf16"})
    with caplog.at_level(logging.WARNING):
        painted = rough(photo, paintings[0], **SAMPLED)
    assert (
        tried == ["bf16", "fp32"]
        and "overflowed in bf16; painting these pictures again in fp32" in caplog.text
    )
    # the style's statistics are still bf16's
    assert mean_difference(painted, tiny(photo, paintings[0], **SAMPLED)) < 2


def test_what_does_not_overflow_is_painted_once(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list, monkeypatch, caplog
) -> None:
    rough = StyleTransferPipeline(tiny.model, "bf16")
    tried = overflow(monkeypatch, set())
    rough(photo, paintings[0], **SAMPLED)
    assert tried == ["bf16"] and not caplog.records


def test_what_overflows_in_float32_too_is_an_error(
    tiny: StyleTransferPipeline, photo: Image.Image, paintings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    rough = StyleTransferPipeline(tiny.model, "bf16")
    tried = overflow(monkeypatch, {"bf16", "fp32"})
    with pytest.raises(
        UserError, match="the numbers overflowed, so there is no picture; choose smaller scales"
    ):
        rough(photo, paintings[0], **SAMPLED)
    assert tried == ["bf16", "fp32"]


def test_each_network_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch, photo: Image.Image, paintings: list
) -> None:
    def compile(function, **options):
        compiled.append((function.__self__, options.get("mode")))
        return lambda *args, **kwargs: ran.append(function.__self__) or function(*args, **kwargs)

    compiled, ran = [], []
    plain = StyleTransferPipeline(tiny_model(use_ema=False))
    monkeypatch.setattr("torch.compile", compile)
    pipeline = StyleTransferPipeline(tiny_model(use_ema=False), compile=True)
    network, decoder = pipeline.model.model.diffusion_model, pipeline.model.first_stage_model.decoder
    result = pipeline(photo, paintings[0], **SAMPLED)
    assert compiled == [(network, None), (decoder, None)]
    assert ran.count(network) >= SAMPLED["steps"] and ran.count(decoder) == 1
    assert result == plain(photo, paintings[0], **SAMPLED)


def test_nothing_is_compiled_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr("torch.compile", lambda *args, **options: compiled.append(args))
    StyleTransferPipeline(tiny_model(use_ema=False))
    assert compiled == []


# What it costs


def test_painting_imports_nothing_of_training() -> None:
    heavy = (
        "pytorch_lightning",
        "lightning",
        "torchvision",
        "matplotlib",
        "tensorboard",
        "torchmetrics",
        "diffusers",
        "fsspec",
    )
    code = f"import sys, ldm.pipeline.pipeline; ldm.pipeline.pipeline.build_model('configs/mini.yaml'); print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr
