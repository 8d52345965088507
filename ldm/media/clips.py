"""Clips in: video files, and folders with a picture for each frame. One frame at a time, so length
costs no memory.

Video files need the package av (FFmpeg's libraries); folders of frames do not.
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from ldm.errors import UserError
from ldm.files import file_hash
from ldm.media.images import EXTENSIONS, load_image
from ldm.media.rgb import to_rgb

if TYPE_CHECKING:
    import av

# Not .gif: that is a clip, not a frame.
FRAME_EXTENSIONS = tuple(extension for extension in EXTENSIONS if extension != ".gif")
READABLE = tuple(".mp4 .m4v .mov .mkv .webm .gif .avi .mpg .mpeg .ts .mts .m2ts .wmv .flv .3gp .ogv".split())
# as FFmpeg calls the formats that those are in
CONTAINERS = (
    "mov mp4 m4a 3gp 3g2 mj2 matroska webm gif avi mpeg mpegvideo mpegts asf flv live_flv ogg".split()
)
DEFAULT_RATE = Fraction(25)  # of a folder of frames


@dataclass(frozen=True)
class Frame:
    """One picture of a clip. `time` counts the clip's time base; `name` is its file's in a folder
    of frames."""

    picture: Image.Image
    number: int
    time: int
    name: str


class Clip(Protocol):
    """Something with frames. `count` is an estimate, or None; `time_base` is the unit of time in
    seconds."""

    path: Path
    rate: Fraction
    time_base: Fraction
    count: int | None

    def name(self, number: int) -> str:
        """The file name of a frame in a folder of frames."""

    def frames(self, start: int = 0, stop: int | None = None, skip: Collection[str] = ()) -> Iterator[Frame]:
        """The frames from number `start` until before `stop`, but for those of names in `skip`.
        Raises UserError."""

    def hash_of(self, name: str) -> str:
        """Of all in the clip that the frame of this name may depend on: it, and those before it."""

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

    def hash_of(self, name: str) -> str:
        """As in Clip: of the files up to the frame's, so that more of them change nothing."""
        return self._hashes.get(name, "")

    @cached_property
    def _hashes(self) -> dict[str, str]:
        so_far, hashes = sha256(), {}
        for number, file in enumerate(self._files):
            so_far.update(file_hash(file).encode())
            hashes[self.name(number)] = so_far.hexdigest()[:12]
        return hashes

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
            ffmpeg_errors(self.path, "not a video that can be read, or broken"),
            open_video(self.path) as container,
        ):
            if not container.streams.video:
                raise UserError(f"{self.path}: no video in it")
            container.streams.video[0].thread_type = "AUTO"
            yield container

    def name(self, number: int) -> str:
        """The number with six digits, as PNG."""
        return f"{number:06d}.png"

    def hash_of(self, name: str) -> str:
        """As in Clip: of the whole file."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        return file_hash(self.path)

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
    """The clip in a video file or a folder; `rate` is the frames per second of a folder. Raises
    UserError."""
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


def at_least_one(frames: Iterator[Frame]) -> Iterator[Frame] | None:
    """The same frames, the first of them read already; None where there are none."""
    first = next(frames, None)
    # the iterator, unlike a list, lets go of the frame
    return None if first is None else chain(iter([first]), frames)


def open_video(path: Path) -> "av.container.InputContainer":
    """A video file, to be closed by the caller. Raises FFmpeg's errors, and UserError without the
    package."""
    # A playlist that passes for a video must not make FFmpeg fetch something, or open other files.
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}
    container: av.container.InputContainer = av_package().open(str(path), options=options)
    return container


def av_package() -> ModuleType:
    """The package av. Raises UserError where it is not installed."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError(
            "videos need the package av; install it with: pip install -e '.[video]' (a folder of frames does not)"
        ) from error
    return av


@contextmanager
def ffmpeg_errors(path: Path, problem: str) -> Iterator[None]:
    """Within it, what FFmpeg cannot do is a UserError."""
    failures = av_package().FFmpegError
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
    """The frame as it is shown: square pixels, turned by its rotation, transparency laid on
    white."""
    transparent = any(component.is_alpha for component in frame.format.components)
    picture = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba" if transparent else "rgb24")))
    if pixel_aspect and pixel_aspect != 1:
        picture = picture.resize(
            (max(1, round(picture.width * pixel_aspect)), picture.height), Image.Resampling.LANCZOS
        )
    return picture.rotate(frame.rotation, expand=True)  # both count against the clock
