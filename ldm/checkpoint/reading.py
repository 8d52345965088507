"""Reading checkpoint files without running anything in them, and saying in one line what is wrong
with one.

Everything here works on the file; what the names in it mean is in `ldm.checkpoint`.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.errors import CheckpointError
from ldm.files import own_or
from ldm.text import first_of, human_size, one_line


class _Inert:
    """Stands in for something that a checkpoint names beside its weights: takes anything, does and
    keeps nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _empty_dict(*args: Any) -> dict[Any, Any]:
    return {}


# Checkpoints of Lightning 1.x name these beside the weights. None of the real ones is imported or
# called: each name stands for `_Inert` (or a dict, where items follow), so a hostile file gains
# nothing by naming them. Any name that is not in this list makes the file refused.
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_empty_dict, "collections.defaultdict"),
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    *(
        (_Inert, name)
        for name in (
            # Before 1.5 the class of a callback is its key in `callbacks`.
            "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
            "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
            # Forms that `hyper_parameters` take, and the types that omegaconf's containers note.
            "argparse.Namespace",
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
            "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
            "omegaconf.nodes.AnyNode",
            "typing.Any",
            *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str")),
            # Metrics and step counts as numpy values, by the names of numpy 1 and 2.
            "numpy.dtype",
            "numpy.ndarray",
            "numpy.core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
        )
    ),
]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.ckpt`, `.pt` or `.safetensors` file by name, on the CPU.

    A Lightning file gives what is under `state_dict`; entries that are no tensors are left out.
    Nothing in the file is executed. The tensors may be mapped from the file: copy them before you
    overwrite it in place. Raises CheckpointError if the file is missing, damaged, or no checkpoint.
    """
    return read_checkpoint(Path(path))[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by name, what else the file says at its top level)."""
    path = own_or(path)
    head = _head(path)
    _refuse_stray_download(path, head)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        tensors, extra = _read_safetensors(path)
    elif head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        tensors, extra = _read_pickled(path, mmap=True)
    # files of torch before 1.6, such as torchvision's VGG16, are no zip archives
    elif head.startswith(b"\x80"):
        tensors, extra = _read_pickled(path, mmap=False)
    else:
        raise _bad(path, "not a checkpoint: neither a PyTorch nor a safetensors file")
    if not tensors:
        raise _bad(
            path, f"no tensors in it; its top-level names are: {first_of([str(name) for name in extra])}"
        )
    return tensors, extra


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


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise _bad(
            path,
            "cut short: the end of the archive is missing; download it again and compare its size "
            "(the published ArtFusion file of about 3 GB is known to arrive truncated)",
        )
    try:
        # torch.load does not look at the check sums, and a flipped bit would only show in the
        # pictures.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise _bad(path, f"a damaged archive ({one_line(error)}); download it again") from error
    if damaged:
        raise _bad(path, f"a damaged archive: the check sum of {damaged} is wrong; download it again")


def _read_pickled(path: Path, mmap: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _bad(path, _unpickling_problem(str(error))) from error
    except Exception as error:  # damaged bytes can raise anything in torch's reader
        raise _bad(path, f"PyTorch cannot read it ({one_line(error)}); download it again") from error
    content = content if isinstance(content, Mapping) else {}
    weights = content.get("state_dict", content)
    return _only_tensors(weights if isinstance(weights, Mapping) else {}), dict(content)


def _unpickling_problem(message: str) -> str:
    refused = re.search(r"GLOBAL (\S+)", message)
    if refused:
        return (
            f"refused, and nothing in it was run: it names the code `{refused[1]}`, which weights do not need; if you "
            "trust its source, save its state_dict alone as .safetensors on a machine that you can do without"
        )
    reason = re.search(r"WeightsUnpickler error:\s*(.*)", message)
    return f"not a checkpoint, or a damaged one ({reason[1] if reason else 'no pickle of weights'})"


def _only_tensors(weights: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        name: value.detach()
        for name, value in weights.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    header = _safetensors_header(path)
    try:
        return load_file(path), dict(header.get("__metadata__", {}))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _bad(path, f"a damaged safetensors file ({one_line(error)}); download it again") from error


def _safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header, once the file is as long as it says: 8 bytes of header length, header,
    data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000 or file.read(1) != b"{":  # the longest header that the format allows
            raise _bad(path, "not a safetensors file: it does not begin with a safetensors header")
        if 8 + length > size:
            raise _bad(path, "cut short inside its header; download it again")
        file.seek(8)
        text = file.read(length)
    header, data_length = _parse_header(path, text)
    if 8 + length + data_length > size:
        raise _bad(
            path, f"cut short: it should have {human_size(8 + length + data_length)}; download it again"
        )
    return header


def _parse_header(path: Path, text: bytes) -> tuple[dict[str, Any], int]:
    """(header, length of the data behind it in bytes)."""
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return header, max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _bad(
            path, "a damaged safetensors file: its header cannot be read; download it again"
        ) from error


def _bad(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path} ({human_size(path.stat().st_size)}): {problem}")


def count_nonfinite(value: Tensor) -> int:
    """How many of its values are NaN or infinite."""
    # Only finite terms have a finite sum, and summing is eight times as fast as looking at each.
    if not value.is_floating_point() or value.sum(dtype=torch.float32).isfinite():
        return 0
    return value.numel() - int(value.isfinite().count_nonzero())
