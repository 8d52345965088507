"""Training: config files and overrides in, a Lightning run with checkpoints and pictures out."""

import argparse
import logging
import re
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ldm.config.factory import allowing_targets, instantiate_from_config
from ldm.config.merge import merged_config, typed_keys
from ldm.data.workers import worker_errors
from ldm.early import handlers_kept
from ldm.errors import ConfigError, UserError
from ldm.training.checkpoint_files import find_checkpoint
from ldm.training.dry_run import dry_run
from ldm.training.failures import errors_of
from ldm.training.keep_last import SAVE_SIGNALS, STOP_SIGNALS, StoppedBySignal
from ldm.training.performance import apply_performance
from ldm.training.published_flags import DEFAULT_SEED
from ldm.training.resume import Resumed
from ldm.training.run_folder import (
    alone_in,
    check_free,
    kept_config,
    run_folder,
    take_published_run,
    without_resumed,
)
from ldm.training.trainer import Recipe

log = logging.getLogger(__name__)

# True, but nothing that the person who trains can or should mend.
_NOISE = (
    ".*isinstance.treespec.*",
    ".*This DataLoader will create.*",
    ".*module.s. in eval mode.*",
    ".*is not supported by the model summary.*",
    ".*your dataloader is not resumable.*",  # ours is: see DataModuleFromConfig.state_dict
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*functional.all_gather is deprecated.*",
    ".*IterableDataset. has .__len__. defined.*",
    ".*Total length of `list` across ranks is zero.*",  # no validation set
)
# What Lightning raises for a callback that watches what is not logged, and for more steps than an epoch has.
_LATE = re.compile("Early stopping conditioned on metric|`val_check_interval`")
_CHATTER = re.compile("litlogger|`weights_only` was not set")


def train(args: argparse.Namespace) -> None:
    """Train as the options of the training command say. Raises UserError for bad input before any
    work starts."""
    _quieten()
    resumed = Resumed(find_checkpoint(args.resume)) if args.resume else None
    # a run of the published code keeps its folder to itself
    own = resumed.path if resumed and resumed.is_ours else None
    if resumed and not own:
        take_published_run(args, resumed.path)
    folder = run_folder(args, own)
    seed = DEFAULT_SEED if args.seed is None else args.seed
    pl.seed_everything(seed, verbose=False)
    with allowing_targets(args.allow_target):
        # without a base there is a run's own: run_folder has seen to it
        config = merged_config(args.base or ([kept_config(own)] if own else []), args.overrides)
        if resumed:
            config = without_resumed(config)
        model, data = build(config, seed)
        if resumed:
            resumed.fit_to(model, seed)
        recipe = Recipe(config, model, data, args.gpus, typed_keys(args.overrides))
        apply_performance(model, recipe.section("performance"))
        if args.dry_run:
            return dry_run(recipe, folder)
        take = resumed.take if resumed else None
        check_free(folder, own)
        with recipe.opening.held():
            trainer = recipe.trainer(folder, seed, explicit_seed=args.seed is not None, resumed=take)
            if resumed:
                resumed.check_beginning(trainer, data)
            with (
                alone_in(folder) if trainer.is_global_zero else nullcontext(),
                handlers_kept(*STOP_SIGNALS, *SAVE_SIGNALS),
                errors_of(recipe.parts, folder),
            ):
                _fit(trainer, model, data, resumed.path if resumed else None)


def _quieten() -> None:
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"pytorch_lightning.{name}").addFilter(
            lambda record: not _CHATTER.search(record.getMessage())
        )


def _fit(
    trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, checkpoint: Path | None
) -> None:
    advice = (
        "lower data.params.num_workers or data.params.batch_size and go on with --resume "
        f"{trainer.default_root_dir}, where the last checkpoint is whole"
    )
    try:
        with worker_errors(advice):
            trainer.fit(model, data, ckpt_path=checkpoint)  # read already: see Recipe.trainer
        end = "finished"
    except StoppedBySignal:
        end = "stopped"
    except UserError:
        raise
    except (MisconfigurationException, RuntimeError, ValueError) as error:  # what Lightning finds on the way
        if not (isinstance(error, MisconfigurationException) or _LATE.match(str(error).strip())):
            raise
        raise ConfigError(f"training cannot go on: {error}") from error
    if trainer.is_global_zero:
        log.info(
            "%s at step %d, in %s; go on with --resume %s",
            end,
            trainer.global_step,
            trainer.default_root_dir,
            trainer.default_root_dir,
        )


def build(config: DictConfig, seed: int) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """(model, data module), the data found before the model is built. Raises ConfigError where they
    do not fit."""
    data = _built(config, "data", "data module", pl.LightningDataModule)
    data.seed = seed
    data.setup("fit")
    model = _built(config, "model", "model", pl.LightningModule)
    for key in ("base_learning_rate", "learning_rate"):
        if config.model.get(key) is not None:
            model.learning_rate = _positive(config.model[key], f"model.{key}")
    if config.model.get("base_learning_rate") is not None:
        log.info(
            "learning rate %g, as base_learning_rate says: latent-diffusion's command multiplied it by batch size, GPUs and accumulation",
            model.learning_rate,
        )
    for dataset in getattr(data, "datasets", {}).values():
        if hasattr(dataset, "check_model"):  # cached data fits only the encoders that made it
            dataset.check_model(model)
    log.info("%s: %.4g M parameters", type(model).__name__, sum(p.numel() for p in model.parameters()) / 1e6)
    return model, data


def _built(config: DictConfig, section: str, kind: str, base: type) -> Any:
    """What a section of the config describes. Raises ConfigError where that is of another kind."""
    built = instantiate_from_config(config[section], kind=kind, key=section)
    if not isinstance(built, base):
        raise ConfigError(f"{section}.target is a {type(built).__name__}; it must be a {base.__name__}")
    return built


def _positive(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(f"{name} must be a positive number, got {value!r}")
    return value
