"""The bundled model: it loads anywhere, offline, and paints: the photo is still there, the palette is the painting's."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from pipeline_builders import ROOT, largest_difference, pixels

from ldm.checkpoint import describe, read_state_dict
from ldm.media.images import load_image, resize_short_side
from ldm.media.tensors import image_to_tensor
from ldm.pipeline.bundled import BUNDLED
from ldm.pipeline.engine import Batch
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings

SETTINGS = {"look": "fast", "size": 256, "steps": 10, "seed": 0}

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
    result = bundled.painter.paint(batch, Settings(look="fast", steps=4))
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
