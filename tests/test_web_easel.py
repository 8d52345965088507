"""ldm.web.easel: pieces of work, and the files that they make."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline_builders import picture, picture_folder

from ldm.errors import UserError
from ldm.media.images import load_image, read_metadata
from ldm.pipeline.inputs import StyleMix
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.provenance import METADATA_KEY
from ldm.pipeline.settings import Settings
from ldm.web.easel import SHEET_SCALES, Easel, Painted, small_one
from ldm.web.orders import Order
from ldm.web.studio import Mailbox, Report

SETTINGS = Settings(size=40, steps=1, effort=0.2, seed=5)


@pytest.fixture
def easel(tmp_path: Path) -> Easel:
    return Easel(tmp_path, lambda settings, precision: {**vars(settings), "precision": precision}, 64)


@pytest.fixture
def order() -> Order:
    style = StyleMix([picture(40, 40, seed=2), picture(40, 40, seed=3)], [1, 2])
    return Order(picture(60, 40, seed=1), style, SETTINGS, None, {"content": "photo", "style": "a+b"})


def report() -> Report:
    return Report(Mailbox(), threading.Event())


def test_a_picture_says_how_it_was_made(easel: Easel, order: Order, pipeline: StyleTransferPipeline) -> None:
    painted: Painted = easel.picture(order)(pipeline, report())
    assert painted.path.name == "artfusion-5.png" and painted.settings == SETTINGS
    said = json.loads(read_metadata(painted.path)[METADATA_KEY])
    assert (said["content"], said["style"], said["seed"], said["precision"]) == ("photo", "a+b", 5, "fp32")
    assert load_image(painted.path).tobytes() == pipeline(**order.arguments()).tobytes()
    assert load_image(painted.before).size == load_image(painted.path).size == (60, 40)


def test_variants_differ_in_their_seeds_and_strokes_and_come_one_by_one(
    easel: Easel, order: Order, pipeline: StyleTransferPipeline
) -> None:
    done: list[Painted] = []
    easel.variants(order, done)(pipeline, report())
    assert [one.settings.seed for one in done] == [5, 6, 7, 8]
    assert [one.settings.style_size for one in done] == [None, 32, 64, 64]  # 24 is too small, 100 too large
    assert len({load_image(one.path).tobytes() for one in done}) == 4
    assert (
        load_image(done[2].path).tobytes()
        == pipeline(**order.but(seed=7, style_size=64).arguments()).tobytes()
    )


def test_a_sheet_has_a_picture_for_every_pair_of_scales(
    easel: Easel, order: Order, pipeline: StyleTransferPipeline
) -> None:
    sheet = load_image(easel.sheet(order)(pipeline, report()))
    rows, columns = SHEET_SCALES
    assert sheet.width > (len(columns) + 1) * 192 * 0.9 and sheet.height > len(rows) * 128 * 0.9


def test_a_small_picture_is_no_larger_than_the_order(order: Order) -> None:
    fast = Settings(look="sampled", size=512, steps=7)
    small = small_one(
        Order(order.content, order.style, fast, None, {}), {"size": 192, "effort": 0.25, "steps": 6}
    )
    assert small.settings == Settings(look="sampled", size=192, steps=6)
    small.settings.check()
    assert small_one(order, {"size": 192, "effort": 0.25}).settings.size == 40


@pytest.mark.parametrize("look", ["sampled", "fine"])
def test_a_clip_keeps_its_frames(
    easel: Easel, pipeline: StyleTransferPipeline, tmp_path: Path, look: str
) -> None:
    av = pytest.importorskip("av")
    frames = 5
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(picture(48, 32, seed=i))))
        container.mux(stream.encode())
    (painting,) = picture_folder(tmp_path / "paintings", 1).rglob("*.png")
    effort = {"effort": 0.2} if look == "fine" else {}
    settings, recoloured = Settings(look=look, size=32, steps=1, recolor=1.0, **effort), []

    def seen(*args: Any, settings: Settings, **options: Any) -> Any:
        recoloured.append(settings.recolor)
        return pipeline(*args, settings=settings, **options)

    result = easel.clip(str(tmp_path / "clip.mp4"), str(painting), settings)(seen, report())
    assert set(recoloured) == {1.0}
    with av.open(str(result)) as container:
        painted = [frame.to_image() for frame in container.decode(video=0)]
    assert [frame.size for frame in painted] == [(48, 32)] * frames


@pytest.mark.parametrize(
    ("limit", "line"),
    [({"MAX_FRAMES": 2}, "frames, more than the limit of 2"), ({"MAX_FILE_BYTES": 100}, "more than the limit of 0 MB")],
)  # fmt: skip
def test_a_clip_that_is_too_long_is_refused(
    easel: Easel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, Any], line: str
) -> None:
    frames = [Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)) for i in range(5)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    picture(32, 32, seed=1).save(tmp_path / "painting.png")
    for name, value in limit.items():
        monkeypatch.setattr(f"ldm.web.easel.{name}", value)
    with pytest.raises(UserError, match=line):
        easel.clip(
            str(tmp_path / "clip.gif"), str(tmp_path / "painting.png"), Settings(look="sampled", size=32)
        )


def test_what_is_old_is_forgotten_but_for_what_is_ours(easel: Easel, tmp_path: Path) -> None:
    own = tmp_path / "van_gogh.jpg"
    picture(20, 20, seed=1).save(own)
    shelf = easel.shelved("turner", picture(20, 20, seed=1))
    old, new = (
        easel.saved(picture(20, 20, seed=2), "photo.png"),
        easel.saved(picture(20, 20, seed=3), "photo.png"),
    )
    before = time.time() - 4000
    for path in (own, shelf, shelf.parent, old, old.parent):
        os.utime(path, (before, before))
    easel.forget(3600)
    assert shelf.is_file() and new.is_file() and not own.exists() and not old.exists()
    os.utime(old.parent, (before, before))
    easel.forget(3600)
    assert not old.parent.exists()
