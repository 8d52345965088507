"""What `--resume` goes on from: a checkpoint that is read once and held against the model before
anything is written."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.core.optimizer import _configure_optimizers
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from ldm.checkpoint import load_strict
from ldm.checkpoint.reading import read_checkpoint
from ldm.data.datamodule import DataModuleFromConfig
from ldm.errors import CheckpointError, UserError
from ldm.modules.optimizers import names_of
from ldm.text import first_of
from ldm.training.moments import fitted_states
from ldm.training.published_checkpoint import present_state
from ldm.training.reproducible import StepSeeds

log = logging.getLogger(__name__)

_OTHER_WEIGHTS = "only a checkpoint of the same model can be resumed; to start from other weights, give model.params.ckpt_path=FILE"


class Resumed:
    """A training checkpoint of this project, or of the published code under an older Lightning.
    Nothing in it is executed.

    Raises CheckpointError for a file that is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self._state = _read(path)
        self.is_ours = StepSeeds.__name__ in (self._state.get("callbacks") or {})

    def fit_to(self, model: pl.LightningModule, seed: int) -> None:
        """See that it is this model's, and give each weight its own moments. Raises
        CheckpointError.

        `seed` is that of the run which goes on from another's checkpoint.
        """
        self._state["state_dict"] = weights = _without_optional(model, self._state["state_dict"])
        # Lightning would explain less
        load_strict(model, weights, where=f"--resume {self.path}", advice=_OTHER_WEIGHTS)
        if not {"optimizer_states", "lr_schedulers"} <= self._state.keys():
            raise CheckpointError(
                f"--resume {self.path}: weights alone, without an optimiser's state; {_OTHER_WEIGHTS}"
            )
        try:
            configured: Any = model.configure_optimizers()
            optimizers, schedules, _ = _configure_optimizers(configured)
        # of a module that asks its trainer for something, or has none
        except (RuntimeError, MisconfigurationException) as error:
            if self.is_ours:
                return  # Lightning takes the states in their order, as the same module wrote them
            raise CheckpointError(
                f"--resume {self.path}: whose moments are in it cannot be told: this model's optimisers need a trainer"
            ) from error
        self._fit_moments(model, optimizers)
        self._tell_of_schedules(len(schedules))
        if not self.is_ours:
            self._tell_of_missing_moments(model, optimizers)
            self._state = present_state(self._state, len(optimizers), seed, f"--resume {self.path}")

    def _fit_moments(self, model: pl.LightningModule, optimizers: list[Optimizer]) -> None:
        try:
            self._state["optimizer_states"] = fitted_states(
                model, optimizers, self._state["optimizer_states"], list(self._state["state_dict"])
            )
        except CheckpointError as error:
            raise CheckpointError(f"--resume {self.path}: its optimiser {error}; {_OTHER_WEIGHTS}") from error

    def _tell_of_schedules(self, count: int) -> None:
        """Lightning takes as many states as there are schedules, and says nothing."""
        held = len(self._state["lr_schedulers"])
        if held > count:
            log.warning(
                "%s: its learning-rate schedule is left out, as the config has none; the rate stays as it is",
                self.path,
            )
        elif held < count:
            log.warning(
                "%s: holds no learning-rate schedule; the config's begins with its first step", self.path
            )

    def _tell_of_missing_moments(self, model: pl.LightningModule, optimizers: list[Optimizer]) -> None:
        for optimizer, state in zip(optimizers, self._state["optimizer_states"]):
            names = names_of(
                model, (weight for group in optimizer.param_groups for weight in group["params"])
            )
            lacking = [name for number, name in enumerate(names) if number not in state["state"]]
            if lacking:
                log.warning(
                    "%s: no moments for %d of %d weights (%s); theirs start at zero",
                    self.path,
                    len(lacking),
                    len(names),
                    first_of(lacking),
                )

    def check_beginning(self, trainer: pl.Trainer, data: pl.LightningDataModule) -> None:
        """Raises UserError where the run that is to go on has another seed or other batches, or has
        its end before the checkpoint. Lightning would find that out after its loggers have begun to
        write."""
        data.trainer = trainer  # as it is going to be
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it from outside
        seeds = next(callback for callback in callbacks if isinstance(callback, StepSeeds))
        if kept := (self._state.get("callbacks") or {}).get(seeds.state_key):
            seeds.load_state_dict(kept)
        if isinstance(data, DataModuleFromConfig) and (kept := self._state.get(type(data).__qualname__)):
            data.load_state_dict(kept)
        epoch, end = self._state.get("epoch", 0), trainer.max_epochs
        if end not in (None, -1) and epoch > end:
            raise UserError(
                f"--resume {self.path}: is at epoch {epoch}, behind lightning.trainer.max_epochs={end}; give a later end"
            )

    def take(self) -> dict[str, Any]:
        """What Lightning loads; it is not kept, as it may be as large as the model."""
        state, self._state = self._state, {}
        return state


def _read(path: Path) -> dict[str, Any]:
    try:
        weights, content = read_checkpoint(path)
    except CheckpointError as error:
        best = path.parent / "best-*.ckpt"
        if not any(path.parent.glob(best.name)):
            raise
        reason = str(error).partition("; download")[0]  # advice for files that others made
        raise CheckpointError(
            f"{reason}; name another checkpoint of the run, such as one of {best}"
        ) from error
    return {**content, "state_dict": weights}


def _without_optional(model: pl.LightningModule, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what the model lacks and need not have, such as the networks of a first stage's
    training loss."""
    optional_keys: Any = getattr(model, "optional_keys", lambda weights: ())
    optional = tuple(optional_keys(weights))
    own = model.state_dict().keys()
    return {name: value for name, value in weights.items() if name in own or not name.startswith(optional)}
