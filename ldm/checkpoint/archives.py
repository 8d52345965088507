"""The two forms of `.ckpt` files: a zip archive, and that of torch before 1.6, pickles one after the
other."""

import mmap
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ldm.checkpoint.headers import Refused
from ldm.checkpoint.pickled import FindStorage, no_storage, unpickle
from ldm.text import one_line, printable

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_LOCAL_HEADER = 30  # bytes, before a name and an extra field, whose lengths are the last two numbers in it


def read_archive(path: Path) -> Any:
    """What torch.save put into a zip archive; its tensors are mapped from the file. Raises
    Refused."""
    with path.open("rb") as file, _opened(file) as archive:
        records = _records(archive)
        if "data.pkl" not in records:
            raise Refused("an archive of something else: no weights that torch.save wrote are in it")
        if (
            order := archive.read(records["byteorder"]) if "byteorder" in records else b"little"
        ) != sys.byteorder.encode():
            raise Refused(f"written for a machine of the other byte order ({printable(order)})")
        size = path.stat().st_size
        mapped = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)

        def find(dtype: torch.dtype, key: str, length: int) -> torch.UntypedStorage:
            record, own = records.get(f"data/{key}"), length * dtype.itemsize
            if record is None or record.file_size < own:
                raise Refused("a damaged archive: the numbers of a tensor are missing")
            start = _start(file, record)
            part: torch.UntypedStorage = mapped[start : start + own]
            return part

        return unpickle(archive.read(records["data.pkl"]), _once(find), size)


def _opened(file: BinaryIO) -> zipfile.ZipFile:
    """The archive, as torch writes them and each part whole."""
    if not zipfile.is_zipfile(file):
        raise Refused(
            "cut short: the end of the archive is missing; download it again and compare its size "
            "(the published ArtFusion file of about 3 GB is known to arrive truncated)"
        )
    try:
        archive = zipfile.ZipFile(file)
        _check_entries(archive, file.seek(0, 2))
        # A flipped bit would only show in the pictures.
        damaged = archive.testzip()
    except Refused:
        raise
    except Exception as error:  # damaged bytes can raise anything in Python's reader
        raise Refused(f"a damaged archive ({one_line(error)}); download it again") from error
    if damaged:
        raise Refused(f"a damaged archive: the check sum of {printable(damaged)} is wrong; download it again")
    return archive


def _check_entries(archive: zipfile.ZipFile, size: int) -> None:
    """Raises Refused for what takes longer to read, or more memory, than the file is large."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise Refused(
            "its parts are compressed, which torch.save does not do; unpack it, and zip it with `zip -0`"
        )
    if sum(entry.file_size for entry in entries) > size:
        raise Refused("a damaged archive: its parts are larger than the file")


def _records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """By their names within the folder that torch.save puts all into."""
    return {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}


def _start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin, which is stored as it is."""
    file.seek(entry.header_offset + _LOCAL_HEADER - 4)
    lengths = file.read(4)
    return (
        entry.header_offset
        + _LOCAL_HEADER
        + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
    )


def read_legacy(path: Path) -> Any:
    """What torch.save put into a file before 1.6. Raises Refused."""
    storages: dict[str, tuple[torch.UntypedStorage, torch.dtype]] = {}
    size = left = path.stat().st_size

    def make(dtype: torch.dtype, key: str, length: int) -> torch.UntypedStorage:
        nonlocal left
        left -= length * dtype.itemsize
        if left < 0:
            raise Refused(
                f"cut short: its tensors have more numbers than {size} bytes hold; download it again"
            )
        storage = torch.empty(length * dtype.itemsize, dtype=torch.uint8, device="cpu").untyped_storage()
        storages[key] = storage, dtype
        return storage

    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        if (
            unpickle(file, no_storage, size) != _LEGACY_MAGIC
            or unpickle(file, no_storage, size) != _LEGACY_VERSION
        ):
            raise Refused("not a checkpoint: a pickle of something else")
        unpickle(file, no_storage, size)  # on what machine
        content = unpickle(file, _once(make), size)
        keys = unpickle(file, no_storage, size)
        if sorted(keys) != sorted(storages):
            raise Refused("a damaged file: the numbers of a tensor are missing")
        for key in keys:
            _fill(*storages[key], file)
    return content


def _fill(storage: torch.UntypedStorage, dtype: torch.dtype, file: mmap.mmap) -> None:
    length = int.from_bytes(file.read(8), "little")
    content = bytearray(file.read(storage.nbytes()))
    if length * dtype.itemsize != storage.nbytes() or len(content) < storage.nbytes():
        raise Refused("cut short or damaged: the numbers of a tensor are missing; download it again")
    if content:
        storage.copy_(torch.frombuffer(content, dtype=torch.uint8).untyped_storage())


def _once(find: FindStorage) -> FindStorage:
    """Gives the same storage for the same key, whatever numbers are asked for by then."""
    found: dict[str, torch.UntypedStorage] = {}

    def remembering(dtype: torch.dtype, key: str, length: int) -> torch.UntypedStorage:
        if key not in found:
            found[key] = find(dtype, key, length)
        return found[key]

    return remembering
