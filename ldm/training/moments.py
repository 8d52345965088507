"""The moments that optimisers keep of every weight: in checkpoints by the weights' names, on
loading never onto another weight."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from ldm.errors import CheckpointError
from ldm.modules.optimizers import names_of
from ldm.text import first_of

_HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_OF_THE_MACHINE = ("fused", "foreach", "capturable", "differentiable")


class NamedMoments(pl.Callback):
    """Writes into checkpoints which weights the moments belong to; keeps an optimiser's own ways of
    computing when a state is loaded."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the weights' names beside each group's moments."""
        for optimizer, state in zip(trainer.optimizers, checkpoint.get("optimizer_states", [])):
            for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
                saved["param_names"] = names_of(module, group["params"])

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep the optimisers' own ways whatever state they load."""
        for optimizer in trainer.optimizers:
            optimizer.register_load_state_dict_pre_hook(_with_own_ways)


def _with_own_ways(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state to load, which may come from another device or an older PyTorch."""
    own = [
        {name: group[name] for name in _OF_THE_MACHINE if name in group} for group in optimizer.param_groups
    ]
    return {
        **state,
        "param_groups": [{**saved, **ways} for saved, ways in zip(state["param_groups"], own, strict=True)],
    }


def fitted_states(
    module: nn.Module, optimizers: Sequence[Optimizer], states: Any, names_in_file: Sequence[str]
) -> list[dict[str, Any]]:
    """The optimiser states of a checkpoint, every moment at the number that its weight has in the
    module's own optimisers.

    What a state calls its weights counts, where it does. Without names their order must be that of
    `names_in_file`, the names of the checkpoint's state dict, or the optimiser's own, and every
    shape must agree. Raises CheckpointError, whose text goes on from "its optimiser", if anything
    does not fit.
    """
    if not isinstance(states, Sequence) or not all(_is_state(state) for state in states):
        raise CheckpointError("is none of PyTorch's")
    if not states:
        raise CheckpointError("has no state")
    if len(states) != len(optimizers):
        raise CheckpointError(f"is one of {len(states)}, this model has {len(optimizers)}")
    in_file = {name: position for position, name in enumerate(names_in_file)}
    return [_fitted(module, optimizer, state, in_file) for optimizer, state in zip(optimizers, states)]


def _is_state(state: Any) -> bool:
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    moments = state.get("state") if groups is not None else None
    return (
        isinstance(groups, list)
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups)
        and isinstance(moments, Mapping)
        and all(isinstance(moment, Mapping) for moment in moments.values())
    )


def _fitted(
    module: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], in_file: Mapping[str, int]
) -> dict[str, Any]:
    if len(state["param_groups"]) != len(optimizer.param_groups):
        raise CheckpointError(
            f"has {len(state['param_groups'])} groups of weights, this model's has {len(optimizer.param_groups)}"
        )
    moments: dict[int, dict[str, Any]] = {}
    groups, begin = [], 0
    for group, saved in zip(optimizer.param_groups, state["param_groups"]):
        lacking = [name for name in _HYPERPARAMETERS if name in group and name not in saved]
        if lacking:
            raise CheckpointError(f"is no {type(optimizer).__name__}: it has no {first_of(lacking)}")
        weights = dict(zip(names_of(module, group["params"]), group["params"], strict=True))
        # What other optimisers keep need not have a weight's shape.
        to_check = state["state"] if isinstance(optimizer, (Adam, AdamW)) else {}
        number_in_file = _numbers(weights, saved, to_check, in_file)
        for number, name in enumerate(weights, begin):
            if number_in_file[name] in state["state"]:
                moments[number] = {
                    key: _own(value) for key, value in state["state"][number_in_file[name]].items()
                }
        numbers = list(range(begin, begin + len(weights)))
        groups.append(
            {**{key: value for key, value in saved.items() if key != "param_names"}, "params": numbers}
        )
        begin += len(weights)
    return {"state": moments, "param_groups": groups}


def _own(value: Any) -> Any:
    """A tensor apart from the file, which training replaces."""
    return value.clone() if isinstance(value, Tensor) else value


def _numbers(
    weights: Mapping[str, Tensor],
    saved: Mapping[str, Any],
    moments: Mapping[Any, Any],
    in_file: Mapping[str, int],
) -> dict[str, Any]:
    """The number that each weight has in a saved group."""
    if len(saved["params"]) != len(weights):
        raise CheckpointError(f"holds {len(saved['params'])} weights, this model trains {len(weights)}")
    problems = []
    for order in _orders(list(weights), saved, in_file):
        numbers = dict(zip(order, saved["params"], strict=True))
        problem = next(_misfits(weights, numbers, moments), None)
        if problem is None:
            return numbers
        problems.append(problem)
    raise CheckpointError(problems[0])


def _orders(names: list[str], saved: Mapping[str, Any], in_file: Mapping[str, int]) -> Iterator[list[str]]:
    """The orders in which a saved group may hold these weights."""
    if "param_names" in saved:
        other = sorted({*names} ^ {*saved["param_names"]})
        if other:
            raise CheckpointError(f"holds other weights than this model trains: {first_of(other)}")
        yield list(saved["param_names"])
        return
    # Parts of a model follow each other as optimisers list them: the published ones with logvar
    # last, ours before they kept names with the null style vector last. Inside a part the order is
    # that of registration, as in a state dict.
    parts = list(dict.fromkeys(map(_part, names)))
    for listed in (parts, sorted(parts, key="null_style_vector".__eq__)):
        yield sorted(names, key=lambda name: (listed.index(_part(name)), in_file.get(name, -1)))
    yield names


def _part(name: str) -> str:
    return name.partition(".")[0]


def _misfits(
    weights: Mapping[str, Tensor], numbers: Mapping[str, Any], moments: Mapping[Any, Any]
) -> Iterator[str]:
    """What is wrong with these moments as those of these weights."""
    for name, weight in weights.items():
        of_weight = moments.get(numbers[name])
        if of_weight is None:  # it has had no gradient yet
            continue
        lacking = [key for key in _MOMENTS if key not in of_weight]
        if lacking:
            yield f"has no {first_of(lacking)} for {name}"
        for key, value in of_weight.items():
            if key != "step" and getattr(value, "shape", None) != weight.shape:
                yield f"has {key} of shape {tuple(getattr(value, 'shape', ()))} for {name}, whose shape is {tuple(weight.shape)}"
