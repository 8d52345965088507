"""ldm.checkpoint and its two scripts: bad files, hostile files, strict loading, EMA baking, small files."""

import argparse
import os
import pickle
import runpy
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_builders import safetensors_bytes
from omegaconf import OmegaConf
from pipeline_builders import model_config, tiny_model
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ldm import checkpoint
from ldm.checkpoint import (
    bake_ema,
    carried,
    describe,
    fitting,
    load_strict,
    read_state_dict,
    save_safetensors,
)
from ldm.errors import CheckpointError
from ldm.files import ROOT, file_hash
from ldm.modules.losses.lpips import BUNDLED_VGG16
from ldm.pipeline.bundled import BUNDLED
from ldm.text import human_size

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
CONV = "model.diffusion_model.input_blocks.0.0.weight"


def published_names(value: float = 1.0, ema: float = 2.0) -> dict[str, torch.Tensor]:
    """A tiny state dict with the published checkpoint's kinds of names."""
    return {
        "betas": torch.linspace(1e-5, 2e-2, 10),
        "sqrt_one_minus_alphas_cumprod": torch.linspace(1e-5, 1, 10),
        "scale_factors": torch.full((16,), 0.3335),
        CONV: torch.full((4, 28, 3, 3), value),
        "model.diffusion_model.input_blocks.0.0.bias": torch.full((4,), value),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        "model_ema.diffusion_modelinput_blocks00weight": torch.full((4, 28, 3, 3), ema),
        "model_ema.diffusion_modelinput_blocks00bias": torch.full((4,), ema),
        "null_style_vector.weight": torch.full((1, 8), value),
        "null_style_vector_ema.decay": torch.tensor(0.9999),
        "null_style_vector_ema.weight": torch.full((1, 8), ema),
        "first_stage_model.encoder.conv_in.weight": torch.full((2, 3, 3, 3), value),
        "first_stage_model.loss.logvar": torch.zeros(()),
    }


@pytest.fixture
def lightning_file(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    torch.save(
        {"state_dict": published_names(), "global_step": 317673, "epoch": 12, "optimizer_states": [{}]}, path
    )
    return path


# Reading


def test_reads_every_format(tmp_path: Path, lightning_file: Path) -> None:
    weights = {"weight": torch.arange(6.0).reshape(2, 3)}
    torch.save(weights, tmp_path / "bare.pt")
    torch.save(OrderedDict(weights), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"weight": nn.Parameter(weights["weight"]), "step": 3}, tmp_path / "mixed.pt")
    save_file(weights, tmp_path / "plain.safetensors")
    for name in ("bare.pt", "legacy.pth", "mixed.pt", "plain.safetensors"):
        read = read_state_dict(tmp_path / name)
        assert list(read) == ["weight"] and torch.equal(read["weight"], weights["weight"])
        assert not read["weight"].requires_grad
    assert read_state_dict(str(lightning_file)).keys() == published_names().keys()


def test_reads_old_lightning_files(tmp_path: Path) -> None:
    content = {
        "state_dict": OrderedDict(weight=torch.ones(2)),
        "callbacks": {ModelCheckpoint: {"monitor": "val/loss", "best_model_score": np.float64(0.5)}},
        "hyper_parameters": argparse.Namespace(
            lr=1e-4, config=OmegaConf.create({"a": {"b": [1, 2]}, "c": None})
        ),
        "metrics": defaultdict(list, {"loss": [np.float32(1.0), np.zeros(3)]}),
    }
    torch.save(content, tmp_path / "old.ckpt")
    assert torch.equal(read_state_dict(tmp_path / "old.ckpt")["weight"], torch.ones(2))


def test_listed_names_are_never_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Caller:
        def __reduce__(self) -> tuple:
            return ModelCheckpoint, ("ssh://example.invalid/",)

    torch.save({"state_dict": {"weight": torch.ones(2)}, "callbacks": [Caller()]}, tmp_path / "calls.ckpt")
    monkeypatch.setattr(ModelCheckpoint, "__init__", lambda *args: pytest.fail("the real class was called"))
    assert read_state_dict(tmp_path / "calls.ckpt").keys() == {"weight"}


