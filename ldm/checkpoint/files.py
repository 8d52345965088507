"""A file of weights before any of them is read, without torch: what is refused by its head, its
header, its names and its hash."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ldm.checkpoint.hashes import AT_LOAD, KEY, check_hash
from ldm.checkpoint.headers import METADATA, Refused, header_text, parsed, read_header
from ldm.errors import CheckpointError
from ldm.text import human_size, printable

MAX_NAME = 500  # characters of a tensor's name


def head_of(path: Path) -> bytes:
    """Its first bytes. Raises CheckpointError where there are none, or they are no checkpoint's."""
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, expected a checkpoint file")
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such file{'' if path.is_absolute() else f' in {Path.cwd()}, from where relative paths are taken'}"
        )
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
    if not head:
        raise refusal(path, "the file is empty; download it again")
    _refuse_stray_download(path, head)
    return head


def _refuse_stray_download(path: Path, head: bytes) -> None:
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)", head, re.IGNORECASE):
        raise refusal(
            path, "a web page saved under a checkpoint's name; download the file itself, not its page"
        )
    if head.startswith(b"version https://git-lfs"):
        raise refusal(path, "a Git LFS pointer, not the file it stands for; fetch that with `git lfs pull`")


def refusal(path: Path, problem: str) -> CheckpointError:
    """The error for a file that is there."""
    return CheckpointError(f"{path} ({human_size(path.stat().st_size)}): {problem}")


def is_safetensors(path: Path, head: bytes) -> bool:
    """By its ending, or by its first bytes."""
    return path.suffix == ".safetensors" or head[8:9] == b"{"


def check_names(names: Iterable[str]) -> None:
    """Raises Refused for those that cannot be told in a line."""
    for name in names:
        if len(name) > MAX_NAME or not name.isprintable():
            raise Refused(f"a damaged file: a tensor in it has the name {printable(name)}")


def check_hashes(path: Path, head: bytes) -> str:
    """As `check_hash`, with what a safetensors file says of itself."""
    if not is_safetensors(path, head):
        return check_hash(path)
    text = header_text(path)
    return check_hash(path, parsed(text).get(METADATA, {}).get(KEY), text)


def checked_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, a small one held against its hash. Raises CheckpointError
    for all that reading weights from it would be refused for."""
    head = head_of(path)
    try:
        header = read_header(path)
        check_names(name for name in header if name != METADATA)
        if path.stat().st_size <= AT_LOAD:
            check_hashes(path, head)
    except Refused as error:
        raise refusal(path, str(error)) from error
    return header
