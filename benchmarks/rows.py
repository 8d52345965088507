"""The rows of the tables: each is one way to paint or to train, with a short name for `--rows`.
Nothing here imports torch."""

from dataclasses import dataclass
from typing import Any

from ldm.pipeline.looks import SAMPLERS
from ldm.pipeline.settings import Settings

GUIDANCE = (0.7, 1.5)  # of content and style: all three branches of guidance

_SOLVER = f"DPM-Solver++, {SAMPLERS['dpm-solver++'].steps} steps"


@dataclass(frozen=True)
class SamplingRow:
    """One way to paint: what the table calls it, and how it differs from ours with two-way guidance
    in float32."""

    label: str
    way: str = "prepared"  # or "published", "unprepared", "process"
    precision: str = "fp32"
    channels_last: bool = False
    fused_attention: bool = True  # torch's kernels for scaled dot product attention, or its plain formula
    compile: bool = False
    record: bool = False  # as CUDA graphs
    optional: bool = False  # the other rows go on where it fails
    scales: tuple[float, float] = GUIDANCE
    interval: tuple[float, float] | None = None
    batch: int = 1
    converged: bool = False  # as many steps of DDIM as there are, once: what the others are compared with

    @property
    def comparable(self) -> bool:
        """Whether its picture goes towards the converged one as steps are added."""
        return self.way in ("unprepared", "prepared")

    @property
    def for_gpus(self) -> bool:
        return self.record or self.precision == "fp16"

    def settings(self, num_timesteps: int) -> Settings:
        sampler = {"sampler": "ddim", "steps": num_timesteps} if self.converged else {}
        return Settings(look="sampled", guidance_interval=self.interval, **sampler)


@dataclass(frozen=True)
class TrainingRow:
    """One way to train: what the table calls it, and how it differs from float32 on pictures."""

    label: str
    cached: bool = False
    recompute: bool = False  # attention's activations, as the published code always does
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    fused: bool = True  # the optimiser, on CUDA

    for_gpus = False


Options = dict[str, Any]
PUBLISHED = "published: 250 steps of DDIM with fresh noise, all computed at every step, float32"
PUBLISHED_TRAINING = "published: encoders in the step, attention recomputed, float32"
BF16: Options = {"precision": "bf16"}
FAST: Options = {"channels_last": True, **BF16}
OURS: Options = {"channels_last": True, "precision": "auto"}
OLD: Options = {"way": "unprepared", "fused_attention": False}
CACHED: Options = {"cached": True, "bf16": True}

SAMPLING = {
    "published": SamplingRow(PUBLISHED, way="published"),
    "dpm-solver": SamplingRow(_SOLVER, way="unprepared"),
    "prepared": SamplingRow("+ conditions prepared once"),
    "bf16": SamplingRow("+ bf16", **BF16),
    "channels-last": SamplingRow("+ channels_last", **FAST),
    "compile": SamplingRow("+ compile (optional)", compile=True, optional=True, **FAST),
    "one-branch": SamplingRow("ours, scales 1 and 1 (no null branches)", scales=(1.0, 1.0), **OURS),
    "interval": SamplingRow("ours, guidance from 0.2 to 0.8 of the way", interval=(0.2, 0.8), **OURS),
    "batch": SamplingRow("ours, batch of 8", batch=8, **OURS),
    "process": SamplingRow("whole process: artfusion stylize --look sampled", way="process"),
}
TRAINING = {
    "published": TrainingRow(PUBLISHED_TRAINING, recompute=True),
    "stored": TrainingRow("no recomputing"),
    "bf16": TrainingRow("no recomputing, bf16", bf16=True),
    "cached": TrainingRow("cached latents, float32", cached=True),
    "cached-bf16": TrainingRow("cached latents, bf16", **CACHED),
    "channels-last": TrainingRow("cached latents, bf16, channels_last", channels_last=True, **CACHED),
    "compile": TrainingRow("cached latents, bf16, compile", compile=True, **CACHED),
}
GPU_PAINTING = {
    "published": SamplingRow(PUBLISHED, way="published", fused_attention=False),
    "dpm-solver": SamplingRow(_SOLVER, **OLD),
    "bf16": SamplingRow("+ bf16", **OLD, **BF16),
    "channels-last": SamplingRow("+ channels_last", **OLD, **FAST),
    "prepared": SamplingRow("+ conditions prepared once", fused_attention=False, **FAST),
    "fused-attention": SamplingRow("+ fused attention", **FAST),
    "compile": SamplingRow("+ compile", compile=True, **FAST),
    "compiled-graph": SamplingRow("+ CUDA graph of the whole picture", compile=True, record=True, **FAST),
    "graph": SamplingRow("CUDA graph without compile", record=True, **FAST),
    "graph-fp16": SamplingRow(
        "CUDA graph without compile, fp16", record=True, channels_last=True, precision="fp16"
    ),
}
REFERENCE = "dpm-solver"  # its numbers are what the faster ways are compared with
GPU_TRAINING = {
    "train-published": TrainingRow(PUBLISHED_TRAINING, recompute=True, fused=False),
    "train-bf16": TrainingRow("+ bf16", recompute=True, fused=False, bf16=True),
    "train-stored": TrainingRow("+ no recomputing", fused=False, bf16=True),
    "train-cached": TrainingRow("+ cached latents", fused=False, **CACHED),
    "train-channels-last": TrainingRow("+ channels_last", fused=False, channels_last=True, **CACHED),
    "train-fused-adamw": TrainingRow("+ fused AdamW", channels_last=True, **CACHED),
    "train-compile": TrainingRow("+ compile", channels_last=True, compile=True, **CACHED),
}
GPU = GPU_PAINTING | GPU_TRAINING
