"""ArtFusion's training data: paintings for style and content, photos for the samples without a style."""

import numpy as np
import torch
from torch.utils.data import Dataset

from ldm.data.pictures import PictureFolder, randint
from ldm.errors import ConfigError


class WikiArtTrain(PictureFolder):
    """Random crops of paintings, by default from `datasets/wiki-art`, a folder of folders."""

    def __init__(self, roots: str = "datasets/wiki-art", size: int = 256, **options):
        super().__init__(roots, size=size, split="train", **options)


class WikiArtValidation(PictureFolder):
    """Central crops of the paintings held out from WikiArtTrain."""

    def __init__(self, roots: str = "datasets/wiki-art", size: int = 256, **options):
        super().__init__(roots, size=size, split="validation", **options)


class HybridTrain(Dataset):
    """One picture a sample, with the two flags that say which conditions it may use.

    With probability `style_drop` the style is off and the picture is a photo; else it is a painting, whose content
    is off with probability `content_drop`. An epoch is as long as the set of paintings.
    """

    def __init__(
        self,
        style_root: str = "datasets/wiki-art",
        content_root: str = "datasets/ms-coco",
        size: int = 256,
        style_size: int | None = None,
        content_size: int | None = None,
        style_drop: float = 0.1,
        content_drop: float = 0.5,
        split: str = "train",
        validation_share: float = 0.02,
        seed: int = 0,
        flip: bool = True,
        in_memory: bool = False,
    ):
        check_probabilities(style_drop=style_drop, content_drop=content_drop)
        self.style_drop, self.content_drop = style_drop, content_drop
        options = (split, validation_share, seed, flip, in_memory)
        self.paintings = PictureFolder(style_root, size, style_size, *options)
        self.photos = PictureFolder(content_root, size, content_size, *options)

    def __len__(self) -> int:
        return len(self.paintings)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | bool]:
        style_on, content_on = draw_flags(self.style_drop, self.content_drop)
        sample = self.paintings[index] if style_on else self.photos[randint(len(self.photos))]
        return {**sample, "style_flag": style_on, "content_flag": content_on}


def draw_flags(style_drop: float, content_drop: float) -> tuple[bool, bool]:
    """(style on, content on) for one training sample; never both off."""
    draw = torch.rand(2)
    if draw[0] < style_drop:
        return False, True
    return True, bool(draw[1] >= content_drop)


def check_probabilities(**probabilities: float) -> None:
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is a probability, so between 0 and 1, got {value}")
