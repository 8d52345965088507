"""Say what a checkpoint file is, whether it is whole, and whether it fits a config.

    artfusion checkpoint verify checkpoints/artfusion/last.ckpt
    artfusion checkpoint verify checkpoints/vae/kl-f16.ckpt
    artfusion checkpoint verify models/ldm/cin256-v2/model.ckpt
    artfusion checkpoint verify my_model.ckpt --config configs/my_model.yaml

Without --config, a file of the size of a published model is compared with that one's config:
configs/kl16_content12.yaml (ArtFusion), configs/latent-diffusion/cin256-v2.yaml (classes of
ImageNet), configs/kl16_first_stage.yaml and configs/vq4_first_stage.yaml.
Exit code: 0 whole and fitting, 1 readable but not fitting or with NaN or infinite values, 2
unreadable.
"""

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint import (
    TRAINING_ONLY,
    Mismatch,
    Report,
    compare,
    describe,
    is_ema_name,
    read_state_dict,
)  # fmt: skip
from ldm.config.factory import instantiate_from_config, load_config, to_plain
from ldm.errors import ConfigError
from ldm.files import ROOT, file_hash, own_or
from ldm.program import ArgumentParser
from ldm.text import human_size

CONFIGS = ROOT / "configs"
CONV = "model.diffusion_model.input_blocks.0.0.weight"
# (config, shapes that tell its model from others)
PUBLISHED = (
    ("kl16_content12.yaml", {CONV: (384, 28, 3, 3), "null_style_vector.weight": (1, 2944)}),
    (
        "latent-diffusion/cin256-v2.yaml",
        {CONV: (192, 3, 3, 3), "cond_stage_model.embedding.weight": (1001, 512)},
    ),
    (
        "kl16_first_stage.yaml",
        {"encoder.conv_in.weight": (128, 3, 3, 3), "quant_conv.weight": (32, 32, 1, 1)},
    ),
    (
        "vq4_first_stage.yaml",
        {"quantize.embedding.weight": (8192, 3), "encoder.mid.attn_1.q.weight": (512, 512, 1, 1)},
    ),
)


def main() -> int:
    args = parse_args()
    report = describe(args.file)
    print(f"{args.file}: {report.kind}")
    print_report(report, file_hash(args.file))
    tensors = read_state_dict(args.file)
    config = args.config or published_config(tensors)
    fits = config is None or print_comparison(config, tensors, report.has_ema)
    return 0 if fits and not report.nonfinite else 1


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("file", type=own_or, help="a .ckpt, .pt, .pth or .safetensors file")
    parser.add_argument("--config", type=Path, help="YAML file whose `model` the checkpoint should fit")
    return parser.parse_args()


def print_report(report: Report, digest: str) -> None:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in report.dtypes.items())
    print(f"  file: {human_size(report.size)}, sha256 {digest}...")
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


def published_config(tensors: dict[str, Tensor]) -> Path | None:
    """The config of the published model that the file seems to be."""
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return next((CONFIGS / config for config, own in PUBLISHED if own.items() <= shapes.items()), None)


def print_comparison(config: Path, tensors: dict[str, Tensor], has_ema: bool) -> bool:
    """Compare the file with the model that the config describes; true if it fits."""
    node = to_plain(load_config(config)).get("model")
    if node is None:
        raise ConfigError(f"config {config}: it has no `model`")
    model = instantiate_from_config(without_ckpt_paths(node))
    # What the model need not have, and what is never loaded.
    optional = model.optional_keys(tensors) if hasattr(model, "optional_keys") else ()
    mismatch = compare(model, tensors, (*TRAINING_ONLY, *optional))
    if not has_ema:
        mismatch = forgive_missing_ema(mismatch)
    print(f"  against {config.name}: {mismatch or 'every name and shape fits'}")
    return not mismatch


def forgive_missing_ema(mismatch: Mismatch) -> Mismatch:
    """A file without any EMA is no damaged one: it was made for inference."""
    missing = [name for name in mismatch.missing if not is_ema_name(name)]
    if len(missing) < len(mismatch.missing):
        print("  inference-only file: no EMA beside its weights; build the model with `use_ema: false`")
    return Mismatch(missing, mismatch.unexpected, mismatch.misshapen)


def without_ckpt_paths(node: Any) -> Any:
    """The config with every `ckpt_path` set to null: names and shapes do not need weights."""
    if isinstance(node, dict):
        return {key: None if key == "ckpt_path" else without_ckpt_paths(value) for key, value in node.items()}
    return [without_ckpt_paths(value) for value in node] if isinstance(node, list) else node
