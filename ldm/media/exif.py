"""What cameras write into a picture's file: which way is up, and what may be kept of the rest."""

import logging
from typing import Any

from PIL import ExifTags, Image

log = logging.getLogger(__name__)

MAX_BYTES = 60_000  # JPEG has place for 65,533
_ORIENTATION = ExifTags.Base.Orientation
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# All else in the first directory says how the pixels of that very file lie in it.
_KEPT = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
# Of what cameras tell about the shot, what is no longer true of a result, or makes no sense there.
_LEFT_OUT: tuple[int, ...] = (
    ExifTags.Base.ColorSpace,
    ExifTags.Base.ExifImageWidth,
    ExifTags.Base.ExifImageHeight,
    ExifTags.Base.ExifInteroperabilityOffset,
    ExifTags.Base.MakerNote,
    ExifTags.IFD.Interop,
)


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as it is to be shown; itself where it is, or where that cannot be
    understood. Raises Pillow's errors for a picture that is broken itself."""
    image.load()
    # Not by Pillow's exif_transpose, which also writes the data anew, and leaves a picture as it lies
    # where any of them are broken.
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def is_turned(image: Image.Image) -> bool:
    """Whether width and height of the opened picture change places when it is upright."""
    return _orientation(image) in (5, 6, 7, 8)


def _orientation(image: Image.Image) -> Any:
    """What is written of it; 1, upright, where nothing can be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever is written there: the pixels are right
        return 1


def kept_of(image: Image.Image, name: str) -> bytes | None:
    """Camera, date, place, author and the like of an opened picture, for a result of it; None where
    there are none. `name` is for the warning when they cannot be kept."""
    try:
        given, kept = image.getexif(), Image.Exif()
        for tag in _KEPT:
            if isinstance(given.get(tag), str):
                kept[tag] = _as_written(given[tag])
        for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            values = {
                tag: _as_written(value)
                for tag, value in given.get_ifd(directory).items()
                if tag not in _LEFT_OUT
            }
            if values:
                kept[directory] = values
        if not len(kept):
            return None
        data = kept.tobytes()
        if len(data) > MAX_BYTES:
            raise ValueError(f"{len(data)} bytes, more than files have place for")
        return data
    except Exception as error:  # Pillow has many for what cameras write
        log.warning("%s: its EXIF data cannot be kept (%s)", name, " ".join(str(error).split()))
        return None


def _as_written(value: Any) -> Any:
    """Text as the bytes that it was in the file: Pillow reads them as Latin-1, and writes all but
    ASCII as question marks."""
    return value.encode("latin-1") if isinstance(value, str) else value
