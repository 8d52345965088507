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
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ldm.checkpoint import load_strict, read_state_dict
from ldm.cli import ArgumentParser
from ldm.errors import ConfigError, UserError
from ldm.util import allowing_targets, instantiate_from_config, load_config, to_plain

log = logging.getLogger(__name__)

TOP_KEYS = ("model", "data", "lightning")
LIGHTNING_KEYS = ("trainer", "modelcheckpoint", "callbacks")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        "Train a model from config files.",
        prog="main.py",
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
    # Overrides may stand before, between and after the options; argparse takes those behind `--base FILE` for files.
    args = parser.parse_intermixed_args(argv)
    taken = [item for item in args.base if "=" in item and not Path(item).is_file()]
    args.base = [item for item in args.base if item not in taken]
    args.overrides = taken + args.overrides
    if not args.base:
        parser.error("--base names no config file")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the training command. Raises UserError for bad input before any work starts."""
    args = parse_args(argv)
    config = merged_config(args.base, args.overrides)
    resumed = read_state_dict(args.resume) if args.resume else None
    if not 0 <= args.seed < 2**32:  # what NumPy's generator takes
        raise UserError(f"--seed must be between 0 and 2^32 - 1, got {args.seed}")
    pl.seed_everything(args.seed, workers=True)
    with allowing_targets(args.allow_target):
        model, data = build(config)
        if resumed is not None:  # Lightning loads it again, with its optimisers, but explains less
            load_strict(model, resumed, where=f"--resume {args.resume}")
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
        config = OmegaConf.merge(*(load_config(p) for p in paths), _overrides(overrides))
    except (OmegaConfBaseException, TypeError) as error:
        raise ConfigError(f"configs cannot be merged: {error}") from error
    unknown = [key for key in config if key not in TOP_KEYS]
    if unknown:
        raise ConfigError(f"unknown config key {unknown[0]!r}; the top level has {', '.join(TOP_KEYS)}")
    for key in ("model", "data"):
        if key not in config:
            raise ConfigError(f"the config has no `{key}` section")
    return config


def _overrides(items: Sequence[str]) -> DictConfig:
    try:
        return OmegaConf.from_dotlist(list(items))
    except Exception as error:  # PyYAML's own errors
        raise ConfigError(f"an override's value is not valid YAML: {error}") from error


def build(config: DictConfig) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """(model, data module), the data found and read-tested before the model is built."""
    data = instantiate_from_config(config.data)
    if not isinstance(data, pl.LightningDataModule):
        raise ConfigError(f"data.target is a {type(data).__name__}; it must be a LightningDataModule")
    data.setup()
    model = instantiate_from_config(config.model)
    if not isinstance(model, pl.LightningModule):
        raise ConfigError(f"model.target is a {type(model).__name__}; it must be a LightningModule")
    for key in ("base_learning_rate", "learning_rate"):
        if config.model.get(key) is not None:
            model.learning_rate = _positive(config.model[key], f"model.{key}")
    log.info("%s: %.1f M parameters", type(model).__name__, sum(p.numel() for p in model.parameters()) / 1e6)
    return model, data


def build_trainer(config: DictConfig, run_folder: Path, gpus: str | None = None) -> pl.Trainer:
    """The Lightning trainer with loggers, checkpoints and the config's callbacks. Raises ConfigError."""
    lightning = _section(to_plain(config), "lightning")
    unknown = [key for key in lightning if key not in LIGHTNING_KEYS]
    if unknown:
        raise ConfigError(f"unknown config key 'lightning.{unknown[0]}'; that section has {', '.join(LIGHTNING_KEYS)}")
    options: dict[str, Any] = {"log_every_n_steps": 20, **_section(lightning, "trainer")}
    if gpus is not None:
        options |= {"accelerator": "gpu", "devices": _gpu_numbers(gpus)}
    callbacks = [LearningRateMonitor(), _checkpoints(run_folder, _section(lightning, "modelcheckpoint"))]
    callbacks += [instantiate_from_config(node) for node in _section(lightning, "callbacks").values()]
    loggers = [TensorBoardLogger(run_folder, name="", version=""), CSVLogger(run_folder, name="", version="")]
    options = {"default_root_dir": run_folder, "logger": loggers, **options, "callbacks": callbacks}
    try:
        return instantiate_from_config({"target": "pytorch_lightning.Trainer", "params": options})
    except (MisconfigurationException, TypeError) as error:  # the latter: a text where a number belongs
        raise ConfigError(f"the trainer cannot be set up: {error}") from error


def _checkpoints(run_folder: Path, options: dict[str, Any]) -> ModelCheckpoint:
    # Without the counter, last.ckpt is that of the last run, also where an older one lies in the folder.
    defaults = {"dirpath": run_folder / "checkpoints", "save_last": True, "enable_version_counter": False}
    options = {**defaults, **options.get("params", options)}
    return instantiate_from_config({"target": "pytorch_lightning.callbacks.ModelCheckpoint", "params": options})


def _section(config: dict[str, Any], key: str) -> dict[str, Any]:
    """What the config has under a key: names with values; nothing if it is left out or null."""
    section = config.get(key)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise ConfigError(f"the config's `{key}` must be names with values, got {section!r}")
    return section


def _positive(value: Any, name: str) -> float:
    if not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(f"{name} must be a positive number, got {value!r}")
    return value


def _gpu_numbers(gpus: str) -> list[int]:
    numbers = [n for n in gpus.split(",") if n]
    if not numbers or not all(n.isdecimal() for n in numbers):
        raise UserError(f"--gpus takes numbers such as 0,1; got {gpus!r}")
    return [int(n) for n in numbers]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
