"""The training command: config files and overrides in, a Lightning run with checkpoints and pictures out."""

import argparse
import datetime
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from ldm.errors import ConfigError, UserError
from ldm.util import allowing_targets, instantiate_from_config, load_config, to_plain

log = logging.getLogger(__name__)

TOP_KEYS = ("model", "data", "lightning")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Train a model from config files.",
        epilog="example: python main.py --base configs/mini.yaml lightning.trainer.max_epochs=5",
    )
    parser.add_argument("--base", nargs="+", required=True, metavar="YAML", help="config files, merged from left to right")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="config values that come last")
    parser.add_argument("-n", "--name", help="name of the run's folder (default: that of the last config file)")
    parser.add_argument("--basedir", default="logs", help="folder for all runs (default: logs)")
    parser.add_argument("--resume", metavar="CKPT", help="go on from this checkpoint of ours, its optimiser state included")
    parser.add_argument("--seed", type=int, default=23, help="seed of everything random (default: 23)")
    parser.add_argument("--gpus", help="GPU numbers such as 0,1 (default: whatever Lightning finds)")
    parser.add_argument("-t", "--train", default="True", help=argparse.SUPPRESS)  # part of the published command line
    parser.add_argument("--allow-target", action="append", default=[], metavar="PREFIX", help="also build classes under this dotted prefix")
    # Overrides may stand before, between and after the options.
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the training command. Raises UserError for bad input before any work starts."""
    args = parse_args(argv)
    config = merged_config(args.base, args.overrides)
    if args.resume and not Path(args.resume).is_file():
        raise UserError(f"--resume {args.resume}: no such file")
    pl.seed_everything(args.seed, workers=True)
    with allowing_targets(args.allow_target):
        model, data = build(config)
        run_folder = Path(args.basedir) / (args.name or Path(args.base[-1]).stem)
        trainer = build_trainer(config, run_folder, args.gpus)
        OmegaConf.save(config, _made(run_folder) / f"config_{datetime.datetime.now():%Y%m%d_%H%M%S}.yaml")
        # Our own checkpoint, written by the same command; weights_only keeps a stranger's file harmless.
        trainer.fit(model, data, ckpt_path=args.resume, weights_only=True if args.resume else None)


def merged_config(paths: Sequence[str], overrides: Sequence[str] = ()) -> DictConfig:
    """Config files merged from left to right, then `key.sub=value` overrides. Raises ConfigError."""
    bad = [item for item in overrides if "=" not in item]
    if bad:
        raise ConfigError(f"{bad[0]!r} is not an override; write key.sub=value")
    try:
        config = OmegaConf.merge(*(load_config(p) for p in paths), OmegaConf.from_dotlist(list(overrides)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"configs cannot be merged: {error}") from error
    unknown = [key for key in config if key not in TOP_KEYS]
    if unknown:
        raise ConfigError(f"unknown config key {unknown[0]!r}; the top level has {', '.join(TOP_KEYS)}")
    for key in ("model", "data"):
        if key not in config:
            raise ConfigError(f"the config has no `{key}` section")
    return config


def build(config: DictConfig) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """(model, data module), the data found and read-tested before the model is built."""
    data = instantiate_from_config(config.data)
    data.setup()
    plain = to_plain(config.model)
    learning_rate = plain.pop("learning_rate", None) or plain.pop("base_learning_rate", None)
    model = instantiate_from_config(plain)
    if learning_rate is not None:
        model.learning_rate = learning_rate
    log.info("%s: %.1f M parameters", type(model).__name__, sum(p.numel() for p in model.parameters()) / 1e6)
    return model, data


def build_trainer(config: DictConfig, run_folder: Path, gpus: str | None = None) -> pl.Trainer:
    """The Lightning trainer with loggers, checkpoints and the config's callbacks."""
    lightning = to_plain(config.get("lightning", {}))
    options: dict[str, Any] = {"log_every_n_steps": 20, **lightning.get("trainer", {})}
    if gpus is not None:
        options |= {"accelerator": "gpu", "devices": [int(n) for n in gpus.split(",") if n]}
    callbacks = [LearningRateMonitor(), _checkpoints(run_folder, lightning.get("modelcheckpoint", {}))]
    callbacks += [instantiate_from_config(node) for node in lightning.get("callbacks", {}).values()]
    loggers = [TensorBoardLogger(run_folder, name="", version=""), CSVLogger(run_folder, name="", version="")]
    return pl.Trainer(default_root_dir=run_folder, callbacks=callbacks, logger=loggers, **options)


def _checkpoints(run_folder: Path, options: dict[str, Any]) -> ModelCheckpoint:
    options = options.get("params", options)
    return ModelCheckpoint(**{"dirpath": run_folder / "checkpoints", "save_last": True, **options})


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
