"""What stands before the page's server: who may ask, for what, and how much may be sent.

gradio has far more ways in than this page uses (it can fetch addresses, run FFmpeg on recordings,
edit its own program). Only those that it does use are open.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

API = "/gradio_api"
OPEN = {
    "GET": (
        "/|/config/?|/theme.css|/favicon.ico|/manifest.json|/robots.txt|/login_check/?|/logout",
        "/(static|assets|svelte)/.+",
        f"{API}/(info|openapi.json|startup-events|queue/status|queue/data|upload_progress|login_check)/?",
        f"{API}/(heartbeat|call)/.+",
        f"{API}/file=/.+",
    ),
    "POST": (f"/login/?|{API}/(queue/join|upload|cancel|reset)/?", f"{API}/(call|run)/.+"),
}
MCP = f"{API}/mcp(/.*)?"
MAX_BODY = 4 * 2**20  # of what is no upload; a drawing has some 20 KB
UPLOAD_EXTRA = 2**20  # what a form adds to its files
MAX_FOLDER_BYTES = 4 * 2**30
HEADERS = {
    # gradio builds its templates with `Function`, and styles them in place.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """An ASGI middleware."""

    def __init__(self, app: Any, folder: Path, max_file: int, is_local: bool, mcp: bool = False):
        """folder: of all uploads and results. is_local: nobody from elsewhere has business here, so
        that a request by another host's name is a web page's trick (DNS rebinding)."""
        self.app, self.folder, self.max_file, self.is_local = app, folder, max_file, is_local
        more = {"GET": (MCP,), "POST": (MCP,), "DELETE": (MCP,)} if mcp else {}
        self._open = {
            method: re.compile(
                "|".join(f"(?:{way})" for way in (*OPEN.get(method, ()), *more.get(method, ())))
            )
            for method in ("GET", "POST", *(["DELETE"] if mcp else []))
        }

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answers what may not be asked itself; hands on the rest."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            refusal = self.refusal(scope)
            if refusal is None:
                await self.app(scope, receive, _with_headers(send))
            else:
                await _answer(send, *refusal)

    def refusal(self, scope: Any) -> tuple[int, str] | None:
        """(status, line) of an HTTP request that is not handed on."""
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        method = "GET" if scope["method"] in ("HEAD", "OPTIONS") else scope["method"]
        path = scope["path"]
        if self.is_local and not is_loopback(headers.get("host", "")):
            return 403, "this page is for this computer only; start it with --host to open it to a network"
        if method not in self._open or not self._open[method].fullmatch(path):
            return 404, "there is nothing here"
        if method in ("POST", "DELETE"):
            return self._from_elsewhere(headers) or self._too_much(path, headers)
        return None

    def _from_elsewhere(self, headers: dict[str, str]) -> tuple[int, str] | None:
        """A refusal where another web page, open in a visitor's browser, sends something here."""
        origin = urlsplit(headers.get("origin", "")).netloc
        foreign = headers.get("sec-fetch-site") == "cross-site"
        # Behind a proxy the page may have another name than here.
        if foreign or (self.is_local and origin and origin != headers.get("host")):
            return 403, "this page takes nothing from other web pages"
        return None

    def _too_much(self, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "the length of what is sent has to be told"
        is_upload = path.rstrip("/") == f"{API}/upload"
        limit = self.max_file + UPLOAD_EXTRA if is_upload else MAX_BODY
        if int(length) > limit:
            return (
                413,
                f"{int(length) >> 20} MB are more than the limit of {(self.max_file if is_upload else MAX_BODY) >> 20} MB",
            )
        if is_upload and _bytes_in(self.folder) > MAX_FOLDER_BYTES:
            return 507, "the page's folder is full; results are deleted after an hour, come back then"
        return None


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this computer itself."""
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or "]:" in host else host
    name = name.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # deleted meanwhile
            continue
    return total


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*message.get("headers", []), *own]
        await send(message)

    return sending


async def _answer(send: Send, status: int, line: str) -> None:
    body = line.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]}
    )
    await send({"type": "http.response.body", "body": body})
