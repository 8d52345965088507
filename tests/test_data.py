"""ldm.data and scripts/precompute_latents.py: folders of pictures become training samples, the same on every machine."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import model_config, picture, picture_folder, pixels, run_program, save_config, script, tiny_model

from ldm.checkpoint import save_safetensors
from ldm.data.cached import CachedHybridTrain, LatentCache
from ldm.data.datamodule import DataModuleFromConfig
from ldm.data.pictures import PictureFolder, find_pictures, split_fraction
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
    assert below(tmp_path, find_pictures(empty_files(tmp_path, names))) == ["a/1.jpg", "a/b/c/2.PNG", "z.webp"]


def test_folders_named_like_pictures_are_not_pictures(tmp_path: Path) -> None:
    empty_files(tmp_path, ["odd.jpg/inside.png"])
    assert below(tmp_path, find_pictures(tmp_path)) == ["odd.jpg/inside.png"]


@pytest.mark.parametrize("root, problem", [("nowhere", "no such folder"), ("notes", "no pictures in it"), ("notes/a.txt", "no such folder")])
def test_a_folder_without_pictures_is_a_user_error(tmp_path: Path, root: str, problem: str) -> None:
    empty_files(tmp_path, ["notes/a.txt"])
    with pytest.raises(UserError, match=problem):
        find_pictures(tmp_path / root)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return empty_files(tmp_path / "many", [f"part{i % 7}/{i}.jpg" for i in range(1000)])


def test_train_and_validation_share_no_picture_and_lose_none(many: Path) -> None:
    train, validation = (find_pictures(many, split, validation_share=0.1) for split in ("train", "validation"))
    assert not set(train) & set(validation) and sorted(train + validation) == find_pictures(many)
    assert 70 <= len(validation) <= 130


def test_the_split_is_the_same_under_another_root(many: Path, tmp_path: Path) -> None:
    shutil.copytree(many, tmp_path / "elsewhere" / "copy")
    here, there = (below(root, find_pictures(root, "validation")) for root in (many, tmp_path / "elsewhere/copy"))
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


@pytest.mark.parametrize("share, split", [(0.0, "validation"), (1.0, "train")])
def test_a_split_without_pictures_is_a_user_error(many: Path, share: float, split: str) -> None:
    with pytest.raises(UserError, match=f"leave none for {split}; change validation_share"):
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


@pytest.mark.parametrize("split", ["train", "all"])
def test_a_broken_picture_is_named_once_and_replaced_by_another(tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str) -> None:
    picture(16, 16).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    data = PictureFolder(tmp_path, size=16, split=split, validation_share=0.0, flip=False)
    with caplog.at_level(logging.WARNING):
        samples = [data[index]["image"] for index in (0, 0, 1)]
    assert all(np.array_equal(sample, samples[2]) for sample in samples)
    assert len([line for line in caplog.messages if "broken.png" in line]) == 1


def test_a_folder_of_broken_pictures_is_a_user_error(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="20 pictures in a row could not be read"):
        PictureFolder(tmp_path, size=8, split="all")[0]


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


def shares(samples: list[dict], is_photo) -> tuple[float, float, float]:
    """How often (style is off, content is off, the picture is a photo though style is on)."""
    style_off = np.mean([not s["style_flag"] for s in samples])
    content_off = np.mean([not s["content_flag"] for s in samples])
    return style_off, content_off, np.mean([bool(s["style_flag"]) and is_photo(s) for s in samples])


def test_flags_are_drawn_as_published(hybrid_roots: dict) -> None:
    data = HybridTrain(**hybrid_roots, size=8, validation_share=0.0)
    torch.manual_seed(0)
    samples = [data[0] for _ in range(2000)]
    style_off, content_off, photos_with_style = shares(samples, lambda s: s["image"].max() < 0)
    assert abs(style_off - 0.1) < 0.03 and abs(content_off - 0.9 * 0.5) < 0.05 and photos_with_style == 0


def test_no_sample_loses_both_conditions_and_only_photos_go_without_style(hybrid_roots: dict) -> None:
    data = HybridTrain(**hybrid_roots, size=8, validation_share=0.0, style_drop=0.5)
    samples = [data[0] for _ in range(200)]
    assert all(s["style_flag"] or s["content_flag"] for s in samples)
    assert all((s["image"].max() < 0) == (not s["style_flag"]) for s in samples)


@pytest.mark.parametrize("style_drop, content_drop, expected", [(1.0, 1.0, (False, True)), (0.0, 1.0, (True, False)), (0.0, 0.0, (True, True))])
def test_certain_drops_are_certain(style_drop: float, content_drop: float, expected: tuple) -> None:
    assert {draw_flags(style_drop, content_drop) for _ in range(50)} == {expected}


def test_an_epoch_is_as_long_as_the_set_of_paintings(tmp_path: Path) -> None:
    style, content = picture_folder(tmp_path / "s", 5), picture_folder(tmp_path / "c", 2)
    assert len(HybridTrain(str(style), str(content), size=8, validation_share=0.0)) == 5


def test_a_config_sets_all_options_of_the_pictures(hybrid_roots: dict) -> None:
    params = {**hybrid_roots, "size": 8, "validation_share": 0.0, "seed": 1, "flip": False, "in_memory": True}
    data = instantiate_from_config({"target": "ldm.data.wikiart.HybridTrain", "params": params})
    assert len(data) == 1 and not data.paintings.flip and not data.photos.flip


@pytest.mark.parametrize("name, value", [("style_drop", 1.5), ("content_drop", -0.1)])
def test_a_probability_is_checked(hybrid_roots: dict, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is a probability"):
        HybridTrain(**hybrid_roots, **{name: value})


# Loaders


def data_config(root: Path, split: str = "all") -> dict:
    return {"target": "ldm.data.pictures.PictureFolder", "params": {"roots": str(root), "size": 8, "split": split}}


def test_the_data_module_gives_batches_of_both_sets(photos: Path) -> None:
    data = DataModuleFromConfig(batch_size=4, train=data_config(photos), validation=data_config(photos), num_workers=0)
    data.setup()
    assert [len(batch["image"]) for batch in data.train_dataloader()] == [4]  # the last two pictures are no full batch
    assert [len(batch["image"]) for batch in data.val_dataloader()] == [4, 2]


def test_a_set_smaller_than_a_batch_is_still_used(photos: Path) -> None:
    data = DataModuleFromConfig(batch_size=100, train=data_config(photos), num_workers=0)
    data.setup("fit")
    assert [len(batch["image"]) for batch in data.train_dataloader()] == [6] and data.val_dataloader() == []


@pytest.mark.parametrize("batch_size", [0, -1, "many", None])
def test_a_batch_has_at_least_one_picture(batch_size: object) -> None:
    with pytest.raises(ConfigError, match="batch_size must be a whole number from 1 on"):
        DataModuleFromConfig(batch_size=batch_size)


# The cache of latents


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of scripts/precompute_latents.py for a tiny model and a few pictures, `--output` left out."""
    root = tmp_path_factory.mktemp("recipe")
    save_safetensors(tiny_model(use_ema=False).state_dict(), root / "tiny.safetensors")
    config = model_config(vgg_ckpt_path=str(root / "tiny.safetensors"))
    config["params"]["first_stage_config"]["params"]["ckpt_path"] = str(root / "tiny.safetensors")
    save_config({"model": config, "data": {}}, root / "tiny.yaml")
    picture_folder(root / "paintings", 4)
    picture_folder(root / "photos", 3, seed=50)
    options = {"config": root / "tiny.yaml", "paintings": root / "paintings", "photos": root / "photos", "size": 32, "short-side": 36}
    return [str(text) for name, value in options.items() for text in (f"--{name}", value)]


