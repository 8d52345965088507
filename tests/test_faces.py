"""Faces that are kept or painted with less of the style: `--keep faces`, `--face-detail`."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import (
    ROOT,
    SMALL,
    assert_refused,
    everything_in,
    largest_difference,
    mean_difference,
    picture,
    pixels,
    run_program,
)

from ldm.cli import stylize
from ldm.errors import UserError
from ldm.media.images import load_image, read_metadata
from ldm.media.tensors import image_to_tensor
from ldm.modules import face_detector as detecting
from ldm.modules.face_detector import Faces, moved, patches, squares
from ldm.pipeline import faces
from ldm.pipeline.faces import face_mask, find_faces
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings

SAMPLED = {"look": "sampled", "size": 64, "steps": 2}
FINE = {"size": 64, "steps": 1, "effort": 0.2}
LOOKS = pytest.mark.parametrize("look", [SAMPLED, FINE], ids=["sampled", "fine"])
NEEDS_EXTRA = pytest.mark.skipif(
    find_spec("mtcnn") is None or find_spec("lz4") is None,
    reason="finds faces for real with the extra: pip install -e '.[faces]'",
)
# A picture of 96 x 64 pixels has one with this middle and these half axes; the eyes are level.
MIDDLE, AXES = (30.0, 32.0), (12.0, 15.0)


def faces_at(*boxes: tuple[float, ...], turn: float = 0.0) -> Faces:
    """Faces in these boxes, with the eyes at this turn in radians."""
    eye = torch.tensor([np.cos(turn), np.sin(turn)], dtype=torch.float32)
    points = torch.zeros(len(boxes), 5, 2)
    points[:, 0], points[:, 1] = -eye, eye
    return Faces(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), points)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A detector that finds a face at MIDDLE in pictures that are not plain; the sizes it saw."""
    seen = []

    def detect(given: torch.Tensor) -> Faces:
        seen.append(tuple(given.shape))
        (x, y), (w, h) = MIDDLE, AXES
        return faces_at(*[(x - w, y - h, x + w, y + h)] if given.flatten(1).std(dim=1).max() > 0.01 else [])

    monkeypatch.setattr(detecting, "face_detector", lambda: detect)
    monkeypatch.setattr("ldm.pipeline.settings.check_face_detector", lambda: None)
    monkeypatch.setattr("ldm.cli.asked.check_face_detector", lambda: None)
    faces._remembered.cache_clear()
    return seen


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return picture(96, 64, seed=1)


def inside(image: Image.Image, share: float = 0.7) -> np.ndarray:
    """The pixels (N, 3) well inside the face."""
    y, x = np.mgrid[:64, :96] + 0.5
    ellipse = np.hypot((x - MIDDLE[0]) / AXES[0], (y - MIDDLE[1]) / AXES[1]) < share
    return pixels(image)[ellipse]


# Masks


def test_a_mask_is_white_in_the_face_and_black_far_from_it_with_an_edge_as_wide_as_the_face(
    found: list, photo: Image.Image
) -> None:
    mask = np.asarray(face_mask(photo), dtype=int)
    assert mask.shape == (64, 96) and (inside(face_mask(photo)) == 255).all()
    row = mask[32, 30:]  # from the middle to the right
    assert (np.diff(row) <= 0).all() and row[int(faces.OUTER * AXES[0]) + 1 :].max() == 0
    assert np.count_nonzero((row > 0) & (row < 255)) >= 0.5 * AXES[0] and np.abs(np.diff(row)).max() < 60


def test_a_mask_turns_with_the_face_and_several_are_one(
    monkeypatch: pytest.MonkeyPatch, photo: Image.Image
) -> None:
    narrow = (20, 2, 40, 62)
    monkeypatch.setattr(detecting, "face_detector", lambda: lambda given: faces_at(narrow, turn=np.pi / 2))
    mask = np.asarray(face_mask(photo))
    assert mask[32, 52] == 255 and mask[55, 30] == 0  # it lies
    both = faces_at((10, 10, 30, 34), (60, 20, 84, 50))
    monkeypatch.setattr(detecting, "face_detector", lambda: lambda given: both)
    mask = np.asarray(face_mask(photo))
    assert mask[22, 20] == mask[35, 72] == 255 and mask[60, 45] == 0


def test_a_large_picture_is_searched_smaller_and_its_mask_has_its_own_size(
    found: list, monkeypatch: pytest.MonkeyPatch, photo: Image.Image
) -> None:
    monkeypatch.setattr(faces, "SEARCH_SIDE", 64)
    large = photo.resize((192, 128))
    mask = face_mask(large)
    assert found == [(3, 64, 96)] and mask.size == (192, 128) and mask.getpixel((60, 64)) == 255


