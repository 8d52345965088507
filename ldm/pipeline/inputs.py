"""What the pipeline takes as content and style: pictures, mixtures of styles, styles by region."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from numbers import Real
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.errors import UserError, in_short
from ldm.media.arrays import TAKEN, image_of
from ldm.media.colours import is_grey, with_palette_of
from ldm.media.images import at_most, is_open_file, load_image, load_opened, name_of_file
from ldm.media.places import Place, elsewhere
from ldm.media.rgb import to_rgb
from ldm.media.saved_styles import load_style
from ldm.pipeline.library import saved_style
from ldm.pipeline.settings import Range

if TYPE_CHECKING:
    from torch import Tensor

# A file's path or url, or the file open for reading bytes; a PIL picture; an array or a tensor, see
# `ldm.media.arrays.TAKEN`.
Picture: TypeAlias = Union[str, os.PathLike[str], Place, BinaryIO, Image.Image, NDArray[Any], "Tensor"]
ASPECT_TOLERANCE = 0.02  # by which a mask's aspect may differ from the picture's


@dataclass(frozen=True)
class StyleMix:
    """Several styles at once: their statistics averaged with these weights (all equal by default),
    which are scaled to sum 1. Each is a picture, a saved style, or a mix itself."""

    styles: Sequence["OneStyle"]
    weights: Sequence[float] | None = None

    def shares(self) -> list[float]:
        """The weights, summing to 1. Raises UserError."""
        _check_list(self.styles, "styles")
        if self.weights is not None and not isinstance(self.weights, Iterable):
            raise UserError(f"style weights must be a list of numbers, got {in_short(self.weights)}")
        weights = [1.0] * len(self.styles) if self.weights is None else list(self.weights)
        if not weights or len(weights) != len(self.styles):
            raise UserError(f"{len(weights)} style weights for {len(self.styles)} styles")
        possible = all(isinstance(weight, Real) and weight in Range(0) for weight in weights)
        if not possible or not sum(weights) or not isfinite(sum(weights)):
            raise UserError(
                f"style weights must be numbers from 0 on, not all of them 0, got {in_short(weights)}"
            )
        return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True)
class StyleRegions:
    """A style for each region of the content picture: a picture, a saved style, or a mix.

    masks: black and white pictures of the content's aspect, white where the style of the same place
    acts; greys mix. With one mask less than styles, the last style takes what the masks leave.
    """

    styles: Sequence["OneStyle"]
    masks: Sequence[Picture]

    def check(self) -> None:
        """Raises UserError if styles and masks do not go together."""
        _check_list(self.styles, "styles")
        _check_list(self.masks, "masks")
        if len(self.masks) not in (len(self.styles), len(self.styles) - 1) or not self.masks:
            raise UserError(
                f"{len(self.masks)} masks for {len(self.styles)} styles; give one for each style, or one less"
            )


OneStyle: TypeAlias = Picture | StyleMix
Style: TypeAlias = OneStyle | StyleRegions
_SHARED = Lock()  # what a caller has opened may be given to several threads, and Pillow has no lock


def opened(style: OneStyle) -> OneStyle:
    """A style whose path or name is that of a saved one as a mix of its pictures; others as they
    are. Raises UserError for a file that is none.

    A name counts where no file has it: that of a style of the starter library, such as ukiyo-e.
    """
    path = saved_style(style)
    if path is None:
        return style
    saved = load_style(path)
    return StyleMix(saved.pictures, saved.weights)


def with_paintings(style: Style, changed: Callable[[Picture], Image.Image]) -> Style:
    """The style with others in place of its pictures, saved styles opened."""
    if isinstance(style, StyleRegions):
        return replace(style, styles=[one_with_paintings(each, changed) for each in style.styles])
    return one_with_paintings(style, changed)


def one_with_paintings(style: OneStyle, changed: Callable[[Picture], Image.Image]) -> OneStyle:
    """The same of a style that is one everywhere."""
    style = opened(style)
    if isinstance(style, StyleMix):
        return replace(style, styles=[one_with_paintings(each, changed) for each in style.styles])
    return changed(style)


def read_style(style: OneStyle) -> OneStyle:
    """The style with all its pictures read. Raises UserError."""
    return one_with_paintings(style, read_content)


def shown(style: Style) -> Image.Image:
    """The first of a style's pictures, to stand for it. Raises UserError."""
    style = style if isinstance(style, StyleRegions) else opened(style)
    return shown(style.styles[0]) if isinstance(style, (StyleMix, StyleRegions)) else read_picture(style)


