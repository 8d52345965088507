"""How fast training runs and what it waits for: pictures a second, the share of time spent waiting
for data, peak memory and, on a GPU, the share of the matrix rate that this very GPU reaches."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm.device import peak_memory

_MATRIX_SIDE, _MATRIX_RUNS = 8192, 20


class Throughput(pl.Callback):
    """Logs, every `log_every_n_steps` batches over the batches since: `images_per_s` (all processes
    together), `data_wait` (0 to 1), `peak_GB` and, on a GPU, `matrix_share` (0 to 1).

    Stands before all other callbacks and `last` behind them, so that what they do (pictures,
    checkpoints) does not count; nor does validation.
    """

    def __init__(self) -> None:
        self.last = _BatchOver(self)
        self.flops_per_batch: float | None = None
        self._counter: FlopCounterMode | None = None
        self._matrix_rate = 0.0
        self._restart()

    def _restart(self) -> None:
        self._images = self._batches = 0
        self._waited = self._worked = 0.0
        self._batch_began = 0.0
        self._batch_ended: float | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start counting; on a GPU, measure its matrix rate first."""
        self._restart()
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._matrix_rate = matrix_rate(
                module.device, torch.bfloat16 if "bf16" in trainer.precision else torch.float32
            )
            self._counter = FlopCounterMode(display=False)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """What has passed since the last batch was spent waiting for data."""
        now = time.perf_counter()
        if self._batch_ended is not None:
            self._waited += now - self._batch_ended
        self._batch_began = now
        if self._counter is not None:
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log when there are enough."""
        ended = time.perf_counter()
        if self._counter is not None:  # the first batch was for counting, and for warming up
            self._counter.__exit__(None, None, None)
            self.flops_per_batch, self._counter = float(self._counter.get_total_flops()), None
            self._restart()
            return
        self._worked += ended - self._batch_began
        self._images += batch_size_of(batch) * trainer.world_size
        self._batches += 1
        if self._batches >= trainer.log_every_n_steps:  # type: ignore[attr-defined]  # Lightning sets it from outside
            module.log_dict(
                self._values(module.device), prog_bar=True, on_step=True, on_epoch=False, batch_size=1
            )
            self._restart()

    def batch_over(self) -> None:
        """From now on the loop waits for data."""
        self._batch_ended = time.perf_counter()

    def _values(self, device: torch.device) -> dict[str, float]:
        seconds = self._waited + self._worked
        values = {
            "images_per_s": self._images / seconds,
            "data_wait": self._waited / seconds,
            "peak_GB": peak_memory(device) / 1e9,
        }
        if self._matrix_rate and self.flops_per_batch:
            values["matrix_share"] = self.flops_per_batch * self._batches / seconds / self._matrix_rate
        return values

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """What follows is no waiting for training data."""
        self._batch_ended = None  # what follows is no waiting for training data

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """What follows is no waiting for training data."""
        self._batch_ended = None


class _BatchOver(pl.Callback):
    def __init__(self, throughput: Throughput):
        self.throughput = throughput

    def on_train_batch_end(self, *args: Any) -> None:
        self.throughput.batch_over()


def batch_size_of(batch: Any) -> int:
    """Samples in a batch: the length of the first tensor found."""
    if isinstance(batch, Tensor):
        return len(batch)
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return next((n for n in map(batch_size_of, values) if n), 0)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product on a CUDA device."""
    a, b = (torch.randn(_MATRIX_SIDE, _MATRIX_SIDE, device=device, dtype=dtype) for _ in range(2))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for run in range(2 * _MATRIX_RUNS):  # the first half warms up
        if run == _MATRIX_RUNS:
            start.record()
        torch.mm(a, b)
    end.record()
    torch.cuda.synchronize(device)
    return 2 * _MATRIX_SIDE**3 * _MATRIX_RUNS / (start.elapsed_time(end) / 1000)
