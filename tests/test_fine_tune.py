"""`artfusion train --from`: a model fine-tuned on a folder of paintings, by the clock."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pipeline_builders import (
    ROOT,
    assert_refused,
    everything_in,
    largest_difference,
    paintings_and_photos,
    picture,
    picture_folder,
    run_program,
    save_config,
)
from training_builders import data_module, diffusion_node, last, recipe

from ldm.checkpoint.reading import read_state_dict
from ldm.cli import fine_tune, train
from ldm.config.merge import merged_config
from ldm.data.wikiart import CrossPairs
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings
from ldm.training import FINISHED
from ldm.util import instantiate_from_config

Run = Callable[..., int]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return paintings_and_photos(tmp_path, paintings=6)


@pytest.fixture
def run(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command on the bundled weights, with more options; the exit code."""
    given = {"from": "mini", "paintings": folders["paintings"], "output": tmp_path / "mine"}

    def command(*more: Any, **changes: Any) -> int:
        options = [
            text
            for name, value in {**given, **changes}.items()
            if value is not None
            for text in (f"--{name}", value)
        ]
        return run_program(train.main, [*options, *more], monkeypatch)

    return command


@pytest.fixture
def tiny_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe for a tiny model instead of the bundled one; the weights to start from."""
    node = diffusion_node(tmp_path)
    torch.manual_seed(0)
    torch.save(instantiate_from_config(node).state_dict(), tmp_path / "start.pt")
    save_config({"model": node}, tmp_path / "tiny.yaml")
    budget = {"target": "ldm.training.budget.TimeBudget", "params": {"hours": 1.0}}
    pairs = {
        "target": "ldm.data.wikiart.CrossPairs",
        "params": {"size": 32, "variants": 2, "validation_share": 0},
    }
    recipe(
        tmp_path / "recipe.yaml",
        {**node, "target": "ldm.models.diffusion.cross_pairs.CrossPairLDM"},
        data_module(pairs),
        steps=-1,
        max_epochs=-1,
        callbacks={"budget": budget},
    )
    monkeypatch.setattr(fine_tune, "CONFIG", str(tmp_path / "recipe.yaml"))
    monkeypatch.setattr(fine_tune, "MODEL_CONFIG", str(tmp_path / "tiny.yaml"))
    monkeypatch.setattr(fine_tune, "SETTINGS", Settings(look="sampled", size=32, steps=2))
    return tmp_path / "start.pt"


def test_it_trains_and_writes_weights_that_paint_and_a_sheet(
    run: Run, tiny_recipe: Path, folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert run("--photos", folders["photos"], "--minutes", "0.001", **{"from": tiny_recipe}) == 0
    result = tmp_path / "mine/model.safetensors"
    pipeline = StyleTransferPipeline.from_pretrained(result, device="cpu")
    assert pipeline(picture(48, 32), picture(32, 32, 1), look="sampled", size=32, steps=2).size == (48, 32)
    assert not [name for name in read_state_dict(result) if name.startswith("vgg.")]
    with Image.open(tmp_path / "mine/before_after.png") as sheet:
        assert sheet.height > 6 * 256 and 4 * 256 < sheet.width < 5 * 256
    assert f"--checkpoint {result} --content" in caplog.messages[-1]
    assert "only 6 paintings" in caplog.text
    # once more: what is trained stays as it is
    before = last(tmp_path / "mine")["global_step"]
    assert run("--photos", folders["photos"], **{"from": tiny_recipe}) == 0
    assert last(tmp_path / "mine")["global_step"] == before
    assert f"trained already; for more, train --from {result}" in caplog.text


def test_a_stopped_run_goes_on_by_the_same_command(
    run: Run, tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tmp_path / "mine"
    assert run("lightning.trainer.max_steps=2", **{"from": tiny_recipe}) == 130
    assert "stopped; the same command goes on" in caplog.text
    assert last(mine)["global_step"] == 2 and not (mine / "model.safetensors").exists()
    assert run("--minutes", "0.0001", **{"from": tiny_recipe}) == 0
    assert last(mine)["global_step"] > 2 and (mine / FINISHED).exists()
    assert (mine / "model.safetensors").exists()


def test_a_dry_run_writes_nothing(run: Run, tiny_recipe: Path, tmp_path: Path) -> None:
    assert run("--dry-run", **{"from": tiny_recipe}) == 0
    assert not (tmp_path / "mine").exists()


def test_the_recipe_trains_on_these_pictures_and_some_by_others(tmp_path: Path) -> None:
    odd = picture_folder(tmp_path / "a: b, #1 {c}", 5)
    args = train.parse_args(
        [*"--from mini --minutes 30".split(), "--paintings", str(odd), "--output", str(tmp_path / "mine")]
    )
    options = fine_tune.training_of(args)
    config = merged_config(options.base, options.overrides)
    data = CrossPairs(**OmegaConf.to_container(config.data.params.train.params, resolve=True))
    names = {path.name for path in data.paintings.paths}
    assert {path.name for path in odd.rglob("*.png")} < names
    assert {path.name for path in (ROOT / "data/styles").iterdir()} < names and len(names) == 12
    assert {path.parent for path in data.photos.paths} == {ROOT / "data/contents"}
    assert config.model.params.ckpt_path == str(ROOT / "checkpoints/mini/model.safetensors")
    assert config.model.params.scheduler_config is None and config.data.params.validation is None
    assert config.lightning.callbacks.budget.params.hours == 0.5
    assert (options.name, options.logdir, options.resume) == ("mine", str(tmp_path), None)


@pytest.mark.parametrize(
    "changes, more, problem",
    [
        ({"from": "minni"}, [], "--from minni: no such file; bundled weights are called mini"),
        ({"paintings": "nowhere"}, [], "nowhere: no such folder of pictures"),
        ({"paintings": None}, [], "--from mini needs --paintings DIR"),
        ({"output": None}, [], "--from mini needs --output DIR"),
        ({}, ["--base", "configs/mini.yaml"], "--base and --from exclude each other"),
        ({}, ["--resume", "logs/mini"], "--resume and --from exclude each other"),
        ({}, ["--logdir", "elsewhere"], "--logdir and --from exclude each other"),
        ({}, ["--minutes", "0"], "--minutes must be above 0, got 0"),
        ({}, ["--minutes", "nan"], "--minutes must be above 0, got nan"),
        ({}, ["--photos", "nowhere"], "nowhere: no such folder of pictures"),
        ({"from": None}, [], "--paintings is of fine-tuning, which needs --from mini"),
        ({"from": None, "base": "configs/mini.yaml"}, [], "--paintings is of fine-tuning"),
    ],
)
def test_bad_input_is_refused_before_weights_are_read(
    run: Run,
    changes: dict[str, Any],
    more: list[str],
    problem: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fine_tune, "fine_tune", lambda args: pytest.fail("begun"))
    before = everything_in(tmp_path)
    assert_refused(run(*more, **changes), capsys.readouterr(), problem)
    assert everything_in(tmp_path) == before


def test_too_few_paintings_are_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    few = picture_folder(tmp_path / "few", 4)
    problem = "few: 4 paintings are too few to train on, give 5 or more"
    assert_refused(run(paintings=few), capsys.readouterr(), problem)
    (tmp_path / "empty").mkdir()
    assert_refused(run(paintings=tmp_path / "empty"), capsys.readouterr(), "empty: no pictures in it")


def test_the_sheet_leaves_out_what_cannot_be_read(tiny: StyleTransferPipeline, tmp_path: Path) -> None:
    photos = sorted(picture_folder(tmp_path / "photos", 2).rglob("*.png"))
    paintings = sorted(picture_folder(tmp_path / "paintings", 9, seed=5).rglob("*.png"))
    settings = Settings(look="sampled", size=32, steps=2)
    whole = fine_tune.before_and_after({"before": tiny, "after": tiny}, photos, paintings, settings)
    assert whole.height > 6 * 256
    columns = [whole.crop((left, 0, left + 256, whole.height)) for left in (4 + 2 * 260, 4 + 3 * 260)]
    below = [column.crop((0, 60, 256, whole.height)) for column in columns]
    assert largest_difference(*below) == 0  # the same seeds
    for path in paintings[:5]:
        path.write_bytes(b"no picture")
    some = fine_tune.before_and_after({"before": tiny, "after": tiny}, photos, paintings, settings)
    assert 4 * 256 < some.height < 5 * 256
