"""Latents and style statistics of training pictures, computed once."""

import argparse
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.config.factory import instantiate_from_config, to_plain
from ldm.config.merge import merged_config
from ldm.data.cached import KINDS, LatentCache, encoder_fingerprints
from ldm.data.order import mixed_seed
from ldm.data.pictures import PictureFolder
from ldm.data.workers import worker_errors
from ldm.device import autocast, choose_device, has_bf16, memory_errors
from ldm.errors import ConfigError, UserError
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.ranks import local_rank, rank_and_world

log = logging.getLogger(__name__)


def make_cache(args: argparse.Namespace) -> None:
    """Do what the options of `artfusion cache` ask for, or what is left of it. Raises UserError."""
    sides = {"paintings": args.short_side, "photos": args.photo_short_side or args.short_side}
    folders = {
        kind: PictureFolder(getattr(args, kind), args.size, sides[kind], flip=False, validation_share=0.0)
        for kind in KINDS
    }
    model = encoders(to_plain(merged_config([args.config], args.overrides).model))
    factor = model.first_stage_model.encoder.factor
    if args.size % factor:
        raise UserError(f"--size must be a multiple of {factor}, got {args.size}")
    cache = open_cache(args, folders, model)
    with worker_errors("lower --num-workers or --batch-size; the same call goes on from there"):
        for kind, folder in folders.items():
            fill(cache, kind, folder, model, args)
    report(cache)


def encoders(config: dict[str, Any]) -> DualCondLDM:
    """The config's model with the weights of its first stage and style network."""
    try:
        first_stage_weights = config["params"]["first_stage_config"]["params"].get("ckpt_path")
    except (KeyError, TypeError) as error:
        raise ConfigError(f"not the config of a style transfer model (no {error})") from error
    if first_stage_weights is None:
        raise UserError("the config's first stage has no ckpt_path, and random latents are no use")
    model = instantiate_from_config(config, kind="model", key="model").eval()
    if not isinstance(model, DualCondLDM):
        raise ConfigError(
            f"the config describes a {type(model).__name__}, not a style transfer model (DualCondLDM)"
        )
    model.load_style_network()
    device = choose_device()
    return model.to(f"cuda:{local_rank() or 0}" if device.type == "cuda" else device)


def open_cache(
    args: argparse.Namespace, folders: dict[str, PictureFolder], model: DualCondLDM
) -> LatentCache:
    """A new cache, or the one of the same call that was stopped."""
    what = {
        name: getattr(args, name)
        for name in (
            "paintings",
            "photos",
            "size",
            "short_side",
            "photo_short_side",
            "crops",
            "seed",
            "pictures_per_shard",
        )
    }
    made_by = {**what, "encoders": encoder_fingerprints(model)}
    pictures = {
        kind: [p.relative_to(getattr(args, kind)).as_posix() for p in f.paths] for kind, f in folders.items()
    }
    if (Path(args.output) / "cache.json").exists():
        cache = LatentCache(args.output)
        if cache.meta["made_by"] != made_by or cache.meta["pictures"] != pictures:
            raise UserError(
                f"{args.output}: holds a cache made with other options, weights or pictures; choose another folder"
            )
        return cache
    return LatentCache.create(args.output, made_by, pictures, 2 * args.crops, args.pictures_per_shard)


