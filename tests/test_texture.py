"""Texture: a painting's finest strokes laid where what was sampled is plain."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import largest_difference, left_half, picture, pixels, tiny_model
from torch import Tensor

from ldm.errors import ConfigError
from ldm.media.tensors import image_to_tensor
from ldm.pipeline import texture
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings
from ldm.pipeline.texture import Swatch, Texturer, collage, finest, matched

FACTOR = 16  # of the tiny model
PHOTO, ROUGH = picture(96, 64, 0), picture(96, 64, 1)
PLAIN = Image.new("RGB", (96, 64), (90, 120, 150))
FAST = {"look": "fast", "size": 64, "steps": 2}


def tensor(image: Image.Image) -> Tensor:
    return image_to_tensor(image)[None]


@pytest.fixture
def texturer(tiny: StyleTransferPipeline) -> Texturer:
    return Texturer(tiny.painter.codec, "fp32", 64)


def swatch_of(height: int, width: int, seed: int = 0, channels: int = 2) -> Swatch:
    """One of a made-up latent, whose band tells the places apart."""
    random = torch.Generator().manual_seed(seed)
    count, side = height * width, FACTOR + 2 * texture.OVERLAP
    return Swatch(
        torch.randn(count, 9 * channels, generator=random),
        torch.ones(count, dtype=torch.bool),
        width,
        torch.arange(count, dtype=torch.float32).expand(3 * side**2, -1),
        1.0,
    )


# Which places


def test_what_is_the_painting_is_matched_with_itself() -> None:
    swatch = swatch_of(5, 7)
    assert matched(swatch.patches, swatch, (5, 7)).tolist() == list(range(35))
    some = [9, 10, 16, 17]  # a part of it, somewhere else
    assert matched(swatch.patches[some], swatch, (2, 2)).tolist() == some


@pytest.mark.parametrize("at_once", [1, 100, 2**24])
def test_strokes_hang_together(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Nearly the painting, but so unclear that single places are mistaken."""
    monkeypatch.setattr(texture, "AT_ONCE", at_once)
    swatch = swatch_of(20, 20)
    unclear = 0.3 * swatch.patches + torch.randn(400, 18, generator=torch.Generator().manual_seed(5))

    def right(matches: Tensor) -> float:
        return float((matches == torch.arange(400)).float().mean())

    def going_on(matches: Tensor) -> float:
        rows = matches.reshape(20, 20)
        return float((rows[:, 1:] == rows[:, :-1] + 1).float().mean())

    together = matched(unclear, swatch, (20, 20))
    monkeypatch.setattr(texture, "COHERENCE", 0.0)
    alone = matched(unclear, swatch, (20, 20))
    assert going_on(together) > 1.5 * going_on(alone) and right(together) > right(alone) > 0
    distances = [
        float((unclear - swatch.patches[each]).square().sum(dim=1).mean()) for each in (together, alone)
    ]
    assert distances[1] <= distances[0] < 1.3 * distances[1]


def test_what_does_not_count_is_never_taken() -> None:
    swatch = swatch_of(6, 6)
    usable = torch.zeros(36, dtype=torch.bool)
    usable[[0, 7, 8, 21]] = True
    matches = matched(swatch.patches, replace(swatch, usable=usable), (6, 6))
    assert set(matches.tolist()) == {0, 7, 8, 21}


def test_the_edge_of_a_painting_is_its_end() -> None:
    """What comes after the last place of a row is not the first one of the next."""
    swatch = swatch_of(4, 4)
    last = torch.cat([swatch.patches[3:4], swatch.patches[4:5] + 0.01, swatch.patches[5:6]])
    assert matched(last, swatch, (1, 3)).tolist() == [3, 4, 5]
    offered, valid = texture._offers(torch.tensor([[3, 4, 5]]), swatch)
    assert not valid[0, 1] and valid[0, 2] and offered[0, 2] == 5  # from the left
    assert valid[1].tolist() == [False, True, False]  # from the right: 4 - 1 is 3, 5 - 1 is 4; none beyond
    assert not valid[2].any() and not valid[3].any()  # there is one row


def test_pieces_lie_where_they_belong_and_fade_into_each_other() -> None:
    laid = collage(torch.tensor([3, 3, 1, 2]), swatch_of(2, 2), (2, 2), FACTOR)
    assert laid.shape == (1, 3, 2 * FACTOR, 2 * FACTOR)
    assert laid[0, :, : FACTOR - texture.OVERLAP].eq(3).all()
    below = laid[0, 0, -1]
    assert below[0] == 1 and below[-1] == 2 and (below.diff() >= -1e-6).all()
    assert 0 < (below.diff() > 1e-6).sum() <= 2 * texture.OVERLAP + 1


