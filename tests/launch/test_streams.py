"""``launch.predict --stream`` and ``launch.export`` as a user starts them."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.configuration import describe_part
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import StepClassifier
from flaxnets.inference.runtime.media import MediaError
from flaxnets.inference.store import save_model
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import GRUCell
from flaxnets.recurrent.layers import Recurrent
from launch.predict_stream import parse_size
from launch.stream_lines import print_stream
from tests.launch.programs import ROOT

SIZE = 16


def write_model(folder: Path, *, bidirectional: bool = False) -> Path:
    network = CRNN(
        StepClassifier(2),
        encoder=SmallCNN((4,), (4,)),
        recurrent=Recurrent(partial(GRUCell, 4), bidirectional=bidirectional),
    )
    clips = np.zeros((1, 2, SIZE, SIZE, 3), np.uint8)
    init = jax.jit(partial(network.init, train=False))
    described = {
        "format": 1,
        "kind": "video_classification",
        "name": "toy",
        "labels": ["wave", "walk"],
        "network": describe_part(network),
        "encoder": None,
        "averaging": "per_step",
        "preprocessing": {"kind": "clip", "size": [SIZE, SIZE], "num_frames": 4, "stride": 1},
    }
    save_model(folder, described, init(jax.random.key(0), clips, np.array([2], np.int32)))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "causal")


def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", f"launch.{program}", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # What a pipe's reader has left unread is not written when the test ends.
    )


def stream(model: Path, *arguments: str) -> subprocess.Popen[bytes]:
    raw = ("--stream=-", "--frame_size=12x10", *arguments)
    return start("predict", f"--model={model}", "--top=1", *raw)


def raw(count: int) -> bytes:
    frames = np.random.default_rng(0).integers(0, 256, (count, 12, 10, 3))
    return frames.astype(np.uint8).tobytes()


class Words:
    """Source of words, of which "bad" is unreadable."""

    def __init__(self, *words: str, problem: str = "") -> None:
        self.words, self.problem = words, problem

    def __iter__(self) -> Iterator[str]:
        for word in self.words:
            if word == "bad":
                raise MediaError("stream", "a damaged word")
            yield word


@pytest.mark.parametrize(
    ("source", "code", "summary", "error"),
    [
        (Words("a", "b"), 0, {"words": 2}, ""),
        (Words("a", problem="cut off"), 0, {"words": 1, "problem": "cut off"}, ""),
        (Words("a", "bad", "b"), 1, {"words": 1, "problem": "a damaged word"}, ""),
        (Words(), 1, {"words": 0}, "error: no words"),
    ],
)
def test_results_of_any_source_are_printed_and_summed_up(
    source: Words, code: int, summary: dict[str, Any], error: str, capsys: Any
) -> None:
    read: list[str] = []

    def push(word: str) -> list[Any]:
        read.append(word)
        return [SimpleNamespace(word=word, latency=0.5)]

    found = print_stream(
        source,
        push,
        lambda: push("end") if read else [],
        lambda result: {"word": result.word},
        lambda: {"words": len(read) - ("end" in read)},
        lambda: "" if read else "no words",
    )
    assert found == code
    out, err = capsys.readouterr()
    assert [json.loads(line)["word"] for line in out.splitlines()] == read
    lines = err.splitlines()
    told = json.loads(lines[0])
    assert {name: told[name] for name in summary} == summary
    assert ("problem" in told) == ("problem" in summary)
    # The first result is not counted.
    assert ("latency_p50" in told) == (len(read) > 1)
    assert told.get("latency_p50", 0.5) == pytest.approx(0.5, rel=0.1)
    assert lines[1:] == ([error] if error else [])


@pytest.mark.slow
@pytest.mark.subprocess
def test_a_pipe_of_raw_frames_that_is_cut_off(model: Path) -> None:
    out, err = stream(model, "--source_rate=25").communicate(raw(6)[:-7], timeout=120)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["time"] for line in lines] == [0.0, 0.04, 0.08, 0.12, 0.16]
    assert set(lines[0]) == {"step", "time", "top", "smoothed", "latency"}
    assert lines[0]["top"][0]["label"] in ("wave", "walk")
    summary = json.loads(err.splitlines()[-1])
    assert (summary["frames"], summary["steps"]) == (5, 5)
    assert summary["problem"] == "the stream ends in the middle of frame 5, after 353 of 360 bytes"
    assert {"steps_per_second", "latency_p50", "latency_p99"} <= set(summary)


@pytest.mark.subprocess
def test_an_interrupted_stream_ends_with_its_summary(model: Path) -> None:
    process = stream(model)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(raw(3))
    process.stdin.flush()
    # Each step is known before the stream goes on.
    assert [json.loads(process.stdout.readline())["step"] for _ in range(3)] == [0, 1, 2]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(err.splitlines()[-1])["problem"] == "stopped"
    assert b"Traceback" not in err


@pytest.mark.slow
@pytest.mark.subprocess
def test_a_reader_that_goes_away_ends_the_stream_quietly(model: Path) -> None:
    process = stream(model)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(raw(2))
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(raw(200))
    process.stdin.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0, err
    assert b"Traceback" not in err
    assert b"Exception" not in err


@pytest.mark.slow
@pytest.mark.subprocess
def test_a_bidirectional_model_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bidirectional", bidirectional=True)
    out, err = stream(folder).communicate(raw(2), timeout=120)
    assert out == b""
    assert b"error: stream: expected a causal model" in err
    assert b"--window=N" in err
    out, err = stream(folder, "--window=4", "--every=2").communicate(raw(5), timeout=120)
    assert [json.loads(line)["step"] for line in out.splitlines()] == [0, 1, 2], err


@pytest.mark.slow
@pytest.mark.subprocess
def test_an_export_streams_and_predicts_as_its_model(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("flatbuffers", reason="exports are written with flatbuffers")
    out = tmp_path / "exported"
    made = start("export", f"--model={model}", f"--out={out}")
    printed, err = made.communicate(timeout=120)
    assert made.returncode == 0, err
    assert b"clip.stablehlo" in printed
    again = start("export", f"--model={model}", f"--out={out}")
    assert b"error: out: expected a folder that is new or empty" in again.communicate()[1]
    lines: list[list[dict[str, Any]]] = []
    for folder in (model, out):
        text, err = stream(folder).communicate(raw(5), timeout=120)
        lines.append([json.loads(line) for line in text.splitlines()])
    assert len(lines[0]) == len(lines[1]) == 5, err
    for own, theirs in zip(*lines, strict=True):
        assert own["smoothed"][0]["label"] == theirs["smoothed"][0]["label"]
        difference = own["smoothed"][0]["probability"] - theirs["smoothed"][0]["probability"]
        assert abs(difference) <= 1e-5


def test_sizes_of_frames() -> None:
    assert parse_size("240x320") == (240, 320)
    assert parse_size(None) is None
    for text in ("240", "0x3", "240x", "axb", "240x320x3", "-1x2"):
        with pytest.raises(ValueError, match=r"--frame_size: expected HEIGHTxWIDTH"):
            parse_size(text)
