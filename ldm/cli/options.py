"""The options that the painting programs share: which model, and every dial of
`ldm.pipeline.settings.Settings`.

Nothing here imports torch before `load_pipeline`, so that a wrong option is answered at once.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm import __version__
from ldm.checks import DEVICES, FACES, PRECISIONS
from ldm.errors import UserError
from ldm.files import file_hash, own_or
from ldm.pipeline.bundled import resolve_checkpoint
from ldm.pipeline.settings import DIALS, Choice, Dial, Flag, Interval, Number, Settings, Size
from ldm.ranks import local_rank

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import StyleTransferPipeline


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


def declaration(dial: Dial) -> dict[str, Any]:
    """How argparse takes a dial."""
    match dial:
        case Choice():
            return {"choices": dial.names}
        case Flag():
            return {"action": "store_true"}
        case Size():
            return {"type": parse_size, "metavar": dial.metavar}
        case Interval():
            return {"type": float, "nargs": 2, "metavar": dial.metavar}
        case Number():
            return {"type": int if dial.whole else float, "metavar": dial.metavar}
    raise TypeError(f"no option for a {type(dial).__name__}")


def dial_value(setting: str, text: str) -> Any:
    """A setting's value as its option takes it. Raises ValueError."""
    return declaration(DIALS[setting]).get("type", str)(text)


def option_name(setting: str) -> str:
    """`--content-scale` of `content_scale`."""
    return "--" + setting.replace("_", "-")


def add_settings_options(
    parser: argparse.ArgumentParser,
    leave_out: Iterable[str] = (),
    only: Iterable[str] = tuple(DIALS),
    **defaults: Any,
) -> None:
    """Options for the settings, or for `only` some, but for those left out; with other defaults
    where given."""
    group = parser.add_argument_group("how to paint")
    for name in only:
        if name not in leave_out:
            dial, default = DIALS[name], defaults.get(name, getattr(Settings, name))
            shown = dial.default_help if default is None else told(default)
            text = dial.help + (f" (default: {shown})" if shown else "")
            group.add_argument(option_name(name), default=default, help=text, **declaration(dial))


def told(default: Any) -> str:
    """A default in the help; a switch that is off goes without saying."""
    if isinstance(default, bool):
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def add_scales_options(
    parser: argparse._ActionsContainer,
    content_scales: list[float],
    style_scales: list[float],
    of: tuple[str, str],
) -> None:
    """Options for several scales of each kind, with these defaults; `of` says what each is for."""
    for name, default, what in zip(("content", "style"), (content_scales, style_scales), of):
        text = f"{what} (default: {' '.join(f'{scale:g}' for scale in default)})"
        parser.add_argument(
            f"--{name}-scales", type=float, nargs="+", default=default, metavar="S", help=text
        )


def settings_of(args: argparse.Namespace, **others: Any) -> Settings:
    """The settings among parsed options, and others, checked as far as it goes without a model.
    Raises UserError."""
    given = {name: getattr(args, name) for name in DIALS if hasattr(args, name)}
    settings = Settings(**{**given, **others})
    settings.check()
    return settings


def masks_of(args: argparse.Namespace) -> list[str]:
    """The files of parsed --mask and --keep."""
    return [*(args.mask or ()), *([] if args.keep in (None, FACES) else [args.keep])]


def provenance(args: argparse.Namespace, settings: Settings, precision: str) -> dict[str, Any]:
    """What a result's metadata say of how it was painted: settings, model, version. Raises
    UserError without a checkpoint."""
    return {**painted_with(settings, precision), **painted_by(args)}


def painted_with(settings: Settings, precision: str) -> dict[str, Any]:
    """What of that differs from result to result."""
    return {**settings.values(), "steps": settings.number_of_steps, "precision": precision}


def painted_by(args: argparse.Namespace) -> dict[str, Any]:
    """What of that is the model's. Reads the whole checkpoint. Raises UserError without one."""
    checkpoint, _ = model_files(args)
    return {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": file_hash(checkpoint),
        "version": __version__,
    }


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options for `load_pipeline`."""
    group = parser.add_argument_group("with which model, and where")
    group.add_argument(
        "--checkpoint",
        default="mini",
        metavar="mini|PATH",
        help="the bundled model (default) or a checkpoint file",
    )
    group.add_argument(
        "--config",
        metavar="YAML",
        help="the checkpoint's config (default: the one in it, else the published model's)",
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


def model_files(args: argparse.Namespace) -> tuple[Path, Path]:
    """(checkpoint file, config file) of parsed model options. Raises UserError where there is
    none."""
    checkpoint, config = resolve_checkpoint(args.checkpoint, args.config)
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such file")
    if not own_or(config).is_file():
        raise UserError(f"config {config}: no such file")
    return checkpoint, config


def load_pipeline(args: argparse.Namespace, settle_threads: bool = True) -> "StyleTransferPipeline":
    """The pipeline of parsed model options, on a GPU of its own where torchrun started several
    processes. Raises UserError.

    settle_threads: on a CPU, see before each picture how many threads are fastest now, which is for
    a process that does nothing else.
    """
    model_files(args)
    import torch  # takes seconds

    from ldm.device import use_free_threads
    from ldm.pipeline.pipeline import StyleTransferPipeline

    device, rank = args.device, local_rank()
    if rank is not None and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{rank % torch.cuda.device_count()}"
    pipeline = StyleTransferPipeline.from_pretrained(
        args.checkpoint, args.config, device, args.precision, args.allow_target, args.compile
    )
    if settle_threads and pipeline.model.device.type == "cpu":
        pipeline.before_each = use_free_threads
    return pipeline
