"""Styles in files: one style made of any number of pictures, with their weights, a note on their
licence, and a thumbnail.

The pictures themselves are in it, so that it goes with every checkpoint, look and size: what a
network makes of them depends on all three. The file is a safetensors file of pictures as WebP, and
holds nothing that could be run.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.numpy import save_file

from ldm.checkpoint.files import checked_header
from ldm.checkpoint.hashes import KEY, NONE_YET, seal
from ldm.checkpoint.headers import METADATA, header_text
from ldm.errors import UserError
from ldm.files import check_folder, written_whole
from ldm.media.images import NamedBytes, at_most, load_image
from ldm.media.rgb import to_rgb
from ldm.text import one_line

SUFFIX = ".safetensors"
SIDE = 640  # of the pictures kept, at most: the shorter one, in pixels
THUMBNAIL_SIDE = 256
MAX_BYTES = 512 * 2**20
_FORMAT = "artfusion style 1"
_QUALITY = 92


@dataclass(frozen=True)
class SavedStyle:
    """pictures: RGB, or RGBA where what is transparent does not count. weights: of each, from 0 on,
    of sum 1. names: of the pictures. note: whose they are, and what may be done with them."""

    pictures: Sequence[Image.Image]
    weights: Sequence[float]
    names: Sequence[str]
    note: str = ""

    @property
    def thumbnail(self) -> Image.Image:
        """A square of upright strips of up to four of the pictures, those of most weight."""
        heaviest = sorted(range(len(self.pictures)), key=lambda i: -self.weights[i])[:4]
        square, edges = Image.new("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE)), len(heaviest)
        for place, i in enumerate(heaviest):
            left, right = (THUMBNAIL_SIDE * edge // edges for edge in (place, place + 1))
            # Of an upright painting the upper part: heads are there.
            strip = ImageOps.fit(self.pictures[i], (right - left, THUMBNAIL_SIDE), centering=(0.5, 0.2))
            square.paste(to_rgb(strip), (left, 0))
        return square


def is_saved_style(path: object) -> bool:
    """Whether this is the path of a saved style, by its ending alone."""
    return isinstance(path, (str, os.PathLike)) and Path(path).suffix.lower() == SUFFIX


def check_target(path: Path) -> Path:
    """`path` if a style can be saved there, else UserError; nothing is made yet."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a file name such as {path / f'my-style{SUFFIX}'}")
    if not is_saved_style(path):
        raise UserError(f"{path}: styles are saved in files whose names end with {SUFFIX}")
    check_folder(path.parent, path)
    return path


def save_style(style: SavedStyle, path: Path, side: int = SIDE) -> None:
    """Write a style whole or not at all, its pictures no larger than `side` pixels (shorter side).
    Raises UserError."""
    check_target(path)
    tensors = {f"picture.{i}": _packed(at_most(picture, side)) for i, picture in enumerate(style.pictures)}
    tensors["thumbnail"] = _packed(style.thumbnail)
    metadata = {
        "format": _FORMAT,
        "names": json.dumps(list(style.names)),
        "weights": json.dumps(list(style.weights)),
        "note": style.note,
        KEY: NONE_YET,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as aside:
            save_file(tensors, aside, metadata)
            seal(aside, header_text(aside))
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error})") from error


def load_style(path: str | Path) -> SavedStyle:
    """The style in a file. Raises UserError for a file that holds none."""
    metadata, packed = _read(path, "picture.")
    weights, names = _listed(metadata, "weights"), _listed(metadata, "names")
    if not packed or not len(weights) == len(names) == len(packed) or not all(map(_is_weight, weights)):
        raise UserError(f"{path}: the style is broken: {len(packed)} pictures, {len(weights)} weights")
    return SavedStyle([_unpacked(path, each) for each in packed], weights, names, metadata.get("note", ""))


def load_thumbnail(path: str | Path) -> tuple[Image.Image, str]:
    """(a picture of what the style in a file is like, the note on its pictures). Raises
    UserError."""
    metadata, packed = _read(path, "thumbnail")
    if not packed:
        raise UserError(f"{path}: the style is broken: there is no thumbnail in it")
    return _unpacked(path, packed[0]), metadata.get("note", "")


def _read(path: str | Path, prefix: str) -> tuple[dict[str, str], list[NDArray[np.uint8]]]:
    """(metadata, what has a name that begins so, in the order in which it was saved)."""
    path = Path(path)
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: {path.stat().st_size >> 20} MB are more than a saved style has")
    metadata = checked_header(path).get(METADATA, {})
    if metadata.get("format") != _FORMAT:
        raise UserError(
            f"{path}: is no saved style, which `artfusion style save` makes of pictures; a model goes with --checkpoint"
        )
    try:
        with safe_open(path, "numpy") as file:
            names = sorted((name for name in file.keys() if name.startswith(prefix)), key=_number)
            return metadata, [file.get_tensor(name) for name in names]
    except Exception as error:  # damaged bytes can raise anything in the reader
        raise UserError(f"{path}: a broken saved style ({one_line(error)})") from error


def _listed(metadata: dict[str, str], key: str) -> list[Any]:
    """A list in the metadata, or an empty one for what is none."""
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, TypeError, RecursionError):
        return []
    return value if isinstance(value, list) else []


def _number(name: str) -> int:
    digits = name.rpartition(".")[2]
    return int(digits) if digits.isdecimal() else 0


def _is_weight(weight: object) -> bool:
    return isinstance(weight, (int, float)) and math.isfinite(weight) and weight >= 0


def _packed(picture: Image.Image) -> NDArray[np.uint8]:
    buffer = BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, method=6)
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


def _unpacked(path: str | Path, packed: NDArray[np.uint8]) -> Image.Image:
    return load_image(NamedBytes(packed.tobytes(), str(path)), keep_alpha=True)
