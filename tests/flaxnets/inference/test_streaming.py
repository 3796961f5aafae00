"""Streams of frames: equal to the whole clip, at a rate, with gaps and changing sizes."""

import io
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from flaxnets.configuration import describe_part
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import pool_max
from flaxnets.inference.runtime.frames import FileFrames, JpegFrames, RawFrames, open_frames
from flaxnets.inference.runtime.functions import Clips
from flaxnets.inference.runtime.media import MediaError
from flaxnets.inference.runtime.models import Classifier
from flaxnets.inference.runtime.preprocessing import ClipPreprocessing
from flaxnets.inference.runtime.streaming import Latencies, Stream
from flaxnets.inference.store import build_model
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import GRUCell
from flaxnets.recurrent.layers import Recurrent

SIZE, FRAMES, RATE = 8, 6, 10.0
LABELS = ("wave", "walk", "sit")


class Recorder:
    """Functions that return the grey level of the frame they are given, and count steps."""

    causal, obstacle = True, ""

    def __init__(self) -> None:
        self.read: list[int] = []

    def classify(self, frames: np.ndarray, lengths: np.ndarray) -> Clips:
        raise NotImplementedError

    def start(self, batch_size: int) -> Any:
        return 0

    def step(self, carry: Any, frames: np.ndarray) -> Any:
        assert frames.shape == (1, SIZE, SIZE, 3)
        self.read.append(int(frames[0, 0, 0, 0]))
        assert carry == len(self.read) - 1
        values = np.full((1, 3), 1 / 3, np.float32)
        return carry + 1, values, values


def recording(**options: Any) -> tuple[Classifier, Recorder]:
    functions = Recorder()
    model = Classifier(
        name="recorder",
        kind="video_classification",
        labels=LABELS,
        preprocessing=ClipPreprocessing((SIZE, SIZE), 100, **options),
        functions=functions,
    )
    return model, functions


def frame(number: int, height: int = 12, width: int = 10) -> np.ndarray:
    return np.full((height, width, 3), number, np.uint8)


def real_model(head: Any = None, *, bidirectional: bool = False, **options: Any) -> Classifier:
    network = CRNN(
        head or StepClassifier(3),
        encoder=SmallCNN((4, 6), (2, 2)),
        recurrent=Recurrent(partial(GRUCell, 5), bidirectional=bidirectional),
    )
    clips = np.zeros((1, 2, SIZE, SIZE, 3), np.uint8)
    init = jax.jit(partial(network.init, train=False))
    variables = init(jax.random.key(0), clips, np.array([2], np.int32))
    settings = {"kind": "clip", "size": [SIZE, SIZE], "num_frames": FRAMES} | options
    described = {
        "kind": "video_classification",
        "name": "toy",
        "labels": list(LABELS),
        "network": describe_part(network),
        "encoder": None,
        "averaging": "per_step",
        "preprocessing": settings,
    }
    model = build_model(described, variables)
    assert isinstance(model, Classifier)
    return model


def video(count: int = FRAMES, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 10, 3)).astype(np.uint8)


@pytest.mark.parametrize("head", [None, ClipClassifier(3, pool_max)], ids=["steps", "max"])
@pytest.mark.parametrize("rate", [None, 10.0], ids=["every", "rate"])
def test_a_stream_equals_the_whole_clip(head: Any, rate: float | None) -> None:
    # At 25 frames/s and 10 steps/s the frames 0, 2, 5, 7, 10, 12 are read.
    model = real_model(head, rate=rate)
    clip = video(FRAMES if rate is None else 14)
    whole = model.predict(clip, rate=25.0)
    stream = model.stream()
    steps = [step for n, frame in enumerate(clip) for step in stream.push(frame, n / 25)]
    steps += stream.finish()
    assert [step.step for step in steps] == list(range(len(steps)))
    np.testing.assert_allclose(steps[FRAMES - 1].smoothed, whole.probabilities, atol=1e-6)
    if head is None:
        own = np.stack([step.probabilities for step in steps[:FRAMES]])
        np.testing.assert_allclose(own, whole.step_probabilities, atol=1e-6)
    assert steps[0].labels == LABELS
    assert all(step.latency > 0 for step in steps)


