"""Evaluates the best checkpoint of a run, or the one of ``--step``, on a whole split.

    python -m launch.evaluate --workdir=runs/smoke --split=test --out=runs/smoke/test.json

Prints the metrics as one JSON object, those that are not finite as null, and writes them to
``--out``; the outputs of each example go to ``predictions/SPLIT.jsonl`` in the workdir. Several
processes work as in ``launch.train``. ``--config.data.root=FOLDER`` tells where the data are now,
if they were moved: they must have the classes and the lists of the training, which the workdir
records.
"""

import json
from collections.abc import Sequence

from absl import flags

from flaxnets.inference.trained_model import TrainedModel, describe_metrics
from flaxnets.training.distributed import is_first
from flaxnets.training.workdir import Workdir, write_text_atomically
from launch import processes, program

WORKDIR = program.define_run()
SPLIT = flags.DEFINE_string("split", "test", "Split to evaluate.")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
OUT = program.define_path("out", None, "JSON file for the metrics.")
# --helpshort lists the flags that connect processes, too.
flags.adopt_module_key_flags(processes)


def main(argv: Sequence[str]) -> None:
    """Evaluates the split and prints the metrics."""
    program.refuse_arguments(argv)
    with processes.joined():
        workdir = Workdir(WORKDIR.value)
        model = TrainedModel(program.recorded_config(workdir), workdir, STEP.value)
        result = {"split": SPLIT.value, "step": model.step, **model.evaluate(SPLIT.value)}
        if is_first():
            described = describe_metrics(result)
            print(json.dumps(described))
            if OUT.value:
                write_text_atomically(OUT.value, json.dumps(described, indent=2) + "\n")


if __name__ == "__main__":
    program.run(main)
