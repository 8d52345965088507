"""The options that the painting programs share: which model, and every dial of `ldm.pipeline.settings.Settings`."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from ldm import __version__
from ldm.checkpoint import file_hash
from ldm.device import DEVICES, PRECISIONS
from ldm.errors import UserError
from ldm.pipeline.pipeline import StyleTransferPipeline, resolve_checkpoint
from ldm.pipeline.settings import LOOKS, SAMPLERS, Settings

_STEPS = ", ".join(f"{count} for {name}" for name, count in SAMPLERS.items())
# name of a setting -> how its option is declared
_SETTINGS: dict[str, dict[str, Any]] = {
    "look": {"choices": LOOKS, "default": "fine", "help": "fine: led to the painting's own brush work by gradients; fast: as sampled, in a fraction of the time (default: %(default)s)"},
    "effort": {"type": float, "default": 1.0, "metavar": "E", "help": "for fine: times as many gradient steps (default: 1)"},
    "content_scale": {"type": float, "default": 1.0, "metavar": "S", "help": "guidance by the content: more keeps to the photo, 0, with --detail 0, ignores it (default: 1)"},
    "style_scale": {"type": float, "default": 1.0, "metavar": "S", "help": "guidance by the style: more is more painterly, 0 ignores it (default: 1)"},
    "detail": {"type": float, "metavar": "D", "help": "how much of the photo's finest detail, which the model's first stage cannot hold, is put back, 0 to 1 (default: 0.35; for fast 0.5, with the published model 0)"},
    "strength": {"type": float, "default": 1.0, "metavar": "S", "help": "below 1: paint over the photo, keeping more of it and of its colours (default: 1)"},
    "preserve_color": {"action": "store_true", "help": "keep the photo's colours, take the result's brightness only"},
    "size": {"type": lambda text: parse_size(text), "default": 512, "metavar": "N|WxH", "help": "shorter side of the result, the photo's aspect kept; or its width and height, to which the photo is cropped (default: %(default)s)"},
    "style_size": {"type": int, "metavar": "N", "help": "look at the style pictures at this shorter side: (default: for fast the size the model was trained at, where smaller makes larger strokes; for fine that of the result, where larger does)"},
    "tile": {"type": int, "metavar": "N", "help": "for fast: paint large pictures in overlapping tiles of that many pixels (default: the size the model was trained at); larger is faster and takes more memory"},
    "refine": {"type": float, "default": 0.5, "metavar": "S", "help": "for fast: large pictures are painted small first, enlarged, and painted over with this strength; 1: in tiles from scratch (default: 0.5)"},
    "sampler": {"choices": SAMPLERS, "default": "dpm-solver++", "help": "ddim is the published one, ancestral draws fresh noise at every step (default: dpm-solver++)"},
    "steps": {"type": int, "metavar": "N", "help": f"sampling steps (default: {_STEPS}; for fine half as many)"},
    "eta": {"type": float, "default": 0.0, "help": "for ddim: 0 is deterministic, 1 as noisy as ancestral (default: 0)"},
    "guidance_interval": {"type": float, "nargs": 2, "metavar": ("LO", "HI"), "help": "the scales act only between these fractions of the way from picture (0) to noise (1); elsewhere they count as 1"},
    "seed": {"type": int, "default": 0, "metavar": "N", "help": "the same seed gives the same picture (default: 0)"},
}  # fmt: skip


def parse_size(text: str) -> int | tuple[int, int]:
    """`256`, or `640x480` (width and height)."""
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(
            f"expected a number such as 256, or width x height such as 640x480, got {text!r}"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def add_settings_options(
    parser: argparse.ArgumentParser,
    leave_out: tuple[str, ...] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Options for the settings, but for those left out, with other `defaults` where given."""
    group = parser.add_argument_group("how to paint")
    for name, declaration in _SETTINGS.items():
        if name not in leave_out:
            group.add_argument("--" + name.replace("_", "-"), **declaration)
    parser.set_defaults(**(defaults or {}))


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings among parsed options, checked as far as it goes without a model. Raises UserError."""
    settings = {
        field.name: getattr(args, field.name) for field in fields(Settings) if hasattr(args, field.name)
    }
    chosen = Settings(**settings)
    chosen.check()
    if chosen.effort != 1 and not chosen.has_brush:
        raise UserError(f"--effort is for --look fine; the look {chosen.look} makes no gradient steps")
    return settings


def provenance(args: argparse.Namespace, settings: dict[str, Any], precision: str) -> dict[str, Any]:
    """What a result's metadata say of how it was painted: settings, model, version. Raises UserError without a checkpoint."""
    checkpoint = resolve_checkpoint(args.checkpoint, args.config)[0]
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such file")
    return {
        **settings,
        "steps": Settings(**settings).number_of_steps,
        "precision": precision,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": file_hash(checkpoint),
        "version": __version__,
    }


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with which model, and where")
    group.add_argument(
        "--checkpoint",
        default="mini",
        metavar="mini|PATH",
        help="the bundled model (default) or a checkpoint file",
    )
    group.add_argument(
        "--config", metavar="YAML", help="the checkpoint's config (default: that of the published model)"
    )
    group.add_argument("--device", default="auto", choices=DEVICES, help="default: a GPU if there is one")
    group.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="auto: bf16 where the device is fast at it, else fp32",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the networks first: pays from some hundred pictures of one size on",
    )
    group.add_argument(
        "--allow-target",
        action="append",
        default=[],
        metavar="PREFIX",
        help="also build classes that the config names under this dotted prefix",
    )


def load_pipeline(args: argparse.Namespace) -> StyleTransferPipeline:
    """The pipeline of parsed model options, on a GPU of its own where torchrun started several processes. Raises UserError."""
    device = args.device
    if "LOCAL_RANK" in os.environ and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return StyleTransferPipeline.from_pretrained(
        args.checkpoint, args.config, device, args.precision, args.allow_target, args.compile
    )
