"""Where a config makes a run write: into its own folder, unless the command line says otherwise."""

import inspect
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config.factory import allows, get_obj_from_str
from ldm.errors import ConfigError

# What callbacks and loggers call a place to write to, and where that is in a run's folder if it is
# not given; by itself it would be where the command was given.
_PLACES: dict[str, str | None] = {
    "save_dir": "",
    "root_dir": "",
    "dirpath": "checkpoints",
    "exclude_batches_path": "skip_batches.json",
    "dir": None,
    "path": None,
    "artifact_location": None,
    "offline_directory": None,
}


@dataclass(frozen=True)
class RunPaths:
    """The folder of a run, and the keys that were typed, whose values may lead anywhere."""

    folder: Path
    typed: Container[str] = ()

    def placed(self, node: Mapping[str, Any], key: str) -> dict[str, Any]:
        """A node of the config, which stands at `key`, that writes into the folder. Raises
        ConfigError for a path that leads out of it. What was allowed by name sees to itself."""
        target, params = node.get("target"), node.get("params") or {}
        if allows(target) or not isinstance(params, Mapping):
            return dict(node)
        self.check(params, f"{key}.params")
        # its own, not those of its bases, which it sets itself
        accepted = inspect.signature(get_obj_from_str(target)).parameters if target else ()
        places = {name: str(self.folder / place) for name, place in _PLACES.items() if place is not None}
        return {**node, "params": {**{n: p for n, p in places.items() if n in accepted}, **params}}

    def check(self, params: Mapping[str, Any], key: str) -> None:
        """Raises ConfigError for a value that leads out of the folder, and was not typed."""
        for name, value in params.items():
            if f"{key}.{name}" not in self.typed and any(
                self._leads_out(name, text) for text in _texts(value)
            ):
                raise ConfigError(
                    f"{key}.{name}: {value!r} leads out of the run's folder, {self.folder}; leave it out, "
                    f"or say so on the command line: {key}.{name}={value}"
                )

    def _leads_out(self, name: str, text: str) -> bool:
        path = Path(text.removeprefix("file:"))
        if name not in _PLACES and not path.is_absolute() and ".." not in path.parts:
            return False  # part of a name, such as that of a file in the folder
        return not path.resolve().is_relative_to(self.folder.resolve())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
