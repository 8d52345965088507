"""Checkpoints: read them without running anything in them, load them strictly, bake the EMA in, write them small.

Names follow the published layout: `model.diffusion_model.*`, `null_style_vector.weight` and their EMA shadows
`model_ema.*`, `null_style_vector_ema.*`; a shadow's name is the live name with its dots removed.
"""

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.errors import CheckpointError

ARTFUSION = "ArtFusion checkpoint"
# (what a file is, prefixes that must each begin one of its names); the first that fits, wins.
_KINDS = (
    (ARTFUSION, ("model.diffusion_model.", "null_style_vector.weight")),
    ("latent diffusion", ("model.diffusion_model.", "cond_stage_model.")),
    ("KL first stage", ("encoder.", "decoder.", "quant_conv.")),
    # Of torchvision's networks only VGG16 has a convolution at 26.
    ("VGG16 features (torchvision)", ("features.0.", "features.26.")),
)

_TRAINING_ONLY = ("loss.", "first_stage_model.loss.")
_EMA_COUNTERS = ("_ema.decay", "_ema.num_updates")

# Top-level buffers: float16 rounds betas near 1e-5 and alphas_cumprod near 1 too coarsely to sample with.
_FLOAT32_BUFFERS = (
    "betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "logvar", "scale_factor", "shift_values",
)  # fmt: skip


class _Inert:
    """Stands in for something that a checkpoint names beside its weights: takes anything, does and keeps nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _empty_dict(*args: Any) -> dict:
    return {}


# Checkpoints of Lightning 1.x name these beside the weights. None of the real ones is imported or called: each name
# stands for `_Inert` (or a dict, where items follow), so a hostile file gains nothing by naming them. Any name that is
# not in this list makes the file refused.
_STAND_INS = [
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

    A Lightning file gives what is under `state_dict`; entries that are no tensors are left out. Nothing in the file
    is executed. The tensors may be mapped from the file: copy them before you overwrite it in place.
    Raises CheckpointError if the file is missing, damaged, or no checkpoint.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by name, what else the file says at its top level)."""
    head = _head(path)
    _refuse_stray_download(path, head)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        tensors, extra = _read_safetensors(path)
    elif head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        tensors, extra = _read_pickled(path, mmap=True)
    elif head.startswith(b"\x80"):  # files of torch before 1.6, such as torchvision's VGG16, are no zip archives
        tensors, extra = _read_pickled(path, mmap=False)
    else:
        raise _bad(path, "not a checkpoint: neither a PyTorch nor a safetensors file")
    if not tensors:
        raise _bad(path, f"no tensors in it; its top-level names are: {_first([str(name) for name in extra])}")
    return tensors, extra


