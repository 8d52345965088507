"""Where a model's files are: those that come along, and the config of any other checkpoint."""

from pathlib import Path

from ldm.errors import UserError
from ldm.files import ROOT, own_or

BUNDLED = {"mini": ("checkpoints/mini/model.safetensors", "configs/mini.yaml")}
PUBLISHED_CONFIG = "configs/kl16_content12.yaml"
CLASSES_CONFIG = "configs/class_conditional.yaml"


def resolve_checkpoint(checkpoint: str | Path, config: str | Path | None) -> tuple[Path, Path]:
    """(checkpoint file, config file); the bundled ones lie beside the package, and go together by
    name or by path. Raises UserError where the bundled file is gone."""
    path = own_or(checkpoint)
    if str(checkpoint) in BUNDLED and not path.is_file():
        path = ROOT / BUNDLED[str(checkpoint)][0]
        if not path.is_file():
            raise UserError(
                f"{path}: the bundled weights are missing; `git checkout {BUNDLED[str(checkpoint)][0]}` brings them back"
            )
    configs = {ROOT / weights: bundled_config for weights, bundled_config in BUNDLED.values()}
    return path, Path(config) if config else ROOT / configs.get(path.resolve(), PUBLISHED_CONFIG)