@pytest.fixture(scope="module")
def cache(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "made"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_program(script("precompute_latents").main, [*recipe, "--output", folder], monkeypatch) == 0
    return folder


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path) for path in sorted(folder.glob("*.npy"))}


def test_a_cache_holds_every_crop_and_its_mirror_image(cache: Path) -> None:
    shapes = {name: (array.shape, array.dtype.name) for name, array in arrays(cache).items()}
    assert shapes == {
        "paintings_latent.npy": ((16, 4, 2, 2), "float16"),
        "paintings_style.npy": ((16, 40), "float16"),
        "photos_latent.npy": ((12, 4, 2, 2), "float16"),
        "photos_style.npy": ((12, 40), "float16"),
    }
    assert all(np.isfinite(array).all() and len(np.unique(array, axis=0)) == len(array) for array in arrays(cache).values())


def test_cached_latents_are_what_the_first_stage_gives(cache: Path, recipe: list[str]) -> None:
    folder = PictureFolder(recipe[recipe.index("--photos") + 1], 32, 36, flip=False, validation_share=0.0)
    torch.manual_seed(2)  # the third picture's
    image = folder.read(2)
    crop = torch.from_numpy(np.stack([folder.crop(image) for _ in range(2)]))[1:].permute(0, 3, 1, 2)
    model, stored = tiny_model(use_ema=False).eval(), arrays(cache)
    mirrored = crop.flip(3)
    with torch.no_grad():
        for row, x in ((8 + 1, crop), (8 + 3, mirrored)):
            expected = model.encode_first_stage(x).mode()[0].numpy(), model.get_style_statistics(x)[0].numpy()
            for kind, values in zip(("latent", "style"), expected):
                np.testing.assert_allclose(stored[f"photos_{kind}.npy"][row], values, atol=0.05 * values.std())  # bf16


