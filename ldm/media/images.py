"""Pictures in and out: any readable file becomes correct RGB, and nothing half-written is ever left
behind."""

import importlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeGuard, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ldm.errors import UserError
from ldm.files import check_folder, written_whole
from ldm.media.exif import is_turned, kept_of, upright
from ldm.media.places import Place, elsewhere, place_of, read_bytes, write_bytes
from ldm.media.quiet import hush_libtiff, unwarned
from ldm.media.rgb import to_rgb
from ldm.text import printable

MAX_PIXELS = 80_000_000  # below Pillow's own warning limit
# What reading a picture takes at most, what its decoder and the result do together.
MAX_BYTES = 1_600_000_000
LONGEST = 16  # times its shorter side: no picture for looking at is longer
_BYTES_A_PIXEL, _THOSE_OF_JPEG2000 = 20, 24
# Only these are tried: Pillow hands some others, such as EPS, to programs outside.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jp2", ".avif", ".heic", ".heif",
)  # fmt: skip
WITH_ALPHA = (".png", ".webp", ".tif", ".tiff", ".avif")
WITH_EXIF = (".jpg", ".jpeg", *WITH_ALPHA)
_OF_16_BITS = ("PNG", "PPM", "JPEG2000")  # at most; some versions of Pillow have them as 32
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class NamedBytes(io.BytesIO):
    """A picture file's bytes, with the name that errors are to give."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


# A file: its path or url, or it itself open for reading bytes.
Source: TypeAlias = str | os.PathLike[str] | Place | BinaryIO


def load_image(
    source: Source,
    draft_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    keep_alpha: bool = False,
) -> Image.Image:
    """The picture in a file as sRGB, upright by its EXIF rotation, transparency laid on white, or
    with `keep_alpha`, where there is any, as RGBA.

    An open `source` has its `name` in errors, and stays open. `draft_size` lets the JPEG decoder work at a reduced scale whose sides are
    still at least that many pixels. Raises UserError for a missing file, one that is no picture, a
    broken one, or one of more than `max_pixels`, or that would take more than MAX_BYTES of memory.
    """
    with _opened(source, max_pixels) as image:
        if draft_size is not None:
            image.draft("RGB", (draft_size, draft_size))
        return _in_rgb(image, keep_alpha)


def load_opened(image: Image.Image, name: str, keep_alpha: bool = False) -> Image.Image:
    """A picture that Pillow has opened, as `load_image` gives one; `name` is for errors. Of what
    several threads have, only one may load at a time. Raises UserError."""
    with _errors_of(name), unwarned():
        check_pixels(image.size)
        if image.format == "TIFF":
            hush_libtiff()
        return _in_rgb(image, keep_alpha)


def _in_rgb(image: Image.Image, keep_alpha: bool) -> Image.Image:
    stated = sorted(image.size)
    image.load()
    if sorted(image.size) != stated:  # of HEIC, what is in the file may be of another size than its head
        raise UserError("the picture is broken: it is not of the size that its head states")
    return to_rgb(_as_deep_as_its_file(upright(image), image.format), keep_alpha)


@contextmanager
def _opened(given: Source, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The picture in a file, of which only the head is read by then; elsewhere, all of it. Raises
    UserError, also for what is found to be broken within."""
    source = _here(given)
    with _errors_of(str(source) if isinstance(source, Path) else name_of_file(source)), unwarned():
        _check_file(source)
        _have_plugins(source)
        with Image.open(source, formats=_formats()) as image:
            check_pixels(image.size, min(max_pixels, _most_pixels(image.format)))
            if image.format == "TIFF":
                hush_libtiff()
            yield image


def _here(source: Source) -> Path | BinaryIO:
    """A file that Pillow can open. Raises UserError where it has to be fetched, and cannot be."""
    source = place_of(source) if isinstance(source, str) else source
    place = elsewhere(source)
    if place is not None:
        return NamedBytes(read_bytes(place), str(place))
    return Path(os.fsdecode(source)) if isinstance(source, (str, os.PathLike)) else cast(BinaryIO, source)


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """What goes wrong in the body as a UserError in one line, which gives the picture's name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: too many pixels to open safely ({_told(error)})") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name}: not a picture that can be read") from error
    except MemoryError as error:
        raise UserError(f"{name}: there is not enough memory for it") from error
    except Exception as error:  # Pillow has all kinds for what is broken
        raise UserError(f"{name}: the picture is broken or cut short ({_told(error)})") from error


def _told(error: Exception) -> str:
    return printable(" ".join(str(error).split()), 160)


def _as_deep_as_its_file(image: Image.Image, format: str | None) -> Image.Image:
    """With 16 bits, where it has them in its file, which Pillow has as 32."""
    return image.convert("I;16") if image.mode == "I" and format in _OF_16_BITS else image


def is_open_file(given: object) -> TypeGuard[BinaryIO]:
    """Whether it is something to be read."""
    return hasattr(given, "read")


def name_of_file(file: BinaryIO) -> str:
    """What errors call an open file."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else "the picture in an open file"


