"""Checkpoints: read them without running anything in them, load them strictly, bake the EMA in, write them small.

Names follow the published layout: `model.diffusion_model.*`, `null_style_vector.weight` and their EMA shadows
`model_ema.*`, `null_style_vector_ema.*`; a shadow's name is the live name with its dots removed.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.checkpoint_reading import first_of, human_size, one_line, read_checkpoint, read_state_dict
from ldm.errors import CheckpointError
from ldm.files import written_whole

__all__ = [
    "TRAINING_ONLY", "Mismatch", "Report", "bake_ema", "compare", "describe", "file_hash", "fingerprint", "human_size",
    "inference_only", "is_ema_name", "load_strict", "part_of", "read_state_dict", "save_safetensors", "without",
]  # fmt: skip

# (what a file is, prefixes that must each begin one of its names); the first that fits, wins.
_KINDS = (
    ("ArtFusion checkpoint", ("model.diffusion_model.", "null_style_vector.weight")),
    ("Stable Diffusion 1", ("model.diffusion_model.", "cond_stage_model.transformer.text_model.")),
    ("class-conditional latent diffusion", ("model.diffusion_model.", "cond_stage_model.embedding.weight")),
    ("latent diffusion", ("model.diffusion_model.", "cond_stage_model.")),
    ("latent diffusion without a condition stage of its own", ("model.diffusion_model.", "first_stage_model.")),
    ("VQ first stage", ("encoder.", "decoder.", "quantize.embedding.weight")),
    ("KL first stage", ("encoder.", "decoder.", "quant_conv.")),
    # Of torchvision's networks only VGG16 has a convolution at 26.
    ("VGG16 features", ("features.0.", "features.26.")),
)

_FIT_ADVICE = "use the config that belongs to the checkpoint, or name the prefixes to leave out in ignore_keys"
TRAINING_ONLY = ("loss.", "first_stage_model.loss.")
_EMA_COUNTERS = ("_ema.decay", "_ema.num_updates")

# Top-level buffers: float16 rounds betas near 1e-5 and alphas_cumprod near 1 too coarsely to sample with.
_FLOAT32_BUFFERS = (
    "betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "logvar", "scale_factor", "shift_values",
)  # fmt: skip


def part_of(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What a whole model's checkpoint holds under `prefix`, which is cut off; one without such names as it is."""
    part = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    return part or dict(state_dict)


@dataclass(frozen=True)
class Mismatch:
    """Where a state dict and a module disagree; false if nowhere."""

    missing: list[str]  # names of the module that the state dict lacks
    unexpected: list[str]  # names of the state dict that the module lacks
    misshapen: list[str]  # "name: shape there, not the module's shape"

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        return ", ".join(f"{len(names)} {kind} ({first_of(names)})" for kind, names in vars(self).items() if names)


def compare(module: nn.Module, state_dict: Mapping[str, Tensor], ignore_keys: Iterable[str] = ()) -> Mismatch:
    """How names and shapes of a state dict differ from a module's, leaving out names with the given prefixes."""
    prefixes = _prefixes(ignore_keys)
    expected = without(module.state_dict(), prefixes)
    given = without(state_dict, prefixes)
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
    module: nn.Module, state_dict: Mapping[str, Tensor], ignore_keys: Iterable[str] = (), where: str = "checkpoint", advice: str = _FIT_ADVICE
) -> None:
    """Copy a state dict into a module, in the module's own dtypes, if every name and shape agrees.

    `ignore_keys` are prefixes of names that are neither loaded nor required; `where` names the source in errors, and
    `advice` says what to do.
    Raises CheckpointError, with the module untouched, if anything differs or nothing is left to load.
    """
    prefixes = _prefixes(ignore_keys)
    given = without(state_dict, prefixes)
    mismatch = compare(module, given, prefixes)
    if mismatch:
        raise CheckpointError(f"{where} does not fit {type(module).__name__}; {advice}: {mismatch}")
    if not given:
        raise CheckpointError(f"{where}: nothing to load into {type(module).__name__}: all names are left out")
    module.load_state_dict(given, strict=False)  # not strict, as what ignore_keys leave out is missing


def without(state_dict: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors whose names do not begin with any of these."""
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
    return {n: value for n, value in state_dict.items() if not is_ema_name(n) and not n.startswith(TRAINING_ONLY)}


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
        raise CheckpointError(f"{len(orphans)} EMA weights belong to no live weight ({first_of(orphans)})")
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
    try:
        with written_whole(path) as aside:
            save_file(tensors, aside, {"format": "pt", **(metadata or {})})
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written: {one_line(error)}") from error


def _stored_dtype(name: str, value: Tensor, half: bool) -> torch.dtype:
    is_buffer = "." not in name and name.startswith(_FLOAT32_BUFFERS)
    return torch.float16 if half and value.is_floating_point() and not is_buffer else value.dtype


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
    tensors, extra = read_checkpoint(path)
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
    return f"unknown (its parts: {first_of(sorted({name.partition('.')[0] for name in names}))})"


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


def fingerprint(*modules: nn.Module) -> str:
    """12 hexadecimal digits that tell apart modules of other weights, wherever these came from."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
