"""main.py: the three recipes of the bundled model run from folders of pictures to a checkpoint that the pipeline loads."""

import logging
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from PIL import Image
from pipeline_builders import (
    FIRST_STAGE,
    MODEL,
    model_config,
    paintings_and_photos,
    picture,
    run_program,
    save_config,
    script,
)
from torch.utils.flop_counter import FlopCounterMode
from training_builders import (
    LOSS,
    QUIET,
    data_module,
    diffusion_node,
    equal_weights,
    files_below,
    hybrid_data,
    last,
    logged,
    logger_node,
    picture_data,
    recipe,
    train,
)

from ldm.cli.train import main
from ldm.config.merge import merged_config
from ldm.data.datamodule import DataModuleFromConfig
from ldm.errors import CheckpointError, ConfigError, UserError
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.modules.losses.lpips import vgg16
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.training.throughput import Throughput
from ldm.training.train import build


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return paintings_and_photos(tmp_path_factory.mktemp("pictures"))


# The three recipes, one after the other


@pytest.fixture(scope="module")
def first_stage(pictures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = {**FIRST_STAGE, "params": {**FIRST_STAGE["params"], "lossconfig": LOSS}}
    config = recipe(
        tmp_path_factory.mktemp("first") / "first.yaml",
        model,
        picture_data(pictures),
        callbacks=logger_node(batch_frequency=2),
    )
    return train(config)


@pytest.fixture(scope="module")
def style_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a style network's weights."""
    path = tmp_path_factory.mktemp("style") / "style.pt"
    torch.manual_seed(0)
    torch.save(vgg16(channels=MODEL["params"]["vgg_channels"]).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def trained_parts(first_stage: Path, style_network: Path) -> dict[str, Any]:
    """The `model` node of the diffusion model on the two trained parts."""
    node = model_config(vgg_ckpt_path=str(style_network), scale_by_std=True)
    node["params"]["first_stage_config"]["params"]["ckpt_path"] = str(first_stage / "checkpoints/last.ckpt")
    node["params"]["unet_config"]["params"]["dropout"] = 0.2  # tells training from evaluation
    return node


@pytest.fixture(scope="module")
def diffusion_config(
    pictures: dict[str, Path], trained_parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return recipe(
        tmp_path_factory.mktemp("diffusion") / "diffusion.yaml", trained_parts, hybrid_data(pictures)
    )


@pytest.fixture(scope="module")
def diffusion(diffusion_config: Path) -> Path:
    return train(diffusion_config)


def test_the_first_stage_trains(first_stage: Path) -> None:
    assert last(first_stage)["global_step"] == 2
    assert len(logged(first_stage, "train/rec_loss")) == 2 and all(
        map(math.isfinite, logged(first_stage, "train/rec_loss"))
    )


def test_the_diffusion_model_trains_on_both_parts(
    diffusion: Path, first_stage: Path, style_network: Path
) -> None:
    state = last(diffusion)["state_dict"]
    styles = torch.load(style_network, weights_only=True)
    for prefix, source, name in (
        ("first_stage_model.", last(first_stage)["state_dict"], "encoder.conv_out.weight"),
        ("vgg.", styles, "slice5.28.weight"),
    ):
        assert torch.equal(state[prefix + name], source[name])
    assert last(diffusion)["global_step"] == 2 and all(
        map(math.isfinite, logged(diffusion, "train/loss_simple"))
    )


def test_averages_follow_the_weights(diffusion: Path) -> None:
    state = last(diffusion)["state_dict"]
    live, shadow = (
        state["model.diffusion_model.out.conv.weight"],
        state["model_ema.diffusion_modeloutconvweight"],
    )
    assert (
        state["model_ema.num_updates"] == 2 and live.any() and shadow.any() and not torch.equal(live, shadow)
    )


def test_the_latents_scale_is_set_from_the_pictures(diffusion: Path) -> None:
    state = last(diffusion)["state_dict"]
    assert (
        state["scale_factors"].shape == (4,)
        and state["scale_factors"].ne(1).all()
        and state["shift_values"].ne(0).all()
    )


def test_the_pipeline_loads_what_training_wrote(diffusion: Path, diffusion_config: Path) -> None:
    pipeline = StyleTransferPipeline.from_pretrained(
        diffusion / "checkpoints/last.ckpt", diffusion_config, device="cpu"
    )
    assert pipeline(picture(48, 32), picture(32, 32, 1), look="sampled", size=32, steps=2).size == (48, 32)


def test_the_log_says_how_fast_training_is_and_what_it_waits_for(diffusion: Path) -> None:
    values = {name: logged(diffusion, name) for name in ("images_per_s", "data_wait", "peak_GB")}
    assert {name: len(column) for name, column in values.items()} == {
        "images_per_s": 2,
        "data_wait": 2,
        "peak_GB": 2,
    }
    assert (
        min(values["images_per_s"]) > 0
        and min(values["peak_GB"]) > 0
        and all(0 <= share < 1 for share in values["data_wait"])
    )


@pytest.fixture
def cached_config(
    pictures: dict[str, Path], trained_parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A recipe for training on a cache, which is made here."""
    cached = {
        "target": "ldm.data.cached.CachedHybridTrain",
        "params": {"cache": str(tmp_path / "cache"), "split": "all"},
    }
    config = recipe(tmp_path / "cached.yaml", trained_parts, data_module(cached, cached))
    options = {
        "config": config,
        "output": tmp_path / "cache",
        "size": 32,
        "short-side": 36,
        "num-workers": 0,
        **pictures,
    }
    call = [text for name, value in options.items() for text in (f"--{name}", value)]
    assert run_program(script("precompute_latents").main, call, monkeypatch) == 0
    return config


def test_training_on_cached_latents(cached_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ldm.models.autoencoder.AutoencoderKL.encode", lambda *args: pytest.fail("encoded again")
    )
    assert last(train(cached_config))["global_step"] == 2


@pytest.mark.parametrize(
    "part, key", [("first stage", "first_stage_config.params.ckpt_path"), ("style network", "vgg_ckpt_path")]
)
def test_a_cache_of_other_weights_is_refused(
    cached_config: Path, tmp_path: Path, part: str, key: str
) -> None:
    config = merged_config([str(cached_config)])
    state = torch.load(OmegaConf.select(config.model.params, key), weights_only=True)
    state = state.get("state_dict", state)
    torch.save(
        {name: value * 1.01 if value.is_floating_point() else value for name, value in state.items()},
        tmp_path / "other.pt",
    )
    with pytest.raises(
        ConfigError,
        match=f"made with other weights of the {part} than the config's; make the cache anew with artfusion cache",
    ):
        train(cached_config, f"model.params.{key}={tmp_path / 'other.pt'}")


class Clock:
    """One second later at every look; `Slow` moves it on by an hour where throughput must not look."""

    now = 0.0

    def perf_counter(self) -> float:
        Clock.now += 1.0
        return Clock.now


class Slow(pl.Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        Clock.now += 3600.0

    on_validation_start = on_train_batch_end


def test_pictures_and_validation_do_not_count_as_time(
    diffusion_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.training.throughput.time", Clock())
    slow = save_config(
        {"lightning": {"callbacks": {"slow": {"target": "test_training.Slow"}}}}, tmp_path / "slow.yaml"
    )
    options = ["lightning.trainer.val_check_interval=1", "--allow-target", "test_training"]
    main(["--base", str(diffusion_config), str(slow), "--logdir", str(tmp_path), "--name", "slow", *options])
    assert min(logged(tmp_path / "slow", "images_per_s")) > 1


def test_on_a_gpu_the_share_of_its_matrix_rate_is_logged(
    diffusion_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_gpu(self: Throughput, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._matrix_rate, self._counter = 1e12, FlopCounterMode(display=False)

    monkeypatch.setattr(Throughput, "on_train_start", on_a_gpu)
    main(
        [
            "--base",
            str(diffusion_config),
            "--logdir",
            str(tmp_path),
            "--name",
            "gpu",
            "lightning.trainer.max_steps=3",
        ]
    )
    shares = logged(tmp_path / "gpu", "matrix_share")
    assert len(shares) == 2 and all(0 < share < 1 for share in shares)  # the first step was for counting


# A config as it was published


def test_a_config_with_the_published_keys_trains_and_leaves_the_checkpoints_it_asks_for(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    logger = {
        "batch_frequency": 2,
        "max_images": 2,
        "clamp": True,
        "rescale": True,
        "increase_log_steps": False,
        "log_on_batch_idx": True,
        "nrow": 8,
    }
    data = {
        "target": "main.DataModuleFromConfig",
        "params": {**hybrid_data(pictures)["params"], "batch_size": 1},
    }
    lightning = {
        "modelcheckpoint": {
            "target": "pytorch_lightning.callbacks.ModelCheckpoint",
            "params": {"save_top_k": 1},
        },
        "modelcheckpoint_step": {"params": {"every_n_train_steps": 2, "save_top_k": -1}},
        "callbacks": {
            "image_logger": {
                "target": "main.ImageLogger",
                "params": {**logger, "log_images_kwargs": {"ddim_steps": 1}},
            }
        },
        "trainer": {"max_epochs": 1, "benchmark": True, **QUIET},
    }
    model = {"base_learning_rate": 1e-3, **diffusion_node(tmp_path, monitor="val/loss")}
    config = save_config({"model": model, "data": data, "lightning": lightning}, tmp_path / "published.yaml")
    main(["--name", "n", "--base", str(config), "--basedir", str(tmp_path / "logs"), "-t", "True"])
    names = {path.name for path in (tmp_path / "logs/n/checkpoints").iterdir()}
    assert names == {"last.ckpt", "epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt", "best-epoch=0-step=5.ckpt"}
    assert sorted({path.stem[-2:] for path in (tmp_path / "logs/n/images").iterdir()}) == ["02", "04"]


# A run's folder, and going on with it


def test_a_run_keeps_the_config_it_was_made_with(first_stage: Path) -> None:
    (saved,) = first_stage.glob("config_*.yaml")
    assert OmegaConf.load(saved) == OmegaConf.load(first_stage.parents[1] / "first.yaml")


def test_a_checkpoint_resumes_with_its_optimiser(diffusion: Path, diffusion_config: Path) -> None:
    checkpoint = diffusion / "checkpoints/last.ckpt"
    resumed = last(
        train(diffusion_config, "--resume", checkpoint, "lightning.trainer.max_steps=3", name="resumed")
    )
    assert resumed["global_step"] == 3
    assert {int(state["step"]) for state in resumed["optimizer_states"][0]["state"].values()} == {3}
    assert resumed["state_dict"]["model_ema.num_updates"] == 3
    assert torch.equal(resumed["state_dict"]["scale_factors"], last(diffusion)["state_dict"]["scale_factors"])


@pytest.mark.parametrize("where", [".", "checkpoints", "checkpoints/last.ckpt"])
def test_a_run_goes_on_in_its_folder_with_its_own_config(
    diffusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = Path(shutil.copytree(diffusion, tmp_path / "moved/run"))
    monkeypatch.chdir(tmp_path)
    main(["--resume", str(run / where), "lightning.trainer.max_steps=3"])
    assert last(run)["global_step"] == 3
    assert [len(logged(run, "train/loss", version)) for version in (0, 1)] == [2, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def branched(run: Path, folder: Path, *options: str) -> Path:
    """Go on from a run under another name, in another folder; its folder."""
    main(["--resume", str(run), "--name", "branch", "--logdir", str(folder), *options])
    return folder / "branch"


def test_a_resumed_run_may_get_a_name_of_its_own(diffusion: Path, tmp_path: Path) -> None:
    before = files_below(diffusion)
    config = next(diffusion.glob("config_*.yaml"))
    branch = branched(diffusion, tmp_path, "--base", str(config), "lightning.trainer.max_steps=3")
    assert last(branch)["global_step"] == 3 and files_below(diffusion) == before


def test_a_start_that_is_refused_while_resuming_leaves_no_folder(diffusion: Path, tmp_path: Path) -> None:
    config = next(diffusion.glob("config_*.yaml"))
    with pytest.raises(UserError, match="leave --seed out"):
        branched(diffusion, tmp_path / "logs", "--base", str(config), "--seed", "5")
    assert not (tmp_path / "logs/branch").exists()


def test_a_resumed_run_takes_its_own_config_under_another_name_too(diffusion: Path, tmp_path: Path) -> None:
    assert last(branched(diffusion, tmp_path, "lightning.trainer.max_steps=3"))["global_step"] == 3


@pytest.mark.parametrize(
    "override, problem",
    [
        ("lightning.modelcheckpoint.params.monitor=val/los", "training cannot go on: .*val/los"),
        (
            "lightning.callbacks.images.params.log_images_kwargs.ddim_steps=abc",
            "no pictures with log_images_kwargs",
        ),
    ],
)
def test_what_fails_before_anything_is_learnt_is_one_line_and_leaves_nothing(
    diffusion_config: Path, tmp_path: Path, override: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        main(["--base", str(diffusion_config), "--logdir", str(tmp_path / "logs"), "--name", "x", override, "lightning.callbacks.images.params.batch_frequency=1",
              "lightning.callbacks.images.target=main.ImageLogger", "lightning.trainer.val_check_interval=1"])  # fmt: skip
    assert not (tmp_path / "logs/x").exists() or list((tmp_path / "logs/x/checkpoints").glob("*"))


@pytest.mark.parametrize(
    "content, problem", [(None, "no such file"), (b"<html>", "web page"), (b"", "empty")]
)
def test_a_checkpoint_that_cannot_resume_is_refused(
    diffusion_config: Path, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        train(diffusion_config, "--resume", tmp_path / "a.ckpt")


def test_a_checkpoint_of_another_model_is_refused(diffusion_config: Path, first_stage: Path) -> None:
    with pytest.raises(CheckpointError, match="--resume .* does not fit DualCondLDM"):
        train(diffusion_config, "--resume", first_stage / "checkpoints/last.ckpt")


@pytest.mark.parametrize(
    "resume, problem",
    [
        ("empty", "empty: no checkpoints/last.ckpt in this folder; name a run's folder or a .ckpt file"),
        ("nowhere", "nowhere: no such"),
        ("nowhere/checkpoints/last.ckpt", "last.ckpt: no such"),
        ("alone.ckpt", "give the config with --base, as the checkpoint lies in no run's folder"),
        ("bare", "bare: no config_*.yaml in this run's folder; give the config with --base"),
    ],
)
def test_what_cannot_be_resumed_by_itself_is_one_line(
    diffusion: Path, tmp_path: Path, monkeypatch, capsys, resume: str, problem: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare/checkpoints").mkdir(parents=True)
    for copy in ("alone.ckpt", "bare/checkpoints/last.ckpt"):
        (tmp_path / copy).write_bytes((diffusion / "checkpoints/last.ckpt").read_bytes())
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    assert run_program(main, ["--resume", resume], monkeypatch) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and problem in line
    assert files_below(tmp_path) == before


def test_a_run_goes_on_with_its_own_seed_only(diffusion: Path) -> None:
    before = last(diffusion)["global_step"]
    with pytest.raises(UserError, match="--seed 5: the run to resume has the seed 23; leave --seed out"):
        main(["--resume", str(diffusion), "--seed", "5", "lightning.trainer.max_steps=3"])
    assert last(diffusion)["global_step"] == before


def test_the_same_seed_trains_the_same_model(diffusion: Path, diffusion_config: Path) -> None:
    again, other = train(diffusion_config, name="again"), train(diffusion_config, "--seed", 1, name="other")
    assert equal_weights(again, diffusion) and not equal_weights(other, diffusion)


# Pictures while it trains


def test_pictures_do_not_change_the_training(diffusion: Path, diffusion_config: Path) -> None:
    node = "{target: main.ImageLogger, params: {batch_frequency: 1, max_images: 2, log_images_kwargs: {ddim_steps: 2, content_scales: []}}}"
    watched = train(diffusion_config, f"lightning.callbacks.images={node}", name="watched")
    names = ("neighbours_style", "reconstructions", "samples", "style_guidance_5")
    assert sorted(path.name for path in (watched / "images").iterdir()) == [
        f"{name}_0000000{step}.png" for name in names for step in (1, 2)
    ]
    assert equal_weights(watched, diffusion)


def test_pictures_stand_side_by_side(first_stage: Path) -> None:
    with Image.open(first_stage / "images/inputs_00000002.png") as grid:
        assert grid.size == (2 * 34 + 2, 32 + 4)  # two pictures of 32 pixels with 2 between and around


@pytest.mark.parametrize(
    "device, options, expected",
    [
        ("cuda", {"batch_frequency": 5}, [1, 2, 4, 5, 10]),
        ("cpu", {"batch_frequency": 5}, [5, 10]),
        ("cpu", {"batch_frequency": 5, "increase_log_steps": True}, [1, 2, 4, 5, 10]),
        ("cuda", {"batch_frequency": 5, "increase_log_steps": False}, [5, 10]),
        ("cuda", {"batch_frequency": 11, "frequency_base": 3, "nrow": 1}, [1, 3, 9, 11]),
        ("cuda", {"batch_frequency": 5, "disabled": True}, []),
    ],
)
def test_pictures_come_often_at_first_where_they_take_no_minutes(
    device: str,
    options: dict[str, Any],
    expected: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    from main import ImageLogger

    class Trainer:
        is_global_zero, fit_loop = True, type("Loop", (), {"total_batch_idx": 0})()

    written, trainer = [], Trainer()
    monkeypatch.setattr(ImageLogger, "write", lambda self, trainer, module, batch, done: written.append(done))
    callback = ImageLogger(**options)
    for index in range(11):
        trainer.fit_loop.total_batch_idx = index
        callback.on_train_batch_end(trainer, SimpleNamespace(device=torch.device(device)), None, None, index)
    assert written == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"after {done} batches: drawing sample pictures" for done in expected
    ]


# What cannot be trained


@pytest.mark.parametrize("key", ["learning_rate", "base_learning_rate"])
def test_the_learning_rate_of_the_model_node_is_used(diffusion_config: Path, key: str) -> None:
    config = merged_config([str(diffusion_config)])
    del config.model.learning_rate
    config.model[key] = 0.0125
    model, data = build(config, seed=3)
    assert (
        model.configure_optimizers().defaults["lr"] == 0.0125
        and isinstance(data, DataModuleFromConfig)
        and data.seed == 3
    )


@pytest.mark.parametrize(
    "override, problem",
    [
        ("modle.target=x", "unknown config key 'modle'; did you mean model"),
        ("lightning.trainr.max_steps=1", "unknown config key 'trainr'; did you mean trainer"),
        ("lightning.trainer.max_epoch=3", "has no parameter 'max_epoch'; did you mean max_epochs"),
        ("lightning.performance.compile='yes'", "compile must be true, false or a list of parts, got 'yes'"),
        ("lightning.performance.compil=true", "unknown config key 'compil'; did you mean compile"),
        ("lightning.modelcheckpoint_step.params.save_tpo_k=1", "did you mean save_top_k"),
        ("lightning.callbacks.x={target: os.system}", "'os.system' is not under"),
        ("lightning.trainer=[1]", "`lightning.trainer` must be names with values"),
        ("lightning=3", "`lightning` must be names with values"),
        ("model=null", "needs a `target` key"),
        ("model.target=null", "model: `target` must be the dotted path of a class or function, got None"),
        ("model.params.embed=3", "DualCondLDM has no parameter 'embed'"),
        ("model.parms.channels=3", "unknown key 'parms'; did you mean params"),
        ("model={target: pytorch_lightning.LightningDataModule}", "is not under"),
        ("model={target: torch.nn.SiLU}", "it must be a LightningModule"),
        ("model.params.unet_config=null", "model.params.unet_config: a config node needs a `target`"),
        ("model.params.scheduler_config={target: torch.nn.SiLU}", "is a model, where a schedule belongs"),
        ("model.params.scheduler_config={params: {}}", "model.params.scheduler_config: a config node needs"),
        ("model.params.vgg_ckpt_path=nowhere.pt", "nowhere.pt: no such file"),
        ("lightning.callbacks.x={params: {}}", "lightning.callbacks.x: a config node needs a `target`"),
        (
            "lightning.callbacks.x={target: pytorch_lightning.callbacks.StochasticWeightAveraging, params: {swa_lrs: x}}",
            "lightning.callbacks.x.params.swa_lrs must be a number or a list, got 'x'",
        ),
        ("lightning.trainer.profiler=nothing", "the trainer cannot be set up"),
        ("model.learning_rate=fast", "model.learning_rate must be a positive number, got 'fast'"),
        ("model.learning_rate=0", "model.learning_rate must be a positive number"),
        ("model.params.first_stage_config.params.ckpt_path=nowhere.ckpt", "nowhere.ckpt: no such file"),
        ("data=null", "needs a `target` key"),
        ("data={target: torch.nn.SiLU}", "is a model, where a data module belongs"),
        ("data.params.batch_size=0", "batch_size must be a whole number"),
        ("data.params.batch_sizes=3", "has no parameter 'batch_sizes'; did you mean batch_size"),
        ("data.params.max_unreadable_share=2", "max_unreadable_share must be between 0 and 1, got 2"),
        ("data.params.train=null", "no `train` data set"),
        ("data.params.train.params.style_root=nowhere", "nowhere: no such folder of pictures"),
        ("data.params.validation.params.content_root=nowhere", "nowhere: no such folder of pictures"),
        ("data.params.train.params.styl_size=3", "did you mean style_size"),
    ],
)
def test_a_wrong_config_is_a_user_error_and_nothing_else(
    diffusion_config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, override: str, problem: str
) -> None:
    config = save_config(OmegaConf.load(diffusion_config), tmp_path / "a.yaml")
    with pytest.raises(UserError, match=problem):
        train(config, override)
    assert list(tmp_path.iterdir()) == [config]
    assert not [line for line in caplog.records if line.name.startswith("pytorch_lightning")]


def test_what_lightning_tells_when_it_is_set_up_comes_when_training_begins(
    diffusion_config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = save_config(OmegaConf.load(diffusion_config), tmp_path / "a.yaml")
    train(config, "lightning.trainer.max_steps=1")
    lines = [line.getMessage() for line in caplog.records]
    told = [i for i, line in enumerate(lines) if line.startswith("GPU available")]
    assert len(told) == 1 and "M parameters" in " ".join(lines[: told[0]])
    assert "stopped: `max_steps=1` reached" in " ".join(lines[told[0] :])


def test_early_stopping_by_what_is_not_logged_is_one_line(diffusion_config: Path, tmp_path: Path) -> None:
    config = save_config(OmegaConf.load(diffusion_config), tmp_path / "a.yaml")
    node = "lightning.callbacks.x={target: pytorch_lightning.callbacks.EarlyStopping, params: {monitor: val/los}}"
    with pytest.raises(ConfigError, match="training cannot go on: Early stopping .*val/los"):
        train(config, node)
    with pytest.raises(ConfigError, match="early stopping is told by 'val/los', which is not logged"):
        train(config, "--dry-run", node)


@pytest.mark.parametrize(
    "name, params, failed",
    [
        ("BackboneFinetuning", "", "failed in setup .*has no attribute 'backbone'"),
        ("ModelSummary", "max_depth: -5", "failed in on_fit_start .*max_depth"),
    ],
)
def test_a_callback_that_fails_before_training_is_one_line_and_leaves_nothing(
    diffusion_config: Path, tmp_path: Path, name: str, params: str, failed: str
) -> None:
    config = save_config(OmegaConf.load(diffusion_config), tmp_path / "a.yaml")
    node = f"{{target: pytorch_lightning.callbacks.{name}, params: {{{params}}}}}"
    with pytest.raises(ConfigError, match=f"^lightning.callbacks.x: {name} {failed}"):
        train(config, f"lightning.callbacks.x={node}")
    assert list(tmp_path.iterdir()) == [config]


def test_a_callback_that_fails_in_the_run_is_one_line_and_the_run_keeps_how(
    diffusion_config: Path, tmp_path: Path
) -> None:
    config = save_config(OmegaConf.load(diffusion_config), tmp_path / "a.yaml")
    node = "lightning.callbacks.x={target: ldm.training.image_logger.ImageLogger, params: {batch_frequency: 1, nrow: -1, log_images_kwargs: {ddim_steps: 1}}}"
    with pytest.raises(
        ConfigError, match=r"^lightning.callbacks.x: ImageLogger failed in \w+ .*traceback.txt has"
    ):
        train(config, node)
    run = tmp_path / "logs/a"
    assert "Traceback (most recent call last)" in (run / "traceback.txt").read_text()
    assert last(run)["global_step"] == 1


class Broken(pl.Callback):
    """Somebody's own, which they want to see the traceback of."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        raise KeyError("mine")


def test_what_was_allowed_by_name_fails_as_it_is(diffusion_config: Path, tmp_path: Path) -> None:
    config = save_config(OmegaConf.load(diffusion_config), tmp_path / "a.yaml")
    with pytest.raises(KeyError, match="mine"):
        train(
            config, "lightning.callbacks.x={target: test_training.Broken}", "--allow-target", "test_training"
        )


def test_a_validation_every_more_steps_than_an_epoch_has_is_one_line(
    diffusion_config: Path, tmp_path: Path
) -> None:
    config = save_config(OmegaConf.load(diffusion_config), tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="training cannot go on: .*val_check_interval.* less than"):
        train(config, "lightning.trainer.val_check_interval=70")
    assert list(tmp_path.iterdir()) == [config]


def test_a_gpu_that_is_not_there_is_a_user_error(
    diffusion_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="the trainer cannot be set up.* leave out --gpus"):
        train(diffusion_config, "--gpus", "0,", name="gpu")


def test_a_missing_config_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run_program(main, ["--base", "nowhere.yaml"], monkeypatch) == 2
    assert capsys.readouterr().err == "error: config nowhere.yaml: no such file\n"


class Own(DualCondLDM):
    """As a user's script has it: the config's parameters are its own."""


def test_an_override_may_name_an_allowed_subclass_which_keeps_the_parameters(
    diffusion_config: Path, tmp_path: Path
) -> None:
    options = [
        "model.target=test_training.Own",
        "--allow-target",
        "test_training",
        "lightning.trainer.max_steps=1",
    ]
    main(["--base", str(diffusion_config), "--logdir", str(tmp_path), "--name", "own", *options])
    assert last(tmp_path / "own")["global_step"] == 1


def test_allowed_targets_reach_data_sets_and_models(diffusion_config: Path) -> None:
    with pytest.raises(ConfigError, match="--allow-target"):
        train(diffusion_config, "data.params.train.target=builders.Data")
    with pytest.raises(ConfigError, match="No module named 'not_there'|has no 'Data'"):
        train(diffusion_config, "data.params.train.target=not_there.Data", "--allow-target", "not_there")
