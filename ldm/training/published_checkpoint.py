"""Training checkpoints that the published code wrote under Lightning 1.x, as the present Lightning
would have them.

They say at which step and epoch they were written. They do not say which samples of the epoch came
before.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from ldm.data.datamodule import DataModuleFromConfig
from ldm.errors import CheckpointError
from ldm.text import first_of

log = logging.getLogger(__name__)

_SCHEDULE = ("base_lrs", "last_epoch", "_step_count", "_last_lr")


def present_state(state: Mapping[str, Any], optimizers: int, seed: int, where: str) -> dict[str, Any]:
    """What goes on from the beginning of the next epoch, or of the one that was in progress, with
    random numbers by `seed`.

    Tells, one line each, what is taken over and what is not. Raises CheckpointError, which begins
    with `where`, for a file that says too little.
    """
    release = _release(state, where)
    step, epoch = _step(state, optimizers, release, where), _epoch(state, release, where)
    rates = [
        f"{group['lr']:.4g}" for optimizer in state["optimizer_states"] for group in optimizer["param_groups"]
    ]
    rate = first_of(list(dict.fromkeys(rates)))
    log.info(
        "%s: goes on from step %d, epoch %d, with the optimiser's moments and a learning rate of %s",
        where,
        step,
        epoch,
        rate,
    )
    log.info(
        "%s: does not say which samples of its epoch came before; epoch %d begins anew, by the seed %d",
        where,
        epoch,
        seed,
    )
    if state.get("callbacks"):
        log.info("%s: the state of its callbacks, such as the best values so far, is left out", where)
    position = {"seed": seed, "epoch": epoch, "samples": 0, "whole_batch": 0}
    kept = {
        name: state[name]
        for name in ("state_dict", "optimizer_states", "native_amp_scaling_state")
        if name in state
    }
    return {
        **kept,
        "pytorch-lightning_version": pl.__version__,
        "global_step": step,
        "epoch": epoch,
        "loops": {"fit_loop": _fit_loop(step, epoch)},
        "lr_schedulers": [_schedule(schedule, where) for schedule in state["lr_schedulers"]],
        "callbacks": {},
        DataModuleFromConfig.__name__: position,
    }


def _release(state: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """(1, 6) of Lightning 1.6.5."""
    version = state.get("pytorch-lightning_version")
    if not isinstance(version, str):
        raise CheckpointError(f"{where}: not written by Lightning, as a training checkpoint has to be")
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _step(state: Mapping[str, Any], optimizers: int, release: tuple[int, ...], where: str) -> int:
    step = _count(state, "global_step", where)
    return step // optimizers if release >= (1, 6) and optimizers else step  # it counts the steps of each


def _epoch(state: Mapping[str, Any], release: tuple[int, ...], where: str) -> int:
    """The epoch to begin: behind one that is complete. Until Lightning 1.6 that is what the file
    says."""
    epoch = _count(state, "epoch", where)
    try:
        complete = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] is True
    except (KeyError, TypeError):
        complete = False
    return epoch + (complete and release >= (1, 6))


def _count(state: Mapping[str, Any], name: str, where: str) -> int:
    value = state.get(name)
    if not isinstance(value, int) or value < 0:
        raise CheckpointError(f"{where}: does not say its {name}, as a training checkpoint has to")
    return value


def _schedule(schedule: Any, where: str) -> dict[str, Any]:
    """The state of a LambdaLR, without what its function keeps."""
    if not isinstance(schedule, Mapping) or not {*_SCHEDULE} <= schedule.keys():
        raise CheckpointError(f"{where}: the state of its learning-rate schedule is none of LambdaLR's")
    return {**{name: schedule[name] for name in _SCHEDULE}, "lr_lambdas": [None] * len(schedule["base_lrs"])}


def _fit_loop(step: int, epoch: int) -> dict[str, Any]:
    """Lightning's counters before the first batch of an epoch."""
    steps = {"total": _counted(step), "current": _counted(0)}
    return {
        "epoch_progress": {"total": _counted(epoch), "current": _counted(epoch)},
        "epoch_loop.state_dict": {"_batches_that_stepped": step},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {"step": steps, "zero_grad": steps}
        },
        "epoch_loop.manual_optimization.optim_step_progress": steps,
    }


def _counted(n: int) -> dict[str, int]:
    return dict.fromkeys(("ready", "started", "processed", "completed"), n)