def test_where_there_is_no_face_it_is_said_once_with_the_pictures_name(
    found: list, caplog: pytest.LogCaptureFixture, photo: Image.Image
) -> None:
    plain = Image.new("RGB", (96, 64), "grey")
    assert [find_faces(plain, "plain.png") for _ in range(2)] == [None, None]
    assert caplog.messages == ["plain.png: no face is found, so all of it is painted"] and len(found) == 1
    assert find_faces(photo) is not None and len(caplog.messages) == 1


# Painting


@LOOKS
def test_faces_are_kept_to_the_pixel_and_the_rest_is_painted(
    found: list, pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image, look: dict
) -> None:
    kept, painted = pipeline(photo, painting, keep="faces", **look), pipeline(photo, painting, **look)
    assert (inside(kept) == inside(photo)).all()
    assert largest_difference(kept, pipeline(photo, painting, keep=face_mask(photo), **look)) == 0
    away = slice(60, None)
    assert mean_difference(kept, photo, away) > 0.5 * mean_difference(painted, photo, away) > 1


@LOOKS
def test_face_detail_leads_from_the_painted_face_to_the_photos(
    found: list, pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image, look: dict
) -> None:
    def distance(share: float) -> float:
        result = pipeline(photo, painting, face_detail=share, **look)
        return float(np.abs(inside(result) - inside(photo)).mean())

    whole, half, none = (distance(share) for share in (1.0, 0.5, 0.0))
    assert whole <= 1 < half < 0.95 * none  # 1: as rounding leaves it


def test_a_mask_and_faces_go_together(
    found: list, pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image
) -> None:
    right = Image.new("L", photo.size)
    right.paste(255, (64, 0, 96, 64))
    both = pipeline(photo, painting, keep=right, face_detail=1.0, **FINE)
    assert (pixels(both)[:, 64:] == pixels(photo)[:, 64:]).all()
    assert np.abs(inside(both) - inside(photo)).max() <= 1


def test_where_there_is_no_face_all_is_painted_beside_one_that_has_one(
    found: list,
    pipeline: StyleTransferPipeline,
    photo: Image.Image,
    painting: Image.Image,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = Image.new("RGB", photo.size, "teal")
    kept, painted = pipeline([photo, plain], painting, keep="faces", **SAMPLED)
    assert (inside(kept) == inside(photo)).all()
    assert largest_difference(painted, pipeline(plain, painting, **SAMPLED)) == 0
    assert caplog.messages == ["the picture: no face is found, so all of it is painted"]


@pytest.mark.parametrize("options", [{"keep": "faces"}, {"face_detail": 0.5}])
def test_without_a_photo_there_are_no_faces(
    found: list, tiny: StyleTransferPipeline, painting: Image.Image, options: dict
) -> None:
    with pytest.raises(UserError, match="face_detail, preserve_color and scene need a content picture"):
        tiny(None, painting, **SAMPLED, **options)


# The command


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_files: list[str], photo: Image.Image
) -> Callable[..., int]:
    """Runs the program in a folder with a photo of a face, one without, and a painting."""
    (tmp_path / "photos").mkdir()
    photo.save(tmp_path / "photos/face.png")
    Image.new("RGB", (96, 64), "teal").save(tmp_path / "photos/plain.png")
    picture(40, 40, seed=2).save(tmp_path / "painting.png")
    monkeypatch.chdir(tmp_path)
    common = [*SMALL, *model_files, "--size", "64", "--style", "painting.png"]
    return lambda *options: run_program(stylize.main, [*common, *options], monkeypatch)


def test_folders_keep_faces_and_name_the_photos_without_one(
    found: list, run: Callable, caplog: pytest.LogCaptureFixture, photo: Image.Image
) -> None:
    assert run("--content", "photos", "--keep", "faces", "--output", "out") == 0
    assert (inside(load_image("out/face__painting.png")) == inside(photo)).all()
    assert Path("out/plain__painting.png").is_file()
    assert f"{Path('photos/plain.png')}: no face is found, so all of it is painted" in caplog.messages
    said = json.loads(read_metadata(Path("out/face__painting.png"))["artfusion"])
    assert said["keep"] == "faces" and "keep_sha256" not in said and said["face_detail"] == 0