def load_square(path: str | Path, size: int) -> Image.Image:
    """The central square of a picture at `size` x `size` pixels. Raises UserError if it cannot be
    read."""
    return ImageOps.fit(load_image(path), (size, size))


def _check_file(source: Path | BinaryIO) -> None:
    """Raises UserError where there is no file, or nothing in it."""
    if not isinstance(source, Path):
        if isinstance(source, io.TextIOBase):
            raise UserError("the file is open as text; open it for reading bytes ('rb')")
        if not source.seekable():
            raise UserError("the file cannot be read twice; give io.BytesIO of what is in it")
        length = source.seek(0, os.SEEK_END)
        source.seek(0)
    elif os.path.isfile(source):  # unlike Path's, false for a name that is too long
        length = source.stat().st_size
    else:
        raise UserError("is a folder, not a picture" if os.path.isdir(source) else "no such file")
    if length == 0:
        raise UserError("the file is empty (0 bytes)")


def check_pixels(size: tuple[int, int], limit: int = MAX_PIXELS) -> None:
    """Raises UserError for a picture of this (width, height) where it is too large."""
    if size[0] * size[1] > limit:
        raise UserError(
            f"{size[0]}x{size[1]} pixels are more than the limit of {limit}; make it smaller first"
        )


def _most_pixels(format: str | None) -> int:
    """So many that reading them takes no more than MAX_BYTES."""
    return MAX_BYTES // (_THOSE_OF_JPEG2000 if format == "JPEG2000" else _BYTES_A_PIXEL)


def _formats() -> list[str]:
    """What of FORMATS this Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _have_plugins(source: Path | BinaryIO) -> None:
    """Have Pillow read what iPhones write, if the file is that. Raises UserError without the package
    for it."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(12)
    else:
        head = source.read(12)
        source.seek(0)
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS:
        return
    try:
        pillow_heif = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise UserError("HEIC pictures need pip install 'artfusion[heic]'") from error
    pillow_heif.register_heif_opener()


def upright_size(source: Source) -> tuple[int, int]:
    """(width, height) of a picture file as it is shown, by its head alone where that will do. Raises
    UserError."""
    with _opened(source) as image:
        if image.format == "TIFF":  # Pillow turns these by itself, some versions as late as on loading
            return upright(image).size
        return image.size[::-1] if is_turned(image) else image.size


def without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(RGB, the transparency of an RGBA picture). What is transparent takes the mean colour of what
    is not, so that nothing foreign is painted at its edges."""
    if image.mode != "RGBA":
        return image, None
    small = np.asarray(sampled(image, 256), dtype=np.float64)  # large ones would take gigabytes
    colours, shares = small[..., :3], small[..., 3:]
    mean = (colours * shares).sum(axis=(0, 1)) / max(shares.sum(), 1.0)
    ground = Image.new("RGBA", image.size, tuple(round(value) for value in mean))
    return Image.alpha_composite(ground, image).convert("RGB"), image.getchannel("A")


def exif_of(source: Source) -> bytes | None:
    """What may be kept of a picture file's EXIF data (camera, date, place ...) for a result of it;
    None for none. Raises UserError for what is no picture."""
    with _opened(source) as image:
        return kept_of(image, name_of_file(source) if is_open_file(source) else str(source))


def short_side_at(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) scaled so that the shorter one is `side`, aspect kept."""
    scale = side / min(size)
    return max(side, round(size[0] * scale)), max(side, round(size[1] * scale))


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """The picture scaled so that its shorter side is `size` pixels, aspect kept."""
    width, height = short_side_at(image.size, size)
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.LANCZOS)


def at_most(image: Image.Image, size: int) -> Image.Image:
    """The picture, where its shorter side is longer than `size` pixels scaled to it."""
    return resize_short_side(image, size) if min(image.size) > size else image


