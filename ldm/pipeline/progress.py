"""How far a painting is, told after every step: on a bar, and to whoever watches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.media.tensors import tensor_to_image
from ldm.models.diffusion.samplers import Step
from ldm.pipeline.brush import Level

SAMPLING_WORK = 0.25  # of a sampling step, in gradient steps of 256 x 256 pixels
LAYING_WORK = 0.3  # of texture on 256 x 256 pixels, likewise
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


@dataclass(frozen=True)
class Progress:
    """How far a call of the pipeline is.

    done: share of its work, 0 to 1. predicted: the pictures being painted, (N, 3, H, W), -1 to 1.
    """

    done: float
    predicted: Callable[[], Tensor]

    def preview(self) -> list[Image.Image]:
        """The pictures that are being painted now, as the model predicts them by now.

        One for each that goes through the model together, with gradient steps one. Smaller than the
        result until the brush work begins, or where that is a small picture enlarged. Costs a decoding; only to be called
        while the pipeline waits, from `watch` itself.
        """
        return [tensor_to_image(picture) for picture in self.predicted()]


Watcher = Callable[[Progress], None]  # what it raises ends the painting


class Meter:
    """Counts work, in gradient steps of 256 x 256 pixels, as steps go by."""

    def __init__(self, total: float, bar: bool, watcher: Watcher | None):
        self.total, self.counted, self.watcher = total, 0.0, watcher
        self._bar = tqdm(desc="painting", total=total, bar_format=BAR, disable=not bar)

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def sampling(self, path: Sequence[Step], predicted: Callable[[], Tensor]) -> Iterator[Step]:
        """The sampling steps, each counted when it is done."""
        for step in path:
            yield step
            self._count(SAMPLING_WORK, predicted)

    def brushing(self, level: Level, picture: Callable[[], Tensor]) -> Iterator[int]:
        """The numbers of a level's gradient steps, each counted when it is done."""
        for i in range(level.steps):
            yield i
            self._count(level.work / level.steps, picture)

    def laid(self, work: float, pictures: Callable[[], Tensor]) -> None:
        """Texture was laid on pictures, and how much work that is."""
        self._count(work, pictures)

    def finish(self) -> None:
        """All is done, however the parts were rounded."""
        self._bar.n = self.total
        self._bar.refresh()

    def _count(self, work: float, predicted: Callable[[], Tensor]) -> None:
        self.counted += work
        self._bar.update(work)
        if self.watcher is not None:
            self.watcher(Progress(min(1.0, self.counted / self.total), predicted))
