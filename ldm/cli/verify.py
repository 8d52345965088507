"""Say what a checkpoint file is, whether it is whole, and whether it fits a config.

    artfusion checkpoint verify checkpoints/artfusion/last.ckpt
    artfusion checkpoint verify checkpoints/vae/kl-f16.ckpt
    artfusion checkpoint verify models/ldm/cin256-v2/model.ckpt
    artfusion checkpoint verify my_model.ckpt --config configs/my_model.yaml

Without --config, a file is compared with the config in it; one without, of the size of
a published model, with that one's config:
configs/kl16_content12.yaml (ArtFusion), configs/latent-diffusion/cin256-v2.yaml (classes of
ImageNet), configs/kl16_first_stage.yaml and configs/vq4_first_stage.yaml.
Exit code: 0 whole and fitting, 1 readable but not fitting or with NaN or infinite values, 2
unreadable.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.files import check_config_file, check_exists, file_hash, own_or
from ldm.pipeline.bundled import bundled_config
from ldm.program import ArgumentParser
from ldm.text import human_size

if TYPE_CHECKING:
    from ldm.checkpoint import Mismatch, Report


def main() -> int:
    args = parse_args()
    check_exists(args.file)
    if args.config is not None:
        check_config_file(args.config)
    from ldm.checkpoint import describe, read_state_dict  # takes seconds, with torch
    from ldm.checkpoint.carried import carries_config
    from ldm.checkpoint.fitting import forgive_missing_ema, mismatch_with, published_config

    report = describe(args.file)
    print(f"{args.file}: {report.kind}")
    print_report(report, file_hash(args.file))
    tensors = read_state_dict(args.file)
    own = args.file if carries_config(args.file) else None
    config = args.config or own or bundled_config(args.file) or published_config(tensors)
    if config is not None:
        found = mismatch_with(config, tensors)
        mismatch = found if report.has_ema else forgive_missing_ema(found)
        print_comparison(config, mismatch, forgiven=mismatch != found)
        if mismatch:
            return 1
    return 1 if report.nonfinite else 0


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("file", type=own_or, help="a .ckpt, .pt, .pth or .safetensors file")
    parser.add_argument("--config", type=Path, help="YAML file whose `model` the checkpoint should fit")
    return parser.parse_args()


def print_report(report: "Report", digest: str) -> None:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in report.dtypes.items())
    print(f"  file: {human_size(report.size)}, sha256 {digest}...")
    print(f"  its hash {report.hash_place}: fits" if report.hash_place else "  its hash: none comes with it")
    print(f"  tensors: {report.tensors} ({dtypes}), {report.parameters / 1e6:.1f} million values")
    print(f"  EMA: {'yes' if report.has_ema else 'no'}")
    if report.global_step is not None:
        print(
            f"  step: {report.global_step}" + (f", epoch: {report.epoch}" if report.epoch is not None else "")
        )
    if report.nonfinite:
        print(
            f"  NaN or infinite: {sum(report.nonfinite.values())} values, in {', '.join(list(report.nonfinite)[:5])}"
        )
    else:
        print("  whole, all values finite")


def print_comparison(config: Path, mismatch: "Mismatch", forgiven: bool) -> None:
    if forgiven:
        print("  inference-only file: no EMA beside its weights; build the model with `use_ema: false`")
    name = "the config in it" if config.suffix == ".safetensors" else config.name
    print(f"  against {name}: {mismatch or 'every name and shape fits'}")
