r"""Reads lines of text, or speech; prints one JSON line per file.

    python -m launch.read LINE.png …                            # with the shipped reader of Fraktur
    python -m launch.read --workdir=runs/lines LINE.png …
    python -m launch.read --model=FOLDER RECORDING.wav …

A line is ``{"path": …, "text": …, "confidence": …, "characters": [[character, confidence, start,
end], …]}``: the confidence is the probability of the text given the input, a character's that of
its most probable step, and start and end are columns of the image, or seconds. A file that cannot
be read gives ``{"path": …, "error": REASON}``; then the exit code is 1. ``--model`` is an exported
folder, a shipped model's name, or a workdir, whose experiment then is not run.

``--stream=SOURCE`` reads speech as it arrives, a file or, with ``-``, raw samples of standard input
(16 bits, mono, ``--source_rate`` samples/s), with a causal model and the greedy search. A line then
is ``{"step": …, "time": seconds, "text": …, "characters": …, "latency": seconds}``, with the
characters that have ended since the line before (``sound_stream.py``).
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from flaxnets.inference.loading import load
from flaxnets.inference.runtime.readers import Reader
from flaxnets.inference.runtime.results import Character, TextStep
from flaxnets.training.config import set_chosen
from flaxnets.training.workdir import Workdir, describe_model
from launch import program
from launch.sound_stream import stream_sound

WORKDIR = program.define_run(required=False)
MODEL = program.define_path(
    "model", None, "Exported folder, workdir, or name of a shipped model, in place of --workdir."
)
SHIPPED = "fraktur_reader"
"""The shipped model that is used without --workdir and --model."""
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
WIDTH = flags.DEFINE_integer(
    "beam_width", None, "Prefixes of the beam search; 0: greedy; default: the run's.", lower_bound=0
)
STREAM = flags.DEFINE_string(
    "stream", None, "Read speech as it arrives: a sound file, or - for raw samples (s16le, mono)."
)
RATE = flags.DEFINE_integer(
    "source_rate",
    None,
    "With --stream=-: samples/s of standard input; default: the model's.",
    lower_bound=1,
)
CHUNK = flags.DEFINE_float(
    "chunk", 0.32, "With --stream: seconds of sound that are read at a time.", lower_bound=1e-3
)


def main(argv: Sequence[str]) -> int:
    """Reads and prints the text of each file; returns the exit code."""
    if STREAM.value is not None:
        program.refuse_arguments(argv)
        if WIDTH.value:
            raise ValueError(
                f"--beam_width: expected 0 or none with --stream, whose search is greedy, received "
                f"{WIDTH.value}"
            )
        return stream_sound(
            _load(), STREAM.value, rate=RATE.value, chunk=CHUNK.value, describe=_describe_step
        )
    if not argv:
        raise ValueError("expected paths of lines or recordings after the flags, received none")
    missing = [path for path in argv if not Path(path).is_file()]
    if len(missing) == len(argv):  # Rather a wrong folder; single ones are told line by line.
        raise FileNotFoundError(
            f"{len(missing)} of {len(argv)} files do not exist: {', '.join(missing[:3])}"
        )
    failed = 0
    found = _load().read_each(list(argv), beam_width=WIDTH.value)
    for path, transcript in zip(argv, found, strict=True):
        if isinstance(transcript, OSError):
            failed += 1
            described: dict[str, Any] = {"error": str(transcript).removeprefix(f"{path}: ")}
        else:
            described = {
                "text": transcript.text,
                "confidence": round(transcript.confidence, 6),
                "characters": _describe_characters(transcript.characters),
            }
        print(json.dumps({"path": path, **described}, ensure_ascii=False), flush=True)
    if failed:
        print(f"error: {failed} of {len(argv)} files could not be read", file=sys.stderr)
    return int(failed > 0)


def _load() -> Reader:
    """Returns the model of ``--workdir`` or ``--model``, or the shipped one."""
    if WORKDIR.value is None:
        model: Any = program.load_model(MODEL.value, SHIPPED, "read", step=STEP.value)
        return model
    if MODEL.value is not None:
        raise ValueError("--model: expected without --workdir, received both")
    workdir = Workdir(WORKDIR.value)
    workdir.check_trained()
    config: Any = program.recorded_config(workdir)
    config.load_assets(workdir.path)
    inference = config.describe_inference() or {"kind": "none"}
    if inference["kind"] != "transcription":
        raise ValueError(
            "--workdir: expected a run of a reader of lines or speech, as "
            f"experiments/crnn_text_lines.py, received one of {type(config).__name__}"
        )
    if WIDTH.value is not None:  # Before the parts of the search are made.
        set_chosen(config, {"search.width": WIDTH.value})
        inference = {**inference, "search": dataclasses.asdict(config.search)}
    reader: Any = load(
        workdir.path,
        step=STEP.value,
        allow_code=bool(flags.FLAGS.allow_code),
        described=describe_model(inference),
        lexicon=getattr(config.make_task(), "lexicon", None),
    )
    return reader


def _describe_step(step: TextStep) -> dict[str, Any]:
    return {
        "step": step.step,
        "time": round(step.time, 4),
        "text": step.text,
        "characters": _describe_characters(step.characters),
        "latency": round(step.latency, 5),
    }


def _describe_characters(characters: Sequence[Character]) -> list[list[Any]]:
    return [
        [item.character, round(item.confidence, 4), item.start, item.end] for item in characters
    ]


if __name__ == "__main__":
    program.run(main)
