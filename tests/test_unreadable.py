"""Pictures that cannot be read: training goes on without them, names each once, and stops where they are too many."""

import io
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pipeline_builders import picture

from ldm.data.datamodule import DataModuleFromConfig
from ldm.data.pictures import PictureFolder
from ldm.errors import UserError


def encoded(image: Image.Image, extension: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, extension, **options)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims that size."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "png"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


BAD = {
    "cut.jpg": encoded(picture(40, 40), "jpeg")[:400],
    "empty.jpg": b"",
    "text.jpg": b"Dear diary, today I was renamed.\n",
    "bomb.png": png_of_size(100_000, 100_000),
}


def folder_of(root: Path, good: int, bad: int) -> Path:
    """Good pictures and, scattered among them by name, bad ones of every kind."""
    root.mkdir()
    picture_bytes, names = encoded(picture(20, 16), "jpeg"), list(BAD)
    numbers = random.Random(0).sample(range(good + bad), bad)
    for number in range(good + bad):
        kind = names[numbers.index(number) % len(names)] if number in numbers else "good.jpg"
        (root / f"{number:04d}-{kind}").write_bytes(BAD.get(kind, picture_bytes))
    return root


def bad_names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.endswith("good.jpg"))


class Reader(pl.LightningModule):
    """Counts the pictures that it gets; fails once it has seen `limit`."""

    def __init__(self, limit: int | None = None):
        super().__init__()
        self.automatic_optimization = False
        self.seen, self.limit = 0, limit

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        assert "unreadable" not in batch and batch["image"].isfinite().all()
        self.seen += len(batch["image"])
        if self.seen == self.limit:
            raise RuntimeError("something broke")

    def configure_optimizers(self) -> None:
        return None


