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
from ldm.pipeline.texture import (
    Swatch,
    Texturer,
    chosen,
    collage,
    finest,
    joined,
    matched,
    most_sharpened,
    patches_of,
)

FACTOR = 16  # of the tiny model
PHOTO, ROUGH = picture(96, 64, 0), picture(96, 64, 1)
PLAIN = Image.new("RGB", (96, 64), (90, 120, 150))
SAMPLED = {"look": "sampled", "size": 64, "steps": 2}


def tensor(image: Image.Image) -> Tensor:
    return image_to_tensor(image)[None]


@pytest.fixture
def texturer(tiny: StyleTransferPipeline) -> Texturer:
    return Texturer(tiny.painter.codec, "fp32", 64)


def swatch_of(height: int, width: int) -> Swatch:
    """One of a made-up latent, whose band tells the places apart."""
    count, side = height * width, FACTOR + 2 * texture.OVERLAP
    return Swatch(
        torch.randn(count, 18, generator=torch.Generator().manual_seed(0)),
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
def test_unclear_places_follow_their_neighbours(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(texture, "AT_ONCE", at_once)
    swatch = swatch_of(20, 20)
    unclear = 0.3 * swatch.patches + torch.randn(400, 18, generator=torch.Generator().manual_seed(5))

    def right(matches: Tensor) -> float:
        return float((matches == torch.arange(400)).float().mean())

    together = matched(unclear, swatch, (20, 20))
    monkeypatch.setattr(texture, "COHERENCE", 0.0)
    alone = matched(unclear, swatch, (20, 20))
    assert right(together) > 3 * right(alone) > 0
    distances = [
        float((unclear - swatch.patches[each]).square().sum(dim=1).mean()) for each in (together, alone)
    ]
    assert distances[1] < distances[0] < 1.8 * distances[1]


def test_strokes_hang_together_over_more_than_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A photo of one colour, to which many places are alike: the same two again and again would be a
    weave."""
    swatch = swatch_of(20, 20)
    plain = 0.05 * torch.randn(144, 18, generator=torch.Generator().manual_seed(3))
    alike = replace(swatch, patches=1 + 0.1 * swatch.patches)

    def shares(matches: Tensor) -> tuple[float, float]:
        rows = matches.reshape(12, 12)
        on = rows[:, 1:] == rows[:, :-1] + 1
        again = rows[:, 2:] == rows[:, :-2]
        return float((on[:, 1:] & on[:, :-1]).float().mean()), float(again.float().mean())

    three, again = shares(matched(plain, alike, (12, 12)))
    monkeypatch.setattr(texture, "COHERENCE", 0.0)
    three_alone, again_alone = shares(matched(plain, alike, (12, 12)))
    assert three > 0.7 > 0.1 > three_alone and again < 0.01 < again_alone


def test_what_is_used_already_is_used_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a photo of one colour, or else the same stroke comes again and again."""
    swatch = swatch_of(12, 12)
    plain = 0.05 * torch.randn(144, 18, generator=torch.Generator().manual_seed(3))

    def most() -> int:
        return int(matched(plain, swatch, (12, 12)).bincount().max())

    once = most()
    monkeypatch.setattr(texture, "REUSE", 0.0)
    assert once < 0.5 * most()


@pytest.mark.parametrize("step, size", [(1, (1, 3)), (4, (3, 1))])
def test_a_place_follows_those_that_come_after_it_as_well(step: int, size: tuple[int, int]) -> None:
    swatch = swatch_of(4, 4)
    unclear = 0.52 * swatch.patches[11] + 0.48 * swatch.patches[4]
    after = [swatch.patches[4 + step], swatch.patches[4 + 2 * step]]
    assert matched(torch.stack([unclear, *after]), swatch, size).tolist() == [4, 4 + step, 4 + 2 * step]
    assert matched(torch.stack([unclear]), swatch, (1, 1)).tolist() == [11]


def test_what_does_not_count_is_never_taken() -> None:
    swatch = swatch_of(6, 6)
    usable = torch.zeros(36, dtype=torch.bool)
    usable[[0, 7, 8, 21]] = True
    matches = matched(swatch.patches, replace(swatch, usable=usable), (6, 6))
    assert set(matches.tolist()) == {0, 7, 8, 21}


def test_the_edge_of_a_painting_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the last place of a row is not the first one of the next."""
    monkeypatch.setattr(texture, "COHERENCE", 1e9)  # all that can go on does
    swatch = swatch_of(4, 4)
    for start, size, expected in ((2, (1, 4), [2, 3]), (8, (4, 1), [8, 12])):
        beginning = torch.cat([swatch.patches[start : start + 1], swatch.patches[:1].expand(3, -1)]) + 0.01
        matches = matched(beginning, swatch, size).tolist()
        assert matches[:2] == expected and matches[2] != expected[1] + (1 if size[0] == 1 else 4)
        assert all(0 <= place < 16 for place in matches)


def test_light_is_matched_with_light_whatever_the_range() -> None:
    """A pale photo and a contrasty painting of the same forms are the same."""
    latent = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones(6, 8)
    pale = patches_of(0.2 * latent + 3, everywhere)
    torch.testing.assert_close(pale, patches_of(latent, everywhere), atol=2e-3, rtol=2e-3)
    with_fill = torch.cat([latent, torch.full((1, 3, 6, 2), 50.0)], dim=3)
    usable = torch.ones(6, 10)
    usable[:, 8:] = 0
    inside = patches_of(with_fill, usable).reshape(6, 10, -1)[:, :7]
    torch.testing.assert_close(inside, patches_of(latent, everywhere).reshape(6, 8, -1)[:, :7])


def test_pieces_lie_where_they_belong_and_fade_into_each_other() -> None:
    laid = collage(torch.tensor([3, 3, 1, 2]), swatch_of(2, 2), (2, 2), FACTOR)
    assert laid.shape == (1, 3, 2 * FACTOR, 2 * FACTOR)
    assert laid[0, :, : FACTOR - texture.OVERLAP].eq(3).all()
    below = laid[0, 0, -1]
    assert below[0] == 1 and below[-1] == 2 and (below.diff() >= -1e-6).all()
    assert 0 < (below.diff() > 1e-6).sum() <= 2 * texture.OVERLAP + 1


def test_of_several_paintings_each_place_takes_the_nearest() -> None:
    near, far = torch.full((16, 16), 1.0), torch.full((16, 16), 1.0)
    near[:, 8:], far[:, :8] = 3.0, 3.0  # the first on the left, the second on the right
    distances = torch.stack([near, far])
    even = torch.tensor([0.5, 0.5])
    shares = chosen(distances, even)
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(16, 16))
    assert (shares[0, :, :6] > 0.99).all() and (shares[1, :, -6:] > 0.99).all()
    lopsided = chosen(distances, torch.tensor([1e-12, 1.0]))
    assert (lopsided[1] > 0.99).all()  # so little of the first that it is nowhere near enough
    steps = [float(chosen(distances, torch.tensor([w, 1 - w]))[0].mean()) for w in (0.1, 0.4, 0.6, 0.9)]
    assert steps == sorted(steps) and steps[0] < steps[-1]
    alone = distances.clone()
    alone[1, 4, 4] = 0.9  # a single place does not change its painting
    assert chosen(alone, even)[0, 4, 4] > 0.5
    assert chosen(torch.zeros(2, 4, 4), even).isfinite().all()
    assert torch.equal(chosen(near[None], torch.tensor([0.3])), torch.ones(1, 16, 16))


# What becomes of a picture


def test_plain_places_take_strokes_and_the_photos_lines_stay() -> None:
    strokes = finest(tensor(ROUGH))
    strength = float(strokes.square().mean().sqrt())
    lines = tensor(PLAIN)
    lines[..., 48:] = torch.where(torch.arange(48) % 8 < 4, 1.0, -1.0)
    both = joined(lines, lines, strokes, strength, 1.0)
    left, right = (..., slice(0, 32)), (..., slice(64, 96))
    assert (both[left] - (lines + strokes)[left]).abs().mean() < 0.1 * strokes[left].abs().mean()
    sharper = texture.SHARPER[0]  # these lines are far stronger than the painting's
    plain = (lines - finest(lines) + sharper * finest(lines))[right]
    assert (both[right] - plain).square().mean().sqrt() < 0.5 * strokes[right].square().mean().sqrt()


def test_what_the_network_made_up_where_the_photo_is_plain_goes() -> None:
    strokes, weave = finest(tensor(ROUGH)), finest(tensor(picture(96, 64, 7)))
    photo = tensor(PLAIN)
    both = joined(photo + weave, photo, strokes, float(strokes.square().mean().sqrt()), 1.0)
    left = finest(both) - finest(strokes)
    rough = strokes.square().mean(dim=1, keepdim=True) > 0.01
    rough = rough.expand_as(left)
    assert rough.float().mean() > 0.05
    assert left[rough].abs().mean() < 0.5 * weave[rough].abs().mean()


def test_large_pictures_are_sharpened_less() -> None:
    """They were so when they were small."""
    lines, strong = 0.1 * tensor(PHOTO), float(finest(tensor(PHOTO)).square().mean().sqrt())
    side = min(lines.shape[2:])
    times = [most_sharpened(lines, of) for of in (2 * side, side, side // 2, side // 4, side // 16)]
    assert times == pytest.approx([2.0, 2.0, 2**0.5, 1.0, 1.0])
    none = torch.zeros_like(lines)
    softer, sharper = (joined(lines, lines, none, strong, most) for most in (1.0, 2.0))
    torch.testing.assert_close(softer, lines)
    torch.testing.assert_close(sharper, lines + finest(lines))


@pytest.mark.parametrize("painting", [Image.new("RGB", (64, 64), "white"), Image.new("RGB", (1, 1), "red")])
def test_a_painting_without_strokes_only_softens(texturer: Texturer, painting: Image.Image) -> None:
    photo = tensor(PHOTO)
    result = texturer.lay(photo, photo, [[(painting, 1.0)]], None, 1.0)
    torch.testing.assert_close(result, photo - (1 - texture.SHARPER[0]) * finest(photo), atol=1e-3, rtol=0)


def test_an_outline_is_no_stroke(texturer: Texturer) -> None:
    """A few lines far stronger than the rest would be scratches in a face."""
    outlined = PLAIN.copy()
    outlined.paste((0, 0, 0), (40, 0, 43, 64))
    swatch = texturer._swatch(outlined)
    assert swatch is not None
    most = swatch.band.abs().max()
    assert (
        most == pytest.approx(texture.LONGEST * swatch.strength)
        and finest(tensor(outlined)).abs().max() > 2 * most
    )


# Paintings


def test_transparent_parts_of_a_painting_give_nothing(texturer: Texturer) -> None:
    half = ROUGH.convert("RGBA")
    half.paste((255, 0, 0, 0), (48, 0, 96, 64))
    whole = half.copy()
    whole.putalpha(0)
    swatch, opaque = texturer._swatch(half), texturer._swatch(ROUGH)
    assert swatch is not None and opaque is not None
    columns = swatch.usable.reshape(-1, swatch.width)
    assert columns[:, :2].all() and not columns[:, 2:].any()  # a third is there, but next to the edge
    cut = swatch.band[:, swatch.usable], opaque.band[:, swatch.usable]
    longest = texture.LONGEST * min(swatch.strength, opaque.strength)
    torch.testing.assert_close(*(band.clamp(-longest, longest) for band in cut))
    there = float(finest(tensor(ROUGH))[..., :32].square().mean().sqrt())
    assert swatch.strength == pytest.approx(there, rel=0.1)
    photo = tensor(PHOTO)
    assert texturer._swatch(whole) is None
    assert texturer.lay(photo, photo, [[(whole, 1.0)]], None, 1.0) is photo
    with_it, without = (
        texturer.lay(photo, photo, [mix], None, 1.0) for mix in ([(half, 0.5), (whole, 0.5)], [(half, 0.5)])
    )
    assert torch.equal(with_it, without) and not torch.equal(without, photo)


@pytest.mark.parametrize("alpha", [128, 254])
def test_a_painting_that_is_transparent_all_over_counts_as_any(texturer: Texturer, alpha: int) -> None:
    thin = ROUGH.convert("RGBA")
    thin.putalpha(alpha)
    swatch = texturer._swatch(thin)
    assert swatch is not None and swatch.usable.all()


def test_what_is_nearly_transparent_is_none_of_a_painting(texturer: Texturer) -> None:
    faded = ROUGH.convert("RGBA")
    faded.putalpha(Image.fromarray(np.repeat([[255] * 48 + [60] * 48], 64, axis=0).astype(np.uint8)))
    swatch = texturer._swatch(faded)
    assert swatch is not None and not swatch.usable.reshape(-1, swatch.width)[:, 3:].any()


def test_what_a_latent_has_beyond_the_painting_is_none_of_it(texturer: Texturer) -> None:
    swatch = texturer._swatch(picture(100, 72, 2))  # 89 x 64 pixels when it is looked at
    assert swatch is not None and swatch.width > 5
    columns = swatch.usable.reshape(-1, swatch.width)
    assert columns[:, :5].all() and not columns[:, 5:].any()


# In the pipeline


def test_the_share_is_that_of_the_way(tiny: StyleTransferPipeline) -> None:
    none, half, whole = (
        pixels(tiny(PHOTO, ROUGH, texture=share, **SAMPLED)).astype(int) for share in (0.0, 0.5, 1.0)
    )
    clipped = np.isin([none, whole], (0, 255)).any(axis=(0, 3))
    assert abs(half - (none + whole) / 2)[~clipped].max() <= 1 < abs(whole - none).max()
    assert (pixels(tiny(PHOTO, ROUGH, **SAMPLED)) == none).all()  # the published way


def test_the_models_config_says_how_far(tiny: StyleTransferPipeline) -> None:
    half = StyleTransferPipeline(tiny_model(use_ema=False, texture=0.5))
    assert half(PHOTO, ROUGH, **SAMPLED) == tiny(PHOTO, ROUGH, texture=0.5, **SAMPLED)
    assert half(PHOTO, ROUGH, texture=0.0, **SAMPLED) == tiny(PHOTO, ROUGH, **SAMPLED)
    assert half(None, ROUGH, **SAMPLED) == tiny(None, ROUGH, **SAMPLED)  # by itself it has its own
    with pytest.raises(ConfigError, match="texture must be between 0 and 1"):
        tiny_model(texture=1.5)


def test_the_fine_look_paints_its_own_strokes(tiny: StyleTransferPipeline) -> None:
    fine = {"size": 64, "steps": 2, "effort": 0.1}
    assert tiny(PHOTO, ROUGH, texture=1.0, **fine) == tiny(PHOTO, ROUGH, **fine)
    for look, said in (("fine", False), ("sampled", True)):
        settings = Settings(look=look)
        assert ("texture" in settings.left_to_model) == ("texture" in settings.values()) == said


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
        laid.append(given[4])
        return lay(self, *given)

    monkeypatch.setattr(Texturer, "lay", seen)
    none, half, whole = (tiny(PHOTO, ROUGH, texture=t, **less, **SAMPLED) for t in (0.0, 0.5, 1.0))
    assert laid == [0.5 * share, share]
    assert (none == whole) == (none == half) == (share == 0)


@pytest.mark.parametrize("refine, expected", [(0, [(32, 4.0), (64, 2.0), (128, 1.0)]), (0.25, [(128, 1.0)])])
def test_each_size_that_is_enlarged_gets_some_and_counts_as_work(
    tiny: StyleTransferPipeline, monkeypatch: pytest.MonkeyPatch, refine: float, expected: list
) -> None:
    laid: list[tuple[int, float]] = []
    seen: list[tuple[float, tuple[int, int]]] = []
    lay = Texturer.lay

    def kept(self: Texturer, picture: Tensor, *given: Any) -> Tensor:
        laid.append((picture.shape[2], given[-1]))
        return lay(self, picture, *given)

    monkeypatch.setattr(Texturer, "lay", kept)
    options = {**SAMPLED, "size": 128, "refine": refine, "texture": 1.0}
    result = tiny(
        picture(128, 128), ROUGH, watch=lambda p: seen.append((p.done, p.preview()[0].size)), **options
    )
    assert laid == expected
    done = [each for each, _ in seen]
    assert done == sorted(set(done)) and done[-1] == 1.0 > done[-2]
    assert seen[-1][1] == result.size == (128, 128)


def test_strokes_that_will_be_large_spare_the_photos_lines(texturer: Texturer) -> None:
    photo, blank = tensor(PHOTO), torch.zeros(1, 3, 64, 96)
    nearer = [
        float((texturer.lay(blank, photo, [[(ROUGH, 1.0)]], None, 1.0, enlarged) - blank).square().mean())
        for enlarged in (1.0, 2.0, 8.0)
    ]
    assert nearer[0] > 1.2 * nearer[1] > 1.4 * nearer[2] > 0


def test_what_is_kept_of_the_photo_gets_none(tiny: StyleTransferPipeline) -> None:
    keep = left_half(*PHOTO.size)
    kept = {"keep": keep, **SAMPLED}
    with_it, without = (tiny(PHOTO, ROUGH, texture=share, **kept) for share in (1.0, 0.0))
    left, right = (0, 0, 48, 64), (48, 0, 96, 64)
    assert with_it.crop(left) == without.crop(left) == PHOTO.crop(left)
    assert with_it.crop(right) != without.crop(right)


def test_each_region_has_the_strokes_of_its_own_painting(texturer: Texturer) -> None:
    photo, other = tensor(PHOTO), picture(96, 64, 5)
    mask = torch.zeros(2, 64, 96)
    mask[0, :, :48], mask[1, :, 48:] = 1, 1
    both, first, second = (
        texturer.lay(photo, photo, regions, masks, 1.0)
        for regions, masks in (
            ([[(ROUGH, 1.0)], [(other, 1.0)]], mask),
            ([[(ROUGH, 1.0)]], None),
            ([[(other, 1.0)]], None),
        )
    )
    torch.testing.assert_close(both[..., :48], first[..., :48])
    torch.testing.assert_close(both[..., 48:], second[..., 48:])
    assert not torch.allclose(first, second, atol=0.05)


def test_regions_are_those_of_the_picture(tiny: StyleTransferPipeline) -> None:
    """Through the pipeline: a change of the right one's painting does not reach the left."""
    mask = left_half(*PHOTO.size)
    results = [
        tiny(PHOTO, StyleRegions([ROUGH, painting], [mask]), texture=1.0, **SAMPLED)
        for painting in (PLAIN, picture(96, 64, 5))
    ]
    none = [
        tiny(PHOTO, StyleRegions([ROUGH, painting], [mask]), **SAMPLED)
        for painting in (PLAIN, picture(96, 64, 5))
    ]
    left = (0, 0, 16, 64)  # away from where the latents mix
    with_it = largest_difference(results[0].crop(left), results[1].crop(left))
    assert with_it <= 2 * largest_difference(none[0].crop(left), none[1].crop(left)) + 1


def test_a_mix_has_the_strokes_of_its_paintings_by_their_weights(
    tiny: StyleTransferPipeline, texturer: Texturer
) -> None:
    one = tiny(PHOTO, ROUGH, texture=1.0, **SAMPLED)
    mixed = tiny(PHOTO, StyleMix([ROUGH, picture(96, 64, 5)], [1.0, 0.0]), texture=1.0, **SAMPLED)
    assert largest_difference(mixed, one) <= 1
    even = tiny(PHOTO, StyleMix([ROUGH, picture(96, 64, 5)]), texture=1.0, **SAMPLED)
    assert largest_difference(even, one) > 1
    # and their strength, too
    swatch = texturer._swatch(ROUGH)
    assert swatch is not None
    weak = replace(swatch, strength=0.0)
    size = len(swatch.usable) // swatch.width, swatch.width
    _, strength = texturer._strokes(swatch.patches, size, [(swatch, 0.75), (weak, 0.25)])
    assert strength == pytest.approx(0.75 * swatch.strength)


def test_company_makes_no_difference(tiny: StyleTransferPipeline) -> None:
    styles = [ROUGH, picture(80, 64, 5), ROUGH]
    together = tiny(PHOTO, styles, texture=1.0, **SAMPLED)
    for each, style in zip(together, styles, strict=True):
        assert largest_difference(each, tiny(PHOTO, style, texture=1.0, **SAMPLED)) <= 1


def test_what_else_is_sampled_does_not_change_the_matches(
    texturer: Texturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch, and in another number format, pictures differ by a hair, which may turn a match."""
    found = []

    def seen(*given: Any) -> Tensor:
        found.append(matched(*given))
        return found[-1]

    monkeypatch.setattr(texture, "matched", seen)
    for sampled in (tensor(PHOTO), tensor(PLAIN)):
        texturer.lay(sampled, tensor(PHOTO), [[(ROUGH, 1.0)]], None, 1.0)
    assert torch.equal(*found) and len(found[0].unique()) > 1
