"""main.py: the three recipes of the bundled model run from folders of pictures to a checkpoint that the pipeline loads."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from PIL import Image
from pipeline_builders import FIRST_STAGE, MODEL, model_config, picture, picture_folder, run_program, save_config, script

from ldm.data.datamodule import DataModuleFromConfig
from ldm.errors import CheckpointError, ConfigError, UserError
from ldm.lr_scheduler import LambdaWarmUpCosineScheduler
from ldm.modules.losses.lpips import vgg16
from ldm.pipeline import StyleTransferPipeline
from ldm.training.train import build, build_trainer, main, merged_config, parse_args

QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 1,
}
LOSS = {"target": "ldm.modules.losses.contperceptual.LPIPSWithDiscriminator", "params": {"disc_start": 0, "disc_factor": 0.0, "perceptual_weight": 0.0}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pictures")
    return {"paintings": picture_folder(root / "paintings", 5), "photos": picture_folder(root / "photos", 4, seed=50)}


def picture_data(pictures: dict[str, Path]) -> dict[str, Any]:
    node = {"target": "ldm.data.pictures.PictureFolder", "params": {"roots": [str(p) for p in pictures.values()], "size": 32}}
    validation = {**node, "params": {**node["params"], "split": "all"}}
    return data_module({**node, "params": {**node["params"], "validation_share": 0.0}}, validation)


def data_module(train: dict[str, Any], validation: dict[str, Any]) -> dict[str, Any]:
    return {"target": "main.DataModuleFromConfig", "params": {"batch_size": 4, "num_workers": 0, "train": train, "validation": validation}}


def hybrid_data(pictures: dict[str, Path]) -> dict[str, Any]:
    node = {
        "target": "ldm.data.wikiart.HybridTrain",
        "params": {"style_root": str(pictures["paintings"]), "content_root": str(pictures["photos"]), "size": 32, "split": "all"},
    }
    return data_module(node, node)


def logger_node(**params: Any) -> dict[str, Any]:
    return {"images": {"target": "main.ImageLogger", "params": {"max_images": 2, **params}}}


def recipe(path: Path, model: dict[str, Any], data: dict[str, Any], steps: int = 2, callbacks: dict[str, Any] | None = None, **trainer: Any) -> Path:
    lightning = {"trainer": {"max_steps": steps, "log_every_n_steps": 1, **QUIET, **trainer}, "callbacks": callbacks or {}}
    return save_config({"model": {"learning_rate": 1e-3, **model}, "data": data, "lightning": lightning}, path)


def train(config: Path, *options: Any, name: str | None = None) -> Path:
    """Run the training command; the run's folder."""
    named = ["--name", name] if name else []
    main(["--base", str(config), "--basedir", str(config.parent / "logs"), *named, *map(str, options)])
    return config.parent / "logs" / (name or config.stem)


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def equal_weights(a: Path, b: Path) -> bool:
    one, other = last(a)["state_dict"], last(b)["state_dict"]
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logged(run: Path, column: str) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


# The three recipes, one after the other


