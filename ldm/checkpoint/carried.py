"""The config of a model within its checkpoint, in the metadata of a safetensors file. It is a
stranger's, like one in a file: what may be built of it, `ldm.config.factory` says.

Without torch: commands look for it before they begin.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoint.headers import metadata
from ldm.config.factory import load_config, to_plain
from ldm.errors import ConfigError
from ldm.files import own_or

KEY = "config"  # in the metadata


def carries_config(path: str | Path) -> bool:
    """Whether a file is a checkpoint with its config in it."""
    return KEY in metadata(own_or(path))


def config_of(path: str | Path) -> dict[str, Any]:
    """The plain tree of a YAML file, or of the config that a checkpoint carries. Raises
    UserError."""
    if not carries_config(path):
        tree: dict[str, Any] = to_plain(load_config(path))
        return tree
    try:
        # Plain values: what is between braces in them is not looked up anywhere.
        tree = json.loads(metadata(own_or(path))[KEY])
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: the config in it is not JSON; give another with --config") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the config in it has no keys; give another with --config")
    return tree


def carried(config: Mapping[str, Any]) -> dict[str, str]:
    """The metadata that carry the model of a config; its weights are all in the file."""
    return {KEY: json.dumps({"model": without_ckpt_paths(config["model"])})}


def without_ckpt_paths(node: Any) -> Any:
    """The config with every `ckpt_path` set to null: names and shapes do not need weights."""
    if isinstance(node, dict):
        return {key: None if key == "ckpt_path" else without_ckpt_paths(value) for key, value in node.items()}
    return [without_ckpt_paths(value) for value in node] if isinstance(node, list) else node


def config_of_run(checkpoint: Path) -> Path | None:
    """The newest config in the folder of the training run that a checkpoint lies in."""
    return max(checkpoint.resolve().parent.parent.glob("config_*.yaml"), default=None)
