"""Averaged weights in checkpoints.

Names follow the published layout: `model.diffusion_model.*`, `null_style_vector.weight` and their
EMA shadows `model_ema.*`, `null_style_vector_ema.*`; a shadow's name is the live name with its dots
removed.
"""

from collections.abc import Mapping

from torch import Tensor

from ldm.errors import CheckpointError
from ldm.text import first_of

TRAINING_ONLY = ("loss.", "first_stage_model.loss.")
LOSS_STATE = ("logvar",)  # of the training loss, in whole checkpoints
_EMA_COUNTERS = ("_ema.decay", "_ema.num_updates")


def is_ema_name(name: str) -> bool:
    """Whether a name of a state dict belongs to an EMA (`model_ema.*`), its counters included."""
    owner, dot, _ = name.partition(".")
    return bool(dot) and owner.endswith("_ema")


def inference_only(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The live weights and buffers: without EMA entries and without the networks of the training
    losses."""
    return {
        n: value for n, value in state_dict.items() if not is_ema_name(n) and not n.startswith(TRAINING_ONLY)
    }


def bake_ema(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`inference_only`, with every live weight that has an EMA shadow replaced by it.

    A live value without a shadow (a buffer, a frozen weight) stays. Raises CheckpointError if a
    shadow fits no live weight, or more than one, or has another shape.
    """
    owners = dict.fromkeys(
        name.partition(".")[0].removesuffix("_ema") for name in state_dict if is_ema_name(name)
    )
    baked = inference_only(state_dict)
    for owner in owners:
        baked |= _shadow_weights(state_dict, owner)
    return baked


def _shadow_weights(state_dict: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """The shadows of one EMA by the names of their live weights."""
    shadows = {
        name for name in state_dict if name.startswith(f"{owner}_ema.") and not name.endswith(_EMA_COUNTERS)
    }
    live_names: dict[str, str] = {}
    for name in (name for name in state_dict if name.startswith(f"{owner}.")):
        shadow = f"{owner}_ema." + name.removeprefix(f"{owner}.").replace(".", "")
        if shadow in live_names:
            raise CheckpointError(f"{shadow} could be the EMA of {live_names[shadow]} and of {name}")
        if shadow in shadows:
            live_names[shadow] = name
    _check_shadows(state_dict, shadows, live_names)
    return {name: state_dict[shadow] for shadow, name in live_names.items()}


def _check_shadows(
    state_dict: Mapping[str, Tensor], shadows: set[str], live_names: Mapping[str, str]
) -> None:
    orphans = sorted(shadows - live_names.keys())
    if orphans:
        raise CheckpointError(f"{len(orphans)} EMA weights belong to no live weight ({first_of(orphans)})")
    for shadow, name in live_names.items():
        if state_dict[shadow].shape != state_dict[name].shape:
            raise CheckpointError(f"{shadow} has another shape than {name}")
