"""Folders of pictures become training samples, the same on every machine."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import picture, picture_folder, pixels, shares

from ldm.data.pictures import PictureFolder
from ldm.data.splits import find_pictures, split_fraction
from ldm.data.wikiart import HybridTrain, WikiArtTrain, WikiArtValidation, draw_flags
from ldm.errors import ConfigError, UserError
from ldm.util import instantiate_from_config


def empty_files(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def below(root: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


# Finding pictures


def test_pictures_are_found_at_any_depth_sorted(tmp_path: Path) -> None:
    names = ["a/b/c/2.PNG", "a/1.jpg", "z.webp", "a/notes.txt", "a/b.jpg.part", "list.csv"]
    assert below(tmp_path, find_pictures(empty_files(tmp_path, names))) == [
        "a/1.jpg",
        "a/b/c/2.PNG",
        "z.webp",
    ]


def test_folders_named_like_pictures_are_not_pictures(tmp_path: Path) -> None:
    empty_files(tmp_path, ["odd.jpg/inside.png"])
    assert below(tmp_path, find_pictures(tmp_path)) == ["odd.jpg/inside.png"]


@pytest.mark.parametrize(
    "root, problem",
    [("nowhere", "no such folder"), ("notes", "no pictures in it"), ("notes/a.txt", "no such folder")],
)
def test_a_folder_without_pictures_is_a_user_error(tmp_path: Path, root: str, problem: str) -> None:
    empty_files(tmp_path, ["notes/a.txt"])
    with pytest.raises(UserError, match=problem):
        find_pictures(tmp_path / root)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return empty_files(tmp_path / "many", [f"part{i % 7}/{i}.jpg" for i in range(1000)])


def test_train_and_validation_share_no_picture_and_lose_none(many: Path) -> None:
    train, validation = (
        find_pictures(many, split, validation_share=0.1) for split in ("train", "validation")
    )
    assert not set(train) & set(validation) and sorted(train + validation) == find_pictures(many)
    assert 70 <= len(validation) <= 130


def test_the_split_is_the_same_under_another_root(many: Path, tmp_path: Path) -> None:
    shutil.copytree(many, tmp_path / "elsewhere" / "copy")
    here, there = (
        below(root, find_pictures(root, "validation")) for root in (many, tmp_path / "elsewhere/copy")
    )
    assert here == there


def test_new_pictures_move_no_old_one_to_the_other_split(many: Path) -> None:
    before = set(find_pictures(many, "validation"))
    empty_files(many, [f"new/{i}.jpg" for i in range(100)])
    after = find_pictures(many, "validation")
    assert {path for path in after if path.parent.name != "new"} == before


def test_the_split_never_changes() -> None:
    """A model's validation pictures must stay the ones that it was not trained on."""
    assert [round(split_fraction(Path(name), 0), 6) for name in ("a.jpg", "b/c.png")] == [0.970062, 0.671783]


def test_another_seed_gives_another_split(many: Path) -> None:
    assert find_pictures(many, "validation", seed=1) != find_pictures(many, "validation", seed=0)


def test_a_share_too_small_for_any_picture_takes_one(tmp_path: Path) -> None:
    root = empty_files(tmp_path, [f"{i}.jpg" for i in range(10)])
    train, validation = (
        find_pictures(root, split, validation_share=1e-9) for split in ("train", "validation")
    )
    assert len(validation) == 1 and sorted(train + validation) == find_pictures(root)
    assert split_fraction(validation[0].relative_to(root), 0) == min(
        split_fraction(path.relative_to(root), 0) for path in find_pictures(root)
    )


@pytest.mark.parametrize("share, split", [(0.02, "validation"), (1.0, "train")])
def test_a_single_picture_is_not_split(tmp_path: Path, share: float, split: str) -> None:
    with pytest.raises(
        UserError, match=f"its 1 pictures leave none for {split}; add some, change validation_share"
    ):
        find_pictures(empty_files(tmp_path, ["a.jpg"]), split, validation_share=share)


