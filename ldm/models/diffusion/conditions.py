"""Conditions: a tensor, or tensors in dicts and lists, all with the batch first; or None."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Condition = Any


def concatenate(conditions: list[Condition]) -> Condition:
    """Conditions of the same structure joined along the batch; a single one is returned as it
    is."""
    first = conditions[0]
    if len(conditions) == 1:
        return first
    if isinstance(first, dict):
        return {key: concatenate([c[key] for c in conditions]) for key in first}
    if isinstance(first, (list, tuple)):
        return [concatenate(list(parts)) for parts in zip(*conditions, strict=True)]
    return torch.cat(conditions)


def batch_size_of(condition: Condition) -> int | None:
    """The batch size of a condition, None if it has none. Raises ValueError if its parts differ in
    it."""
    sizes = {len(part) for part in parts_of(condition)}
    if len(sizes) > 1:
        raise ValueError(f"the parts of a condition are for different batches: {sorted(sizes)}")
    return sizes.pop() if sizes else None


def fitted(condition: Condition, n: int) -> Condition:
    """A condition for n samples: parts for a single one are repeated, with a warning, and others
    are left as they are."""
    if n == 1 or not any(len(part) == 1 for part in parts_of(condition)):
        return condition
    log.warning("a condition for a single sample is used for all %d", n)
    return over_parts(lambda part: part.expand(n, *part.shape[1:]) if len(part) == 1 else part, condition)


def over_parts(function: Callable[[Tensor], Tensor], condition: Condition) -> Condition:
    """A condition of the same structure, with `function` done to each of its tensors."""
    if isinstance(condition, dict):
        return {key: over_parts(function, part) for key, part in condition.items()}
    if isinstance(condition, (list, tuple)):
        return [over_parts(function, part) for part in condition]
    return None if condition is None else function(condition)


def parts_of(condition: Condition) -> list[Tensor]:
    """The tensors of a condition, in their order."""
    if isinstance(condition, dict):
        condition = list(condition.values())
    if isinstance(condition, (list, tuple)):
        return [tensor for part in condition for tensor in parts_of(part)]
    return [] if condition is None else [condition]
