"""What Lightning's trainer would take and fail on later, do nothing with, or refuse without naming it."""

from typing import Any

import pytorch_lightning as pl

from ldm.checks import check_count
from ldm.config.types import check_types
from ldm.errors import ConfigError

_SECTION = "lightning.trainer"


def check_options(options: dict[str, Any]) -> None:
    """Raises ConfigError for options of the config's `lightning.trainer` that cannot be."""
    ours = {"precision"} if options.get("precision") == "auto" else set()
    check_types(pl.Trainer, {key: value for key, value in options.items() if key not in ours}, _SECTION)
    _check_lengths(options)
    if options.get("gradient_clip_algorithm") not in (None, "norm", "value"):
        raise ConfigError(
            f"{_SECTION}.gradient_clip_algorithm must be norm or value, got {options['gradient_clip_algorithm']!r}"
        )
    if options.get("overfit_batches"):  # it puts samplers in the place of ours
        raise ConfigError(f"{_SECTION}.overfit_batches is not for this data; give limit_train_batches")
    if str(options.get("precision")).startswith("64"):
        raise ConfigError(f"{_SECTION}.precision: pictures have 32 bits at most; give 32-true")
    if options.get("precision") in ("16-true", "bf16-true"):  # pictures and noise stay of 32
        raise ConfigError(
            f"{_SECTION}.precision: weights of 16 bits lose an optimiser's small steps; give bf16-mixed"
        )


def _check_lengths(options: dict[str, Any]) -> None:
    for key in ("max_steps", "max_epochs"):
        value = options.get(key, -1)
        if value is not None and (not isinstance(value, int) or value < -1):
            raise ConfigError(f"{_SECTION}.{key} must be a whole number from -1 (no limit) on, got {value!r}")
    for key in ("max_steps", "max_epochs", "limit_train_batches"):
        if options.get(key) == 0:
            raise ConfigError(f"{_SECTION}.{key} is 0, so that nothing would be trained; leave it out")
    for key in ("accumulate_grad_batches", "log_every_n_steps"):
        check_count(f"{_SECTION}.{key}", options.get(key, 1))
    if options.get("check_val_every_n_epoch") is not None:
        check_count(f"{_SECTION}.check_val_every_n_epoch", options["check_val_every_n_epoch"])
    every = options.get("val_check_interval", 1.0)
    if isinstance(every, (int, float)) and every <= 0:  # a text may be a time
        raise ConfigError(f"{_SECTION}.val_check_interval must be above 0, got {every!r}")
