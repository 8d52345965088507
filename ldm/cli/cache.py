"""Compute latents and style statistics of the training pictures once, so that training needs no
encoder.

    artfusion cache --config configs/kl16_content12.yaml --paintings PAINTINGS --photos PHOTOS --output CACHE
    artfusion train --base configs/kl16_content12_cached.yaml data.params.train.params.cache=CACHE

Values of the config are overridden as in artfusion train, say the weights of a first stage and a
style network of your own:
    ... model.params.first_stage_config.params.ckpt_path=FILE model.params.vgg_ckpt_path=FILE

For every picture: `--crops` random crops, each also mirrored. Run it again after a stop: it goes on
with the first shard that is not done. Under torchrun the processes share the shards between them.
Pictures that cannot be read are left out and named at the end.
"""

import argparse

from ldm.files import check_config_file, check_exists, own_or
from ldm.program import ArgumentParser, at_least


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--config", required=True, help="the model's config; its first stage and style network are used"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="config values that come last")
    parser.add_argument("--paintings", required=True, metavar="DIR", help="folder of paintings, of any depth")
    parser.add_argument("--photos", required=True, metavar="DIR", help="folder of photos, of any depth")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the cache")
    parser.add_argument(
        "--size", type=at_least(1), default=256, help="side of the crops in pixels (default: 256)"
    )
    parser.add_argument(
        "--short-side",
        type=int,
        default=288,
        help="pictures are scaled to this smaller side first (default: 288)",
    )
    parser.add_argument(
        "--photo-short-side", type=int, help="another smaller side for the photos (default: the same)"
    )
    parser.add_argument(
        "--crops", type=at_least(1), default=2, help="random crops of each picture (default: 2)"
    )
    parser.add_argument(
        "--pictures-per-shard",
        type=at_least(1),
        default=256,
        help="a stop loses at most one shard's work (default: 256)",
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), default=4, help="pictures encoded at once (default: 4)"
    )
    parser.add_argument(
        "--num-workers", type=int, default=2, help="processes that read pictures (default: 2)"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    check_config_file(args.config)
    for folder in (args.paintings, args.photos):
        check_exists(own_or(folder), "folder of pictures")
    from ldm.training.caching import make_cache  # takes seconds, with torch and Lightning

    make_cache(args)
