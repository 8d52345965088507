"""The Lightning trainer that a config describes: devices, loggers, checkpoints and callbacks."""

import inspect
import logging
import os
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Checkpoint, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.nn.parallel import DistributedDataParallel

from ldm.config.factory import (
    allows,
    build,
    check_config,
    get_obj_from_str,
    instantiate_from_config,
    to_plain,
)
from ldm.config.merge import check_keys
from ldm.config.types import check_types
from ldm.data.datamodule import DataModuleFromConfig
from ldm.device import choose_device, has_bf16
from ldm.errors import ConfigError, UserError
from ldm.ranks import torchrun_group
from ldm.training.checkpoint_files import DurableCheckpointIO
from ldm.training.guard import NonFiniteGuard
from ldm.training.keep_last import KeepLast, check_goes_on
from ldm.training.moments import NamedMoments
from ldm.training.opening import OpeningLines
from ldm.training.published_flags import gpu_devices, present_options
from ldm.training.reproducible import StepSeeds
from ldm.training.run_folder import KeepConfig
from ldm.training.run_paths import RunPaths
from ldm.training.throughput import Throughput
from ldm.training.trainer_options import check_options

log = logging.getLogger(__name__)

MACHINE = {"NODE_RANK", "GROUP_RANK"}  # of the environment: which of several machines this is
# What Lightning does only for models with one optimiser, and the values that ask for nothing.
_FOR_ONE_OPTIMISER = {
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": None,
}
LIGHTNING_KEYS = (
    "trainer",
    "modelcheckpoint",
    "modelcheckpoint_step",
    "modelcheckpoint_epoch",
    "last",
    "callbacks",
    "logger",
    "performance",
)


