"""Gate before Gradio: the few routes that the page and its API need, within limits.

Gradio has routes for much more than this page: files by URL, a proxy, recordings, run histories in
buckets, monitoring, deep links. The gate, an ASGI application around Gradio's, lets through those
that the page and the documented API use and refuses all others. It bounds each request's body in
size and time, and refuses files that were not uploaded here: paths elsewhere and URLs. Other
websites cannot use the server through a visitor's browser: requests with another site's ``Origin``
are refused, and on a loopback address those with another ``Host`` (DNS rebinding). The
``Content-Security-Policy`` keeps the page from loading anything from elsewhere.
"""

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Container, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from launch.serving.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PREFIX = "/gradio_api"
READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static|svelte)/.+"
    rf"|{PREFIX}/(info|openapi\.json|app_id|user|login_check|startup-events|theme\.css"
    r"|queue/data|queue/status|upload_progress)/?"
    rf"|{PREFIX}/heartbeat/[\w-]+|{PREFIX}/call/(v2/)?\w+/[\w-]+"
)
"""Paths of GET and HEAD requests, beside those of uploaded files."""
CALL = re.compile(rf"{PREFIX}/(call/(v2/)?\w+|run/predict|queue/join|cancel|reset)/?")
"""Paths of POST requests with JSON. Gradio refuses ``run``, which the examples use, to functions
that have a queue."""
UPLOAD = f"{PREFIX}/upload"
FILE = f"{PREFIX}/file="
MOST_JSON = 64 * 2**10
"""Largest body of a call, bytes."""
MOST_QUERY = 4096
"""Longest query of an address, bytes."""
MOST_DISCARDED, DISCARDING = 64 * 2**20, 5.0
"""Bytes and seconds of a refused body that are received and dropped."""
FORM_BYTES = 16 * 2**10
"""Bytes of a multipart form around its file."""
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        b"media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
        b"connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
        b"frame-ancestors 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""Headers of every response."""


