"""Make a small file for inference from a training checkpoint: EMA weights only, as .safetensors.

    artfusion checkpoint convert checkpoints/artfusion/last.ckpt checkpoints/artfusion/artfusion.safetensors
    artfusion checkpoint convert checkpoints/artfusion/last.ckpt artfusion-fp16.safetensors --half
    artfusion checkpoint convert mymodel/cross/checkpoints/last.ckpt mymodel.safetensors --half --leave-out vgg.

Optimiser states, the live weights that the EMA replaces, and the networks of the training losses
are left out.
Such a file belongs to a model built with `use_ema: false`; it cannot continue a training run. The
third leaves out VGG16 as well, for a model whose config says where that is (`vgg_ckpt_path`).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ldm.checkpoint import (
    Report,
    bake_ema,
    describe,
    inference_only,
    read_state_dict,
    save_safetensors,
    without,
)  # fmt: skip
from ldm.errors import CheckpointError, UserError
from ldm.files import file_hash, own_or
from ldm.program import ArgumentParser
from ldm.text import human_size


def main() -> None:
    args = parse_args()
    check_output(args.output, args.force)
    report = describe(args.input)
    if report.nonfinite:
        raise CheckpointError(
            f"{args.input}: NaN or infinite values in {', '.join(list(report.nonfinite)[:5])}"
        )
    weights, tensors = choose_weights(
        leaving_out(args.leave_out, read_state_dict(args.input)), args.keep_live
    )
    save_safetensors(tensors, args.output, metadata(args.input, report, weights), args.half)
    print(
        f"{args.output}: {human_size(args.output.stat().st_size)}, {len(tensors)} tensors ({weights}), "
        f"made from {args.input}: {human_size(report.size)}, {report.tensors} tensors"
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
    parser.add_argument("--force", action="store_true", help="overwrite the output file")
    return parser.parse_args()


def check_output(path: Path, force: bool) -> None:
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: the output's name must end in .safetensors")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; create it first")
    if path.exists() and not force:
        raise UserError(f"{path}: exists already; add --force to overwrite it")


def leaving_out(prefixes: Sequence[str], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Raises UserError for a prefix that no name has."""
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in state_dict):
            raise UserError(
                f"--leave-out {prefix}: no name begins so; `artfusion checkpoint verify` lists them"
            )
    return without(state_dict, tuple(prefixes))


def choose_weights(state_dict: dict[str, Tensor], keep_live: bool) -> tuple[str, dict[str, Tensor]]:
    """(which weights these are, in words; the tensors to keep)."""
    live = inference_only(state_dict)
    if keep_live:
        return "live weights", live
    baked = bake_ema(state_dict)
    replaced = any(baked[name] is not live[name] for name in baked)
    return ("EMA weights" if replaced else "its only weights: it has no EMA"), baked


def metadata(source: Path, report: Report, weights: str) -> dict[str, str]:
    facts = {"global_step": report.global_step, "epoch": report.epoch}
    known = {name: str(value) for name, value in facts.items() if value is not None}
    return {
        "kind": report.kind,
        "weights": weights,
        "source": f"{source.name} sha256:{file_hash(source)}",
        **known,
    }
