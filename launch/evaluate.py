"""Metrics of a run's best checkpoint, or of ``--step``, on a whole split.

    python -m launch.evaluate --workdir=runs/smoke --split=test --out=runs/smoke/test.json

Prints one JSON object, writes the same to ``--out``, and each example's outputs to
``predictions/SPLIT.jsonl`` in the workdir. May run as several processes, as ``launch.train``.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flaxnets.inference.trained_model import TrainedModel
from flaxnets.training.distributed import is_first
from flaxnets.training.workdir import Workdir
from launch import processes, program
from launch.program import config_of

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run.", required=True)
SPLIT = flags.DEFINE_string("split", "test", "The split to evaluate.")
STEP = flags.DEFINE_integer("step", None, "The checkpoint's step; by default the best.")
OUT = flags.DEFINE_string("out", None, "A file for the metrics, JSON.")


def main(argv: Sequence[str]) -> None:
    """Evaluates and prints."""
    if argv:
        raise ValueError(f"unexpected arguments: {' '.join(argv)}; flags are --name=value")
    with processes.joined():
        workdir = Workdir(WORKDIR.value)
        model = TrainedModel(config_of(workdir), workdir, STEP.value)
        result = {"split": SPLIT.value, "step": model.step, **model.evaluate(SPLIT.value)}
        if is_first():
            print(json.dumps(result))
            if OUT.value:
                Path(OUT.value).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    program.run(main)
