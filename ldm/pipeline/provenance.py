"""What a result's file says of how it was made, so that a run can tell what is done."""

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ldm.files import bytes_hash, file_hash
from ldm.media.places import Place, elsewhere, place_of, read_bytes
from ldm.pipeline.inputs import Picture, Style, StyleMix, StyleRegions
from ldm.pipeline.settings import Settings

METADATA_KEY = "artfusion"


def metadata_saying(said: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a picture's file that says how it was made."""
    return {"Software": "ArtFusion", METADATA_KEY: json.dumps(said, sort_keys=True)}


def made_from(content_name: str, content_hash: str, style_name: str, style: Style) -> dict[str, Any]:
    """What of that tells one result of a run from the others. Raises OSError or UserError for a style
    whose files cannot be read."""
    return {
        "content": content_name,
        "content_sha256": content_hash,
        "style": style_name,
        "style_sha256": hashes_of(style),
    }


def hashes_of(style: Style) -> list[str]:
    """Of all its files. Raises OSError or UserError for one that cannot be read."""
    return [hash_of(place_of(path)) for path in files_of(style)]


def painted_with(settings: Settings, precision: str) -> dict[str, Any]:
    """What of it the settings are."""
    return {**settings.values(), "steps": settings.number_of_steps, "precision": precision}


def hash_of(place: Place) -> str:
    """Of the file as it is now; one of this machine is read again only if it has changed, since a
    photo and a painting have many results. Raises OSError or UserError."""
    if not isinstance(place, Path):
        return _hash_elsewhere(place)
    status = os.stat(place)
    return _hash_of(str(place), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _hash_of(path: str, *state: int) -> str:
    return file_hash(path)


@lru_cache(maxsize=10_000)
def _hash_elsewhere(place: Place) -> str:
    return bytes_hash(read_bytes(place))


def files_of(style: Style) -> list[str | Place]:
    """The pictures, saved styles and masks of a style that is given by files."""
    masks = style.masks if isinstance(style, StyleRegions) else ()
    given = (*paintings_of(style), *masks)
    files = (path if isinstance(path, (str, Path)) else elsewhere(path) for path in given)
    return [path for path in files if path is not None]


def paintings_of(style: Style) -> list[Picture]:
    """All that a style is made of: pictures, and saved styles as they are."""
    if isinstance(style, (StyleMix, StyleRegions)):
        return [picture for each in style.styles for picture in paintings_of(each)]
    return [style]
