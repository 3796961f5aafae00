"""Several clients at once against one: no errors, latency and throughput."""

import importlib.util
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from flaxnets.inference.loading import shipped_models
from tests.data.video_files import write_video
from tests.launch.serving.running import Server, file, serving

logger = logging.getLogger(__name__)

CLIENTS = 8
SECONDS = 120.0
MODEL = "moving_shapes"


def ask_until(server: Server, clip: bytes, end: float, taken: list[float]) -> None:
    """Uploads a clip and asks for its classes, again and again; adds the seconds of each."""
    while time.monotonic() < end:
        start = time.monotonic()
        status, path = server.upload("clip.mp4", clip)
        assert status == 200, path
        status, event = server.call("predict", video=file(path))
        assert status == 200, event
        kind, answer = server.result("predict", event)
        assert kind == "complete", answer
        taken.append(time.monotonic() - start)


def measure(server: Server, clip: bytes, clients: int, seconds: float) -> tuple[float, np.ndarray]:
    """Returns the requests/s of some clients, and the seconds of each request, sorted."""
    taken: list[float] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            ask_until(server, clip, end, taken)
        except BaseException as error:
            failures.append(error)

    start = time.monotonic()
    end = start + seconds
    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    return len(taken) / (time.monotonic() - start), np.sort(taken)


@pytest.mark.stress
@pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="the extra serve is not installed"
)
def test_eight_clients_for_two_minutes(tmp_path: Path) -> None:
    if MODEL not in shipped_models():
        pytest.skip(f"the model {MODEL} is not shipped")
    clip = write_video(tmp_path / "clip.mp4", 20).read_bytes()
    with serving(f"--model={MODEL}", folder=tmp_path, program="launch.serve") as server:
        measure(server, clip, 1, 2.0)
        before = server.memory()
        alone, one = measure(server, clip, 1, SECONDS / 4)
        together, many = measure(server, clip, CLIENTS, SECONDS)
        after = server.memory()
    p99 = [float(np.quantile(taken, 0.99)) for taken in (one, many)]
    logger.info(
        "requests/s: %.2f alone, %.2f together (×%.2f); p99: %.2f s, %.2f s (×%.2f); medians "
        "%.2f s, %.2f s; %d requests; memory %d, %d MiB",
        *(alone, together, together / alone, p99[0], p99[1], p99[1] / p99[0]),
        *(float(np.median(one)), float(np.median(many)), len(many), before >> 20, after >> 20),
    )
    # Each waits for the seven others, and no longer.
    assert together > 0.8 * alone
    assert p99[1] < 2 * CLIENTS * p99[0]
    assert after < before + 300 * 2**20
