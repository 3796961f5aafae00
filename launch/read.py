"""Reads lines of text; prints one JSON line per file.

    python -m launch.read --workdir=runs/lines LINE.png …

A line is ``{"path": …, "text": …, "confidence": …, "characters": [[character, confidence, left,
right], …]}``: the confidence is the probability of the text given the image, a character's that of
its most probable step, and left and right are columns of the image. A file that cannot be read
gives ``{"path": …, "error": REASON}``; then the exit code is 1.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from absl import flags

from flaxnets.inference.trained_model import TrainedModel
from flaxnets.training.workdir import Workdir
from launch import program

WORKDIR = program.define_run()
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
WIDTH = flags.DEFINE_integer(
    "beam_width", None, "Prefixes of the beam search; 0: greedy; default: the run's.", lower_bound=0
)


@runtime_checkable
class ReadsLines(Protocol):
    """Configuration of an experiment whose model reads lines of text."""

    search: Any
    """With ``width``, prefixes of the beam search."""

    def describe_line(self, path: str, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a record of ``Task.describe_outputs`` with spans in columns of the image."""


def main(argv: Sequence[str]) -> int:
    """Reads and prints the text of each file; returns the exit code."""
    if not argv:
        raise ValueError("expected paths of images of lines after the flags, received none")
    missing = [path for path in argv if not Path(path).is_file()]
    if len(missing) == len(argv):  # Rather a wrong folder; single ones are told line by line.
        raise FileNotFoundError(
            f"{len(missing)} of {len(argv)} images do not exist: {', '.join(missing[:3])}"
        )
    workdir = Workdir(WORKDIR.value)
    config = program.recorded_config(workdir)
    if not isinstance(config, ReadsLines):
        raise ValueError(
            f"--workdir: expected a run of a reader of lines, as experiments/crnn_text_lines.py, "
            f"received one of {type(config).__name__}"
        )
    if WIDTH.value is not None:
        config.search.width = WIDTH.value
    found: dict[int, Mapping[str, Any]] = {}
    printed = failed = 0
    for record in TrainedModel(config, workdir, STEP.value).predict(list(argv)):
        found[record["index"]] = record
        # Batches are filled by width, and the lines printed in the order of the files.
        while printed in found:
            path, line = argv[printed], found.pop(printed)
            if "error" in line:
                failed += 1
                described: Mapping[str, Any] = {"error": line["error"].removeprefix(f"{path}: ")}
            else:
                described = config.describe_line(path, line)
            print(json.dumps({"path": path, **described}, ensure_ascii=False), flush=True)
            printed += 1
    if failed:
        print(f"error: {failed} of {len(argv)} images could not be read", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    program.run(main)
