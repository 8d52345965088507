"""Exponential moving average of a module's trained weights, kept in buffers so that checkpoints
carry it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """Shadows of all parameters of `model` that require gradients, under their names without dots.

    shadow <- decay shadow + (1 - decay) weight, with min(decay, (1 + n) / (10 + n)) at the n-th
    update, as TensorFlow's ExponentialMovingAverage has it; without `use_num_upates` (spelled as
    published) always `decay`.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, use_num_upates: bool = True):
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"EMA decay must be between 0 and 1, got {decay}")
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0 if use_num_upates else -1, dtype=torch.int))
        self.shadow_names: dict[str, str] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.shadow_names[name] = name.replace(".", "")
                self.register_buffer(self.shadow_names[name], parameter.detach().clone())
        if len(set(self.shadow_names.values())) != len(self.shadow_names):
            raise ValueError("EMA: two parameters have the same name once the dots are left out")
        self._stored: list[list[Tensor]] = []
        self._updates: int | None = None  # `num_updates`, known without asking the device

    @property
    def m_name2s_name(self) -> dict[str, str]:
        """`shadow_names`, as the published code calls them."""
        return self.shadow_names

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Move the shadows towards the model's present weights."""
        if self._updates is None:
            self._updates, self._decay = int(self.num_updates), float(self.decay)
        decay = self._decay
        if self._updates >= 0:
            self._updates += 1
            self.num_updates.fill_(self._updates)
            decay = min(decay, (1 + self._updates) / (10 + self._updates))
        shadows, live = self._pairs(model)
        torch._foreach_lerp_(shadows, live, 1.0 - decay)

    @torch.no_grad()
    def start_at(self, model: nn.Module) -> None:
        """Make the shadows equal to the model's present weights, as at the beginning."""
        shadows, live = self._pairs(model)
        torch._foreach_copy_(shadows, live)
        self.num_updates.clamp_(max=0)  # -1 where updates are not counted
        self._updates = None

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's weights with the shadows."""
        shadows, live = self._pairs(model)
        torch._foreach_copy_(live, shadows)

    def store(self, parameters: nn.Module | Iterable[Tensor]) -> None:
        """Remember the present weights of a model, or these parameters, for `restore`; stores and
        restores may be nested."""
        self._stored.append([p.clone() for p in self._live(parameters)])

    @torch.no_grad()
    def restore(self, parameters: nn.Module | Iterable[Tensor]) -> None:
        """Put back what the last `store` of the same remembered. Raises RuntimeError if nothing
        is."""
        if not self._stored:
            raise RuntimeError("EMA: restore without store")
        torch._foreach_copy_(self._live(parameters), self._stored.pop())

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self._updates = None

    def _live(self, parameters: nn.Module | Iterable[Tensor]) -> list[Tensor]:
        return (
            self._pairs(parameters)[1] if isinstance(parameters, nn.Module) else [p.data for p in parameters]
        )

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        live, shadows = dict(model.named_parameters()), dict(self.named_buffers(recurse=False))
        return [shadows[s] for s in self.shadow_names.values()], [
            live[name].data for name in self.shadow_names
        ]
