"""ArtFusion's training data: paintings for style and content, photos for the samples without a style."""

from typing import Any

import torch
from torch.utils.data import Dataset

from ldm.data.order import mixed_seed
from ldm.data.pictures import PictureFolder, randint
from ldm.errors import ConfigError
from ldm.util import check_fractions


class WikiArtTrain(PictureFolder):
    """Random crops of paintings, by default from `datasets/wiki-art`, a folder of folders."""

    def __init__(self, roots: str = "datasets/wiki-art", size: int = 256, **options):
        super().__init__(roots, size=size, split="train", **options)


class WikiArtValidation(PictureFolder):
    """Central crops of the paintings held out from WikiArtTrain."""

    def __init__(self, roots: str = "datasets/wiki-art", size: int = 256, **options):
        super().__init__(roots, size=size, split="validation", **options)


class TwoKinds(Dataset):
    """What is made of paintings and photos; an epoch is as long as `paintings`."""

    def __init__(self, paintings: Dataset, photos: Dataset):
        self.paintings, self.photos = paintings, photos

    @property
    def pictures(self) -> int:
        """Files that samples are made of."""
        return self.paintings.pictures + self.photos.pictures

    def __len__(self) -> int:
        return len(self.paintings)


class HybridDraws(TwoKinds):
    """Samples of two data sets, with the two flags that say which conditions a sample may use.

    With probability `style_drop` the style is off and the sample is a photo; else it is a painting, or with probability
    `photo_share` a photo, whose content is off with probability `content_drop`.
    """

    def __init__(self, paintings: Dataset, photos: Dataset, style_drop: float, content_drop: float, photo_share: float):
        check_fractions(style_drop=style_drop, content_drop=content_drop, photo_share=photo_share)
        self.style_drop, self.content_drop, self.photo_share = style_drop, content_drop, photo_share
        super().__init__(paintings, photos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        style_on, content_on = draw_flags(self.style_drop, self.content_drop)
        painting = style_on and (self.photo_share == 0 or torch.rand(()) >= self.photo_share)
        sample = self.paintings[index] if painting else self.photos[randint(len(self.photos))]
        return {**sample, "style_flag": style_on, "content_flag": content_on}


class HybridTrain(HybridDraws):
    """The published training data: pictures of two folders. Options as in PictureFolder and HybridDraws.

    `photo_share` (differs: none in the published recipe) makes small sets of paintings go further.
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
        photo_share: float = 0.0,
        split: str = "train",
        validation_share: float = 0.02,
        seed: int = 0,
        flip: bool = True,
        in_memory: bool = False,
    ):
        options = (split, validation_share, seed, flip, in_memory)
        paintings = PictureFolder(style_root, size, style_size, *options)
        photos = PictureFolder(content_root, size, content_size, *options)
        super().__init__(paintings, photos, style_drop, content_drop, photo_share)


class CrossPairs(TwoKinds):
    """A painting's crop and a random photo's, {"painting", "photo"}, and what was `unreadable`.

    Paintings are (size, size, 3); photos too, or with `photo_size` the same part of them at that size. With `variants` every picture
    has only that many crops, some of them mirrored, and samples tell which of all ("painting_row", "photo_row"), so that what is
    computed of them can be kept; 0, the default, crops anew each time. Options as in PictureFolder.
    """

    def __init__(
        self,
        style_root: str = "datasets/wiki-art",
        content_root: str = "datasets/ms-coco",
        size: int = 256,
        short_side: int | None = None,
        photo_size: int | None = None,
        variants: int = 0,
        split: str = "train",
        validation_share: float = 0.02,
        seed: int = 0,
        in_memory: bool = False,
    ):
        if variants < 0:
            raise ConfigError(f"CrossPairs: variants must be at least 0, got {variants}")
        options = {"split": split, "validation_share": validation_share, "seed": seed, "in_memory": in_memory}
        photo_size, short_side = photo_size or size, short_side or size
        photos = PictureFolder(content_root, photo_size, round(short_side * photo_size / size), **options)
        super().__init__(PictureFolder(style_root, size, short_side, **options), photos)
        self.fixed, self.variants, self.seed = split != "train", variants, seed

    def __getitem__(self, index: int) -> dict[str, Any]:
        photo = index % len(self.photos) if self.fixed else randint(len(self.photos))
        samples = {"painting": self._sample(self.paintings, index), "photo": self._sample(self.photos, photo)}
        unreadable = "\n".join(sample["unreadable"] for sample in samples.values() if sample["unreadable"])
        rows = {f"{kind}_row": sample["row"] for kind, sample in samples.items() if "row" in sample}
        return {**{kind: sample["image"] for kind, sample in samples.items()}, **rows, "unreadable": unreadable}

    def _sample(self, pictures: PictureFolder, index: int) -> dict[str, Any]:
        if self.fixed or not self.variants:
            return pictures[index]
        row = index * self.variants + randint(self.variants)
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, row))  # and no GPU's
            return {**pictures[index], "row": row}


def draw_flags(style_drop: float, content_drop: float) -> tuple[bool, bool]:
    """(style on, content on) for one training sample; never both off."""
    draw = torch.rand(2)
    if draw[0] < style_drop:
        return False, True
    return True, bool(draw[1] >= content_drop)
