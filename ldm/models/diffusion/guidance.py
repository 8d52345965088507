"""Classifier-free guidance in two conditions at once (Ho & Salimans 2022; ArtFusion's two dials).

The samplers do not know of it: what they call is a denoiser that is guided already.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.models.diffusion.conditions import Condition, concatenate

Scale = float | Tensor


@dataclass(frozen=True)
class Guidance:
    """The two dials: how far a prediction is led away from those without the first condition
    (content) and the second (style).

    With predictions e (both conditions), u1, u2 (one of them nulled) and scales s1, s2:

        e' = e + (s1 - 1) (e - u1) + (s2 - 1) (e - u2)

    scales: of both conditions, one for all pictures or a tensor (N,). needed: which null branches
    are computed; a scale of 1 everywhere needs none. interval: the part of the run, as fractions
    (low, high) of the time steps, in which guidance acts at all (Kynkäänniemi et al. 2024); outside
    it the prediction is e. Make one with `of`.
    """

    scales: tuple[Scale, Scale]
    needed: tuple[bool, bool]
    interval: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(
        cls,
        content_scale: float | Sequence[float],
        style_scale: float | Sequence[float],
        interval: tuple[float, float] | None = None,
        device: torch.device | None = None,
    ) -> "Guidance":
        """Guidance at these scales, numbers for all pictures or lists with one for each."""
        scales: list[Scale] = []
        needed: list[bool] = []
        for given in (content_scale, style_scale):
            if isinstance(given, Sequence):
                scales.append(torch.tensor([*given], dtype=torch.float32, device=device))
                needed.append(any(scale != 1 for scale in given))
            else:
                scales.append(given)
                needed.append(given != 1)
        return cls((scales[0], scales[1]), (needed[0], needed[1]), interval or (0.0, 1.0))

    def only(self, content: bool = True, style: bool = True) -> "Guidance":
        """The same without the branches for which there is no null condition."""
        return replace(self, needed=(self.needed[0] and content, self.needed[1] and style))

    def at(self, timestep: int, num_timesteps: int) -> "Guidance":
        """What acts at a time step: this, or, outside the interval, nothing."""
        acts = self.interval[0] <= timestep / (num_timesteps - 1) <= self.interval[1]
        return self if acts else self.only(False, False)

    @property
    def branches(self) -> int:
        """How many predictions are combined: 1 to 3."""
        return 1 + sum(self.needed)

    def join(self, condition: Condition, no_content: Condition, no_style: Condition) -> Condition:
        """The conditions of all branches in one batch, the full one first."""
        nulls = [null for null, is_needed in zip((no_content, no_style), self.needed) if is_needed]
        return concatenate([condition, *nulls])

    def repeat(self, x: Tensor) -> Tensor:
        """What all branches have alike, in one batch."""
        return torch.cat([x] * self.branches)

    def combine(self, predictions: Tensor) -> Tensor:
        """The guided prediction (N, ...) of those of all branches, (branches * N, ...), as `join`
        puts them. N may be a multiple of the scales' number, whose pictures then follow each other
        again and again (the tiles of each)."""
        conditioned, *nulls = predictions.chunk(self.branches)
        scales = [scale for scale, is_needed in zip(self.scales, self.needed) if is_needed]
        differences = (
            (_over(scale, conditioned) - 1) * (conditioned - null) for scale, null in zip(scales, nulls)
        )
        return conditioned + sum(differences) if nulls else conditioned

    def denoiser(
        self,
        predict: Callable[[Tensor, Tensor, Condition], Tensor],
        condition: Condition,
        no_content: Condition = None,
        no_style: Condition = None,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """(x (N, C, h, w), time steps (N,)) -> guided prediction; without a null condition there is
        no guidance by it.

        predict(x, t, condition): the network.
        """
        guidance = self.only(no_content is not None, no_style is not None)
        joined = guidance.join(condition, no_content, no_style)
        return lambda x, t: guidance.combine(predict(guidance.repeat(x), guidance.repeat(t), joined))


def _over(scale: Scale, like: Tensor) -> Scale:
    """Scales (n,) as (N, 1, 1, 1), those of `like` (N, C, h, w)."""
    return scale.repeat(len(like) // len(scale))[:, None, None, None] if isinstance(scale, Tensor) else scale
