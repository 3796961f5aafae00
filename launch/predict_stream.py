r"""Streams in ``launch.predict``: one JSON line for each step, a summary at the end.

    python -m launch.predict --workdir=runs/mine --stream=clip.mp4
    ffmpeg -i rtsp://… -f image2pipe -c:v mjpeg - | python -m launch.predict --stream=- …
    ffmpeg -i clip.mp4 -f rawvideo -pix_fmt rgb24 - | \
        python -m launch.predict --stream=- --frame_size=240x320 --source_rate=25 …

A line is ``{"step": …, "time": seconds, "top": [{"label": …, "probability": …}, …], "smoothed":
[…], "latency": seconds}``: the likeliest classes of this step alone and of the clip of all steps so
far, or of the last frames with ``--window``. The latency counts from the arrival of the frame.

A causal classifier of sounds reads a sound file, or raw samples of standard input (16 bits, mono,
``--source_rate`` samples/s), ``--chunk`` seconds at a time (``sound_stream.py``).
"""

import re
import sys
from typing import Any

from absl import flags

from flaxnets.inference.runtime.frames import open_frames
from flaxnets.inference.runtime.models import SOUND, Classifier
from flaxnets.inference.runtime.results import StreamStep
from launch.sound_stream import stream_sound
from launch.stream_lines import print_stream

STREAM = flags.DEFINE_string(
    "stream",
    None,
    "Classify a stream frame by frame: a video or sound file, - for raw or JPEG frames, or samples "
    "(s16le, mono), on standard input, or a camera, as /dev/video0.",
)
WINDOW = flags.DEFINE_integer(
    "window",
    None,
    "With --stream: classify the last so many frames anew, for models that are not causal.",
    lower_bound=1,
)
EVERY = flags.DEFINE_integer(
    "every", 1, "With --window: frames between two classifications.", lower_bound=1
)
RATE = flags.DEFINE_float(
    "rate", None, "With --stream: steps/s of the model; default: as in training.", lower_bound=1e-3
)
SOURCE_RATE = flags.DEFINE_float(
    "source_rate",
    30.0,
    "With --stream=-: frames/s of standard input, of sound samples/s; of sound by default the "
    "model's.",
    lower_bound=1e-3,
)
CHUNK = flags.DEFINE_float(
    "chunk", 0.32, "With --stream of sound: seconds that are read at a time.", lower_bound=1e-3
)
FRAME_SIZE = flags.DEFINE_string(
    "frame_size",
    None,
    "With --stream=-: HEIGHTxWIDTH of raw frames (rgb24); without it the frames are JPEG images.",
)


def predict_stream(model: Any, top: int) -> int:
    """Classifies the source of ``--stream`` and prints its steps; returns the exit code.

    Args:
      model: of ``flaxnets.load``.
      top: number of classes on each line.

    Raises:
      ValueError: a model or flags that do not go together.
      OSError: a source that cannot be read.
    """
    if not isinstance(model, Classifier):
        raise ValueError(f"--stream: expected a classifier of videos, received one of {model.kind}")
    if model.kind == SOUND:
        return _stream_sound(model, top)
    stream = model.stream(
        WINDOW.value, every=EVERY.value, rate=RATE.value, source_rate=SOURCE_RATE.value
    )
    source = str(STREAM.value)
    frames = open_frames(
        source,
        sys.stdin.buffer,
        size=parse_size(FRAME_SIZE.value),
        rate=SOURCE_RATE.value,
        short_side=getattr(model.preprocessing, "short_side", None),
        limits=model.limits,
    )

    def summarise() -> dict[str, Any]:
        lost = {"left_out_steps": stream.left_out, "damaged_frames": frames.damaged}
        found = {name: value for name, value in lost.items() if value}
        return {"frames": stream.num_frames, "steps": stream.num_steps, **found}

    return print_stream(
        frames,
        lambda timed: stream.push(timed.frame, timed.time),
        stream.finish,
        lambda step: describe(step, top),
        summarise,
        lambda: "" if stream.num_frames else f"{source}: no frames",
    )


def _stream_sound(model: Classifier, top: int) -> int:
    for flag in (WINDOW, RATE, FRAME_SIZE):
        if flag.value is not None:
            raise ValueError(
                f"--{flag.name}: expected none with a classifier of sounds, received {flag.value}; "
                "--source_rate tells the samples/s of standard input, --chunk how many are read "
                "at a time"
            )
    return stream_sound(
        model,
        str(STREAM.value),
        rate=round(SOURCE_RATE.value) if SOURCE_RATE.present else None,
        chunk=CHUNK.value,
        describe=lambda step: describe(step, top),
    )


def describe(step: StreamStep, top: int) -> dict[str, Any]:
    """Returns a step as its JSON line has it."""

    def likeliest(smoothed: bool) -> list[dict[str, Any]]:
        return [
            {"label": label.label, "probability": round(label.probability, 6)}
            for label in step.top(top, smoothed=smoothed)
        ]

    return {
        "step": step.step,
        "time": round(step.time, 4),
        "top": likeliest(False),
        "smoothed": likeliest(True),
        "latency": round(step.latency, 5),
    }


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Returns the height and width of ``HEIGHTxWIDTH``; None of None.

    Raises:
      ValueError: another text.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise ValueError(f"--frame_size: expected HEIGHTxWIDTH, as 240x320, received {text!r}")
    return int(match[1]), int(match[2])
