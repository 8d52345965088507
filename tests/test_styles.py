"""What may stand for a style: pictures, mixtures, regions and their masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import picture

from ldm.errors import UserError
from ldm.pipeline.inputs import (
    PictureReader,
    ReadStyle,
    StyleMix,
    StyleRegions,
    mask_array,
    read_picture,
)


def mask(width: int = 64, height: int = 48, left: float = 0.5, grey: int = 255) -> Image.Image:
    """`grey` in the left part, black in the rest."""
    values = np.zeros((height, width), dtype=np.uint8)
    values[:, : round(left * width)] = grey
    return Image.fromarray(values)


# Mixtures


@pytest.mark.parametrize(
    "weights, shares",
    [
        (None, [1 / 3] * 3),
        ([1, 1, 2], [0.25, 0.25, 0.5]),
        ((0, 0.0, 5), [0, 0, 1]),
        (np.array([2.0, 3.0, 5.0]), [0.2, 0.3, 0.5]),
    ],
)
def test_the_weights_of_a_mixture_are_scaled_to_sum_1(weights, shares: list[float]) -> None:
    assert StyleMix(["a", "b", "c"], weights).shares() == pytest.approx(shares)


@pytest.mark.parametrize(
    "styles, weights, problem",
    [
        (["a", "b"], [1.0], "1 style weights for 2 styles"),
        (["a"], [1.0, 2.0], "2 style weights for 1 styles"),
        ([], None, "0 style weights for 0 styles"),
        ([], [1.0], "1 style weights for 0 styles"),
        (["a", "b"], [0, 0], "not all of them 0"),
        (["a", "b"], [2.0, -1.0], "must be numbers from 0 on"),
        (["a", "b"], [1.0, float("nan")], "must be numbers from 0 on"),
        (["a", "b"], [1.0, float("inf")], "must be numbers from 0 on"),
        (["a", "b"], [1.0, "1"], "must be numbers from 0 on"),
        (["a", "b"], [1.0, None], "must be numbers from 0 on"),
        (["a", "b"], [1.0, 10**400], "must be numbers from 0 on"),
        (["a", "b"], 1, "style weights must be a list of numbers, got 1"),
    ],
)
def test_weights_that_make_no_mixture_are_refused(styles: list, weights: list | None, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        StyleMix(styles, weights).shares()


def test_a_mixture_is_one_region_of_weighted_pictures() -> None:
    pictures = [picture(40, 32, 1), picture(40, 32, 2)]
    read = PictureReader().style(StyleMix(pictures, [1, 3]))
    assert (
        read.regions == [[(pictures[0], 0.25), (pictures[1], 0.75)]]
        and read.masks is None
        and read.pictures == pictures
    )


# Regions


@pytest.mark.parametrize("styles, masks", [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_regions_take_a_mask_for_each_style_or_one_less(styles: int, masks: int) -> None:
    StyleRegions(["a.png"] * styles, ["m.png"] * masks).check()


@pytest.mark.parametrize("styles, masks", [(1, 0), (0, 0), (0, 1), (3, 1), (1, 2), (2, 3)])
def test_another_number_of_masks_is_refused(styles: int, masks: int) -> None:
    with pytest.raises(UserError, match=f"{masks} masks for {styles} styles"):
        StyleRegions(["a.png"] * styles, ["m.png"] * masks).check()


def shares(masks: list[Image.Image], styles: int, size: tuple[int, int] = (64, 48)) -> torch.Tensor:
    return torch.from_numpy(
        PictureReader().style(StyleRegions([picture(32, 32)] * styles, masks)).shares(size)
    )


def test_without_regions_there_is_no_mask() -> None:
    assert ReadStyle([[(picture(32, 32), 1.0)]]).shares((64, 48)) is None


def test_the_last_style_takes_what_the_masks_leave() -> None:
    left, rest = shares([mask()], 2)
    assert left[:, :32].eq(1).all() and left[:, 32:].eq(0).all() and torch.equal(rest, 1 - left)


def test_a_mask_for_every_style_leaves_nothing() -> None:
    given = [mask(), Image.fromarray(255 - np.asarray(mask()))]
    assert torch.equal(shares(given, 2), shares([mask()], 2))


def test_greys_mix() -> None:
    both = shares([mask(left=1.0, grey=51)], 2)
    assert torch.allclose(both[0], torch.tensor(0.2)) and torch.allclose(both[1], torch.tensor(0.8))


@pytest.mark.parametrize("styles", [2, 3])
def test_masks_that_overlap_share(styles: int) -> None:
    both = shares([mask(left=1.0), mask(left=0.5)], styles)
    assert torch.allclose(both.sum(dim=0), torch.ones(48, 64))
    assert both[:2, :, :32].eq(0.5).all() and both[0, :, 32:].eq(1).all()


@pytest.mark.parametrize("masks", [[mask(left=0.9)], [mask(left=0.0)], [mask(left=0.3), mask(left=0.9)]])
def test_pixels_without_a_style_are_refused(masks: list[Image.Image]) -> None:
    with pytest.raises(UserError, match="black in every mask.* one style more than masks"):
        shares(masks, len(masks))


# Masks


def mask_tensor(given: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(mask_array(given, size))


def test_a_mask_is_between_0_and_1() -> None:
    values = mask_tensor(mask(grey=102), (64, 48))
    assert values.shape == (48, 64) and values.dtype == torch.float32
    assert torch.allclose(values[:, :32], torch.tensor(0.4)) and values[:, 32:].eq(0).all()


@pytest.mark.parametrize("size", [(128, 96), (32, 24), (65, 48), (64, 48)])
def test_a_mask_is_scaled_to_the_picture(size: tuple[int, int]) -> None:
    values = mask_tensor(mask(), size)
    assert values.shape == size[::-1]
    assert values.mean().item() == pytest.approx(0.5, abs=0.01)
    assert values[:, : size[0] // 2 - 2].eq(1).all() and values[:, size[0] // 2 + 3 :].eq(0).all()


@pytest.mark.parametrize("size", [(48, 64), (64, 64), (64, 50), (67, 48)])
def test_a_mask_of_another_aspect_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(
        UserError, match=f"mask of 64x48 pixels does not have the picture's aspect, {size[0]}x{size[1]}"
    ):
        mask_tensor(mask(), size)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "RGBA", "I;16"])
def test_masks_of_any_mode_are_taken(mode: str) -> None:
    given = (
        mask().convert("I").point(lambda v: v * 257).convert("I;16")
        if mode == "I;16"
        else mask().convert(mode)
    )
    assert torch.equal(mask_tensor(PictureReader().mask(given), (64, 48)), mask_tensor(mask(), (64, 48)))


# Reading


def test_every_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(64, 48).save(tmp_path / "a.png")
    read, files = PictureReader(), []
    monkeypatch.setattr(
        "ldm.pipeline.inputs.load_image", lambda path, **options: files.append(str(path)) or picture(64, 48)
    )
    path = tmp_path / "a.png"
    assert (
        read(path)
        is read(str(path))
        is read.style(StyleMix([path])).pictures[0]
        is read.style(path).pictures[0]
    )
    assert read.mask(path) is read.style(StyleRegions([path], [path])).masks[0]
    assert files == [str(path)] * 2  # once as a picture, once as a mask


@pytest.mark.parametrize("wrong", [3, None, {}, b"a.png"])
def test_what_is_no_picture_is_refused(wrong) -> None:
    with pytest.raises(UserError, match=f"several in lists of them; got {type(wrong).__name__}. Arrays"):
        read_picture(wrong)
