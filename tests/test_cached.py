"""artfusion cache and the data sets that read what it wrote."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import (
    model_config,
    paintings_and_photos,
    run_program,
    save_config,
    script,
    shares,
    tiny_model,
)

from ldm.checkpoint import save_safetensors
from ldm.data.cached import KINDS, CachedHybridTrain, LatentCache
from ldm.data.order import mixed_seed
from ldm.data.pictures import PictureFolder
from ldm.errors import ConfigError, UserError

SHAPES = {"latent": (4, 2, 2), "style": (40,)}
ROWS = 4  # of a picture: two crops and their mirror images


def make_recipe(root: Path, paintings: int = 4, photos: int = 3) -> dict[str, Any]:
    """Options of artfusion cache for a tiny model and a few pictures, `output` left out."""
    save_safetensors(tiny_model(use_ema=False).state_dict(), root / "tiny.safetensors")
    config = model_config(vgg_ckpt_path=str(root / "tiny.safetensors"))
    config["params"]["first_stage_config"]["params"]["ckpt_path"] = str(root / "tiny.safetensors")
    save_config({"model": config, "data": {}}, root / "tiny.yaml")
    folders = paintings_and_photos(root, paintings, photos)
    sizes = {"size": 32, "short-side": 36, "pictures-per-shard": 2, "batch-size": 1, "num-workers": 0}
    return {"config": root / "tiny.yaml", **folders, **sizes}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_recipe(tmp_path_factory.mktemp("recipe"))


def precompute(recipe: dict[str, Any], *more: object, **changes: object) -> int:
    """The exit code of the program."""
    options = recipe | {name.replace("_", "-"): value for name, value in changes.items()}
    arguments = [str(text) for name, value in options.items() for text in (f"--{name}", value)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run_program(script("precompute_latents").main, [*arguments, *more], monkeypatch)


@pytest.fixture(scope="module")
def cache(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "made"
    assert precompute(recipe, output=folder) == 0
    return folder


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path) for path in sorted(folder.glob("*.npy"))}


def of_kind(folder: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(latents, style statistics) of all shards together."""
    return tuple(
        np.concatenate(
            [array for name, array in arrays(folder).items() if name.startswith(kind) and part in name]
        )
        for part in SHAPES
    )


