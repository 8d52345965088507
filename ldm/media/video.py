"""Clips in and out: video files, and folders with a picture for each frame. One frame at a time, so length costs no memory.

Video files need the package av (FFmpeg's libraries); folders of frames do not.
"""

import io
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from ldm.errors import UserError
from ldm.files import check_folder, written_whole
from ldm.media.images import EXTENSIONS, load_image, read_metadata, save_image, to_rgb

if TYPE_CHECKING:
    import av

    Packet: TypeAlias = av.Packet[av.stream.Stream]

log = logging.getLogger(__name__)

# Not .gif: that is a clip, not a frame.
FRAME_EXTENSIONS = tuple(extension for extension in EXTENSIONS if extension != ".gif")
READABLE = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".gif",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".mts",
    ".m2ts",
    ".wmv",
    ".flv",
    ".3gp",
    ".ogv",
)
DEFAULT_RATE = Fraction(25)  # of a folder of frames
BT709 = (
    1  # FFmpeg's number for these colours, in its table of matrices as in those of primaries and of curves
)
LIMITED_RANGE = 1


@dataclass(frozen=True)
class Format:
    """How a kind of video file is written. `time_base`: the only one it knows, None if any will do."""

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


@dataclass(frozen=True)
class Frame:
    """One picture of a clip. `time` counts the clip's time base; `name` is its file's in a folder of frames."""

    picture: Image.Image
    number: int
    time: int
    name: str


class Clip(Protocol):
    """Something with frames. `count` is an estimate, or None; `time_base` is the unit of time in seconds."""

    path: Path
    rate: Fraction
    time_base: Fraction
    count: int | None

    def name(self, number: int) -> str:
        """The file name of a frame in a folder of frames."""

    def frames(self, start: int = 0, stop: int | None = None, skip: Collection[str] = ()) -> Iterator[Frame]:
        """The frames from number `start` until before `stop`, but for those of names in `skip`. Raises UserError."""

    def has_sound(self) -> bool:
        """Whether there is sound to keep."""


class FramesFolder:
    """A folder of pictures, in the order of the numbers in their names."""

    def __init__(self, path: Path, rate: Fraction):
        self.path, self.rate, self.time_base = path, rate, 1 / rate
        pictures = (
            file
            for file in path.iterdir()
            if file.suffix.lower() in FRAME_EXTENSIONS and not file.name.startswith(".")
        )
        self._files = sorted((file for file in pictures if file.is_file()), key=_by_numbers)
        self.count: int | None = len(self._files)
        self._check_names()

    def _check_names(self) -> None:
        names: dict[str, Path] = {}
        for number, file in enumerate(self._files):
            other = names.setdefault(self.name(number), file)
            if other != file:
                raise UserError(
                    f"{self.path}: {other.name} and {file.name} would both become {self.name(number)}"
                )

    def name(self, number: int) -> str:
        """The name of the picture's own file, as PNG."""
        return f"{self._files[number].stem}.png"

    def frames(self, start: int = 0, stop: int | None = None, skip: Collection[str] = ()) -> Iterator[Frame]:
        """As in Clip; the time is the frame's number."""
        for number in range(len(self._files))[start:stop]:
            if self.name(number) not in skip:
                yield Frame(load_image(self._files[number]), number, number, self.name(number))

    def has_sound(self) -> bool:
        """Pictures have none."""
        return False


