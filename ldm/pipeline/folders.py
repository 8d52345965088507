"""The picture files that people name: files, folders, globs, urls; and names to tell them apart."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from ldm.data.splits import find_files
from ldm.errors import UserError
from ldm.media.images import EXTENSIONS, read_metadata, upright_size
from ldm.media.places import Place, check_file, elsewhere, found_by, is_url, key_of, parts_of, place_of
from ldm.media.saved_styles import SUFFIX, is_saved_style, load_thumbnail
from ldm.pipeline.inputs import OneStyle, Picture, Style, StyleMix, StyleRegions, name_of, read_content
from ldm.pipeline.library import hint, of_library
from ldm.pipeline.provenance import METADATA_KEY
from ldm.text import first_of

log = logging.getLogger(__name__)


def expand(names: Sequence[str], results: str | None = None, styles: bool = False) -> list[Place]:
    """The picture files that these names stand for: files, folders (with all below them), globs
    such as `photos/*.jpg`, or urls of these. styles: saved styles, too, also those of the library by
    their names.

    Each file once, in the order given. Of a folder, hidden files are left out; of folders and
    globs, what earlier runs put into the folder `results`. Raises UserError for a name that stands
    for none.
    """
    found: dict[str, Place] = {}
    for name in names:
        for place in _meant_by(name, results, styles):
            found.setdefault(key_of(place), place)
    return list(found.values())


def found_style(style: Style) -> Style:
    """The style with the files that its names stand for, as `expand` has them; all pictures of a folder
    or pattern are one. Raises UserError for what is not there, or no picture by its head."""
    if isinstance(style, StyleRegions):
        style.check()
        for mask in style.masks:
            check_head(mask)
        return replace(style, styles=[_found_one(each) for each in style.styles])
    return _found_one(style)


def _found_one(style: OneStyle) -> OneStyle:
    if isinstance(style, StyleMix):
        style.shares()  # raises if they do not fit
        return replace(style, styles=[_found_one(each) for each in style.styles])
    if not _is_named(style):
        check_head(style)
        return style
    place = place_of(name_of(style))
    is_folder = isinstance(place, Path) and os.path.isdir(place)
    files = expand([str(place)], styles=not is_folder)
    for file in files:
        check_head(file)
    return StyleMix(files) if is_folder or len(files) > 1 else files[0]


def _is_named(picture: Picture) -> bool:
    """Whether it is given by a path or url."""
    return isinstance(picture, (str, os.PathLike)) or elsewhere(picture) is not None


def check_head(picture: Picture) -> None:
    """Raises UserError for a picture or saved style that cannot be read, by the beginning of its file on
    this machine; elsewhere, for a file that is not there."""
    place = elsewhere(picture)
    if place is not None:
        check_file(place)
    elif is_saved_style(picture):
        load_thumbnail(name_of(picture))
    elif isinstance(picture, (str, os.PathLike)):
        upright_size(picture)
    else:
        read_content(picture)


def _meant_by(name: str, results: str | None, styles: bool) -> Sequence[Place]:
    if is_url(name):
        place = place_of(name)
        if not isinstance(place, Path):
            return _search_elsewhere(name, results)
        name = str(place)  # a url of this machine
    file = Path(name) if os.path.isfile(name) else of_library(name) if styles else None
    return _search(name, results, styles) if file is None else [file]


def _search_elsewhere(url: str, results: str | None) -> list[Place]:
    """The pictures that a url stands for, but for results of earlier runs. Raises UserError if there
    are none."""
    ours = f"{results}/" if results and is_url(results) else "\0"
    found = [place for place in found_by(url, EXTENSIONS) if not str(place).startswith(ours)]
    if not found:
        raise UserError(f"{url}: there is no such file, and no pictures are in such a folder")
    return found


def _search(name: str, results: str | None, styles: bool) -> list[Path]:
    """The pictures of a folder or glob, and its saved styles if asked for. Raises UserError if there
    are none."""
    if os.path.isdir(name):
        folder = Path(name)
        found = [
            path
            for path in find_files(folder, (*EXTENSIONS, *([SUFFIX] if styles else [])))
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
    else:
        folder = Path(*takewhile(lambda part: not glob.has_magic(part), Path(name).parts))
        found = sorted(Path(match) for match in glob.glob(name, recursive=True) if os.path.isfile(match))
        if not found:
            raise UserError(
                f"{name}: no such file or folder"
                + (", and no file matches it" if glob.has_magic(name) else hint(name) if styles else "")
            )
    pictures = [path for path in found if results is None or not _is_result(path, folder, results)]
    if not pictures:
        raise UserError(f"{name}: no pictures in it but hidden ones and results of earlier runs")
    if len(pictures) < len(found):
        log.info(
            "%s: left out %d pictures in %s, where the results go", name, len(found) - len(pictures), results
        )
    return pictures


def _is_result(path: Path, searched: Path, results: str) -> bool:
    """Whether a picture found in the folder `searched` was put there by an earlier run with the
    same folder of results."""
    picture, folder, ours = (Path(os.path.abspath(name)) for name in (path, searched, results))
    if folder == ours:  # photos and results side by side
        return METADATA_KEY in read_metadata(picture)
    return folder in ours.parents and ours in picture.parents


def distinct_names(paths: Sequence[Place]) -> list[str]:
    """A name for each file: its own, without extension, or with as much of its path as tells it
    from the others."""
    whole = list(map(parts_of, paths))
    forms = [
        [path.stem for path in whole],
        [f"{path.parent.name}-{path.stem}" for path in whole],
        [path.name for path in whole],
        ["-".join(path.parts[1:]) for path in whole],
    ]
    counts = [Counter(form) for form in forms]
    names = [
        next((form[i] for form, count in zip(forms, counts) if count[form[i]] == 1), forms[-1][i])
        for i in range(len(paths))
    ]
    if len(set(names)) < len(names):
        raise UserError(
            f"the names of these files cannot be told apart: {first_of(_alike(paths, names))}; rename some"
        )
    return names


def _alike(paths: Sequence[Place], names: Sequence[str]) -> list[str]:
    counts = Counter(names)
    return [str(path) for path, name in zip(paths, names) if counts[name] > 1]
