"""artfusion benchmark: what the rows run, what the tables say, and what is refused."""

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_builders import (
    ROOT,
    model_config,
    paintings_and_photos,
    run_program,
    save_config,
    script,
    tiny_model,
)
from torch import Tensor, nn

from benchmarks import brush, convergence, gpu, measuring, models, sampling, steadiness, training, ways
from benchmarks.measuring import in_own_process, psnr
from benchmarks.options import BrushOptions, GpuOptions, PaintingOptions, SamplingOptions
from benchmarks.rows import GPU, GPU_TRAINING, GUIDANCE, SAMPLING, TRAINING, SamplingRow
from ldm.checkpoint import save_safetensors
from ldm.errors import UserError
from ldm.media.clips import Frame, open_clip
from ldm.media.video import write_frames, write_video
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.modules.diffusionmodules.model import StyleUNetModel
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings

# a schedule long enough for the published 250 steps, and one that is soon run whole
TIMESTEPS, SHORT = (
    500,
    40,
)

Program = Callable[..., int]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models, photos and paintings."""
    folder = tmp_path_factory.mktemp("benchmark")
    for name, timesteps in (("tiny", TIMESTEPS), ("short", SHORT)):
        save_safetensors(
            tiny_model(use_ema=False, timesteps=timesteps).state_dict(), folder / f"{name}.safetensors"
        )
        data = {"target": "main.DataModuleFromConfig", "params": {"batch_size": 1}}
        save_config({"model": model_config(timesteps=timesteps), "data": data}, folder / f"{name}.yaml")
    paintings_and_photos(folder, 3, 2)
    (folder / "empty").mkdir()
    return folder


def painting_options(files: Path, name: str = "tiny") -> list[str]:
    return [
        "--config",
        f"{files}/{name}.yaml",
        "--contents",
        f"{files}/photos",
        "--styles",
        f"{files}/paintings",
        "--size",
        "32",
    ]


def trained(files: Path) -> list[str]:
    """Options of a model with weights of its own."""
    return [*painting_options(files, "short"), "--checkpoint", f"{files}/short.safetensors"]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """Runs the program with some arguments, the rows in this process; its exit code."""
    main = script("benchmark").main
    for suite in (sampling, training, gpu):
        monkeypatch.setattr(suite, "in_own_process", lambda row, work, *arguments: work(*arguments))
    monkeypatch.setattr(sampling, "compile_networks", lambda model: None)
    return lambda *arguments: run_program(main, arguments, monkeypatch)


def table_in(text: str) -> dict[str, list[str]]:
    """The cells of a Markdown table's rows, by the first of them."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert len({len(row) for row in rows}) == 1
    return {row[0]: row[1:] for row in rows[2:]}


# PSNR


def test_psnr_is_ten_times_the_logarithm_of_the_squared_range_over_the_squared_error() -> None:
    reference = torch.zeros(3, 3, 4, 4)
    pictures = torch.stack([reference[0] + 0.2, reference[1] - 0.02, reference[2]])
    assert psnr(pictures, reference).tolist() == pytest.approx([20.0, 40.0, math.inf], rel=1e-6)


def test_psnr_is_that_of_the_visible_picture() -> None:
    assert psnr(torch.full((1, 3, 2, 2), 1.5), torch.full((1, 3, 2, 2), 1.0)).item() == math.inf


# Sampling: what the rows run


def plain(**params: str) -> DualCondModel:
    """The tiny model without what makes the pipeline's fast, which the rows do."""
    model = StyleTransferPipeline(tiny_model(use_ema=False, timesteps=TIMESTEPS, **params)).model
    return model.requires_grad_(False).to(memory_format=torch.contiguous_format)


def painting(files: Path, kind: type = PaintingOptions, **options: Any) -> Any:
    """A suite's options, with the folders of the fixture."""
    folders = {"contents": str(files / "photos"), "styles": str(files / "paintings")}
    return kind(**{"config": str(files / "tiny.yaml"), "seed": 5, "device": "cpu", **folders, **options})


@pytest.fixture
def model() -> DualCondModel:
    return plain()


