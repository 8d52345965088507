"""Every program's beginning and end: Ctrl-C from the first moment on, words that nobody can take, names of any bytes."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_builders import ROOT, picture

from ldm.commands import COMMANDS
from ldm.program import run
from ldm.streams import Lasting

# Ctrl-C, or SIGTERM, at the moment when a module is about to be imported, and then what starts a program.
INTERRUPTED = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{number})

sys.meta_path.insert(0, Interrupt())
sys.argv = {arguments!r}
{start}
"""
PALETTE = ("--look", "palette", "--size", "64", "--overwrite")
IN_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def started(*command: str | bytes, folder: Path, **options: object) -> subprocess.CompletedProcess:
    """A program's own process, begun in a folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    # what is started in the background by some shells is not to hear Ctrl-C
    hearing = {} if os.name != "posix" else {"preexec_fn": _hear_ctrl_c}
    return subprocess.run(command, cwd=folder, env=env, timeout=300, **hearing, **options)


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(80, 60).save(tmp_path / "photo.png")
    picture(64, 64, 1).save(tmp_path / "painting.png")
    return tmp_path


# Ctrl-C


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a signal on POSIX systems")
@pytest.mark.parametrize("start", ["package", "scripts/stylize.py", "scripts/digits.py"])
@pytest.mark.parametrize(
    "module, number, exit_code",
    [
        *(
            (name, "SIGINT", 130)
            for name in ("ldm.cli.main", "ldm.errors", "ldm.cli.stylize", "numpy", "PIL")
        ),
        ("numpy", "SIGTERM", 143),
    ],
)
def test_ctrl_c_while_a_program_is_imported_ends_it_in_one_word(
    folder: Path, start: str, module: str, number: str, exit_code: int
) -> None:
    if "digits" in start and module.startswith("ldm.cli"):
        return  # has no part in it
    run = (
        "runpy.run_module('ldm', run_name='__main__')"
        if start == "package"
        else f"runpy.run_path({str(ROOT / start)!r}, run_name='__main__')"
    )
    code = INTERRUPTED.format(
        module=module,
        number=number,
        arguments=["artfusion", "photo.png", "painting.png", "r.png", *PALETTE],
        start=run,
    )
    done = started(sys.executable, "-c", code, folder=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (exit_code, "", "stopped\n")


@pytest.mark.parametrize("script", sorted({c.script for c in COMMANDS.values() if c.script}))
def test_a_script_imports_nothing_before_it_is_ready_for_ctrl_c(script: str) -> None:
    code = (
        f"import runpy, sys; runpy.run_path({str(ROOT / script)!r}); "
        "print(*sorted(name for name in sys.modules if name.startswith('ldm')))"
    )
    done = started(sys.executable, "-c", code, folder=ROOT, capture_output=True, text=True)
    assert set(done.stdout.split()) <= {"ldm", "ldm.__main__", "ldm.early", "ldm.lazy"}


def test_ctrl_c_that_is_to_be_ignored_is_ignored(folder: Path) -> None:
    code = INTERRUPTED.format(
        module="ldm.errors",
        number="SIGINT",
        arguments=["artfusion", "--version"],
        start="signal.signal(signal.SIGINT, signal.SIG_IGN); runpy.run_module('ldm', run_name='__main__')",
    )
    done = started(sys.executable, "-c", code, folder=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("artfusion ")


# Words that nobody can take


def painted(folder: Path, *options: str, **streams: object) -> subprocess.CompletedProcess:
    command = (sys.executable, "-m", "ldm", "stylize", "photo.png", "painting.png", "r.png")
    return started(*command, *PALETTE, *options, folder=folder, **streams)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full is Linux's")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
def test_a_full_disk_under_what_is_printed_costs_no_picture_and_the_exit_code_says_so(
    folder: Path, options: list[str]
) -> None:
    with open("/dev/full", "w") as full:
        done = painted(folder, *options, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (folder / "r.png").exists() and done.returncode == 1
    assert done.stderr == "error: standard output: [Errno 28] No space left on device\n"
    with open("/dev/full", "w") as full:
        assert painted(folder, stdout=full, stderr=full).returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full is Linux's")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["info", "looks"], ["stylize", "--help"]], ids=str
)
def test_so_does_it_where_there_is_nothing_but_words(folder: Path, arguments: list[str]) -> None:
    command = (sys.executable, "-m", "ldm", *arguments)
    with open("/dev/full", "w") as full:
        done = started(*command, folder=folder, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "error: standard output: [Errno 28] No space left on device\n",
    )


def test_a_listener_who_has_gone_ends_it_without_a_word(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = painted(folder, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (folder / "r.png").exists() and (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(os.name != "posix", reason="streams are closed by a shell of POSIX systems")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", ">&- 2>&- <&-"])
def test_closed_streams_cost_no_picture(folder: Path, closed: str) -> None:
    command = f"{sys.executable} -m ldm photo.png painting.png r.png {' '.join(PALETTE)} {closed}"
    done = started("sh", "-c", command, folder=folder, capture_output=True, text=True)
    assert (folder / "r.png").read_bytes().startswith(b"\x89PNG") and done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr


CLOSED = "error: standard output is closed, where the result would have gone\n"


@pytest.mark.skipif(os.name != "posix", reason="streams are closed by a shell of POSIX systems")
@pytest.mark.parametrize(
    "arguments",
    ["--version", "info looks", f"photo.png painting.png r.png --json {' '.join(PALETTE)}"],
    ids=["--version", "info", "--json"],
)
def test_where_words_are_the_result_a_closed_output_is_told(folder: Path, arguments: str) -> None:
    command = f"{sys.executable} -m ldm {arguments} >&-"
    done = started("sh", "-c", command, folder=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, CLOSED)
    assert (folder / "r.png").exists() == ("--json" in arguments)


@pytest.mark.parametrize("command", ["ldm.cli.benchmark", "ldm.cli.evaluate"])
def test_the_tables_of_measurements_are_such_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr("ldm.program.lasting_streams", lambda: (None, Lasting(sys.stderr)))
    monkeypatch.setattr("benchmarks.suites.main", lambda: None)
    monkeypatch.setattr("ldm.evaluation.run.evaluate", lambda *given: None)
    for checked in ("parse_args", "check_options", "planned"):
        monkeypatch.setattr(f"ldm.cli.evaluate.{checked}", lambda *given: (None, None))
    with pytest.raises(SystemExit, match="1"):
        run(importlib.import_module(command).main)
    assert capsys.readouterr().err == CLOSED


# Names of any bytes


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
@pytest.mark.parametrize("env", [{}, IN_ASCII], ids=["UTF-8", "ASCII"])
def test_names_and_words_of_any_bytes_go_through_every_terminal(folder: Path, env: dict[str, str]) -> None:
    odd = os.fsencode(folder) + b"/od\xffd"
    os.mkdir(odd)
    (folder / "photo.png").rename(os.fsdecode(odd + b"/ph\xe4to.png"))

    def artfusion(*arguments: str | bytes) -> str:
        command = (sys.executable, "-m", "ldm", *arguments)
        done = started(*command, folder=folder, env=env, capture_output=True)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
        return done.stdout.decode()

    told = artfusion("stylize", "--content", odd, "--style", "painting.png", "--output", b"r\xfc/", *PALETTE)
    assert "ph\\udce4to__painting.png" in told and os.listdir(b"%b/r\xfc" % os.fsencode(folder)) == [
        b"ph\xe4to__painting.png"
    ]
    note = "Dürer, gemeinfrei".encode()
    artfusion("style", "save", b"\xfc.safetensors", odd + b"/ph\xe4to.png", "--note", note)
    told = artfusion("styles", b"\xfc.safetensors", "--output", b"sheet\xfc.png")
    assert "D\\xfcrer" in told or "Dürer" in told
    assert artfusion("styles", "--output", "sheet.png")
    table = (b"--write-manifest", b"t\xfc.csv")
    artfusion("stylize", "--content", odd, "--style", "painting.png", "--output", b"r\xfc/", *PALETTE, *table)
    artfusion("stylize", "--manifest", b"t\xfc.csv", "--output", b"again\xfc/", *PALETTE)
