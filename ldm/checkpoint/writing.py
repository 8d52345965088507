"""Writing weights small and whole."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoint.hashes import KEY, NONE_YET, seal
from ldm.checkpoint.headers import header_text
from ldm.checkpoint.reading import count_nonfinite
from ldm.errors import CheckpointError
from ldm.files import written_whole
from ldm.text import one_line

# Top-level buffers: float16 rounds betas near 1e-5 and alphas_cumprod near 1 too coarsely to sample
# with.
_FLOAT32_BUFFERS = (
    "betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "logvar", "scale_factor", "shift_values",
)  # fmt: skip


def save_safetensors(
    state_dict: Mapping[str, Tensor],
    path: str | Path,
    metadata: dict[str, str] | None = None,
    half: bool = False,
) -> None:
    """Write tensors, a few words about them and a hash of it all to a `.safetensors` file, whole or
    not at all.

    `half` stores floating-point weights as float16, but never the noise schedule and the latent's
    scale and shift. Raises CheckpointError if a weight does not fit float16 or the file cannot be
    written.
    """
    path = Path(path)
    # safetensors refuses tensors that share memory, as tied weights do: each gets memory of its
    # own.
    tensors = {
        name: value.to(_stored_dtype(name, value, half), copy=True, memory_format=torch.contiguous_format)
        for name, value in state_dict.items()
    }
    for name, value in state_dict.items():
        if count_nonfinite(tensors[name]) > count_nonfinite(value):
            raise CheckpointError(
                f"{name}: its values exceed float16's largest, 65504; write float32 instead"
            )
    try:
        with written_whole(path) as aside:
            save_file(tensors, aside, {"format": "pt", **(metadata or {}), KEY: NONE_YET})
            seal(aside, header_text(aside))
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written: {one_line(error)}") from error


def _stored_dtype(name: str, value: Tensor, half: bool) -> torch.dtype:
    is_buffer = "." not in name and name.startswith(_FLOAT32_BUFFERS)
    return torch.float16 if half and value.is_floating_point() and not is_buffer else value.dtype
