"""The folder of a run: which one it is, its config, and that only one process group works in it."""

import argparse
import datetime
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytorch_lightning as pl
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from ldm.errors import UserError
from ldm.files import written_whole

# of `written_whole`
_LEFTOVERS = (".config_*.????????.yaml", "checkpoints/.*.????????.ckpt")


def run_folder(args: argparse.Namespace, checkpoint: Path | None) -> Path:
    """Where the run writes: a resumed one into its own folder, unless it gets another name. Raises
    UserError."""
    if (
        checkpoint is not None
        and args.name is None
        and not args.postfix
        and checkpoint.resolve().parent.name == "checkpoints"
    ):
        return checkpoint.resolve().parent.parent
    if not args.base and (checkpoint is None or args.name is None):
        raise UserError(
            f"--resume {args.resume}: give the config with --base, as the checkpoint lies in no run's folder of this project"
        )
    return Path(args.logdir) / ((args.name or Path(args.base[-1]).stem) + args.postfix)


def check_free(folder: Path, checkpoint: Path | None) -> None:
    """Raises UserError for the folder of a run other than the resumed one, whose last checkpoint
    would be replaced."""
    own = checkpoint is not None and checkpoint.resolve().parent.parent == folder.resolve()
    if (folder / "checkpoints/last.ckpt").exists() and not own:
        raise UserError(
            f"{folder}: holds a run already; go on with it by --resume {folder}, or give this one another name by --name NAME"
        )


def kept_config(checkpoint: Path) -> Path:
    """The newest config that the run of a checkpoint was started with. Raises UserError."""
    folder = checkpoint.resolve().parent.parent
    kept = sorted(folder.glob("config_*.yaml"))
    if not kept:
        raise UserError(f"{folder}: no config_*.yaml in this run's folder; give the config with --base")
    return kept[-1]


def take_published_run(args: argparse.Namespace, checkpoint: Path) -> None:
    """Go on from a run of the published command with the configs that it keeps in its folder, in
    its order of merging, and under its name, where no others are given."""
    old = checkpoint.resolve().parent.parent
    configs = sorted(map(str, (old / "configs").glob("*.yaml")))
    if args.base or not configs:
        return
    args.base = configs
    if args.name is None:
        args.name = old.name if (Path(args.logdir) / old.name).resolve() != old else f"{old.name}_resumed"


def without_resumed(config: DictConfig) -> DictConfig:
    """A published run that was resumed itself has the checkpoint of then in its kept config."""
    if trainer := OmegaConf.select(config, "lightning.trainer"):
        trainer.pop("resume_from_checkpoint", None)
    return config


class KeepConfig(pl.Callback):
    """Writes the config into the run's folder once training has begun, so that a refused start
    leaves nothing."""

    def __init__(self, config: DictConfig, folder: Path):
        self.config, self.folder = config, folder

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write config_<time>.yaml, from the first process alone."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"config_{datetime.datetime.now():%Y%m%d_%H%M%S}.yaml"
            with written_whole(path) as aside:
                OmegaConf.save(self.config, aside)


def _remove_leftovers(folder: Path) -> None:
    for leftover in [leftover for kind in _LEFTOVERS for leftover in folder.glob(kind)]:
        leftover.unlink(missing_ok=True)


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):  # of one in which there is something by now
        for folder in folders:
            folder.rmdir()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within it no other process can enter for the same folder; what a kill in the middle of writing
    has left in it is removed. Raises UserError where one has."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".running", timeout=0)  # the system lets go of it however this process ends
    try:
        lock.acquire()
        _remove_leftovers(folder)
    except Timeout as error:
        raise UserError(
            f"{folder}: another training run is writing into it; stop that, or give this one another name by --name NAME"
        ) from error
    except (OSError, NotImplementedError):  # a file system without locks
        pass
    try:
        yield
    except UserError:
        if made and not any(folder.glob("checkpoints/*")):  # a refused start leaves nothing
            shutil.rmtree(folder)
            _remove_empty(made[1:])
        raise
    finally:
        lock.release()
