"""ArtFusion's training data: paintings for style and content, photos for the samples without a
style."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ldm.checks import check_count, check_fractions
from ldm.data.order import Indexed, mixed_seed
from ldm.data.pictures import PictureFolder, randint
from ldm.errors import ConfigError
from ldm.media.recolouring import recoloured


class WikiArtTrain(PictureFolder):
    """Random crops of paintings, by default from `datasets/wiki-art`, a folder of folders.

    As in published config files, `crop_size` names the crop, and then `size` the smaller side that
    pictures are scaled to first.
    """

    split = "train"

    def __init__(
        self,
        roots: str = "datasets/wiki-art",
        size: int | None = None,
        crop_size: int | None = None,
        **options: Any,
    ):
        if crop_size is not None:
            options["short_side"], size = size or _scaled_to(crop_size), crop_size
        super().__init__(roots, size=size or 256, split=self.split, **options)


class WikiArtValidation(WikiArtTrain):
    """Central crops of the paintings held out from WikiArtTrain."""

    split = "validation"


class Pictures(Indexed, Protocol):
    """Samples that are made of so many picture files."""

    @property
    def pictures(self) -> int:
        """Files that samples are made of."""


class TwoKinds(Dataset):
    """What is made of paintings and photos; an epoch is as long as `paintings`."""

    def __init__(self, paintings: Pictures, photos: Pictures):
        self.paintings, self.photos = paintings, photos

    @property
    def pictures(self) -> int:
        """Files that samples are made of."""
        return self.paintings.pictures + self.photos.pictures

    def __len__(self) -> int:
        return len(self.paintings)


class HybridDraws(TwoKinds):
    """Samples of two data sets, with the two flags that say which conditions a sample may use.

    Of all samples a share of `style_drop` goes without the style and is a photo, and one of
    `content_drop` without the content; the rest have both. Those with a style are paintings, or
    with probability `photo_share` photos.
    """

    def __init__(
        self,
        paintings: Pictures,
        photos: Pictures,
        style_drop: float,
        content_drop: float,
        photo_share: float,
    ):
        check_fractions(style_drop=style_drop, content_drop=content_drop, photo_share=photo_share)
        self.style_drop, self.content_drop, self.photo_share = style_drop, content_drop, photo_share
        super().__init__(paintings, photos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        style_on, content_on = draw_flags(self.style_drop, self.content_drop)
        painting = style_on and (self.photo_share == 0 or torch.rand(()) >= self.photo_share)
        sample = self.paintings[index] if painting else self.photos[randint(len(self.photos))]
        return {**sample, "style_flag": style_on, "content_flag": content_on}


class HybridTrain(HybridDraws):
    """The published training data: pictures of two folders. Options as in PictureFolder and
    HybridDraws.

    size: of the crops. style_size, content_size: the smaller sides that paintings and photos are
    scaled to first, by default half as large again as the crop. Published config files name the
    crops `style_crop_size` and `content_crop_size`, which must be equal.
    `photo_share` (differs: none in the published recipe) makes small sets of paintings go further.
    """

    def __init__(
        self,
        style_root: str = "datasets/wiki-art",
        content_root: str = "datasets/ms-coco",
        size: int | None = None,
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
        random_augment: bool | None = None,
        style_crop_size: int | None = None,
        content_crop_size: int | None = None,
    ):
        size = _one_crop_size(size, style_crop_size, content_crop_size)
        options = (split, validation_share, seed, flip, in_memory, random_augment)
        paintings = PictureFolder(style_root, size, style_size or _scaled_to(size), *options)
        photos = PictureFolder(content_root, size, content_size or _scaled_to(size), *options)
        super().__init__(paintings, photos, style_drop, content_drop, photo_share)


def _scaled_to(crop: int) -> int:
    """The smaller side of a picture before its crop, where nobody says: the published 384 for crops
    of 256."""
    return round(1.5 * crop)


def _one_crop_size(*sizes: int | None) -> int:
    """The size that all who name one agree on. Raises ConfigError."""
    given = sorted({size for size in sizes if size is not None})
    if len(given) > 1:
        raise ConfigError(
            f"HybridTrain: crops of {' and '.join(map(str, given))} pixels do not go into one batch; give one size"
        )
    return given[0] if given else 256


class CrossPairs(TwoKinds):
    """A painting's crop and a random photo's, {"painting", "photo"}, and what was `unreadable`.

    Paintings are (size, size, 3); photos too, or with `photo_size` the same part of them at that
    size. With `variants` every picture has only that many crops, some of them mirrored, and samples
    tell which of all ("painting_row", "photo_row"), so that what is computed of them can be kept;
    0, the default, crops anew each time. An epoch goes over the paintings `passes` times: where
    one pass takes seconds, beginning the next would take as long. Either root may be several folders. Options as in PictureFolder.

    recolored: in a batch, each sample has its photo in the colours of so many of the paintings, too
    ("recolored", (recolored, H, W, 3)): of its own, of the sample's before it, and so on, in the
    order in which CrossPairLDM paints them.
    """

    def __init__(
        self,
        style_root: str | Sequence[str] = "datasets/wiki-art",
        content_root: str | Sequence[str] = "datasets/ms-coco",
        size: int = 256,
        short_side: int | None = None,
        photo_size: int | None = None,
        variants: int = 0,
        split: str = "train",
        validation_share: float = 0.02,
        seed: int = 0,
        in_memory: bool = False,
        passes: int = 1,
        recolored: int = 0,
    ):
        check_count("CrossPairs: variants", variants, least=0)
        check_count("CrossPairs: passes", passes)
        check_count("CrossPairs: recolored", recolored, least=0)
        options: dict[str, Any] = {
            "split": split,
            "validation_share": validation_share,
            "seed": seed,
            "in_memory": in_memory,
        }
        photo_size, short_side = photo_size or size, short_side or size
        photos = PictureFolder(content_root, photo_size, round(short_side * photo_size / size), **options)
        super().__init__(PictureFolder(style_root, size, short_side, **options), photos)
        self.fixed, self.variants, self.seed, self.passes = split != "train", variants, seed, passes
        self.recolored = recolored

    def __len__(self) -> int:
        return self.passes * len(self.paintings)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index %= len(self.paintings)
        photo = index % len(self.photos) if self.fixed else randint(len(self.photos))
        samples = {"painting": self._sample(self.paintings, index), "photo": self._sample(self.photos, photo)}
        unreadable = "\n".join(sample["unreadable"] for sample in samples.values() if sample["unreadable"])
        rows = {f"{kind}_row": sample["row"] for kind, sample in samples.items() if "row" in sample}
        return {
            **{kind: sample["image"] for kind, sample in samples.items()},
            **rows,
            "unreadable": unreadable,
        }

    def together(self, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The samples of a batch, with what they make of each other."""
        if not self.recolored:
            return list(samples)
        paintings = [_as_picture(sample["painting"]) for sample in samples]
        return [
            {
                **sample,
                "recolored": np.stack(
                    [
                        _in_colours_of(paintings[(i - turn) % len(samples)], sample["photo"])
                        for turn in range(self.recolored)
                    ]
                ),
            }
            for i, sample in enumerate(samples)
        ]

    def _sample(self, pictures: Pictures, index: int) -> dict[str, Any]:
        if self.fixed or not self.variants:
            return pictures[index]
        row = index * self.variants + randint(self.variants)
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, row))  # and no GPU's
            return {**pictures[index], "row": row}


def _as_picture(array: NDArray[np.float32]) -> Image.Image:
    """Of (H, W, 3) in [-1, 1]."""
    return Image.fromarray((127.5 * (array + 1)).round().astype(np.uint8))


def _in_colours_of(painting: Image.Image, photo: NDArray[np.float32]) -> NDArray[np.float32]:
    """The photo, (H, W, 3) in [-1, 1], in the painting's colours, as it is painted."""
    coloured = recoloured(_as_picture(photo), [(painting, 1.0)], keep_forms=True)
    return np.asarray(coloured, dtype=np.float32) / 127.5 - 1.0


def draw_flags(style_drop: float, content_drop: float) -> tuple[bool, bool]:
    """(style on, content on) for one training sample, by one draw as published; never both off."""
    style, content = flags_of(torch.rand(()), style_drop, content_drop)
    return bool(style), bool(content)


def flags_of(draws: Tensor, style_drop: float, content_drop: float) -> tuple[Tensor, Tensor]:
    """(style on, content on) by draws in [0, 1), of any shape."""
    style = draws >= style_drop
    return style, ~style | (draws >= style_drop + content_drop)