@dataclass(frozen=True)
class ReadStyle:
    """A style whose pictures are read: for each region, (picture, weight) pairs; and the regions'
    masks."""

    regions: list[list[tuple[Image.Image, float]]]
    masks: list[Image.Image] | None = None

    @property
    def pictures(self) -> list[Image.Image]:
        """All paintings, of all regions."""
        return [picture for region in self.regions for picture, _ in region]

    @cached_property
    def is_grey(self) -> bool:
        """Whether all its paintings, those of weight 0 aside, are black and white."""
        return all(is_grey(picture) for region in self.regions for picture, weight in region if weight)

    def shares(self, size: tuple[int, int]) -> NDArray[np.float32] | None:
        """(R, H, W) shares of the regions at every pixel of a picture of this (width, height),
        summing to 1. Raises UserError."""
        if self.masks is None:
            return None
        given = np.stack([mask_array(mask, size) for mask in self.masks])
        if len(given) < len(self.regions):
            given = np.concatenate([given, np.maximum(1 - given.sum(axis=0, keepdims=True), 0)])
        total = given.sum(axis=0)
        if (total < 1e-3).any():
            raise UserError(
                "some of the picture is black in every mask; whiten it in one, or give one style more than masks"
            )
        shares: NDArray[np.float32] = given / total
        return shares


class PictureReader:
    """Reads every picture once, however often it is named; those of styles no larger than
    `style_side` (shorter side), in the colours of a `palette`, if there is one, and as RGBA where
    some of them is transparent, which does not count."""

    def __init__(self, style_side: int | None = None, palette: Picture | None = None) -> None:
        self.style_side, self.palette = style_side, palette
        self._read: dict[Any, tuple[Picture, Image.Image]] = {}
        self._opened: dict[str, OneStyle] = {}

    def __call__(self, picture: Picture) -> Image.Image:
        """The picture as RGB, upright. Raises UserError."""
        return self._once("rgb", picture, lambda given: to_opaque(self.content(given)))

    def content(self, picture: Picture) -> Image.Image:
        """The picture as RGB, upright, or as RGBA where some of it is transparent. Raises
        UserError."""
        return self._once("content", picture, read_content)

    def mask(self, picture: Picture) -> Image.Image:
        """The picture in grey, upright. Raises UserError."""
        return self._once("mask", picture, lambda given: read_picture(given).convert("L"))

    def _painting(self, picture: Picture) -> Image.Image:
        return self._once("style", picture, self._read_painting)

    def _read_painting(self, picture: Picture) -> Image.Image:
        given = self._seen(picture)
        # Shrunk at once, whatever is made of it later: so it makes no difference if a caller has
        # shrunk it already.
        painting = given if self.style_side is None else at_most(given, self.style_side)
        return painting if self.palette is None else with_palette_of(painting, self._seen(self.palette))

    def _seen(self, picture: Picture) -> Image.Image:
        """The picture as `content` gives it. Raises UserError where nothing of it is to be seen."""
        return check_seen(self.content(picture), name_of(picture) or "the style picture")

    def _once(self, kind: str, picture: Picture, read: Callable[[Picture], Image.Image]) -> Image.Image:
        key = (kind, os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else id(picture))
        if key not in self._read:
            self._read[key] = picture, read(picture)  # kept, so that no other gets its id
        return self._read[key][1]

    def style(self, style: Style) -> ReadStyle:
        """A style with all its pictures read. Raises UserError."""
        if isinstance(style, StyleRegions):
            style.check()
            return ReadStyle([self._mixed(each) for each in style.styles], list(map(self.mask, style.masks)))
        return ReadStyle([self._mixed(style)])

    def _mixed(self, style: OneStyle) -> list[tuple[Image.Image, float]]:
        """(picture, share) of all pictures that a style is made of."""
        if isinstance(style, (str, os.PathLike)):  # its pictures are kept: they are known by their ids
            name = os.fspath(style)
            if name not in self._opened:
                self._opened[name] = opened(style)
            style = self._opened[name]
        if not isinstance(style, StyleMix):
            return [(self._painting(style), 1.0)]
        return [
            (picture, share * within)
            for each, share in zip(style.styles, style.shares(), strict=True)
            for picture, within in self._mixed(each)
        ]


