"""Where a model's files are: those that come along, and the config of any other checkpoint."""

import os
from pathlib import Path

from ldm.checkpoint.carried import carries_config
from ldm.errors import UserError, in_short
from ldm.files import ROOT, own_or

BUNDLED = {"mini": ("checkpoints/mini/model.safetensors", "configs/mini.yaml")}
PUBLISHED_CONFIG = "configs/kl16_content12.yaml"
CLASSES_CONFIG = "configs/class_conditional.yaml"


def resolve_checkpoint(checkpoint: str | Path, config: str | Path | None) -> tuple[Path, Path]:
    """(checkpoint file, its config: a file of its own, or the checkpoint itself where it carries
    one). The bundled ones lie beside the package, and go together by name or by path. Raises
    UserError where the bundled file is gone, and for what is no path."""
    for what, given in (("checkpoint", checkpoint), ("config", config)):
        if given is not None and not isinstance(given, (str, os.PathLike)):
            raise UserError(f"{what} must be a path, got {in_short(given)}")
    path = own_or(checkpoint)
    if str(checkpoint) in BUNDLED and not path.is_file():
        path = ROOT / BUNDLED[str(checkpoint)][0]
        if not path.is_file():
            raise UserError(
                f"{path}: the bundled weights are missing; `git checkout {BUNDLED[str(checkpoint)][0]}` brings them back"
            )
    return path, config_for(path, config or bundled_config(path), PUBLISHED_CONFIG)


def bundled_config(path: Path) -> Path | None:
    """The config of a checkpoint that comes along."""
    configs = {ROOT / weights: ROOT / config for weights, config in BUNDLED.values()}
    return configs.get(path.resolve())


def config_for(checkpoint: Path, config: str | Path | None, default: str) -> Path:
    """The config that is given; else that in the checkpoint, which is then named itself; else this
    one of the bundled."""
    if config:
        return Path(config)
    return checkpoint if carries_config(checkpoint) else ROOT / default
