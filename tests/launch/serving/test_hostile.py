"""Hostile uploads: each gets a reason, soon, and the server lives on."""

import importlib.util
import logging
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flaxnets.inference.runtime.models import IMAGE
from flaxnets.inference.runtime.results import Prediction
from launch.serving.isolation import Isolated
from launch.serving.limits import Limits
from launch.serving.models import PRELOADED, ServedModel
from launch.serving.page import Unreadable
from tests.launch.serving.hostile import Upload, make_uploads
from tests.launch.serving.models import classifier
from tests.launch.serving.running import file, serving

logger = logging.getLogger(__name__)

SECONDS = 5.0
"""Time for a reason."""
MEMORY = 3 * 2**30
"""Bytes of all processes together."""


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> list[Upload]:
    found = list(make_uploads(tmp_path_factory.mktemp("uploads")))
    assert len(found) >= 200
    assert len({upload.case for upload in found}) == len(found)
    return found


@pytest.mark.slow
@pytest.mark.subprocess
def test_hostile_files_get_a_reason_and_sound_ones_a_result(
    uploads: list[Upload], tmp_path: Path
) -> None:
    isolated, limits = Isolated(PRELOADED), Limits()
    models = [ServedModel(classifier(), isolated, limits)]
    models.append(ServedModel(classifier(IMAGE), isolated, limits))
    path = tmp_path / "file"
    chosen = [
        "empty as a clip", "playlist as a clip", "concatenation as a clip", "pickle as an image",
        "100 megapixels", "4 gigapixels", "text of 200 MiB", "JPEG of thousands of scans",
        "mp4 of 2^31 samples", "5,000 frames", "y4m of 60,000 pixels a side", "webm cut at 1%",
        "frames of 67 megapixels", "svg entity as an image", "TIFF whose directory follows itself",
    ]  # fmt: skip
    by_case = {upload.case: upload for upload in uploads}
    for case in chosen:
        path.write_bytes(by_case[case].content)
        for model in models:
            try:
                found: Prediction | str = model.predict(path)
            except Unreadable as error:
                found = str(error)
            assert by_case[case].readable or isinstance(found, str), case
            assert isinstance(found, Prediction) or (found and str(path) not in found), case
    for case, model in (("one pixel", models[1]), ("40 seconds of 40 frames", models[0])):
        path.write_bytes(by_case[case].content)
        assert np.isfinite(model.predict(path).probabilities).all()


@pytest.mark.stress
@pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="the extra serve is not installed"
)
def test_two_hundred_hostile_uploads(uploads: list[Upload], tmp_path: Path) -> None:
    kinds: Counter[str] = Counter()
    slowest, most = (0.0, ""), (0, "")
    wrong: list[str] = []
    with serving(folder=tmp_path) as server:
        before = server.memory()
        for upload in uploads:
            for name, argument in (("caption", "image"), ("predict", "video")):
                start = time.monotonic()
                status, path = server.upload(upload.name, upload.content)
                if status == 200:
                    status, event = server.call(name, **{argument: file(path)})
                    assert status == 200, (upload.case, event)
                    kind, answer = server.result(name, event)
                    reason = answer.get("error", "") if kind == "error" else ""
                else:
                    kind, reason = "refused", path
                slowest = max(slowest, (time.monotonic() - start, upload.case))
                most = max(most, (server.memory(), upload.case))
                kinds[kind] += 1
                told = bool(reason) and "Traceback" not in str(reason)
                if not (told or (kind == "complete" and upload.readable)):
                    wrong.append(f"{upload.case}: {name}: {kind} {reason}")
                assert server.process.poll() is None, upload.case
        status, path = server.upload(
            "sound.mp4",
            next(upload.content for upload in uploads if upload.case == "40 seconds of 40 frames"),
        )
        _, event = server.call("predict", video=file(path))
        assert server.result("predict", event)[0] == "complete"
        after = server.memory()
    logger.info("%s; slowest %s; memory %d, most %s, then %d", kinds, slowest, before, most, after)
    assert not wrong
    assert slowest[0] < SECONDS, slowest
    assert most[0] < MEMORY, most
    assert after < before + 300 * 2**20
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert not Path("owned").exists()
