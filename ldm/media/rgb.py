"""Pictures of any Pillow mode as sRGB, strip by strip: beside the picture and the result, no more
than a strip is there at a time."""

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageCms

from ldm.errors import UserError

STRIP_PIXELS = 2**20
_WITH_ALPHA = ("LA", "PA", "RGBA", "RGBa", "La")
# What sRGB's profiles call themselves.
_SRGB = ("sRGB IEC61966-2", "sRGB built-in", "sRGB2014", "c2")
_FLOAT_SCALES = (1.0, 255.0, 65535.0)  # what may be white in a picture of floats
# Of white: so far above are highlights, and so far below black is what a filter undershoots ...
_HIGHLIGHTS, _UNDERSHOOT = 2.0, 1 / 16
# ... and by none brighter than this no scale above 1 can be told from the one below.
_DARKEST = 1 / 16

Convert = Callable[[Image.Image], Image.Image]


def to_rgb(image: Image.Image, keep_alpha: bool = False) -> Image.Image:
    """Any Pillow mode as sRGB, a picture of its own: colours by the profile that comes with them,
    16-bit scaled to 8, CMYK and palettes converted, transparency over white, or with `keep_alpha` as
    RGBA, where there is any.

    White is 65535 in 16 bits; 255 or, where there are greater numbers, 65535 in 32 bits; and of
    floats 1, 255 or 65535, see `_white_of_floats`. Raises UserError for numbers that fit none.
    """
    image.load()
    if _is_deep(image):
        return _in_strips(image, "RGB", _from_deep_grey(image))
    if not has_alpha(image):
        return _in_strips(image, "RGB", _srgb_of(image, "RGB" if image.mode == "P" else image.mode))
    # the profile of a grey picture is for grey
    in_srgb = Image.Image.copy if image.mode in ("LA", "La") else _srgb_of(image, "RGB")
    if keep_alpha and any(np.asarray(_rgba(strip))[..., 3].min() < 255 for _, strip in _strips(image)):
        return _in_strips(image, "RGBA", lambda strip: _recoloured(_rgba(strip), in_srgb))
    return _in_strips(image, "RGB", lambda strip: _on_white(_recoloured(_rgba(strip), in_srgb)))


def has_alpha(image: Image.Image) -> bool:
    """Whether some of the picture can be transparent."""
    return image.mode in _WITH_ALPHA or "transparency" in image.info


def _is_deep(image: Image.Image) -> bool:
    """Whether it is grey in more than 8 bits, which Pillow clips at 255 instead of scaling them."""
    return image.mode.startswith("I") or image.mode == "F"


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(row of the first line, strip) from top to bottom."""
    rows = max(1, STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_strips(image: Image.Image, mode: str, convert: Convert) -> Image.Image:
    result = Image.new(mode, image.size)
    for top, strip in _strips(image):
        result.paste(convert(strip), (0, top))
    return result


def _rgba(strip: Image.Image) -> Image.Image:
    return (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")


def _recoloured(rgba: Image.Image, in_srgb: Convert) -> Image.Image:
    coloured = in_srgb(rgba.convert("RGB"))
    coloured.putalpha(rgba.getchannel("A"))
    return coloured


def _on_white(rgba: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _srgb_of(image: Image.Image, mode: str) -> Convert:
    """What makes sRGB of strips of this mode by the colour profile in a picture's info; one that
    cannot be understood does not count."""
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes):
        try:
            given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if not ImageCms.getProfileDescription(given).startswith(_SRGB):
                transform = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
                return lambda strip: transform.apply(strip if strip.mode == mode else strip.convert(mode))
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return lambda strip: strip.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Convert:
    scale = np.float32(255 / _white_of(image))

    def scaled(strip: Image.Image) -> Image.Image:
        grey = np.clip(np.asarray(strip, dtype=np.float32) * scale, 0, 255)
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")

    return scaled


def _white_of(image: Image.Image) -> float:
    """The number that means white. Raises UserError where there is none."""
    if image.mode.startswith("I;16"):
        return 65535.0
    strips = (np.asarray(strip) for _, strip in _strips(image))
    extrema = [(grey.min(), grey.max()) for grey in strips] or [(0.0, 0.0)]
    low, high = float(np.min(extrema)), float(np.max(extrema))  # NaN where there is one
    if image.mode == "F":
        return _white_of_floats(low, high)
    if low < 0 or high > 65535:
        raise UserError(
            f"grey numbers from {low:.0f} to {high:.0f} are more than 16 bits; save it with 8 or 16 bits"
        )
    return 255.0 if high <= 255 else 65535.0


def _white_of_floats(low: float, high: float) -> float:
    """The scale of a picture of floats between these two: 1, 255 or 65535, whichever is at most 16
    times as bright as the brightest of it, and at least half as bright: what is above it, or a
    little below 0, is clipped. Raises UserError for NaN, infinity, and numbers that fit none."""
    if not np.isfinite([low, high]).all():
        raise UserError("not all of its numbers are finite (NaN or infinity); save it with 8 or 16 bits")
    for white in _FLOAT_SCALES:
        bright_enough = white == 1 or high > _DARKEST * white
        if bright_enough and high <= _HIGHLIGHTS * white and low >= -_UNDERSHOOT * white:
            return white
    raise UserError(
        f"its floats, from {low:g} to {high:g}, are on none of the scales 0 to 1, 0 to 255 and 0 to 65535; "
        "save it with 8 or 16 bits"
    )
