"""Training by the clock: it ends when the time is over, and the learning rate falls with the time
that is left."""

import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ldm.checks import check_count, check_fractions
from ldm.errors import ConfigError
from ldm.training import FINISHED


class TimeBudget(pl.Callback):
    """Ends a run after `hours` of all its sittings together, from the first training step on.

    The learning rate rises over `warm_up_steps` to the model's own and falls along half a cosine to
    `lr_min` of that at the end, so the model must have no schedule of its own. A run that is
    stopped before the end and resumed has the rest of its time left.
    """

    def __init__(self, hours: float, warm_up_steps: int = 50, lr_min: float = 0.02):
        if not hours > 0:
            raise ConfigError(f"TimeBudget: hours must be above 0, got {hours}")
        check_count("TimeBudget: warm_up_steps", warm_up_steps)
        check_fractions(lr_min=lr_min)
        self.seconds, self.warm_up_steps, self.lr_min = 3600 * hours, warm_up_steps, lr_min
        self._before = 0.0
        self._rates: list[float] = []  # the model's own, once training has begun
        self._began: float | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock. Raises ConfigError for a model with a schedule of its own."""
        if trainer.lr_scheduler_configs:
            raise ConfigError(
                "TimeBudget: the model has a schedule of its own; take it out with model.params.scheduler_config=null"
            )
        if not self._rates:
            self._rates = [
                group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups
            ]
        self._began = time.monotonic()

    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    def factor(self, share: float, step: int) -> float:
        """Of the learning rate, when this share of the time and this many steps have gone by."""
        falling = self.lr_min + (1 - self.lr_min) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
        return falling * min(1.0, (step + 1) / self.warm_up_steps)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the learning rate by the time that is left; stop after this step when it is over."""
        # The processes' clocks differ, and all must stop at the same step.
        elapsed = trainer.strategy.broadcast(self.elapsed()) if trainer.world_size > 1 else self.elapsed()
        factor = self.factor(elapsed / self.seconds, trainer.global_step)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * factor
        module.log("minutes_left", max(self.seconds - elapsed, 0.0) / 60, prog_bar=True)
        if elapsed >= self.seconds:
            trainer.should_stop = True  # after this step

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave the file FINISHED where the time is used up."""
        if trainer.should_stop and trainer.is_global_zero and self.elapsed() >= self.seconds:
            Path(trainer.default_root_dir, FINISHED).touch()

    def state_dict(self) -> dict[str, Any]:
        """Seconds of training so far, and the model's own learning rates."""
        return {"elapsed": self.elapsed(), "rates": self._rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the rest of the time."""
        self._before, self._rates = state["elapsed"], state["rates"] or []
