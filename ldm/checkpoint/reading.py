"""Reading checkpoint files without running anything in them, and saying in one line what is wrong
with one.

Everything here works on the file; what the names in it mean is in `ldm.checkpoint`.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.checkpoint.archives import read_archive, read_legacy
from ldm.checkpoint.hashes import AT_LOAD, KEY, check_hash
from ldm.checkpoint.headers import METADATA, Refused, header_text, parsed, read_header
from ldm.errors import CheckpointError
from ldm.files import own_or
from ldm.text import first_of, human_size, one_line, printable

MAX_NAME = 500  # characters of a tensor's name


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.ckpt`, `.pt` or `.safetensors` file by name, on the CPU.

    A Lightning file gives what is under `state_dict`; entries that are no tensors are left out.
    Nothing in the file is executed. The tensors may be mapped from the file: copy them before you
    overwrite it in place. Raises CheckpointError if the file is missing, damaged, or no checkpoint.
    """
    return read_checkpoint(Path(path))[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by name, what else the file says at its top level). A small file is held against its
    hash, if it has one."""
    path = own_or(path)
    head = _head(path)
    _refuse_stray_download(path, head)
    try:
        tensors, extra = _content(path, head)
        _check_names(tensors)
        if path.stat().st_size <= AT_LOAD:
            _check_hash(path, head)
    except Refused as error:
        raise _bad(path, str(error)) from error
    except Exception as error:  # damaged bytes can raise anything in the readers
        raise _bad(path, f"not a checkpoint, or a damaged one ({one_line(error)})") from error
    if not tensors:
        names = first_of([printable(name) for name in extra])
        raise _bad(path, f"no tensors in it; its top-level names are: {names}")
    return tensors, extra


def checked_hash(path: Path) -> str:
    """Where the hash stands that a whole file was held against, in words, or "". Raises
    CheckpointError where it does not fit."""
    path = own_or(path)
    try:
        return _check_hash(path, _head(path))
    except Refused as error:
        raise _bad(path, str(error)) from error


def _check_hash(path: Path, head: bytes) -> str:
    if not _is_safetensors(path, head):
        return check_hash(path)
    text = header_text(path)
    return check_hash(path, parsed(text).get(METADATA, {}).get(KEY), text)


def _is_safetensors(path: Path, head: bytes) -> bool:
    return path.suffix == ".safetensors" or head[8:9] == b"{"


def _content(path: Path, head: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if _is_safetensors(path, head):
        return _read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        return _with_tensors_apart(read_archive(path))
    # files of torch before 1.6, such as torchvision's VGG16, are no zip archives
    if head.startswith(b"\x80"):
        return _with_tensors_apart(read_legacy(path))
    raise Refused("not a checkpoint: neither a PyTorch nor a safetensors file")


def _with_tensors_apart(content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    content = content if isinstance(content, Mapping) else {}
    weights = content.get("state_dict", content)
    return _only_tensors(weights if isinstance(weights, Mapping) else {}), dict(content)


def _only_tensors(weights: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        name: value for name, value in weights.items() if isinstance(name, str) and isinstance(value, Tensor)
    }


def _check_names(names: Iterable[str]) -> None:
    """Raises Refused for those that cannot be told in a line."""
    for name in names:
        if len(name) > MAX_NAME or not name.isprintable():
            raise Refused(f"a damaged file: a tensor in it has the name {printable(name)}")


def _head(path: Path) -> bytes:
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
        raise _bad(path, "the file is empty; download it again")
    return head


def _refuse_stray_download(path: Path, head: bytes) -> None:
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)", head, re.IGNORECASE):
        raise _bad(path, "a web page saved under a checkpoint's name; download the file itself, not its page")
    if head.startswith(b"version https://git-lfs"):
        raise _bad(path, "a Git LFS pointer, not the file it stands for; fetch that with `git lfs pull`")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    header = read_header(path)
    try:
        return load_file(path), dict(header.get(METADATA, {}))
    except Exception as error:  # of a type of numbers that torch lacks it is a KeyError
        raise Refused(f"a damaged safetensors file ({one_line(error)}); download it again") from error


def _bad(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path} ({human_size(path.stat().st_size)}): {problem}")


def count_nonfinite(value: Tensor) -> int:
    """How many of its values are NaN or infinite."""
    if value.is_complex():
        return count_nonfinite(torch.view_as_real(value.resolve_conj()))
    if not value.is_floating_point():
        return 0
    value = value.float() if value.element_size() == 1 else value  # torch has few operations on 8 bits
    # Only finite terms have a finite sum, and summing is eight times as fast as looking at each.
    if value.sum(dtype=torch.float32).isfinite():
        return 0
    return value.numel() - int(value.isfinite().count_nonzero())
