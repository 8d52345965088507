"""The starter library: saved styles that come along, known by their names."""

import os
from functools import cache
from pathlib import Path
from typing import Any

from ldm.errors import UserError, did_you_mean
from ldm.files import ROOT
from ldm.media.saved_styles import SUFFIX, is_saved_style

FOLDER = ROOT / "data/library"


@cache
def library() -> dict[str, Path]:
    """The files of all its styles, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob(f"*{SUFFIX}"))}


def of_library(name: str | os.PathLike[str]) -> Path | None:
    """The file of the library's style of this name, unless something else is there by that name."""
    return None if os.path.lexists(name) else library().get(os.fspath(name))


def saved_style(style: Any) -> Path | None:
    """The file of a saved style, by its path or its name in the library; None for a style that is
    no saved one."""
    if is_saved_style(style):
        return Path(style)
    return of_library(style) if isinstance(style, (str, os.PathLike)) else None


def check_no_saved_style(picture: Any) -> None:
    """Raises UserError for a saved style, where a single picture is wanted."""
    if saved_style(picture):
        raise UserError(f"{picture}: is a saved style, where a single picture is wanted")


def hint(name: str) -> str:
    """The end of a message that there is no such file: the styles of the library that may have been
    meant."""
    return did_you_mean(name, library())
