"""ldm.pipeline.batches: a painter for pipelines of one's own. What is asked of it wrongly is told once, when it is made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import left_half, picture

from ldm import UserError
from ldm.media.arrays import image_of
from ldm.pipeline.batches import BatchOptions, BatchPainter
from ldm.pipeline.chosen import ModelChoice
from ldm.pipeline.columns import columns_of
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.library import library
from ldm.pipeline.settings import Settings

PALETTE = Settings(look="palette", size=32)  # the look that needs no model


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: photos 0.png and 1.png, paintings s.png and t.png, a folder of both."""
    monkeypatch.chdir(tmp_path)
    Path("paintings").mkdir()
    for i, name in enumerate(["0", "1", "s", "t", "paintings/s", "paintings/t"]):
        picture(40, 36, 2 + i % 2 if "s" in name or "t" in name else i).save(f"{name}.png")
    Path("text.png").write_text("no picture")
    return tmp_path


def painter(style: Any = "s.png", **options: Any) -> BatchPainter:
    return BatchPainter(BatchOptions({"s": style}, **{"settings": PALETTE, **options}))


def batch(count: int = 2, **more: Any) -> dict[str, Any]:
    return {"bytes": [Path(f"{i}.png").read_bytes() for i in range(count)], **more}


# What is wrong for all rows is told when the painter is made


