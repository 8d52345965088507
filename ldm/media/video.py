"""Clips out: video files with sound, and folders with a picture for each frame; whole or not at
all."""

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from ldm.errors import UserError
from ldm.files import check_folder, written_whole
from ldm.media.clips import Clip, Frame, av_package, ffmpeg_errors, open_video
from ldm.media.images import read_metadata, save_image

if TYPE_CHECKING:
    import av

    Packet: TypeAlias = av.Packet[av.stream.Stream]

log = logging.getLogger(__name__)

BT709 = (
    1  # FFmpeg's number for these colours, in its table of matrices as in those of primaries and of curves
)
LIMITED_RANGE = 1


@dataclass(frozen=True)
class Format:
    """How a kind of video file is written. `time_base`: the only one it knows, None if any will
    do."""

    container: str
    codec: str
    options: dict[str, str]
    container_options: dict[str, str]
    pixels: str = "yuv420p"  # the one that every player shows
    time_base: Fraction | None = None


_H264 = {"crf": "18"}  # hardly any loss to be seen
_INDEX_FIRST = {"movflags": "+faststart"}  # a browser can begin to play before it has the whole file
FORMATS = {
    ".mp4": Format("mp4", "libx264", _H264, _INDEX_FIRST),
    ".m4v": Format("mp4", "libx264", _H264, _INDEX_FIRST),
    ".mov": Format("mov", "libx264", _H264, _INDEX_FIRST),
    ".mkv": Format("matroska", "libx264", _H264, {}),
    ".webm": Format("webm", "libvpx-vp9", {"crf": "24", "deadline": "good", "cpu-used": "4"}, {}),
    ".gif": Format("gif", "gif", {}, {"loop": "0"}, "pal8", Fraction(1, 100)),
}


def check_target(path: str | Path, source: str | Path) -> Path:
    """`path` if a clip made from `source` can be written there, else UserError. Nothing is made
    yet."""
    named_as_folder = str(path).endswith(("/", os.sep))
    path = Path(path)
    if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
        raise UserError(f"{path}: is the content itself; write the result somewhere else")
    if not is_video(path):
        if path.suffix and not (named_as_folder or os.path.isdir(path)):
            raise UserError(
                f"{path}: unknown video format {path.suffix!r}; use {', '.join(FORMATS)}, or a folder, as {path}/"
            )
        check_folder(path)
        return path
    if os.path.isdir(path):
        raise UserError(
            f"{path}: is a folder; give the name of a video file, or of a folder without {path.suffix}"
        )
    _check_encoder(path)
    check_folder(path.parent, path)
    return path


def is_video(path: Path) -> bool:
    """Whether a clip of this name is written as a video file."""
    return path.suffix.lower() in FORMATS


def write_frames(folder: Path, frames: Iterable[Frame], metadata: Callable[[str], dict[str, str]]) -> None:
    """A PNG file for each frame, with the metadata of its name, each of them whole. Raises
    UserError."""
    for frame in frames:
        save_image(frame.picture, folder / frame.name, metadata(frame.name))


def finished_frames(folder: Path, metadata: Callable[[str], dict[str, str]]) -> frozenset[str]:
    """The names of the frames in the folder that were painted with the metadata of their name."""
    files = folder.glob("[!.]*.png")
    return frozenset(
        file.name for file in files if metadata(file.name).items() <= read_metadata(file).items()
    )


def write_video(path: Path, frames: Iterator[Frame], clip: Clip, sound: bool = False) -> None:
    """The frames, at least one, as a video at the pace of `clip`, with its sound if `sound`. Whole
    or not at all. Raises UserError."""
    first = next(frames)  # painted before anything is made
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside, ffmpeg_errors(path, "could not be written"), ExitStack() as opened:
        writer = VideoWriter(opened, aside, clip, first, sound)
        for frame in chain([first], frames):
            writer.write(frame)
        writer.finish()


class VideoWriter:
    """A video file that is being written. What it opens is closed by the `opened` of its maker."""

    def __init__(self, opened: ExitStack, path: Path, clip: Clip, first: Frame, sound: bool):
        self._format, self._clip, self._begin = FORMATS[path.suffix.lower()], clip, first.time
        self._container = opened.enter_context(
            av_package().open(
                str(path), "w", format=self._format.container, options=self._format.container_options
            )
        )
        self._time_base = self._format.time_base or clip.time_base
        self._size = _writable_size(first.picture, self._format)
        self._video = self._add_video()
        self._last = -1
        self._sound = Sound(opened, clip, self._container, first) if sound else None

    def _add_video(self) -> "av.VideoStream":
        video: av.VideoStream = self._container.add_stream(
            self._format.codec, rate=self._clip.rate, options=self._format.options
        )
        video.width, video.height = self._size
        video.pix_fmt = self._format.pixels
        video.codec_context.time_base = self._time_base
        video.bit_rate = 0  # the quality decides
        if self._format.pixels == "yuv420p":  # unnamed, players guess the colours by the size
            video.colorspace = video.color_primaries = video.color_trc = BT709
            video.color_range = LIMITED_RANGE
        return video

    def write(self, frame: Frame) -> None:
        """Add a frame; of another size than the first, it is scaled to that."""
        image = _encodable(_of_size(frame.picture, self._size), self._format)
        due = round((frame.time - self._begin) * self._clip.time_base / self._time_base)
        image.pts = self._last = max(due, self._last + 1)  # two at once are refused
        image.time_base = self._time_base
        image.duration = self._duration
        self._mux(self._video.encode(image))

    @property
    def _duration(self) -> int:
        return max(1, round(1 / self._clip.rate / self._time_base))

    def _mux(self, packets: list["Packet"]) -> None:
        if self._sound:  # in step, since what is far ahead of the other waits in memory
            self._sound.copy_until(self._last * self._time_base)
        self._container.mux(packets)

    def finish(self) -> None:
        """Write what the encoder still holds. The sound ends with the last frame."""
        self._mux(self._video.encode())
        if self._sound:
            self._sound.copy_until((self._last + self._duration) * self._time_base)