def same_arrays(a: Path, b: Path) -> bool:
    one, other = arrays(a), arrays(b)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_photos_may_be_scaled_to_a_side_of_their_own(
    cache: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    assert precompute(recipe, output=tmp_path / "other", photo_short_side=48) == 0
    one, other = arrays(cache), arrays(tmp_path / "other")
    same = {name: np.array_equal(one[name], other[name]) for name in one}
    assert one.keys() == other.keys() and all(
        equal == name.startswith("paintings") for name, equal in same.items()
    )


# What a cache holds


def test_a_cache_is_shards_of_every_crop_and_its_mirror_image(cache: Path) -> None:
    shards = {"paintings_00000": 2, "paintings_00001": 2, "photos_00000": 2, "photos_00001": 1}
    expected = {
        f"{shard}_{part}.npy": (ROWS * n, *shape)
        for shard, n in shards.items()
        for part, shape in SHAPES.items()
    }
    assert {name: array.shape for name, array in arrays(cache).items()} == expected
    assert {path.name for path in cache.iterdir()} == {
        *expected,
        *(f"{shard}.json" for shard in shards),
        "cache.json",
    }
    assert {array.dtype.name for array in arrays(cache).values()} == {"float16"}
    assert all(
        np.isfinite(array).all() and len(np.unique(array, axis=0)) == len(array)
        for array in arrays(cache).values()
    )


def test_a_cache_says_what_made_it_and_what_is_in_it(cache: Path, recipe: dict[str, Any]) -> None:
    meta, shard = (json.loads((cache / f"{name}.json").read_text()) for name in ("cache", "paintings_00001"))
    assert meta["pictures"]["paintings"] == [
        "part0/000.png",
        "part0/002.png",
        "part1/001.png",
        "part1/003.png",
    ]
    assert shard == {"pictures": ["part1/001.png", "part1/003.png"], "unreadable": []}
    assert (meta["rows_per_picture"], meta["pictures_per_shard"]) == (ROWS, 2)
    assert (meta["made_by"]["photos"], meta["made_by"]["size"], meta["made_by"]["seed"]) == (
        str(recipe["photos"]),
        32,
        0,
    )
    assert set(meta["made_by"]["encoders"]) == {"first stage", "style network"}


def test_cached_latents_are_what_the_first_stage_gives(cache: Path, recipe: dict[str, Any]) -> None:
    folder = PictureFolder(recipe["photos"], 32, 36, flip=False, validation_share=0.0)
    torch.manual_seed(mixed_seed(0, 2))  # the third picture's
    image = folder.read(2)
    crop = torch.from_numpy(np.stack([folder.crop(image) for _ in range(2)]))[1:].permute(0, 3, 1, 2)
    model, stored = tiny_model(use_ema=False).eval(), of_kind(cache, "photos")
    with torch.no_grad():
        for row, x in ((2 * ROWS + 1, crop), (2 * ROWS + 3, crop.flip(3))):
            expected = model.encode_first_stage(x).mode()[0].numpy(), model.get_style_statistics(x)[0].numpy()
            for array, values in zip(stored, expected):
                np.testing.assert_allclose(array[row], values, atol=0.05 * values.std())  # bf16


@pytest.mark.parametrize(
    "options", [{"num_workers": 1}, {"pictures_per_shard": 3}, {"pictures_per_shard": 256}], ids=str
)
def test_rows_do_not_depend_on_how_they_are_made(
    cache: Path, recipe: dict[str, Any], tmp_path: Path, options: dict[str, int]
) -> None:
    assert precompute(recipe, output=tmp_path / "cache", **options) == 0
    for kind in KINDS:
        assert all(map(np.array_equal, of_kind(tmp_path / "cache", kind), of_kind(cache, kind)))


def test_another_seed_makes_other_crops(cache: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    assert precompute(recipe, output=tmp_path / "cache", seed=1) == 0
    assert not same_arrays(tmp_path / "cache", cache)


# Stopping, and sharing the work


def after(reads: int, error: BaseException) -> Callable[[PictureFolder, int], Image.Image]:
    """PictureFolder.read that raises this error instead of the n-th picture."""
    read, left = PictureFolder.read, iter(range(reads))

    def interrupted(folder: PictureFolder, index: int) -> Image.Image:
        if next(left, None) is None:
            raise error
        return read(folder, index)

    return interrupted


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("power cut")], ids=lambda error: type(error).__name__
)
def test_a_stopped_run_goes_on_to_the_same_arrays(
    cache: Path, recipe: dict[str, Any], tmp_path: Path, monkeypatch, error: BaseException
) -> None:
    with monkeypatch.context() as stop, suppress(RuntimeError):
        stop.setattr(PictureFolder, "read", after(3, error))
        precompute(recipe, output=tmp_path / "cache")
    assert [path.name for path in sorted((tmp_path / "cache").glob("*_0000?.json"))] == [
        "paintings_00000.json"
    ]
    with pytest.raises(
        UserError, match="1 of 2 shards of paintings are done; run artfusion cache again to finish"
    ):
        CachedHybridTrain(str(tmp_path / "cache"))
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("paintings_00000*")}
    assert precompute(recipe, output=tmp_path / "cache") == 0
    assert same_arrays(tmp_path / "cache", cache)
    assert done == {path: path.stat().st_mtime_ns for path in done}, "made again"


def test_a_stop_between_a_shards_files_leaves_it_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, replace = (
        LatentCache.create(tmp_path / "cache", {}, {kind: ["a.png"] for kind in KINDS}, ROWS, 2),
        os.replace,
    )

    def interrupted(old: Path, new: Path) -> None:
        if "style" in str(new):
            raise OSError("power cut")
        replace(old, new)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(OSError, match="power cut"):
        store.write("photos", 0, *(np.zeros((ROWS, *shape)) for shape in SHAPES.values()), ["a.png"], {})
    assert (store.folder / "photos_00000_latent.npy").exists() and not store.is_done("photos", 0)


def test_a_finished_cache_is_not_made_again(
    cache: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PictureFolder, "read", lambda *args: pytest.fail("made again"))
    assert precompute(recipe, output=cache) == 0


