"""Which pictures a folder has, and whether each is for training or for validation."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from ldm.errors import ConfigError, UserError
from ldm.files import own_or
from ldm.media.images import EXTENSIONS

SPLITS = ("train", "validation", "all")


def find_pictures(
    root: str | Path, split: str = "all", validation_share: float = 0.02, seed: int = 0
) -> list[Path]:
    """All picture files below `root`, sorted; of one split only, if asked. Raises UserError if
    there are none.

    A file's split depends on `seed` and its path below `root` alone, so adding files moves no
    other.
    """
    check_split(split)
    root = own_or(root)
    paths = find_files(root)
    return [
        paths[i]
        for i in of_split(
            [p.relative_to(root) for p in paths], split, validation_share, seed, where=str(root)
        )
    ]


def find_files(root: Path, endings: Sequence[str] = EXTENSIONS) -> list[Path]:
    """All files below `root` with one of these endings, sorted. Raises UserError if there are
    none."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of pictures")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in endings and p.is_file())
    if not paths:
        raise UserError(f"{root}: no pictures in it ({', '.join(endings)})")
    return paths


def of_split(names: Sequence[Path], split: str, validation_share: float, seed: int, where: str) -> list[int]:
    """Indices of the names that belong to a split. Raises UserError if there are none.

    Where the share is too small for any, the validation set is one picture.
    """
    if split == "all":
        return list(range(len(names)))
    fractions = [split_fraction(name, seed) for name in names]
    limit = validation_share
    if 0 < limit <= min(fractions) and len(names) > 1:
        limit = math.nextafter(min(fractions), 1.0)
    chosen = [i for i, fraction in enumerate(fractions) if (fraction < limit) == (split == "validation")]
    if not chosen:
        raise UserError(
            f"{where}: its {len(names)} pictures leave none for {split}; add some, change validation_share, or "
            "train without validation: data.params.train.params.validation_share=0 data.params.validation=null"
        )
    return chosen


def check_split(split: str) -> None:
    """Raises ConfigError for a split that is none of SPLITS."""
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def split_fraction(path: Path, seed: int) -> float:
    """A number in [0, 1) of a file's path below its folder: below the validation share, the file is
    for validation."""
    digest = hashlib.sha256(f"{seed}/{path.as_posix()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