@pytest.fixture(scope="module")
def first_stage(pictures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = {**FIRST_STAGE, "params": {**FIRST_STAGE["params"], "lossconfig": LOSS}}
    config = recipe(tmp_path_factory.mktemp("first") / "first.yaml", model, picture_data(pictures), callbacks=logger_node(batch_frequency=2))
    return train(config)


@pytest.fixture(scope="module")
def style_network(pictures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("style")
    torch.manual_seed(0)
    torch.save(vgg16().state_dict(), folder / "teacher.pt")
    params = {"vgg_channels": MODEL["params"]["vgg_channels"], "teacher_ckpt_path": str(folder / "teacher.pt"), "total_steps": 10}
    model = {"target": "ldm.models.style_distillation.StyleDistiller", "params": params}
    return train(recipe(folder / "style.yaml", model, picture_data(pictures), val_check_interval=1))


@pytest.fixture(scope="module")
def trained_parts(first_stage: Path, style_network: Path) -> dict[str, Any]:
    """The `model` node of the diffusion model on the two trained parts."""
    node = model_config(vgg_ckpt_path=str(style_network / "checkpoints/last.ckpt"), scale_by_std=True)
    node["params"]["first_stage_config"]["params"]["ckpt_path"] = str(first_stage / "checkpoints/last.ckpt")
    node["params"]["unet_config"]["params"]["dropout"] = 0.2  # tells training from evaluation
    return node


@pytest.fixture(scope="module")
def diffusion_config(pictures: dict[str, Path], trained_parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe(tmp_path_factory.mktemp("diffusion") / "diffusion.yaml", trained_parts, hybrid_data(pictures))


@pytest.fixture(scope="module")
def diffusion(diffusion_config: Path) -> Path:
    return train(diffusion_config)


def test_the_first_stage_trains(first_stage: Path) -> None:
    assert last(first_stage)["global_step"] == 2
    assert len(logged(first_stage, "train/rec_loss")) == 2 and all(map(math.isfinite, logged(first_stage, "train/rec_loss")))


def test_the_style_network_trains_towards_its_teacher(style_network: Path) -> None:
    assert last(style_network)["global_step"] == 2
    teacher = torch.load(style_network.parents[1] / "teacher.pt", weights_only=True)
    state = last(style_network)["state_dict"]
    assert all(torch.equal(state[f"teacher.{name}"], value) for name, value in teacher.items())
    assert len(logged(style_network, "val/slice5")) == 2


def test_the_diffusion_model_trains_on_both_parts(diffusion: Path, first_stage: Path, style_network: Path) -> None:
    state = last(diffusion)["state_dict"]
    for prefix, source, name in (("first_stage_model.", first_stage, "encoder.conv_out.weight"), ("vgg.", style_network, "student.slice5.28.weight")):
        frozen = last(source)["state_dict"][name]
        assert torch.equal(state[prefix + name.removeprefix("student.")], frozen)
    assert last(diffusion)["global_step"] == 2 and all(map(math.isfinite, logged(diffusion, "train/loss_simple")))


def test_averages_follow_the_weights(diffusion: Path) -> None:
    state = last(diffusion)["state_dict"]
    live, shadow = state["model.diffusion_model.out.conv.weight"], state["model_ema.diffusion_modeloutconvweight"]
    assert state["model_ema.num_updates"] == 2 and live.any() and shadow.any() and not torch.equal(live, shadow)


def test_the_latents_scale_is_set_from_the_first_batch(diffusion: Path) -> None:
    state = last(diffusion)["state_dict"]
    assert state["scale_factors"].shape == (4,) and state["scale_factors"].ne(1).all() and state["shift_values"].ne(0).all()


def test_the_pipeline_loads_what_training_wrote(diffusion: Path, diffusion_config: Path) -> None:
    pipeline = StyleTransferPipeline.from_pretrained(diffusion / "checkpoints/last.ckpt", diffusion_config, device="cpu")
    assert pipeline(picture(48, 32), picture(32, 32, 1), size=32, steps=2).size == (48, 32)


def test_training_on_cached_latents(
    pictures: dict[str, Path], trained_parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = {"target": "ldm.data.cached.CachedHybridTrain", "params": {"cache": str(tmp_path / "cache"), "split": "all"}}
    config = recipe(tmp_path / "cached.yaml", trained_parts, data_module(cached, cached))
    options = {"config": config, "output": tmp_path / "cache", "size": 32, "short-side": 36, **pictures}
    call = [text for name, value in options.items() for text in (f"--{name}", value)]
    assert run_program(script("precompute_latents").main, call, monkeypatch) == 0
    monkeypatch.setattr("ldm.models.autoencoder.AutoencoderKL.encode", lambda *args: pytest.fail("encoded again"))
    assert last(train(config))["global_step"] == 2


# A run's folder, and going on with it


def test_a_run_keeps_the_config_it_was_made_with(first_stage: Path) -> None:
    (saved,) = first_stage.glob("config_*.yaml")
    assert OmegaConf.load(saved) == OmegaConf.load(first_stage.parents[1] / "first.yaml")


def test_a_checkpoint_resumes_with_its_optimiser(diffusion: Path, diffusion_config: Path) -> None:
    checkpoint = diffusion / "checkpoints/last.ckpt"
    resumed = last(train(diffusion_config, "--resume", checkpoint, "lightning.trainer.max_steps=3", name="resumed"))
    assert resumed["global_step"] == 3
    assert {int(state["step"]) for state in resumed["optimizer_states"][0]["state"].values()} == {3}
    assert resumed["state_dict"]["model_ema.num_updates"] == 3
    assert torch.equal(resumed["state_dict"]["scale_factors"], last(diffusion)["state_dict"]["scale_factors"])


def test_the_last_checkpoint_is_that_of_the_last_run(diffusion_config: Path) -> None:
    for steps in (2, 1):
        run = train(diffusion_config, f"lightning.trainer.max_steps={steps}", name="rerun")
        assert last(run)["global_step"] == steps


@pytest.mark.parametrize("content, problem", [(None, "no such file"), (b"<html>", "web page"), (b"", "empty")])
def test_a_checkpoint_that_cannot_resume_is_refused(diffusion_config: Path, tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        train(diffusion_config, "--resume", tmp_path / "a.ckpt")


def test_a_checkpoint_of_another_model_is_refused(diffusion_config: Path, first_stage: Path) -> None:
    with pytest.raises(CheckpointError, match="--resume .* does not fit DualCondLDM"):
        train(diffusion_config, "--resume", first_stage / "checkpoints/last.ckpt")


def test_the_same_seed_trains_the_same_model(diffusion: Path, diffusion_config: Path) -> None:
    again, other = train(diffusion_config, name="again"), train(diffusion_config, "--seed", 1, name="other")
    assert equal_weights(again, diffusion) and not equal_weights(other, diffusion)


# Pictures while it trains


def test_pictures_do_not_change_the_training(diffusion: Path, diffusion_config: Path) -> None:
    node = "{target: main.ImageLogger, params: {batch_frequency: 1, max_images: 2, log_images_kwargs: {ddim_steps: 2}}}"
    watched = train(diffusion_config, f"lightning.callbacks.images={node}", name="watched")
    assert sorted(path.name for path in (watched / "images").iterdir()) == [
        f"{name}_0000000{step}.png" for name in ("neighbours_style", "reconstructions") for step in (1, 2)
    ]
    assert equal_weights(watched, diffusion)


def test_pictures_stand_side_by_side(first_stage: Path) -> None:
    with Image.open(first_stage / "images/inputs_00000002.png") as grid:
        assert grid.size == (2 * 34 + 2, 32 + 4)  # two pictures of 32 pixels with 2 between and around


@pytest.mark.parametrize(
    "options, expected", [({"batch_frequency": 5}, [1, 2, 4, 5, 10]), ({"batch_frequency": 5, "increase_log_steps": False}, [5, 10])]
)
def test_pictures_come_often_at_first(options: dict[str, Any], expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    from main import ImageLogger

    class Trainer:
        is_global_zero, fit_loop = True, type("Loop", (), {"total_batch_idx": 0})()

    written, trainer = [], Trainer()
    monkeypatch.setattr(ImageLogger, "write", lambda self, trainer, module, batch, done: written.append(done))
    callback = ImageLogger(**options)
    for index in range(11):
        trainer.fit_loop.total_batch_idx = index
        callback.on_train_batch_end(trainer, None, None, None, index)
    assert written == expected


# The command's config


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    one = save_config({"model": {"a": 1, "b": 1, "c": 1}, "data": {}}, tmp_path / "one.yaml")
    other = save_config({"model": {"b": 2, "c": 2}}, tmp_path / "other.yaml")
    config = merged_config([str(one), str(other)], ["model.c=3", "data.x=[1,2]"])
    assert OmegaConf.to_container(config) == {"model": {"a": 1, "b": 2, "c": 3}, "data": {"x": [1, 2]}}


@pytest.mark.parametrize(
    "arguments",
    [
        "--base one.yaml other.yaml a.b=1 c.d=2",
        "a.b=1 --base one.yaml other.yaml --seed 3 c.d=2",
        "--name x a.b=1 c.d=2 --base one.yaml other.yaml",
    ],
)
def test_overrides_may_stand_anywhere(arguments: str) -> None:
    args = parse_args(arguments.split())
    assert (sorted(args.overrides), args.base) == (["a.b=1", "c.d=2"], ["one.yaml", "other.yaml"])


def test_a_config_file_may_have_an_equals_sign_in_its_name(tmp_path: Path) -> None:
    path = save_config({}, tmp_path / "lr=3.yaml")
    assert parse_args(["--base", str(path), "a.b=1"]).base == [str(path)]
    with pytest.raises(UserError, match="--base names no config file"):
        parse_args(["--base", "a.b=1"])


@pytest.mark.parametrize("key", ["learning_rate", "base_learning_rate"])
def test_the_learning_rate_of_the_model_node_is_used(diffusion_config: Path, key: str) -> None:
    config = merged_config([str(diffusion_config)])
    del config.model.learning_rate
    config.model[key] = 0.0125
    model, data = build(config)
    assert model.configure_optimizers().defaults["lr"] == 0.0125 and isinstance(data, DataModuleFromConfig)


def test_the_trainer_takes_the_configs_options(diffusion_config: Path, tmp_path: Path) -> None:
    overrides = ["lightning.trainer.max_steps=7", "lightning.trainer.gradient_clip_val=0.5", "lightning.modelcheckpoint.params.every_n_train_steps=3"]
    trainer = build_trainer(merged_config([str(diffusion_config)], overrides), tmp_path)
    assert (trainer.max_steps, trainer.gradient_clip_val, trainer.checkpoint_callback._every_n_train_steps) == (7, 0.5, 3)


@pytest.mark.parametrize("trainer", ["lightning=null", "lightning.trainer=null", "lightning.callbacks=null"])
def test_sections_of_the_trainer_may_be_null(diffusion_config: Path, tmp_path: Path, trainer: str) -> None:
    assert isinstance(build_trainer(merged_config([str(diffusion_config)], [trainer]), tmp_path), pl.Trainer)


@pytest.mark.parametrize(
    "override, problem",
    [
        ("modle.target=x", "unknown config key 'modle'; the top level has model, data, lightning"),
        ("lightning.trainr.max_steps=1", "unknown config key 'lightning.trainr'"),
        ("lightning.trainer.max_step=1", "has no parameter 'max_step'; did you mean max_steps"),
        ("lightning.modelcheckpoint.params.save_lst=true", "did you mean save_last"),
        ("lightning.callbacks.x={target: os.system}", "'os.system' is not under"),
        ("lightning.trainer.precision=fp7", "Precision 'fp7' is invalid"),
        ("lightning.trainer=[1]", "cannot be merged"),
        ("lightning=3", "`lightning` must be names with values"),
        ("max_steps", "'max_steps' is not an override; write key.sub=value"),
        ("model.x=[1", "not valid YAML"),
        ("model=null", "needs a `target` key"),
        ("model.params.embed=3", "DualCondLDM has no parameter 'embed'"),
        ("model.target=pytorch_lightning.LightningDataModule", "LightningDataModule has no parameter"),
        ("model.learning_rate=fast", "model.learning_rate must be a positive number, got 'fast'"),
        ("model.learning_rate=0", "model.learning_rate must be a positive number"),
        ("model.params.first_stage_config.params.ckpt_path=nowhere.ckpt", "nowhere.ckpt: no such file"),
        ("data=null", "needs a `target` key"),
        ("data={target: torch.nn.SiLU, params: null}", "it must be a LightningDataModule"),
        ("data.params.batch_size=0", "batch_size must be a whole number"),
        ("data.params.train=null", "no `train` data set"),
        ("data.params.train.params.style_root=nowhere", "nowhere: no such folder of pictures"),
        ("data.params.validation.params.content_root=nowhere", "nowhere: no such folder of pictures"),
        ("data.params.train.params.styl_size=3", "did you mean style_size"),
    ],
)
def test_a_wrong_config_is_a_user_error(diffusion_config: Path, tmp_path: Path, override: str, problem: str) -> None:
    config = OmegaConf.load(diffusion_config)
    if override.startswith("data={"):
        config.data = {}
    with pytest.raises(UserError, match=problem):
        train(save_config(config, tmp_path / "a.yaml"), override)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("missing", ["model", "data"])
def test_a_config_needs_a_model_and_data(diffusion_config: Path, tmp_path: Path, missing: str) -> None:
    config = OmegaConf.load(diffusion_config)
    del config[missing]
    with pytest.raises(ConfigError, match=f"no `{missing}` section"):
        train(save_config(config, tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--gpus", "first"], "--gpus takes numbers such as 0,1"),
        (["--gpus", "0"], "the trainer cannot be set up"),
        (["--seed", "-1"], "--seed must be between 0 and"),
        (["--seed", "4294967296"], "--seed must be between 0 and"),
        (["--sede", "1"], "--sede"),
    ],
)
def test_a_wrong_option_is_a_user_error(diffusion_config: Path, options: list[str], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=problem):
        train(diffusion_config, *options)


def test_a_missing_config_is_one_line_and_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run_program(main, ["--base", "nowhere.yaml"], monkeypatch) == 2
    assert capsys.readouterr().err == "error: config nowhere.yaml: no such file\n"


def test_allowed_targets_reach_data_sets_and_models(diffusion_config: Path) -> None:
    with pytest.raises(ConfigError, match="--allow-target"):
        train(diffusion_config, "data.params.train.target=builders.Data")
    with pytest.raises(ConfigError, match="No module named 'not_there'|has no 'Data'"):
        train(diffusion_config, "data.params.train.target=not_there.Data", "--allow-target", "not_there")


# Learning-rate schedule


@pytest.mark.parametrize("step, factor", [(0, 0.1), (5, 0.55), (10, 1.0), (60, 0.6), (110, 0.2), (1000, 0.2)])
def test_the_learning_rate_warms_up_then_falls_as_a_half_cosine(step: int, factor: float) -> None:
    schedule = LambdaWarmUpCosineScheduler(10, 110, lr_min=0.2, lr_start=0.1).schedule
    assert schedule(step) == pytest.approx(factor)
