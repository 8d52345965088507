"""The training command: config files and overrides in, a Lightning run with checkpoints and pictures out."""

import argparse
import datetime
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from ldm.checkpoint import load_strict, read_state_dict
from ldm.errors import ConfigError, UserError
from ldm.training.checkpoint_files import find_checkpoint
from ldm.training.command_line import DEFAULT_SEED, parse_args
from ldm.training.config import merged_config
from ldm.training.dry_run import dry_run
from ldm.training.keep_last import StoppedBySignal, signal_handlers_kept
from ldm.training.performance import apply_performance
from ldm.training.trainer import Recipe
from ldm.util import allowing_targets, instantiate_from_config

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
_CHATTER = re.compile("litlogger|`weights_only` was not set")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the training command. Raises UserError for bad input before any work starts."""
    args = parse_args(argv)
    _quieten()
    checkpoint = find_checkpoint(args.resume) if args.resume else None
    run_folder = _run_folder(args, checkpoint)
    config = merged_config(args.base or [_kept_config(run_folder)], args.overrides)
    resumed = read_state_dict(checkpoint) if checkpoint else None
    seed = DEFAULT_SEED if args.seed is None else args.seed
    pl.seed_everything(seed, verbose=False)
    with allowing_targets(args.allow_target):
        model, data = build(config, seed)
        if resumed is not None:  # Lightning loads it again, with its optimisers, but explains less
            load_strict(model, resumed, where=f"--resume {checkpoint}")
        recipe = Recipe(config, model, data, args.gpus)
        apply_performance(model, recipe.section("performance"))
        if args.dry_run:
            return dry_run(recipe)
        trainer = recipe.trainer(run_folder, seed, explicit_seed=args.seed is not None)
        if trainer.is_global_zero:
            _keep_config(config, run_folder)
        _fit(trainer, model, data, checkpoint)


def _quieten() -> None:
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"pytorch_lightning.{name}").addFilter(lambda record: not _CHATTER.search(record.getMessage()))


def _fit(trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, checkpoint: Path | None) -> None:
    try:
        with signal_handlers_kept():
            # Our own checkpoint, written by the same command; weights_only keeps a stranger's file harmless.
            trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except StoppedBySignal as stop:
        if trainer.is_global_zero:
            log.info("stopped at step %d; go on with: --resume %s", trainer.global_step, stop)


def _run_folder(args: argparse.Namespace, checkpoint: Path | None) -> Path:
    """Where the run writes: a resumed one into its own folder, unless it gets another name."""
    if checkpoint is not None and args.name is None and checkpoint.resolve().parent.name == "checkpoints":
        return checkpoint.resolve().parent.parent
    if not args.base and args.name is None:
        raise UserError(f"--resume {args.resume}: give the config with --base, as the checkpoint lies in no run's folder")
    return Path(args.logdir) / (args.name or Path(args.base[-1]).stem)


def _kept_config(run_folder: Path) -> Path:
    """The newest config that the run was started with."""
    kept = sorted(run_folder.glob("config_*.yaml"))
    if not kept:
        raise UserError(f"{run_folder}: no config_*.yaml in this run's folder; give the config with --base")
    return kept[-1]


def _keep_config(config: DictConfig, run_folder: Path) -> None:
    run_folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, run_folder / f"config_{datetime.datetime.now():%Y%m%d_%H%M%S}.yaml")


def build(config: DictConfig, seed: int) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """(model, data module), the data found before the model is built. Raises ConfigError where they do not fit."""
    data = instantiate_from_config(config.data)
    if not isinstance(data, pl.LightningDataModule):
        raise ConfigError(f"data.target is a {type(data).__name__}; it must be a LightningDataModule")
    data.seed = seed
    data.setup("fit")
    model = instantiate_from_config(config.model)
    if not isinstance(model, pl.LightningModule):
        raise ConfigError(f"model.target is a {type(model).__name__}; it must be a LightningModule")
    for key in ("base_learning_rate", "learning_rate"):
        if config.model.get(key) is not None:
            model.learning_rate = _positive(config.model[key], f"model.{key}")
    for dataset in getattr(data, "datasets", {}).values():
        if hasattr(dataset, "check_model"):  # cached data fits only the encoders that made it
            dataset.check_model(model)
    log.info("%s: %.1f M parameters", type(model).__name__, sum(p.numel() for p in model.parameters()) / 1e6)
    return model, data


def _positive(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(f"{name} must be a positive number, got {value!r}")
    return value
