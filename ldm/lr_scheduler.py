"""Learning-rate schedules for `scheduler_config`: factors of the base learning rate by optimiser step.

Names and parameters are those of the latent-diffusion family's config files.
"""

import bisect
import itertools
import math
from collections.abc import Sequence


class LambdaWarmUpCosineScheduler:
    """Linear from `lr_start` to `lr_max` over `warm_up_steps`, then a half cosine to `lr_min` at `max_decay_steps`."""

    def __init__(self, warm_up_steps: int, max_decay_steps: int, lr_min: float = 0.0, lr_max: float = 1.0, lr_start: float = 0.0):
        self.warm_up_steps, self.max_decay_steps = warm_up_steps, max_decay_steps
        self.lr_min, self.lr_max, self.lr_start = lr_min, lr_max, lr_start

    def schedule(self, step: int) -> float:
        """The factor at this step."""
        if step < self.warm_up_steps:
            return _between(self.lr_start, self.lr_max, step / self.warm_up_steps)
        done = min(1.0, (step - self.warm_up_steps) / max(1, self.max_decay_steps - self.warm_up_steps))
        return _between(self.lr_min, self.lr_max, _half_cosine(done))


class LambdaWarmUpCosineScheduler2:
    """Cycles of `cycle_lengths` steps, each with a warm-up from `f_start` to `f_max` and a half cosine to `f_min`.

    Each parameter is a list with a value for each cycle; after the last cycle its `f_min` stays.
    """

    def __init__(
        self, warm_up_steps: Sequence[int], cycle_lengths: Sequence[int], f_start: Sequence[float], f_max: Sequence[float], f_min: Sequence[float]
    ):
        self.cycles = list(zip(warm_up_steps, cycle_lengths, f_start, f_max, f_min, strict=True))
        if not self.cycles:
            raise ValueError("a schedule needs at least one cycle")
        self.ends = list(itertools.accumulate(length for _, length, *_ in self.cycles))

    def schedule(self, step: int) -> float:
        """The factor at this step."""
        which = min(bisect.bisect_right(self.ends, step), len(self.cycles) - 1)
        warm_up, length, start, high, low = self.cycles[which]
        step -= self.ends[which] - length
        if step < warm_up:
            return _between(start, high, step / warm_up)
        return _between(low, high, self.falling(min(1.0, (step - warm_up) / max(1, length - warm_up))))

    def falling(self, done: float) -> float:
        """From 1 to 0 while `done` goes from 0 to 1."""
        return _half_cosine(done)


class LambdaLinearScheduler(LambdaWarmUpCosineScheduler2):
    """The same with straight lines down."""

    def falling(self, done: float) -> float:
        return 1.0 - done


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _half_cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))
