"""scripts/stylize_video.py and ldm/video.py, on made-up clips of a few small frames and the tiny model."""

import json
import logging
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from pipeline_builders import assert_refused, everything_in, mean_difference, picture, run_program, script

from ldm.errors import UserError
from ldm.media import clips, video
from ldm.media.images import read_metadata
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.provenance import METADATA_KEY

RATE = Fraction(25)  # a frame takes a whole number of the units of every format


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return script("stylize_video")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a painting."""
    picture(40, 40, 2).save(tmp_path / "painting.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def paint(program: ModuleType, model_files: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the program with these options and gives its exit code."""

    def run(*options: object, **named: object) -> int:
        return run_program(program.main, [*model_files, *arguments(**named), *map(str, options)], monkeypatch)

    return run


def arguments(**changes: object) -> list[str]:
    """Options of a good call, with these changed; None leaves one out."""
    options = {
        "content": "clip.mkv",
        "style": "painting.png",
        "output": "out.mp4",
        "look": "sampled",
        "size": 32,
        "steps": 1,
        **changes,
    }
    return [
        text
        for name, value in options.items()
        if value is not None
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]


def write_clip(
    path: Path,
    frames: list[Image.Image],
    times: list[int] | None = None,
    tone: str | None = None,
    aspect: int = 1,
    rotation: int = 0,
) -> Path:
    """A video file without loss, RATE frames per second or shown at these `times` of 1/RATE s, with a tone encoded by the codec `tone`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "ffv1" if path.suffix == ".mkv" else "libx264rgb", rate=RATE, options={"crf": "0"}
        )
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "bgr0" if path.suffix == ".mkv" else "rgb24"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if rotation:
            stream.set_display_rotation(rotation)
        # before the first packet, as all streams
        sound = container.add_stream(tone, rate=48000, layout="mono") if tone else None
        for time, image in zip(times or range(len(frames)), frames):
            frame = av.VideoFrame.from_ndarray(np.asarray(image))
            frame.pts, frame.time_base = time, 1 / RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            write_tone(container, sound, len(frames) / RATE)
    return path


def write_tone(container: Any, stream: Any, seconds: Fraction) -> None:
    """A tone that rises, so that no two moments sound alike."""
    time = np.arange(int(seconds * 48000)) / 48000
    samples = (np.sin((200 + 400 * time) * time * 2 * np.pi) * 8000).astype(np.int16)
    for start in range(0, len(samples), 960):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + 960], format="s16", layout="mono")
        frame.pts, frame.sample_rate = start, 48000
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_frame_files(folder: Path, frames: list[Image.Image]) -> Path:
    folder.mkdir()
    for number, image in enumerate(frames, start=8):  # 8, 9, 10, ...: sorted as text, 10 would come first
        image.save(folder / f"frame{number}.png")
    return folder


def pictures(count: int, size: tuple[int, int] = (48, 32)) -> list[Image.Image]:
    return [picture(*size, seed=seed) for seed in range(count)]


def read(path: Path) -> list[clips.Frame]:
    return list(clips.open_clip(path).frames())


def copied(source: Path, target: Path, **options: Any) -> list[clips.Frame]:
    """What is in `target` after the frames of `source` are written there as they are."""
    clip = clips.open_clip(source)
    video.write_video(target, clip.frames(**options), clip, video.can_keep_sound(clip, target))
    return read(target)


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def kinds_of(path: Path) -> list[tuple[str, str]]:
    with av.open(str(path)) as container:
        return [(stream.type, stream.codec_context.name) for stream in container.streams]


# From clip to clip


@pytest.mark.parametrize("output", ["out.mp4", "out.MOV", "out.mkv", "out.webm", "out.gif"])
def test_number_pace_and_size_of_the_frames_are_kept(paint: Any, folder: Path, output: str) -> None:
    write_clip(folder / "clip.mkv", pictures(5))
    assert paint(output=output, batch_size=2) == 0
    result = clips.open_clip(folder / output)
    frames = list(result.frames())
    assert [frame.time * result.time_base for frame in frames] == [
        Fraction(number) / RATE for number in range(5)
    ]
    assert result.rate == RATE and {frame.picture.size for frame in frames} == {(48, 32)}


def test_the_pictures_are_the_pipelines(paint: Any, folder: Path, model_files: list[str]) -> None:
    content = pictures(3)
    write_clip(folder / "clip.mkv", content)
    assert paint("--preserve-color", output="new/painted", style_scale=2, seed=5, batch_size=8) == 0
    pipeline = StyleTransferPipeline.from_pretrained(model_files[1], model_files[3])
    expected = pipeline(
        content,
        "painting.png",
        style_scale=2.0,
        seed=5,
        look="sampled",
        size=32,
        steps=1,
        preserve_color=True,
    )
    results = read(folder / "new/painted")
    assert [frame.name for frame in results] == [f"{number:06d}.png" for number in range(3)]
    assert [mean_difference(frame.picture, image) for frame, image in zip(results, expected)] == [0, 0, 0]


@pytest.mark.parametrize("look, smooth", [("palette", 0), ("palette", 0.9), ("sampled", 0.9)])
def test_a_wall_keeps_its_colours_when_somebody_passes(
    paint: Any, folder: Path, model_files: list[str], look: str, smooth: float
) -> None:
    """Beside what comes in, frames change much less than by maps of colours of their own."""
    content = [picture(48, 32).copy() for _ in range(10)]
    for each in content[8:]:
        each.paste((220, 30, 30), (0, 10, 12, 32))
    write_clip(folder / "clip.mkv", content)
    given = {"look": "palette"} if look == "palette" else {"look": "sampled", "recolor": 1.0, "steps": 1}
    options = [text for name, value in given.items() for text in (f"--{name}", value)]
    assert paint(*options, output="painted", smooth=smooth, batch_size=4, look=None, steps=None) == 0
    pipeline = StyleTransferPipeline.from_pretrained(model_files[1], model_files[3])
    alone = pipeline([content[0], content[9]], "painting.png", size=32, **given)
    results = [frame.picture for frame in read(folder / "painted")]
    change, own = (
        np.abs(np.subtract(*(np.asarray(each, dtype=float)[:, 24:] for each in pair))).mean()
        for pair in ((results[0], results[9]), alone)
    )
    assert change < own / 2, (change, own)


def test_frames_tell_what_the_model_does_by_itself(paint: Any, folder: Path) -> None:
    write_clip(folder / "clip.mkv", pictures(1))
    assert paint("--start", 0, output="painted") == 0
    said = json.loads(read_metadata(folder / "painted/000000.png")[METADATA_KEY])
    assert (said["detail"], said["recolor"], said["start"], said["steps"]) == (0.0, 0.0, 0, 1)


def test_the_same_frame_gives_the_same_result(paint: Any, folder: Path) -> None:
    still, moving = pictures(2)
    write_clip(folder / "clip.mkv", [still, moving, still, moving, still])
    assert paint(output="painted", batch_size=2) == 0
    results = [frame.picture for frame in read(folder / "painted")]
    assert (
        max(
            mean_difference(results[0], results[2]),
            mean_difference(results[0], results[4]),
            mean_difference(results[1], results[3]),
        )
        < 0.01
    )
    assert mean_difference(results[0], results[1]) > 1


@pytest.mark.parametrize("batch_size, smooth, most", [(1, 0, 1), (3, 0, 3), (1, 0.9, 2), (3, 0.9, 3)])
def test_no_more_than_a_batch_of_frames_is_in_memory(
    paint: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, smooth: float, most: int
) -> None:
    """And the frame before it, where one goes on from the other."""
    write_frame_files(folder / "frames", pictures(10))
    loaded: list[weakref.ref[Image.Image]] = []
    alive = []
    load = clips.load_image

    def spy(path: Path) -> Image.Image:
        loaded.append(weakref.ref(image := load(path)))
        alive.append(sum(reference() is not None for reference in loaded))
        return image

    monkeypatch.setattr(clips, "load_image", spy)
    assert paint(content="frames", batch_size=batch_size, smooth=smooth) == 0
    assert len(loaded) == 10 + (smooth > 0) and max(alive) == most


@pytest.mark.parametrize(
    "options, chosen",
    [
        ({"frames": 2}, [0, 1]),
        ({"start": 2}, [2, 3, 4]),
        ({"start": 1, "frames": 3}, [1, 2, 3]),
        ({"frames": 99}, [0, 1, 2, 3, 4]),
    ],
)
def test_a_part_of_the_clip(paint: Any, folder: Path, options: dict, chosen: list[int]) -> None:
    write_clip(folder / "clip.mkv", pictures(5))
    assert paint(output="all") == paint(output="some", **options) == paint(output="some.gif", **options) == 0
    everything = {frame.name: frame.picture for frame in read(folder / "all")}
    some = {frame.name: frame.picture for frame in read(folder / "some")}
    assert list(some) == [f"{number:06d}.png" for number in chosen]
    assert all(mean_difference(some[name], everything[name]) < 0.01 for name in some)
    assert [frame.time for frame in read(folder / "some.gif")] == [4 * place for place in range(len(chosen))]


def test_uneven_times_are_kept(folder: Path) -> None:
    source = write_clip(folder / "clip.mkv", pictures(4), times=[0, 1, 5, 6])
    for output in ("out.mp4", "out.gif", "out.mkv"):
        clip = clips.open_clip(folder / output) if copied(source, folder / output) else None
        assert [frame.time * clip.time_base * RATE for frame in clip.frames()] == [0, 1, 5, 6]


def test_frames_without_a_pace_of_their_own_get_one(paint: Any, folder: Path) -> None:
    write_frame_files(folder / "frames", pictures(3))
    for options, rate in (({}, 25), ({"fps": 10}, 10), ({"fps": "24000/1001"}, Fraction(24000, 1001))):
        assert paint(content="frames", **options) == 0
        assert clips.open_clip(folder / "out.mp4").rate == rate


# What the pixels look like


def test_an_odd_row_and_column_are_cut_off(folder: Path) -> None:
    source = write_clip(folder / "clip.mkv", pictures(2, (51, 33)))
    assert {frame.picture.size for frame in copied(source, folder / "out.mp4")} == {(50, 32)}
    assert {frame.picture.size for frame in copied(source, folder / "out.gif")} == {(51, 33)}


@pytest.mark.parametrize("output", ["out.mp4", "out.webm", "out.gif"])
def test_colors_survive(folder: Path, output: str) -> None:
    colors = [(255, 0, 0), (0, 200, 0), (30, 30, 250), (200, 120, 40), (255, 255, 255), (0, 0, 0)]
    source = write_frame_files(folder / "frames", [Image.new("RGB", (48, 32), color) for color in colors])
    results = [frame.picture.getpixel((20, 20)) for frame in copied(source, folder / output)]
    assert np.abs(np.subtract(results, colors)).max() <= 3
    with av.open(str(folder / output)) as container:  # unnamed, players would guess
        assert output == "out.gif" or container.streams.video[0].codec_context.colorspace == video.BT709


def test_frames_of_another_size_are_scaled_to_the_first(paint: Any, folder: Path) -> None:
    write_frame_files(folder / "frames", [picture(48, 32), picture(40, 40), picture(96, 64)])
    assert paint(content="frames") == 0
    assert [frame.picture.size for frame in read(folder / "out.mp4")] == [(48, 32)] * 3


def test_pixels_that_are_not_square_become_so(folder: Path) -> None:
    source = write_clip(folder / "clip.mp4", [picture(24, 32)], aspect=2)
    assert [frame.picture for frame in read(source)] == [
        picture(24, 32).resize((48, 32), Image.Resampling.LANCZOS)
    ]


@pytest.mark.skipif(
    not hasattr(av.VideoStream, "set_display_rotation"), reason="this version of av cannot write rotations"
)
@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_turned_video_is_read_upright(folder: Path, rotation: int) -> None:
    source = write_clip(folder / "clip.mp4", [picture(48, 32)], rotation=rotation)
    with av.open(str(source)) as container:
        turned = next(container.decode(video=0)).rotation
    assert turned % 360 == rotation % 360
    assert [frame.picture for frame in read(source)] == [picture(48, 32).rotate(rotation, expand=True)]


def test_transparency_is_laid_on_white(folder: Path) -> None:
    image = Image.new("RGBA", (48, 32), (0, 0, 0, 0))
    image.paste((250, 0, 0, 255), (0, 0, 24, 32))
    image.save(folder / "clip.gif")
    result = read(folder / "clip.gif")[0].picture
    assert (result.getpixel((5, 5)), result.getpixel((40, 5))) == ((250, 0, 0), (255, 255, 255))


# Sound


def test_sound_is_copied_as_it_is(paint: Any, folder: Path) -> None:
    source = write_clip(folder / "clip.mkv", pictures(10), tone="aac")
    for output in ("out.mp4", "out.mov", "out.mkv"):
        assert paint(output=output) == 0
        assert [kind for kind, _ in kinds_of(folder / output)] == ["video", "audio"]
        original, copy = sound_of(source), sound_of(folder / output)
        assert copy == original[: len(copy)] and len(original) - len(copy) <= 2  # it ends with the last frame


def test_the_sound_of_a_part_begins_and_ends_with_it(folder: Path) -> None:
    source = write_clip(folder / "clip.mkv", pictures(20), tone="pcm_s16le")
    copied(source, folder / "part.mkv", start=5, stop=15)
    original, part = b"".join(sound_of(source)), b"".join(sound_of(folder / "part.mkv"))
    begin = original.find(part[:2000])
    assert abs(begin / 96000 - 5 / RATE) <= 0.02 and abs(len(part) / 96000 - 10 / RATE) <= 0.04
    with av.open(str(folder / "part.mkv")) as container:
        assert abs(next(container.decode(audio=0)).time) <= 0.02


def test_sound_that_does_not_fit_is_left_out(
    paint: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_clip(folder / "clip.mkv", pictures(3), tone="aac")
    for output in ("out.webm", "out.gif"):
        caplog.clear()
        assert paint(output=output) == 0
        assert [kind for kind, _ in kinds_of(folder / output)] == ["video"] and len(
            read(folder / output)
        ) == 3
        assert [
            record.message.startswith(f"{output}: without sound")
            for record in caplog.records
            if record.name == "ldm.media.video"
        ] == [True]


def test_sound_that_breaks_off_costs_no_frame(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_clip(folder / "clip.mkv", pictures(10), tone="pcm_s16le")
    whole = video.Sound._read

    def breaking(self: video.Sound) -> Iterator[Any]:
        packets = whole(self)
        yield from (next(packets) for _ in range(3))
        raise av.error.InvalidDataError(1, "made up")

    monkeypatch.setattr(video.Sound, "_read", breaking)
    with caplog.at_level(logging.WARNING):
        assert len(copied(source, folder / "out.mkv")) == 10
    assert (
        sound_of(folder / "out.mkv") == sound_of(source)[:3]
        and "without sound from some point on" in caplog.text
    )


# Folders of frames


def test_a_folder_of_frames_keeps_names_and_order(paint: Any, folder: Path) -> None:
    write_frame_files(folder / "frames", pictures(4))
    (folder / "frames/notes.txt").touch()
    (folder / "frames/._frame8.png").touch()  # as macOS leaves them
    assert paint(content="frames", output="painted/") == paint(content="frames", output="out.gif") == 0
    files = read(folder / "painted")
    assert [frame.name for frame in files] == ["frame8.png", "frame9.png", "frame10.png", "frame11.png"]
    apart = [[mean_difference(a.picture, b.picture) for b in read(folder / "out.gif")] for a in files]
    assert np.argmin(apart, axis=1).tolist() == [0, 1, 2, 3]


def test_a_restart_paints_what_is_missing(paint: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frame_files(folder / "frames", pictures(5))
    assert paint(content="frames", output="whole") == paint(content="frames", output="painted", frames=2) == 0
    first = (folder / "painted/frame8.png").stat().st_mtime_ns
    (folder / "painted/frame9.png").write_bytes(b"cut short")
    assert paint(content="frames", output="painted") == 0
    assert (folder / "painted/frame8.png").stat().st_mtime_ns == first
    assert all(
        mean_difference(a.picture, b.picture) < 0.01
        for a, b in zip(read(folder / "whole"), read(folder / "painted"), strict=True)
    )
    before = everything_in(folder / "painted")
    with monkeypatch.context() as patch:
        patch.setattr(
            StyleTransferPipeline,
            "from_pretrained",
            lambda *args: pytest.fail("read the model, with nothing to do"),
        )
        assert paint(content="frames", output="painted") == 0
    assert everything_in(folder / "painted") == before


def test_frames_painted_otherwise_are_painted_again(paint: Any, folder: Path) -> None:
    write_frame_files(folder / "frames", pictures(2))
    assert (
        paint(content="frames", output="painted", seed=1)
        == paint(content="frames", output="painted", seed=2)
        == 0
    )
    assert paint(content="frames", output="other", seed=2) == 0
    assert [
        mean_difference(a.picture, b.picture)
        for a, b in zip(read(folder / "painted"), read(folder / "other"), strict=True)
    ] == [0, 0]


# What goes wrong


@pytest.mark.parametrize("error, code", [(UserError("made up"), 2), (KeyboardInterrupt(), 130)])
@pytest.mark.parametrize("output", ["out.mp4", "out.gif", "painted"])
def test_a_failure_in_the_middle_leaves_nothing_half_done(
    paint: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, output: str, error: BaseException, code: int
) -> None:
    write_clip(folder / "clip.mkv", pictures(6))
    (folder / "out.mp4").write_bytes(b"an older result")
    before, call, calls = everything_in(folder), StyleTransferPipeline.__call__, []

    def failing(self: StyleTransferPipeline, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return call(self, *args, **options)

    monkeypatch.setattr(StyleTransferPipeline, "__call__", failing)
    assert paint(output=output, batch_size=2) == code
    if output == "painted":
        assert [frame.name for frame in read(folder / "painted")] == [
            f"{number:06d}.png" for number in range(4)
        ]
    else:
        assert everything_in(folder) == before


def test_a_video_that_is_broken_in_the_middle_is_refused(
    paint: Any, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write_clip(folder / "clip.mp4", pictures(6))
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        fourth = [packet for packet in container.demux(video=0) if packet.size][3]
        content[fourth.pos : fourth.pos + 4] = b"\xff" * 4  # a length beyond the end
    path.write_bytes(content)
    before = everything_in(folder)
    code, captured = paint(content="clip.mp4", batch_size=2), capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert "error: clip.mp4: not a video that can be read, or broken" in captured.err.splitlines()[-1]
    assert everything_in(folder) == before


@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({"content": "nowhere.mp4"}, "nowhere.mp4: no such file or folder"),
        ({"content": "painting.png"}, "painting.png: unknown video format '.png'"),
        ({"content": "empty.mp4"}, "empty.mp4: the file is empty (0 bytes)"),
        ({"content": "text.mp4"}, "text.mp4: not a video that can be read"),
        ({"content": "cut.mp4"}, "cut.mp4: not a video that can be read"),
        ({"content": "sound.mkv"}, "sound.mkv: no video in it"),
        ({"content": "none"}, "none: no frames in it"),
        ({"content": "twice"}, "would both become a.png"),
        ({"content": "broken"}, "a.png: not a picture"),
        ({"start": 3}, "clip.mkv: no frame 3 in it"),
        ({"style": "nowhere.png"}, "nowhere.png: no such file"),
        ({"output": "clip.mkv"}, "clip.mkv: is the content itself"),
        ({"content": "twice", "output": "twice"}, "twice: is the content itself"),
        ({"output": "out.txt"}, "out.txt: unknown video format '.txt'"),
        ({"output": "folder.mp4"}, "folder.mp4: is a folder"),
        ({"output": "painting.png/out.mp4"}, "is a file, not a folder"),
        ({"output": "painting.png/frames"}, "is a file, not a folder"),
        ({"fps": 5}, "clip.mkv: a video has its own frames per second"),
        ({"fps": 0}, "--fps: expected a number above 0"),
        ({"fps": "many"}, "--fps: expected a number above 0"),
        ({"frames": 0}, "--frames: expected a whole number between 1 and"),
        ({"frames": 10**30}, "--frames: expected a whole number between 1 and"),
        ({"start": -1}, "--start: expected a whole number between 0 and"),
        ({"smooth": 1.5}, "--smooth: expected a number between 0 and 1"),
        ({"smooth": "much"}, "--smooth: expected a number between 0 and 1"),
        ({"batch_size": 0}, "--batch-size: expected a whole number between 1 and"),
        ({"strength": 2}, "strength must be above 0"),
        ({"seed": "lucky"}, "--seed"),
        ({"content": None}, "--content"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_read(
    paint: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    wrong: dict,
    problem: str,
) -> None:
    write_clip(folder / "clip.mkv", pictures(3))
    spoil(folder)
    monkeypatch.setattr(StyleTransferPipeline, "from_pretrained", lambda *args: pytest.fail("read the model"))
    before = everything_in(folder)
    assert_refused(paint(**wrong), capsys.readouterr(), problem)
    assert everything_in(folder) == before


def spoil(folder: Path) -> None:
    """Files and folders that are no clips."""
    for name in ("none", "twice", "broken", "folder.mp4"):
        (folder / name).mkdir()
    for name in ("twice/a.png", "twice/a.jpg"):
        picture(48, 32).save(folder / name)
    (folder / "broken/a.png").write_text("Dear diary, today I was renamed.")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("Dear diary, today I was renamed.")
    whole = write_clip(folder / "cut.mp4", pictures(3))
    whole.write_bytes(whole.read_bytes()[:500])
    with av.open(str(folder / "sound.mkv"), "w") as container:
        write_tone(container, container.add_stream("pcm_s16le", rate=48000, layout="mono"), Fraction(1, 10))


def test_an_unknown_checkpoint_is_refused(paint: Any, folder: Path, capsys: pytest.CaptureFixture) -> None:
    write_clip(folder / "clip.mkv", pictures(2))
    for output in ("out.mp4", "painted"):
        assert_refused(
            paint("--checkpoint", "nowhere.ckpt", output=output),
            capsys.readouterr(),
            "nowhere.ckpt: no such file",
        )
    assert not (folder / "painted").exists()


def test_only_steady_clips_need_opencv(
    paint: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_frame_files(folder / "frames", pictures(2))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with monkeypatch.context() as patch:
        patch.setattr(StyleTransferPipeline, "from_pretrained", lambda *args: pytest.fail("read the model"))
        assert_refused(
            paint(content="frames", output="painted"),
            capsys.readouterr(),
            "steady video needs OpenCV; install it with: pip install -e '.[video]', or use --smooth 0",
        )
    assert paint(content="frames", output="painted", smooth=0) == 0 and len(read(folder / "painted")) == 2


def test_only_videos_need_the_package(
    paint: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_clip(folder / "clip.mkv", pictures(2))
    write_frame_files(folder / "frames", pictures(2))
    monkeypatch.setitem(sys.modules, "av", None)
    for options in ({}, {"output": "painted"}, {"content": "frames"}):
        assert_refused(
            paint(**options),
            capsys.readouterr(),
            "videos need the package av; install it with: pip install -e '.[video]'",
        )
    assert paint(content="frames", output="painted") == 0 and len(read(folder / "painted")) == 2


def test_an_encoder_that_is_not_there_is_named(
    paint: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_clip(folder / "clip.mkv", pictures(2))
    monkeypatch.setitem(video.FORMATS, ".mp4", replace(video.FORMATS[".mp4"], codec="libmissing"))
    assert_refused(
        paint(), capsys.readouterr(), "out.mp4: the package av that is installed cannot write libmissing"
    )