@pytest.mark.parametrize("share, split", [(0.0, "validation"), (1.0, "train")])
def test_a_split_without_pictures_is_a_user_error(many: Path, share: float, split: str) -> None:
    with pytest.raises(UserError, match=f"leave none for {split}; add some, change validation_share"):
        find_pictures(many, split, validation_share=share)


def test_an_unknown_split_is_refused(many: Path) -> None:
    with pytest.raises(ConfigError, match="train, validation, all, got 'test'"):
        find_pictures(many, "test")


# Crops


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_folder(tmp_path_factory.mktemp("photos"), 6, (50, 40))


def test_a_sample_is_a_channels_last_float_picture_in_range(photos: Path) -> None:
    image = PictureFolder(str(photos), size=32, split="all")[0]["image"]
    assert (image.shape, image.dtype) == ((32, 32, 3), np.float32) and -1 <= image.min() < image.max() <= 1


def test_values_span_minus_1_to_1(tmp_path: Path) -> None:
    for name, colour in (("a", "black"), ("b", "white")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    data = PictureFolder(tmp_path, size=8, split="all")
    assert [np.unique(data[i]["image"]).tolist() for i in range(2)] == [[-1.0], [1.0]]


def test_training_crops_are_parts_of_the_picture_at_every_place_and_mirrored(tmp_path: Path) -> None:
    columns = np.broadcast_to(np.arange(20, dtype=np.uint8)[None, :, None], (16, 20, 3))
    Image.fromarray(columns).save(tmp_path / "a.png")
    data = PictureFolder(tmp_path, size=16, split="train", validation_share=0.0)
    rows = {tuple((data[0]["image"][0, :, 0] * 127.5 + 127.5).round().astype(int)) for _ in range(200)}
    assert rows == {tuple(range(left, left + 16))[::step] for left in range(5) for step in (1, -1)}


def test_validation_crops_are_central_and_never_change(tmp_path: Path) -> None:
    image = picture(26, 16)
    image.save(tmp_path / "a.png")
    data = PictureFolder(tmp_path, size=16, split="validation", validation_share=1.0)
    centre = pixels(image)[:, 5:21] / 127.5 - 1
    assert all(np.allclose(data[0]["image"], centre, atol=1e-6) for _ in range(8))


def test_pictures_are_scaled_to_the_short_side_before_the_crop(photos: Path) -> None:
    data = PictureFolder(photos, size=16, short_side=20, split="all")
    assert data.read(0).size == (25, 20) and data[0]["image"].shape == (16, 16, 3)


def test_a_crop_larger_than_the_short_side_is_refused(photos: Path) -> None:
    with pytest.raises(ConfigError, match="short_side 16 is smaller than the crop of 32"):
        PictureFolder(photos, size=32, short_side=16)


def test_several_roots_are_one_data_set(photos: Path, tmp_path: Path) -> None:
    picture_folder(tmp_path, 3)
    assert len(PictureFolder([str(photos), str(tmp_path)], size=8, split="all")) == 9


def test_kept_pictures_are_read_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PictureFolder(photos, size=8, split="all", in_memory=True)
    first = data[0]["image"]
    monkeypatch.setattr("ldm.data.pictures.load_image", lambda *args, **options: pytest.fail("read again"))
    assert np.array_equal(data[0]["image"], first)


# The published data sets


def test_wikiart_splits_one_folder_in_two(many: Path) -> None:
    train, validation = WikiArtTrain(str(many), size=8), WikiArtValidation(str(many), size=8)
    assert sorted(train.paths + validation.paths) == find_pictures(many)
    assert train.random and not validation.random


@pytest.fixture(scope="module")
def hybrid_roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A white painting and a black photo, which a sample's brightness tells apart."""
    root = tmp_path_factory.mktemp("hybrid")
    for kind, colour in (("style", "white"), ("content", "black")):
        (root / kind).mkdir()
        Image.new("RGB", (12, 12), colour).save(root / kind / "a.png")
    return {f"{kind}_root": str(root / kind) for kind in ("style", "content")}


def test_flags_are_drawn_as_published(hybrid_roots: dict) -> None:
    data = HybridTrain(**hybrid_roots, size=8, validation_share=0.0)
    torch.manual_seed(0)
    samples = [data[0] for _ in range(2000)]
    style_off, content_off, photos_with_style = shares(samples, lambda s: s["image"].max() < 0)
    assert abs(style_off - 0.1) < 0.03 and abs(content_off - 0.5) < 0.04 and photos_with_style == 0


def test_no_sample_loses_both_conditions_and_only_photos_go_without_style(hybrid_roots: dict) -> None:
    data = HybridTrain(**hybrid_roots, size=8, validation_share=0.0, style_drop=0.5)
    samples = [data[0] for _ in range(200)]
    assert all(s["style_flag"] or s["content_flag"] for s in samples)
    assert all((s["image"].max() < 0) == (not s["style_flag"]) for s in samples)


@pytest.mark.parametrize(
    "style_drop, content_drop, expected",
    [(1.0, 1.0, (False, True)), (0.0, 1.0, (True, False)), (0.0, 0.0, (True, True))],
)
def test_certain_drops_are_certain(style_drop: float, content_drop: float, expected: tuple) -> None:
    assert {draw_flags(style_drop, content_drop) for _ in range(50)} == {expected}


def test_conditions_are_drawn_in_the_published_shares() -> None:
    torch.manual_seed(0)
    draws = [draw_flags(0.1, 0.5) for _ in range(20_000)]
    assert [
        draws.count(flags) / 20_000 for flags in ((False, True), (True, False), (True, True))
    ] == pytest.approx([0.1, 0.5, 0.4], abs=0.01)
    assert (False, False) not in draws


def test_published_keys_name_crops_and_augmentation(many: Path, hybrid_roots: dict) -> None:
    published = {
        "random_augment": True,
        "style_size": 512,
        "style_crop_size": 256,
        "content_drop": 0.5,
        "style_drop": 0.1,
    }
    data = HybridTrain(**hybrid_roots, **published, validation_share=0.0)
    assert (data.paintings.size, data.paintings.short_side, data.photos.size, data.photos.short_side) == (
        256,
        512,
        256,
        384,
    )
    plain = HybridTrain(**hybrid_roots, random_augment=False, validation_share=0.0)
    assert data.photos.random and data.photos.flip and not plain.paintings.random and not plain.paintings.flip
    with pytest.raises(ConfigError, match="crops of 128 and 256 pixels do not go into one batch"):
        HybridTrain(**hybrid_roots, style_crop_size=128, content_crop_size=256)
    train, validation = (
        WikiArtTrain(str(many), size=24, crop_size=16),
        WikiArtValidation(str(many), crop_size=16, random_augment=True),
    )
    assert (train.size, train.short_side, validation.size, validation.short_side) == (
        16,
        24,
        16,
        24,
    ) and validation.random


def test_an_epoch_is_as_long_as_the_set_of_paintings(tmp_path: Path) -> None:
    style, content = picture_folder(tmp_path / "s", 5), picture_folder(tmp_path / "c", 2)
    assert len(HybridTrain(str(style), str(content), size=8, validation_share=0.0)) == 5


def test_a_config_sets_all_options_of_the_pictures(hybrid_roots: dict) -> None:
    params = {**hybrid_roots, "size": 8, "validation_share": 0.0, "seed": 1, "flip": False, "in_memory": True}
    data = instantiate_from_config({"target": "ldm.data.wikiart.HybridTrain", "params": params})
    assert len(data) == 1 and not data.paintings.flip and not data.photos.flip


@pytest.mark.parametrize("name, value", [("style_drop", 1.5), ("content_drop", -0.1)])
def test_a_probability_is_checked(hybrid_roots: dict, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be between 0 and 1"):
        HybridTrain(**hybrid_roots, **{name: value})