class Recipe:
    """The `lightning` section of a config, with the model and data it is for. Raises ConfigError
    for unknown keys."""

    def __init__(
        self,
        config: DictConfig,
        model: pl.LightningModule,
        data: pl.LightningDataModule,
        gpus: str | None = None,
        typed: Container[str] = (),
    ):
        """`typed`: keys of the config whose values the command line gives."""
        self.config, self.model, self.data, self.gpus, self.typed = config, model, data, gpus, typed
        self.opening = OpeningLines()
        self.parts: dict[str, object] = {}  # what the config describes, by where; not what was allowed
        self.lightning = _as_section(to_plain(config).get("lightning"), "lightning")
        check_keys(self.lightning, LIGHTNING_KEYS, "`lightning`")
        if not model.automatic_optimization:
            cast(Any, model).own_options = self._own_options()

    def section(self, key: str) -> dict[str, Any]:
        """What `lightning` has under a key; nothing if it is left out. Raises ConfigError."""
        return _as_section(self.lightning.get(key), f"lightning.{key}")

    def trainer(
        self,
        run_folder: Path,
        seed: int,
        explicit_seed: bool = False,
        resumed: Callable[[], dict[str, Any]] | None = None,
    ) -> pl.Trainer:
        """The trainer of a run that writes into `run_folder`; `resumed` gives the checkpoint that
        it goes on from."""
        given = self.trainer_options()
        callbacks = self._callbacks(run_folder, StepSeeds(seed, explicit_seed), given)
        return make_trainer(
            {
                "default_root_dir": run_folder,
                "logger": self._loggers(run_folder),
                "plugins": [DurableCheckpointIO(resumed)],
                "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
                **given,
                "callbacks": callbacks,
            }
        )

    def _callbacks(self, run_folder: Path, seeds: StepSeeds, options: dict[str, Any]) -> list[pl.Callback]:
        """All of a run, in the order in which they act; Lightning puts those that write the best
        checkpoints last."""
        throughput = Throughput()
        return [
            KeepConfig(self.config, run_folder),
            throughput,  # what stands between it and its `last` does not count as training
            *([LearningRateMonitor()] if options.get("logger", True) else []),
            seeds,
            NonFiniteGuard(),
            NamedMoments(),
            *self.configured_callbacks(run_folder),
            throughput.last,
            self.opening,
            *([ProgressLine()] if options.get("enable_progress_bar", True) else []),
        ]

    def configured_callbacks(self, run_folder: Path) -> list[pl.Callback]:
        """What the config describes, writing into a run's folder. Raises ConfigError; a dry run asks
        for that alone."""
        paths = RunPaths(run_folder, self.typed)
        own = {
            key: self._part(node, "callback", key)
            for key, node in self._placed(paths, "callbacks", self.section("callbacks"))
        }
        for key, callback in own.items():
            check_goes_on(callback, key)
            if hasattr(callback, "check_model"):
                callback.check_model(self.model)
        return [
            *own.values(),
            *self._model_checkpoints(paths),
            # Behind the others, whose state it writes.
            self._keep_last(paths),
        ]

    def _keep_last(self, paths: RunPaths) -> KeepLast:
        options = self.section("last")
        paths.check(options, "lightning.last")
        path = paths.folder / "checkpoints/last.ckpt"
        return _built(KeepLast, {"path": path, **options}, "lightning.last")

    @staticmethod
    def _placed(paths: RunPaths, key: str, nodes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """(key, node) of nodes of the `lightning` section, which write into the run's folder."""
        for name, node in nodes.items():
            where = f"lightning.{key}.{name}" if name else f"lightning.{key}"
            is_one = isinstance(node, dict) and "target" in node
            yield where, paths.placed(node, where) if is_one else node

    # Devices and number format

    def trainer_options(self) -> dict[str, Any]:
        """Lightning's options, the ones that nobody gave chosen for the machine."""
        options: dict[str, Any] = {"log_every_n_steps": 20, **present_options(self.section("trainer"))}
        check_options(options)
        in_config = options.pop("gpus", None)  # published configs may say it too
        gpus = self.gpus if self.gpus is not None or options.get("accelerator") == "cpu" else in_config
        if gpus is not None:
            options |= {"accelerator": "gpu", "devices": gpu_devices(gpus)}
        options = {
            key: value for key, value in options.items() if key not in getattr(self.model, "own_options", ())
        }
        # torchrun has started them; Lightning alone would train each on its own
        processes, machines = torchrun_group()
        if processes * machines > 1:
            options = {"devices": processes, "num_nodes": machines, **options}
        if isinstance(self.data, DataModuleFromConfig):
            options.setdefault("use_distributed_sampler", False)  # its loaders share the samples themselves
        if options.get("strategy", "auto") in ("auto", "ddp") and _several(options):
            options["strategy"] = self._ddp()
        if options.get("precision", "auto") == "auto":
            on_cpu = options.get("accelerator") == "cpu"
            options["precision"] = (
                "bf16-mixed" if has_bf16(choose_device("cpu" if on_cpu else "auto")) else "32-true"
            )
        return options

    def _own_options(self) -> dict[str, Any]:
        """The options that Lightning refuses for a model with optimisers of its own. Raises
        ConfigError where the model does neither."""
        given = {
            key: value
            for key, value in self.section("trainer").items()
            if key in _FOR_ONE_OPTIMISER and value != _FOR_ONE_OPTIMISER[key]
        }
        own = getattr(self.model, "own_options", {})
        for key in given:
            if key not in own:
                raise ConfigError(
                    f"lightning.trainer.{key}: {type(self.model).__name__} optimises by itself and does not see to it; leave it out"
                )
        return {**own, **given}

    def _ddp(self) -> DDPStrategy:
        # The averaged weights are buffers, equal everywhere: broadcasting them every step would
        # double the traffic. A first stage's two optimisers each leave the other's weights without
        # gradients.
        known = inspect.signature(DistributedDataParallel).parameters
        # torch renames it
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
        return DDPStrategy(find_unused_parameters=not self.model.automatic_optimization, **options)

    # What is written

    def _model_checkpoints(self, paths: RunPaths) -> list[ModelCheckpoint]:
        """The best by the model's `monitor`, where there is a validation set; every n steps or
        epochs where asked for."""
        best = self._checkpoint_options("modelcheckpoint", paths)
        regular = {
            key: self._checkpoint_options(key, paths)
            for key in ("modelcheckpoint_step", "modelcheckpoint_epoch")
        }
        folder = paths.folder / "checkpoints"
        if {"every_n_train_steps", "train_time_interval"} & best.keys() and "monitor" not in best:
            found, regular = [], {"modelcheckpoint": best, **regular}  # it asks for no best
        else:
            found = [self._best_checkpoint(best, folder)]
        for key, options in regular.items():
            if options:
                options = {"save_top_k": -1, "filename": "{epoch}-{step}", **options}
                found.append(_model_checkpoint(key, folder, options))
        return [callback for callback in found if callback is not None]

    def _best_checkpoint(self, options: dict[str, Any], folder: Path) -> ModelCheckpoint | None:
        watched = options.get("monitor", getattr(self.model, "monitor", None))
        validates = "monitor" in options or "validation" in getattr(
            self.data, "datasets", {"validation": None}
        )
        if options and not (watched and validates):
            lacking = "the data has no `validation`" if watched else "the model has no `monitor`"
            log.warning(
                "lightning.modelcheckpoint has no effect: %s, by which the best could be told", lacking
            )
        mode = getattr(self.model, "monitor_mode", "min")
        options = {
            "mode": mode,
            "save_top_k": 3,
            "filename": "best-{epoch}-{step}",
            **options,
            "monitor": watched or "loss",
        }
        # in any case, for what is wrong with its options
        built = _model_checkpoint("modelcheckpoint", folder, options)
        return built if watched and validates else None

    def _checkpoint_options(self, key: str, paths: RunPaths) -> dict[str, Any]:
        options, where = self.section(key), f"lightning.{key}"
        if {"target", "params"} & options.keys():
            check_keys(options, ("target", "params"), f"`{where}`")
            if "target" in options:
                get_obj_from_str(options["target"])
            where = f"{where}.params"
            options = _as_section(options.get("params"), where)
        paths.check(options, where)
        return options

    def _loggers(self, run_folder: Path) -> list[Logger]:
        """TensorBoard and CSV, and those of the config: one node, or several by name."""
        # Lightning's CSV logger overwrites an older file, so each start of a run gets a folder of
        # its own.
        try:
            board = TensorBoardLogger(run_folder, name="", version="")
        except ModuleNotFoundError as error:
            raise UserError(
                "training draws its curves and pictures for TensorBoard: pip install 'artfusion[train]'"
            ) from error
        loggers: list[Logger] = [board, CSVLogger(run_folder, name="csv")]
        for key, node in self._logger_nodes(run_folder):
            loggers.append(self._part(node, "logger", key))
        return loggers

    def _part(self, node: Any, kind: str, key: str) -> Any:
        """A callback or logger of the config. Raises ConfigError."""
        _check_node(node, kind, key)
        try:
            part = instantiate_from_config(node, kind=kind, key=key)
        except MisconfigurationException as error:
            raise ConfigError(f"{key}: {error}") from error
        except ModuleNotFoundError as error:
            raise _lacking(key, node["target"], error) from error
        if not allows(node["target"]):
            self.parts[key] = part
        return part

    def _logger_nodes(self, run_folder: Path) -> Iterator[tuple[str, Any]]:
        extra = self.section("logger")
        nodes = {"": extra} if {"target", "params"} & extra.keys() else extra
        return self._placed(RunPaths(run_folder, self.typed), "logger", nodes)

    def check_loggers(self, run_folder: Path) -> None:
        """Raises ConfigError for those that cannot be built, without building them, which may reach
        out to a server."""
        for key, node in self._logger_nodes(run_folder):
            _check_node(node, "logger", key)


class ProgressLine(TQDMProgressBar):
    """Lightning's bar with the learning rate, and without the run's version number."""

    def get_metrics(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        values = {
            name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"
        }
        return (
            {**values, "lr": f"{trainer.optimizers[0].param_groups[0]['lr']:.1e}"}
            if trainer.optimizers
            else values
        )

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bars, so that what is said next begins on a line of its own."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()  # what is said next begins on a line of its own


def make_trainer(options: dict[str, Any]) -> pl.Trainer:
    """Raises ConfigError for options that Lightning does not have or take."""
    for name in sorted(MACHINE & os.environ.keys()):
        if not os.environ[name].isdecimal():
            raise ConfigError(
                f"the environment's {name} must be the number of this machine, got {os.environ[name]!r}"
            )
    try:
        trainer: pl.Trainer = build(pl.Trainer, options, "pytorch_lightning.Trainer")
        _check_machines(trainer)
        return trainer
    except ModuleNotFoundError as error:
        raise _lacking("lightning.trainer", "what it says", error) from error
    except (MisconfigurationException, TypeError) as error:  # the latter: a text where a number belongs
        advice = (
            "; leave out --gpus (lightning.trainer.gpus=null) and lightning.trainer.accelerator to train on what there is"
            if "gpu backend" in str(error)
            else ""
        )
        raise ConfigError(f"the trainer cannot be set up: {error}{advice}") from error


def _check_machines(trainer: pl.Trainer) -> None:
    """Raises ConfigError where nothing tells which of several machines this is: it would wait for the
    others in silence."""
    told = MACHINE & os.environ.keys()
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and not told:
        raise ConfigError(
            f"lightning.trainer.num_nodes is {trainer.num_nodes}, and nothing says which of these machines this is; start "
            f"the run on each by torchrun --nnodes {trainer.num_nodes}, without num_nodes, or by srun (docs/training.md)"
        )


def _several(options: dict[str, Any]) -> bool:
    devices = options.get("devices", "auto")
    if devices in ("auto", -1, "-1"):
        devices = 1 if options.get("accelerator") == "cpu" else torch.cuda.device_count()
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 1
    return count > 1 or int(options.get("num_nodes", 1)) > 1


def _model_checkpoint(key: str, folder: Path, options: dict[str, Any]) -> ModelCheckpoint:
    # KeepLast writes last.ckpt.
    options = {
        "dirpath": folder,
        "auto_insert_metric_name": True,
        "enable_version_counter": False,
        **options,
        "save_last": None,
    }
    return _built(ModelCheckpoint, options, f"lightning.{key}")


def _check_node(node: Any, kind: str, key: str) -> None:
    """Raises ConfigError for a node that cannot be built, as far as it shows before."""
    check_config(node, kind=kind, key=key)
    if not allows(node["target"]):
        check_types(get_obj_from_str(node["target"]), node.get("params") or {}, f"{key}.params")


def _lacking(key: str, what: str, error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(f"{key}: {what} needs a package that is not installed: {' '.join(str(error).split())}")


def _built(kind: type, options: dict[str, Any], where: str) -> Any:
    check_types(kind, options, where)
    try:
        return build(kind, options, f"{kind.__module__}.{kind.__name__}")
    except MisconfigurationException as error:
        raise ConfigError(f"{where}: {error}") from error


def _as_section(section: Any, name: str) -> dict[str, Any]:
    """What the config has under a key: names with values; nothing if it is left out or null."""
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise ConfigError(f"the config's `{name}` must be names with values, got {section!r}")
    return section
