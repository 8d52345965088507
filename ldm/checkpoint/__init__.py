"""Checkpoints: read them without running anything in them, load them strictly, bake the EMA in,
write them small. The names are imported when they are asked for."""

from typing import TYPE_CHECKING

from ldm.lazy import names_from

if TYPE_CHECKING:
    from ldm.checkpoint.describing import Report, describe, fingerprint
    from ldm.checkpoint.ema import TRAINING_ONLY, bake_ema, inference_only, is_ema_name
    from ldm.checkpoint.loading import Mismatch, compare, load_strict, part_of, without
    from ldm.checkpoint.reading import read_checkpoint, read_state_dict
    from ldm.checkpoint.writing import save_safetensors

__all__ = [
    "TRAINING_ONLY", "Mismatch", "Report", "bake_ema", "compare", "describe", "fingerprint",
    "inference_only", "is_ema_name", "load_strict", "part_of", "read_checkpoint", "read_state_dict", "save_safetensors", "without",
]  # fmt: skip

__getattr__ = names_from(
    __name__,
    {
        **dict.fromkeys(["Report", "describe", "fingerprint"], "ldm.checkpoint.describing"),
        **dict.fromkeys(["TRAINING_ONLY", "bake_ema", "inference_only", "is_ema_name"], "ldm.checkpoint.ema"),
        **dict.fromkeys(
            ["Mismatch", "compare", "load_strict", "part_of", "without"], "ldm.checkpoint.loading"
        ),
        **dict.fromkeys(["read_checkpoint", "read_state_dict"], "ldm.checkpoint.reading"),
        "save_safetensors": "ldm.checkpoint.writing",
    },
)
