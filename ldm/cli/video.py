"""Paint a clip in the style of a painting: a video file, a GIF, or a folder with a picture for each
frame.

    artfusion video --content clip.mp4 --style painting.jpg --output out.mp4
    artfusion video --content clip.mp4 --style painting.jpg --output trial.mp4 --frames 8
    artfusion video --content frames/ --style painting.jpg --output painted/

The look is sampled unless another is given: fast and fine take seconds for each frame on a CPU, so
hours for a whole clip. What stands still in the clip stands still in the result, what moves takes its
paint with it, and only what comes into sight is painted anew (OpenCV tells which is which, by optical
flow); a cut begins afresh. With --smooth 0 each frame is painted for itself and flickers.

A video keeps its frames' times and its sound, if the output's format takes it; an odd last row or
column of pixels is cut off, except for GIF and folders. Frames go to a folder as PNG files, one by
one: started again after a stop, the program leaves those that it painted in the same way, and goes
on from them.
"""

import argparse
import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ldm.cli.options import (
    add_batch_size_option,
    add_model_options,
    add_settings_options,
    as_the_model,
    load_pipeline,
    model_of,
    provenance,
    settings_of,
)
from ldm.errors import UserError
from ldm.files import file_hash
from ldm.media.clips import DEFAULT_RATE, Clip, Frame, at_least_one, open_clip
from ldm.media.flow import opencv
from ldm.media.images import load_image
from ldm.media.motion import DEFAULT_SMOOTH
from ldm.media.video import can_keep_sound, check_target, finished_frames, is_video, write_frames, write_video
from ldm.pipeline.clip import painted_clip
from ldm.pipeline.inputs import read_style
from ldm.pipeline.library import saved_style
from ldm.pipeline.provenance import metadata_saying
from ldm.pipeline.settings import Settings
from ldm.program import ArgumentParser, at_least

log = logging.getLogger(__name__)

About = Callable[[str], dict[str, str]]  # the metadata of the frame of a name


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--content", required=True, metavar="CLIP", help="what to paint: a video file, or a folder of frames"
    )
    parser.add_argument("--style", required=True, metavar="FILE", help="the picture that says how")
    parser.add_argument(
        "--output",
        required=True,
        metavar="CLIP",
        help="where the result goes: .mp4, .mov, .mkv, .webm, .gif, or a folder",
    )
    parser.add_argument(
        "--start", type=at_least(0), default=0, metavar="N", help="leave out the first N frames (default: 0)"
    )
    parser.add_argument(
        "--frames", type=at_least(1), metavar="N", help="paint only N frames, for a trial (default: all)"
    )
    parser.add_argument(
        "--fps",
        type=frames_per_second,
        metavar="N",
        help=f"of a folder of frames, made a video (default: {DEFAULT_RATE})",
    )
    add_batch_size_option(parser, "frames sampled together")
    parser.add_argument(
        "--smooth",
        type=share,
        default=DEFAULT_SMOOTH,
        metavar="S",
        help="how much of what moves keeps its paint from frame to frame: 1 all, less renews some of it, "
        f"0 paints each frame for itself (default: {DEFAULT_SMOOTH})",
    )
    add_settings_options(parser, leave_out=["face_detail"], look="sampled", size=256)
    add_model_options(parser)
    return parser.parse_args()


def frames_per_second(text: str) -> Fraction:
    """`25`, `23.976` or `24000/1001`."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1000, got {text!r}")
    return rate.limit_denominator(1001)


def share(text: str) -> float:
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def main() -> None:
    args = parse_args()
    settings = settings_of(args)
    if not settings.paints:  # what has the same colours gets the same, in all of a scene
        args.smooth = 0.0
    if args.smooth:
        opencv()
    target, style = check_target(args.output, args.content), read_style(args.style)
    clip = open_clip(args.content, args.fps)
    about: About = (lambda name: {}) if is_video(target) else description(args, settings, clip)
    there = frozenset() if is_video(target) else finished_frames(target, about)
    frames = chosen_frames(clip, args, there)
    if frames is not None:
        paint = partial(load_pipeline(args), style=style, settings=settings, batch_size=args.batch_size)
        known = partial(known_frame, target, there)
        if args.smooth or there:  # goes through all frames, since each goes on from those before
            frames = clip.frames(args.start, stop_of(args))
        results = painted_clip(frames, paint, settings, args.smooth, args.batch_size, known)
        write(target, clip, results, number_to_paint(clip, args, there), about)
    else:
        log.info("%d frames, all there already", len(there))
    print(target)


def known_frame(folder: Path, there: frozenset[str], name: str) -> Image.Image | None:
    """The frame as an earlier run painted it, if one did."""
    return load_image(folder / name) if name in there else None


def description(args: argparse.Namespace, settings: Settings, clip: Clip) -> About:
    """The metadata of the frame of a name, which say how it was made. Raises UserError where there
    is no checkpoint."""
    names = {"content": Path(args.content).resolve().name, "style": Path(args.style).name}
    style = {"style_sha256": file_hash(saved_style(args.style) or args.style)}
    # A frame goes on from those before it, as far as the run goes back.
    begun = {"smooth": args.smooth, "start": args.start}
    if settings.paints:
        settings = as_the_model(settings, model_of(args).files()[1])
    about = names | style | provenance(args, settings, args.precision) | begun
    return lambda name: metadata_saying({**about, "content_sha256": clip.hash_of(name)})


def stop_of(args: argparse.Namespace) -> int | None:
    return None if args.frames is None else args.start + args.frames


def chosen_frames(clip: Clip, args: argparse.Namespace, there: frozenset[str]) -> Iterator[Frame] | None:
    """The frames to paint, the first of them read; None if all are painted already. Raises
    UserError if there are none at all."""
    frames = at_least_one(clip.frames(args.start, stop_of(args), there))
    if frames is None and at_least_one(clip.frames(args.start, args.start + 1)) is None:
        raise UserError(f"{clip.path}: no frame{f' {args.start}' if args.start else 's'} in it")
    return frames


def number_to_paint(clip: Clip, args: argparse.Namespace, there: frozenset[str]) -> int | None:
    """How many frames that is, for the progress bar; None if the clip does not tell."""
    if clip.count is None:
        return args.frames
    return sum(clip.name(number) not in there for number in range(clip.count)[args.start : stop_of(args)])


def write(
    target: Path,
    clip: Clip,
    frames: Iterator[Frame],
    count: int | None,
    about: About,
) -> None:
    sound = is_video(target) and can_keep_sound(clip, target)
    bar = tqdm(frames, "painting", count, unit="frame")
    if is_video(target):
        write_video(target, iter(bar), clip, sound)
    else:
        write_frames(target, bar, about)