class _Refusal(Exception):
    """A request that is refused, with its HTTP status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Gate:
    """ASGI application that refuses what the page does not need and passes on the rest.

    Args:
      app: Gradio's application.
      folder: folder of the uploads.
      limits: of body sizes, time and disk.
      host: address the server listens on; a loopback address is reachable under loopback names
        only.
    """

    def __init__(self, app: Application, folder: Path, limits: Limits, host: str) -> None:
        self._app, self._folder, self._limits = app, folder.resolve(), limits
        self._loopback = is_loopback(host)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handles one connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # A WebSocket; Gradio has none.
            await send({"type": "websocket.close", "code": 1008})
            return
        started, over = False, scope["method"] in ("GET", "HEAD")
        refusals: list[_Refusal] = []

        async def followed_receive() -> Message:
            nonlocal over
            message = await receive()
            over = not message.get("more_body", False)
            return message

        async def guarded_receive() -> Message:
            try:
                return await source()
            except _Refusal as refusal:
                refusals.append(refusal)
                raise

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                # Gradio answers the error of a body's source with "Internal Server Error".
                if refusals:
                    raise refusals[0]
                started = True
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            source = await self._admit(scope, followed_receive)
            await self._app(scope, guarded_receive, guarded_send)
        except _Refusal as refusal:
            refusals.append(refusal)
        if refusals and not started:
            reason = refusals[0]
            refusals.clear()
            # A client that is still sending would see a broken connection, not the reason.
            left = MOST_DISCARDED
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.0 if reason.status == 408 else DISCARDING):
                    while not over and left > 0:
                        left -= len((await followed_receive()).get("body", b""))
            await _respond(guarded_send, reason.status, str(reason))

    async def _admit(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        """Returns the source of the request's body, within its limits.

        Raises:
          _Refusal: a request that is not let through.
        """
        headers = {name.lower(): value for name, value in scope["headers"]}
        self._check_origin(headers)
        method, path = scope["method"], scope["path"]
        if len(scope.get("query_string", b"")) > MOST_QUERY:
            raise _Refusal(414, f"query: expected at most {MOST_QUERY} bytes, received more")
        if method in ("GET", "HEAD"):
            if path.startswith(FILE):
                if not self._stored(path.removeprefix(FILE)):
                    raise _Refusal(404, "file: expected one that was uploaded here")
            elif not READ.fullmatch(path):
                raise _Refusal(404, "no such page")
            return receive
        if method != "POST":
            raise _Refusal(405, f"method: expected GET, HEAD or POST, received {method}")
        if path.rstrip("/") == UPLOAD:
            self._check_disk()
            return self._bounded(headers, receive, self._limits.upload_bytes + FORM_BYTES)
        if not CALL.fullmatch(path):
            raise _Refusal(404, "no such page")
        body = await self._read(self._bounded(headers, receive, MOST_JSON))
        self._check_files(body)
        return _replay(body, receive)

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self._loopback and not is_loopback(_host_name(host)):
            raise _Refusal(421, "Host: expected a loopback address, as 127.0.0.1 or localhost")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and urllib.parse.urlsplit(origin).netloc.lower() != host.lower():
            raise _Refusal(403, "Origin: expected this server's own pages, received another site's")

    def _check_disk(self) -> None:
        stored = sum(status.st_size for _, status in _files(self._folder))
        if stored + self._limits.upload_bytes > self._limits.stored_bytes:
            raise _Refusal(
                503,
                f"uploads: the server holds {stored // 2**20} MiB of them already; try again in "
                f"{self._limits.keep_seconds / 60:.0f} minutes",
            )

    def _bounded(self, headers: dict[bytes, bytes], receive: Receive, most: int) -> Receive:
        """Returns the source of a body of at most ``most`` bytes that does not take for ever."""
        too_large = _Refusal(413, f"body: expected at most {most / 2**20:.3g} MiB, received more")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            raise too_large
        seconds, received, over = self._limits.request_seconds, 0, False
        deadline = time.monotonic() + seconds

        async def bounded_receive() -> Message:
            nonlocal received, over
            if over:  # The rest is a client that waits for the response, or leaves.
                return await receive()
            try:
                left = max(deadline - time.monotonic(), 0.0)
                message = await asyncio.wait_for(receive(), left)
            except TimeoutError:
                raise _Refusal(408, f"body: expected within {seconds:g} s, received less") from None
            received += len(message.get("body", b""))
            if received > most:
                raise too_large
            over = not message.get("more_body", False)
            return message

        return bounded_receive

    async def _read(self, receive: Receive) -> bytes:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Refusal(400, "body: the client left")
            body += message.get("body", b"")
            if not message.get("more_body", False):
                return body

    def _check_files(self, body: bytes) -> None:
        """Raises _Refusal if a call is not JSON, or names a file that was not uploaded here."""
        try:
            call = json.loads(body or b"{}")
            paths = list(_paths(call))
        except (ValueError, RecursionError):
            raise _Refusal(400, "body: expected JSON") from None
        for path in paths:
            if not isinstance(path, str) or not self._stored(path):
                raise _Refusal(
                    400,
                    "path: expected that of a file uploaded to "
                    f"{UPLOAD}, received another or a URL",
                )

    def _stored(self, path: str) -> bool:
        """Returns True if a path is that of a file in the folder of uploads."""
        if "\0" in path or not path.startswith("/"):
            return False
        try:
            real = Path(path).resolve(strict=True)
        except (OSError, RuntimeError):
            return False
        return real.is_file() and real.is_relative_to(self._folder)


def is_loopback(host: str) -> bool:
    """Returns True if a host name or address is this machine's own, as ``localhost``."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def delete_old(folder: Path, seconds: float, keep: Container[Path] = ()) -> None:
    """Deletes the files below a folder that are older than some seconds, and folders left empty.

    Args:
      folder: folder of the uploads.
      seconds: age from which on files are deleted.
      keep: files that stay, as those of the examples.
    """
    oldest = time.time() - seconds
    for path, status in list(_files(folder)):
        if status.st_mtime < oldest and path not in keep:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # It holds other files.
                path.parent.rmdir()


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yields each file below a folder, with its size and time."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            with contextlib.suppress(FileNotFoundError):  # It was deleted just now.
                yield path, path.lstat()


def _paths(value: Any) -> Iterator[Any]:
    """Yields the value of every key ``path`` in a structure of JSON."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)


def _host_name(host: str) -> str:
    """Returns the name in a ``Host`` header, without port and brackets."""
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a source that gives a body that has been read, then what ``receive`` does."""
    done = False

    async def replayed() -> Message:
        nonlocal done
        if done:
            return await receive()
        done = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _respond(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # The rest of a body that is not read would be taken for the next request.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
