"""What a checkpoint file is, and telling weights apart."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ldm.checkpoint.ema import is_ema_name
from ldm.checkpoint.reading import checked_hash, count_nonfinite, read_checkpoint
from ldm.text import first_of

# (what a file is, prefixes that must each begin one of its names); the first that fits, wins.
_KINDS = (
    ("ArtFusion checkpoint", ("model.diffusion_model.", "null_style_vector.weight")),
    ("Stable Diffusion 1", ("model.diffusion_model.", "cond_stage_model.transformer.text_model.")),
    ("class-conditional latent diffusion", ("model.diffusion_model.", "cond_stage_model.embedding.weight")),
    ("latent diffusion", ("model.diffusion_model.", "cond_stage_model.")),
    (
        "latent diffusion without a condition stage of its own",
        ("model.diffusion_model.", "first_stage_model."),
    ),
    ("VQ first stage", ("encoder.", "decoder.", "quantize.embedding.weight")),
    ("KL first stage", ("encoder.", "decoder.", "quant_conv.")),
    # Of torchvision's networks only VGG16 has a convolution at 26.
    ("VGG16 features", ("features.0.", "features.26.")),
)


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
    hash_place: str  # where the hash stands that it was held against, in words; "" if there is none


def describe(path: str | Path) -> Report:
    """Read a whole file and say what it is. Raises CheckpointError as `read_state_dict` does."""
    path = Path(path)
    tensors, extra = read_checkpoint(path)
    dtypes = [str(value.dtype).removeprefix("torch.") for value in tensors.values()]
    nonfinite = {name: count_nonfinite(value) for name, value in tensors.items()}
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
        hash_place=checked_hash(path),
    )


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


def fingerprint(*modules: nn.Module) -> str:
    """12 hexadecimal digits that tell apart modules of other weights, wherever these came from."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