@pytest.mark.parametrize(
    "style, problem",
    [
        ("gone.jpg", "style 's': gone.jpg: no such file or folder"),
        ("ukiyo-i", "did you mean ukiyo-e?"),
        ("text.png", "style 's': text.png: not a picture that can be read"),
        (StyleMix(["s.png", "gone.jpg"]), "style 's': gone.jpg: no such file"),
        (StyleMix(["s.png"], [1, 2]), "2 style weights for 1 styles"),
        (StyleRegions(["s.png", "t.png"], ["gone.png"]), "style 's': gone.png: no such file"),
        ("memory://gone/s.png", "style 's': memory://gone/s.png: there is no such file"),
        (None, "style 's': pictures are paths, PIL's"),
        (np.zeros((4, 4)), "style 's': an array of shape"),
    ],
)
def test_a_style_that_cannot_be_is_told_once_when_the_painter_is_made(style: Any, problem: str) -> None:
    with pytest.raises(UserError) as refused:
        painter(style)
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"keep": "gone.png"}, "keep: gone.png: no such file"),
        ({"palette": "s.png"}, "palette is for looks that paint"),
        ({"part": "gone.png"}, "part: gone.png: no such file"),
        ({"settings": Settings(), "model": ModelChoice("gone.ckpt")}, "gone.ckpt: no such file"),
        ({"settings": Settings(), "palette": "ukiyo-e"}, "palette: ukiyo-e: is a saved style"),
        ({"settings": Settings(), "not_style": "s.png"}, "not_style leads away"),
        ({"styles": {}}, "styles is empty"),
    ],
)
def test_so_is_whatever_else_cannot_be(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as refused:
        BatchPainter(BatchOptions(**{"styles": {"s": "s.png"}, "settings": PALETTE, **options}))
    assert problem in str(refused.value)


def test_a_style_may_be_whatever_the_command_takes() -> None:
    saved = library()["ukiyo-e"]
    painted = [painter(style)(batch(1)) for style in ("ukiyo-e", saved)]
    assert painted[0]["picture"] == painted[1]["picture"] and painted[0]["error"] == [None]
    for folder in ("paintings", Path("paintings"), Path("paintings").absolute().as_uri(), "paintings/*.png"):
        found = painter(folder).options.styles["s"]
        assert [Path(path).stem for path in found.styles] == ["s", "t"] and found.weights is None
    parts = StyleRegions(["ukiyo-e", StyleMix(["paintings", "s.png"])], [left_half(40, 36)])
    first, second = painter(parts).options.styles["s"].styles
    assert first == saved and isinstance(second.styles[0], StyleMix) and second.styles[1] == Path("s.png")
    assert painter(Image.open("s.png")).options.styles["s"].size == (40, 36)


# Batches


def frames() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """What makes a batch of each kind that has columns."""
    pa, pd = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    return {
        "table": pa.table,
        "record batch": pa.record_batch,
        "dict of its columns": lambda columns: {name: pa.array(values) for name, values in columns.items()},
        "data frame": pd.DataFrame,
        "dict of arrays": lambda columns: {n: np.array(v, dtype=object) for n, v in columns.items()},
        "dict of tuples": lambda columns: {name: tuple(values) for name, values in columns.items()},
    }


def test_batches_are_taken_as_engines_have_them() -> None:
    columns = batch(path=["a/0.png", "1.png"], label=[7, 8])
    for name, make in frames().items():
        assert columns_of(make(columns)) == columns, name
    one = batch(1, label=[7])
    painted = painter()(frames()["table"](one))
    assert painted == painter()(one) and painted["label"] == [7] and painted["error"] == [None]


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_files_bytes_may_be_held_otherwise(kind: type) -> None:
    (content,) = batch(1)["bytes"]
    assert painter()({"bytes": [kind(content)]})["error"] == [None]


def test_a_row_may_be_a_tensor() -> None:
    given = torch.from_numpy(np.array(Image.open("0.png"))).permute(2, 0, 1)
    painted = painter()({"image": [given]})
    assert painted["picture"] and json.loads(painted["metadata"][0])["content_sha256"]


@pytest.mark.parametrize(
    "given, problem",
    [
        ([{"bytes": b""}], "a batch is rows by columns: a mapping such as a dict of lists"),
        ("s.png", "a batch is rows by columns"),
        (None, "a batch is rows by columns"),
        ({"bytes": b"one file"}, "the column 'bytes' of a batch must be a list or an array"),
        ({"bytes": [b"", b""], "style": "s"}, "the column 'style' of a batch must be a list or an array"),
        ({"bytes": [b"", b""], "label": 7}, "the column 'label' of a batch must be a list or an array"),
        ({"bytes": [b""], "label": np.array(7)}, "the column 'label' of a batch must be a list or an array"),
        ({"bytes": [b""], "label": iter([7])}, "the column 'label' of a batch must be a list or an array"),
        ({"bytes": [b"", b""], "path": ["a"]}, "'bytes' has 2, 'path' has 1"),
        ({"bytes": [b"", b""], "label": [1, 2, 3]}, "'bytes' has 2, 'label' has 3"),
        ({}, "a batch needs a column `bytes` or `image`; it has none"),
    ],
)
def test_what_is_no_batch_is_one_error(given: Any, problem: str) -> None:
    with pytest.raises(UserError) as refused:
        painter()(given)
    assert problem in str(refused.value) and "\n" not in str(refused.value)


def test_two_columns_of_one_name_are_one_error() -> None:
    pa, pd = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    twice = [["a", "b"], ["c", "d"]]
    for given in (pa.table(twice, names=["path"] * 2), pd.DataFrame(twice, columns=["path"] * 2)):
        with pytest.raises(UserError, match="two columns called 'path'"):
            painter()(given)


# Arrays


@pytest.mark.parametrize(
    "huge",
    [
        np.broadcast_to(np.uint8(7), (1_000_000, 1_000_000, 3)),
        np.broadcast_to(np.uint8(7), (1_000_000, 1_000_000)),
        np.broadcast_to(np.uint8(7), (3, 1_000_000, 1_000_000)),
        torch.zeros(1).expand(3, 1_000_000, 1_000_000),
        torch.zeros(1, dtype=torch.uint8).expand(1_000_000, 1_000_000),
        torch.zeros(1).expand(1_000_000, 1_000_000, 1, 1),
    ],
    ids=lambda array: f"{type(array).__name__}-{tuple(array.shape)}",
)
def test_arrays_of_more_pixels_than_pictures_may_have_are_refused_before_they_are_copied(huge: Any) -> None:
    with pytest.raises(UserError, match="more than the limit of|is no picture"):
        image_of(huge)
    painted = painter()({"image": [huge, np.asarray(Image.open("0.png"))]})
    assert painted["picture"][0] is None and painted["error"][0].startswith("row 0: ")
    assert painted["error"][1] is None
