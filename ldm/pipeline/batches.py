"""A painter for engines that spread work over many machines: rows in, rows out, a batch at a time.

It knows of no engine. Ray Data takes it as it is:

    painter = BatchOptions({"klimt": "klimt.jpg"}, Settings(look="sampled", size=256))
    photos = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
    painted = photos.map_batches(BatchPainter, fn_constructor_args=[painter], batch_size=64)
    painted.write_parquet("s3://bucket/painted")

`artfusion stylize` paints folders with it, on one machine and on many (`ldm.pipeline.portions`).
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm import __version__
from ldm.errors import UserError, did_you_mean, in_one_line
from ldm.files import bytes_hash
from ldm.media.arrays import TAKEN, image_of
from ldm.media.images import NamedBytes, at_most, encoded, exif_of, load_image
from ldm.media.rgb import to_rgb
from ldm.pipeline.batch_options import BatchOptions
from ldm.pipeline.columns import columns_of
from ldm.pipeline.inputs import Style, with_paintings
from ldm.pipeline.parts import part_of
from ldm.pipeline.provenance import METADATA_KEY, made_from, metadata_saying, painted_with
from ldm.pipeline.recolouring import STYLE_SIDE, Recolourer
from ldm.pipeline.settings import Settings
from ldm.pipeline.together import joined

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import StyleTransferPipeline

STYLES_KEPT = 256  # read, about 200 kB each at 256 pixels
READERS = 4  # threads that decode and encode files while others do
INPUTS = ("bytes", "image")
OUTPUTS = ("picture", "metadata", "error")


@dataclass(frozen=True)
class Row:
    """A picture to paint. content: a picture file's bytes, or an array of it (`arrays.TAKEN`). name: what it is
    called, a path or url. style: one of the options' by name. settings: how to paint it. suffix: of
    the result's format."""

    content: bytes | NDArray[np.uint8]
    name: str
    style: str
    settings: Settings
    suffix: str = ".png"


@dataclass(frozen=True)
class Ready:
    """A row that is read: the photo, the style, what the result's metadata say of the two."""

    row: Row
    content: Image.Image
    style: Style
    said: Mapping[str, Any]
    exif: bytes | None


@dataclass(frozen=True)
class Painted:
    """A row that is over: the result as a file's bytes and how it was made (JSON), or what went
    wrong. is_unread: the trouble is with a file, which other rows may have, too. may_pass: it may be
    over by the next time."""

    picture: bytes | None
    metadata: str | None
    problem: str | None
    seconds: float
    is_unread: bool = False
    may_pass: bool = False


@dataclass(frozen=True)
class _Photo:
    given: bytes | NDArray[np.uint8]  # kept, so that its id stays its own
    picture: Image.Image
    hash: str
    exif: bytes | None


class RowPainter:
    """Paints rows by `BatchOptions`, whatever is wrong with some of its styles. The model is read when
    the first row is there, and kept."""

    def __init__(self, options: BatchOptions):
        self.options = options
        self._styles = lru_cache(STYLES_KEPT)(self._read_style)
        self._known: dict[int, _Photo | UserError] = {}
        self._pool = ThreadPoolExecutor(READERS)

    @cached_property
    def pipeline(self) -> "StyleTransferPipeline":
        """Raises UserError where there is none."""
        threads = self.options.threads
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        return self.options.model.load(settle_threads=threads is None)

    def painter_of(self, settings: Settings) -> "StyleTransferPipeline | Recolourer":
        """What makes pictures with these settings. Raises UserError."""
        return self.pipeline if settings.paints else Recolourer()

    def together(self, settings: Settings) -> int:
        """How many pictures are painted at once, at most: fine ones one by one, so that each is
        written before the next is begun."""
        return 1 if settings.has_brush else self.options.batch_size

    def description(self, settings: Settings) -> dict[str, Any]:
        """What a result's metadata say, besides its own content and style."""
        if not settings.paints:
            return settings.values() | {"version": __version__} | dict(self.options.said)
        painter = self.pipeline.painter
        settings = settings.but(**{name: painter.value(name, settings) for name in settings.left_to_model})
        return (
            painted_with(settings, painter.precision)
            | self.options.model.description
            | dict(self.options.said)
        )

    def style(self, name: str, settings: Settings) -> Style | UserError:
        """A style of the options with its pictures read, cut to the part that counts and as small as
        the pipeline takes them; or what is wrong with it."""
        side = settings.style_side(self.pipeline.painter.native_size) if settings.paints else STYLE_SIDE
        return self._styles(name, side)

    def _read_style(self, name: str, side: int) -> Style | UserError:
        try:
            # Smaller ones are left to the pipeline, which sees first whether they can be enlarged.
            part = self.options.part
            return with_paintings(
                self.options.styles[name], lambda picture: at_most(part_of(picture, part), side)
            )
        except UserError as error:
            return error

    def read(self, rows: Sequence[Row]) -> list[Ready | UserError]:
        """The rows with all that they are painted from; what cannot be read as what is wrong with
        it."""
        photos = self._photos(rows)
        return [self._ready(row, photos[id(row.content)]) for row in rows]

    def _ready(self, row: Row, photo: _Photo | UserError) -> Ready | UserError:
        if isinstance(photo, UserError):
            return photo
        styles = self.options.styles
        if row.style not in styles:
            return UserError(f"{row.name}: there is no style {row.style!r}{did_you_mean(row.style, styles)}")
        style = self.style(row.style, row.settings)
        if isinstance(style, UserError):
            return style
        try:
            said = made_from(PurePath(row.name).name, photo.hash, row.style, styles[row.style])
        except OSError as error:
            return UserError(str(error))
        return Ready(row, photo.picture, style, said, photo.exif)

    def _photos(self, rows: Sequence[Row]) -> dict[int, _Photo | UserError]:
        """By the ids of what the rows hold; what the rows before ended with is not read again."""
        new = {id(row.content): row for row in rows if id(row.content) not in self._known}
        photos = self._known | dict(zip(new, self._pool.map(self._photo, new.values())))
        last = id(rows[-1].content) if rows else 0
        self._known = {key: photo for key, photo in photos.items() if key == last}
        return photos

    def _photo(self, row: Row) -> _Photo | UserError:
        try:
            if not isinstance(row.content, bytes):
                picture = _from_array(row)
                pixels = row.content if isinstance(row.content, np.ndarray) else picture
                return _Photo(row.content, picture, bytes_hash(pixels.tobytes()), None)
            # RGBA where some of it is transparent
            picture = load_image(NamedBytes(row.content, row.name), keep_alpha=True)
            vars(picture)["filename"] = row.name  # as Pillow has it
            exif = exif_of(NamedBytes(row.content, row.name)) if self.options.keep_exif else None
            return _Photo(row.content, picture, bytes_hash(row.content), exif)
        except UserError as error:
            return error

    def paint(self, ready: Sequence[Ready]) -> list[Painted]:
        """The rows, which can be painted together (`ldm.pipeline.together`), painted, in their
        order."""
        size = self.together(ready[0].row.settings) if ready else 1
        batches = [ready[start : start + size] for start in range(0, len(ready), size)]
        return [one for batch in batches for one in self._paint_batch(batch)]

    def _paint_batch(self, batch: Sequence[Ready]) -> list[Painted]:
        painted = self._try(batch)
        if not isinstance(painted, str):
            return painted
        if len(batch) == 1:
            return [Painted(None, None, painted, 0.0)]
        # One picture's trouble is not the others'; and alone they need less memory.
        return [self._paint_batch([one])[0] for one in batch]

    def _try(self, batch: Sequence[Ready]) -> list[Painted] | str:
        """What went wrong as text: an error would keep the memory of its batch."""
        options, began = self.options, time.monotonic()
        settings = joined([one.row.settings for one in batch])
        try:
            pictures = self.painter_of(settings)(
                [one.content for one in batch],
                [one.style for one in batch],
                batch_size=self.together(settings),
                settings=settings,
                keep=options.keep,
                palette=options.palette,
                not_style=options.not_style,
            )
            assert isinstance(pictures, list)  # as several were asked for
            metadata = [metadata_saying({**one.said, **self.description(one.row.settings)}) for one in batch]
            files = list(self._pool.map(_encoded, batch, pictures, metadata))
        except Exception as error:  # whatever it is, it need not be the others'
            return in_one_line(error)
        seconds = (time.monotonic() - began) / len(batch)
        return [Painted(file, said[METADATA_KEY], None, seconds) for file, said in zip(files, metadata)]