def part_of(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What a whole model's checkpoint holds under `prefix`, which is cut off; one without such names as it is."""
    part = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    return part or dict(state_dict)


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, expected a checkpoint file")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
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
        # torch.load does not look at the check sums, and a flipped bit would only show in the pictures.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise _bad(path, f"a damaged archive ({_one_line(error)}); download it again") from error
    if damaged:
        raise _bad(path, f"a damaged archive: the check sum of {damaged} is wrong; download it again")


def _read_pickled(path: Path, mmap: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _bad(path, _unpickling_problem(str(error))) from error
    except Exception as error:  # damaged bytes can raise anything in torch's reader
        raise _bad(path, f"PyTorch cannot read it ({_one_line(error)}); download it again") from error
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


def _only_tensors(weights: Mapping) -> dict[str, Tensor]:
    return {
        name: value.detach() for name, value in weights.items() if isinstance(name, str) and isinstance(value, Tensor)
    }


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    header = _safetensors_header(path)
    try:
        return load_file(path), dict(header.get("__metadata__", {}))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _bad(path, f"a damaged safetensors file ({_one_line(error)}); download it again") from error


def _safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header, once the file is as long as it says: 8 bytes of header length, header, data."""
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
        raise _bad(path, f"cut short: it should have {human_size(8 + length + data_length)}; download it again")
    return header


def _parse_header(path: Path, text: bytes) -> tuple[dict[str, Any], int]:
    """(header, length of the data behind it in bytes)."""
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return header, max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _bad(path, "a damaged safetensors file: its header cannot be read; download it again") from error


@dataclass(frozen=True)
class Mismatch:
    """Where a state dict and a module disagree; false if nowhere."""

    missing: list[str]  # names of the module that the state dict lacks
    unexpected: list[str]  # names of the state dict that the module lacks
    misshapen: list[str]  # "name: shape there, not the module's shape"

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        return ", ".join(f"{len(names)} {kind} ({_first(names)})" for kind, names in vars(self).items() if names)


def compare(module: nn.Module, state_dict: Mapping[str, Tensor], ignore_keys: Iterable[str] = ()) -> Mismatch:
    """How names and shapes of a state dict differ from a module's, leaving out names with the given prefixes."""
    prefixes = _prefixes(ignore_keys)
    expected = _without(module.state_dict(), prefixes)
    given = _without(state_dict, prefixes)
    return Mismatch(
        missing=[name for name in expected if name not in given],
        unexpected=[name for name in given if name not in expected],
        misshapen=[
            f"{name}: {tuple(given[name].shape)}, not {tuple(value.shape)}"
            for name, value in expected.items()
            if name in given and given[name].shape != value.shape
        ],
    )


def load_strict(
    module: nn.Module, state_dict: Mapping[str, Tensor], ignore_keys: Iterable[str] = (), where: str = "checkpoint"
) -> None:
    """Copy a state dict into a module, in the module's own dtypes, if every name and shape agrees.

    `ignore_keys` are prefixes of names that are neither loaded nor required; `where` names the source in errors.
    Raises CheckpointError, with the module untouched, if anything differs or nothing is left to load.
    """
    prefixes = _prefixes(ignore_keys)
    given = _without(state_dict, prefixes)
    mismatch = compare(module, given, prefixes)
    if mismatch:
        raise CheckpointError(
            f"{where} does not fit {type(module).__name__}: {mismatch}; use the config that belongs to the "
            "checkpoint, or name the prefixes to leave out in ignore_keys"
        )
    if not given:
        raise CheckpointError(f"{where}: nothing to load into {type(module).__name__}: all names are left out")
    module.load_state_dict(given, strict=False)  # not strict, as what ignore_keys leave out is missing


def _without(state_dict: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: value for name, value in state_dict.items() if not name.startswith(prefixes)}


def _prefixes(ignore_keys: Iterable[str]) -> tuple[str, ...]:
    if isinstance(ignore_keys, str):  # its single letters would be taken for prefixes
        raise CheckpointError(f"ignore_keys must be a list of prefixes, not the text {ignore_keys!r}")
    return tuple(ignore_keys)


def is_ema_name(name: str) -> bool:
    """Whether a name of a state dict belongs to an EMA (`model_ema.*`), its counters included."""
    owner, dot, _ = name.partition(".")
    return bool(dot) and owner.endswith("_ema")


def inference_only(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The live weights and buffers: without EMA entries and without the networks of the training losses."""
    return {n: value for n, value in state_dict.items() if not is_ema_name(n) and not n.startswith(_TRAINING_ONLY)}


def bake_ema(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`inference_only`, with every live weight that has an EMA shadow replaced by it.

    A live value without a shadow (a buffer, a frozen weight) stays. Raises CheckpointError if a shadow fits no live
    weight, or more than one, or has another shape.
    """
    owners = dict.fromkeys(name.partition(".")[0].removesuffix("_ema") for name in state_dict if is_ema_name(name))
    baked = inference_only(state_dict)
    for owner in owners:
        baked |= _shadow_weights(state_dict, owner)
    return baked


def _shadow_weights(state_dict: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """The shadows of one EMA by the names of their live weights."""
    shadows = {name for name in state_dict if name.startswith(f"{owner}_ema.") and not name.endswith(_EMA_COUNTERS)}
    live_names: dict[str, str] = {}
    for name in (name for name in state_dict if name.startswith(f"{owner}.")):
        shadow = f"{owner}_ema." + name.removeprefix(f"{owner}.").replace(".", "")
        if shadow in live_names:
            raise CheckpointError(f"{shadow} could be the EMA of {live_names[shadow]} and of {name}")
        if shadow in shadows:
            live_names[shadow] = name
    _check_shadows(state_dict, shadows, live_names)
    return {name: state_dict[shadow] for shadow, name in live_names.items()}


def _check_shadows(state_dict: Mapping[str, Tensor], shadows: set[str], live_names: Mapping[str, str]) -> None:
    orphans = sorted(shadows - live_names.keys())
    if orphans:
        raise CheckpointError(f"{len(orphans)} EMA weights belong to no live weight ({_first(orphans)})")
    for shadow, name in live_names.items():
        if state_dict[shadow].shape != state_dict[name].shape:
            raise CheckpointError(f"{shadow} has another shape than {name}")


def save_safetensors(
    state_dict: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None, half: bool = False
) -> None:
    """Write tensors and a few words about them to a `.safetensors` file, whole or not at all.

    `half` stores floating-point weights as float16, but never the noise schedule and the latent's scale and shift.
    Raises CheckpointError if a weight does not fit float16 or the file cannot be written.
    """
    path = Path(path)
    # safetensors refuses tensors that share memory, as tied weights do: each gets memory of its own.
    tensors = {
        name: value.to(_stored_dtype(name, value, half), copy=True, memory_format=torch.contiguous_format)
        for name, value in state_dict.items()
    }
    for name, value in state_dict.items():
        if _count_nonfinite(tensors[name]) > _count_nonfinite(value):
            raise CheckpointError(f"{name}: its values exceed float16's largest, 65504; write float32 instead")
    _write_whole(path, tensors, {"format": "pt", **(metadata or {})})


def _stored_dtype(name: str, value: Tensor, half: bool) -> torch.dtype:
    is_buffer = "." not in name and name.startswith(_FLOAT32_BUFFERS)
    return torch.float16 if half and value.is_floating_point() and not is_buffer else value.dtype


def _write_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write beside the target, then rename: whoever opens the target finds the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written: {_one_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Report:
    """What a checkpoint file is."""

    kind: str
    size: int  # of the file, in bytes
    tensors: int
    parameters: int  # values in all tensors, buffers and EMA included
    dtypes: dict[str, int]  # "float32" -> number of tensors
    has_ema: bool
    global_step: int | None
    epoch: int | None
    nonfinite: dict[str, int]  # name of a tensor -> number of its values that are NaN or infinite


def describe(path: str | Path) -> Report:
    """Read a whole file and say what it is. Raises CheckpointError as `read_state_dict` does."""
    path = Path(path)
    tensors, extra = _read(path)
    dtypes = [str(value.dtype).removeprefix("torch.") for value in tensors.values()]
    nonfinite = {name: _count_nonfinite(value) for name, value in tensors.items()}
    return Report(
        kind=_kind(tensors),
        size=path.stat().st_size,
        tensors=len(tensors),
        parameters=sum(value.numel() for value in tensors.values()),
        dtypes={dtype: dtypes.count(dtype) for dtype in sorted(set(dtypes))},
        has_ema=any(map(is_ema_name, tensors)),
        global_step=_whole_number(extra.get("global_step")),
        epoch=_whole_number(extra.get("epoch")),
        nonfinite={name: count for name, count in nonfinite.items() if count},
    )


def _count_nonfinite(value: Tensor) -> int:
    # Only finite terms have a finite sum, and summing is eight times as fast as looking at each.
    if not value.is_floating_point() or value.sum(dtype=torch.float32).isfinite():
        return 0
    return value.numel() - int(value.isfinite().count_nonzero())


def _kind(names: Iterable[str]) -> str:
    names = list(names)
    for kind, prefixes in _KINDS:
        if all(any(name.startswith(prefix) for name in names) for prefix in prefixes):
            return kind
    return f"unknown (its parts: {_first(sorted({name.partition('.')[0] for name in names}))})"


def _whole_number(value: Any) -> int | None:
    """A step or epoch: a number in a `.ckpt`, digits in the metadata of a `.safetensors`."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) else None


def file_hash(path: str | Path) -> str:
    """The first 12 hexadecimal digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:12]


def human_size(size: int) -> str:
    """A size in bytes, as downloads show it: "512 bytes", "1.2 MB", "3.1 GB"."""
    if size < 1000:
        return f"{size} bytes"
    exponent = 1 if size < 1e6 else 2 if size < 1e9 else 3
    return f"{size / 1000**exponent:.1f} {' kMG'[exponent]}B"


def _bad(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path} ({human_size(path.stat().st_size)}): {problem}")


def _first(names: list[str], limit: int = 5) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more or "none"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
