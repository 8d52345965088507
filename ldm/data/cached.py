"""Training data computed once: latents and style statistics of fixed crops, in memory-mapped arrays.

A cache is a folder with, for each kind ("paintings", "photos"):
`<kind>_latent.npy` (rows, C, h, w) float16, unscaled posterior modes; `<kind>_style.npy` (rows, style_dim) float16;
and `cache.json`: what made it, and for each kind the pictures (`rows_per_picture` consecutive rows each) and how
many rows are done.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.utils.data import Dataset

from ldm.data.pictures import check_split, randint, split_fraction
from ldm.data.wikiart import check_probabilities, draw_flags
from ldm.errors import UserError
from ldm.files import written_whole

KINDS = ("paintings", "photos")


class LatentCache:
    """One cache folder: made by `create`, filled row by row, opened again after a stop."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.meta: dict[str, Any] = json.loads((self.folder / "cache.json").read_text())
        except FileNotFoundError as error:
            raise UserError(f"{self.folder}: no latent cache there; make one with scripts/precompute_latents.py") from error
        except ValueError as error:
            raise UserError(f"{self.folder / 'cache.json'}: not readable ({error})") from error

    @classmethod
    def create(cls, folder: str | Path, made_by: dict[str, Any], pictures: dict[str, list[str]], rows_per_picture: int) -> "LatentCache":
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        meta = {"made_by": made_by, "rows_per_picture": rows_per_picture, "pictures": pictures, "done": dict.fromkeys(pictures, 0)}
        _write_json(folder / "cache.json", meta)
        return cls(folder)

    def rows(self, kind: str) -> int:
        return len(self.meta["pictures"][kind]) * self.meta["rows_per_picture"]

    def allocate(self, kind: str, latent_shape: tuple[int, ...], style_dim: int) -> None:
        """Make the arrays of a kind, unless they are there."""
        for name, shape in (("latent", latent_shape), ("style", (style_dim,))):
            path = self.folder / f"{kind}_{name}.npy"
            if not path.exists():
                open_memmap(path, mode="w+", dtype=np.float16, shape=(self.rows(kind), *shape)).flush()

    def arrays(self, kind: str, mode: str = "r") -> tuple[np.ndarray, np.ndarray]:
        """(latents, style statistics) of a kind, memory-mapped."""
        return tuple(np.load(self.folder / f"{kind}_{name}.npy", mmap_mode=mode) for name in ("latent", "style"))

    def mark_done(self, kind: str, rows: int) -> None:
        self.meta["done"][kind] = rows
        _write_json(self.folder / "cache.json", self.meta)

    def check_complete(self) -> None:
        """Raises UserError for a cache whose making was stopped."""
        for kind, done in self.meta["done"].items():
            if done < self.rows(kind):
                raise UserError(f"{self.folder}: {done} of {self.rows(kind)} {kind} are done; run scripts/precompute_latents.py again to finish")


class CachedHybridTrain(Dataset):
    """What HybridTrain draws, from a cache. Samples: `latent` (C, h, w), `style` (style_dim,), and both flags.

    `photo_share` of the samples with style are photos too (differs: none in the published recipe), which makes small
    sets of paintings go further.
    """

    def __init__(
        self,
        cache: str,
        style_drop: float = 0.1,
        content_drop: float = 0.5,
        photo_share: float = 0.0,
        split: str = "train",
        validation_share: float = 0.02,
        seed: int = 0,
    ):
        check_probabilities(style_drop=style_drop, content_drop=content_drop, photo_share=photo_share)
        self.style_drop, self.content_drop, self.photo_share = style_drop, content_drop, photo_share
        store = LatentCache(cache)
        store.check_complete()
        self.arrays = {kind: store.arrays(kind) for kind in KINDS}
        self.rows = {kind: _rows_of(store, kind, split, validation_share, seed) for kind in KINDS}

    def __len__(self) -> int:
        return len(self.rows["paintings"])

    def __getitem__(self, index: int) -> dict[str, Tensor | bool]:
        style_on, content_on = draw_flags(self.style_drop, self.content_drop)
        if style_on and torch.rand(()) >= self.photo_share:
            kind, row = "paintings", self.rows["paintings"][index]
        else:
            kind, row = "photos", self.rows["photos"][randint(len(self.rows["photos"]))]
        latent, style = (torch.from_numpy(np.array(a[row])) for a in self.arrays[kind])
        return {"latent": latent, "style": style, "style_flag": style_on, "content_flag": content_on}


def _rows_of(store: LatentCache, kind: str, split: str, share: float, seed: int) -> np.ndarray:
    """Rows of the pictures that belong to a split, by the same rule as for picture folders."""
    check_split(split)
    held_out = np.array([split_fraction(Path(p), seed) < share for p in store.meta["pictures"][kind]])
    chosen = np.flatnonzero((held_out == (split == "validation")) | (split == "all"))
    if not len(chosen):
        raise UserError(f"{store.folder}: its {len(held_out)} {kind} leave none for {split}; change validation_share")
    per_picture = store.meta["rows_per_picture"]
    return (chosen[:, None] * per_picture + np.arange(per_picture)).ravel()


def _write_json(path: Path, content: Any) -> None:
    with written_whole(path) as aside:
        aside.write_text(json.dumps(content))
