"""Random numbers that depend on the seed and the step alone, so that a resumed run draws what it
would have drawn."""

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from ldm.data.order import mixed_seed
from ldm.errors import UserError


class StepSeeds(pl.Callback):
    """Seeds all generators before every training batch from (seed, epoch, batch, process).

    A checkpoint carries the seed; resuming goes on with it. `explicit`: the user asked for this
    very seed.
    """

    def __init__(self, seed: int, explicit: bool = False):
        self.seed, self.explicit = seed, explicit

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch, NumPy and Python for this batch of this process."""
        seed = mixed_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(seed)  # of all devices
        np.random.seed(seed % 2**32)
        random.seed(seed)

    def state_dict(self) -> dict[str, int]:
        """The run's seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on with the run's seed. Raises UserError where another was asked for."""
        if self.explicit and state_dict["seed"] != self.seed:
            raise UserError(
                f"--seed {self.seed}: the run to resume has the seed {state_dict['seed']}; leave --seed out"
            )
        self.seed = state_dict["seed"]
