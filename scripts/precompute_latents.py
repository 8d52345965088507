"""Compute latents and style statistics of the training pictures once, so that training needs no encoder.

    python scripts/precompute_latents.py --config configs/mini.yaml --paintings PAINTINGS --photos PHOTOS --output CACHE
    python main.py --base configs/mini.yaml data.params.train.params.cache=CACHE data.params.validation.params.cache=CACHE

Values of the config are overridden as in main.py, say the weights of a first stage and a style network of your own:
    ... model.params.first_stage_config.params.ckpt_path=FILE model.params.vgg_ckpt_path=FILE

For every picture: `--crops` random crops, each also mirrored. Run it again after a stop: it goes on where it was.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ldm.checkpoint import file_hash
from ldm.cli import ArgumentParser, run
from ldm.data.cached import KINDS, LatentCache
from ldm.data.pictures import PictureFolder
from ldm.device import autocast, choose_device
from ldm.errors import ConfigError, UserError
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.training.train import merged_config
from ldm.util import instantiate_from_config, to_plain


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--config", required=True, help="the model's config; its first stage and style network are used")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="config values that come last")
    parser.add_argument("--paintings", required=True, metavar="DIR", help="folder of paintings, of any depth")
    parser.add_argument("--photos", required=True, metavar="DIR", help="folder of photos, of any depth")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the cache")
    parser.add_argument("--size", type=int, default=256, help="side of the crops in pixels (default: 256)")
    parser.add_argument("--short-side", type=int, default=288, help="pictures are scaled to this smaller side first (default: 288)")
    parser.add_argument("--crops", type=int, default=2, help="random crops of each picture (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    if args.crops < 1:
        raise UserError(f"--crops must be at least 1, got {args.crops}")
    folders = {kind: PictureFolder(getattr(args, kind), args.size, args.short_side, flip=False, validation_share=0.0) for kind in KINDS}
    config = to_plain(merged_config([args.config], args.overrides).model)
    model = encoders(config)
    factor = model.first_stage_model.encoder.factor
    if args.size < 1 or args.size % factor:
        raise UserError(f"--size must be a multiple of {factor}, got {args.size}")
    cache = open_cache(args, folders, weights_hashes(config))
    for kind, folder in folders.items():
        fill(cache, kind, folder, model, args)


def encoders(config: dict[str, Any]) -> DualCondLDM:
    """The config's model with the weights of its first stage and style network."""
    try:
        first_stage_weights = config["params"]["first_stage_config"]["params"].get("ckpt_path")
    except (KeyError, TypeError) as error:
        raise ConfigError(f"not the config of a style transfer model (no {error})") from error
    if first_stage_weights is None:
        raise UserError("the config's first stage has no ckpt_path, and random latents are no use")
    model = instantiate_from_config(config).eval()
    if not isinstance(model, DualCondLDM):
        raise ConfigError(f"the config describes a {type(model).__name__}, not a style transfer model (DualCondLDM)")
    model.load_style_network()
    return model.to(choose_device())


def weights_hashes(config: dict[str, Any]) -> str:
    """What tells apart weights that lie under the same name."""
    paths = (config["params"]["first_stage_config"]["params"]["ckpt_path"], config["params"].get("vgg_ckpt_path"))
    return " ".join(file_hash(path) for path in paths if path is not None)


def open_cache(args: argparse.Namespace, folders: dict[str, PictureFolder], weights: str) -> LatentCache:
    """A new cache, or the one of the same call that was stopped."""
    made_by = {name: str(value) for name, value in vars(args).items() if name != "output"} | {"weights": weights}
    pictures = {kind: [p.relative_to(getattr(args, kind)).as_posix() for p in f.paths] for kind, f in folders.items()}
    if (Path(args.output) / "cache.json").exists():
        cache = LatentCache(args.output)
        if cache.meta["made_by"] != made_by or cache.meta["pictures"] != pictures:
            raise UserError(f"{args.output}: holds a cache made with other options, weights or pictures; choose another folder")
        return cache
    return LatentCache.create(args.output, made_by, pictures, rows_per_picture=2 * args.crops)


@torch.no_grad()
def fill(cache: LatentCache, kind: str, folder: PictureFolder, model: DualCondLDM, args: argparse.Namespace) -> None:
    """Encode what is not done yet of one kind, a picture at a time."""
    per_picture = cache.meta["rows_per_picture"]
    first = cache.meta["done"][kind] // per_picture
    for index in tqdm(range(first, len(folder)), initial=first, total=len(folder), desc=kind, unit="picture"):
        torch.manual_seed(args.seed + index)
        image = folder.read_or_replace(index)
        crops = np.stack([folder.crop(image) for _ in range(args.crops)])
        # Mirrored before encoding: a mirrored latent is not the latent of the mirrored picture.
        x = torch.from_numpy(np.concatenate([crops, crops[:, :, ::-1]])).permute(0, 3, 1, 2).to(model.device)
        with autocast(model.device, "bf16"):
            latent, style = model.encode_first_stage(x).mode().float(), model.get_style_statistics(x)
        cache.allocate(kind, tuple(latent.shape[1:]), style.shape[1])
        latents, styles = cache.arrays(kind, "r+")
        rows = slice(index * per_picture, (index + 1) * per_picture)
        latents[rows], styles[rows] = latent.cpu().numpy(), style.cpu().numpy()
        if index % 50 == 49 or index == len(folder) - 1:
            cache.mark_done(kind, rows.stop)


if __name__ == "__main__":
    run(main)
