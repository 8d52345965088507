"""A part of a painting as a style: a rectangle of it, or what is white in a mask.

A part that is no rectangle is a picture with transparency: of a style, what is transparent does not
count.
"""

from pathlib import Path

from PIL import Image, ImageChops

from ldm.errors import UserError
from ldm.pipeline.inputs import Picture, check_mask, name_of, read_content, read_picture
from ldm.pipeline.settings import MIN_SIDE

Box = tuple[int, int, int, int]  # left, top, width, height, in pixels
Part = Box | str | Path  # or a mask's file


def part_of(picture: Picture, part: Part | None) -> Image.Image:
    """A style picture, RGB or, where some of it does not count, RGBA, cut to a part of it, if one is
    given. Raises UserError."""
    whole = read_content(picture)
    if part is None:
        return whole
    if isinstance(part, tuple):
        return _cut(picture, whole, part)
    return _white_part(whole, part)


def _cut(picture: Picture, whole: Image.Image, box: Box) -> Image.Image:
    left, top, width, height = box
    if left + width > whole.width or top + height > whole.height:
        raise UserError(
            f"{name_of(picture) or 'the picture'}: {whole.width}x{whole.height} pixels have no part of {width}x{height} at {left},{top}"
        )
    return whole.crop((left, top, left + width, top + height))


def _white_part(whole: Image.Image, file: str | Path) -> Image.Image:
    """Cut to the smallest rectangle that holds all that is not black in the mask: so a white
    rectangle is the same as its four numbers."""
    mask = read_picture(file).convert("L")
    try:
        check_mask(mask.size, whole.size)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    mask = mask if mask.size == whole.size else mask.resize(whole.size, Image.Resampling.BILINEAR)
    box = mask.getbbox()
    if box is None:
        raise UserError(f"{file}: all of the mask is black; whiten the part of the painting that is wanted")
    if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
        raise UserError(
            f"{file}: the part of the painting that is not black, {box[2] - box[0]}x{box[3] - box[1]} pixels, "
            f"must be at least {MIN_SIDE} pixels wide and high"
        )
    return _seen_through(whole.crop(box), mask.crop(box))


def _seen_through(picture: Image.Image, mask: Image.Image) -> Image.Image:
    if mask.getextrema() == (255, 255):
        return picture
    given = picture.convert("RGBA")
    given.putalpha(ImageChops.multiply(given.getchannel("A"), mask))
    return given