@pytest.fixture
def task(model: DualCondModel, files: Path) -> ways.Task:
    return models.read_task(painting(files), model, 2, 32, GUIDANCE)


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of latents in each call of the network."""
    seen: list[int] = []
    predict = StyleUNetModel.predict

    def spied(self: StyleUNetModel, x: Tensor, *rest: Any) -> Tensor:
        seen.append(len(x))
        return predict(self, x, *rest)

    monkeypatch.setattr(StyleUNetModel, "predict", spied)
    return seen


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time step of each call of the model as a whole, which computes everything anew."""
    seen: list[int] = []
    apply_model = DualCondModel.apply_model

    def spied(self: DualCondModel, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        seen.append(int(t[0]))
        return apply_model(self, x, t, condition)

    monkeypatch.setattr(DualCondModel, "apply_model", spied)
    return seen


def test_the_published_row_takes_250_steps_of_three_branches(
    model: DualCondModel, task: ways.Task, evaluated: list[int], predictions: list[int]
) -> None:
    pictures, seconds = sampling.paint(model, task, SAMPLING["published"], ways.PUBLISHED_STEPS)
    assert (
        evaluated == list(range(TIMESTEPS - 1, 0, -2)) and len(evaluated) == 250 and predictions == [6] * 250
    )
    assert pictures.shape == (2, 3, 32, 32) and seconds > 0


def test_the_published_row_draws_fresh_noise(
    model: DualCondModel, task: ways.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    sigmas = []
    monkeypatch.setattr(
        "ldm.models.diffusion.ddim.ddim_step",
        lambda x, eps, alpha, before, sigma, *rest: (sigmas.append(sigma) or x, x),
    )
    ways.published(model, task, 10)
    assert len(sigmas) == 10 and min(sigmas[:-1]) > 0


def test_fewer_published_steps_are_scaled_to_250(
    model: DualCondModel, task: ways.Task, evaluated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "timer", lambda: 3.0 * len(evaluated))
    assert ways.published(model, task, 10)[1] == pytest.approx(3 * 250)
    assert len(evaluated) == 10


def test_the_second_row_evaluates_the_whole_model_10_times(
    model: DualCondModel, task: ways.Task, evaluated: list[int], predictions: list[int]
) -> None:
    sampling.paint(model, task, SAMPLING["dpm-solver"], ways.PUBLISHED_STEPS)
    assert len(evaluated) == 10 and predictions == [6] * 10


@pytest.mark.parametrize("row", [row for row in SAMPLING.values() if row.way == "prepared"])
def test_our_rows_take_10_steps_with_the_conditions_prepared(
    model: DualCondModel, task: ways.Task, evaluated: list[int], predictions: list[int], row: SamplingRow
) -> None:
    scaled = ways.Task(task.content, task.style, task.seeds, row.scales)
    sampling.paint(model, scaled, row, ways.PUBLISHED_STEPS)
    assert len(predictions) == 10 and evaluated == []
    assert set(predictions) == ({2} if row.scales == (1, 1) else {2, 6} if row.interval else {6})


@pytest.mark.parametrize("detail", [0.0, 0.5])
def test_preparing_the_conditions_changes_nothing(
    model: DualCondModel, task: ways.Task, monkeypatch: pytest.MonkeyPatch, detail: float
) -> None:
    monkeypatch.setattr(model, "detail", detail)
    (whole, _), (prepared, _) = (
        ways.unprepared(model, task),
        ways.prepared(model, task, Settings(look="sampled"), "fp32"),
    )
    torch.testing.assert_close(prepared, whole, rtol=1e-3, atol=1e-3 * float(whole.std()))


@pytest.mark.parametrize("target", ["x0", "v"])
def test_a_network_that_predicts_something_else_is_sampled_alike(
    files: Path, task: ways.Task, target: str
) -> None:
    model = plain(parameterization=target)
    (whole, _), (prepared, _) = (
        ways.unprepared(model, task),
        ways.prepared(model, task, Settings(look="sampled"), "fp32"),
    )
    torch.testing.assert_close(prepared, whole, rtol=1e-3, atol=1e-3 * float(whole.std()))


def test_each_change_is_added_to_those_before() -> None:
    changes = [(row.way, row.precision, row.channels_last, row.compile) for row in [*SAMPLING.values()][2:6]]
    assert changes == [
        ("prepared", "fp32", False, False),
        ("prepared", "bf16", False, False),
        ("prepared", "bf16", True, False),
        ("prepared", "bf16", True, True),
    ]
    assert all(row.optional == row.compile for row in SAMPLING.values())


def test_adapting_changes_memory_format_and_compiles(
    model: DualCondModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(sampling, "compile_networks", compiled.append)
    sampling.adapt(model, SAMPLING["prepared"])
    convolution = next(
        m for m in model.model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    )
    assert convolution.weight.is_contiguous() and compiled == []
    sampling.adapt(model, SAMPLING["compile"])
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last) and compiled == [model]


def test_pairs_start_again_when_the_folders_end(model: DualCondModel, files: Path) -> None:
    task = models.read_task(painting(files), model, 4, 32, GUIDANCE)
    assert task.seeds == [5, 6, 7, 8]
    assert torch.equal(task.content[0], task.content[2]) and not torch.equal(task.content[0], task.content[1])
    assert torch.equal(task.style[0], task.style[3]) and not torch.equal(task.style[0], task.style[2])


# Sampling: the program


def test_the_table_has_every_row(program: Program, files: Path, capsys: pytest.CaptureFixture) -> None:
    assert program("sampling", *painting_options(files), "--repeats", 1, "--published-steps", 3) == 0
    printed, told = capsys.readouterr()
    # so that a run which is stopped is not lost
    labels = [row.label for row in SAMPLING.values() if row.way != "process"]
    assert [label for label in labels if f"{label}: " not in told] == []
    rows = table_in(printed)
    assert list(rows) == [
        SAMPLING["published"].label.replace("250 steps", "250 steps, from 3 measured,"),
        *labels[1:],
    ]
    for seconds, ratio, memory, quality in rows.values():
        assert math.isfinite(float(seconds)) and float(seconds) > 0 and math.isfinite(float(ratio))
        assert float(memory.removesuffix(" GB")) > 0 and quality == "not run"
    assert next(iter(rows.values()))[1] == "1.00"
    assert (
        "tiny.yaml, random weights, 32 x 32 pixels, scales 0.7 and 1.5" in printed
        and "median of 1 runs" in printed
    )


def test_with_a_reference_the_table_has_the_psnr(
    program: Program, files: Path, capsys: pytest.CaptureFixture, predictions: list[int]
) -> None:
    assert (
        program(
            "sampling",
            *trained(files),
            "--repeats",
            1,
            "--reference",
            "--rows",
            "dpm-solver",
            "prepared",
            "one-branch",
        )
        == 0
    )
    qualities = [cells[-1] for cells in table_in(capsys.readouterr().out).values()]
    assert qualities[0] == qualities[1] and all(5 < float(quality) < 200 for quality in qualities)
    # Last, each of the two references once, of all the schedule's steps: with both null branches, and with none.
    assert predictions[-2 * SHORT :] == [3] * SHORT + [1] * SHORT


def test_the_ratio_is_to_the_first_row_chosen(
    program: Program, files: Path, capsys: pytest.CaptureFixture
) -> None:
    assert program("sampling", *painting_options(files), "--repeats", 1, "--rows", "prepared", "batch") == 0
    rows = table_in(capsys.readouterr().out)
    assert list(rows) == [SAMPLING["prepared"].label, SAMPLING["batch"].label]
    (first, one, *_), (second, ratio, *_) = rows.values()
    assert one == "1.00" and float(ratio) == pytest.approx(float(first) / float(second), abs=0.02, rel=0.02)


def test_the_batch_counts_for_each_of_its_pictures(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sampling, "paint", lambda model, task, row, steps: (torch.zeros(len(task.seeds), 3, 32, 32), 16.0)
    )
    options = painting(files, SamplingOptions, checkpoint="random", size=32, repeats=2)
    single, batch = (sampling.measure(SAMPLING[name], options).seconds for name in ("prepared", "batch"))
    assert (single, batch) == (16, 2)


def test_an_optional_row_may_fail(
    program: Program, files: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_compiled(name: str, work: Any, row: SamplingRow, options: Any) -> sampling.Measured:
        if row.compile:
            raise UserError("row compile failed")
        return sampling.Measured(2.0, 0, np.zeros((3, 32, 32), np.float32))

    monkeypatch.setattr(sampling, "in_own_process", fails_compiled)
    rows = ["--reference", "--rows", "published", "compile"]
    assert program("sampling", *trained(files), *rows) == 0
    assert list(table_in(capsys.readouterr().out).values()) == [
        ["2", "1.00", "not known", "random"],
        ["failed", "failed", "failed", "not run"],
    ]


def test_any_other_row_may_not_fail(
    program: Program, files: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "in_own_process", in_own_process)
    monkeypatch.setattr(measuring, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(sampling, "adapt", lambda model, row: 1 / 0)
    assert program("sampling", *painting_options(files), "--rows", "dpm-solver") == 2
    problem = "row dpm-solver failed (ZeroDivisionError: division by zero); leave it out with --rows"
    assert problem in capsys.readouterr().err


class Inline(ThreadPoolExecutor):
    """In place of a pool of processes."""

    def __init__(self, count: int, mp_context: Any):
        super().__init__(count)


def test_a_process_of_its_own_is_another() -> None:
    assert in_own_process("a", os.getpid) != os.getpid()


def test_a_process_that_dies_is_a_user_error() -> None:
    with pytest.raises(UserError, match="^row a failed: its process was ended, maybe as memory was short$"):
        in_own_process("a", os._exit, 1)


def test_the_whole_process_is_the_program_itself(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def called(command: list[Any], **options: Any) -> subprocess.CompletedProcess:
        assert Path(command[5]).is_file() and Path(command[7]).is_file()
        calls.append([*map(str, command)])
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", called)
    assert sampling.measure_process(painting(files, SamplingOptions, repeats=3), 32, "sampled").seconds >= 0
    assert len(calls) == 4 and calls[0][:4] == [sys.executable, "-m", "ldm", "stylize"]
    assert calls[0][4::2] == ["--content", "--style", "--output", "--look", "--size"] and calls[0][-3::2] == [
        "sampled",
        "32",
    ]


def test_a_failing_program_is_no_time(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, 2, stderr="painting\nerror: no weights\n"),
    )
    options = painting(files, BrushOptions, repeats=1)
    with pytest.raises(ValueError, match="^artfusion stylize failed: error: no weights$"):
        sampling.measure_process(options, 32, "sampled")


def test_only_the_bundled_model_has_the_row_of_the_whole_process() -> None:
    def chosen(checkpoint: str) -> list[str]:
        return sampling.choose_rows(SamplingOptions(checkpoint=checkpoint))

    assert chosen("mini") == [*SAMPLING] and chosen("random") == chosen("my.ckpt") == [*SAMPLING][:-1]
    assert [*SAMPLING][-1] == "process"


@pytest.mark.parametrize(
    "config, expected", [("configs/mini.yaml", "mini"), ("configs/kl16_content12.yaml", "random")]
)
def test_weights_are_those_of_the_config(config: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert PaintingOptions(config=config).weights == expected


def test_no_layer_of_random_weights_is_zero(files: Path) -> None:
    model = models.load_model(painting(files), torch.device("cpu"))
    assert all(bool(weight.any()) for weight in model.model.parameters() if weight.dim() > 1)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())


def test_sampling_is_measured_without_lightning() -> None:
    code = "import sys, benchmarks.sampling, benchmarks.convergence, benchmarks.gpu; sys.exit('pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_rows_run_in_processes_of_their_own(files: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ldm",
        "benchmark",
        "sampling",
        *painting_options(files),
        "--repeats",
        "1",
        "--rows",
        "dpm-solver",
        "prepared",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert list(table_in(done.stdout)) == [SAMPLING["dpm-solver"].label, SAMPLING["prepared"].label]


# Convergence


def test_convergence_has_every_sampler_and_every_scale(
    program: Program, files: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convergence, "STEPS", (5, SHORT))
    assert program("convergence", *trained(files), "--pictures", 2) == 0
    printed = capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == ["sampler", "content scale", "style scale", "5 steps", f"{SHORT} steps"]
    scales = [["1", "1"], ["0.7", "1.5"], ["2", "2"]]
    expected = [[sampler, *pair] for sampler in ("dpm-solver++", "ddim") for pair in scales]
    assert [row[:3] for row in rows[2:]] == [*expected, ["ancestral", "any", "any"]]
    assert rows[-1][3:] == ["random", "random"] and "do not converge" in printed
    assert all(math.isfinite(float(row[3])) for row in rows[2:-1])
    assert [row[4] for row in rows[5:8]] == ["inf"] * 3  # DDIM's converged result itself
    assert f"DDIM with {SHORT} steps, float32, mean of 2 pictures of 32 x 32 pixels; short.yaml" in printed


def test_all_pictures_are_painted(
    model: DualCondModel, task: ways.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convergence, "BATCH", 1)
    with convergence.tqdm(disable=True) as bar:
        painted = convergence.paint(model, task, "ddim", 3, bar)
    together, _ = ways.prepared(model, task, Settings(look="sampled", sampler="ddim", steps=3), "fp32")
    torch.testing.assert_close(painted, together, rtol=1e-3, atol=1e-4)


# The fine look


def test_the_brush_suite_has_every_size_and_both_starts(
    program: Program, files: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brush, "STEPS", 40)
    monkeypatch.setattr(brush, "NOTED", (0, 10, 40))
    asked = []
    monkeypatch.setattr(
        brush,
        "measure_process",
        lambda options, size, look: asked.append((size, look)) or sampling.Measured(size / 10, 2e9),
    )
    assert program("brush", *trained(files), "--pictures", 2, "--sizes", 64, 32) == 0
    assert asked == [(32, "fine"), (64, "fine")]
    sizes, energies, seconds = tables_in(capsys.readouterr().out)
    assert sizes == {"32 x 32": ["3.2", "2.00 GB"], "64 x 64": ["6.4", "2.00 GB"]}
    for name in (brush.PHOTO, brush.SAMPLED):
        first, *_, last = (float(cell.split(" ")[0]) for cell in energies[name])
        assert last < first
    # the photo has its own layout
    assert energies[brush.PHOTO][0].endswith(", -0.00)") or energies[brush.PHOTO][0].endswith(", 0.00)")
    assert (
        sorted(map(float, seconds[brush.SAMPLED])) == [*map(float, seconds[brush.SAMPLED])]
        and len(seconds[brush.PHOTO]) == 3
    )


# Clips


def test_the_steadiness_suite_compares_each_frame_for_itself_with_ours_and_another_program(
    program: Program, files: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    options = ["--config", f"{files}/short.yaml", "--checkpoint", f"{files}/short.safetensors"]
    painting = next(path for path in (files / "paintings").rglob("*") if path.is_file())
    options += ["--style", str(painting), "--size", "64", "--frames", "4"]
    for name, make in steadiness.CLIPS.items():  # the other program's results: the clips themselves
        frames = [Frame(picture, i, i, f"{i}.png") for i, picture in enumerate(make(4, 64))]
        write_frames(tmp_path / name, frames, lambda name: {})
        write_video(tmp_path / f"{name}.mp4", iter(frames), open_clip(tmp_path / name))
    assert program("steadiness", *options, "--save", f"{tmp_path}/saved", "--compare", f"{tmp_path}") == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip("| ") for row in rows] == [name for name in steadiness.CLIPS for _ in range(3)]
    for itself, ours, other in zip(rows[::3], rows[1::3], rows[2::3]):
        assert float(ours[2]) < float(itself[2]) and "other program" in other[1]
    assert len(list((tmp_path / "saved").rglob("*.png"))) == 3 * 3 * 4


def test_a_way_tells_when_it_was_low_enough() -> None:
    way = object.__new__(brush.Way)
    way.points = [(0.0, 2.0, 0.5), (1.0, 1.0, 0.5), (2.0, 0.5, 0.5)]
    assert way.seconds_to(1.5) == 1.0 and way.seconds_to(0.9) is None


# Training


def test_a_training_row_runs(program: Program, files: Path, capsys: pytest.CaptureFixture) -> None:
    assert (
        program("training", "--config", files / "tiny.yaml", "--steps", 1, "--rows", "published", "cached")
        == 0
    )
    rows = table_in(capsys.readouterr().out)
    assert list(rows) == [TRAINING["published"].label, TRAINING["cached"].label]
    assert all(
        math.isfinite(float(cell)) for speed, ratio, _, loss in rows.values() for cell in (speed, ratio, loss)
    )
    assert rows[TRAINING["published"].label][1] == "1.00"


# Everything on a GPU

GPU_ROWS = ["--rows", "published", "dpm-solver", "fused-attention", "train-published", "train-cached"]


def gpu_options(files: Path, output: Path) -> list[Any]:
    sizes = [
        "--sizes",
        32,
        "--batch-sizes",
        1,
        2,
        "--training-batch-sizes",
        3,
        "--repeats",
        1,
        "--published-steps",
        2,
    ]
    folders = ["--contents", files / "photos", "--styles", files / "paintings"]
    return [
        "gpu",
        "--config",
        files / "tiny.yaml",
        *folders,
        *sizes,
        "--device",
        "cpu",
        "--output",
        output,
    ]


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setattr(measuring, "COPIED_BYTES", {"cpu": 2**16})


@pytest.fixture(scope="module")
def gpu_tables(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of results and what a run prints."""
    output, printed = tmp_path_factory.mktemp("gpu") / "results", io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(printed):
        run = program.__wrapped__(monkeypatch)
        monkeypatch.setattr(measuring, "MATRIX_SIDE", {"cpu": 64})
        monkeypatch.setattr(measuring, "COPIED_BYTES", {"cpu": 2**16})
        assert run(*gpu_options(files, output), *GPU_ROWS) == 0
    return output, printed.getvalue()


def tables_in(text: str) -> list[dict[str, list[str]]]:
    return [table_in(part) for part in text.split("\n\n") if part.startswith("|")]


def test_the_gpu_suite_has_accuracy_every_shape_and_training(gpu_tables: tuple[Path, str]) -> None:
    accuracy, one, two, trained = tables_in(gpu_tables[1])
    painting, training_names = (
        [GPU[name].label for name in GPU_ROWS[1:4]],
        [GPU[name].label for name in GPU_ROWS[4:]],
    )
    assert list(accuracy) == list(one) == list(two) == painting and list(trained) == training_names
    published, float32, fast = accuracy.values()
    assert published == ["0", "random"] and float32 == ["0", "inf"]
    assert 0 < float(fast[0]) < 0.05 and 30 < float(fast[1]) < 100  # bf16
    for cells in (*one.values(), *two.values()):
        milliseconds, rate, ratio, share, weights, memory = cells
        assert float(milliseconds) * float(rate) == pytest.approx(1000, rel=0.02) and float(ratio) > 0
        assert share.endswith("%") and weights.endswith("%") and memory.endswith(" GB")
    assert one[painting[0]][2] == trained[training_names[0]][1] == "1.0"
    assert all(float(loss) > 0 for *_, loss in trained.values())


def test_a_stopped_run_goes_on_where_it_was(
    gpu_tables: tuple[Path, str], program: Program, files: Path, monkeypatch, capsys, small_limits: None
) -> None:
    output, before = gpu_tables
    result = output / "fused-attention-2x32.json"
    kept = result.read_text()
    result.unlink()
    measured = []
    monkeypatch.setattr(
        gpu, "time_painting", lambda *args: measured.append(args[1].label) or json.loads(kept)
    )
    assert program(*gpu_options(files, output), *GPU_ROWS) == 0
    assert (
        measured == [GPU["fused-attention"].label]
        and result.read_text() == kept
        and capsys.readouterr().out == before
    )


def test_tables_alone_measure_nothing(
    gpu_tables: tuple[Path, str], program: Program, files: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(gpu, "measure_in_processes", lambda *args: pytest.fail("measured"))
    assert program(*gpu_options(files, gpu_tables[0]), *GPU_ROWS, "--tables-only") == 0
    assert capsys.readouterr().out == gpu_tables[1]
    assert program(*gpu_options(files, tmp_path), "--tables-only") == 2
    assert "no results yet; measure first" in capsys.readouterr().err


def test_rows_that_compile_nothing_share_a_process_on_a_gpu() -> None:
    rows, training = [name for name in GPU if not name.startswith("train-")], [*GPU_TRAINING]
    compiled = ["compile", "compiled-graph"]
    assert gpu.processes_for([*GPU], torch.device("cpu")) == [[name] for name in GPU]
    assert gpu.processes_for([*GPU], torch.device("cuda")) == [
        [name for name in rows if name not in compiled],
        training[:-1],
        ["compile"],
        ["compiled-graph"],
        ["train-compile"],
    ]
    some = ["compile", "dpm-solver", "published"]
    assert gpu.processes_for(some, torch.device("cuda")) == [["dpm-solver", "published"], ["compile"]]


def test_rows_in_one_process_have_models_of_their_own(
    gpu_tables: tuple[Path, str], program: Program, files: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Each row changes its model, so one shared would give the last row's numbers."""
    monkeypatch.setattr(gpu, "processes_for", lambda rows, device: [list(rows)])
    monkeypatch.setattr(gpu, "measure_limits", lambda device: {"fp32": 1e9, "bf16": 1e9, "bytes": 1e9})
    assert program(*gpu_options(files, tmp_path), *GPU_ROWS) == 0
    apart, together = tables_in(gpu_tables[1]), tables_in(capsys.readouterr().out)
    assert apart[0] == together[0] and apart[3].keys() == together[3].keys()
    # the losses
    assert [cells[-1] for cells in apart[3].values()] == [cells[-1] for cells in together[3].values()]


def test_a_row_that_fails_leaves_the_others_their_numbers(
    program: Program, files: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    called = []

    def without_channels_last(rows: str, work: Any, names: list[str], options: Any) -> None:
        called.append(names)
        if "channels-last" in names:
            raise UserError(f"row {rows} failed")

    monkeypatch.setattr(gpu, "in_own_process", without_channels_last)
    monkeypatch.setattr(gpu, "processes_for", lambda rows, device: [*filter(None, (rows[:3], rows[3:]))])
    monkeypatch.setattr(gpu, "measure_limits", lambda device: {})
    names = ["bf16", "channels-last", "prepared", "fused-attention"]
    assert program(*gpu_options(files, tmp_path), "--rows", *names) == 2
    assert called == [names[:3], ["bf16"], ["channels-last"], ["prepared"], ["fused-attention"]]
    assert "row channels-last failed" in capsys.readouterr().err
    called.clear()
    assert program(*gpu_options(files, tmp_path), "--rows", "channels-last") == 2
    assert called == [["channels-last"]]  # what failed alone is not tried again


def test_results_of_other_options_are_not_mixed(
    gpu_tables: tuple[Path, str], program: Program, files: Path, capsys
) -> None:
    assert program(*gpu_options(files, gpu_tables[0]), "--seed", 1, "--rows", "dpm-solver") == 2
    assert "has results of another machine or of other options" in capsys.readouterr().err


@pytest.mark.parametrize(
    "row, shape, measure", [("fused-attention", "1x32", "paint"), ("train-cached", "3", None)]
)
def test_what_does_not_fit_into_memory_is_a_cell(
    program: Program,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    small_limits: None,
    row: str,
    shape: str,
    measure: str | None,
) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "accuracy_tensors", lambda *args: {})
    monkeypatch.setattr(gpu if measure else training, measure or "train_step", fails)
    assert program(*gpu_options(files, tmp_path), "--rows", row) == 0
    assert json.loads((tmp_path / f"{row}-{shape}.json").read_text()) == gpu.OUT_OF_MEMORY
    assert "| out of memory |" in capsys.readouterr().out


def test_rows_for_gpus_are_left_out_elsewhere() -> None:
    left_out = {*GPU} - {*gpu.rows_for(torch.device("cpu"), [*GPU])}
    assert left_out == {"compiled-graph", "graph", "graph-fp16"}
    assert gpu.rows_for(torch.device("cuda"), [*GPU]) == [*GPU]


def test_work_is_counted_once_and_grows_with_the_steps(files: Path) -> None:
    model = models.load_model(painting(files), torch.device("cpu"))
    task = models.read_task(painting(files, GpuOptions), model, 1, 32, GUIDANCE)
    work = gpu.count_work(model, task)
    network = model.model.diffusion_model
    x = torch.zeros(3, model.channels, *2 * [32 // model.first_stage_model.encoder.factor])
    with torch.no_grad():
        once = measuring.count_flops(
            lambda: network(x, torch.zeros(3), x, torch.zeros(3, model.null_style_vector.weight.shape[1]))
        )
    # Both scales act, so a step takes three branches; what depends on time and style alone is not counted three times.
    assert 0.5 * once < work["step"] <= once
    assert work["rest"] > 0 and work["weights"] == 4 * sum(weight.numel() for weight in network.parameters())


def test_matrix_products_are_counted_as_two_operations_for_each_pair_of_numbers() -> None:
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert measuring.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_limits_are_rates(monkeypatch: pytest.MonkeyPatch, small_limits: None) -> None:
    monkeypatch.setattr(measuring, "median_seconds", lambda work: work() is None or 0.5)
    assert measuring.matrix_rate(torch.device("cpu"), torch.float32) == 2 * 64**3 / 0.5
    assert measuring.copy_bandwidth(torch.device("cpu")) == 2 * 2**16 / 0.5


# Bad input


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ([], "the following arguments are required: SUITE"),
        (["--suite", "speed"], "argument SUITE: invalid choice: 'speed' (choose from"),
        (["--suite=speed"], "argument SUITE: invalid choice: 'speed' (choose from"),
        (["training", "--rows", 1], "argument --rows: invalid choice: '1' (choose from"),
        (["training", "--batch-size", 0], "argument --batch-size: must be at least 1, got 0"),
        (["training", "--repeats", 2], "unrecognized arguments: --repeats 2"),
        (["sampling", "--rows", "graph"], "argument --rows: invalid choice: 'graph' (choose from"),
        (
            ["sampling", "--rows", "process", "--checkpoint", "random"],
            "the whole process is measured with the bundled model only",
        ),
        (
            ["sampling", "--published-steps", 0],
            "argument --published-steps: must be between 1 and 250, got 0",
        ),
        (
            ["sampling", "--published-steps", 251],
            "argument --published-steps: must be between 1 and 250, got 251",
        ),
        (["sampling", "--repeats", 0], "argument --repeats: must be at least 1, got 0"),
        (["sampling", "--size", 16], "size must be at least 32 pixels"),
        (["sampling", "--reference", "--checkpoint", "random"], "--reference needs trained weights"),
        (["sampling", "--contents", "nowhere"], "nowhere: no such folder of pictures"),
        (["sampling", "--styles", "empty"], "empty: no pictures in it"),
        (["sampling", "--pictures", 2], "unrecognized arguments: --pictures 2"),
        (
            ["sampling", "--rows", "prepared", "--size", 40],
            "--size must be a multiple of 32 for this model, got 40",
        ),
        (["sampling", "--rows", "prepared", "--device", "toaster"], "device 'toaster' is not one of"),
        (["gpu", "--batch-sizes", 0], "argument --batch-sizes: must be at least 1, got 0"),
        (["gpu", "--sizes", 16], "size must be at least 32 pixels"),
        (["gpu", "--rows", "one-branch"], "argument --rows: invalid choice: 'one-branch' (choose from"),
        (["gpu", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["training", "--sizes", 64], "unrecognized arguments: --sizes 64"),
        (["convergence", "--pictures", 0], "argument --pictures: must be at least 1, got 0"),
        (["convergence", "--reference"], "unrecognized arguments: --reference"),
        (["convergence", "--checkpoint", "random"], "this suite needs trained weights"),
        (["convergence", "--checkpoint", "nowhere.ckpt"], "nowhere.ckpt"),
    ],
)
def test_bad_options_are_refused(
    program: Program,
    files: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[Any],
    problem: str,
) -> None:
    monkeypatch.chdir(files)
    assert program(*arguments) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert (
        captured.out == "" and len(errors) == 1 and problem in errors[0] and "Traceback" not in captured.err
    )
