"""Which classes a config file may name, by what they are for.

A config can come from a stranger, and a class can do more than be built: delete an older log, write
where it is told. So of this project's classes only those are named that configs are made of, and of
torch's and Lightning's those that they hand out for that.
"""

import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ldm.errors import ConfigError, did_you_mean

_MODULE = "torch.nn.modules.module.Module"
_CALLBACK = "pytorch_lightning.callbacks.callback.Callback"


@dataclass(frozen=True)
class Shelf:
    """Classes for one purpose, `kind`: those made from `base`, a class's full name, that are public
    in `module`. Of this project's, the modules below that count as well; other packages' modules
    below are never imported."""

    kind: str
    module: str
    base: str

    @property
    def is_ours(self) -> bool:
        """Whether its classes are this project's."""
        return self.module.startswith("ldm.")

    def holds(self, target: str) -> bool:
        """Whether a class of that name would lie here."""
        return target.startswith(f"{self.module}.")

    def takes(self, value: Any) -> bool:
        """Whether it is a class for this purpose."""
        return (
            inspect.isclass(value)
            and (not self.is_ours or value.__module__.startswith("ldm."))
            and any(f"{c.__module__}.{c.__qualname__}" == self.base for c in value.__mro__)
        )


SHELVES = (
    Shelf("model", "ldm.models", _MODULE),
    Shelf("model", "ldm.modules", _MODULE),
    Shelf("model", "torch.nn", _MODULE),
    Shelf("sampler", "ldm.models.diffusion.ddim", "ldm.models.diffusion.ddim.DDIMSampler"),
    Shelf("schedule", "ldm.lr_scheduler", "ldm.lr_scheduler.Schedule"),
    Shelf("optimizer", "torch.optim", "torch.optim.optimizer.Optimizer"),
    Shelf("torch schedule", "torch.optim.lr_scheduler", "torch.optim.lr_scheduler.LRScheduler"),
    Shelf("data set", "ldm.data", "torch.utils.data.dataset.Dataset"),
    Shelf("data module", "ldm.data", "pytorch_lightning.core.datamodule.LightningDataModule"),
    # Not all of ldm.training: what every run has writes where it is told.
    Shelf("callback", "ldm.training.image_logger", _CALLBACK),
    Shelf("callback", "ldm.training.budget", _CALLBACK),
    Shelf("callback", "pytorch_lightning.callbacks", _CALLBACK),
    Shelf("logger", "pytorch_lightning.loggers", "pytorch_lightning.loggers.logger.Logger"),
)
MODULES = tuple(dict.fromkeys(shelf.module for shelf in SHELVES))
ADVICE = (
    "; if you trust that code, allow its prefix with --allow-target PREFIX "
    "(in Python: instantiate_from_config(config, ['PREFIX']))"
)


def registered(target: str, kind: str | None = None, reload: bool = False) -> tuple[Any, str]:
    """(the class of that name, its kind), with `reload` from its module read anew. Nothing is
    imported but modules of `SHELVES`, and of this project's those below. Raises LookupError where no
    shelf could hold it, ConfigError for what they do not hold, and for another kind than is given."""
    shelves = sorted(
        (shelf for shelf in SHELVES if shelf.holds(target)), key=lambda shelf: -len(shelf.module)
    )
    if not shelves:
        raise LookupError(target)
    module, name = _module(target, shelves[0], reload), target.rpartition(".")[2]
    value = getattr(module, name, None)
    kinds = [shelf.kind for shelf in shelves if shelf.takes(value) and _hands_out(module, name, shelf)]
    if not kinds or not _is_there(target, value, module):
        near = did_you_mean(name, _names(module, shelves))
        raise ConfigError(
            f"target {target!r}: {module.__name__} has no {name!r} that a config may name{near or ADVICE}"
        )
    if kind not in (None, *kinds):
        raise ConfigError(f"target {target!r} is a {kinds[0]}, where a {kind} belongs")
    return value, kinds[0] if kind is None else kind


def _module(target: str, shelf: Shelf, reload: bool) -> ModuleType:
    """The module that hands out the class: of ours the named one, else the shelf's."""
    name = target.rpartition(".")[0] if shelf.is_ours else shelf.module
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"target {target!r}: {error}") from error
    return importlib.reload(module) if reload else module


def _hands_out(module: ModuleType, name: str, shelf: Shelf) -> bool:
    return not name.startswith("_") and (shelf.is_ours or name in getattr(module, "__all__", [name]))


def _is_there(target: str, value: Any, module: ModuleType) -> bool:
    """Whether the class is named by where it is handed out, or by where it is written."""
    return target.rpartition(".")[0] in (module.__name__, value.__module__)


def _names(module: ModuleType, shelves: Iterable[Shelf]) -> list[str]:
    """Of the classes that the module has for these shelves."""
    found = list(vars(module).items())
    return [
        name
        for shelf in shelves
        for name, value in found
        if shelf.takes(value) and _hands_out(module, name, shelf)
    ]
