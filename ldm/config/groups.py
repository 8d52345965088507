"""Groups of options: frozen dataclasses, whose fields config files name among the other keys of
`params`."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any


def take(group: Any, options: dict[str, Any]) -> Any:
    """The group, a dataclass's instance, with those of its fields that `options` has, which are
    taken out of these."""
    return replace(group, **{f.name: options.pop(f.name) for f in fields(group) if f.name in options})


def flat_keys(init: Callable[..., None]) -> Callable[..., None]:
    """Let a constructor take the fields of its groups, its keyword-only parameters of a dataclass's
    type, as parameters of its own.

    With `def __init__(self, size: int, *, schedule: NoiseSchedule)`, Model(8, timesteps=50) is
    Model(8, schedule=NoiseSchedule(timesteps=50)).
    """
    signature = inspect.signature(init)
    parameters = signature.parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in parameters if is_dataclass(p.annotation)}

    @functools.wraps(init)
    def constructor(self: Any, *args: Any, **options: Any) -> None:
        taken = {name: take(options.pop(name, None) or group(), options) for name, group in groups.items()}
        init(self, *args, **options, **taken)

    flat = [p for p in parameters if p.name not in groups]
    end = len(flat) - (flat[-1].kind is inspect.Parameter.VAR_KEYWORD)
    flat[end:end] = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=getattr(group, f.name, None))
        for group in groups.values()
        for f in fields(group)
    ]
    # what the config factory reads
    constructor.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    return constructor