def check_seen(picture: Image.Image, name: str) -> Image.Image:
    """The picture. Raises UserError where all of it is transparent."""
    if picture.mode == "RGBA" and picture.getextrema()[-1] == (0, 0):
        raise UserError(f"{name}: all of it is transparent, so there is no style to see")
    return picture


def read_content(picture: Picture) -> Image.Image:
    """As `read_picture`, but RGBA where some of it is transparent. Raises UserError."""
    return read_picture(picture, keep_alpha=True)


def read_picture(picture: Picture, keep_alpha: bool = False) -> Image.Image:
    """A picture as RGB, upright; one that was only opened is read from its file now. Raises
    UserError, also for what is no picture."""
    place = elsewhere(picture)
    if place is not None:
        image = load_image(place, keep_alpha=keep_alpha)
    elif isinstance(picture, (str, os.PathLike)):
        image = load_image(picture, keep_alpha=keep_alpha)
    elif isinstance(picture, Image.Image):
        with _SHARED:
            return load_opened(picture, name_of(picture) or "the picture", keep_alpha)
    elif is_open_file(picture):
        with _SHARED:
            image = load_image(picture, keep_alpha=keep_alpha)
    else:
        given = image_of(picture)
        if given is None:
            raise UserError(
                "pictures are paths, PIL's, files open for reading bytes, arrays or tensors, several in lists of them; got "
                f"{type(picture).__name__}. Arrays: {TAKEN}"
            )
        return load_opened(given, "the picture", keep_alpha)
    vars(image)["filename"] = name_of(picture)  # as Pillow has it of a file that it has only opened
    return image


def to_opaque(picture: Image.Image) -> Image.Image:
    """The picture over white, where some of it is transparent."""
    return picture if picture.mode == "RGB" else to_rgb(picture)


def name_of(picture: Picture) -> str:
    """The file of a picture; nothing for one that came from none."""
    if elsewhere(picture) is not None:
        return str(picture)
    if isinstance(picture, (str, os.PathLike)):
        return os.fspath(picture)
    if isinstance(picture, Image.Image):
        return str(getattr(picture, "filename", ""))
    return name_of_file(picture) if is_open_file(picture) else ""


def mask_array(mask: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
    """(H, W) in [0, 1] from a grey picture, scaled to `size` (width, height). Raises UserError for
    another aspect."""
    array: NDArray[np.float32] = np.asarray(fitted_mask(mask, size), dtype=np.float32) / np.float32(255)
    return array


def fitted_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A grey picture scaled to `size` (width, height). Raises UserError for another aspect."""
    check_mask(mask.size, size)
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def check_mask(mask: tuple[int, int], size: tuple[int, int]) -> None:
    """Raises UserError for a mask of another aspect than a picture's, both (width, height)."""
    if not same_aspect(mask, size):
        raise UserError(
            f"a mask of {mask[0]}x{mask[1]} pixels does not have the picture's aspect, {size[0]}x{size[1]}"
        )


def same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two pictures of these (width, height) have about the same aspect."""
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= ASPECT_TOLERANCE


def _check_list(pictures: Any, name: str) -> None:
    if not isinstance(pictures, (list, tuple)):
        raise UserError(f"{name} must be a list of pictures, got a {type(pictures).__name__}")
