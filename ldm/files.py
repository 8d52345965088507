"""Where this project's own files lie; a file's hash; writing a file whole or not at all."""

import glob
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.errors import UserError

MAX_NAME = 255  # bytes of a file's name, on nearly all systems
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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_aside_prefix(path), suffix=path.suffix)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(_usual_mode())  # temporary files are the owner's alone
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _flush_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def left_asides(path: Path) -> list[Path]:
    """What writers of this file that were killed on the way have left beside it."""
    pattern = f"{glob.escape(_aside_prefix(path))}*{glob.escape(path.suffix)}"
    return sorted(path.parent.glob(pattern))


def remove_left_asides(paths: Iterable[Path], before: float) -> None:
    """Remove what `left_asides` finds for many files, as far as it was last written before a time
    (`time.time`). Reads each folder once."""
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
            if (file.stem.rpartition(".")[0] + ".", file.suffix) in asides and _written_before(file, before):
                file.unlink(missing_ok=True)


def _written_before(file: Path, time: float) -> bool:
    try:
        return file.stat().st_mtime < time
    except OSError:  # it has just taken its place
        return False


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
