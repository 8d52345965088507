"""`last.ckpt`: kept fresh while training runs, and written when a signal or an exception ends
it."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    LearningRateFinder,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)

from ldm.checks import check_count
from ldm.errors import CheckpointError, ConfigError, NonFiniteError
from ldm.files import remove_left_asides

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAVE_SIGNALS = (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()  # Windows has none
_NOTHING, _SAVE, _STOP = range(3)
_BATCHES_BETWEEN_AGREEMENTS = 10
_NOT_RESUMED = (BatchSizeFinder, LearningRateFinder, ModelPruning, StochasticWeightAveraging)


class StoppedBySignal(BaseException):
    """Ends the training after its checkpoint has been written. No Exception, so that nothing takes
    it for a failure."""


class KeepLast(pl.Callback):
    """Writes `path` every `every_n_train_steps` optimiser steps, after every epoch, on SIGUSR1, on
    SIGINT and SIGTERM (which then end the run), and when an exception ends it; when that is a loss
    that is no number, into `not_finite.ckpt` beside it.

    Signals act after the optimiser step in progress. Several processes agree on one every few
    batches, since writing is something that they do together.
    """

    def __init__(self, path: str | Path, every_n_train_steps: int = 1000):
        check_count("lightning.last.every_n_train_steps", every_n_train_steps)
        self.path, self.every = Path(path), every_n_train_steps
        self._wanted = _NOTHING
        self._step = self._saved_step = 0
        self._since_step = 0  # batches

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take the signals, and remove what a kill in the middle of writing has left."""
        self._step = self._saved_step = trainer.global_step
        _begin_next_epoch(trainer)
        self._count_right(trainer)
        if trainer.is_global_zero:
            remove_left_asides([self.path])  # of a run that was killed while it wrote
        # Lightning has set up its own handlers by now, which would broadcast to other processes
        # from within a handler.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS if _requeues_on_signal(trainer) else STOP_SIGNALS + SAVE_SIGNALS:
                signal.signal(number, self._on_signal)

    def _count_right(self, trainer: pl.Trainer) -> None:
        """Let every checkpoint of the run, whichever callback writes it, be counted as `_counted`
        does."""
        connector = trainer._checkpoint_connector
        if "dump_checkpoint" in vars(connector):
            return  # the trainer has trained before
        dump = connector.dump_checkpoint

        def counted(*args: Any, **options: Any) -> dict[str, Any]:
            with _counted(trainer, self._since_step):
                return dump(*args, **options)

        connector.dump_checkpoint = counted  # type: ignore[method-assign]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._wanted = max(self._wanted, _SAVE if number in SAVE_SIGNALS else _STOP)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write after an optimiser step if it is time to or asked for. Raises StoppedBySignal if
        that is all."""
        if trainer.global_step == self._step:
            self._since_step += 1
            return  # in the middle of gradient accumulation, which no checkpoint holds
        self._since_step = 0
        before, self._step = self._step, trainer.global_step
        wanted = self._agreed(trainer, batch_idx)
        if wanted or self._step // self.every > before // self.every:
            self.save(trainer)
        if wanted:
            self._wanted = _NOTHING
        if wanted == _STOP:
            raise StoppedBySignal(self.path)

    def _agreed(self, trainer: pl.Trainer, batch_idx: int) -> int:
        """What any of the processes was asked for."""
        if trainer.world_size == 1:
            return self._wanted
        if batch_idx % _BATCHES_BETWEEN_AGREEMENTS:
            return _NOTHING  # what this process was asked for waits
        wanted = torch.tensor(self._wanted, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(wanted, reduce_op="max"))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write after every epoch, and where a run ends within one."""
        self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write `path`; all processes do that together."""
        trainer.save_checkpoint(self.path)
        self._saved_step = trainer.global_step

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Write what is not saved yet, unless it is a checkpoint that could not be written."""
        if (
            not trainer.is_global_zero
            or trainer.global_step == self._saved_step
            or isinstance(exception, CheckpointError)
        ):
            return
        try:
            # A run may have been on its way to ruin for a while when its loss stops being a number.
            path = (
                self.path.with_name("not_finite.ckpt") if isinstance(exception, NonFiniteError) else self.path
            )
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            # Trainer.save_checkpoint would wait for the other processes, which know nothing of the
            # exception.
            trainer.strategy.save_checkpoint(content, path)
            log.info("checkpoint of step %d written: %s", trainer.global_step, path)
        except Exception as error:
            log.error("no checkpoint could be written on the way out: %s", error)


def check_goes_on(callback: pl.Callback, key: str) -> None:
    """Raises ConfigError for one that would remove `last.ckpt`; tells of those whose own state no
    checkpoint has."""
    name = type(callback).__name__
    if isinstance(callback, OnExceptionCheckpoint):  # which removes it where nothing has happened
        raise ConfigError(f"{key}: leave {name} out; an error writes checkpoints/last.ckpt by itself")
    if isinstance(callback, _NOT_RESUMED):
        log.warning("%s: a run with %s does not go on exactly, or not at all, with --resume", key, name)


def _begin_next_epoch(trainer: pl.Trainer) -> None:
    """Where a run goes on behind a whole epoch, do so if it is to end at a number of steps, too:
    Lightning would begin that epoch's end once more, count it twice, and train a batch too many
    where no validation falls on it."""
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress
    if loop.restarted_on_epoch_end and loop.epoch_loop.batch_progress.current.ready >= loop.max_batches:
        loop._restarting = loop.epoch_loop.restarting = False
        loop.update_restart_stage()
        epochs.increment_completed()
    epochs.current.processed = epochs.current.completed


@contextmanager
def _counted(trainer: pl.Trainer, since_step: int) -> Iterator[None]:
    """Within it, Lightning counts as done what a checkpoint holds: no batches since the last
    optimiser step, whose gradients are nowhere, and as many epochs as their batches tell. It counts
    one that a run ends in the middle of, too, and would go on with the next; and of a whole one, the
    last batch as begun only, which would be missing from all that follows."""
    loop = trainer.fit_loop
    batches: Any = loop.epoch_loop.batch_progress
    epochs: Any = loop.epoch_progress
    is_whole = not since_step and batches.current.processed >= loop.max_batches
    too_many = epochs.current.processed - epochs.current.completed - is_whole
    missing = is_whole * (batches.current.processed - batches.current.completed)
    fields = ("ready", "started", "processed", "completed")
    changes = [
        *((each, "processed", too_many) for each in (epochs.current, epochs.total)),
        *((each, name, since_step) for each in (batches.current, batches.total) for name in fields),
        *((each, "completed", -missing) for each in (batches.current, batches.total)),
        (loop.epoch_loop, "_batches_that_stepped", -missing),
    ]
    for progress, name, by in changes:
        setattr(progress, name, getattr(progress, name) - by)
    try:
        yield
    finally:
        for progress, name, by in changes:
            setattr(progress, name, getattr(progress, name) + by)


def _requeues_on_signal(trainer: pl.Trainer) -> bool:
    """Whether Lightning answers a SLURM signal by putting the job into the queue again."""
    return bool(getattr(getattr(trainer.strategy, "cluster_environment", None), "auto_requeue", False))