def test_processes_share_the_shards(
    cache: Path, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert precompute(recipe, output=tmp_path / "cache") == 0
        made.append({path.stem for path in (tmp_path / "cache").glob("*_0000?.json")})
        assert rank == 1 or made[0] == {"paintings_00000", "photos_00000"}
    assert made[1] == {"paintings_00000", "paintings_00001", "photos_00000", "photos_00001"}
    assert same_arrays(tmp_path / "cache", cache)


# Pictures that cannot be read


def spoil(recipe: dict[str, Any], *names: str) -> None:
    for name in names:
        kind, _, below = name.partition("/")
        (recipe[kind] / below).write_bytes(b"not a picture")


def test_unreadable_pictures_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = make_recipe(tmp_path)
    spoil(recipe, "paintings/part0/002.png", "photos/part1/001.png")
    recipe["pictures-per-shard"] = 3
    with caplog.at_level(logging.INFO):
        assert precompute(recipe, output=tmp_path / "cache") == 0
    report = caplog.messages[-1]
    assert "complete; 2 pictures could not be read" in report
    assert all(report.count(name) == 1 for name in ("paintings/part0/002.png", "photos/part1/001.png"))
    store = LatentCache(tmp_path / "cache")
    latents, styles, meta = store.read("paintings", 0)
    assert (
        meta["pictures"] == ["part0/000.png", "part1/001.png"]
        and "paintings/part0/002.png: not a picture" in meta["unreadable"][0]
    )
    assert len(latents) == len(styles) == 2 * ROWS
    assert len(CachedHybridTrain(str(tmp_path / "cache"), split="all")) == 3 * ROWS


def test_an_unreadable_picture_does_not_change_the_rows_of_others(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    spoil(recipe, "photos/part0/000.png")
    assert precompute(recipe, output=tmp_path / "cache") == 0
    (recipe["photos"] / "part0/000.png").write_bytes((recipe["paintings"] / "part0/000.png").read_bytes())
    assert precompute(recipe, output=tmp_path / "whole") == 0
    for part, whole in zip(of_kind(tmp_path / "cache", "photos"), of_kind(tmp_path / "whole", "photos")):
        assert np.array_equal(part, whole[ROWS:])


def test_an_unreadable_picture_alone_in_its_shard_is_left_out(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, photos=3)
    spoil(recipe, "photos/part1/001.png")  # the last of three, in shards of two
    assert precompute(recipe, output=tmp_path / "cache") == 0
    assert CachedHybridTrain(str(tmp_path / "cache"), split="all").photos.pictures == 2


def test_unreadable_pictures_of_one_name_in_both_folders_are_two(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(tmp_path)
    spoil(recipe, "paintings/part0/000.png", "photos/part0/000.png")
    with caplog.at_level(logging.INFO):
        assert precompute(recipe, output=tmp_path / "cache") == 0
    assert "2 pictures could not be read" in caplog.messages[-1]
    assert all(f"{kind}/part0/000.png" in caplog.messages[-1] for kind in KINDS)


def test_a_folder_of_unreadable_pictures_is_a_user_error(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = make_recipe(tmp_path, photos=2)
    spoil(recipe, "photos/part0/000.png", "photos/part1/001.png")
    assert precompute(recipe, output=tmp_path / "cache") == 2
    assert "none of the photos could be read" in capsys.readouterr().err


# What does not fit


@pytest.mark.parametrize(
    "change, problem",
    [
        (["--crops", "3"], "made with other options, weights or pictures"),
        (["--seed", "1"], "made with other options, weights or pictures"),
        (["--pictures-per-shard", "3"], "made with other options, weights or pictures"),
        (["--crops", "0"], "--crops: expected a whole number between 1 and"),
        (["--pictures-per-shard", "0"], "--pictures-per-shard: expected a whole number between 1 and"),
        (["--size", "33"], "--size must be a multiple of 16"),
        (["--photos", "nowhere"], "nowhere: no such folder"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["model.params.first_stage_config.params.ckpt_path=null"], "first stage has no ckpt_path"),
        (["model.params.first_stage_config.params.ckpt_path=nowhere.ckpt"], "nowhere.ckpt: no such file"),
        (["model.params=null"], "not the config of a style transfer model"),
    ],
)
def test_what_does_not_fit_a_cache_is_refused(
    cache: Path, recipe: dict[str, Any], capsys, change: list[str], problem: str
) -> None:
    before = {path: path.read_bytes() for path in cache.iterdir()}
    assert precompute(recipe | {"output": cache}, *change) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and problem in line
    assert {path: path.read_bytes() for path in cache.iterdir()} == before


def test_other_weights_need_a_new_cache(
    cache: Path, recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_safetensors(tiny_model(seed=1, use_ema=False).state_dict(), tmp_path / "other.safetensors")
    for key in ("vgg_ckpt_path", "first_stage_config.params.ckpt_path"):
        assert (
            precompute(recipe | {"output": cache}, f"model.params.{key}={tmp_path / 'other.safetensors'}")
            == 2
        )
        assert "made with other options, weights or pictures" in capsys.readouterr().err


def edited(cache: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the cache whose `cache.json` is changed."""
    shutil.copytree(cache, folder)
    meta = json.loads((folder / "cache.json").read_text())
    change(meta)
    (folder / "cache.json").write_text(json.dumps(meta))
    return folder


def test_new_pictures_need_a_new_cache(
    cache: Path, recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = edited(cache, tmp_path / "cache", lambda meta: meta["pictures"]["photos"].pop())
    assert precompute(recipe, output=other) == 2
    assert "made with other options, weights or pictures" in capsys.readouterr().err


def test_a_cache_of_an_older_layout_is_refused(cache: Path, tmp_path: Path) -> None:
    old = edited(cache, tmp_path / "cache", lambda meta: meta.pop("format"))
    with pytest.raises(
        UserError, match="a latent cache of an older layout; make it anew with artfusion cache"
    ):
        CachedHybridTrain(str(old))


@torch.no_grad()
def model_with_other(part: str) -> torch.nn.Module:
    """The tiny model with one changed weight in this part, and its style network loaded."""
    model = tiny_model(use_ema=False)
    model.vgg.has_weights = True
    if part:
        next(model.get_submodule(part).parameters()).add_(1)
    return model


@pytest.mark.parametrize(
    "part, name",
    [
        ("first_stage_model.encoder", "first stage"),
        ("first_stage_model.quant_conv", "first stage"),
        ("vgg", "style network"),
    ],
)
def test_only_the_encoders_that_made_a_cache_fit_it(cache: Path, part: str, name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"made with other weights of the {name} than the config's; make the cache anew"
    ):
        CachedHybridTrain(str(cache), split="all").check_model(model_with_other(part))


@pytest.mark.parametrize(
    "part", ["", "model", "first_stage_model.decoder", "first_stage_model.post_quant_conv"]
)
def test_what_a_cache_does_not_need_may_be_another(cache: Path, part: str) -> None:
    CachedHybridTrain(str(cache), split="all").check_model(model_with_other(part))


@pytest.mark.parametrize(
    "content, problem", [(None, "no latent cache there; make one with"), ("{", "not readable")]
)
def test_a_folder_that_is_no_cache_is_a_user_error(tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "cache.json").write_text(content)
    with pytest.raises(UserError, match=problem):
        CachedHybridTrain(str(tmp_path))


# Samples


def test_samples_come_from_the_cache_with_flags_as_drawn(cache: Path) -> None:
    data = CachedHybridTrain(str(cache), split="all", style_drop=0.3, content_drop=0.2, photo_share=0.4)
    stored = {kind: {array.tobytes() for array in of_kind(cache, kind)[0]} for kind in KINDS}
    torch.manual_seed(0)
    samples = [data[i % len(data)] for i in range(2000)]
    assert len(data) == 16 and data.pictures == 7
    assert samples[0]["latent"].shape == (4, 2, 2) and samples[0]["style"].shape == (40,)
    style_off, content_off, photos_with_style = shares(
        samples, lambda s: s["latent"].numpy().tobytes() in stored["photos"]
    )
    assert (
        abs(style_off - 0.3) < 0.05
        and abs(content_off - 0.2) < 0.04
        and abs(photos_with_style - 0.7 * 0.4) < 0.05
    )
    assert all(s["latent"].numpy().tobytes() in stored["photos"] for s in samples if not s["style_flag"])


def test_the_parts_of_a_cached_sample_belong_together(cache: Path) -> None:
    rows = {}
    for kind in KINDS:
        names = [
            name
            for name in json.loads((cache / "cache.json").read_text())["pictures"][kind]
            for _ in range(ROWS)
        ]
        rows |= {
            latent.tobytes(): (style.tobytes(), name)
            for latent, style, name in zip(*of_kind(cache, kind), names)
        }
    data = CachedHybridTrain(str(cache), split="all", style_drop=0.5)
    for sample in (data[i % len(data)] for i in range(50)):
        assert rows[sample["latent"].numpy().tobytes()] == (sample["style"].numpy().tobytes(), sample["path"])


def test_a_cached_split_keeps_all_crops_of_a_picture_together(cache: Path) -> None:
    train, validation = (
        CachedHybridTrain(str(cache), split=split, validation_share=0.5) for split in ("train", "validation")
    )
    for kind, count in (("paintings", 4), ("photos", 3)):
        one, other = (
            [rows[i] for i in range(len(rows))] for rows in (getattr(train, kind), getattr(validation, kind))
        )
        names = [[row["path"] for row in rows] for rows in (one, other)]
        assert not set(names[0]) & set(names[1]) and Counter(sum(names, [])) == dict.fromkeys(
            {*names[0], *names[1]}, ROWS
        )
        assert len({row["latent"].numpy().tobytes() for row in one + other}) == ROWS * count


def test_a_cached_split_is_that_of_the_folder(cache: Path, recipe: dict[str, Any]) -> None:
    cached = CachedHybridTrain(str(cache), split="validation", validation_share=0.5).paintings
    folder = PictureFolder(recipe["paintings"], 32, split="validation", validation_share=0.5)
    names = [path.relative_to(recipe["paintings"]).as_posix() for path in folder.paths]
    assert list(dict.fromkeys(cached[i]["path"] for i in range(len(cached)))) == names


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"split": "test"}, "split must be one of"),
        (
            {"split": "validation", "validation_share": 0.0},
            "leave none for validation; add some, change validation_share",
        ),
        ({"photo_share": 2.0}, "photo_share must be between 0 and 1"),
    ],
)
def test_options_of_a_cached_set_are_checked(cache: Path, options: dict, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        CachedHybridTrain(str(cache), **options)
