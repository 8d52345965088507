"""`artfusion web` before it serves: options, accounts, ports, its own folder."""

import inspect
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pipeline_builders import ROOT, run_program

from ldm.cli import web
from ldm.errors import UserError
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.pipeline.settings import Settings
from ldm.web import serving
from ldm.web.easel import Easel
from ldm.web.serving import Address, can_show_a_browser, check_packages, free_port, own_folder, read_accounts


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be served."""
    calls: list[Any] = []
    monkeypatch.setattr(serving, "serve", lambda *given: calls.append(given))
    return calls


def test_settings_given_are_those_that_the_page_begins_with(
    served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        run_program(web.main, ["--size", "128", "--style-scale", "1.5", "--max-size", "256"], monkeypatch)
        == 0
    )
    ((address, _, _, settings, max_size),) = served
    assert address == Address() and address.is_local
    assert settings == Settings(size=128, style_scale=1.5, recolor=1.0, texture=1.0) and max_size == 256


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [("mini", None, 1.0), ("kl16_content12", None, 0.0), ("kl16_content12", 0.3, 0.3), ("mini", 0.0, 0.0)],
)
def test_the_page_shows_how_far_this_models_photos_take_colours(
    config: str, given: float | None, expected: float
) -> None:
    settings = web.as_the_model(Settings(recolor=given), ROOT / f"configs/{config}.yaml")
    assert settings == Settings(recolor=expected)  # the fine look has the rest


def test_what_a_config_does_not_say_is_as_its_model_has_it() -> None:
    fast = web.as_the_model(Settings(look="sampled"), ROOT / "configs/kl16_content12.yaml")
    defaults = inspect.signature(DualCondModel).parameters
    assert {"refine", "texture"} < set(fast.left_to_model)
    for name in fast.left_to_model:
        assert fast.value(name) == defaults[name].default


@pytest.mark.parametrize(
    ("arguments", "is_local", "warned"),
    [
        (["--host", "0.0.0.0"], False, True),
        (["--share"], False, True),
        (["--host", "192.168.0.9", "--auth-file", "accounts.txt"], False, False),
        (["--host", "localhost"], True, False),
    ],
)
def test_who_opens_it_to_a_network_is_warned_without_accounts(
    served: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    is_local: bool,
    warned: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "accounts.txt").write_text("# the studio\nann:s:ecret\n\nben:x\n")
    assert run_program(web.main, arguments, monkeypatch) == 0
    assert served[0][0].is_local is is_local
    assert ("--auth-file lets in only those" in capsys.readouterr().err) is warned
    if "--auth-file" in arguments:
        assert served[0][0].accounts == [("ann", "s:ecret"), ("ben", "x")]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--size", "4000"], "size 4000 is more than the 1024 that this page takes"),
        (["--size", "64x64"], "this page takes a size as the shorter side"),
        (["--port", "70000"], "--port must be at most 65535, got 70000"),
        (["--auth-file", "none.txt"], "none.txt: the accounts cannot be read"),
        (["--checkpoint", "none.ckpt"], "none.ckpt: no such file"),
        (["--prot", "80"], "did you mean --port"),
    ],
)
def test_wrong_options_are_one_line(
    served: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    assert run_program(web.main, arguments, monkeypatch) == 2
    assert line in capsys.readouterr().err and not served


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "find_spec", lambda name: None if name == "gradio" else object())
    with pytest.raises(UserError, match=r"pip install -e '\.\[web\]'"):
        check_packages(mcp=False)
    monkeypatch.setattr(serving, "find_spec", lambda name: None if name == "mcp" else object())
    check_packages(mcp=False)
    with pytest.raises(UserError, match=r"pip install 'gradio\[mcp\]'"):
        check_packages(mcp=True)


@pytest.mark.parametrize("text", ["", "# nobody\n", "ann\n", "ann:\n", ":secret\n"])
def test_accounts_that_let_nobody_in_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "accounts.txt").write_text(text)
    with pytest.raises(UserError, match="NAME:PASSWORD"):
        read_accounts(tmp_path / "accounts.txt")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which another program listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_that_is_taken_is_one_line(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"--port {taken} at 127.0.0.1 cannot be used: .*choose another"):
        free_port(Address(port=taken))
    monkeypatch.setattr(serving, "PORTS", [taken])
    with pytest.raises(UserError, match=f"no port from {taken} to {taken} is free"):
        free_port(Address())


def test_its_folder_is_new_and_gone_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it works in an empty one: gradio may serve what lies where it works."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("x")
    with pytest.raises(KeyboardInterrupt), own_folder() as folder:
        assert folder.parent == Path.cwd().parent and not os.listdir()
        (folder / "result.png").write_bytes(b"x")
        # what is forgotten after an hour is not where it works, nor what says that it is served
        Easel(folder, lambda settings, precision: {}, 64).forget(-60)
        assert not os.listdir(folder) and not os.listdir() and (folder.parent / "alive").exists()
        raise KeyboardInterrupt
    assert Path.cwd() == tmp_path and not folder.parent.exists()


def test_what_a_killed_page_left_is_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = tmp_path / "artfusion-web-dead"
    (dead / "upload").mkdir(parents=True)
    other = tmp_path / "artfusion"
    other.mkdir()
    with own_folder() as alive:
        assert not dead.exists() and other.exists()
        with own_folder():
            assert alive.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artfusion"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("studio", "studio"),
    ],
)
def test_where_it_is_reached(host: str, expected: str) -> None:
    assert Address(host).reached_as == expected


def test_an_empty_host_is_not_all_hosts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_program(web.main, ["--host", ""], monkeypatch) == 2
    assert "--host needs an address" in capsys.readouterr().err


def test_no_browser_is_opened_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "posix")
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(sysname="Linux"))
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not can_show_a_browser()
    monkeypatch.setenv("DISPLAY", ":0")
    assert can_show_a_browser()
