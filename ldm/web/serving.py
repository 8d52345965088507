"""Starts the page: its own temporary folder, the model in the background, a guarded server."""

import logging
import os
import shutil
import socket
import tempfile
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ldm.errors import UserError
from ldm.pipeline.settings import Settings
from ldm.web.easel import Easel
from ldm.web.guard import Guard, is_loopback
from ldm.web.orders import MAX_FILE_BYTES
from ldm.web.studio import Studio

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import StyleTransferPipeline

PORTS = range(7860, 7960)
KEPT_SECONDS, CLEANED_EVERY = 3600, 600  # of uploads and results
PREFIX, ALIVE = "artfusion-web-", "alive"  # of its folder; a file there that is locked while it is served
# Paintings wait in a line of our own, where places are told; gradio's queue is for all requests.
REQUESTS, THREADS = 400, 120


@dataclass(frozen=True)
class Address:
    """Where the page is, and for whom. port: None is the first free one. accounts: (name, password)
    pairs; None lets everybody in. opens: in a browser, too."""

    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    accounts: list[tuple[str, str]] | None = None
    opens: bool = True
    mcp: bool = False

    @property
    def is_local(self) -> bool:
        """Whether only this computer can reach it."""
        return is_loopback(self.host) and not self.share

    @property
    def reached_as(self) -> str:
        """The host in an address to open on this computer."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host


def serve(
    address: Address,
    load: Callable[[], "StyleTransferPipeline"],
    about: Callable[[Settings, str], dict[str, Any]],
    settings: Settings,
    max_size: int,
) -> None:
    """Serves the page until Ctrl-C or SIGTERM; what `load` raises ends it. Raises UserError."""
    check_packages(address.mcp)
    port = free_port(address)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks itself whether it is there
    with own_folder() as folder:
        # gradio reads both when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
        from ldm.web.api import build
        from ldm.web.page import CSS, THEME

        studio, easel = Studio(load), Easel(folder, about, max_size)
        page = build(studio, easel, settings)
        from starlette.middleware import Middleware

        guard = Middleware(
            Guard, folder=folder, max_file=MAX_FILE_BYTES, is_local=address.is_local, mcp=address.mcp
        )
        page.queue(max_size=REQUESTS, default_concurrency_limit=None)
        page.launch(
            server_name=address.host,
            server_port=port,
            share=address.share,
            auth=address.accounts,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_threads=THREADS,
            max_file_size=MAX_FILE_BYTES,
            app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=address.mcp,
            footer_links=[],
            theme=THEME,
            css=CSS,
        )
        here = f"http://{address.reached_as}:{port}"
        print(f"ArtFusion paints at {page.share_url or here} (Ctrl-C ends it)", flush=True)
        if address.opens and can_show_a_browser():
            webbrowser.open(here)
        try:
            studio.pipeline  # noqa: B018  # whatever is wrong with the model ends the page at once
            while True:
                time.sleep(CLEANED_EVERY)
                easel.forget(KEPT_SECONDS)
        finally:
            page.close(verbose=False)


def free_port(address: Address) -> int:
    """The port to listen at. Raises UserError where it is taken."""
    for port in PORTS if address.port is None else [address.port]:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            with socket.socket(family) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((address.host, port))
                return port
        except OSError as error:
            problem = error
    if address.port is None:
        raise UserError(f"no port from {PORTS[0]} to {PORTS[-1]} is free at {address.host}: {problem}")
    raise UserError(
        f"--port {address.port} at {address.host} cannot be used: {problem.strerror}; choose another"
    )


def check_packages(mcp: bool) -> None:
    """Raises UserError without what the page is made with."""
    if find_spec("gradio") is None:
        raise UserError("the page needs the package gradio; install it with: pip install -e '.[web]'")
    if mcp and find_spec("mcp") is None:
        raise UserError("--mcp needs the package mcp; install it with: pip install 'gradio[mcp]'")


@contextmanager
def own_folder() -> Iterator[Path]:
    """A new folder for all files of the page's, deleted at the end, or by the next page where this
    one was killed; the process works in an empty one within it, since gradio serves from where it
    works."""
    sweep()
    folder, before = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve(), Path.cwd()
    files, empty = folder / "files", folder / "empty"
    for each in (files, empty):
        each.mkdir()
    os.chdir(empty)
    try:
        with FileLock(folder / ALIVE):
            yield files
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Deletes the folders of pages that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            with FileLock(folder / ALIVE, timeout=0):
                pass
        except (OSError, Timeout):  # somebody else's, or one that is served
            continue
        shutil.rmtree(folder, ignore_errors=True)


def can_show_a_browser() -> bool:
    """Whether there is a screen; without one, a browser for terminals would take this one's."""
    return (
        os.name == "nt"
        or os.uname().sysname == "Darwin"
        or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    )


def read_accounts(path: str | Path) -> list[tuple[str, str]]:
    """The accounts of a file with a line NAME:PASSWORD for each. Raises UserError."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the accounts cannot be read ({error})") from error
    accounts = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, password = line.strip().partition(":")
        if not (name and colon and password):
            raise UserError(f"{path}: line {number} is not NAME:PASSWORD")
        accounts.append((name, password))
    if not accounts:
        raise UserError(f"{path}: no accounts in it; a line is NAME:PASSWORD")
    return accounts
