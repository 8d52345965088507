"""The header of a safetensors file, read without torch: 8 bytes of its length, JSON, and behind it
the numbers."""

import json
from pathlib import Path
from typing import Any

from ldm.text import human_size

METADATA = "__metadata__"  # words about the file, among the tensors' entries
MAX_HEADER = 10_000_000  # bytes; one tensor takes a hundred
MAX_DIMENSIONS = 64  # as torch's own operations take


class Refused(Exception):
    """What is wrong with a file, to be said after its name."""


def read_header(path: Path) -> dict[str, Any]:
    """The tensors' entries and the metadata, once the file is as long as it says. Raises
    Refused."""
    text = header_text(path)
    header = parsed(text)
    ends = (entry["data_offsets"][1] for name, entry in header.items() if name != METADATA)
    length = 8 + len(text) + max(ends, default=0)
    if length > path.stat().st_size:
        raise Refused(f"cut short: it should have {human_size(length)}; download it again")
    return header


def header_text(path: Path) -> bytes:
    """The bytes of the JSON. Raises Refused."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000 or file.read(1) != b"{":  # the longest header that the format allows
            raise Refused("not a safetensors file: it does not begin with a safetensors header")
        if 8 + length > path.stat().st_size:
            raise Refused("cut short inside its header; download it again")
        if length > MAX_HEADER:
            raise Refused(f"its header has {human_size(length)}, which is no model's")
        file.seek(8)
        return file.read(length)


def parsed(text: bytes) -> dict[str, Any]:
    """The header of these bytes. Raises Refused."""
    try:
        header: dict[str, Any] = json.loads(text)
        for name, entry in header.items():
            if name == METADATA:
                entry.get("format")
            elif len(entry["shape"]) > MAX_DIMENSIONS or not isinstance(entry["data_offsets"][1], int):
                raise ValueError("no tensor's entry")
    # the last: lists within lists, ten thousands of them
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise Refused("a damaged safetensors file: its header cannot be read; download it again") from error
    return header


def metadata(path: Path) -> dict[str, str]:
    """The words about a safetensors file; none of another file, or of one that cannot be read."""
    try:
        words: dict[str, str] = parsed(header_text(path)).get(METADATA, {})
        return words
    except (Refused, OSError):
        return {}