def read_once(
    root: Path, workers: int = 0, batch_size: int = 20, limit: int | None = None, **options: Any
) -> int:
    """Pictures seen in one epoch."""
    node = {
        "target": "ldm.data.pictures.PictureFolder",
        "params": {"roots": str(root), "size": 16, "validation_share": 0.0},
    }
    data, reader = (
        DataModuleFromConfig(batch_size=batch_size, num_workers=workers, train=node, **options),
        Reader(limit),
    )
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=root, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(reader, data)
    return reader.seen


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the data module has warned of."""
    return [record.getMessage() for record in caplog.records if record.name == "ldm.data.datamodule"]


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("thousand") / "pictures", good=950, bad=50)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_with_bad_pictures_is_read_whole(
    thousand: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    assert read_once(thousand, workers) == 1000
    *left_out, report = warned(caplog)
    assert sorted(name_in(message.removeprefix("picture left out: ")) for message in left_out) == bad_names(
        thousand
    )
    assert report.startswith("50 of 1000 pictures could not be read and were replaced by others:")
    assert all(report.count(name) == 1 for name in bad_names(thousand))


def test_a_run_that_fails_reports_what_it_left_out_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match="something broke"):
        read_once(folder_of(tmp_path / "failing", good=36, bad=4), batch_size=40, limit=40)
    assert warned(caplog)[-1].startswith("4 of 40 pictures could not be read")


def test_the_log_says_what_is_wrong_with_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_once(folder_of(tmp_path / "each", good=40, bad=4))
    *left_out, _ = warned(caplog)
    for kind, problem in {
        "cut": "broken or cut short",
        "empty": "is empty",
        "text": "not a picture",
        "bomb": "too many pixels",
    }.items():
        assert (
            len(
                [
                    message
                    for message in left_out
                    if f"-{kind}." in message and problem in message and "\n" not in message
                ]
            )
            == 1
        )


def test_too_many_bad_pictures_stop_the_run_with_their_list(thousand: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"of 1000 pictures could not be read, more than data.params.max_unreadable_share \(0.01\) allows",
    ) as caught:
        read_once(thousand, max_unreadable_share=0.01)
    listed = [name for name in bad_names(thousand) if name in str(caught.value)]
    assert len(listed) >= 11 and "\n" not in str(caught.value)


@pytest.mark.parametrize("share, stops", [(0.3, True), (0.4, False), (1.0, False)])
def test_the_share_is_of_all_pictures(tmp_path: Path, share: float, stops: bool) -> None:
    root = folder_of(tmp_path / "few", good=6, bad=4)
    if not stops:
        assert read_once(root, max_unreadable_share=share, batch_size=2) == 10
        return
    with pytest.raises(UserError, match="4 of 10 pictures could not be read"):
        read_once(root, max_unreadable_share=share, batch_size=2)


@pytest.mark.parametrize("batch_size", [1, 2, 20])
def test_a_picture_is_counted_and_named_once_however_often_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, batch_size: int
) -> None:
    """Half of the pictures are bad, so that their replacements often are too."""
    root = folder_of(tmp_path / "half", good=10, bad=10)
    read_once(root, batch_size=batch_size, max_unreadable_share=1.0)
    *left_out, report = warned(caplog)
    assert len(left_out) == len(set(left_out)) == 10 and report.startswith("10 of 20 pictures")


def test_without_bad_pictures_nothing_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_once(folder_of(tmp_path / "good", good=20, bad=0)) == 20
    assert not warned(caplog)


def name_in(line: str) -> str:
    """The file that a line about a bad picture names."""
    return Path(line.partition(": ")[0]).name


# Samples


@pytest.mark.parametrize("split", ["train", "all"])
def test_a_sample_tells_which_pictures_it_stands_in_for(tmp_path: Path, split: str) -> None:
    (tmp_path / "a-bad.png").write_bytes(b"not a picture")
    picture(16, 16).save(tmp_path / "b-good.png")
    data = PictureFolder(tmp_path, size=16, split=split, validation_share=0.0, flip=False)
    replaced, good = data[0], data[1]
    assert np.array_equal(replaced["image"], good["image"])
    assert replaced["path"] == good["path"] == str(tmp_path / "b-good.png")
    assert good["unreadable"] == "" and set(map(name_in, replaced["unreadable"].splitlines())) == {
        "a-bad.png"
    }


def test_the_replacement_is_the_next_picture_where_nothing_is_random(tmp_path: Path) -> None:
    for name, colour in (("b", "white"), ("d", "black")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    for name in ("a", "c", "e"):
        (tmp_path / f"{name}.png").touch()
    samples = [PictureFolder(tmp_path, size=8, split="all")[i] for i in range(5)]
    assert [Path(sample["path"]).stem for sample in samples] == ["b", "b", "d", "d", "b"]


def test_a_folder_of_bad_pictures_alone_is_a_user_error_that_names_each_once(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="20 pictures in a row could not be read") as caught:
        PictureFolder(tmp_path, size=8, split="all")[0]
    assert [str(caught.value).count(f"{i}.png") for i in range(3)] == [1, 1, 1]


def rotated(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), "png", exif=exif)


UNUSUAL = {
    "upright by its EXIF tag": rotated(picture(32, 24)),
    "CMYK": encoded(picture(32, 24).convert("CMYK"), "jpeg", quality=95),
    "palette with a transparent colour": encoded(picture(32, 24).convert("P"), "png", transparency=0),
    "transparent": encoded(picture(32, 24).convert("RGBA"), "png"),
    "16 bits": encoded(
        Image.fromarray(np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype(np.uint16)), "png"
    ),
    "grey": encoded(picture(32, 24).convert("L"), "png"),
    "black and white": encoded(picture(32, 24).convert("1"), "png"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_pictures_are_samples_like_all_others(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(UNUSUAL[name])
    data = PictureFolder(tmp_path, size=24, split="all")
    sample = data[0]
    assert data.read(0).size == (32, 24) and sample["unreadable"] == ""
    assert (sample["image"].shape, sample["image"].dtype) == ((24, 24, 3), np.float32)
    assert -1 <= sample["image"].min() < sample["image"].max() <= 1
    assert torch.from_numpy(sample["image"]).std() > 0.05
