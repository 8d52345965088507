"""Folders of pictures as data sets: any depth, no list files, a split that is the same on every machine.

A sample is a dict whose `image` is (H, W, 3) float32 in [-1, 1], channels last as in the latent-diffusion family.
Random choices come from torch's generator, which the loader seeds for every worker and epoch.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ldm.errors import ConfigError, UserError
from ldm.images import EXTENSIONS, load_image, resize_short_side

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "all")
_MAX_REPLACEMENTS = 20


def find_pictures(root: str | Path, split: str = "all", validation_share: float = 0.02, seed: int = 0) -> list[Path]:
    """All picture files below `root`, sorted; of one split only, if asked. Raises UserError if there are none.

    A file's split depends on `seed` and its path below `root` alone, so adding files moves no other.
    """
    check_split(split)
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of pictures")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not paths:
        raise UserError(f"{root}: no pictures in it ({', '.join(EXTENSIONS)})")
    if split == "all":
        return paths
    held_out = [split_fraction(p.relative_to(root), seed) < validation_share for p in paths]
    chosen = [p for p, held in zip(paths, held_out) if held == (split == "validation")]
    if not chosen:
        raise UserError(f"{root}: its {len(paths)} pictures leave none for {split}; change validation_share")
    return chosen


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def split_fraction(path: Path, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}/{path.as_posix()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def randint(high: int) -> int:
    """A random integer in [0, high) from torch's generator."""
    return int(torch.randint(high, ()))


class PictureFolder(Dataset):
    """Random (train) or central (validation) crops of the pictures below one or several folders.

    Pictures are scaled so that the smaller side is `short_side`, then cropped to `size` squares and, in training,
    flipped at random. `in_memory` keeps the scaled pictures (about 0.2 MB each at 256 px), which pays for small sets.
    A picture that cannot be read is named in the log and replaced by another.
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
    ):
        self.size, self.short_side = size, short_side or size
        if self.short_side < size:
            raise ConfigError(f"short_side {short_side} is smaller than the crop of {size} pixels")
        roots = [roots] if isinstance(roots, (str, Path)) else list(roots)
        self.paths = [p for root in roots for p in find_pictures(root, split, validation_share, seed)]
        self.random = split == "train"
        self.flip = flip and self.random
        self._kept: dict[int, Image.Image] | None = {} if in_memory else None
        self._bad: set[Path] = set()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.crop(self.read_or_replace(index))}

    def read_or_replace(self, index: int) -> Image.Image:
        """The scaled picture, or that of another index where it cannot be read."""
        for _ in range(_MAX_REPLACEMENTS):
            try:
                return self.read(index)
            except UserError as error:
                if self.paths[index] not in self._bad:
                    log.warning("picture left out: %s", error)
                self._bad.add(self.paths[index])
                index = randint(len(self)) if self.random else (index + 1) % len(self)
        raise UserError(f"{_MAX_REPLACEMENTS} pictures in a row could not be read, the last one {self.paths[index]}")

    def read(self, index: int) -> Image.Image:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        image = resize_short_side(load_image(self.paths[index], draft_size=self.short_side), self.short_side)
        if self._kept is not None:
            self._kept[index] = image
        return image

    def crop(self, image: Image.Image) -> np.ndarray:
        """(size, size, 3) float32 in [-1, 1]."""
        spare = image.width - self.size, image.height - self.size
        left, top = (randint(s + 1) if self.random else s // 2 for s in spare)
        array = np.asarray(image.crop((left, top, left + self.size, top + self.size)), dtype=np.float32)
        if self.flip and randint(2):
            array = array[:, ::-1]
        return np.ascontiguousarray(array / 127.5 - 1.0)
