"""The bundled model: it loads anywhere, offline, and paints: the photo is still there, the palette is the painting's.

All that new weights could fail by what they paint is here.
"""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from pipeline_builders import ROOT, largest_difference, left_half, mean_difference, pixels

from ldm.checkpoint import describe, read_state_dict
from ldm.media.images import load_image, resize_short_side
from ldm.media.tensors import image_to_tensor, tensor_to_image
from ldm.pipeline.brush import Level, Order
from ldm.pipeline.bundled import BUNDLED
from ldm.pipeline.engine import Batch
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings

SETTINGS = {"look": "sampled", "size": 256, "steps": 10, "seed": 0}
FAIR = {"look": "sampled", "size": 256, "steps": 8}
TURNER, GOGH = "turner_whalers", "van_gogh_wheat_field_with_cypresses"

# Photos and paintings whose mean colours lie far apart.
PAIRS = [
    ("coffee_cup", "turner_whalers"),
    ("moose", "klimt_mada_primavesi"),
    ("astronaut", "hashiguchi_ducks"),
]


def content(name: str) -> Image.Image:
    return load_image(ROOT / "data/contents" / f"{name}.jpg")


def style(name: str) -> Image.Image:
    return load_image(ROOT / "data/styles" / f"{name}.jpg")


@pytest.fixture(scope="module")
def painted(bundled: StyleTransferPipeline) -> list[Image.Image]:
    """One result for each of PAIRS."""
    return [bundled(content(photo), style(painting), **SETTINGS) for photo, painting in PAIRS]


# The files


