"""Gate before Gradio: routes, bodies, files and origins that it refuses."""

import asyncio
import json
import os
import time
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from launch.serving.gate import FILE, FORM_BYTES, MOST_JSON, Gate, delete_old, is_loopback
from launch.serving.limits import Limits

LIMITS = Limits(upload_bytes=1000, request_seconds=0.3, stored_uploads=3)


class Inner:
    """Application that reads each body and answers with it, as Gradio's with its own errors."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        status, body = 200, b""
        try:
            more = scope["method"] == "POST"
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            self.bodies.append(body)
        except Exception:  # As Starlette's, which turns any error into a response.
            status = 500
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})


def ask(
    folder: Path,
    method: str,
    path: str,
    chunks: Iterable[bytes] = (b"",),
    *,
    headers: dict[str, str] | None = None,
    host: str = "127.0.0.1",
    pause: float = 0.0,
    query: bytes = b"",
) -> tuple[int, bytes, dict[bytes, bytes], Inner]:
    """Sends one request; returns status, body and headers, and the application behind the gate."""
    inner, sent, rest = Inner(), [], list(chunks)
    given = {"host": "127.0.0.1:7860", **(headers or {})}

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        chunk = rest.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(rest)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
    }
    asyncio.run(Gate(inner, folder, LIMITS, host)(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], body, dict(sent[0]["headers"]), inner


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/theme.css", "/assets/index.js", "/static/fonts/a.woff2", "/favicon.ico",
     "/gradio_api/info", "/gradio_api/queue/data", "/gradio_api/heartbeat/a1b2",
     "/gradio_api/call/predict/0123abcd", "/gradio_api/call/v2/caption_2/0123abcd"],
)  # fmt: skip
def test_what_the_page_reads_is_let_through(path: str, tmp_path: Path) -> None:
    assert ask(tmp_path, "GET", path)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/monitoring", "/gradio_api/proxy=http://10.0.0.1/", "/gradio_api/deep_link", "/login",
     "/gradio_api/file=http://10.0.0.1/", "/gradio_api/file=/etc/passwd", "/gradio_api/runs",
     "/gradio_api/stream/a/1/2/playlist.m3u8", "/docs", "/gradio_api/file=/etc/../etc/passwd",
     "/gradio_api/custom_component/1/a/b/c", "/pwa_icon", "/gradio_api/run-history/buckets"],
)  # fmt: skip
def test_what_the_page_does_not_read_is_refused(path: str, tmp_path: Path) -> None:
    status, body, _, inner = ask(tmp_path, "GET", path)
    assert status == 404
    assert json.loads(body)["detail"]
    assert not inner.bodies


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/process_recording", "/gradio_api/vibe-edit", "/gradio_api/run/caption", "/login",
     "/gradio_api/api/predict", "/gradio_api/component_server", "/gradio_api/stream/abc", "/"],
)  # fmt: skip
def test_what_the_page_does_not_call_is_refused(path: str, tmp_path: Path) -> None:
    status, _, _, inner = ask(tmp_path, "POST", path, [b"{}"])
    assert status == 404
    assert not inner.bodies


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(method: str, tmp_path: Path) -> None:
    assert ask(tmp_path, method, "/")[0] == 405


def test_every_response_forbids_loading_from_elsewhere(tmp_path: Path) -> None:
    for path in ("/", "/monitoring"):
        policy = ask(tmp_path, "GET", path)[2][b"content-security-policy"].decode()
        assert "default-src 'self'" in policy
        assert "http" not in policy


def test_uploaded_files_are_read_and_no_others(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "a b.png").write_bytes(b"1")
    (tmp_path / "secret").write_bytes(b"2")
    (uploads / "link").symlink_to(tmp_path / "secret")
    assert ask(uploads, "GET", f"{FILE}{uploads}/a b.png")[0] == 200
    for path in (
        f"{uploads}/link",
        f"{uploads}/../secret",
        str(uploads),
        f"{uploads}/none",
        "a\0b",
    ):
        assert ask(uploads, "GET", FILE + path)[0] == 404


def call(path: str) -> bytes:
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return json.dumps({"data": [[{"deep": file}]], "session_hash": "a"}).encode()


def test_a_call_with_an_upload_reaches_the_application_whole(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"1")
    body = call(str(tmp_path / "photo.jpg"))
    status, _, _, inner = ask(tmp_path, "POST", "/gradio_api/queue/join", [body[:9], body[9:]])
    assert status == 200
    assert inner.bodies == [body]


@pytest.mark.parametrize(
    "path",
    ["http://169.254.169.254/latest", "https://example.org/a.png", "file:///etc/passwd",
     "/etc/passwd", "../../etc/passwd", "", "data:image/png;base64,AAAA", "ftp://host/a",
     "\\\\host\\share\\a.png", "/proc/self/environ", "a\0b", "/gradio_api/file=/etc/passwd"],
)  # fmt: skip
def test_a_call_with_a_file_from_elsewhere_is_refused(path: str, tmp_path: Path) -> None:
    status, body, _, inner = ask(tmp_path, "POST", "/gradio_api/call/caption", [call(path)])
    assert status == 400
    assert "uploaded" in json.loads(body)["detail"]
    assert not inner.bodies


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"[" * 30_000, b'{"path": 3}', b'{"path": null}']
)
def test_a_call_that_is_no_json_or_names_no_path_is_refused(body: bytes, tmp_path: Path) -> None:
    status, _, _, inner = ask(tmp_path, "POST", "/gradio_api/call/v2/caption", [body])
    assert status == 400
    assert not inner.bodies


def test_bodies_are_bounded_whether_they_tell_their_length_or_not(tmp_path: Path) -> None:
    most = LIMITS.upload_bytes + FORM_BYTES
    for path, bound in (("/gradio_api/upload", most), ("/gradio_api/queue/join", MOST_JSON)):
        told = ask(tmp_path, "POST", path, [b""], headers={"content-length": str(bound + 1)})
        untold = ask(tmp_path, "POST", path, [b"x" * 1000] * (bound // 1000 + 1))
        lied = ask(tmp_path, "POST", path, [b"x"], headers={"content-length": "-1"})
        for status, body, _, inner in (told, untold, lied):
            assert status == 413
            assert "MiB" in json.loads(body)["detail"]
            assert not inner.bodies
    assert ask(tmp_path, "POST", "/gradio_api/upload", [b"x" * most])[0] == 200
    assert ask(tmp_path, "GET", "/", query=b"a" * 5000)[0] == 414


def test_a_body_that_trickles_in_is_given_up(tmp_path: Path) -> None:
    start = time.monotonic()
    status, body, _, _ = ask(tmp_path, "POST", "/gradio_api/upload", [b"x"] * 100, pause=0.05)
    assert status == 408
    assert "0.3 s" in json.loads(body)["detail"]
    assert time.monotonic() - start < 2


def test_uploads_are_refused_while_the_folder_is_full(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 2100)
    status, body, _, _ = ask(tmp_path, "POST", "/gradio_api/upload", [b"x"])
    assert status == 503
    assert "try again" in json.loads(body)["detail"]


def test_other_sites_and_names_are_refused(tmp_path: Path) -> None:
    for headers, status in (
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example:7860"}, 421),
        ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, 200),
        ({"host": "localhost", "origin": "http://localhost"}, 200),
        ({"host": ""}, 421),
        ({"host": "[::1"}, 421),
    ):
        assert ask(tmp_path, "GET", "/", headers=headers)[0] == status, headers
    # On an address that others reach, its names are not known.
    assert ask(tmp_path, "GET", "/", headers={"host": "server.example"}, host="0.0.0.0")[0] == 200


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("0.0.0.0", "", "127.0.0.1.evil.example", "::", "localhost.")))


def test_old_uploads_are_deleted_and_examples_kept(tmp_path: Path) -> None:
    for name in ("old/a", "old/b", "kept/c", "new/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
        if not name.startswith("new"):
            os.utime(tmp_path / name, (time.time() - 100,) * 2)
    delete_old(tmp_path, 60, {tmp_path / "kept/c"})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["c", "d", "kept", "new"]


def test_a_refused_body_is_received_so_that_the_reason_arrives(tmp_path: Path) -> None:
    rest = [b"x" * 1000] * 40
    told = {"content-length": "40000"}
    assert ask(tmp_path, "POST", "/gradio_api/upload", rest, headers=told)[0] == 413
    left = list(rest)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

    async def send(message: MutableMapping[str, Any]) -> None:
        assert not left  # Only then.

    headers = [(b"host", b"127.0.0.1"), (b"content-length", b"40000")]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers}
    asyncio.run(Gate(Inner(), tmp_path, LIMITS, "127.0.0.1")(scope, receive, send))
