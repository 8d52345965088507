"""`--dry-run`: build everything, take a step, and say what training will cost; nothing is
written."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from ldm.device import peak_memory
from ldm.errors import ConfigError, did_you_mean
from ldm.training.guard import NonFiniteGuard
from ldm.training.throughput import batch_size_of
from ldm.training.trainer import Recipe, make_trainer

log = logging.getLogger(__name__)


class _Measure(pl.Callback):
    """Times the second training batch; the first one warms up."""

    def __init__(self) -> None:
        self.seconds, self.images = 0.0, 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.strategy.barrier()  # all processes have finished the step
        self.seconds, self.images = (
            time.perf_counter() - self._began,
            batch_size_of(batch) * trainer.world_size,
        )


def dry_run(recipe: Recipe, run_folder: Path) -> None:
    """Run one training step after one to warm up, and one validation step; log parameters, speed
    and memory."""
    callbacks = recipe.configured_callbacks(run_folder)  # for what is wrong with them; none of them runs
    recipe.check_loggers(run_folder)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    # for what is wrong with the options that are others below
    make_trainer({**recipe.trainer_options(), **quiet})
    measure = _Measure()
    options = {
        **recipe.trainer_options(),
        **quiet,
        "max_steps": 2,
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
    }
    # At the end of these two batches comes the validation step.
    options |= {
        "max_epochs": 1,
        "val_check_interval": 1.0,
        "check_val_every_n_epoch": 1,
        "accumulate_grad_batches": 1,
    }
    trainer = make_trainer({**options, "callbacks": [NonFiniteGuard(), measure]})
    trainer.fit(recipe.model, recipe.data)
    _check_watched(callbacks, list(trainer.callback_metrics))
    if trainer.is_global_zero:
        for line in _report(recipe, trainer, measure):
            log.info("%s", line)


def _check_watched(callbacks: Sequence[pl.Callback], logged: Sequence[str]) -> None:
    """Raises ConfigError for a best checkpoint by a value that is not logged."""
    for callback in callbacks:
        watched = getattr(callback, "monitor", None)
        known = (None, "epoch", "step", *logged)
        if isinstance(callback, ModelCheckpoint | EarlyStopping) and watched not in known:
            what = "early stopping" if isinstance(callback, EarlyStopping) else "the best checkpoint"
            raise ConfigError(
                f"{what} is told by {watched!r}, which is not logged{did_you_mean(watched, logged)}; there are {', '.join(logged)}"
            )


def _report(recipe: Recipe, trainer: pl.Trainer, measure: _Measure) -> list[str]:
    weights = list(recipe.model.parameters())
    total, trained = (
        sum(p.numel() for p in group) / 1e6 for group in (weights, [p for p in weights if p.requires_grad])
    )
    losses = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if "loss" in name and value.numel() == 1
    }
    samples = {
        name: len(dataset)
        for name, dataset in getattr(recipe.data, "datasets", {}).items()
        if hasattr(dataset, "__len__")
    }
    return [
        f"model: {type(recipe.model).__name__}, {total:.4g} M parameters, {trained:.4g} M of them trained",
        f"data: {', '.join(f'{count:,} samples for {name}' for name, count in samples.items())}",
        f"device: {recipe.model.device.type}, {trainer.world_size} process(es), precision {trainer.precision}",
        f"step: {measure.seconds:.2f} s for {measure.images} pictures, {measure.images / measure.seconds:.1f} images/s, without reading them",
        f"memory: {peak_memory(trainer.strategy.root_device) / 1e9:.2f} GB at most so far",
        f"losses: {', '.join(f'{name} {value:.4g}' for name, value in losses.items())}",
    ]
