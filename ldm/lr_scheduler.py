"""Learning-rate schedules for `scheduler_config`: factors of the base learning rate by optimiser
step.

Names and parameters are those of the latent-diffusion family's config files.
"""

import bisect
import itertools
import logging
import math
from collections.abc import Sequence

log = logging.getLogger(__name__)


class Schedule:
    """A factor by optimiser step; calling the object is the same as its `schedule`.

    verbosity_interval: tells the factor every so many steps; 0 never.
    """

    def __init__(self, verbosity_interval: int = 0):
        self.verbosity_interval = verbosity_interval

    def __call__(self, step: int) -> float:
        """The factor at this step, told now and then."""
        factor = self.schedule(step)
        if self.verbosity_interval > 0 and step % self.verbosity_interval == 0:
            log.info("step %d: %.4g times the base learning rate", step, factor)
        return factor

    def schedule(self, step: int) -> float:
        """The factor at this step."""
        raise NotImplementedError


class LambdaWarmUpCosineScheduler(Schedule):
    """Linear from `lr_start` to `lr_max` over `warm_up_steps`, then a half cosine to `lr_min` at
    `max_decay_steps`."""

    def __init__(
        self,
        warm_up_steps: int,
        lr_min: float = 0.0,
        lr_max: float = 1.0,
        lr_start: float = 0.0,
        max_decay_steps: int | None = None,
        verbosity_interval: int = 0,
    ):
        super().__init__(verbosity_interval)
        if max_decay_steps is None:
            raise ValueError("a schedule that falls needs max_decay_steps, the step at which it ends")
        self.warm_up_steps, self.max_decay_steps = warm_up_steps, max_decay_steps
        self.lr_min, self.lr_max, self.lr_start = lr_min, lr_max, lr_start

    def schedule(self, step: int) -> float:
        """The factor at this step; `lr_min` from `max_decay_steps` on."""
        if step < self.warm_up_steps:
            return _between(self.lr_start, self.lr_max, step / self.warm_up_steps)
        done = min(1.0, (step - self.warm_up_steps) / max(1, self.max_decay_steps - self.warm_up_steps))
        return _between(self.lr_min, self.lr_max, _half_cosine(done))


class LambdaWarmUpCosineScheduler2(Schedule):
    """Cycles of `cycle_lengths` steps, each with a warm-up from `f_start` to `f_max` and a half
    cosine to `f_min`.

    Each parameter is a list with a value for each cycle; a cycle's last step is the one at which
    the next begins, and after the last cycle its `f_min` stays.
    """

    def __init__(
        self, warm_up_steps: Sequence[int], f_min: Sequence[float], f_max: Sequence[float], f_start: Sequence[float], cycle_lengths: Sequence[int],
        verbosity_interval: int = 0,
    ):  # fmt: skip
        super().__init__(verbosity_interval)
        self.cycles = list(zip(warm_up_steps, cycle_lengths, f_start, f_max, f_min, strict=True))
        if not self.cycles:
            raise ValueError("a schedule needs at least one cycle")
        self.ends = list(itertools.accumulate(length for _, length, *_ in self.cycles))

    def schedule(self, step: int) -> float:
        """The factor at this step, by its place in its cycle."""
        which = min(bisect.bisect_left(self.ends, step), len(self.cycles) - 1)
        warm_up, length, start, high, low = self.cycles[which]
        step -= self.ends[which] - length
        if step < warm_up:
            return _between(start, high, step / warm_up)
        return _between(low, high, self.falling(step, warm_up, length))

    def falling(self, step: int, warm_up: int, length: int) -> float:
        """What is left of the way down at a step of a cycle, from 1 to 0."""
        return _half_cosine(min(1.0, (step - warm_up) / max(1, length - warm_up)))


class LambdaLinearScheduler(LambdaWarmUpCosineScheduler2):
    """The same with straight lines down, each over its whole cycle: so after the warm-up a cycle
    goes on from below `f_max`."""

    def falling(self, step: int, warm_up: int, length: int) -> float:
        """What is left of a straight line down from the cycle's first step, from 1 to 0."""
        return max(0.0, (length - step) / length)


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _half_cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))
