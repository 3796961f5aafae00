"""The page as a program: its API by curl and Python, its limits, refusals, and its end."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxnets.inference.runtime.models import SOUND
from launch import serve
from launch.serving.isolation import Isolated
from launch.serving.limits import Limits
from launch.serving.models import PRELOADED, ServedModel
from launch.serving.page import Served, Unreadable, api_names, explain_api
from tests.data.audio.wavs import write_wav
from tests.data.video_files import write_video
from tests.launch.serving.models import HOSTILE, all_models, classifier, reader
from tests.launch.serving.running import Server, file, serving

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="the extra serve is not installed"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("--max_upload=1", folder=tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.full((48, 64, 3), 200, np.uint8)).save(path)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", 12)


def described() -> list[Served]:
    """Returns the models that the server serves, to be described, not used."""
    return [ServedModel(model, Isolated([]), Limits()) for model in all_models()]


def filled(code: str, photo: Path, clip: Path) -> str:
    """Returns code of the page with files of this machine in place of its examples."""
    names = {"photo.jpg": photo, "clip.mp4": clip}
    names["line.png"] = clip.with_name("line.png")
    names["recording.wav"] = clip.with_name("recording.wav")
    Image.fromarray(np.repeat([[0, 255]], 40, axis=1).repeat(16, 0).astype(np.uint8)).save(
        names["line.png"]
    )
    write_wav(names["recording.wav"], np.sin(np.arange(4_000) / 3) / 2, 8_000)
    for name, path in names.items():
        code = code.replace(name, str(path))
    return code


def commands(model: Served, name: str, url: str, language: str) -> str:
    return re.findall(rf"```{language}\n(.*?)```", explain_api(model, name, url), re.DOTALL)[0]


@needs_gradio
@pytest.mark.subprocess
def test_the_curl_commands_of_the_page_work(server: Server, photo: Path, clip: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    models = described()
    expected = ("a dog", "dark", f"bright {HOSTILE}", "dark", "<>", "<<")
    for model, name, text in zip(models, api_names(models), expected, strict=True):
        script = filled(commands(model, name, server.url, "bash"), photo, clip)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        (answer,) = json.loads(re.findall(r"data: (.*)\n", done.stdout)[-1])
        found = answer.get("label") or answer.get("text") or answer["captions"][0]["text"]
        assert text in found
        assert answer["model"] == model.name


@needs_gradio
@pytest.mark.subprocess
def test_the_python_lines_of_the_page_work(server: Server, photo: Path, clip: Path) -> None:
    models = described()
    lines = []
    for model, name in zip(models, api_names(models), strict=True):
        code = filled(commands(model, name, server.url, "python"), photo, clip)
        *imports, last = code.strip().splitlines()
        lines += [*imports, f"print(sorted({last}))"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert "['captions', 'model']" in done.stdout
    assert done.stdout.count("'probabilities'") == 3
    assert done.stdout.count("['characters', 'confidence', 'model', 'text']") == 2


@needs_gradio
@pytest.mark.subprocess
def test_the_page_names_no_other_server(server: Server) -> None:
    with urllib.request.urlopen(server.url) as response:
        page = response.read().decode()
        policy = response.headers["content-security-policy"]
    # Of what a browser loads; links to click and images for previews elsewhere do not count.
    loaded = re.findall(
        r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](https?:[^"']+)""", page
    )
    assert all(url.startswith(server.url) for url in loaded), loaded
    assert "connect-src 'self'" in policy
    assert '"is_colab":false' in page.replace(" ", "")
    assert "gradio.live" not in page


@needs_gradio
@pytest.mark.subprocess
def test_reasons_are_told_and_the_server_goes_on(server: Server, photo: Path) -> None:
    for content in (b"", b"no image", photo.read_bytes()[:200]):
        status, path = server.upload(f"{HOSTILE}.jpg", content)
        assert status == 200
        _, event = server.call("caption", image=file(path))
        kind, answer = server.result("caption", event)
        assert kind == "error"
        assert answer["error"]
        assert path not in answer["error"]
    _, path = server.upload("photo.jpg", photo.read_bytes())
    for count in (0, 99, "3", None, [1], 1e400):
        status, event = server.call("caption", image=file(path), num_captions=count)
        if status == 200:
            kind, answer = server.result("caption", event)
            assert kind == "error"
            assert "num_captions: expected 1 to 3" in answer["error"]
    _, event = server.call("caption", image=file(path), num_captions=2)
    kind, (answer,) = server.result("caption", event)
    assert kind == "complete"
    assert len(answer["captions"]) == 2


