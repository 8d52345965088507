"""Hashes of checkpoint files, by which damage shows: in the header of a safetensors file, over the
whole file with zeros in the hash's place; and, for any file, in `SHA256SUMS` beside it, as
`sha256sum` writes it."""

import hashlib
import mmap
from pathlib import Path
from typing import Any

from ldm.checkpoint.headers import Refused

KEY = "sha256"  # in the metadata of a safetensors file
NONE_YET = "0" * 64
BESIDE = "SHA256SUMS"
MAX_LIST = 1_000_000  # bytes of it
# Larger files are hashed only when they are verified: at 1.6 GB/s, as a processor with instructions
# for it does, these take 40 ms.
AT_LOAD = 64_000_000


def check_hash(path: Path, own: Any = None, header: bytes = b"") -> str:
    """Where the hash of a file stands that fits it: "in it", "in SHA256SUMS beside it", or "" where
    there is none.

    own: what its header says it is, whose bytes begin behind the first eight. Raises Refused where one does
    not fit.
    """
    places = []
    if own is not None:
        if (
            not isinstance(own, str)
            or len(own) != len(NONE_YET)
            or own != _hash(path, header.replace(own.encode(), NONE_YET.encode()))
        ):
            raise Refused("damaged: its bytes are not those that its own hash was made of; download it again")
        places.append("in it")
    listed = _listed(path)
    if listed is not None:
        if listed != _hash(path):
            raise Refused(
                f"not the file that {BESIDE} beside it lists: damaged, download it again; or, if you put another in its "
                "place, write that line anew with `sha256sum`"
            )
        places.append(f"in {BESIDE} beside it")
    return " and ".join(places)


def seal(path: Path, header: bytes) -> None:
    """Put the hash of a safetensors file into its header, which holds NONE_YET. Raises OSError."""
    place = 8 + header.index(f'"{KEY}":"{NONE_YET}"'.encode()) + len(f'"{KEY}":"')
    digest = _hash(path)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(digest.encode())


def _hash(path: Path, header: bytes = b"") -> str:
    """Of a whole file, with this in place of its header."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        digest = hashlib.sha256()
        with memoryview(content) as view:
            if header:
                digest.update(view[:8])
                digest.update(header)
            digest.update(view[8 + len(header) :] if header else view)
        return digest.hexdigest()


def _listed(path: Path) -> str | None:
    """A file's hash in the list beside it."""
    beside = path.parent / BESIDE
    if not beside.is_file() or beside.stat().st_size > MAX_LIST:
        return None
    lines = (line.split(maxsplit=1) for line in beside.read_text("utf-8", "replace").splitlines())
    # an asterisk stands before the name of what was read as bytes
    return next(
        (line[0].lower() for line in lines if len(line) == 2 and line[1].lstrip("*") == path.name), None
    )