# What becomes of a picture


def test_plain_places_take_strokes_and_the_photos_lines_stay() -> None:
    strokes = finest(tensor(ROUGH))
    strength = float(strokes.square().mean().sqrt())
    lines = tensor(PLAIN)
    lines[..., 48:] = torch.where(torch.arange(48) % 8 < 4, 1.0, -1.0)
    left = (..., slice(0, 32))
    both = texture._joined(lines, lines, strokes, strength)
    plain = (lines + strokes)[left]
    assert (both[left] - plain).abs().mean() < 0.1 * strokes[left].abs().mean()
    right = (..., slice(64, 96))
    signs = torch.sign(finest(lines)[right])
    assert (torch.sign(finest(both)[right]) == signs).float().mean() > 0.9


@pytest.mark.parametrize("painting", [Image.new("RGB", (64, 64), "white"), Image.new("RGB", (1, 1), "red")])
def test_a_painting_without_strokes_only_softens(texturer: Texturer, painting: Image.Image) -> None:
    photo = tensor(PHOTO)
    result = texturer.lay(photo, photo, [(painting, 1.0)], 1.0)
    torch.testing.assert_close(result, photo - 0.5 * finest(photo), atol=1e-3, rtol=0)


def test_transparent_parts_of_a_painting_give_nothing(texturer: Texturer) -> None:
    half = ROUGH.convert("RGBA")
    half.paste((255, 0, 0, 0), (48, 0, 96, 64))
    whole = half.copy()
    whole.putalpha(0)
    swatch = texturer._swatch(half)
    assert swatch is not None
    columns = swatch.usable.reshape(-1, swatch.width)
    assert columns[:, :3].all() and not columns[:, 3:].any()
    photo = tensor(PHOTO)
    assert texturer._swatch(whole) is None
    assert texturer.lay(photo, photo, [(whole, 1.0)], 1.0) is photo
    with_it, without = (
        texturer.lay(photo, photo, mix, 1.0) for mix in ([(half, 0.5), (whole, 0.5)], [(half, 0.5)])
    )
    assert torch.equal(with_it, without) and not torch.equal(without, photo)


def test_what_a_latent_has_beyond_the_painting_is_none_of_it(texturer: Texturer) -> None:
    swatch = texturer._swatch(picture(100, 72, 2))  # 89 x 64 pixels when it is looked at
    assert swatch is not None and swatch.width > 5
    columns = swatch.usable.reshape(-1, swatch.width)
    assert columns[:, :5].all() and not columns[:, 5:].any()