@needs_gradio
@pytest.mark.subprocess
def test_files_from_elsewhere_are_refused(server: Server, tmp_path: Path) -> None:
    for path in ("/etc/passwd", "http://127.0.0.1:1/a.jpg", str(tmp_path), "../../etc/passwd"):
        status, answer = server.call("caption", image=file(path))
        assert status == 400
        assert "uploaded" in answer
    for path in ("/etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "http://127.0.0.1:1/"):
        with pytest.raises(urllib.error.HTTPError, match="40"):
            urllib.request.urlopen(f"{server.url}/gradio_api/file={path}")


@needs_gradio
@pytest.mark.subprocess
def test_no_call_goes_round_the_queue(server: Server, photo: Path) -> None:
    _, path = server.upload("photo.jpg", photo.read_bytes())
    with urllib.request.urlopen(f"{server.url}/config") as response:
        functions = json.loads(response.read())["dependencies"]
    queued = [function["id"] for function in functions if function["queue"] is not False]
    assert len(queued) >= 6
    for number in queued:
        body = json.dumps({"data": [file(path)], "fn_index": number, "session_hash": "a"})
        status, answer = server.post("run/predict", body.encode(), "application/json")
        assert status == 404, (number, answer)


@needs_gradio
@pytest.mark.subprocess
def test_large_uploads_and_names_with_paths(server: Server) -> None:
    status, answer = server.upload("large.jpg", b"x" * (2**20 + 2**16))
    assert status == 413
    assert "1.02 MiB" in answer
    for name in ("../../../etc/x.jpg", "/etc/x.jpg", "..", "a" * 400 + ".jpg", "c:\\x.jpg"):
        status, path = server.upload(name, b"x")
        assert status != 200 or re.fullmatch(r"/.*/uploads/[0-9a-f]{64}/[^/]+", path), path


@needs_gradio
@pytest.mark.subprocess
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_full_queue_refuses_and_a_signal_stops_the_server(
    number: signal.Signals, tmp_path: Path, photo: Path
) -> None:
    flags = ("--queue=2", "--concurrency=1")
    with serving(*flags, folder=tmp_path, SLOW="0.5") as running:
        _, path = running.upload("photo.jpg", photo.read_bytes())
        answers = [running.call("predict", image=file(path)) for _ in range(8)]
        accepted = [event for status, event in answers if status == 200]
        refused = [text for status, text in answers if status == 503]
        assert 2 <= len(accepted) <= 4
        assert len(accepted) + len(refused) == 8
        assert all("full" in text for text in refused)
        kinds: list[str] = []

        def wait(event: str) -> None:
            kinds.append(running.result("predict", event)[0])

        threads = [threading.Thread(target=wait, args=(event,)) for event in accepted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kinds == ["complete"] * len(accepted)
        assert list(tmp_path.glob("flaxnets-serve-*"))
        running.process.send_signal(number)
        assert running.process.wait(20) == 0
    assert not list(tmp_path.glob("flaxnets-serve-*"))
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_a_port_in_use_and_a_foreign_host_are_told() -> None:
    with serve.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port: expected a free port .* received {port}"):
            serve.listen("127.0.0.1", port)
    for host in ("no.such.host.invalid", "8.8.8.8"):
        with pytest.raises(ValueError, match="--host: expected an address of this machine"):
            serve.listen(host, 0)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ModuleNotFoundError, match=r"gradio.*'\.\[serve\]'") as caught:
        serve.check_installed()
    assert caught.value.name is None  # Told in one sentence, not as a defect.


def test_variables_of_the_environment_open_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name, value in (("SHARE", "True"), ("ALLOWED_PATHS", "/"), ("ANALYTICS_ENABLED", "True")):
        monkeypatch.setenv(f"GRADIO_{name}", value)
    before = dict(os.environ)
    try:
        serve.prepare_environment(tmp_path)
        ours = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert set(ours) == {"GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE"}
    assert ours["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert ours["GRADIO_TEMP_DIR"] == str(tmp_path / "uploads")


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="frames: expected a positive number, received 0"):
        Limits(frames=0)


def test_functions_of_several_models_have_names_of_their_own() -> None:
    models = described()
    names = ["caption", "predict", "predict_2", "predict_3", "read", "read_2", "caption_2"]
    assert api_names([*models, models[0]]) == names


def test_lines_and_recordings_are_read_in_processes_of_their_own(tmp_path: Path) -> None:
    line = tmp_path / "line.png"
    pixels = np.repeat([[255, 0]], 40, axis=1).repeat(32, 0).astype(np.uint8)
    Image.fromarray(pixels).save(line)
    wav = write_wav(tmp_path / "a.wav", np.sin(np.arange(4_000) / 3) / 2, 8_000)
    isolated = Isolated(PRELOADED)
    sounds = ServedModel(classifier(SOUND), isolated, Limits())
    assert sounds.predict(Path(wav)).label == classifier(SOUND).predict(wav).label
    lines = ServedModel(reader(), isolated, Limits())
    speech = ServedModel(reader(speech=True), isolated, Limits(clip_seconds=1.0))
    assert (lines.kind, speech.kind) == ("lines", "speech")
    columns, transcript = lines.read(line)
    assert columns.inputs.shape == (16, 40, 1)
    assert transcript == reader().read(str(line))
    assert transcript.text == "><"
    assert [(item.start, item.end) for item in transcript.characters] == [(0, 40), (40, 80)]
    assert speech.read(Path(wav))[1] == reader(speech=True).read(wav)
    long = write_wav(tmp_path / "long.wav", np.sin(np.arange(9_000)) / 2, 8_000)
    for model, path, reason in (
        (lines, wav, "received a sound file"),
        (speech, line, "received an image"),
        (speech, long, "expected at most 1 s"),
        (lines, tmp_path / "gone.png", "upload it again"),
    ):
        with pytest.raises(Unreadable, match=reason):
            model.read(Path(path))
