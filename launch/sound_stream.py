r"""Streams of sound in ``launch.read`` and ``launch.predict``: JSON lines, a summary at the end.

    python -m launch.read --workdir=runs/speech --stream=talk.wav
    arecord -t raw -f S16_LE -r 16000 | python -m launch.read --workdir=runs/speech --stream=- \
        --source_rate=16000

Each line is written once the sound for it has arrived, ``--chunk`` seconds at a time; its latency
counts from the arrival of the last samples that it needed. Memory does not grow with the stream.
Silence at its start is not told before there is sound, and silence alone is an error.
The model must be causal (``flaxnets/inference/runtime/sound_streaming.py``).
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from flaxnets.inference.runtime.sound import FileSound, RawSound, wrong_kind
from launch.stream_lines import print_stream


def stream_sound(
    model: Any,
    source: str,
    *,
    rate: int | None,
    chunk: float,
    describe: Callable[[Any], Mapping[str, Any]],
) -> int:
    """Reads a stream of sound and prints its results; returns the exit code.

    Args:
      model: a causal reader of speech or classifier of sounds.
      source: a file with sound, or ``-`` for raw samples on standard input.
      rate: samples/s of standard input; None: those of the model.
      chunk: seconds of sound that are read at a time.
      describe: of a result, as its JSON line has it.

    Raises:
      ValueError: a model or a rate that does not fit.
      OSError: a source that cannot be read.
    """
    stream = model.stream(chunk=chunk)
    sample_rate = model.preprocessing.sample_rate
    blocks: FileSound | RawSound
    if source == "-":
        blocks = RawSound(sys.stdin.buffer, sample_rate, rate)
    elif rate is not None:
        raise ValueError(
            f"--source_rate: expected none for {source}, which tells its own, received {rate}"
        )
    elif (error := wrong_kind(source, "sound")) is not None:
        raise error
    else:
        blocks = FileSound(source, sample_rate, model.limits)
    return print_stream(
        blocks,
        stream,
        stream.finish,
        describe,
        lambda: {
            "sound_seconds": round(stream.num_samples / sample_rate, 3),
            "steps": stream.num_steps,
            "look_ahead": round(stream.look_ahead, 3),
        },
        lambda: "" if stream.num_samples else f"{source}: no sound",
    )