class VideoFile:
    """A video file, the first video in it."""

    def __init__(self, path: Path):
        self.path = path
        with self._opened() as container:
            video = container.streams.video[0]
            self.rate = Fraction(video.average_rate or video.guessed_rate or DEFAULT_RATE)
            self.time_base = Fraction(video.time_base or 1 / self.rate)
            self.count = video.frames or _estimated_frames(container.duration, self.rate)
            self._sound = bool(container.streams.audio)

    @contextmanager
    def _opened(self) -> Iterator["av.container.InputContainer"]:
        with (
            _errors(self.path, "not a video that can be read, or broken"),
            open_video(self.path) as container,
        ):
            if not container.streams.video:
                raise UserError(f"{self.path}: no video in it")
            container.streams.video[0].thread_type = "AUTO"
            yield container

    def name(self, number: int) -> str:
        """The number with six digits, as PNG."""
        return f"{number:06d}.png"

    def frames(self, start: int = 0, stop: int | None = None, skip: Collection[str] = ()) -> Iterator[Frame]:
        """As in Clip; upright, with square pixels."""
        with self._opened() as container:
            pixel_aspect = container.streams.video[0].sample_aspect_ratio
            for number, frame in islice(enumerate(container.decode(video=0)), start, stop):
                if self.name(number) not in skip:
                    time = round(number / self.rate / self.time_base) if frame.pts is None else frame.pts
                    yield Frame(_upright(frame, pixel_aspect), number, time, self.name(number))

    def has_sound(self) -> bool:
        """Whether the file has a stream of sound."""
        return self._sound


def open_clip(path: str | Path, rate: Fraction | None = None) -> Clip:
    """The clip in a video file or a folder; `rate` is the frames per second of a folder. Raises UserError."""
    path = Path(path)
    if os.path.isdir(path):
        return FramesFolder(path, rate or DEFAULT_RATE)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file or folder")
    if path.suffix.lower() not in READABLE:
        raise UserError(
            f"{path}: unknown video format {path.suffix!r}; use {', '.join(READABLE[:6])}, or a folder of frames"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes)")
    if rate is not None:
        raise UserError(
            f"{path}: a video has its own frames per second; they can be set for a folder of frames only"
        )
    return VideoFile(path)


def check_target(path: str | Path, source: str | Path) -> Path:
    """`path` if a clip made from `source` can be written there, else UserError. Nothing is made yet."""
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


def at_least_one(frames: Iterator[Frame]) -> Iterator[Frame] | None:
    """The same frames, the first of them read already; None where there are none."""
    first = next(frames, None)
    # the iterator, unlike a list, lets go of the frame
    return None if first is None else chain(iter([first]), frames)


def painted(
    frames: Iterator[Frame], paint: Callable[[list[Image.Image]], list[Image.Image]], batch_size: int
) -> Iterator[Frame]:
    """The frames with what `paint` makes of their pictures, `batch_size` of them in memory at a time."""
    while batch := list(islice(frames, batch_size)):
        pictures = paint([frame.picture for frame in batch])
        batch = [replace(frame, picture=picture) for frame, picture in zip(batch, pictures, strict=True)]
        yield from batch
        batch.clear()  # before the next are read
        pictures.clear()


def write_frames(folder: Path, frames: Iterable[Frame], metadata: dict[str, str]) -> None:
    """A PNG file for each frame, with these metadata, each of them whole. Raises UserError."""
    for frame in frames:
        save_image(frame.picture, folder / frame.name, metadata)


def finished_frames(folder: Path, metadata: dict[str, str]) -> frozenset[str]:
    """The names of the frames in the folder that were painted with these metadata."""
    files = folder.glob("[!.]*.png")
    return frozenset(file.name for file in files if metadata.items() <= read_metadata(file).items())


def write_video(path: Path, frames: Iterator[Frame], clip: Clip, sound: bool = False) -> None:
    """The frames, at least one, as a video at the pace of `clip`, with its sound if `sound`. Whole or not at all. Raises UserError."""
    first = next(frames)  # painted before anything is made
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside, _errors(path, "could not be written"), ExitStack() as opened:
        writer = VideoWriter(opened, aside, clip, first, sound)
        for frame in chain([first], frames):
            writer.write(frame)
        writer.finish()