@pytest.mark.parametrize("source_rate", [5.0, 10.0, 12.5, 25.0, 30.0, 60.0])
@pytest.mark.parametrize("digits", [3, 9], ids=["milliseconds", "exact"])
def test_frames_at_a_rate_are_those_of_the_clip(source_rate: float, digits: int) -> None:
    model, functions = recording(rate=RATE)
    stream = model.stream()
    for number in range(40):
        stream.push(frame(number), 7 + round(number / source_rate, digits))
    stream.finish()
    clip = ClipPreprocessing((SIZE, SIZE), 1000, rate=RATE).frame_numbers(40, source_rate)[0]
    assert functions.read == (clip - clip[0]).tolist()


def test_every_stride_th_frame_is_read() -> None:
    model, functions = recording(stride=3)
    stream = model.stream()
    found = [stream(frame(number)) for number in range(8)]
    assert functions.read == [0, 3, 6]
    assert [step is None for step in found] == [False, True, True, False, True, True, False, True]
    assert found[3] is not None
    assert found[3].time == pytest.approx(0.1)


def test_a_gap_repeats_the_frame_before_for_at_most_a_second() -> None:
    model, functions = recording(rate=RATE)
    stream = model.stream()
    for number, time in enumerate((0.0, 0.1, 0.5, 0.6)):
        stream.push(frame(number), time)
    assert functions.read == [0, 1, 1, 1, 1, 2, 3]
    stream.push(frame(4), 60.0)
    assert functions.read[7:] == [3] * 10 + [4]
    assert stream.left_out == 583  # Of the 593 steps between.
    stream.push(frame(5), 60.1)
    assert functions.read[-1] == 5


def test_a_time_that_jumps_back_starts_a_new_count() -> None:
    model, functions = recording(rate=RATE)
    stream = model.stream()
    for number, time in enumerate((100.0, 100.1, 3.0, 3.1)):
        stream.push(frame(number), time)
    assert functions.read == [0, 1, 2, 3]


def test_frames_may_change_their_size() -> None:
    model, functions = recording()
    stream = model.stream()
    for number, size in enumerate(((12, 10), (30, 8), (1, 1), (8, 8))):
        assert stream(frame(number, *size)) is not None
    assert functions.read == [0, 1, 2, 3]
    windowed = real_model(bidirectional=True).stream(window=3)
    for number, size in enumerate(((12, 10), (30, 8), (1, 1))):
        assert windowed(frame(number, *size)) is not None


def test_a_window_is_classified_as_a_clip() -> None:
    model = real_model(bidirectional=True)
    clip = video(9)
    stream = model.stream(window=FRAMES, every=4)
    found = [stream(frame, n / 30) for n, frame in enumerate(clip)]
    assert [n for n, step in enumerate(found) if step] == [0, 4, 8]
    whole = model.predict(clip[3:], rate=30.0)
    assert found[8] is not None
    assert whole.step_probabilities is not None
    np.testing.assert_allclose(found[8].smoothed, whole.probabilities, atol=1e-6)
    np.testing.assert_allclose(found[8].probabilities, whole.step_probabilities[-1], atol=1e-6)


def test_the_callers_array_may_be_used_again() -> None:
    model = real_model(bidirectional=True)
    clip, array = video(), np.empty((12, 10, 3), np.uint8)
    stream = model.stream(window=FRAMES)
    for number, own in enumerate(clip):
        array[:] = own
        step = stream(array, number / 30)
    assert step is not None
    np.testing.assert_allclose(step.smoothed, model.predict(clip).probabilities, atol=1e-6)


