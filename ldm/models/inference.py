"""Models for inference: built from a config without the training parts, given a checkpoint's
weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

from ldm.checkpoint import bake_ema, load_strict, read_state_dict
from ldm.checkpoint.carried import carries_config, config_of
from ldm.checkpoint.ema import LOSS_STATE
from ldm.config.factory import instantiate_from_config
from ldm.config.groups import take
from ldm.errors import ConfigError
from ldm.models import options
from ldm.models.diffusion.latent_diffusion import LatentDiffusionModel

# Importing Lightning takes longer than painting a picture, so inference builds what these classes
# are without their training: (the class, the groups of options that it does not have).
WITHOUT_TRAINING: dict[str, tuple[str, tuple[type, ...]]] = {
    "ldm.models.diffusion.dual_cond_ddpm.DualCondLDM": (
        "ldm.models.diffusion.dual_cond.DualCondModel",
        options.DUAL_DIFFUSION,
    ),
    "ldm.models.diffusion.cross_pairs.CrossPairLDM": (
        "ldm.models.diffusion.dual_cond.DualCondModel",
        options.CROSS_PAIRS,
    ),
    "ldm.models.diffusion.ddpm.LatentDiffusion": (
        "ldm.models.diffusion.latent_diffusion.LatentDiffusionModel",
        options.DIFFUSION,
    ),
    "ldm.models.autoencoder.AutoencoderKL": ("ldm.models.first_stage.KLAutoencoder", options.FIRST_STAGE),
    "ldm.models.autoencoder.VQModelInterface": ("ldm.models.first_stage.VQLatents", options.FIRST_STAGE),
}
Model = TypeVar("Model", bound=LatentDiffusionModel)


def load_for_inference(
    checkpoint: str | Path, config_path: str | Path, kind: type[Model], allow_targets: Iterable[str] = ()
) -> Model:
    """The model of a config with a checkpoint's weights, the averaged ones where it has them.
    Raises UserError."""
    state = bake_ema(read_state_dict(checkpoint))
    with _Uninitialised():
        model = build_for_inference(config_path, kind, allow_targets)
    ignored = (*model.optional_keys(state), *LOSS_STATE)
    load_strict(model, state, ignored, str(checkpoint), _advice(Path(checkpoint), Path(config_path)))
    return model


def _advice(checkpoint: Path, config: Path) -> str:
    """What to do where the weights do not fit the config."""
    if config == checkpoint:
        return "the config in it does not fit; --config names another"
    if carries_config(checkpoint):
        return f"it carries a config of its own; leave {config} out"
    return f"is {config} its config? (--config names another)"


def build_for_inference(
    config_path: str | Path, kind: type[Model], allow_targets: Iterable[str] = ()
) -> Model:
    """The model of a config, of that kind: no weights yet, no averages. config_path: a YAML file, or
    a checkpoint that carries its config. Raises UserError."""
    config = config_of(config_path)
    try:
        params = config["model"]["params"]
        first_stage = params["first_stage_config"].get("params") or {}
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{config_path}: not the config of {kind.what} (no {error})") from error
    params |= {"ckpt_path": None, "use_ema": False}
    if "ckpt_path" in first_stage:
        first_stage["ckpt_path"] = None
    without_training(config["model"])
    model = instantiate_from_config(config["model"], allow_targets, kind="model", key="model")
    if not isinstance(model, kind):
        raise ConfigError(f"{config_path}: describes a {type(model).__name__}, not {kind.what}")
    return model


def without_training(node: Any) -> None:
    """Make a config's `model`, and the first stage within it, the classes without training, where
    there are such. Raises ConfigError for options with wrong values."""
    params = node.get("params") if isinstance(node, dict) else None
    first_stage = params.get("first_stage_config") if isinstance(params, dict) else None
    for each in (node, first_stage):
        # what is no such node, the factory refuses
        if isinstance(each, dict) and isinstance(each.get("params") or {}, dict):
            _leave_out_training(each)


def _leave_out_training(node: dict[str, Any]) -> None:
    target = node.get("target")
    if not isinstance(target, str) or target not in WITHOUT_TRAINING:
        return
    node["target"], groups = WITHOUT_TRAINING[target]
    for group in groups:
        take(group(), node.get("params") or {})


class _Uninitialised(TorchFunctionMode):
    """Within it new weights get no random values: a checkpoint's take their place, and drawing them
    takes longer than reading."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (Tensor.uniform_, Tensor.normal_) else func(*args, **(kwargs or {}))