def test_a_stopped_run_goes_on_to_the_same_arrays(cache: Path, recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, reads = script("precompute_latents"), []

    def interrupted(folder: PictureFolder, index: int) -> Image.Image:
        reads.append(index)
        if len(reads) == 6:
            raise KeyboardInterrupt
        return folder.read(index)

    call = [*recipe, "--output", tmp_path / "cache"]
    with monkeypatch.context() as stop:
        stop.setattr(PictureFolder, "read_or_replace", interrupted)
        assert run_program(program.main, call, stop) == 130
    with pytest.raises(UserError, match="0 of 12 photos are done; run scripts/precompute_latents.py again"):
        CachedHybridTrain(str(tmp_path / "cache"))
    assert run_program(program.main, call, monkeypatch) == 0
    expected = arrays(cache)
    assert all(np.array_equal(array, expected[name]) for name, array in arrays(tmp_path / "cache").items())


def test_a_finished_cache_is_not_made_again(cache: Path, recipe: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PictureFolder, "read_or_replace", lambda *args: pytest.fail("made again"))
    assert run_program(script("precompute_latents").main, [*recipe, "--output", cache], monkeypatch) == 0


@pytest.mark.parametrize(
    "change, problem",
    [
        (["--crops", "3"], "made with other options, weights or pictures"),
        (["--seed", "1"], "made with other options, weights or pictures"),
        (["--crops", "0"], "--crops must be at least 1"),
        (["--size", "33"], "--size must be a multiple of 16"),
        (["--photos", "nowhere"], "nowhere: no such folder"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["model.params.first_stage_config.params.ckpt_path=null"], "first stage has no ckpt_path"),
        (["model.params.first_stage_config.params.ckpt_path=nowhere.ckpt"], "nowhere.ckpt: no such file"),
        (["model.params=null"], "not the config of a style transfer model"),
    ],
)
def test_what_does_not_fit_a_cache_is_refused(cache: Path, recipe: list[str], monkeypatch, capsys, change: list[str], problem: str) -> None:
    before = {path: path.read_bytes() for path in cache.iterdir()}
    assert run_program(script("precompute_latents").main, [*recipe, "--output", cache, *change], monkeypatch) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and problem in line
    assert {path: path.read_bytes() for path in cache.iterdir()} == before


def test_new_pictures_need_a_new_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    made_by = json.loads((cache / "cache.json").read_text())["made_by"]
    assert made_by["size"] == "32"
    shutil.copytree(cache, tmp_path / "cache")
    meta = json.loads((tmp_path / "cache/cache.json").read_text())
    meta["pictures"]["photos"].pop()
    (tmp_path / "cache/cache.json").write_text(json.dumps(meta))
    call = [text for name in ("config", "paintings", "photos", "size", "short_side") for text in (f"--{name.replace('_', '-')}", made_by[name])]
    assert run_program(script("precompute_latents").main, [*call, "--output", tmp_path / "cache"], monkeypatch) == 2
    assert "made with other options, weights or pictures" in capsys.readouterr().err


def test_samples_come_from_the_cache_with_flags_as_drawn(cache: Path) -> None:
    data = CachedHybridTrain(str(cache), validation_share=0.0, style_drop=0.3, content_drop=0.2, photo_share=0.4)
    stored = {kind: {array.tobytes() for array in arrays(cache)[f"{kind}_latent.npy"]} for kind in ("paintings", "photos")}
    torch.manual_seed(0)
    samples = [data[i % len(data)] for i in range(2000)]
    assert len(data) == 16 and samples[0]["latent"].shape == (4, 2, 2) and samples[0]["style"].shape == (40,)
    style_off, content_off, photos_with_style = shares(samples, lambda s: s["latent"].numpy().tobytes() in stored["photos"])
    assert abs(style_off - 0.3) < 0.05 and abs(content_off - 0.7 * 0.2) < 0.04 and abs(photos_with_style - 0.7 * 0.4) < 0.05
    assert all(s["latent"].numpy().tobytes() in stored["photos"] for s in samples if not s["style_flag"])


def test_latents_and_styles_of_a_cached_sample_belong_together(cache: Path) -> None:
    rows = {a.tobytes(): b.tobytes() for kind in ("paintings", "photos") for a, b in zip(*LatentCache(cache).arrays(kind))}
    data = CachedHybridTrain(str(cache), validation_share=0.0, style_drop=0.5)
    for sample in (data[i % len(data)] for i in range(50)):
        assert rows[sample["latent"].numpy().tobytes()] == sample["style"].numpy().tobytes()


def test_a_cached_split_keeps_all_crops_of_a_picture_together(cache: Path) -> None:
    train, validation = (CachedHybridTrain(str(cache), split=split, validation_share=0.5) for split in ("train", "validation"))
    for kind, count in (("paintings", 16), ("photos", 12)):
        assert sorted([*train.rows[kind], *validation.rows[kind]]) == list(range(count))
        assert not {row // 4 for row in train.rows[kind]} & {row // 4 for row in validation.rows[kind]}


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"split": "test"}, "split must be one of"),
        ({"split": "validation", "validation_share": 0.0}, "leave none for validation; change validation_share"),
        ({"photo_share": 2.0}, "photo_share is a probability"),
    ],
)
def test_options_of_a_cached_set_are_checked(cache: Path, options: dict, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        CachedHybridTrain(str(cache), **options)


@pytest.mark.parametrize("content, problem", [(None, "no latent cache there; make one with"), ("{", "not readable")])
def test_a_folder_that_is_no_cache_is_a_user_error(tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "cache.json").write_text(content)
    with pytest.raises(UserError, match=problem):
        CachedHybridTrain(str(tmp_path))
