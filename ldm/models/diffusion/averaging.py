"""Moving averages of a model's weights: what paints, while the live weights learn (Ho et al. 2020,
appendix B)."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ldm.modules.ema import LitEma

log = logging.getLogger(__name__)


class AveragedWeights(nn.Module):
    """A model that has averages of some of its modules, which a subclass tells."""

    def averaged(self) -> list[tuple[LitEma, nn.Module]]:
        """What has a moving average: (the average, the module)."""
        raise NotImplementedError

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Within it the averaged weights are in place; the live ones come back even if the body
        raises."""
        pairs = self.averaged()
        for average, module in pairs:
            average.store(module)
        try:
            for average, module in pairs:
                average.copy_to(module)
            if context is not None:
                log.debug("%s: averaged weights in place", context)
            yield
        finally:
            for average, module in pairs:
                average.restore(module)

    def start_averages(self) -> None:
        """Make the averages equal to the live weights."""
        for average, module in self.averaged():
            average.start_at(module)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in PyTorch; but from weights without (all of) their moving averages, as made for
        inference, these start at the weights."""
        result = super().load_state_dict(state_dict, strict, assign)
        names = {id(child): name for name, child in self.named_children()}
        for average, module in self.averaged():
            has_weights = any(name.startswith(f"{names[id(module)]}.") for name in state_dict)
            shadows = {f"{names[id(average)]}.{shadow}" for shadow in average.shadow_names.values()}
            if has_weights and not shadows <= state_dict.keys():
                average.start_at(module)
        return result