def save_raw_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_raw_pickle])
@pytest.mark.parametrize("function, arguments", [(open, ("w",)), (os.mkdir, ()), (eval, ())])
def test_hostile_pickle_is_not_run(tmp_path: Path, save, function, arguments) -> None:
    trace = tmp_path / "trace"
    first_argument = f"open({str(trace)!r}, 'w')" if function is eval else str(trace)

    class Hostile:
        def __reduce__(self) -> tuple:
            return function, (first_argument, *arguments)

    path = tmp_path / "hostile.ckpt"
    save(
        {"state_dict": {"weight": torch.ones(2)} if save is not save_raw_pickle else {}, "extra": Hostile()},
        path,
    )
    with pytest.raises(CheckpointError, match=f"names the code `.*{function.__name__}`"):
        read_state_dict(path)
    assert not trace.exists()


def truncated(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def with_flipped_weight(content: bytes) -> bytes:
    at = content.index(torch.full((9,), 2.0).numpy().tobytes())
    return content[:at] + b"\x01" + content[at + 1 :]


ONE_TENSOR = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
BAD_FILES = {
    "empty.ckpt": (b"", "empty"),
    "page.ckpt": (b"\n<!DOCTYPE html><html>sign in</html>", "web page"),
    "page.safetensors": (b"<HTML><body>404</body>", "web page"),
    "pointer.ckpt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
    "noise.ckpt": (b"no weights here, only words {}", "not a checkpoint"),
    "noise.safetensors": (b"no weights here", "not a safetensors file"),
    "pickle.ckpt": (b"\x80\x02garbage", "damaged"),
    "short.safetensors": (
        safetensors_bytes(ONE_TENSOR, bytes(16))[:-3],
        r"cut short: it should have \d+ bytes",
    ),
    "header.safetensors": (safetensors_bytes(ONE_TENSOR, b"")[:-9], "cut short inside its header"),
    "json.safetensors": ((4).to_bytes(8, "little") + b"{]]}", "header cannot be read"),
    "offsets.safetensors": (safetensors_bytes(ONE_TENSOR, bytes(17)), "damaged safetensors"),
    "none.safetensors": (safetensors_bytes({}, b""), "no tensors"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_gives_one_clear_line(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert f"{name} ({human_size(len(content))}): " in str(caught.value)


@pytest.mark.parametrize(
    "damage, message",
    [(truncated, "cut short.*known to arrive truncated"), (with_flipped_weight, "check sum")],
)
def test_damaged_archive(lightning_file: Path, damage, message: str) -> None:
    lightning_file.write_bytes(damage(lightning_file.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(lightning_file)


def test_truncated_legacy_file(tmp_path: Path) -> None:
    save_legacy(published_names(), tmp_path / "vgg.pth")
    (tmp_path / "vgg.pth").write_bytes(truncated((tmp_path / "vgg.pth").read_bytes()))
    with pytest.raises(CheckpointError, match="cut short"):
        read_state_dict(tmp_path / "vgg.pth")


def test_archive_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.ckpt", "w") as archive:
        archive.writestr("photos/cat.txt", "a cat")
    with pytest.raises(CheckpointError, match="an archive of something else"):
        read_state_dict(tmp_path / "photos.ckpt")


def test_no_such_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_state_dict(tmp_path / "absent.ckpt")
    with pytest.raises(CheckpointError, match="a folder"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    "content", [{"epoch": 3, "model": {}}, {"state_dict": {}}, {"state_dict": 3}, [1, 2]]
)
def test_file_without_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "empty.ckpt")
    with pytest.raises(CheckpointError, match="no tensors"):
        read_state_dict(tmp_path / "empty.ckpt")


# Strict loading


def test_loads_half_precision_into_float32() -> None:
    module = nn.Linear(3, 2)
    load_strict(module, {"weight": torch.full((2, 3), 0.5).half(), "bias": torch.zeros(2)})
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, torch.full((2, 3), 0.5))


def test_strict_errors_name_everything_and_leave_the_module_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    wrong = {"0.weight": torch.zeros(2, 4), "0.bias": torch.zeros(2)} | {
        f"x{i}": torch.zeros(1) for i in range(7)
    }
    with pytest.raises(CheckpointError) as caught:
        load_strict(module, wrong, where="some.ckpt")
    assert str(caught.value).startswith(
        "some.ckpt does not fit Sequential; use the config that belongs to the checkpoint"
    )
    assert "in ignore_keys: 2 missing (1.weight, 1.bias), 7 unexpected (x0, " in str(caught.value)
    assert "x6), 1 misshapen (0.weight: (2, 4), not (2, 3))" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_ignore_keys_are_neither_loaded_nor_required() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    kept = module[1].weight.clone()
    state = {
        "0.weight": torch.ones(2, 3),
        "0.bias": torch.ones(2),
        "1.weight": torch.zeros(9),
        "loss.w": torch.ones(1),
    }
    load_strict(module, state, ignore_keys=["1.", "loss."])
    assert torch.equal(module[0].weight, torch.ones(2, 3))
    assert torch.equal(module[1].weight, kept)


def test_loading_nothing_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="2 missing.*1 unexpected"):
        load_strict(nn.Linear(3, 2), {"other": torch.ones(1)})
    with pytest.raises(CheckpointError, match="nothing to load"):
        load_strict(nn.Linear(3, 2), {"weight": torch.ones(1)}, ignore_keys=["weight", "bias"])
    with pytest.raises(CheckpointError, match="list of prefixes"):
        load_strict(nn.Linear(3, 2), {}, ignore_keys="loss.")


def test_of_hundreds_of_names_that_do_not_fit_ten_and_a_count_are_told() -> None:
    wrong = {f"x{i}": torch.zeros(1) for i in range(400)}
    for module in (nn.Linear(3, 2), nn.Sequential(*(nn.Linear(3, 2) for _ in range(200)))):
        with pytest.raises(CheckpointError, match="400 unexpected") as caught:
            load_strict(module, wrong)
        assert (
            str(caught.value).count("x") - str(caught.value).count("ex") <= 10
            and len(str(caught.value)) < 400
        )


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int8, torch.int64])
def test_weights_of_another_kind_of_numbers_are_refused(dtype: torch.dtype) -> None:
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(CheckpointError, match=rf"1 mistyped \(weight: {str(dtype)[6:]}, not float32\)"):
        load_strict(module, {"weight": torch.ones(2, 3).to(dtype), "bias": torch.zeros(2)})
    assert torch.equal(module.weight, before)


def test_counters_may_be_of_another_width() -> None:
    norm = nn.BatchNorm1d(2)
    load_strict(norm, norm.state_dict() | {"num_batches_tracked": torch.tensor(3, dtype=torch.int32)})
    assert norm.num_batches_tracked == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(dtype: torch.dtype, value: float) -> None:
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    weight = torch.tensor([[value, 1, 1], [1, 1, 1]]).to(dtype)
    with pytest.raises(CheckpointError, match="NaN or infinite values in weight"):
        load_strict(module, {"weight": weight, "bias": torch.zeros(2)})
    assert torch.equal(module.weight, before)


# EMA


def test_bake_ema_keeps_shadows_under_live_names() -> None:
    state = published_names(value=1.0, ema=2.0) | {"model.frozen": torch.ones(1)}
    baked = bake_ema(state)
    assert not [name for name in baked if "_ema" in name or ".loss." in name]
    assert (baked[CONV] == 2).all() and (baked["null_style_vector.weight"] == 2).all()
    assert (baked["model.frozen"] == 1).all() and (
        baked["first_stage_model.encoder.conv_in.weight"] == 1
    ).all()
    assert torch.equal(baked["betas"], state["betas"])
    assert (state[CONV] == 1).all(), "the input must stay as it was"


def test_bake_ema_without_ema_changes_nothing() -> None:
    state = {"weight": torch.ones(1), "net.weight": torch.ones(1)}
    assert bake_ema(state) == state


@pytest.mark.parametrize(
    "names, message",
    [
        (["model.a.b1", "model.a.b.1", "model_ema.ab1"], "could be the EMA of model.a.b1 and of model.a.b.1"),
        (["model.a", "model_ema.a", "model_ema.b"], "1 EMA weights belong to no live weight .model_ema.b."),
        (["model_ema.a"], "no live weight"),
    ],
)
def test_bake_ema_refuses_to_guess(names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        bake_ema({name: torch.ones(1) for name in names})


def test_bake_ema_refuses_another_shape() -> None:
    with pytest.raises(CheckpointError, match="model_ema.a has another shape than model.a"):
        bake_ema({"model.a": torch.ones(2), "model_ema.a": torch.ones(3)})


# Saving


def test_half_keeps_the_schedule_in_float32(tmp_path: Path) -> None:
    state = published_names()
    save_safetensors(state, tmp_path / "half.safetensors", {"weights": "EMA"}, half=True)
    read = read_state_dict(tmp_path / "half.safetensors")
    for name in ("betas", "sqrt_one_minus_alphas_cumprod", "scale_factors"):
        assert read[name].dtype == torch.float32 and torch.equal(read[name], state[name])
    assert read[CONV].dtype == torch.float16
    assert read["model_ema.num_updates"].dtype == torch.int32
    with safe_open(tmp_path / "half.safetensors", "pt") as file:
        assert file.metadata().items() >= {"format": "pt", "weights": "EMA"}.items()


def test_saves_tied_and_strided_tensors(tmp_path: Path) -> None:
    tied = torch.arange(6.0).reshape(2, 3)
    save_safetensors({"a.w": tied, "b.w": tied, "c.w": tied.T}, tmp_path / "tied.safetensors")
    read = read_state_dict(tmp_path / "tied.safetensors")
    assert torch.equal(read["b.w"], tied) and torch.equal(read["c.w"], tied.T)
    assert read["a.w"].dtype == torch.float32


def test_half_refuses_values_beyond_float16(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="net.big: its values exceed"):
        save_safetensors({"net.big": torch.tensor([1.0, 7e4])}, tmp_path / "big.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_halfway(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")
    monkeypatch.setattr("ldm.checkpoint.writing.save_file", fail_halfway)
    with pytest.raises(CheckpointError, match="no space left"):
        save_safetensors({"weight": torch.ones(1)}, target)
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    assert target.read_bytes() == b"old"


# Hashes


def with_flipped_bit(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def test_a_flipped_bit_of_a_written_file_is_noticed(tmp_path: Path) -> None:
    """But for one in the words that say that here is its hash."""
    path = tmp_path / "a.safetensors"
    save_safetensors({"weight": torch.ones(3, 4), "bias": torch.zeros(3)}, path, {"config": "{}"})
    content = path.read_bytes()
    words = [
        range(at, at + len(word)) for word in (b"__metadata__", b"sha256") for at in [content.index(word)]
    ]
    for at in range(len(content)):
        path.write_bytes(with_flipped_bit(content, at))
        if not any(at in word for word in words):
            with pytest.raises(CheckpointError):
                read_state_dict(path)


def test_a_file_is_held_against_the_list_beside_it(tmp_path: Path) -> None:
    for source in (ROOT / BUNDLED["mini"][0], BUNDLED_VGG16):
        for path in (source, source.parent / "SHA256SUMS"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        copy = tmp_path / source.name
        assert describe(copy).hash_place == "in SHA256SUMS beside it"
        copy.write_bytes(with_flipped_bit(source.read_bytes(), source.stat().st_size - 5))
        with pytest.raises(CheckpointError, match="not the file that SHA256SUMS beside it lists"):
            read_state_dict(copy)


def test_large_files_are_hashed_only_when_they_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script
) -> None:
    path = tmp_path / "large.safetensors"
    save_safetensors({"weight": torch.ones(3, 4)}, path)
    path.write_bytes(with_flipped_bit(path.read_bytes(), path.stat().st_size - 1))
    monkeypatch.setattr("ldm.checkpoint.reading.AT_LOAD", path.stat().st_size - 1)
    assert read_state_dict(path).keys() == {"weight"}
    for name, *more in (("verify_checkpoint.py",), ("convert_checkpoint.py", tmp_path / "b.safetensors")):
        code, _, err = script(name, path, *more)
        assert code == 2 and "not those that its own hash was made of" in err
        assert_one_error_line(err)


def test_verify_says_which_hash_fits(tmp_path: Path, script) -> None:
    save_safetensors({"weight": torch.ones(3)}, tmp_path / "own.safetensors")
    torch.save({"weight": torch.ones(3)}, tmp_path / "none.ckpt")
    assert "its hash in it: fits" in script("verify_checkpoint.py", tmp_path / "own.safetensors")[1]
    assert "its hash: none comes with it" in script("verify_checkpoint.py", tmp_path / "none.ckpt")[1]


# Descriptions


@pytest.mark.parametrize(
    "names, kind",
    [
        ([CONV, "null_style_vector.weight", "vgg.slice1.0.weight"], "ArtFusion checkpoint"),
        ([CONV, "cond_stage_model.embedding.weight"], "class-conditional latent diffusion"),
        ([CONV, "cond_stage_model.transformer.wte.weight"], "latent diffusion"),
        (
            [CONV, "first_stage_model.quant_conv.bias"],
            "latent diffusion without a condition stage of its own",
        ),
        (
            [
                "encoder.conv_in.weight",
                "decoder.conv_in.weight",
                "quant_conv.bias",
                "quantize.embedding.weight",
            ],
            "VQ first stage",
        ),
        ([CONV, "cond_stage_model.transformer.text_model.final_layer_norm.weight"], "Stable Diffusion 1"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.bias", "loss.w"], "KL first stage"),
        (["features.0.weight", "features.26.bias", "classifier.0.bias"], "VGG16 features"),
        (["layer1.weight", "fc.bias"], "unknown (its parts: fc, layer1)"),
    ],
)
def test_describe_tells_kinds_apart(tmp_path: Path, names: list[str], kind: str) -> None:
    save_file({name: torch.ones(2) for name in names}, tmp_path / "file.safetensors")
    assert describe(tmp_path / "file.safetensors").kind == kind


def test_describe_counts(tmp_path: Path, lightning_file: Path) -> None:
    report = describe(lightning_file)
    assert (report.tensors, report.global_step, report.epoch, report.has_ema) == (14, 317673, 12, True)
    assert report.dtypes == {"float32": 13, "int32": 1}
    assert report.parameters == sum(value.numel() for value in published_names().values())
    assert report.size == lightning_file.stat().st_size and report.nonfinite == {}
    torch.save({"a": torch.tensor([1.0, np.nan, np.inf]), "b": torch.ones(2)}, tmp_path / "nan.pt")
    report = describe(tmp_path / "nan.pt")
    assert (report.nonfinite, report.global_step, report.has_ema) == ({"a": 2}, None, False)


def test_file_hash_and_human_size(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_hash(tmp_path / "abc") == "ba7816bf8f01"
    assert [human_size(n) for n in (0, 999, 1000, 2_960_000_000)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "3.0 GB",
    ]


# Scripts


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs a script in this process: (exit code, standard output, standard error)."""

    def call(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return exit_info.value.code, *capsys.readouterr()

    return call


def assert_one_error_line(stderr: str) -> None:
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr


def test_convert_bakes_the_ema(tmp_path: Path, lightning_file: Path, script) -> None:
    output = tmp_path / "small.safetensors"
    code, out, _ = script("convert_checkpoint.py", lightning_file, output, "--half")
    assert code == 0
    assert human_size(output.stat().st_size) in out and human_size(lightning_file.stat().st_size) in out
    read = read_state_dict(output)
    assert (read[CONV] == 2).all() and read[CONV].dtype == torch.float16
    assert describe(output).global_step == 317673 and not describe(output).has_ema


def test_convert_keeps_live_weights_when_asked(tmp_path: Path, lightning_file: Path, script) -> None:
    code, out, _ = script(
        "convert_checkpoint.py", lightning_file, tmp_path / "live.safetensors", "--keep-live"
    )
    assert code == 0 and "live weights" in out
    read = read_state_dict(tmp_path / "live.safetensors")
    assert (read[CONV] == 1).all() and not [name for name in read if "_ema" in name]


def test_convert_does_not_overwrite_unasked(tmp_path: Path, lightning_file: Path, script) -> None:
    output = tmp_path / "small.safetensors"
    output.write_bytes(b"precious")
    code, _, err = script("convert_checkpoint.py", lightning_file, output)
    assert code == 2 and "--force" in err and output.read_bytes() == b"precious"
    assert_one_error_line(err)
    assert script("convert_checkpoint.py", lightning_file, output, "--force")[0] == 0
    assert script("convert_checkpoint.py", lightning_file, tmp_path / "small.ckpt")[0] == 2
    assert script("convert_checkpoint.py", lightning_file, tmp_path / "nowhere" / "small.safetensors")[0] == 2


def test_convert_refuses_non_finite_weights(tmp_path: Path, script) -> None:
    torch.save({"weight": torch.tensor([np.nan])}, tmp_path / "nan.pt")
    code, _, err = script("convert_checkpoint.py", tmp_path / "nan.pt", tmp_path / "nan.safetensors")
    assert code == 2 and "NaN or infinite values in weight" in err
    assert not (tmp_path / "nan.safetensors").exists()


@pytest.fixture
def linear_config(tmp_path: Path) -> Path:
    node = {"model": {"target": "torch.nn.Linear", "params": {"in_features": 3, "out_features": 2}}}
    OmegaConf.save(OmegaConf.create(node), tmp_path / "linear.yaml")
    return tmp_path / "linear.yaml"


def test_verify_against_a_config(tmp_path: Path, linear_config: Path, script) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "good.pt")
    code, out, _ = script("verify_checkpoint.py", tmp_path / "good.pt", "--config", linear_config)
    assert code == 0 and "every name and shape fits" in out
    torch.save(nn.Linear(4, 2, bias=False).state_dict(), tmp_path / "wrong.pt")
    code, out, _ = script("verify_checkpoint.py", tmp_path / "wrong.pt", "--config", linear_config)
    assert code == 1 and "1 missing (bias), 1 misshapen (weight: (2, 4), not (2, 3))" in out


def test_verify_reports_non_finite_values(tmp_path: Path, script) -> None:
    torch.save({"weight": torch.tensor([np.nan, 1.0])}, tmp_path / "nan.pt")
    code, out, _ = script("verify_checkpoint.py", tmp_path / "nan.pt")
    assert code == 1 and "NaN or infinite: 1 values, in weight" in out


def test_verify_compares_only_files_of_the_published_width(lightning_file: Path, script) -> None:
    code, out, _ = script("verify_checkpoint.py", lightning_file)
    assert code == 0 and "ArtFusion checkpoint" in out and "step: 317673, epoch: 12" in out
    assert "against" not in out, "four channels are not the published model"


def test_verify_forgives_a_file_without_any_ema(tmp_path: Path, script) -> None:
    OmegaConf.save(OmegaConf.create({"model": model_config(use_ema=True)}), tmp_path / "tiny.yaml")
    for use_ema in (True, False):
        torch.save(tiny_model(use_ema=use_ema).state_dict(), tmp_path / "tiny.pt")
        code, out, _ = script(
            "verify_checkpoint.py", tmp_path / "tiny.pt", "--config", tmp_path / "tiny.yaml"
        )
        assert code == 0 and "every name and shape fits" in out
        assert ("inference-only file: no EMA beside its weights" in out) is not use_ema


def test_verify_helpers() -> None:
    mismatch = checkpoint.Mismatch(["model_ema.a", "model.a"], ["b"], [])
    assert fitting.forgive_missing_ema(mismatch) == checkpoint.Mismatch(["model.a"], ["b"], [])
    node = {"ckpt_path": "a.ckpt", "stages": [{"params": {"ckpt_path": "b.ckpt", "ch": 3}}]}
    expected = {"ckpt_path": None, "stages": [{"params": {"ckpt_path": None, "ch": 3}}]}
    assert carried.without_ckpt_paths(node) == expected


@pytest.mark.parametrize(
    "command", ["verify_checkpoint.py bad.ckpt", "convert_checkpoint.py bad.ckpt x.safetensors"]
)
def test_scripts_run_from_anywhere_without_traceback(tmp_path: Path, command: str) -> None:
    (tmp_path / "bad.ckpt").write_bytes(b"<html>")
    name, *arguments = command.split()
    command = [sys.executable, SCRIPTS / name, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "web page" in done.stderr
    assert_one_error_line(done.stderr)