class Sound:
    """The sound of a video file, copied as it is into one that is being written. What it opens is
    closed by `opened`."""

    def __init__(self, opened: ExitStack, clip: Clip, output: "av.container.OutputContainer", first: Frame):
        self._path, self._output, self._begin = clip.path, output, first.time * clip.time_base
        # even what is heard before the first picture, which decoders may need to start
        self._whole = first.number == 0
        self._source = opened.enter_context(open_video(clip.path))
        self._copy = output.add_stream_from_template(self._source.streams.audio[0])
        self._packets = self._read()
        self._waiting: Packet | None = None

    def _read(self) -> Iterator["Packet"]:
        """The packets from the first frame on, timed from there."""
        for packet in self._source.demux(audio=0):
            if (
                packet.dts is not None
                and packet.pts is not None
                and (self._whole or _end(packet) > self._begin)
            ):
                shift = round(self._begin / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = self._copy
                yield packet

    def copy_until(self, end: Fraction) -> None:
        """Copy what begins before `end`, in seconds after the first frame. Nothing more after a
        fault, which is logged."""
        try:
            while (packet := self._next()) is not None and _begin(packet) < end:
                self._waiting = None
                self._output.mux(packet)
        except av_package().FFmpegError as error:
            log.warning(
                "%s: without sound from some point on: it is broken there (%s)", self._path, error.strerror
            )
            self._packets, self._waiting = iter(()), None

    def _next(self) -> "Packet | None":
        """The next packet, which stays the next."""
        if self._waiting is None:
            self._waiting = next(self._packets, None)
        return self._waiting


def can_keep_sound(clip: Clip, target: Path) -> bool:
    """Whether there is sound in the clip that goes into a video of this name; if not, the reason is
    logged."""
    if not clip.has_sound():
        return False
    kind = target.suffix.lower()
    try:
        with (
            open_video(clip.path) as source,
            av_package().open(io.BytesIO(), "w", format=FORMATS[kind].container) as trial,
        ):
            trial.add_stream_from_template(source.streams.audio[0])
            trial.start_encoding()
    except (av_package().FFmpegError, ValueError):  # ValueError: the container has no place for it at all
        log.warning(
            "%s: without sound, since %s does not take the kind that is in %s; .mkv takes most",
            target,
            kind,
            clip.path,
        )
        return False
    return True


def _check_encoder(path: Path) -> None:
    """Raises UserError without the package, or if it was built without what such a file takes."""
    codec = FORMATS[path.suffix.lower()].codec
    try:
        av_package().Codec(codec, "w")
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: the package av that is installed cannot write {codec}; that of PyPI can"
        ) from error


def _writable_size(picture: Image.Image, form: Format) -> tuple[int, int]:
    """The picture's size, or for yuv420p, which halves its colours' sides, without an odd last row
    and column."""
    width, height = picture.size
    return (width, height) if form.pixels != "yuv420p" else (width // 2 * 2, height // 2 * 2)


def _of_size(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if all(0 <= have - want <= 1 for have, want in zip(picture.size, size)):
        return picture.crop((0, 0, *size))
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def _encodable(picture: Image.Image, form: Format) -> "av.VideoFrame":
    """The picture in the colours of the format."""
    if form.pixels == "pal8":
        return _with_palette(picture)
    frame: av.VideoFrame = av_package().VideoFrame.from_ndarray(np.asarray(picture))
    return frame.reformat(format=form.pixels, dst_colorspace=BT709)


def _with_palette(picture: Image.Image) -> "av.VideoFrame":
    """The picture in its 256 best colours."""
    reduced = picture.quantize(256)
    colors = np.reshape(reduced.getpalette() or [], (-1, 3))
    palette = np.full((256, 4), 255, dtype=np.uint8)  # opacity first
    palette[: len(colors), 1:] = colors
    frame: av.VideoFrame = av_package().VideoFrame.from_ndarray((np.asarray(reduced), palette), format="pal8")
    return frame


def _begin(packet: "Packet") -> Fraction:
    """When the packet's sound begins, in seconds."""
    return (packet.pts or 0) * packet.time_base


def _end(packet: "Packet") -> Fraction:
    return _begin(packet) + (packet.duration or 0) * packet.time_base
