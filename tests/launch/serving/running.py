"""Runs the server of the small models in a process of its own, and asks it as programs do."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


@dataclasses.dataclass(frozen=True)
class Server:
    """Server of the small models."""

    process: subprocess.Popen[str]
    url: str

    def post(self, path: str, body: bytes, kind: str) -> tuple[int, Any]:
        """Returns the status and the answer of a POST."""
        request = urllib.request.Request(
            f"{self.url}/gradio_api/{path}", body, {"Content-Type": kind}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def upload(self, name: str, content: bytes) -> tuple[int, Any]:
        """Uploads a file; returns the status and its path on the server."""
        name = name.replace("\\", "\\\\").replace('"', '\\"')
        head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--edge--\r\n"
        status, answer = self.post("upload", body, "multipart/form-data; boundary=edge")
        return status, answer[0] if status == 200 else answer

    def call(self, name: str, **arguments: Any) -> tuple[int, Any]:
        """Starts a call; returns the status and its event's number."""
        status, answer = self.post(
            f"call/v2/{name}", json.dumps(arguments).encode(), "application/json"
        )
        return status, answer["event_id"] if status == 200 else answer

    def result(self, name: str, event: str) -> tuple[str, Any]:
        """Waits for a call; returns "complete" or "error", and the result."""
        url = f"{self.url}/gradio_api/call/v2/{name}/{event}"
        with urllib.request.urlopen(url, timeout=60) as response:
            text = response.read().decode()
        found = re.findall(r"event: (complete|error)\ndata: (.*)\n", text)
        return found[-1][0], json.loads(found[-1][1])

    def memory(self) -> int:
        """Returns the bytes of memory that the server and its processes hold."""
        listing = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,rss="], capture_output=True, text=True, check=True
        )
        rows = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()]
        family, size = {self.process.pid}, -1
        while len(family) != size:
            size = len(family)
            family |= {pid for pid, parent, _ in rows if parent in family}
        return 1024 * sum(rss for pid, _, rss in rows if pid in family)


def file(path: str) -> dict[str, Any]:
    """Returns an upload as calls name it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@contextmanager
def serving(
    *flags: str, folder: Path, program: str = "tests.launch.serving.server", **environment: str
) -> Iterator[Server]:
    """Runs a server; its uploads and its file ``stderr`` lie in a folder."""
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", program, "--port=0", *flags],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder), "GRADIO_SHARE": "True", **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    try:
        url = ""
        for line in process.stdout:
            if match := re.search(r"serving on (\S+);", line):
                url = match[1]
                break
        assert url, (folder / "stderr").read_text()
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0:
                    break
            time.sleep(0.1)
        yield Server(process, url)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
