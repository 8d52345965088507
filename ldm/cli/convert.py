"""Make a small file for inference from a training checkpoint: EMA weights only, as .safetensors.

    artfusion checkpoint convert checkpoints/artfusion/last.ckpt checkpoints/artfusion/artfusion.safetensors
    artfusion checkpoint convert checkpoints/artfusion/last.ckpt artfusion-fp16.safetensors --half
    artfusion checkpoint convert mymodel/cross/checkpoints/last.ckpt mymodel.safetensors --half --leave-out vgg.

The file carries its config, so `--config` need not be given with it: the one that is given here, or
that the input carries, or that of the training run whose folder it lies in, or the published
model's.

Optimiser states, the live weights that the EMA replaces, and the networks of the training losses
are left out.
Such a file belongs to a model built with `use_ema: false`; it cannot continue a training run. The
third leaves out VGG16 as well, for a model whose config says where that is (`vgg_ckpt_path`).
"""

import argparse
from pathlib import Path

from ldm.errors import UserError
from ldm.files import check_config_file, check_exists, own_or
from ldm.pipeline.bundled import bundled_config
from ldm.program import ArgumentParser


def main() -> None:
    args = parse_args()
    check_exists(args.input)
    check_output(args.output, args.force)
    if args.config is not None:
        check_config_file(args.config)
    from ldm.checkpoint.converting import convert  # takes seconds, with torch
    from ldm.models.inference import without_training

    config = args.config or bundled_config(args.input)
    print(
        convert(args.input, args.output, args.leave_out, args.keep_live, args.half, config, without_training)
    )


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("input", type=own_or, help="a .ckpt or .safetensors file")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--half", action="store_true", help="store weights as float16, the noise schedule not"
    )
    parser.add_argument("--keep-live", action="store_true", help="keep the live weights and drop the EMA")
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="PREFIX", help="leave out tensors whose names begin so"
    )
    parser.add_argument("--config", metavar="YAML", help="the config to carry (default: see above)")
    parser.add_argument("--force", action="store_true", help="overwrite the output file")
    return parser.parse_args()


def check_output(path: Path, force: bool) -> None:
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: the output's name must end in .safetensors")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; create it first")
    if path.exists() and not force:
        raise UserError(f"{path}: exists already; add --force to overwrite it")
