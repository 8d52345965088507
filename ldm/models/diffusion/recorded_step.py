"""Training steps as CUDA graphs.

A step of a small network starts some ten thousand kernels, and one core of a CPU takes longer to
start them than a GPU to run them. Recorded once, they start in one call.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.device import cuda_graph

Losses = Callable[[Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
Capture = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]


class RecordedStep:
    """Losses of inputs of one size, with their gradients: the first as they are, for libraries load
    and the like is counted then, later ones recorded and replayed. Inputs of other sizes go as
    they are, too.

    losses(inputs): (loss, values to log), of tensors by name; see `cuda_graph` for what it may not
        do.
    """

    def __init__(self, losses: Losses, weights: Sequence[nn.Parameter], capture: Capture = cuda_graph):
        self.losses, self.weights, self.capture = losses, weights, capture
        self._sizes: list[torch.Size] | None = None
        self._inputs: dict[str, Tensor] = {}
        self._replay: Callable[[], None] | None = None
        self._gradients: list[Tensor | None] | None = None

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log). Call `backward` with the loss for its gradients."""
        sizes, first = [value.shape for value in inputs.values()], self._sizes is None
        if first:
            self._sizes = sizes
        if first or sizes != self._sizes:
            self._gradients = None
            return self.losses(inputs)
        if self._replay is None:
            self._inputs = {name: value.clone() for name, value in inputs.items()}
            gc.collect()  # what is left of earlier steps would tie their stream to the record
            self._result, self._replay = self.capture(self._run)
        for name, value in inputs.items():
            self._inputs[name].copy_(value)
        self._replay()
        loss, values, self._gradients = self._result
        return loss.clone(), {name: value.clone() for name, value in values.items()}

    def _run(self) -> tuple[Tensor, dict[str, Tensor], list[Tensor | None]]:
        for weight in self.weights:
            weight.grad = None  # the graph's own memory takes its place
        device = next(iter(self._inputs.values())).device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            loss, values = self.losses(self._inputs)
        loss.backward()
        return loss.detach(), values, [weight.grad for weight in self.weights]

    def backward(self, loss: Tensor) -> None:
        """Give the weights the gradients of the last losses."""
        if self._gradients is None:
            loss.backward()
        else:
            for weight, gradient in zip(self.weights, self._gradients):
                weight.grad = gradient
