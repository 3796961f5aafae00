"""Predicts the most probable classes of video files; prints one JSON line per file.

    python -m launch.predict --workdir=runs/lrcn CLIP.avi …

A line is ``{"path": …, "predictions": [{"label": …, "probability": …}, …]}``, most probable class
first, under the names of the classes in training (the data are not needed), or
``{"path": …, "error": REASON}`` for a file that is missing or cannot be decoded; then the exit code
is 1.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flaxnets.inference.trained_model import TrainedModel
from flaxnets.training.workdir import Workdir
from launch import program

WORKDIR = program.define_run()
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
TOP = flags.DEFINE_integer("top", 5, "Number of classes on each line.", lower_bound=1)


def main(argv: Sequence[str]) -> int:
    """Predicts and prints the classes of each file; returns the exit code."""
    if not argv:
        raise ValueError("expected paths of video files after the flags, received none")
    missing = [path for path in argv if not Path(path).is_file()]
    if len(missing) == len(argv):  # Rather a wrong folder; single ones are told line by line.
        raise FileNotFoundError(
            f"{len(missing)} of {len(argv)} clips do not exist: {', '.join(missing[:3])}"
        )
    workdir = Workdir(WORKDIR.value)
    model = TrainedModel(program.recorded_config(workdir), workdir, STEP.value)
    names, failed = model.class_names, 0
    for record in model.predict(list(argv)):
        path = argv[record["index"]]
        if "error" in record:
            failed += 1
            reason = record["error"].removeprefix(f"{path}: ")
            print(json.dumps({"path": path, "error": reason}), flush=True)
            continue
        probabilities = record["probabilities"]
        order = sorted(range(len(probabilities)), key=lambda k: -probabilities[k])
        top = [
            {"label": names[k] if names else f"class {k}", "probability": probabilities[k]}
            for k in order[: TOP.value]
        ]
        print(json.dumps({"path": path, "predictions": top}), flush=True)
    if failed:
        print(f"error: {failed} of {len(argv)} clips could not be decoded", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    program.run(main)
