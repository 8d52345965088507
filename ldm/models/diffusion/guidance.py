"""Classifier-free guidance in two conditions at once (Ho & Salimans 2022; ArtFusion's two dials).

A guidance object is a plain denoiser `(x, t) -> noise`; the samplers do not know of it.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Condition = Any  # a tensor, a dict or list of tensors, all with the batch first; or None


class TwoWayGuidance:
    """Predict noise with both conditions, without the first, and without the second, in one batch; combine.

    `apply_model(x, t, condition)` is the network. `null_1` is the condition with its first part (content) nulled,
    `null_2` with its second (style). With predictions e, u1, u2 and scales s1, s2:

        e' = u1 + s1 (e - u1) + u2 + s2 (e - u2) - e

    A scale of exactly 1, or no null condition, needs no branch, and one branch alone is the usual formula.
    """

    def __init__(
        self,
        apply_model: Callable[[Tensor, Tensor, Condition], Tensor],
        condition: Condition,
        scale_1: float = 1.0,
        null_1: Condition = None,
        scale_2: float = 1.0,
        null_2: Condition = None,
    ):
        self.apply_model = apply_model
        pairs = ((scale_1, null_1), (scale_2, null_2))
        active = [(scale, null) for scale, null in pairs if null is not None and scale != 1.0]
        self.scales = [scale for scale, _ in active]
        self.conditions = concatenate([condition, *(null for _, null in active)])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The guided prediction for x (N, C, h, w) at time steps t (N,)."""
        return self.combine(self.apply_model(*self.prepare(x, t)))

    def prepare(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Condition]:
        """One batch of all branches: the fully conditioned first."""
        branches = 1 + len(self.scales)
        return torch.cat([x] * branches), torch.cat([t] * branches), self.conditions

    def combine(self, predictions: Tensor) -> Tensor:
        conditioned, *nulls = predictions.chunk(1 + len(self.scales))
        return guided(conditioned, nulls, self.scales)


def guided(conditioned: Tensor, nulls: Sequence[Tensor], scales: Sequence[float | Tensor]) -> Tensor:
    """The formula of TwoWayGuidance for any number of null branches: each adds its own difference to e."""
    return conditioned + sum(
        (scale - 1) * (conditioned - null) for scale, null in zip(scales, nulls, strict=True)
    )


def concatenate(conditions: list[Condition]) -> Condition:
    """Conditions of the same structure joined along the batch; a single one is returned as it is."""
    first = conditions[0]
    if len(conditions) == 1:
        return first
    if isinstance(first, dict):
        return {key: concatenate([c[key] for c in conditions]) for key in first}
    if isinstance(first, (list, tuple)):
        return [concatenate(list(parts)) for parts in zip(*conditions, strict=True)]
    return torch.cat(conditions)


def batch_size(condition: Condition) -> int | None:
    """The batch size of a condition, None if it has none. Raises ValueError if its parts differ in it."""
    sizes = {len(part) for part in parts_of(condition)}
    if len(sizes) > 1:
        raise ValueError(f"the parts of a condition are for different batches: {sorted(sizes)}")
    return sizes.pop() if sizes else None


def fitted(condition: Condition, n: int) -> Condition:
    """A condition for n samples: parts for a single one are repeated, with a warning, and others are left as they are."""
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
    parts: list[Tensor] = []
    over_parts(lambda part: parts.append(part) or part, condition)
    return parts