def test_a_folder_is_not_painted_again_and_a_dry_run_paints_nothing(
    found: list, run: Callable, capsys: pytest.CaptureFixture
) -> None:
    options = ("--content", "photos", "--keep", "faces", "--face-detail", "0.5", "--output", "out")
    assert run(*options, "--dry-run") == 0 and not Path("out").exists()
    assert run(*options) == run(*options) == 0
    assert "0 painted, 2 there already" in capsys.readouterr().out


def test_a_single_photo_without_a_face_is_painted_with_a_warning(
    found: list, run: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("--content", "photos/plain.png", "--face-detail", "0.5", "--output", "one.png") == 0
    assert f"{Path('photos/plain.png')}: no face is found, so all of it is painted" in caplog.messages
    said = json.loads(read_metadata(Path("one.png"))["artfusion"])
    assert said["face_detail"] == 0.5


def test_a_file_of_that_name_is_a_mask(run: Callable, photo: Image.Image) -> None:
    mask = Image.new("L", (96, 64))
    mask.paste(255, (48, 0, 96, 64))
    mask.save("faces", format="PNG")
    assert run("--content", "photos/face.png", "--keep", "./faces", "--output", "one.png") == 0
    assert (pixels(load_image("one.png"))[:, 48:] == pixels(photo)[:, 48:]).all()


@pytest.mark.parametrize("options", [("--keep", "faces"), ("--face-detail", "0.5")])
@pytest.mark.parametrize("missing", ["mtcnn", "lz4"])
def test_without_the_extra_one_line_names_it_before_weights_are_read(
    run: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    options: tuple,
    missing: str,
) -> None:
    monkeypatch.setattr("ldm.checks.find_spec", lambda name: None if name == missing else "there")
    monkeypatch.setattr(
        "ldm.pipeline.chosen.ModelChoice.load", lambda *given, **named: pytest.fail("weights were read")
    )
    before = everything_in(tmp_path)
    code = run("--content", "photos", *options, "--output", "out")
    assert_refused(code, capsys.readouterr(), "mtcnn; install it with: pip install -e '.[faces]'")
    assert everything_in(tmp_path) == before


def test_the_extra_is_looked_for_when_faces_are_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.checks.find_spec", lambda name: None)
    Settings().check()
    with pytest.raises(UserError, match="finding faces needs the package mtcnn"):
        Settings(face_detail=0.5).check()


def test_searching_for_faces_is_imported_without_torch() -> None:
    code = "import sys, ldm.pipeline.faces; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# The detector


def test_boxes_move_by_shares_of_their_size_and_are_squared_about_their_middle() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert moved(boxes, torch.tensor([[0.5, -0.5, 0.0, 0.25]])).tolist() == [[20, 0, 30, 70]]
    assert squares(boxes).tolist() == [[0, 20, 40, 60]]


def test_patches_are_grey_beyond_the_picture_and_none_is_empty() -> None:
    white = torch.ones(1, 3, 20, 30)
    boxes = torch.tensor([[-10.0, 5, 10, 15], [5, 5, 5, 5], [40, 40, 50, 50], [0, 0, 30, 20]])
    cut = patches(white, boxes, 8)
    assert cut.shape == (4, 3, 8, 8) and cut[0, 0, 0].tolist() == pytest.approx([0] * 4 + [1] * 4, abs=0.2)
    assert [part.mean().item() for part in cut[1:]] == pytest.approx([1, 0, 1])
    assert patches(white, boxes[:0], 8).shape == (0, 3, 8, 8)


@NEEDS_EXTRA
@pytest.mark.parametrize("size", [160, 512])
def test_the_real_detector_finds_a_face_with_its_eyes_at_any_size_and_none_in_a_gate(size: int) -> None:
    detector = detecting.face_detector()
    astronaut = load_image(ROOT / "data/contents/astronaut.jpg").resize((size, size))
    seen = detector(image_to_tensor(astronaut))
    assert len(seen.boxes) == 1
    left, top, right, bottom = (seen.boxes[0] / size).tolist()
    eyes, nose = seen.points[0, :2] / size, seen.points[0, 2] / size
    assert left < eyes[0, 0] < nose[0] < eyes[1, 0] < right and top < eyes.mean(0)[1] < nose[1] < bottom
    assert nose.tolist() == pytest.approx([0.44, 0.25], abs=0.02)
    gate = load_image(ROOT / "data/contents/brandenburg_gate.jpg").resize((size, size))
    assert len(detector(image_to_tensor(gate)).boxes) == 0


@NEEDS_EXTRA
def test_the_smallest_picture_can_be_searched(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert find_faces(Image.new("RGB", (32, 900)), "strip.png") is None and caplog.messages