def sampled(image: Image.Image, size: int) -> Image.Image:
    """The picture for counting its colours: as `at_most`, and its longer side at most LONGEST times
    as long, whatever its aspect."""
    seen = at_most(image, size)
    width, height = (min(side, LONGEST * size) for side in seen.size)
    return seen if seen.size == (width, height) else seen.resize((width, height), Image.Resampling.BOX)


def with_colors_of(colors: Image.Image, brightness: Image.Image) -> Image.Image:
    """The brightness of one picture with the colours of another of the same size (Gatys et al.
    2016, luminance only)."""
    luma = brightness.convert("YCbCr").getchannel("Y")
    _, cb, cr = colors.convert("YCbCr").split()
    return Image.merge("YCbCr", (luma, cb, cr)).convert("RGB")


def save_image(
    image: Image.Image,
    path: str | Place,
    metadata: dict[str, str] | None = None,
    exif: bytes | None = None,
) -> None:
    """Write a picture so that `path` holds the old content or the whole new one, never a part.

    The format follows the extension; one without transparency gets it over white. `metadata` is
    stored as PNG text, `exif` (see `exif_of`) where the format has a place for it. Raises UserError
    when it cannot be written.
    """
    path = check_output(path)
    try:
        content = encoded(image, path.suffix, metadata, exif)
    except (OSError, ValueError) as error:  # Pillow has both for what a format cannot hold
        raise UserError(f"{path}: could not be written ({error})") from error
    write_bytes(path, content)


def encoded(
    image: Image.Image, suffix: str, metadata: dict[str, str] | None = None, exif: bytes | None = None
) -> bytes:
    """The bytes that `save_image` writes into a file with this suffix. Raises OSError or ValueError
    for what the format cannot hold."""
    suffix = suffix.lower()
    options: dict[str, Any] = {"quality": 95} if suffix in (".jpg", ".jpeg", ".webp", ".avif") else {}
    if exif and suffix in WITH_EXIF:
        options["exif"] = exif
    if image.mode == "RGBA" and suffix not in WITH_ALPHA:
        image = to_rgb(image)
    if metadata and suffix == ".png":
        options["pnginfo"] = info = PngInfo()
        for key, value in metadata.items():
            info.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format=Image.registered_extensions()[suffix], **options)
    return buffer.getvalue()


def save_animation(frames: Sequence[Image.Image], path: str | Path, duration: int) -> None:
    """Write a GIF that repeats for ever, each frame shown for `duration` milliseconds; whole or not
    at all. Raises UserError."""
    path = Path(path)
    check_output(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as aside:
            frames[0].save(aside, save_all=True, append_images=frames[1:], duration=duration, loop=0)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: could not be written ({error})") from error


def read_metadata(path: str | Place) -> dict[str, str]:
    """The text stored in a PNG; empty for one that has none or cannot be read."""
    try:
        given = path if isinstance(path, (str, Path)) else io.BytesIO(read_bytes(path))
        with unwarned(), Image.open(given, formats=["PNG"]) as image:
            texts = image.info.items()
            return {str(key): value for key, value in texts if isinstance(value, str)}
    except Exception:  # Pillow has all kinds for what is broken
        return {}


def check_output(path: str | Place) -> Place:
    """`path` if `save_image` can write there, else UserError; call it before long work. Nothing is
    made yet, and nothing asked of other machines."""
    path = place_of(path)
    Image.init()
    writable = {ext for ext, name in Image.EXTENSION.items() if name in Image.SAVE} & set(EXTENSIONS)
    if isinstance(path, Path) and os.path.isdir(path):
        raise UserError(f"{path}: is a folder; give a file name such as {path / 'result.png'}")
    if path.suffix.lower() not in writable:
        raise UserError(f"{path}: unknown picture format {path.suffix!r}; use .png or .jpg")
    if isinstance(path, Path):
        check_folder(path.parent, path)
    return path


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | None]], cell: int | tuple[int, int] = 192, gap: int = 4
) -> Image.Image:
    """Pictures in rows and columns on white, each scaled to fit a cell of that many pixels (a side,
    or width and height); None leaves a gap."""
    width, height = (cell, cell) if isinstance(cell, int) else cell
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap), "white")
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            if image is not None:
                fitted = ImageOps.contain(image, (width, height), Image.Resampling.LANCZOS)
                left, top = (width - fitted.width) // 2 + gap, (height - fitted.height) // 2 + gap
                sheet.paste(fitted, (c * (width + gap) + left, r * (height + gap) + top))
    return sheet
