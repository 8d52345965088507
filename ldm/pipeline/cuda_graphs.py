"""CUDA graphs: the kernels of a whole function recorded once, then started together.

A sampling run starts some ten thousand small kernels, and at a batch of one the CPU takes longer to
start them than the GPU to run them. A graph starts in one call.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping

from torch import Tensor

from ldm.device import cuda_graph

# Of tensors (or None) by name. Nothing in it may wait for the GPU or read from the CPU, and
# autocast has to begin within it: the weights that it converts once would else be gone when the
# graph runs again.
Function = Callable[..., Tensor]
Inputs = Mapping[str, Tensor | None]
# to (the result's tensor, what computes it anew)
Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]

GRAPHS = 8  # kept at once, each with the memory of a whole run


class Recorder:
    """Runs functions of tensors, each recorded at its first call with inputs of some shapes and
    replayed at later ones."""

    def __init__(self, capture: Capture = cuda_graph, limit: int = GRAPHS):
        self.capture, self.limit = capture, limit
        self._recorded: OrderedDict[Hashable, Callable[[Inputs], Tensor]] = OrderedDict()

    def __call__(self, function: Function, inputs: Inputs, key: Hashable) -> Tensor:
        """function(**inputs). key: all else that the function depends on."""
        key = (
            key,
            *(
                (name, None if value is None else (value.shape, value.dtype))
                for name, value in inputs.items()
            ),
        )
        if key not in self._recorded:
            while len(self._recorded) >= self.limit:
                self._recorded.popitem(last=False)
            self._recorded[key] = self._record(function, inputs)
        self._recorded.move_to_end(key)
        return self._recorded[key](inputs)

    def _record(self, function: Function, inputs: Inputs) -> Callable[[Inputs], Tensor]:
        own = {name: None if value is None else value.clone() for name, value in inputs.items()}
        result, replay = self.capture(lambda: function(**own))

        def run(inputs: Inputs) -> Tensor:
            for name, value in inputs.items():
                if value is not None and (kept := own[name]) is not None:
                    kept.copy_(value)
            replay()
            return result.clone()

        return run
