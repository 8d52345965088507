"""Where files lie: on this machine, as paths, or elsewhere, as urls that fsspec knows (s3://, gs://,
https:// ...)."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from ldm.errors import UserError
from ldm.files import remove_left_asides, unfinished, written_whole

if TYPE_CHECKING:
    from upath import UPath

    Place = Path | UPath
else:
    Place = Path  # what reads urls is imported where there is one: it takes a fifth of a second


class Unreached(UserError):
    """A place elsewhere could not be reached, which may be over by the next time."""


_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(name: str | Place) -> bool:
    """Whether it is the name of something elsewhere."""
    return _URL.match(str(name)) is not None


def place_of(name: str | Place) -> Place:
    """The place of that name; a url of this machine's (file://) is a path. Raises UserError for a
    kind of url that is not known, or whose package is missing."""
    text = str(name)
    if not is_url(text):
        return Path(text)
    scheme = text.partition("://")[0].lower()
    if scheme == "file":
        return Path(url2pathname(urlparse(text).path))
    import fsspec
    from upath import UPath

    try:
        fsspec.get_filesystem_class(scheme)
        return UPath(text)
    except (ImportError, ValueError) as error:
        raise UserError(f"{text}: urls of this kind cannot be used here ({error})") from error


def elsewhere(value: Any) -> "UPath | None":
    """The place that a url, or what `place_of` made of one, names on another machine; None for
    anything else. Raises UserError as `place_of` does."""
    if isinstance(value, str):
        place = place_of(value) if is_url(value) else None
        return None if isinstance(place, Path) else place
    return value if type(value).__module__.startswith("upath.") and is_url(value) else None


def key_of(place: Place) -> str:
    """The same text for all names of a place."""
    return os.path.abspath(place) if isinstance(place, Path) else str(place)


def parts_of(place: Place) -> PurePosixPath | Path:
    """Its whole name, to be taken apart: that of a url begins with its bucket or host."""
    if isinstance(place, Path):
        return Path(os.path.abspath(place))
    return PurePosixPath("/" + str(place).partition("://")[2])


def is_there(place: Place) -> bool:
    """Whether there is a file. Raises UserError where nobody can tell."""
    if isinstance(place, Path):
        return os.path.isfile(place)  # unlike Path's, false for a name that is too long
    with _told(place):
        return place.is_file()


def check_file(place: Place, kind: str = "picture") -> None:
    """Raises UserError where there is no file."""
    if not is_there(place):
        is_folder = os.path.isdir(place) if isinstance(place, Path) else False
        raise UserError(f"{place}: {f'is a folder, not a {kind}' if is_folder else 'no such file'}")


def size_of(place: Place) -> int | None:
    """Bytes of a file; None for one that is not there."""
    try:
        return int(place.stat().st_size)
    except OSError:
        return None


def name_within(folder: Place, file: Place) -> str:
    """The path of a file from a folder that it is in, with /; its name alone where it is not in
    it."""
    if isinstance(folder, Path) and isinstance(file, Path):
        path = Path(os.path.relpath(file, folder))
        return file.name if os.pardir in path.parts else path.as_posix()
    start = f"{str(folder).rstrip('/')}/"
    return str(file)[len(start) :] if str(file).startswith(start) else file.name


def read_bytes(place: Place) -> bytes:
    """All that is in a file. Raises UserError, Unreached where that may be over by the next time."""
    if isinstance(place, Path):  # asked elsewhere, what cannot be reached is said not to be there
        check_file(place)
    with _told(place):
        return place.read_bytes()


def found_by(url: str, suffixes: tuple[str, ...]) -> list[Place]:
    """The files that a url stands for: one, all of a folder and those in it with one of the
    suffixes, or those that a pattern with * matches, in order. Raises UserError."""
    place = place_of(url)
    assert not isinstance(place, Path)
    with _told(place):
        files, inner = place.fs, place.path
        if "*" in url:
            found = files.glob(inner)
        elif files.isfile(inner):
            return [place]
        else:
            found = files.find(inner)
    folder = inner.partition("*")[0].rstrip("/")
    names = [name for name in sorted(found) if not _is_hidden(name[len(folder) :])]
    return [
        place_of(files.unstrip_protocol(name))
        for name in names
        if "*" in url or PurePosixPath(name).suffix.lower() in suffixes
    ]


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


@contextmanager
def written_at(place: Place) -> Iterator[Path]:
    """A new file of this machine's to write to, which becomes `place` at the end, its folders made;
    if the body raises, nothing does. Whoever opens `place` finds the old content or the new one.
    Raises OSError, and UserError for what happens elsewhere.
    """
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(place) as aside:
            yield aside
        return
    beside = Path(tempfile.gettempdir(), f"artfusion{place.suffix}")
    remove_left_asides([beside])  # of processes that were killed on this machine
    with unfinished(beside) as aside:
        yield aside
        with _told(place):
            place.fs.makedirs(place.parent.path, exist_ok=True)
            place.fs.put_file(str(aside), place.path)


def write_bytes(place: Place, content: bytes) -> None:
    """Write a file whole or not at all. Raises UserError."""
    try:
        with written_at(place) as aside:
            aside.write_bytes(content)
    except OSError as error:
        raise UserError(f"{place}: could not be written ({error})") from error


@contextmanager
def _told(place: Place) -> Iterator[None]:
    """What goes wrong with a file within, as a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        if isinstance(error.__cause__, OSError):  # so fsspec tells of a server that does not answer
            raise Unreached(f"{place}: {error.__cause__}") from error
        raise UserError(f"{place}: no such file") from error
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        kind = UserError if isinstance(place, Path) else Unreached
        raise kind(f"{place}: {error or type(error).__name__}") from error
    except Exception as error:
        # Every file system elsewhere has errors of its own.
        if isinstance(place, Path):
            raise
        raise Unreached(f"{place}: {' '.join(str(error).split()) or type(error).__name__}") from error
