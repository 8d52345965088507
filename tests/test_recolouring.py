"""The look palette: a photo's own forms in the colours of paintings, without a model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline_builders import largest_difference, left_half, picture, pixels, run_program, script, tiny_model

from ldm.errors import ConfigError, UserError
from ldm.media import recolouring
from ldm.media.colours import is_grey, with_palette_of
from ldm.media.recolouring import recoloured
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.recolouring import Recolourer
from ldm.pipeline.settings import Settings

PALETTE = {"look": "palette", "size": 64}


def patches(*colours: tuple[int, int, int], noise: int = 6) -> Image.Image:
    """Stripes of these colours, a little uneven."""
    stripes = np.repeat(np.array(colours), 96 // len(colours), axis=0)[None].repeat(64, axis=0)
    uneven = np.random.default_rng(0).integers(-noise, noise + 1, stripes.shape)
    return Image.fromarray(np.clip(stripes + uneven, 0, 255).astype(np.uint8))


def mean(image: Image.Image) -> np.ndarray:
    return pixels(image).reshape(-1, 3).mean(axis=0)


PHOTO = patches((40, 40, 45), (120, 130, 125), (220, 215, 220))
GOLD = patches((60, 40, 10), (190, 150, 40), (240, 230, 190))


def test_a_photo_takes_a_paintings_colours_and_keeps_its_forms() -> None:
    result = recoloured(PHOTO, [(GOLD, 1.0)])
    assert result.size == PHOTO.size
    for i in range(3):  # from dark to light, each stripe the painting's
        box = (32 * i, 0, 32 * i + 32, 64)
        assert np.abs(mean(result.crop(box)) - mean(GOLD.crop(box))).max() < 12
    assert recoloured(PHOTO, [(GOLD, 1.0)]) == result
    assert largest_difference(recoloured(GOLD, [(GOLD, 1.0)]), GOLD) < 25  # its own are where they were


def test_the_map_is_smooth() -> None:
    """A sky of the finest steps gets no larger ones, however many colours the painting has."""
    ramp = np.linspace(90, 220, 256)[None, :, None] * np.array([0.7, 0.85, 1.0])
    sky = Image.fromarray(np.repeat(ramp, 128, axis=0).round().astype(np.uint8))
    painting = Image.fromarray(np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    steps = np.abs(np.diff(pixels(recoloured(sky, [(painting, 1.0)])), axis=1)).max()
    assert steps <= 6 * np.abs(np.diff(pixels(sky), axis=1)).max()


def test_strength_is_the_share_of_the_way() -> None:
    assert largest_difference(recoloured(PHOTO, [(GOLD, 1.0)], 1e-6), PHOTO) <= 1
    whole, half = (pixels(recoloured(PHOTO, [(GOLD, 1.0)], strength)) for strength in (1.0, 0.5))
    assert np.abs(half - (whole + pixels(PHOTO)) / 2).max() <= 2


@pytest.mark.parametrize("photo, painting", [("red", GOLD), (PHOTO, "red"), ("black", "white")])
def test_pictures_of_one_colour_are_no_trouble(photo, painting) -> None:
    flat = [Image.new("RGB", (40, 40), one) if isinstance(one, str) else one for one in (photo, painting)]
    result = recoloured(flat[0], [(flat[1], 1.0)])
    assert np.abs(mean(result) - mean(flat[1])).max() < 6


@pytest.mark.parametrize(
    "picture",
    [
        PHOTO,
        patches((0, 255, 7), (8, 247, 255), (255, 255, 255), noise=0),
        Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8)),
    ],
    ids=["stripes", "edges of the grid", "noise"],
)
def test_what_a_picture_meets_of_the_grid_is_all_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, picture: Image.Image
) -> None:
    result, met = recoloured(picture, [(GOLD, 1.0)]), recolouring._met_by(picture)
    assert picture is not PHOTO or met.mean() < 0.1
    monkeypatch.setattr(recolouring, "_met_by", lambda picture: np.ones_like(met))
    assert recoloured(picture, [(GOLD, 1.0)]) == result


def test_what_is_not_to_be_seen_at_all_stays_as_it_is() -> None:
    nothing = Image.new("RGBA", (20, 10), (10, 20, 30, 0))
    assert recoloured(nothing, [(picture(20, 20), 1.0)]).tobytes() == nothing.tobytes()


def test_a_picture_of_a_single_pixel_gives_its_colour() -> None:
    one = Image.new("RGB", (1, 1), (200, 40, 40))
    for result in (recoloured(picture(30, 20), [(one, 1.0)]), with_palette_of(picture(30, 20), one)):
        assert abs(mean(result) - (200, 40, 40)).max() < 12


def test_a_mix_has_colours_of_both_by_their_weights() -> None:
    blue = patches((10, 30, 80), (40, 90, 190), (190, 220, 240))
    both = [mean(recoloured(PHOTO, [(GOLD, 1 - weight), (blue, weight)]))[2] for weight in (0, 0.5, 1)]
    assert both[0] + 10 < both[1] < both[2] - 10
    assert recoloured(PHOTO, [(GOLD, 1.0), (blue, 0.0)]) == recoloured(PHOTO, [(GOLD, 1.0)])


def test_what_is_transparent_has_no_part_in_it() -> None:
    half = left_half(*PHOTO.size)
    seen, other = GOLD.copy(), Image.composite(GOLD, picture(*GOLD.size, seed=4), half)
    for each in (seen, other):
        each.putalpha(half)
    assert recoloured(PHOTO, [(seen, 1.0)]) == recoloured(PHOTO, [(other, 1.0)])
    assert recoloured(PHOTO, [(seen, 1.0)]) != recoloured(PHOTO, [(GOLD, 1.0)])
    assert recoloured(seen, [(PHOTO, 1.0)]).getchannel("A") == half


# The look


def test_the_look_palette_paints_nothing(
    tiny: StyleTransferPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "_paint_all", lambda *args: pytest.fail("painted"))
    result = tiny(PHOTO, GOLD, **PALETTE)
    assert largest_difference(result, recoloured(PHOTO, [(GOLD, 1.0)])) <= 2
    assert [each.size for each in tiny([PHOTO, GOLD], GOLD, **PALETTE)] == [PHOTO.size] * 2
    assert is_grey(tiny(PHOTO, GOLD.convert("L").convert("RGB"), **PALETTE))
    assert tiny(PHOTO, StyleMix([GOLD, PHOTO], [1, 0]), **PALETTE) == result
    kept = tiny(PHOTO, GOLD, keep=left_half(*PHOTO.size), **PALETTE)
    assert not np.abs(pixels(kept) - pixels(PHOTO))[:, :40].any()
    logo = PHOTO.copy()
    logo.putalpha(left_half(*PHOTO.size))
    assert tiny(logo, GOLD, **PALETTE).getchannel("A") == left_half(*PHOTO.size)


def test_regions_have_colours_of_their_own(tiny: StyleTransferPipeline) -> None:
    regions = tiny(PHOTO, StyleRegions([GOLD, PHOTO], [left_half(*PHOTO.size)]), **PALETTE)
    for style, half in ((GOLD, slice(0, 48)), (PHOTO, slice(48, 96))):
        assert (pixels(regions)[:, half] == pixels(tiny(PHOTO, style, **PALETTE))[:, half]).all()


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"seed": 3}, "seed is for looks that paint; the look palette only has size and strength"),
        ({"effort": 2.0}, "effort is for looks that paint"),
        ({"style_scale": 2.0}, "style_scale is for looks that paint"),
        ({"preserve_color": True}, "preserve_color is for looks that paint"),
        ({"style_size": 64}, "style_size is for looks that paint"),
        ({"palette": GOLD}, "palette is for looks that paint"),
        ({"not_style": GOLD}, "not_style is for looks that paint"),
        ({"start": PHOTO}, "start is for looks with gradient steps"),
        ({"content": None}, "the look palette needs a content picture"),
    ],
)
def test_what_only_painting_has_is_refused(tiny: StyleTransferPipeline, options: dict, problem: str) -> None:
    given = {"content": PHOTO, "style": GOLD, **PALETTE, **options}
    with pytest.raises(UserError, match=problem):
        tiny(given.pop("content"), given.pop("style"), **given)


# Before painting

SAMPLED = {"look": "sampled", "size": 64, "steps": 2, "detail": 1.0}
FINE = {"size": 64, "steps": 2, "effort": 0.1}
SMALL = GOLD.resize((48, 32))  # as a painting is looked at


@pytest.mark.parametrize("look", [SAMPLED, FINE])
def test_a_photo_is_painted_as_one_in_the_paintings_colours(tiny: StyleTransferPipeline, look: dict) -> None:
    coloured = recoloured(PHOTO, [(SMALL, 1.0)])
    result, as_it_is = (tiny(PHOTO, SMALL, recolor=share, **look) for share in (1.0, 0.0))
    assert result == tiny(coloured, SMALL, recolor=0.0, **look) != as_it_is
    assert tiny(PHOTO, SMALL, **look) == as_it_is  # the published way


def test_the_models_config_says_how_far(tiny: StyleTransferPipeline) -> None:
    half = StyleTransferPipeline(tiny_model(use_ema=False, recolor=0.5))
    assert half(PHOTO, GOLD, **SAMPLED) == tiny(PHOTO, GOLD, recolor=0.5, **SAMPLED)
    assert half(PHOTO, GOLD, recolor=0.0, **SAMPLED) == tiny(PHOTO, GOLD, **SAMPLED)
    assert half(None, GOLD, **SAMPLED | {"detail": None}) == tiny(None, GOLD, **SAMPLED | {"detail": None})
    with pytest.raises(ConfigError, match="recolor must be between 0 and 1"):
        tiny_model(recolor=1.5)


def test_less_strength_is_less_of_the_colours(tiny: StyleTransferPipeline) -> None:
    painted = tiny(PHOTO, SMALL, recolor=0.8, strength=0.5, **SAMPLED)
    assert painted == tiny(recoloured(PHOTO, [(SMALL, 1.0)], 0.4), SMALL, strength=0.5, **SAMPLED)


@pytest.mark.parametrize("scale, share", [(-1.0, 0.0), (0.0, 0.0), (0.5, 0.4), (1.0, 0.8), (3.0, 0.8)])
def test_less_of_the_style_is_less_of_its_colours(
    tiny: StyleTransferPipeline, scale: float, share: float
) -> None:
    painted = tiny(PHOTO, SMALL, recolor=0.8, style_scale=scale, **SAMPLED)
    coloured = recoloured(PHOTO, [(SMALL, 1.0)], share) if share else PHOTO
    assert painted == tiny(coloured, SMALL, style_scale=scale, **SAMPLED)


def test_what_keeps_colours_has_none_of_the_paintings(tiny: StyleTransferPipeline) -> None:
    for options in ({"preserve_color": True}, {"keep": Image.new("L", PHOTO.size, 255)}):
        assert tiny(PHOTO, GOLD, recolor=1.0, **options, **SAMPLED) == tiny(PHOTO, GOLD, **options, **SAMPLED)


@pytest.mark.parametrize(
    "painting", [Image.new("RGB", (48, 32), (200, 20, 20)), Image.new("RGB", (1, 1), (255, 255, 255))]
)
def test_a_painting_of_one_colour_does_not_wipe_the_photo_out(
    tiny: StyleTransferPipeline, painting: Image.Image
) -> None:
    assert recoloured(PHOTO, [(painting, 1.0)], keep_forms=True) == PHOTO
    assert tiny(PHOTO, painting, recolor=1.0, **SAMPLED) == tiny(PHOTO, painting, recolor=0.0, **SAMPLED)


def test_the_paler_a_painting_the_less_of_its_colours() -> None:
    grey = Image.new("RGB", GOLD.size, (128, 128, 128))

    def ways(photo: Image.Image, *palettes: tuple[Image.Image, float]) -> list[Image.Image]:
        return [recoloured(photo, palettes, keep_forms=kept) for kept in (True, False)]

    moved = []
    for share in (0.05, 0.1, 0.5):
        kept, whole = (pixels(each) for each in ways(PHOTO, (Image.blend(grey, GOLD, share), 1.0)))
        moved.append(np.abs(kept - pixels(PHOTO)).sum() / np.abs(whole - pixels(PHOTO)).sum())
    assert 0 < moved[0] < moved[1] < 0.9 and moved[2] == 1
    for photo, palettes in (
        (grey, [(GOLD, 1.0)]),
        (PHOTO, [(grey, 0.5), (GOLD, 0.5)]),
    ):  # no forms to be lost
        kept, whole = ways(photo, *palettes)
        assert kept == whole


def test_pictures_of_a_scene_have_the_same_map() -> None:
    """Somebody in red comes in: by its own colours the rest of the picture would change."""
    later = PHOTO.copy()
    later.paste((200, 30, 30), (0, 0, 40, 64))
    first, alone, same = (
        pixels(recoloured(photo, [(GOLD, 1.0)], scene=scene))[:, 40:].astype(int)
        for photo, scene in ((PHOTO, None), (later, None), (later, PHOTO))
    )
    assert (same == first).all() and np.abs(alone - first).mean() > 5


def test_each_region_is_painted_over_its_own_colours(tiny: StyleTransferPipeline) -> None:
    styles = StyleRegions([SMALL, PHOTO.resize(SMALL.size)], [left_half(*PHOTO.size)])
    coloured = tiny(PHOTO, styles, **PALETTE)
    assert tiny(PHOTO, styles, recolor=1.0, **SAMPLED) == tiny(coloured, styles, **SAMPLED)


# Memory


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.pipeline.recolouring.installed_memory", lambda: 1_000_000)


@pytest.mark.usefixtures("little_memory")
def test_what_would_take_too_much_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.png"
    PHOTO.save(path)
    monkeypatch.setattr("ldm.pipeline.inputs.load_image", lambda *given, **kinds: pytest.fail("read"))
    with pytest.raises(
        UserError, match="^a picture of 300x200 pixels would take about 0.0 GB of memory, more than 80%"
    ):
        Recolourer()(path, GOLD, settings=Settings(look="palette", size=200))


@pytest.mark.usefixtures("little_memory")
def test_several_pictures_and_regions_take_more_memory() -> None:
    recolourer, settings = Recolourer(), Settings(look="palette", size=96)
    recolourer(PHOTO, GOLD, settings=settings)
    for content, style, told in (
        ([PHOTO] * 3, GOLD, "^3 pictures of 144x96 pixels would .*smaller size or fewer pictures at a time$"),
        (PHOTO, StyleRegions([GOLD] * 3, [left_half(*PHOTO.size)] * 2), "^a picture of 144x96 pixels would"),
    ):
        with pytest.raises(UserError, match=told):
            recolourer(content, style, settings=settings)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("options, code", [("", 2), ("--dry-run", 1)])
def test_the_command_refuses_and_foretells_it(
    run_palette: Callable[[str], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    options: str,
    code: int,
) -> None:
    monkeypatch.setattr("ldm.cli.painting.read_content", lambda place: pytest.fail("read"))
    assert run_palette(f"--output one.png --style gold.png --size 200 {options}") == code
    assert "a picture of 300x200 pixels would take about" in capsys.readouterr().err
    assert not Path("one.png").exists()


# The command


def test_the_command_reads_no_model(
    run_palette: Callable[[str], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(StyleTransferPipeline, "from_pretrained", lambda *args: pytest.fail("read the model"))
    assert run_palette("--output one.png --style gold.png") == 0
    assert run_palette("--output many --style gold.png photo.png") == 0
    with Image.open("one.png") as one, Image.open("many/photo__gold.png") as other:
        assert largest_difference(one, other) <= 1
        assert '"look": "palette", "size": 64, "strength": 1.0' in one.text["artfusion"]
        assert "sampler" not in one.text["artfusion"] and "checkpoint" not in one.text["artfusion"]
    capsys.readouterr()
    assert run_palette("--output many --style gold.png photo.png --dry-run") == 0
    assert "0 to paint, 2 there already" in capsys.readouterr().out
    assert run_palette("--output other.png --style gold.png --dry-run") == 0
    assert "other.png: 96x64" in capsys.readouterr().out
    work = [Recolourer().work_at(size, Settings(look="palette")) for size in ((96, 64), (960, 640))]
    assert work[0] == work[1]  # for the estimate
    for wrong in ("--seed 3", "--palette-from gold.png", "--not-style gold.png"):
        assert run_palette(f"--output no.png --style gold.png {wrong}") == 2
        assert "is for looks that paint" in capsys.readouterr().err and not Path("no.png").exists()


@pytest.fixture
def run_palette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """`artfusion stylize` of the photo in the look palette, in a folder with both pictures."""
    monkeypatch.chdir(tmp_path)
    PHOTO.save("photo.png")
    GOLD.save("gold.png")
    given = "--content photo.png --look palette --size 64".split()
    return lambda options: run_program(script("stylize").main, [*given, *options.split()], monkeypatch)