def test_large_pictures_are_matched_in_tiles(texturer: Texturer, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = tensor(picture(160, 160, 3))
    whole = texturer.lay(photo, photo, [(ROUGH, 1.0)], 1.0)
    monkeypatch.setattr(texture, "TILE", 4)
    tiled = texturer.lay(photo, photo, [(ROUGH, 1.0)], 1.0)
    assert not torch.equal(tiled, whole)
    strengths = [float((each - photo).square().mean()) for each in (tiled, whole)]
    assert 0.5 < strengths[0] / strengths[1] < 1.5


# In the pipeline


def test_the_share_is_that_of_the_way(tiny: StyleTransferPipeline) -> None:
    none, half, whole = (
        pixels(tiny(PHOTO, ROUGH, texture=share, **FAST)).astype(int) for share in (0.0, 0.5, 1.0)
    )
    clipped = np.isin([none, whole], (0, 255)).any(axis=(0, 3))
    assert abs(half - (none + whole) / 2)[~clipped].max() <= 1 < abs(whole - none).max()
    assert (pixels(tiny(PHOTO, ROUGH, **FAST)) == none).all()  # the published way


def test_the_models_config_says_how_far(tiny: StyleTransferPipeline) -> None:
    half = StyleTransferPipeline(tiny_model(use_ema=False, texture=0.5))
    assert half(PHOTO, ROUGH, **FAST) == tiny(PHOTO, ROUGH, texture=0.5, **FAST)
    assert half(PHOTO, ROUGH, texture=0.0, **FAST) == tiny(PHOTO, ROUGH, **FAST)
    assert half(None, ROUGH, **FAST) == tiny(None, ROUGH, **FAST)  # by itself it has its own
    with pytest.raises(ConfigError, match="texture must be between 0 and 1"):
        tiny_model(texture=1.5)


def test_the_fine_look_paints_its_own_strokes(tiny: StyleTransferPipeline) -> None:
    fine = {"size": 64, "steps": 2, "effort": 0.1}
    assert tiny(PHOTO, ROUGH, texture=1.0, **fine) == tiny(PHOTO, ROUGH, **fine)
    assert Settings(look="fine").left_to_model == ("detail", "recolor")
    assert Settings(look="fast").left_to_model == ("detail", "recolor", "texture")


@pytest.mark.parametrize(
    "less, share",
    [
        ({"style_scale": -1.0}, 0.0),
        ({"style_scale": 0.0}, 0.0),
        ({"style_scale": 0.5}, 0.5),
        ({"style_scale": 3.0}, 1.0),
        ({"strength": 0.5}, 0.5),
        ({"strength": 0.5, "style_scale": 0.5}, 0.25),
    ],
)
def test_less_of_the_style_is_less_of_its_strokes(
    tiny: StyleTransferPipeline, monkeypatch: pytest.MonkeyPatch, less: dict, share: float
) -> None:
    laid = []
    lay = Texturer.lay

    def seen(self: Texturer, *given: Any) -> Tensor:
        laid.append(given[-1])
        return lay(self, *given)

    monkeypatch.setattr(Texturer, "lay", seen)
    none, half, whole = (tiny(PHOTO, ROUGH, texture=t, **less, **FAST) for t in (0.0, 0.5, 1.0))
    assert laid == [0.5 * share, share]
    assert (none == whole) == (none == half) == (share == 0)


def test_what_is_kept_of_the_photo_gets_none(tiny: StyleTransferPipeline) -> None:
    keep = left_half(*PHOTO.size)
    kept = {"keep": keep, **FAST}
    with_it, without = (tiny(PHOTO, ROUGH, texture=share, **kept) for share in (1.0, 0.0))
    left, right = (0, 0, 48, 64), (48, 0, 96, 64)
    assert with_it.crop(left) == without.crop(left) == PHOTO.crop(left)
    assert with_it.crop(right) != without.crop(right)


def test_each_region_has_the_strokes_of_its_own_painting(tiny: StyleTransferPipeline) -> None:
    mask = left_half(*PHOTO.size)
    flat = Image.new("RGB", ROUGH.size, "white")
    both, without = (
        tiny(PHOTO, StyleRegions([ROUGH, flat], [mask]), texture=share, **FAST) for share in (1.0, 0.0)
    )
    change = abs(pixels(both).astype(int) - pixels(without)).mean(axis=(0, 2))
    turned, as_it_was = (
        tiny(PHOTO, StyleRegions([flat, ROUGH], [mask]), texture=share, **FAST) for share in (1.0, 0.0)
    )
    turned_change = abs(pixels(turned).astype(int) - pixels(as_it_was)).mean(axis=(0, 2))
    assert change[:48].mean() > turned_change[:48].mean() and change[48:].mean() < turned_change[48:].mean()


def test_of_several_paintings_each_place_takes_the_nearest() -> None:
    near, far = torch.full((1, 1, 32, 32), 1.0), torch.full((1, 1, 32, 32), 1.0)
    near[..., 16:], far[..., :16] = 3.0, 3.0  # the first on the left, the second on the right
    distances = torch.cat([near, far])
    shares = texture.chosen(distances, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(1, 32, 32))
    assert (shares[0, 0, :, :8] > 0.99).all() and (shares[1, 0, :, -8:] > 0.99).all()
    lopsided = texture.chosen(distances, torch.tensor([1e-12, 1.0]))
    assert (lopsided[1] > 0.99).all()  # so little of the first that it is nowhere near enough
    steps = [
        float(texture.chosen(distances, torch.tensor([w, 1 - w]))[0].mean()) for w in (0.1, 0.4, 0.6, 0.9)
    ]
    assert steps == sorted(steps) and steps[0] < steps[-1]


def test_a_mix_has_the_strokes_of_its_paintings_by_their_weights(tiny: StyleTransferPipeline) -> None:
    one = tiny(PHOTO, ROUGH, texture=1.0, **FAST)
    mixed = tiny(PHOTO, StyleMix([ROUGH, picture(96, 64, 5)], [1.0, 0.0]), texture=1.0, **FAST)
    assert largest_difference(mixed, one) <= 1
    even = tiny(PHOTO, StyleMix([ROUGH, picture(96, 64, 5)]), texture=1.0, **FAST)
    assert largest_difference(even, one) > 1


def test_company_makes_no_difference(tiny: StyleTransferPipeline) -> None:
    styles = [ROUGH, picture(80, 64, 5), ROUGH]
    together = tiny(PHOTO, styles, texture=1.0, **FAST)
    for each, style in zip(together, styles, strict=True):
        assert largest_difference(each, tiny(PHOTO, style, texture=1.0, **FAST)) <= 1
