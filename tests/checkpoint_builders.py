"""Checkpoints by hand, as torch.save would not write them."""

import io
import json
import pickle
import struct
import zipfile

import torch

STORE = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
NO_HOOKS = b"\x89ccollections\nOrderedDict\n)R"


def safetensors_bytes(header: dict | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def zipped(content: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """An archive as torch.save writes it, of these bytes of a pickle and numbers by their keys."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        for key, value in entries.items():
            archive.writestr(f"archive/data/{key.removeprefix('_')}", value)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def storage(key: str = "0", length: int = 4) -> bytes:
    return b"(" + text("storage") + STORE + text(key) + text("cpu") + number(length) + b"tQ"


def tensor(
    size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, length: int = 4
) -> bytes:
    shape = b"".join(b"(" + b"".join(map(number, sizes)) + b"t" for sizes in (size, stride))
    return REBUILD + b"(" + storage(length=length) + number(offset) + shape + NO_HOOKS + b"tR"


def pickled(*items: bytes) -> bytes:
    """A dict of names and values, each as instructions that push it."""
    return b"\x80\x02}(" + b"".join(items) + b"u."


def of_tensor(weight: bytes, name: str = "weight") -> bytes:
    """A whole file of one tensor and its four numbers."""
    return zipped(pickled(text(name), weight), _0=bytes(16))


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()