def fill(
    cache: LatentCache, kind: str, folder: PictureFolder, model: DualCondLDM, args: argparse.Namespace
) -> None:
    """Encode this process's shards of one kind that are not done yet."""
    rank, world = rank_and_world()
    mine = cache.shards(kind)[rank::world]
    todo = [shard for shard in mine if not cache.is_done(kind, shard)]
    # Batches never reach across shards, so that one is written as soon as its last batch is done.
    batches = {shard: _pieces(cache.pictures_of(kind, shard), args.batch_size) for shard in todo}
    crops = PictureCrops(folder, args.crops, args.seed)
    loader = iter(
        DataLoader(
            crops,
            batch_sampler=list(itertools.chain(*batches.values())),
            num_workers=args.num_workers,
            collate_fn=list,
        )
    )
    total, left = (sum(len(cache.pictures_of(kind, shard)) for shard in shards) for shards in (mine, todo))
    with tqdm(initial=total - left, total=total, desc=kind, unit="picture", disable=rank > 0) as bar:
        for shard, indices in batches.items():
            encoded = []
            for pictures in itertools.islice(loader, len(indices)):
                encoded += encode(model, pictures)
                bar.update(len(pictures))
            names = [cache.meta["pictures"][kind][index] for index in cache.pictures_of(kind, shard)]
            cache.write(kind, shard, *_readable(names, encoded))


def _pieces(indices: range, size: int) -> list[list[int]]:
    return [[*indices[i : i + size]] for i in range(0, len(indices), size)]


class PictureCrops(Dataset):
    """Per picture (2 * crops, 3, size, size) in [-1, 1]: random crops and their mirror images; or
    what is wrong with it."""

    def __init__(self, folder: PictureFolder, crops: int, seed: int):
        self.folder, self.crops, self.seed = folder, crops, seed

    def __getitem__(self, index: int) -> Tensor | str:
        torch.manual_seed(mixed_seed(self.seed, index))
        try:
            image = self.folder.read(index)
        except UserError as error:
            return " ".join(str(error).split())
        crops = np.stack([self.folder.crop(image) for _ in range(self.crops)])
        # Mirrored before encoding: a mirrored latent is not the latent of the mirrored picture.
        return torch.from_numpy(np.concatenate([crops, crops[:, :, ::-1]])).permute(0, 3, 1, 2)


@torch.no_grad()
def encode(model: DualCondLDM, pictures: list[Tensor | str]) -> list[tuple[np.ndarray, np.ndarray] | str]:
    """(latents, style statistics) of each picture's rows; what is wrong with those that could not
    be read."""
    crops = [picture for picture in pictures if not isinstance(picture, str)]
    if not crops:
        return [picture for picture in pictures if isinstance(picture, str)]
    x = torch.cat(crops).to(model.device)
    precision = "bf16" if has_bf16(model.device) else "fp32"
    with memory_errors("lower --batch-size or --crops"), autocast(model.device, precision):
        posterior, styles = model.encode_first_stage(x), model.get_style_statistics(x)
    latents = (posterior if isinstance(posterior, Tensor) else posterior.mode()).float()
    sizes = [len(crop) for crop in crops]
    parts = ([piece.cpu().numpy() for piece in part.split(sizes)] for part in (latents, styles))
    done = zip(*parts)
    return [picture if isinstance(picture, str) else next(done) for picture in pictures]


def _readable(
    names: list[str], encoded: list[tuple[np.ndarray, np.ndarray] | str]
) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """A shard's (latents, styles, names of its pictures, what is wrong with the others)."""
    good = {name: rows for name, rows in zip(names, encoded) if not isinstance(rows, str)}
    latents, styles = (
        (np.concatenate(parts) for parts in zip(*good.values())) if good else (np.zeros(0), np.zeros(0))
    )
    return latents, styles, list(good), [problem for problem in encoded if isinstance(problem, str)]


def report(cache: LatentCache) -> None:
    """Name the pictures that were left out; with several processes, the last one to finish does."""
    if not all(cache.is_done(kind, shard) for kind in KINDS for shard in cache.shards(kind)):
        return
    unreadable = {kind: cache.unreadable(kind) for kind in KINDS}
    for kind, problems in unreadable.items():
        if len(problems) == len(cache.meta["pictures"][kind]):
            raise UserError(f"none of the {kind} could be read: {'; '.join(problems)}")
    lines = [f"\n  {problem}" for problems in unreadable.values() for problem in problems]
    log.info("%s: complete; %d pictures could not be read%s", cache.folder, len(lines), "".join(lines))
