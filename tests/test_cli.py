"""The command line: scripts/stylize.py and scripts/demo.py. Bad input is exit code 2, one clear line, nothing written."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import (
    ROOT,
    assert_refused,
    everything_in,
    model_config,
    narrow_vgg16,
    picture,
    picture_folder,
    pixels,
    run_program,
    save_config,
    script,
    tiny_model,
)

from ldm import program
from ldm.checkpoint import save_safetensors
from ldm.cli import main as cli_main
from ldm.commands import COMMANDS
from ldm.errors import UserError
from ldm.media.images import load_image
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.program import own_command, own_environment, run


@pytest.fixture(scope="module")
def stylize() -> ModuleType:
    return script("stylize")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photo, a painting and some files that are no pictures."""
    picture(48, 32, 1).save(tmp_path / "photo.png")
    picture(40, 40, 2).save(tmp_path / "painting.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("Dear diary, today I was renamed.")
    (tmp_path / "cut.png").write_bytes((tmp_path / "photo.png").read_bytes()[:500])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(**changes: object) -> list[str]:
    """Options of a good call, with these changed; None leaves one out."""
    options = {
        "content": "photo.png",
        "style": "painting.png",
        "output": "out.png",
        "look": "sampled",
        "size": 32,
        "steps": 2,
        **changes,
    }
    return [
        text
        for name, value in options.items()
        if value is not None
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]


# Bad input


@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({"content": "nowhere.png"}, "nowhere.png: no such file"),
        ({"style": "nowhere.png"}, "nowhere.png: no such file"),
        ({"content": "."}, "do not fit into one file; give a folder"),
        ({"content": "empty.png"}, "empty.png: the file is empty (0 bytes)"),
        ({"style": "text.jpg"}, "text.jpg: not a picture"),
        ({"content": "cut.png"}, "cut.png: the picture is broken or cut short"),
        ({"content": "x" * 300}, "no such file"),
        ({"content": None}, "--content"),
        ({"output": None}, "--output"),
        ({"output": "photo.png"}, "photo.png"),
        ({"output": "out.xyz"}, "unknown picture format '.xyz'"),
        ({"output": "out.txt"}, "unknown picture format '.txt'"),
        ({"output": "photo.png/out.png"}, "is a file, not a folder"),
        ({"output": "new/folder/out.png", "content": "nowhere.png"}, "nowhere.png: no such file"),
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"look": "finest"}, "--look: invalid choice: 'finest'"),
        ({"precision": "fp8"}, "--precision: invalid choice: 'fp8'"),
        ({"device": "tpu"}, "--device: invalid choice: 'tpu'"),
        ({"colour": "red"}, "--colour"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_read(
    stylize: ModuleType,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    wrong: dict,
    problem: str,
) -> None:
    monkeypatch.setattr(StyleTransferPipeline, "from_pretrained", lambda *args: pytest.fail("read the model"))
    before = everything_in(folder)
    assert_refused(run_program(stylize.main, arguments(**wrong), monkeypatch), capsys.readouterr(), problem)
    assert everything_in(folder) == before


@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({"checkpoint": "nowhere.ckpt"}, "nowhere.ckpt: no such file"),
        ({"checkpoint": "empty.png"}, "the file is empty"),
        ({"checkpoint": "text.jpg"}, "not a checkpoint"),
        ({"checkpoint": "other.safetensors"}, "tiny.yaml its config? (--config names another)"),
        ({"config": "nowhere.yaml"}, "config nowhere.yaml: no such file"),
        ({"config": "text.jpg"}, "text.jpg: not the config of a style transfer model"),
        ({"config": "photo.png"}, "config photo.png: not"),
        ({"config": "hostile.yaml"}, "target 'os.system' is not under"),
        ({"device": "cuda"}, "device 'cuda' is not available here"),
        ({"device": "cpu", "precision": "fp16"}, "precision fp16 is for GPUs"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    stylize: ModuleType,
    folder: Path,
    model_files: list,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    wrong: dict,
    problem: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    save_safetensors({"encoder.weight": torch.ones(2)}, folder / "other.safetensors")
    save_config(
        {"model": model_config(unet_config={"target": "os.system", "params": {"command": "true"}})},
        folder / "hostile.yaml",
    )
    before = everything_in(folder)
    code = run_program(stylize.main, [*model_files, *arguments(**wrong, output="new/out.png")], monkeypatch)
    assert_refused(code, capsys.readouterr(), problem)
    assert everything_in(folder) == before


def test_a_folder_that_cannot_be_written_to_is_refused(
    stylize: ModuleType, folder: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    assert_refused(
        run_program(stylize.main, arguments(), monkeypatch), capsys.readouterr(), "no permission to write"
    )


def test_the_commands_own_process(folder: Path) -> None:
    """What the tests above cannot see: lines that imports or warnings would add."""
    command = [sys.executable, ROOT / "scripts/stylize.py", *arguments(content="nowhere.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "error: nowhere.png: no such file or folder\n",
    )


# Good input


def test_a_picture_of_the_asked_size_is_written(folder: Path, model_files: list) -> None:
    command = [
        sys.executable,
        ROOT / "scripts/stylize.py",
        *model_files,
        *arguments(output="new/folder/out.jpg", size=64),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "new/folder/out.jpg\n", done.stderr
    with Image.open(folder / "new/folder/out.jpg") as result:
        assert (result.format, result.mode, result.size) == ("JPEG", "RGB", (96, 64))


def test_the_options_reach_the_pipeline(
    stylize: ModuleType, folder: Path, model_files: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "content_scale": 2.0,
        "style_scale": 3.0,
        "sampler": "ddim",
        "steps": 3,
        "eta": 0.5,
        "seed": 7,
        "look": "sampled",
        "size": 48,
    }
    assert (
        run_program(
            stylize.main, [*model_files, *arguments(**options, device="cpu", precision="fp32")], monkeypatch
        )
        == 0
    )
    pipeline = StyleTransferPipeline.from_pretrained(
        model_files[1], model_files[3], device="cpu", precision="fp32"
    )
    assert np.array_equal(
        pixels(load_image(folder / "out.png")), pixels(pipeline("photo.png", "painting.png", **options))
    )


def test_an_old_result_is_replaced(
    stylize: ModuleType, folder: Path, model_files: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        before = everything_in(folder)
        assert run_program(stylize.main, [*model_files, *arguments(seed=seed)], monkeypatch) == 0
    after = everything_in(folder)
    assert after.keys() == before.keys() and after[folder / "out.png"] != before[folder / "out.png"]


def test_allowed_targets_reach_the_config(
    stylize: ModuleType, folder: Path, model_files: list, monkeypatch, capsys
) -> None:
    save_config(
        {"model": model_config(unet_config={"target": "my.package.UNet", "params": {}})}, folder / "own.yaml"
    )
    call = [*model_files, *arguments(config="own.yaml")]
    assert_refused(run_program(stylize.main, call, monkeypatch), capsys.readouterr(), "--allow-target PREFIX")
    code = run_program(stylize.main, [*call, "--allow-target", "my.package"], monkeypatch)
    assert_refused(code, capsys.readouterr(), "No module named 'my'")


# The demo


@pytest.fixture
def demo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Runs the demo on two photos and three paintings; gives the pipeline's calls."""
    picture_folder(folder / "photos", 2, (48, 32))
    picture_folder(folder / "styles", 3, (40, 40), seed=9)
    net = narrow_vgg16()
    monkeypatch.setattr(
        StyleTransferPipeline,
        "from_pretrained",
        lambda *options: StyleTransferPipeline(tiny_model(use_ema=False), brush_network=net),
    )
    calls, call = [], StyleTransferPipeline.__call__

    def spy(self: StyleTransferPipeline, contents: Any, styles: Any, **options: Any) -> Any:
        calls.append(
            {
                "contents": contents,
                "styles": styles,
                **options,
                "painted": (painted := call(self, contents, styles, **options)),
            }
        )
        return painted

    monkeypatch.setattr(StyleTransferPipeline, "__call__", spy)

    def run(*more: str) -> list[dict[str, Any]]:
        options = [
            "--contents",
            "photos",
            "--styles",
            "styles",
            "--output",
            "new/sheet.png",
            "--size",
            "32",
            "--steps",
            "1",
        ]
        assert run_program(script("demo").main, [*options, *more], monkeypatch) == 0
        return calls

    return run


def test_the_demo_shows_every_style_once_with_what_it_was_painted_from(
    demo: Callable, capsys: pytest.CaptureFixture
) -> None:
    (call,) = demo()
    photos, styles, painted = call["contents"], call["styles"], call["painted"]
    assert call["settings"].look == "fine" and len({style.tobytes() for style in styles}) == 3
    assert photos[0] == photos[2] != photos[1]  # in turn
    sheet = load_image("new/sheet.png")
    assert sheet.size == (4 * (32 + 24) + 24, 32 + 8 + 12 + 2 * 24)
    for i, (photo, style, result) in enumerate(zip(photos, styles, painted)):
        left = 24 + i * (32 + 24)
        assert sheet.crop((left, 24, left + 32, 56)) == result
        for small, x in ((photo, left), (style, left + 20)):
            assert (
                abs(
                    pixels(sheet.crop((x, 64, x + 12, 76)))
                    - pixels(small.resize((12, 12), Image.Resampling.LANCZOS))
                ).mean()
                < 4
            )
    assert len(sheet.crop((192, 24, 224, 76)).getcolors()) > 2  # words tell what is what
    assert "sheet.png: 3 pictures in" in capsys.readouterr().out


def test_the_demos_matches_are_bundled_pictures() -> None:
    matches, names = script("demo").MATCHES, {path.stem for path in (ROOT / "data").rglob("*.jpg")}
    assert (
        set(matches) == {path.stem for path in (ROOT / "data/styles").iterdir()}
        and set(matches.values()) <= names
    )
    assert set(script("demo").matched(sorted(set(matches.values())), list(matches))) == {
        (photo, painting) for painting, photo in matches.items()
    }


def test_the_demo_draws_every_photo_in_every_style(demo: Callable, folder: Path) -> None:
    (call,) = demo("--all", "--look", "sampled")
    assert call["settings"].look == "sampled" and len(call["painted"]) == 6
    with Image.open(folder / "new/sheet.png") as sheet:
        cells = pixels(sheet)[4:, 4:].reshape(3, 28, 4, 28, 3).swapaxes(1, 2)  # 24 pixels and a gap of 4 each
        filled = (cells != 255).any(axis=(2, 3, 4))
    assert filled.tolist() == [[False, True, True, True]] + [[True] * 4] * 2


def test_the_demo_refuses_an_empty_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (folder / "none").mkdir()
    code = run_program(script("demo").main, ["--contents", "none", "--output", "sheet.png"], monkeypatch)
    assert_refused(code, capsys.readouterr(), "none: no pictures in it")


# Every program


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("two\nlines"), 2, "error: two lines\n"),
        (
            PermissionError(13, "Permission denied", "a.png"),
            2,
            "error: [Errno 13] Permission denied: 'a.png'\n",
        ),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    capsys: pytest.CaptureFixture, error: BaseException, code: int, line: str
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert (stopped.value.code, capsys.readouterr().err) == (code, line)


@pytest.mark.parametrize("returned, code", [(None, 0), (0, 0), (1, 1)])
def test_a_programs_own_exit_code_is_kept(returned: int | None, code: int) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(lambda: returned)
    assert stopped.value.code == code


def test_errors_of_the_program_itself_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


@pytest.mark.parametrize(
    "given, expected", [(None, [str(ROOT)]), ("/some/wheels", [str(ROOT), "/some/wheels"])]
)
def test_a_program_started_from_here_finds_what_this_one_does(
    given: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if given:
        monkeypatch.setenv("PYTHONPATH", given)
    assert own_environment()["PYTHONPATH"].split(os.pathsep) == expected
    assert own_command("checkpoint verify", "x.ckpt", before=["-m", "pdb"]) == [
        sys.executable,
        "-m",
        "pdb",
        "-m",
        "ldm",
        "checkpoint",
        "verify",
        "x.ckpt",
    ]


# The command that finds the sub-command


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, list[str]]]]:
    """Runs `artfusion`: its exit code, and the arguments that each sub-command was given."""

    def run_artfusion(*typed: str) -> tuple[int, dict[str, list[str]]]:
        seen: dict[str, list[str]] = {}

        def module_of(name: str) -> SimpleNamespace:
            return SimpleNamespace(main=lambda: seen.update({name: [*program.arguments()]}))

        monkeypatch.setattr(program, "_called", [])
        monkeypatch.setattr(cli_main, "importlib", SimpleNamespace(import_module=module_of))
        monkeypatch.setattr(cli_main, "run", lambda command, leave_at_once=False: run(command))
        monkeypatch.setattr("sys.argv", ["/bin/artfusion", *typed])
        with pytest.raises(SystemExit) as stopped:
            cli_main.main()
        assert sys.argv == ["/bin/artfusion", *typed]  # Lightning starts the processes of other GPUs by it
        return stopped.value.code, seen

    return run_artfusion


@pytest.mark.parametrize(
    "typed, module, arguments",
    [
        (["train", "--base", "a.yaml"], "ldm.cli.train", ["--base", "a.yaml"]),
        (["checkpoint", "verify", "a.ckpt"], "ldm.cli.verify", ["a.ckpt"]),
        (["photo.jpg", "painting.jpg"], "ldm.cli.stylize", ["photo.jpg", "painting.jpg"]),
        (["--content", "a.jpg"], "ldm.cli.stylize", ["--content", "a.jpg"]),
    ],
    ids=str,
)
def test_the_command_finds_the_sub_command(
    called: Callable, typed: list[str], module: str, arguments: list[str]
) -> None:
    assert called(*typed) == (0, {module: arguments})


@pytest.mark.parametrize(
    "typed, problem",
    [
        (["stylise"], "did you mean stylize"),
        (
            ["checkpoint", "verfy", "a.ckpt"],
            "checkpoint verfy: no such command; did you mean checkpoint verify",
        ),
        (["--version", "extra"], "--version stands alone, got 'extra'"),
    ],
)
def test_a_command_that_is_not_there_is_told(
    called: Callable, capsys: pytest.CaptureFixture, typed: list[str], problem: str
) -> None:
    assert called(*typed) == (2, {}) and problem in capsys.readouterr().err


ASK_EVERY_COMMAND = """
import importlib, json, sys
from contextlib import redirect_stdout
from io import StringIO
from ldm.commands import COMMANDS
from ldm.errors import UserError
from ldm.program import call_as

sys.modules["torch"] = sys.modules["pytorch_lightning"] = None  # importing them is an ImportError


def answer(name, word):
    call_as(name, [word])
    try:
        with redirect_stdout(StringIO()) as printed:
            importlib.import_module(COMMANDS[name].module).main()
    except SystemExit as end:
        return f"exit code {end.code}: {printed.getvalue()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


print(json.dumps({name: [answer(name, word) for word in ("--help", "--no-such-option")] for name in COMMANDS}))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    """What every command says to --help and to a wrong option where torch and Lightning are not to be had."""
    code = [sys.executable, "-c", ASK_EVERY_COMMAND]
    return json.loads(subprocess.run(code, env=own_environment(), capture_output=True, check=True).stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_answered_before_torch_is_imported(command: str, answers: dict[str, list[str]]) -> None:
    told, refused = answers[command]
    assert told.startswith(f"exit code 0: usage: artfusion {command}")
    assert refused.startswith("UserError: unrecognized arguments: --no-such-option")


@pytest.mark.parametrize(
    "typed, problem",
    [
        ("train --base configs/nope.yaml", "config configs/nope.yaml: no such file"),
        ("train --resume nope", "nope: no such file or folder"),
        ("cache --config nope.yaml --paintings . --photos . --output out", "config nope.yaml: no such file"),
        (
            "cache --config configs/mini.yaml --paintings nope --photos . --output out",
            "nope: no such folder of pictures",
        ),
        ("checkpoint/verify nope", "nope: no such file"),
        ("checkpoint/verify . --config nope.yaml", "config nope.yaml: no such file"),
        ("checkpoint/convert nope x.safetensors", "nope: no such file"),
        ("classes --checkpoint nope --classes 1 --output sheet.png", "nope: no such file"),
    ],
)
def test_what_is_not_there_is_told_before_torch_is_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: str, problem: str
) -> None:
    name, *options = typed.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "_called", [])
    program.call_as(name.replace("/", " "), options)
    command = importlib.import_module(COMMANDS[name.replace("/", " ")].module)
    for late in ("ldm.training", "ldm.checkpoint", "ldm.pipeline.classes"):
        monkeypatch.setitem(sys.modules, late, None)  # importing it is an ImportError
    with pytest.raises(UserError, match=f"^{re.escape(problem)}$"):
        command.main()


@pytest.mark.parametrize("typed", [["--hlp"], ["--content", "photo.jpg", "--hlp"]], ids=str)
def test_a_mistyped_option_is_named_before_those_that_are_missing(
    stylize: ModuleType, monkeypatch: pytest.MonkeyPatch, typed: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["stylize", *typed])
    with pytest.raises(UserError, match=r"unrecognized arguments: --hlp; did you mean --help"):
        stylize.parse_args()


def test_missing_options_are_named(stylize: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["stylize", "--content", "photo.jpg"])
    with pytest.raises(UserError, match="required: .*--style"):
        stylize.parse_args()


def test_one_photo_and_one_painting_need_no_options(
    stylize: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, output in (
        ([], "photo__painting.png"),
        (["r.png"], "r.png"),
        (["--output", "o.png"], "o.png"),
    ):
        monkeypatch.setattr("sys.argv", ["stylize", "photos/photo.jpg", "painting.jpg", *given])
        args = stylize.parse_args()
        assert (args.content, args.style, args.output) == (["photos/photo.jpg"], ["painting.jpg"], output)
    for wrong in (
        ["photo.jpg"],
        ["a", "b", "c", "d"],
        ["a", "b", "--style", "c"],
        ["a", "b", "c", "--output", "d"],
    ):
        monkeypatch.setattr("sys.argv", ["stylize", *wrong])
        with pytest.raises(UserError, match="a photo, a painting"):
            stylize.parse_args()


@pytest.mark.parametrize("more", [[], ["--help"], ["-h"]])
def test_a_group_of_commands_is_listed(
    called: Callable, capsys: pytest.CaptureFixture, more: list[str]
) -> None:
    assert called("checkpoint", *more) == (0, {})
    listed = capsys.readouterr().out
    assert "checkpoint verify" in listed and "checkpoint convert" in listed and "stylize" not in listed
