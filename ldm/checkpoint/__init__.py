"""Checkpoints: read them without running anything in them, load them strictly, bake the EMA in,
write them small."""

from ldm.checkpoint.describing import Report, describe, fingerprint
from ldm.checkpoint.ema import TRAINING_ONLY, bake_ema, inference_only, is_ema_name
from ldm.checkpoint.loading import Mismatch, compare, load_strict, part_of, without
from ldm.checkpoint.reading import read_checkpoint, read_state_dict
from ldm.checkpoint.writing import save_safetensors

__all__ = [
    "TRAINING_ONLY", "Mismatch", "Report", "bake_ema", "compare", "describe", "fingerprint",
    "inference_only", "is_ema_name", "load_strict", "part_of", "read_checkpoint", "read_state_dict", "save_safetensors", "without",
]  # fmt: skip
