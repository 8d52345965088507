"""Reading checkpoint files without running anything in them, and saying in one line what is wrong
with one.

Everything here works on the file; what the names in it mean is in `ldm.checkpoint`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.checkpoint.archives import read_archive, read_legacy
from ldm.checkpoint.files import check_hashes, check_names, head_of, is_safetensors, refusal
from ldm.checkpoint.hashes import AT_LOAD
from ldm.checkpoint.headers import METADATA, Refused, read_header
from ldm.files import own_or
from ldm.text import first_of, one_line, printable


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
    head = head_of(path)
    try:
        tensors, extra = _content(path, head)
        check_names(tensors)
        if path.stat().st_size <= AT_LOAD:
            check_hashes(path, head)
    except Refused as error:
        raise refusal(path, str(error)) from error
    except Exception as error:  # damaged bytes can raise anything in the readers
        raise refusal(path, f"not a checkpoint, or a damaged one ({one_line(error)})") from error
    if not tensors:
        names = first_of([printable(name) for name in extra])
        raise refusal(path, f"no tensors in it; its top-level names are: {names}")
    return tensors, extra


def checked_hash(path: Path) -> str:
    """Where the hash stands that a whole file was held against, in words, or "". Raises
    CheckpointError where it does not fit."""
    path = own_or(path)
    try:
        return check_hashes(path, head_of(path))
    except Refused as error:
        raise refusal(path, str(error)) from error


def _content(path: Path, head: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if is_safetensors(path, head):
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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    header = read_header(path)
    try:
        return load_file(path), dict(header.get(METADATA, {}))
    except Exception as error:  # of a type of numbers that torch lacks it is a KeyError
        raise Refused(f"a damaged safetensors file ({one_line(error)}); download it again") from error


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
