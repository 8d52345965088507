"""ldm.web.guard: who may ask the page's server, for what, and how much may be sent."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ldm.web import guard as guards
from ldm.web.guard import Guard, is_loopback

API = "/gradio_api"


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(answering, folder=tmp_path, max_file=30 * 2**20, is_local=True)


async def answering(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"hello"})


def asked(guard: Guard, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of the answer."""
    given = {"host": "127.0.0.1:7860", **headers}
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
    }
    asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
    start, body = sent
    return start["status"], {key.decode(): value.decode() for key, value in start["headers"]}, body["body"]


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/assets/index.js", "/theme.css", f"{API}/queue/data", f"{API}/file=/tmp/x/photo.png",
     f"{API}/call/stylize/123", f"{API}/heartbeat/abc", f"{API}/info"],
)  # fmt: skip
def test_what_the_page_needs_is_open(guard: Guard, path: str) -> None:
    status, headers, body = asked(guard, path)
    assert (status, body, headers["x-own"]) == (200, b"hello", "1")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{API}/proxy=https://example.org"),
        ("GET", f"{API}/file=https://example.org/a.png"),
        ("GET", f"{API}/file/etc/passwd"),
        ("GET", f"{API}/stream/1/2/3/playlist.m3u8"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("GET", "/pwa_icon"),
        ("GET", "//config"),
        ("POST", f"{API}/process_recording"),
        ("POST", f"{API}/vibe-edit"),
        ("POST", f"{API}/component_server"),
        ("POST", "/config"),
        ("GET", f"{API}/mcp/"),
        ("PUT", "/"),
        ("DELETE", "/"),
        ("PATCH", f"{API}/upload"),
    ],
)
def test_what_it_does_not_need_is_not_there(guard: Guard, method: str, path: str) -> None:
    assert asked(guard, path, method, content_length="0")[0] == 404


def test_tools_for_language_models_are_there_only_if_asked_for(tmp_path: Path) -> None:
    guard = Guard(answering, tmp_path, 2**20, is_local=True, mcp=True)
    for method in ("GET", "POST", "DELETE"):
        assert asked(guard, f"{API}/mcp/", method, content_length="2")[0] == 200


def test_a_name_that_only_leads_here_is_refused(guard: Guard, tmp_path: Path) -> None:
    """DNS rebinding: a web page's own name that was made to mean this computer."""
    status, _, body = asked(guard, "/", host="evil.example:7860")
    assert status == 403 and b"--host" in body
    open_one = Guard(answering, tmp_path, 2**20, is_local=False)
    assert asked(open_one, "/", host="studio.example")[0] == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("localhost:7860", True), ("127.0.0.1", True), ("127.8.9.1:80", True), ("[::1]:7860", True), ("::1", True),
        ("0.0.0.0", False), ("192.168.0.2:7860", False), ("localhost.evil.example", False), ("", False), ("127.0.0.1.evil.example", False),
    ],
)  # fmt: skip
def test_which_hosts_are_this_computer(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null", "sec_fetch_site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"sec_fetch_site": "same-origin"}, 200),
    ],
)
def test_other_web_pages_send_nothing_here(guard: Guard, headers: dict[str, str], status: int) -> None:
    assert asked(guard, f"{API}/upload", "POST", content_length="10", **headers)[0] == status


def test_behind_a_proxy_only_the_browser_tells_who_sends(tmp_path: Path) -> None:
    guard = Guard(answering, tmp_path, 2**20, is_local=False)
    own = {"origin": "https://studio.example", "host": "10.0.0.2:7860", "content_length": "10"}
    assert asked(guard, f"{API}/upload", "POST", **own)[0] == 200
    assert asked(guard, f"{API}/upload", "POST", **own, sec_fetch_site="cross-site")[0] == 403


def test_too_much_is_refused_before_it_is_read(guard: Guard) -> None:
    large, small = str(100 * 2**20), str(29 * 2**20)
    status, _, body = asked(guard, f"{API}/upload", "POST", content_length=large)
    assert (status, body) == (413, b"100 MB are more than the limit of 30 MB")
    assert asked(guard, f"{API}/upload", "POST", content_length=small)[0] == 200
    assert asked(guard, f"{API}/queue/join", "POST", content_length=small)[0] == 413
    assert asked(guard, f"{API}/queue/join", "POST", content_length="2000")[0] == 200


@pytest.mark.parametrize("headers", [{}, {"content_length": "-1"}, {"content_length": "many"}])
def test_what_is_sent_without_end_is_refused(guard: Guard, headers: dict[str, str]) -> None:
    assert asked(guard, f"{API}/upload", "POST", **headers)[0] == 411


def test_a_full_folder_takes_no_more_uploads(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "photo.png").write_bytes(b"\0" * 1000)
    monkeypatch.setattr(guards, "MAX_FOLDER_BYTES", 999)
    assert asked(guard, f"{API}/upload", "POST", content_length="10")[0] == 507
    assert asked(guard, f"{API}/queue/join", "POST", content_length="10")[0] == 200


def test_only_http_goes_through(guard: Guard) -> None:
    async def nothing(*_: Any) -> None:
        raise AssertionError

    assert asyncio.run(guard({"type": "websocket"}, nothing, nothing)) is None
