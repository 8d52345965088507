"""Folders of pictures as data sets: any depth, no list files, a split that is the same on every
machine.

A sample is a dict: `image` (H, W, 3) float32 in [-1, 1], channels last as in the latent-diffusion
family; `path`, its file; `unreadable`, a line for each picture that it stands in for because that
could not be read (mostly empty). Random choices come from torch's generator, which the loader seeds
for every sample.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ldm.data.splits import find_pictures
from ldm.errors import ConfigError, UserError
from ldm.media.images import load_image, resize_short_side

_MAX_REPLACEMENTS = 20


def randint(high: int) -> int:
    """A random integer in [0, high) from torch's generator."""
    return int(torch.randint(high, ()))


class Crops:
    """How a picture becomes a sample: scaled so that its smaller side is `short_side`, cropped to a
    `size` square.

    The crop is at a `random` place or central, and with `flip` mirrored every other time.
    """

    def __init__(
        self, size: int = 256, short_side: int | None = None, random: bool = True, flip: bool = True
    ):
        self.size, self.short_side = size, short_side or size
        if self.short_side < size:
            raise ConfigError(f"short_side {short_side} is smaller than the crop of {size} pixels")
        self.random, self.flip = random, flip

    def scaled(self, source: str | Path | BinaryIO) -> Image.Image:
        """The picture in a file (see `load_image`) at its size before the crop. Raises
        UserError."""
        return resize_short_side(load_image(source, draft_size=self.short_side), self.short_side)

    def crop(self, image: Image.Image) -> np.ndarray:
        """(size, size, 3) float32 in [-1, 1]."""
        spare = image.width - self.size, image.height - self.size
        left, top = (randint(s + 1) if self.random else s // 2 for s in spare)
        array = np.asarray(image.crop((left, top, left + self.size, top + self.size)), dtype=np.float32)
        if self.flip and randint(2):
            array = array[:, ::-1]
        return np.ascontiguousarray(array / 127.5 - 1.0)

    def sample(self, candidates: Iterable[tuple[str, Callable[[], Image.Image]]]) -> dict[str, Any]:
        """The sample of the first of several pictures (name, how to read it) that can be read.

        Raises UserError when too many in a row cannot.
        """
        problems: list[str] = []
        for name, read in islice(candidates, _MAX_REPLACEMENTS):
            try:
                return {"image": self.crop(read()), "path": name, "unreadable": "\n".join(problems)}
            except UserError as error:
                problems.append(" ".join(str(error).split()))
        raise UserError(
            f"{_MAX_REPLACEMENTS} pictures in a row could not be read: {'; '.join(dict.fromkeys(problems))}"
        )


class PictureFolder(Crops, Dataset):
    """Random (train) or central (validation) crops of the pictures below one or several folders.

    Pictures are scaled and cropped as in `Crops` and flipped in training only; `random_augment`
    says whether to crop at random, and flip, whatever the split. `in_memory` keeps the scaled
    pictures (about 0.2 MB each at 256 px), which pays for small sets. A picture that cannot be read
    is replaced by another, and the sample says so.
    """

    def __init__(
        self,
        roots: str | Sequence[str],
        size: int = 256,
        short_side: int | None = None,
        split: str = "train",
        validation_share: float = 0.02,
        seed: int = 0,
        flip: bool = True,
        in_memory: bool = False,
        random_augment: bool | None = None,
    ):
        training = split == "train" if random_augment is None else random_augment
        super().__init__(size, short_side, random=training, flip=flip and training)
        roots = [roots] if isinstance(roots, (str, Path)) else list(roots)
        self.paths = [p for root in roots for p in find_pictures(root, split, validation_share, seed)]
        self._kept: dict[int, Image.Image] | None = {} if in_memory else None

    @property
    def pictures(self) -> int:
        """Files that samples are made of."""
        return len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.sample((str(self.paths[i]), partial(self.read, i)) for i in self._replacements(index))

    def _replacements(self, index: int) -> Iterator[int]:
        """A picture and those to take in its place."""
        while True:
            yield index
            index = randint(len(self)) if self.random else (index + 1) % len(self)

    def read(self, index: int) -> Image.Image:
        """A picture at its size before the crop, kept where pictures are kept in memory. Raises
        UserError."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        image = self.scaled(self.paths[index])
        if self._kept is not None:
            self._kept[index] = image
        return image