def test_the_weights_are_small() -> None:
    files = [path for path in (ROOT / "checkpoints/mini").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= 40e6


def test_the_weights_are_for_inference_and_whole() -> None:
    report = describe(ROOT / BUNDLED["mini"][0])
    assert report.kind == "ArtFusion checkpoint" and not report.has_ema and not report.nonfinite


def test_the_model_has_neither_judge_nor_style_network_in_it() -> None:
    """VGG16 is both, and has a file of its own."""
    names = read_state_dict(ROOT / BUNDLED["mini"][0])
    assert not [name for name in names if name.startswith(("vgg.", "loss.", "first_stage_model.loss."))]


def test_the_model_card_says_what_it_is_and_whose() -> None:
    card = (ROOT / "checkpoints/mini/README.md").read_text().lower()
    assert [
        word for word in ("cc by-nc 4.0", "steps", "limits", "photos", "paintings") if word not in card
    ] == []


# The pictures


def test_the_result_has_the_photos_aspect(painted: list[Image.Image]) -> None:
    sizes = [resize_short_side(content(photo), 256).size for photo, _ in PAIRS]
    assert [image.size for image in painted] == sizes


def test_every_value_is_finite(bundled: StyleTransferPipeline) -> None:
    """Before pictures are made of them, which would hide it."""
    photo = image_to_tensor(resize_short_side(content("moose"), 64))[None]
    statistics = bundled.encode_style(style("turner_whalers"), 64)
    batch = Batch(
        statistics[None],
        tuple(photo.shape[2:]),
        seeds=[0],
        content_scales=[1.0],
        style_scales=[2.0],
        content=photo,
    )
    result = bundled.painter.paint(batch, Settings(look="sampled", steps=4))
    assert result.isfinite().all() and result.abs().max() < 4


@pytest.mark.parametrize("i", range(len(PAIRS)))
def test_the_result_is_not_flat(painted: list[Image.Image], i: int) -> None:
    assert pixels(painted[i]).std(axis=(0, 1)).min() > 15  # photos have about 50


def mean_colour(image: Image.Image) -> np.ndarray:
    return pixels(image).mean(axis=(0, 1))


@pytest.mark.parametrize("i", range(len(PAIRS)))
def test_the_palette_moves_from_the_photos_to_the_paintings(painted: list[Image.Image], i: int) -> None:
    photo, painting = mean_colour(content(PAIRS[i][0])), mean_colour(style(PAIRS[i][1]))
    before, after = (np.linalg.norm(colour - painting) for colour in (photo, mean_colour(painted[i])))
    assert before > 100 and after < 0.6 * before


def outlines(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The slopes of the blurred luminance, along and across, as one vector of mean 0 and length 1."""
    grey = np.asarray(
        image.convert("L").resize(size, Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(4)),
        dtype=np.float64,
    )
    slopes = np.concatenate([slope.ravel() for slope in np.gradient(grey)])
    return (slopes - slopes.mean()) / np.linalg.norm(slopes - slopes.mean())


@pytest.mark.parametrize("i", range(len(PAIRS)))
def test_the_content_is_still_there(painted: list[Image.Image], i: int) -> None:
    size = painted[i].size
    likeness = {
        path.stem: float(outlines(painted[i], size) @ outlines(load_image(path), size))
        for path in (ROOT / "data/contents").glob("*.jpg")
    }
    own = likeness.pop(PAIRS[i][0])
    assert own > 0.5 and own > max(likeness.values()) + 0.3


def test_the_painting_makes_the_difference(bundled: StyleTransferPipeline) -> None:
    photo = content("astronaut")
    results = bundled(
        photo, [style("turner_whalers"), style("van_gogh_wheat_field_with_cypresses")], **SETTINGS
    )
    assert np.linalg.norm(mean_colour(results[0]) - mean_colour(results[1])) > 15


# What the dials do


def test_few_gradient_steps_bring_the_paintings_own_paint(
    bundled: StyleTransferPipeline, painted: list[Image.Image]
) -> None:
    photo, painting = PAIRS[0]
    fast = bundled(content(photo), style(painting), **{**SETTINGS, "look": "fast"})
    order = Order(fast.size[::-1], [[(style(painting), 1.0)]])
    energy = bundled.brush.energy(Level(order.size, 1), order)
    of_fast, of_sampled = (
        float(energy.terms(image_to_tensor(result)[None])[0]) for result in (fast, painted[0])
    )
    assert of_fast < 0.85 * of_sampled


def test_styles_alone_differ_by_style_and_by_seed(bundled: StyleTransferPipeline) -> None:
    turner, gogh = bundled(None, [style(TURNER), style(GOGH)], **FAIR)
    assert mean_difference(turner, gogh) > 5 and pixels(turner).std() > 10
    assert mean_difference(turner, bundled(None, style(TURNER), seed=1, **FAIR)) > 10


def test_half_of_two_styles_lies_between_them(bundled: StyleTransferPipeline) -> None:
    styles = [style(TURNER), style(GOGH)]
    turner, gogh, both = bundled(content("astronaut"), [*styles, StyleMix(styles)], **FAIR)
    assert max(mean_difference(both, turner), mean_difference(both, gogh)) < 0.9 * mean_difference(
        turner, gogh
    )


def share(image: Image.Image, of: Image.Image, other: Image.Image, columns: slice) -> float:
    """How far the image has gone from `other` (0) to `of` (1), in some columns."""
    way = (pixels(of) - pixels(other))[:, columns].ravel()
    return float(way @ (pixels(image) - pixels(other))[:, columns].ravel() / (way @ way))


@pytest.fixture(scope="module")
def shares_of_turner(bundled: StyleTransferPipeline) -> tuple[float, float]:
    """(left, right) of a picture whose left half is to be like Turner's, the right half like van Gogh's."""
    styles, square = [style(TURNER), style(GOGH)], content("astronaut").resize((256, 256))
    turner, gogh, both = bundled(square, [*styles, StyleRegions(styles, [left_half(256, 256)])], **FAIR)
    return share(both, turner, gogh, slice(0, 104)), share(both, turner, gogh, slice(152, None))


def test_each_half_is_painted_in_its_own_style(shares_of_turner: tuple[float, float]) -> None:
    left, right = shares_of_turner
    assert left > 0.75 and right < 0.25


def test_less_strength_keeps_more_of_the_photo(bundled: StyleTransferPipeline) -> None:
    small = resize_short_side(content("moose"), 256)
    with torch.no_grad():
        codec = bundled.painter.codec
        latent = codec.encode(image_to_tensor(small)[None])
        copied = tensor_to_image(codec.decode(latent, (small.height, small.width))[0])
    distances = [
        mean_difference(bundled(small, style(TURNER), strength=s, detail=0.0, recolor=0.0, **FAIR), copied)
        for s in (0.01, 0.3, 0.7, 1.0)
    ]
    assert distances[0] < 0.15 * distances[-1] and distances == sorted(distances) and distances[-1] > 30, (
        distances
    )


def test_the_photos_colours_may_stay(bundled: StyleTransferPipeline) -> None:
    given = resize_short_side(content("coffee_cup"), 256)
    painted, coloured = (
        bundled(given, style(TURNER), preserve_color=kept, recolor=0.0, **FAIR) for kept in (False, True)
    )
    assert bundled(given, style(TURNER), preserve_color=True, **FAIR) == coloured
    rgb = pixels(coloured)
    inside = ((rgb > 0) & (rgb < 255)).all(axis=2)  # where the brightness leaves room for the colour
    assert inside.mean() > 0.5
    luma, *chroma = np.moveaxis(np.asarray(coloured.convert("YCbCr"), dtype=int), 2, 0)
    _, *expected = np.moveaxis(np.asarray(given.convert("YCbCr"), dtype=int), 2, 0)
    assert np.abs(luma - np.asarray(painted.convert("L"), dtype=int))[inside].max() <= 2
    assert max(np.abs(a - b)[inside].max() for a, b in zip(chroma, expected)) <= 2
    assert mean_difference(painted, coloured) > 10


def test_a_photo_in_its_own_style_stays_itself(bundled: StyleTransferPipeline) -> None:
    contents = [load_image(path) for path in sorted((ROOT / "data/contents").glob("*.jpg"))]
    likeness = [
        psnr(bundled(photo, photo, look="sampled", size=256), resize_short_side(photo, 256))
        for photo in contents
    ]
    assert np.mean(likeness) > 19.5 and min(likeness) > 16, likeness


# Large pictures


def psnr(a: Image.Image, b: Image.Image) -> float:
    return float(10 * np.log10(255**2 / np.square(pixels(a) - pixels(b)).mean()))


@pytest.fixture(scope="module")
def tiled_and_whole(bundled: StyleTransferPipeline) -> list[tuple[Image.Image, Image.Image]]:
    """Pictures of 512x256 pixels in three tiles, and the same in one piece."""
    pairs = [("great_wall", TURNER), ("chenonceau_castle", GOGH)]
    options = {**FAIR, "size": (512, 256)}
    return [
        tuple(bundled(content(c), style(s), tile=tile, **options) for tile in (256, 512)) for c, s in pairs
    ]


def test_a_picture_in_tiles_is_near_that_in_one_piece(tiled_and_whole: list) -> None:
    likeness = [psnr(tiled, whole) for tiled, whole in tiled_and_whole]
    assert min(likeness) > 23, likeness


def test_tiles_leave_no_seam(tiled_and_whole: list) -> None:
    """Slopes across the tiles' ends, against those beside and against those of the picture in one piece."""
    for tiled, whole in tiled_and_whole:
        sharpness = []
        for image in (tiled, whole):
            slopes = np.abs(np.diff(pixels(image), axis=1)).mean(axis=(0, 2))
            at_ends = slopes[[127, 255, 383]].mean()
            elsewhere = slopes[15::16].mean()  # the decoder's own grid shows a little everywhere
            sharpness.append(at_ends / elsewhere)
        assert sharpness[0] < 1.3 * sharpness[1]


def test_a_large_picture_looks_like_the_small_one(bundled: StyleTransferPipeline) -> None:
    given = content("astronaut").resize((416, 416))
    results = [
        bundled(given, style(TURNER), **{**FAIR, **options})
        for options in ({"size": 256}, {"size": 416}, {"size": 416, "refine": 1})
    ]
    small, large, from_scratch = (result.resize((64, 64)) for result in results)
    assert psnr(large, small) > 20 and psnr(large, small) > psnr(from_scratch, small)


# Seeds


def test_the_same_seed_gives_the_same_picture_bit_by_bit(
    bundled: StyleTransferPipeline, painted: list[Image.Image]
) -> None:
    photo, painting = PAIRS[0]
    torch.manual_seed(123)
    assert bundled(content(photo), style(painting), **SETTINGS) == painted[0]


def test_a_picture_does_not_depend_on_what_else_is_in_the_batch(bundled: StyleTransferPipeline) -> None:
    names = ["chenonceau_castle", "brandenburg_gate", "chenonceau_castle"]
    contents, styles = (
        [content(name) for name in names],
        [style(path.stem) for path in sorted((ROOT / "data/styles").glob("*.jpg"))[:3]],
    )
    options = {**SETTINGS, "size": 128, "style_scale": 3.0}
    together = bundled(contents, styles, **{**options, "seed": [1, 2, 3]})
    for i in range(3):
        alone = bundled(contents[i], styles[i], **{**options, "seed": i + 1})
        assert largest_difference(alone, together[i]) <= 1


def test_the_seed_does_not_decide_the_brightness(bundled: StyleTransferPipeline) -> None:
    """What the mean of the starting noise would do, most of all to a small picture."""
    painted = bundled([content("astronaut")] * 4, style(TURNER), look="sampled", size=128, seed=[0, 1, 2, 3])
    means = np.array([pixels(image).mean(axis=(0, 1)) for image in painted])
    assert np.ptp(means, axis=0).max() < 70  # not centred: 104 and more in every channel