class BatchPainter(RowPainter):
    """Paints batches of rows by columns. Raises UserError at once for options whose files are not
    there, see `BatchOptions.found`."""

    def __init__(self, options: BatchOptions):
        super().__init__(options.found())

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        """A batch of rows, by columns (`ldm.pipeline.columns.TAKEN`), painted.

        Taken: `bytes` (picture files) or `image` (arrays, see `ldm.media.arrays.TAKEN`); if there, `path`, which
        errors and metadata name, and `style`, needed where there are several. Given: `picture` (a
        PNG file's bytes, None where it failed), `metadata` (JSON), `error` (a line, or None), and
        whatever other columns there were. Raises UserError where a column is missing, has the
        name of one that is given, or another length than the others.
        """
        columns = columns_of(batch)
        for name in OUTPUTS:
            if name in columns:
                raise UserError(f"a batch has a column {name!r}, which the results are to have; rename it")
        ready = self.read(self._rows(columns))
        painted = iter(self.paint([one for one in ready if isinstance(one, Ready)]))
        results = [
            next(painted) if isinstance(one, Ready) else Painted(None, None, str(one), 0.0) for one in ready
        ]
        kept = {name: values for name, values in columns.items() if name not in INPUTS}
        return kept | {
            "picture": [one.picture for one in results],
            "metadata": [one.metadata for one in results],
            "error": [one.problem for one in results],
        }

    def _rows(self, columns: Mapping[str, Sequence[Any]]) -> list[Row]:
        given = next((columns[name] for name in INPUTS if name in columns), None)
        if given is None:
            has = ", ".join(map(str, columns)) or "none"
            raise UserError(f"a batch needs a column `bytes` or `image`; it has {has}")
        if "style" not in columns and len(self.options.styles) > 1:
            raise UserError("a batch needs a column `style` where the options have several styles")
        styles = columns.get("style", [next(iter(self.options.styles))] * len(given))
        paths = columns.get("path", [f"row {i}" for i in range(len(given))])
        contents = [bytes(one) if isinstance(one, (bytearray, memoryview)) else one for one in given]
        rows = zip(contents, map(str, paths), map(str, styles), strict=True)
        return [Row(*row, self.options.settings) for row in rows]


def _encoded(one: Ready, picture: Image.Image, metadata: dict[str, str]) -> bytes:
    try:
        return encoded(picture, one.row.suffix, metadata, one.exif)
    except (OSError, ValueError) as error:  # Pillow has both for what a format cannot hold
        raise UserError(f"{one.row.name}: {one.row.suffix} cannot hold the result ({error})") from error


def _from_array(row: Row) -> Image.Image:
    try:
        picture = image_of(row.content)
    except UserError as error:
        raise UserError(f"{row.name}: {error}") from error
    if picture is None:
        raise UserError(f"{row.name}: neither a picture file's bytes nor an array: {TAKEN}")
    return to_rgb(picture, keep_alpha=True)