def test_bad_input_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"expected a causal model.*bidirectional.*--window=N"):
        real_model(bidirectional=True).stream()
    model, _ = recording()
    for options in ({"window": 0}, {"every": 0}, {"rate": -1.0}, {"source_rate": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
            model.stream(**options)
    stream = model.stream()
    with pytest.raises(ValueError, match="frame: expected"):
        stream(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="time: expected finite"):
        stream(frame(0), float("nan"))


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_frames() -> None:
    model = real_model(rate=RATE)
    stream, own = model.stream(), frame(3, 16, 16)
    latencies = Latencies()

    def run(start: int, end: int) -> None:
        for number in range(start, end):
            for step in stream.push(own, number / RATE):
                latencies.add(step.latency)

    run(0, 500)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    arrays = len(jax.live_arrays())
    run(500, 10_000)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stream.num_steps == 10_000 == latencies.count
    assert after - before < 100_000
    assert len(jax.live_arrays()) <= arrays


# ---- Sources ------------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """Stream that gives a few bytes at a time, as a pipe does."""

    def __init__(self, content: bytes, block: int) -> None:
        self._file, self._block = io.BytesIO(content), block

    def read(self, count: int = -1) -> bytes:
        return self._file.read(min(self._block, count) if count >= 0 else self._block)


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def test_raw_frames_arrive_in_pieces_and_end_in_the_middle_of_one() -> None:
    clip = video(3)
    frames = RawFrames(Pipe(clip.tobytes()[:-5], 100), (12, 10), rate=20.0)
    found = list(frames)
    assert [timed.time for timed in found] == [0.0, 0.05]
    np.testing.assert_array_equal([timed.frame for timed in found], clip[:2])
    assert frames.problem == "the stream ends in the middle of frame 2, after 355 of 360 bytes"


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_jpeg_frames_of_several_sizes_and_kinds(block: int) -> None:
    thumbnail = jpeg(video(1)[0])
    exif = Image.Exif()
    exif[0x9286] = thumbnail  # A comment that holds a whole JPEG: its end is not the frame's.
    images = [
        jpeg(frame(10, 16, 16)),
        jpeg(frame(90, 40, 24), progressive=True, exif=exif),
        jpeg(frame(200, 8, 8), subsampling=0),
    ]
    frames = JpegFrames(Pipe(b"".join(images), block), rate=10.0)
    found = list(frames)
    assert [timed.frame.shape[:2] for timed in found] == [(16, 16), (40, 24), (8, 8)]
    assert [round(float(timed.frame.mean())) for timed in found] == [10, 90, 200]
    assert (frames.problem, frames.damaged) == ("", 0)


def test_damaged_jpeg_frames_are_left_out_and_a_cut_off_one_is_told() -> None:
    noise = [jpeg(video(1, seed)[0]) for seed in range(4)]
    broken = bytearray(noise[1])
    broken[noise[1].index(b"\xff\xc0") + 9] = 7  # Colour components, of which there are 3.
    content = noise[0] + bytes(broken) + b"rubbish" + noise[2] + noise[3][:-20]
    frames = JpegFrames(Pipe(content, 64), rate=10.0)
    found = list(frames)
    assert (len(found), frames.damaged) == (2, 1)
    assert frames.problem == "the stream ends in the middle of frame 3"


def test_what_is_no_jpeg_is_refused_and_its_size_asked_for() -> None:
    with pytest.raises(MediaError, match=r"ff d8.*--frame_size"):
        list(JpegFrames(io.BytesIO(bytes(100)), rate=10.0))
    assert list(JpegFrames(io.BytesIO(b""), rate=10.0)) == []
    with pytest.raises(ValueError, match="frame_size: expected none"):
        open_frames("clip.mp4", io.BytesIO(), size=(2, 2))
    with pytest.raises(FileNotFoundError):
        open_frames("no_such.mp4", io.BytesIO())


@pytest.fixture
def mkv(tmp_path: Path) -> Path:
    """Video of 8 frames at 20/s of which two are left out, so that there is a gap."""
    import av

    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=20)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for number in (0, 1, 2, 5, 6, 7):
            picture = av.VideoFrame.from_ndarray(frame(30 * number, 16, 16), format="rgb24")
            picture = picture.reformat(format="yuv420p")
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def test_a_file_has_its_own_time_stamps(mkv: Path) -> None:
    frames = list(FileFrames(str(mkv)))
    times = [timed.time for timed in frames]
    np.testing.assert_allclose(times, [0.0, 0.05, 0.1, 0.25, 0.3, 0.35], atol=1e-3)
    model, functions = recording(rate=20.0)
    stream = Stream(model)
    for timed in frames:
        stream.push(timed.frame, timed.time)
    grey = np.array(functions.read) / 30
    np.testing.assert_allclose(grey, [0, 1, 2, 2, 2, 5, 6, 7], atol=0.2)
