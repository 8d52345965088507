"""Which model to paint with, and where, to be said before it is read: by options, to other processes."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm import __version__
from ldm.errors import UserError
from ldm.files import file_hash, own_or
from ldm.pipeline.bundled import resolve_checkpoint
from ldm.ranks import local_rank

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import StyleTransferPipeline


@dataclass(frozen=True)
class ModelChoice:
    """What `StyleTransferPipeline.from_pretrained` takes."""

    checkpoint: str | Path = "mini"
    config: str | Path | None = None
    device: str = "auto"
    precision: str = "auto"
    allow_targets: tuple[str, ...] = ()
    compile: bool = False

    def files(self) -> tuple[Path, Path]:
        """(checkpoint file, config file). Raises UserError where there is none."""
        checkpoint, config = resolve_checkpoint(self.checkpoint, self.config)
        if not checkpoint.is_file():
            raise UserError(f"{checkpoint}: no such file")
        if not own_or(config).is_file():
            raise UserError(f"config {config}: no such file")
        return checkpoint, config

    @cached_property
    def description(self) -> dict[str, Any]:
        """What a result's metadata say of the model. Reads the whole checkpoint. Raises UserError
        without one."""
        checkpoint, _ = self.files()
        return {
            "checkpoint": checkpoint.name,
            "checkpoint_sha256": file_hash(checkpoint),
            "version": __version__,
        }

    def load(self, settle_threads: bool = True) -> "StyleTransferPipeline":
        """The pipeline, on a GPU of its own where torchrun started several processes. Raises
        UserError.

        settle_threads: on a CPU, see before each picture how many threads are fastest now, which is
        for a process that does nothing else.
        """
        self.files()
        import torch  # takes seconds

        from ldm.device import use_free_threads
        from ldm.pipeline.pipeline import StyleTransferPipeline

        device, rank = self.device, local_rank()
        if rank is not None and device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{rank % torch.cuda.device_count()}"
        pipeline = StyleTransferPipeline.from_pretrained(
            self.checkpoint, self.config, device, self.precision, self.allow_targets, self.compile
        )
        if settle_threads and pipeline.model.device.type == "cpu":
            pipeline.before_each = use_free_threads
        return pipeline
