"""ldm.media.colours: black and white paintings, and the colours of one picture for another."""

import io

import numpy as np
import pytest
from PIL import Image
from pipeline_builders import picture, pixels

from ldm.errors import UserError
from ldm.media.colours import is_grey, sample_of, with_palette_of
from ldm.media.images import at_most
from ldm.pipeline.inputs import StyleMix
from ldm.pipeline.pipeline import StyleTransferPipeline

SAMPLED = {"look": "sampled", "size": 32, "steps": 2}


def grey(width: int, height: int, seed: int) -> Image.Image:
    return picture(width, height, seed).convert("L").convert("RGB")


def test_black_and_white_is_told_from_few_colours() -> None:
    assert is_grey(grey(40, 30, 1)) and not is_grey(picture(40, 30, 1))
    jpeg = io.BytesIO()
    grey(64, 64, 1).save(jpeg, "JPEG", quality=80)
    assert is_grey(Image.open(jpeg).convert("RGB"))
    sepia = Image.fromarray((pixels(grey(40, 30, 1)) * np.array([1, 0.9, 0.75])).astype(np.uint8))
    assert not is_grey(sepia)
    spot = grey(100, 100, 1)
    spot.paste((200, 30, 30), (0, 0, 20, 20))  # a red seal
    assert not is_grey(spot)


def test_a_picture_takes_the_mean_and_covariance_of_anothers_colours() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(120, 12, (64, 64, 3)) @ np.array([[1, 0.2, 0], [0, 1, 0.3], [0, 0, 1.0]])
    other = rng.normal(100, 20, (80, 60, 3)) @ np.array([[1, 0, 0.3], [0.1, 0.7, 0], [0, 0.2, 0.9]])
    first, second = (Image.fromarray(np.clip(each, 0, 255).astype(np.uint8)) for each in (one, other))
    result = pixels(with_palette_of(first, second)).reshape(-1, 3).astype(float)
    wanted = pixels(second).reshape(-1, 3).astype(float)
    assert np.allclose(result.mean(axis=0), wanted.mean(axis=0), atol=1)
    assert np.allclose(np.cov(result.T), np.cov(wanted.T), rtol=0.05, atol=8)
    same = pixels(with_palette_of(first, first)).astype(int)
    assert np.abs(same - pixels(first)).max() <= 1  # its own colours are where they were
    flat = with_palette_of(first, Image.new("RGB", (8, 8), (10, 200, 90)))
    assert np.abs(pixels(flat).astype(int) - [10, 200, 90]).max() <= 2
    assert np.isfinite(pixels(with_palette_of(Image.new("RGB", (8, 8), "red"), first))).all()


def test_what_is_transparent_has_no_colours() -> None:
    half = Image.new("L", (40, 30))
    half.paste(255, (0, 0, 20, 30))
    left, both = grey(40, 30, 1), picture(40, 30, 2)
    both.paste(left.crop((0, 0, 20, 30)), (0, 0))
    both.putalpha(half)
    assert is_grey(both)
    palette = picture(40, 30, 3)
    result = with_palette_of(both, palette)
    assert result.getchannel("A") == half
    wanted = with_palette_of(left.crop((0, 0, 20, 30)), palette)
    assert np.abs(pixels(result.crop((0, 0, 20, 30))).astype(int) - pixels(wanted)).max() <= 1
    assert np.allclose(
        pixels(with_palette_of(palette, both))[..., 0],
        pixels(with_palette_of(palette, left.crop((0, 0, 20, 30))))[..., 0],
        atol=1,
    )


def test_black_and_white_paintings_give_black_and_white_results(tiny: StyleTransferPipeline) -> None:
    photo, ink, oil = picture(32, 32, 1), grey(40, 40, 2), picture(40, 40, 3)
    assert is_grey(tiny(photo, ink, **SAMPLED)) and not is_grey(tiny(photo, oil, **SAMPLED))
    assert not is_grey(tiny(photo, StyleMix([ink, oil]), **SAMPLED))
    assert is_grey(tiny(photo, StyleMix([ink, oil], [1, 0]), **SAMPLED))
    assert not is_grey(tiny(photo, ink, preserve_color=True, **SAMPLED))
    assert not is_grey(tiny(photo, ink, palette=oil, **SAMPLED))
    keep = Image.new("L", (32, 32))
    keep.paste(255, (0, 0, 16, 32))
    kept = pixels(tiny(photo, ink, keep=keep, **SAMPLED))
    assert (kept[:, :16] == pixels(photo)[:, :16]).all() and is_grey(
        Image.fromarray(kept[:, 16:].astype(np.uint8))
    )


def test_a_style_takes_the_colours_of_a_palette_first(tiny: StyleTransferPipeline) -> None:
    photo, painting, palette = picture(32, 32, 1), picture(40, 40, 2), picture(48, 40, 3)
    expected = tiny(photo, with_palette_of(at_most(painting, 32), palette), **SAMPLED)
    assert tiny(photo, painting, palette=palette, **SAMPLED) == expected != tiny(photo, painting, **SAMPLED)
    with pytest.raises(UserError, match="palette and preserve_color both say whose colours"):
        tiny(photo, painting, palette=palette, preserve_color=True, **SAMPLED)


def test_a_picture_of_any_aspect_has_its_colours_counted_at_few_places() -> None:
    """A line of a million pixels would take gigabytes."""
    line = Image.new("RGB", (100_000, 1), "white")
    line.paste((0, 0, 0), (0, 0, 50_000, 1))
    colours, _ = sample_of(line, side=16)
    assert len(colours) == 256 and np.allclose(colours.mean(axis=0), 127.5, atol=1)
