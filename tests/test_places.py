"""ldm.media.places: files of this machine and of others, by path and by url."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from pipeline_builders import picture, pixels

from ldm.errors import UserError
from ldm.files import remove_left_asides, written_whole
from ldm.media.images import load_image, read_metadata, save_image
from ldm.media.places import (
    Unreached,
    is_there,
    is_url,
    key_of,
    place_of,
    read_bytes,
    write_bytes,
    written_at,
)
from ldm.pipeline.batches import BatchOptions, RowPainter
from ldm.pipeline.folders import distinct_names, expand
from ldm.pipeline.inputs import StyleMix, read_picture
from ldm.pipeline.portions import Worker, portions_of
from ldm.pipeline.settings import Settings
from ldm.pipeline.tasks import plan

PALETTE = Settings(look="palette", size=32)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    """A url with photos below it, one of them deeper and one hidden, and a painting."""
    memory = fsspec.filesystem("memory")
    for name in ("photos/b.png", "photos/a.jpg", "photos/deep/c.png", "photos/.thumbs/b.png", "painting.png"):
        picture(40, 36, len(name)).save(tmp_path / Path(name).name)
        memory.pipe_file(f"/bucket/{name}", (tmp_path / Path(name).name).read_bytes())
    memory.pipe_file("/bucket/photos/notes.txt", b"no picture")
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", ["s3://bucket/a.png", "HTTPS://example.org/a.png", "memory://b/a.png"])
def test_urls_are_told_from_paths(name: str) -> None:
    assert is_url(name) and not is_url(name.replace("://", ":/"))


def test_a_url_of_this_machine_is_a_path(tmp_path: Path) -> None:
    assert place_of((tmp_path / "a b.png").as_uri()) == tmp_path / "a b.png"


@pytest.mark.parametrize("name", ["nonsense://bucket/a.png", "pipe://rm/a.png"])
def test_an_unknown_kind_of_url_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="urls of this kind cannot be used here") as refused:
        place_of(name)
    assert "\n" not in str(refused.value)


def test_urls_stand_for_files_folders_and_patterns(bucket: str) -> None:
    photos = [f"{bucket}/photos/{name}" for name in ("a.jpg", "b.png", "deep/c.png")]
    assert list(map(str, expand([f"{bucket}/photos"]))) == photos
    assert list(map(str, expand([f"{bucket}/photos/"]))) == photos
    assert list(map(str, expand([f"{bucket}/photos/*.png"]))) == photos[1:2]
    assert list(map(str, expand([photos[0], photos[0]]))) == photos[:1]


@pytest.mark.parametrize("name", ["nothing", "photos/*.gif"])
def test_a_url_that_stands_for_nothing_is_an_error(bucket: str, name: str) -> None:
    with pytest.raises(UserError, match="there is no such file, and no pictures are in such a folder"):
        expand([f"{bucket}/{name}"])


def test_results_below_a_url_are_no_photos(bucket: str) -> None:
    write_bytes(place_of(f"{bucket}/photos/out/a__s.png"), b"a result")
    assert len(expand([f"{bucket}/photos"], f"{bucket}/photos/out")) == 3


def test_files_elsewhere_get_distinct_names(bucket: str) -> None:
    places = [place_of(f"{bucket}/{name}.png") for name in ("x/a", "y/a", "b")]
    assert distinct_names(places) == ["x-a", "y-a", "b"]


def test_what_is_written_elsewhere_is_read_there(bucket: str) -> None:
    place = place_of(f"{bucket}/new/folder/a.png")
    assert not is_there(place)
    save_image(picture(8, 8), place, {"artfusion": "{}"})
    assert is_there(place) and read_metadata(place)["artfusion"] == "{}"
    assert np.array_equal(pixels(read_picture(str(place))), pixels(picture(8, 8)))


def test_a_missing_file_elsewhere_is_one_line(bucket: str) -> None:
    with pytest.raises(UserError, match=f"{bucket}/gone.png: no such file"):
        read_bytes(place_of(f"{bucket}/gone.png"))


def test_a_server_that_does_not_answer_is_not_a_missing_file() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(Unreached, match="http://127.0.0.1:9/x.png: Cannot connect"):
        read_bytes(place_of("http://127.0.0.1:9/x.png"))


def test_errors_of_other_machines_name_the_file(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class AccessDenied(Exception):
        pass

    def refuse(*args: object, **options: object) -> None:
        raise AccessDenied("no\nkey")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file", refuse)
    with pytest.raises(UserError, match=f"{bucket}/a.png: no key"):
        write_bytes(place_of(f"{bucket}/a.png"), b"")


def test_photos_and_paintings_elsewhere_are_painted_as_those_here(bucket: str, tmp_path: Path) -> None:
    here = plan([tmp_path / "a.jpg"], [("painting", tmp_path / "painting.png")], f"{tmp_path}/out", PALETTE)
    (painting,) = expand([f"{bucket}/painting.png"])
    there = plan(expand([f"{bucket}/photos"]), [("painting", painting)], f"{bucket}/out", PALETTE)
    for tasks, statuses in ((here, ["painted"]), (there, ["painted"] * 3), (there, ["there"] * 3)):
        worker = Worker(BatchOptions({"painting": tasks[0].style}, PALETTE))
        (portion,) = portions_of(tasks, 8)
        assert [one.status for one in worker(portion).outcomes] == statuses
    assert key_of(there[0].output) == f"{bucket}/out/a__painting.png"
    assert read_bytes(there[0].output) == here[0].output.read_bytes()


def test_a_url_goes_wherever_a_picture_goes(bucket: str, tmp_path: Path) -> None:
    paint = RowPainter(BatchOptions({}, PALETTE)).painter_of(PALETTE)
    here = paint(
        tmp_path / "a.jpg", StyleMix([tmp_path / "painting.png", tmp_path / "c.png"]), settings=PALETTE
    )
    mix = StyleMix([f"{bucket}/painting.png", place_of(f"{bucket}/photos/deep/c.png")])
    there = paint(f"{bucket}/photos/a.jpg", mix, settings=PALETTE)
    assert np.array_equal(pixels(here), pixels(there))


# What kills leave aside


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    result = tmp_path / "a__s.png"
    with pytest.raises(KeyboardInterrupt), written_whole(result) as aside:
        raise KeyboardInterrupt
    others = [tmp_path / name for name in (".a__t.abcdefgh.png", ".a__s.png", ".a__s.abcdefgh.jpg", "a.png")]
    for path in (aside, *others):
        path.write_bytes(b"")
    remove_left_asides([result, tmp_path / "gone/b.png"])
    assert not aside.exists() and all(path.exists() for path in others)


@pytest.mark.skipif(os.name != "posix", reason="needs locks of POSIX systems")
def test_what_is_being_written_is_no_leftover_until_its_writer_is_killed(tmp_path: Path) -> None:
    result, (reached, tell) = tmp_path / "a.png", os.pipe()
    writer = os.fork()
    if not writer:
        with written_whole(result):
            os.write(tell, b"!")
            signal.pause()
    os.read(reached, 1)
    remove_left_asides([result])
    assert len(list(tmp_path.iterdir())) == 1
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    remove_left_asides([result])
    assert not list(tmp_path.iterdir())


def test_without_locks_a_leftover_is_what_nobody_has_written_to_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.files.fcntl", None)
    result = tmp_path / "a.png"
    with written_whole(result) as aside:
        remove_left_asides([result])
        assert aside.exists()
        os.utime(aside, (time.time() - 90_000,) * 2)
        remove_left_asides([result])
        assert not aside.exists()
        aside.write_bytes(b"whole")
    assert result.read_bytes() == b"whole"


def test_what_killed_writers_left_of_files_elsewhere_goes_with_the_next_of_this_machine(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    left = tmp_path / "temporary/.artfusion.abcdefgh.tar"
    left.parent.mkdir()
    left.write_bytes(b"half")
    with written_at(place_of(f"{bucket}/packs/a.tar")) as aside:
        assert list(left.parent.iterdir()) == [aside] != [left]
        aside.write_bytes(b"whole")
    assert read_bytes(place_of(f"{bucket}/packs/a.tar")) == b"whole" and not list(left.parent.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="needs locks of POSIX systems")
def test_a_writer_whose_file_is_taken_for_a_leftover_at_once_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, mkstemp = tmp_path / "a.png", tempfile.mkstemp

    def overtaken(**options: object) -> tuple[int, str]:
        monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
        made = mkstemp(**options)
        remove_left_asides([result])
        return made

    monkeypatch.setattr(tempfile, "mkstemp", overtaken)
    write_bytes(result, b"whole")
    assert result.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [result]


def test_a_picture_file_loads_by_its_bytes_as_by_its_path(bucket: str, tmp_path: Path) -> None:
    assert np.array_equal(
        pixels(load_image(tmp_path / "a.jpg")), pixels(read_picture(f"{bucket}/photos/a.jpg"))
    )
