"""Learning-rate schedules for `scheduler_config`: factors of the base learning rate by optimiser step."""

import math


class LambdaWarmUpCosineScheduler:
    """Linear from `lr_start` to `lr_max` over `warm_up_steps`, then a half cosine to `lr_min` at `max_decay_steps`."""

    def __init__(self, warm_up_steps: int, max_decay_steps: int, lr_min: float = 0.0, lr_max: float = 1.0, lr_start: float = 0.0):
        self.warm_up_steps, self.max_decay_steps = warm_up_steps, max_decay_steps
        self.lr_min, self.lr_max, self.lr_start = lr_min, lr_max, lr_start

    def schedule(self, step: int) -> float:
        """The factor at this step."""
        if step < self.warm_up_steps:
            return self.lr_start + (self.lr_max - self.lr_start) * step / self.warm_up_steps
        done = min(1.0, (step - self.warm_up_steps) / (self.max_decay_steps - self.warm_up_steps))
        return self.lr_min + 0.5 * (self.lr_max - self.lr_min) * (1 + math.cos(math.pi * done))
