"""Where this project's own files lie; a file's hash; writing a file whole or not at all."""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

MAX_NAME = 255  # bytes of a file's name, on nearly all systems
DAY = 86400.0  # seconds
PACKAGE = Path(__file__).resolve().parent
# Where configs/, checkpoints/ and data/ lie: in the package where a wheel was installed, else
# beside it, in the clone.
ROOT = PACKAGE / "bundled" if (PACKAGE / "bundled").is_dir() else PACKAGE.parent


def own_or(path: str | Path) -> Path:
    """The path; or, where there is nothing, this project's own of that name, such as
    configs/mini.yaml or data/contents."""
    path = Path(path)
    own = ROOT / path
    is_ours = path.parts[:1] in (("configs",), ("checkpoints",), ("data",)) and own.exists()
    return own if is_ours and not path.exists() else path


def check_exists(path: str | Path, kind: str = "file", label: str = "") -> None:
    """Raises UserError where there is nothing; for commands, before they import what reads it."""
    if not os.path.exists(path):
        raise UserError(f"{label}{path}: no such {kind}")


def check_config_file(path: str | Path) -> None:
    """Raises UserError where there is no such config file, nor one of this project's."""
    check_exists(own_or(path), label="config ")


def check_folder(folder: Path, path: Path | None = None) -> None:
    """Raises UserError, which names `path`, where no files can be written to a folder; it need not
    exist. Nothing is made yet."""
    path = folder if path is None else path
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not os.path.isdir(there):
        raise UserError(f"{path}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{path}: no permission to write in {there}")


def short_enough(path: Path) -> Path:
    """The path, each part that is too long a name for file systems shortened, with a hash that tells
    it from others."""
    return Path(*(part if len(os.fsencode(part)) <= MAX_NAME else _shortened(part) for part in path.parts))


def _shortened(name: str) -> str:
    encoded, suffix = os.fsencode(name), Path(name).suffix
    suffix = suffix if len(os.fsencode(suffix)) <= 16 else ""
    ending = f"-{hashlib.sha256(encoded).hexdigest()[:12]}{suffix}"
    # characters of several bytes are not cut in two
    kept = encoded[: MAX_NAME - len(os.fsencode(ending))].decode("utf-8", "ignore")
    return kept + ending


def file_hash(path: str | Path) -> str:
    """The first 12 hexadecimal digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:12]


def bytes_hash(content: bytes) -> str:
    """`file_hash` of a file with this content."""
    return hashlib.sha256(content).hexdigest()[:12]


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write to. At the end it takes `path`'s place; if the body raises,
    it is removed.

    Whoever opens `path` finds the old content or the new one, never a part. Raises OSError.
    """
    with unfinished(path) as aside:
        yield aside
        aside.chmod(_usual_mode())  # temporary files are the owner's alone
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _flush_folder(path.parent)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A new file beside `path`, which is removed at the end if it is still there, and is known to
    `remove_left_asides` where this process is killed before. Raises OSError."""
    handle, aside = _new_aside(path)
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _new_aside(path: Path) -> tuple[int | None, Path]:
    """(what holds its lock, a new file beside `path`). The system lets go of the lock however this
    process ends, and by that others know what is left of it."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_aside_prefix(path), suffix=path.suffix)
        is_locked = _lock(handle)
        if is_locked and os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)
        if is_locked is None:
            return None, Path(name)
        # Else somebody has taken it for a leftover in the moment before it was locked.


def _lock(handle: int) -> bool | None:
    """Lock a file that is open; whether it could be, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # not every file system on a network has them
        return None
    return True


def remove_left_asides(paths: Iterable[Path]) -> None:
    """Remove what writers of these files that were killed on the way have left beside them; what is
    being written, be it on another machine, stays. Without locks nobody knows, and what was written
    to within a day stays. Reads each folder once."""
    known: dict[Path, set[tuple[str, str]]] = {}
    for path in paths:
        known.setdefault(path.parent, set()).add((_aside_prefix(path), path.suffix))
    for folder, asides in known.items():
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            hidden = [Path(entry.path) for entry in entries if entry.name.startswith(".")]
        for file in hidden:
            # what `mkstemp` puts between the two has no dot
            if (file.stem.rpartition(".")[0] + ".", file.suffix) in asides:
                _remove_left(file)


def _remove_left(aside: Path) -> None:
    try:
        with aside.open("rb+") as file:
            is_left = _lock(file.fileno())
            if is_left:  # removed while it is locked: its writer may just be about to
                aside.unlink(missing_ok=True)
        if is_left is None and aside.stat().st_mtime < time.time() - DAY:
            aside.unlink(missing_ok=True)
    except OSError:  # it has just taken its place, or is not ours
        return


def count_written(paths: Iterable[Path], since: float) -> int:
    """How many of these files have been written since a time (`time.time`). Reads each folder
    once."""
    known: dict[Path, set[str]] = {}
    for path in paths:
        known.setdefault(path.parent, set()).add(path.name)
    count = 0
    for folder, names in known.items():
        if folder.is_dir():
            with os.scandir(folder) as entries:
                there = [entry for entry in entries if entry.name in names]
            count += sum(entry.stat().st_mtime >= since for entry in there)
    return count


def _aside_prefix(path: Path) -> str:
    return f".{path.stem[:40]}."


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _usual_mode() -> int:
    """The permissions that a new file gets."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
