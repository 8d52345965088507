"""Training data computed once: latents and style statistics of fixed crops, in memory-mapped
shards.

A cache is a folder. `cache.json` says what made it and lists, for each kind ("paintings",
"photos"), all pictures. Every `pictures_per_shard` of them make a shard: `<kind>_00000_latent.npy`
(rows, C, h, w) float16, unscaled posterior modes; `<kind>_00000_style.npy` (rows, style_dim)
float16; `<kind>_00000.json`, written last: the pictures in it (`rows_per_picture` rows each, in
order) and those that could not be read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.checkpoint import fingerprint
from ldm.data.splits import check_split, of_split
from ldm.data.wikiart import HybridDraws
from ldm.errors import ConfigError, UserError
from ldm.files import remove_left_asides, written_whole

KINDS = ("paintings", "photos")
_FORMAT = 2


class Encoders(Protocol):
    """What of a style transfer model makes the latents and style statistics of pictures."""

    first_stage_model: Any
    vgg: Any
    vgg_ckpt_path: str | None

    def load_style_network(self) -> None:
        """Read the weights of `vgg`. Raises UserError."""


class LatentCache:
    """One cache folder: made by `create`, filled shard by shard, opened again after a stop. Raises
    UserError."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.meta = _read_json(
            self.folder / "cache.json", f"{self.folder}: no latent cache there; make one with artfusion cache"
        )
        if self.meta.get("format") != _FORMAT:
            raise UserError(
                f"{self.folder}: a latent cache of an older layout; make it anew with artfusion cache"
            )

    @classmethod
    def create(
        cls,
        folder: str | Path,
        made_by: dict[str, Any],
        pictures: dict[str, list[str]],
        rows_per_picture: int,
        pictures_per_shard: int,
    ) -> "LatentCache":
        """A new cache without shards yet, of pictures by kind; `made_by` is what another call must
        say to go on with it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        counts = {"rows_per_picture": rows_per_picture, "pictures_per_shard": pictures_per_shard}
        _write_json(
            folder / "cache.json", {"format": _FORMAT, "made_by": made_by, **counts, "pictures": pictures}
        )
        return cls(folder)

    def shards(self, kind: str) -> range:
        """The numbers of all shards that a kind has once it is complete."""
        return range(-(-len(self.meta["pictures"][kind]) // self.meta["pictures_per_shard"]))

    def pictures_of(self, kind: str, shard: int) -> range:
        """The indices, among all of its kind, of a shard's pictures."""
        size = self.meta["pictures_per_shard"]
        return range(len(self.meta["pictures"][kind]))[shard * size : (shard + 1) * size]

    def is_done(self, kind: str, shard: int) -> bool:
        """Whether a shard has been written whole."""
        return self._path(kind, shard, ".json").exists()

    def write(
        self,
        kind: str,
        shard: int,
        latents: np.ndarray,
        styles: np.ndarray,
        pictures: list[str],
        unreadable: list[str],
    ) -> None:
        """Store a shard; a stop at any moment leaves it undone or done, and what it leaves beside
        that is removed here."""
        paths = [self._path(kind, shard, ending) for ending in ("_latent.npy", "_style.npy", ".json")]
        for path, array in zip(paths, (latents, styles)):
            with written_whole(path) as aside:
                np.save(aside, array.astype(np.float16))
        _write_json(paths[-1], {"pictures": pictures, "unreadable": unreadable})
        remove_left_asides(paths)

    def read(self, kind: str, shard: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """(latents, style statistics, both memory-mapped; what the shard's own file says)."""
        arrays = [
            np.load(self._path(kind, shard, f"_{name}.npy"), mmap_mode="r") for name in ("latent", "style")
        ]
        return *arrays, _read_json(
            self._path(kind, shard, ".json"), f"{self.folder}: shard {shard} of the {kind} is not done"
        )

    def check_complete(self) -> None:
        """Raises UserError for a cache whose making was stopped."""
        for kind in KINDS:
            done = sum(self.is_done(kind, shard) for shard in self.shards(kind))
            if done < len(self.shards(kind)):
                raise UserError(
                    f"{self.folder}: {done} of {len(self.shards(kind))} shards of {kind} are done; run artfusion cache again to finish"
                )

    def unreadable(self, kind: str) -> list[str]:
        """What was wrong with the pictures of a complete kind that were left out."""
        return [problem for shard in self.shards(kind) for problem in self.read(kind, shard)[2]["unreadable"]]

    def _path(self, kind: str, shard: int, ending: str) -> Path:
        return self.folder / f"{kind}_{shard:05d}{ending}"


class CachedHybridTrain(HybridDraws):
    """What HybridTrain draws, from a cache, with the same options.

    Samples: `latent` (C, h, w), `style` (style_dim,), both flags, and `path`, the picture's name in
    the cache.
    """

    def __init__(
        self,
        cache: str = "datasets/cache",
        style_drop: float = 0.1,
        content_drop: float = 0.5,
        photo_share: float = 0.0,
        split: str = "train",
        validation_share: float = 0.02,
        seed: int = 0,
    ):
        self.store = LatentCache(cache)
        self.store.check_complete()
        paintings, photos = (CachedRows(self.store, kind, split, validation_share, seed) for kind in KINDS)
        super().__init__(paintings, photos, style_drop, content_drop, photo_share)

    def check_model(self, model: Encoders) -> None:
        """Raises ConfigError for a model whose encoders did not make this cache."""
        # else it would be a download, which training may need and this does not
        if model.vgg_ckpt_path is not None:
            model.load_style_network()
        theirs = self.store.meta["made_by"]["encoders"]
        for name, mark in encoder_fingerprints(model).items():
            if mark != theirs[name]:
                raise ConfigError(
                    f"{self.store.folder}: made with other weights of the {name} than the config's; make the cache anew "
                    "with artfusion cache, or give the config the weights that it was made with"
                )


class CachedRows(Dataset):
    """The rows of one kind that belong to a split, by the rule for picture folders."""

    def __init__(self, store: LatentCache, kind: str, split: str, validation_share: float, seed: int):
        check_split(split)
        self.per_picture = store.meta["rows_per_picture"]
        self.shards = [store.read(kind, shard) for shard in store.shards(kind)]
        places = [
            (shard, place, name)
            for shard, (_, _, meta) in enumerate(self.shards)
            for place, name in enumerate(meta["pictures"])
        ]
        chosen = of_split(
            [Path(name) for *_, name in places],
            split,
            validation_share,
            seed,
            where=f"{store.folder}, {kind}",
        )
        self.places = np.array([places[i][:2] for i in chosen])

    @property
    def pictures(self) -> int:
        """Files that the rows come from."""
        return len(self.places)

    def __len__(self) -> int:
        return len(self.places) * self.per_picture

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        shard, place = self.places[index // self.per_picture]
        latents, styles, meta = self.shards[shard]
        row = place * self.per_picture + index % self.per_picture
        latent, style = (torch.from_numpy(np.array(array[row])) for array in (latents, styles))
        return {"latent": latent, "style": style, "path": meta["pictures"][place]}


def encoder_fingerprints(model: Encoders) -> dict[str, str]:
    """What tells apart the weights that latents and style statistics come from; only of networks
    that have theirs."""
    first_stage = model.first_stage_model
    marks = {"first stage": fingerprint(first_stage.encoder, first_stage.quant_conv)}
    return marks | ({"style network": fingerprint(model.vgg)} if model.vgg.has_weights else {})


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(missing) from error
    except ValueError as error:
        raise UserError(f"{path}: not readable ({error})") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with written_whole(path) as aside:
        aside.write_text(json.dumps(content))
