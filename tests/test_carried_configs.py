"""A converted checkpoint carries its config: nobody has to give it, and it is trusted no more than one in a file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pipeline_builders import ROOT, SMALL, model_config, run_program, save_config, tiny_model

from ldm.checkpoint import describe, save_safetensors
from ldm.checkpoint.carried import carries_config, config_of
from ldm.cli import convert, stylize, verify
from ldm.config.factory import instantiate_from_config
from ldm.errors import CheckpointError, ConfigError, UserError
from ldm.files import ROOT as OWN
from ldm.media.images import load_image
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.inference import build_for_inference
from ldm.pipeline.bundled import BUNDLED, PUBLISHED_CONFIG, resolve_checkpoint
from ldm.pipeline.pipeline import StyleTransferPipeline

SAMPLED = {"look": "sampled", "size": 32, "steps": 2}
NODE = model_config()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training run: its last checkpoint and its configs, of which the newest fits."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    torch.save({"state_dict": tiny_model().state_dict(), "global_step": 9}, folder / "checkpoints/last.ckpt")
    save_config({"model": model_config(style_dim=12)}, folder / "config_20260101_000000.yaml")
    save_config({"model": NODE, "data": {"root": "/secret"}}, folder / "config_20260102_000000.yaml")
    return folder


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    def call(module: Any, *arguments: object) -> tuple[int, str, str]:
        return run_program(module.main, list(map(str, arguments)), monkeypatch), *capsys.readouterr()

    return call


def carrying(path: Path, config: str) -> Path:
    save_safetensors(tiny_model(use_ema=False).state_dict(), path, {"config": config})
    return path


def test_a_converted_checkpoint_paints_without_a_config(
    tmp_path: Path, run: Path, command: Command, photo: Image.Image, painting: Image.Image
) -> None:
    small = tmp_path / "small.safetensors"
    code, out, _ = command(convert, run / "checkpoints/last.ckpt", small)
    assert code == 0 and "with the config" in out and "config_20260102_000000.yaml" in out
    with_config = save_config({"model": NODE}, tmp_path / "own.yaml")
    pipelines = [
        StyleTransferPipeline.from_pretrained(small, config, "cpu", "fp32") for config in (None, with_config)
    ]
    first, second = (pipeline(photo, painting, **SAMPLED) for pipeline in pipelines)
    assert first == second
    photo.save(tmp_path / "photo.png"), painting.save(tmp_path / "painting.png")
    files = "--content", tmp_path / "photo.png", "--style", tmp_path / "painting.png"
    code, _, err = command(stylize, "--checkpoint", small, *files, "--output", tmp_path / "out.png", *SMALL)
    assert code == 0 and load_image(tmp_path / "out.png").size == first.size, err


CROSS = {**NODE, "target": "ldm.models.diffusion.cross_pairs.CrossPairLDM"}
CROSS["params"] = {**NODE["params"], "style_weight": 10.0, "later": 0.5, "styles_per_content": 3}


@pytest.mark.parametrize("averaged", [False, True])
def test_weights_alone_are_compared_and_converted_without_the_parts_of_training(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, averaged: bool
) -> None:
    """Lightning, which these are made of, takes seconds to import."""
    config = save_config({"model": CROSS}, tmp_path / "cross.yaml")
    torch.save(tiny_model(use_ema=averaged).state_dict(), tmp_path / "a.ckpt")
    built = []
    monkeypatch.setattr(
        "ldm.checkpoint.fitting.instantiate_from_config",
        lambda node: built.append(node["target"]) or instantiate_from_config(node),
    )
    expected = CROSS["target"] if averaged else "ldm.models.diffusion.dual_cond.DualCondModel"
    small = tmp_path / "small.safetensors"
    assert command(convert, tmp_path / "a.ckpt", small, "--config", config)[0] == 0
    assert built == [expected]
    assert config_of(small)["model"]["target"] == CROSS["target"]  # it is still known what it was trained as
    with torch.device("meta"):
        assert type(build_for_inference(small, DualCondModel)) is DualCondModel


def test_only_the_model_is_carried_and_no_path_of_weights_that_are_in_the_file(
    tmp_path: Path, run: Path, command: Command
) -> None:
    config = model_config(ckpt_path="/home/me/start.ckpt")
    command(
        convert,
        run / "checkpoints/last.ckpt",
        tmp_path / "a.safetensors",
        "--config",
        save_config({"model": config}, tmp_path / "a.yaml"),
    )
    carried = config_of(tmp_path / "a.safetensors")
    assert carried == {"model": model_config(ckpt_path=None)}
    command(convert, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert config_of(tmp_path / "b.safetensors") == carried


def test_verify_compares_with_the_config_in_the_file(tmp_path: Path, command: Command) -> None:
    fitting = carrying(tmp_path / "a.safetensors", json.dumps({"model": NODE}))
    code, out, _ = command(verify, fitting)
    assert code == 0 and "against the config in it: every name and shape fits" in out
    wider = model_config()
    wider["params"]["unet_config"]["params"]["time_embed_dim"] = 24
    code, out, _ = command(verify, carrying(tmp_path / "b.safetensors", json.dumps({"model": wider})))
    assert code == 1 and "misshapen" in out


def test_a_config_that_is_given_and_does_not_fit_ends_in_a_line_of_ten_names(
    tmp_path: Path, run: Path, command: Command
) -> None:
    output = tmp_path / "a.safetensors"
    code, _, err = command(
        convert, run / "checkpoints/last.ckpt", output, "--config", ROOT / "configs/mini.yaml"
    )
    assert code == 2 and err.count("\n") == 1 and "does not fit" in err and not output.exists()
    assert "missing" in err and "unexpected" in err and len(err) < 1500
    own = carrying(tmp_path / "own.safetensors", json.dumps({"model": NODE}))
    with pytest.raises(CheckpointError, match=r"a config of its own; leave .*mini.yaml out: ") as caught:
        StyleTransferPipeline.from_pretrained(own, ROOT / "configs/mini.yaml", "cpu")
    assert len(str(caught.value)) < 1500


def test_where_no_config_fits_the_file_carries_none_and_that_is_said(
    tmp_path: Path, command: Command
) -> None:
    torch.save({"weight": torch.ones(3)}, tmp_path / "a.ckpt")
    code, out, _ = command(convert, tmp_path / "a.ckpt", tmp_path / "a.safetensors")
    assert code == 0 and "without a config" in out and not carries_config(tmp_path / "a.safetensors")


def test_the_bundled_model_is_held_against_its_config_and_carries_it_when_converted(
    tmp_path: Path, command: Command
) -> None:
    bundled = ROOT / BUNDLED["mini"][0]
    assert "against mini.yaml: every name and shape fits" in command(verify, bundled)[1]
    assert command(convert, bundled, tmp_path / "a.safetensors")[0] == 0
    assert config_of(tmp_path / "a.safetensors")["model"]["params"]["margin"] == 16


# A stranger's config


def test_code_that_a_carried_config_names_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    node = model_config(unet_config={"target": "os.mkdir", "params": {"path": str(trace)}})
    path = carrying(tmp_path / "a.safetensors", json.dumps({"model": node}))
    with pytest.raises(ConfigError, match=r"target 'os.mkdir' is not under .*--allow-target"):
        StyleTransferPipeline.from_pretrained(path, device="cpu")
    assert not trace.exists()


def test_nothing_of_the_machine_is_looked_up_for_a_carried_config(tmp_path: Path) -> None:
    path = carrying(tmp_path / "a.safetensors", json.dumps({"model": {"target": "${oc.env:HOME}"}}))
    assert config_of(path) == {"model": {"target": "${oc.env:HOME}"}}


@pytest.mark.parametrize(
    "config", ["{", "[1]", "3", "[" * 100_000, "{}", '{"model": 3}', '{"model": {"target": 3}}']
)
def test_a_carried_config_that_is_none_ends_in_one_line(
    tmp_path: Path, config: str, command: Command
) -> None:
    path = carrying(tmp_path / "a.safetensors", config)
    with pytest.raises(UserError) as caught:
        StyleTransferPipeline.from_pretrained(path, device="cpu")
    assert "\n" not in str(caught.value) and "a.safetensors" in str(caught.value)
    code, _, err = command(verify, path)
    assert code == 2 and err.count("\n") == 1
    assert describe(path).tensors  # the weights can be had nevertheless, with a config of one's own
    own = save_config({"model": NODE}, tmp_path / "own.yaml")
    StyleTransferPipeline.from_pretrained(path, own, "cpu")


# Which config


def test_a_given_config_comes_before_the_one_in_the_file_and_that_before_the_published(
    tmp_path: Path,
) -> None:
    own = carrying(tmp_path / "a.safetensors", json.dumps({"model": NODE}))
    bare = tmp_path / "b.safetensors"
    save_safetensors({"weight": torch.ones(3)}, bare)
    assert resolve_checkpoint(own, "other.yaml") == (own, Path("other.yaml"))
    assert resolve_checkpoint(own, None) == (own, own)
    assert resolve_checkpoint(bare, None) == (bare, OWN / PUBLISHED_CONFIG)


def test_to_look_for_a_config_takes_no_torch(tmp_path: Path) -> None:
    own = carrying(tmp_path / "a.safetensors", json.dumps({"model": NODE}))
    program = (
        "import sys; from ldm.pipeline.bundled import resolve_checkpoint; "
        f"print(resolve_checkpoint({str(own)!r}, None)[1], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [str(own), "False"], done.stderr


def test_numbers_in_a_carried_config_are_those_of_the_file(
    tmp_path: Path, run: Path, command: Command
) -> None:
    """1.0e-3 in YAML is no text in JSON."""
    path = tmp_path / "own.yaml"
    path.write_text("model:\n  learning_rate: 1.0e-3\n" + OmegaConf.to_yaml({"a": NODE})[3:])
    command(convert, run / "checkpoints/last.ckpt", tmp_path / "a.safetensors", "--config", path)
    assert config_of(tmp_path / "a.safetensors")["model"]["learning_rate"] == 1e-3
