"""The options that the painting programs share: which model, and every dial of
`ldm.pipeline.settings.Settings`.

Nothing here imports torch before `load_pipeline`, so that a wrong option is answered at once.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.checkpoint.carried import config_of
from ldm.checks import DEVICES, FACES, PRECISIONS
from ldm.pipeline.chosen import ModelChoice
from ldm.pipeline.provenance import painted_with
from ldm.pipeline.settings import DIALS, UNSAID, Choice, Dial, Flag, Interval, Number, Settings, Size
from ldm.program import at_least

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


def add_batch_size_option(
    parser: argparse._ActionsContainer, what: str = "pictures painted together", default: int | None = 8
) -> None:
    """--batch-size: so many of `what`, all of them by default where that is None."""
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=default,
        metavar="N",
        help=f"{what} (default: {default or 'all'}); fewer take less memory",
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


def as_the_model(settings: Settings, config: str | Path, names: Iterable[str] | None = None) -> Settings:
    """With what the model's config says of the settings (or of those of these names) that are left to
    it."""
    params = config_of(config).get("model", {}).get("params", {})
    left = [name for name in names or settings.left_to_model if settings.value(name) is None]
    return settings.but(**{name: params.get(name, UNSAID[name]) for name in left})


def painted_by(args: argparse.Namespace) -> dict[str, Any]:
    """What of that is the model's. Reads the whole checkpoint. Raises UserError without one."""
    return model_of(args).description


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


def model_of(args: argparse.Namespace) -> ModelChoice:
    """The model of parsed options."""
    return ModelChoice(
        args.checkpoint, args.config, args.device, args.precision, tuple(args.allow_target), args.compile
    )


def load_pipeline(args: argparse.Namespace, settle_threads: bool = True) -> "StyleTransferPipeline":
    """The pipeline of parsed model options, see `ModelChoice.load`. Raises UserError."""
    return model_of(args).load(settle_threads)