class VideoWriter:
    """A video file that is being written. What it opens is closed by the `opened` of its maker."""

    def __init__(self, opened: ExitStack, path: Path, clip: Clip, first: Frame, sound: bool):
        self._format, self._clip, self._begin = FORMATS[path.suffix.lower()], clip, first.time
        self._container = opened.enter_context(
            _av().open(str(path), "w", format=self._format.container, options=self._format.container_options)
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
    """The sound of a video file, copied as it is into one that is being written. What it opens is closed by `opened`."""

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
        """Copy what begins before `end`, in seconds after the first frame. Nothing more after a fault, which is logged."""
        try:
            while (packet := self._next()) is not None and _begin(packet) < end:
                self._waiting = None
                self._output.mux(packet)
        except _av().FFmpegError as error:
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
    """Whether there is sound in the clip that goes into a video of this name; if not, the reason is logged."""
    if not clip.has_sound():
        return False
    kind = target.suffix.lower()
    try:
        with (
            open_video(clip.path) as source,
            _av().open(io.BytesIO(), "w", format=FORMATS[kind].container) as trial,
        ):
            trial.add_stream_from_template(source.streams.audio[0])
            trial.start_encoding()
    except (_av().FFmpegError, ValueError):  # ValueError: the container has no place for it at all
        log.warning(
            "%s: without sound, since %s does not take the kind that is in %s; .mkv takes most",
            target,
            kind,
            clip.path,
        )
        return False
    return True


def open_video(path: Path) -> "av.container.InputContainer":
    """A video file, to be closed by the caller. Raises FFmpeg's errors, and UserError without the package."""
    # A playlist that passes for a video must not make FFmpeg fetch something.
    container: av.container.InputContainer = _av().open(str(path), options={"protocol_whitelist": "file"})
    return container


def _av() -> ModuleType:
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError(
            "videos need the package av; install it with: pip install -e '.[video]' (a folder of frames does not)"
        ) from error
    return av


def _check_encoder(path: Path) -> None:
    """Raises UserError without the package, or if it was built without what such a file takes."""
    codec = FORMATS[path.suffix.lower()].codec
    try:
        _av().Codec(codec, "w")
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: the package av that is installed cannot write {codec}; that of PyPI can"
        ) from error


@contextmanager
def _errors(path: Path, problem: str) -> Iterator[None]:
    """Within it, what FFmpeg cannot do is a UserError."""
    failures = _av().FFmpegError
    try:
        yield
    except failures as error:
        raise UserError(f"{path}: {problem} ({error.strerror})") from error


def _by_numbers(path: Path) -> list[Any]:
    """A sorting key that puts frame10 after frame9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def _estimated_frames(duration: int | None, rate: Fraction) -> int | None:
    return round(duration * rate / 1_000_000) if duration else None


def _upright(frame: "av.VideoFrame", pixel_aspect: Fraction | None) -> Image.Image:
    """The frame as it is shown: square pixels, turned by its rotation, transparency laid on white."""
    transparent = any(component.is_alpha for component in frame.format.components)
    picture = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba" if transparent else "rgb24")))
    if pixel_aspect and pixel_aspect != 1:
        picture = picture.resize(
            (max(1, round(picture.width * pixel_aspect)), picture.height), Image.Resampling.LANCZOS
        )
    return picture.rotate(frame.rotation, expand=True)  # both count against the clock


def _writable_size(picture: Image.Image, form: Format) -> tuple[int, int]:
    """The picture's size, or for yuv420p, which halves its colours' sides, without an odd last row and column."""
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
    frame: av.VideoFrame = _av().VideoFrame.from_ndarray(np.asarray(picture))
    return frame.reformat(format=form.pixels, dst_colorspace=BT709)


def _with_palette(picture: Image.Image) -> "av.VideoFrame":
    """The picture in its 256 best colours."""
    reduced = picture.quantize(256)
    colors = np.reshape(reduced.getpalette() or [], (-1, 3))
    palette = np.full((256, 4), 255, dtype=np.uint8)  # opacity first
    palette[: len(colors), 1:] = colors
    frame: av.VideoFrame = _av().VideoFrame.from_ndarray((np.asarray(reduced), palette), format="pal8")
    return frame


def _begin(packet: "Packet") -> Fraction:
    """When the packet's sound begins, in seconds."""
    return (packet.pts or 0) * packet.time_base


def _end(packet: "Packet") -> Fraction:
    return _begin(packet) + (packet.duration or 0) * packet.time_base
