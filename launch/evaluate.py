"""Evaluates the best checkpoint of a run, or the one of ``--step``, on a whole split.

    python -m launch.evaluate --workdir=runs/smoke --split=test --out=runs/smoke/test.json

Prints the metrics as one JSON object, those that are not finite as null, and writes them to
``--out``; the outputs of each example go to ``predictions/SPLIT.jsonl`` in the workdir. Without
``--split`` it is the test split, or validation where the data have no test split. Several
processes work as in ``launch.train``. ``--config.data.root=FOLDER`` tells where the data are now,
if they were moved: they must have the classes and the lists of the training, which the workdir
records.

Several workdirs of captioners, ``--workdir=A --workdir=B``, are evaluated as an ensemble: the
search of the first one reads the mean of their word probabilities. Its captions go to the file of
``--out`` with the ending ``.jsonl``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from flaxnets.inference.trained_captioner import TrainedCaptioner
from flaxnets.inference.trained_model import TrainedModel, describe_metrics
from flaxnets.training.distributed import is_first
from flaxnets.training.workdir import Workdir, write_text_atomically
from launch import default_split, processes, program

WORKDIR = program.define_run(
    "Folder of the run; several captioners are evaluated as an ensemble.", several=True
)
SPLIT = flags.DEFINE_string("split", None, f"Split to evaluate; {default_split.HELP}")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
OUT = program.define_path("out", None, "JSON file for the metrics.")
# --helpshort lists the flags that connect processes, too.
flags.adopt_module_key_flags(processes)


def main(argv: Sequence[str]) -> None:
    """Evaluates the split and prints the metrics."""
    program.refuse_arguments(argv)
    with processes.joined():
        result = _evaluate_ensemble() if len(WORKDIR.value) > 1 else _evaluate(WORKDIR.value[0])
        if is_first():
            described = describe_metrics(result)
            print(json.dumps(described))
            if OUT.value:
                write_text_atomically(OUT.value, json.dumps(described, indent=2) + "\n")


def _evaluate(path: str) -> dict[str, Any]:
    """Returns the metrics of a run."""
    workdir = Workdir(path)
    model = TrainedModel(program.recorded_config(workdir), workdir, STEP.value)
    split, metrics = default_split.on_split(SPLIT.value, model.evaluate)
    return {"split": split, "step": model.step, **metrics}


def _evaluate_ensemble() -> dict[str, Any]:
    """Returns the scores of several captioners that decode together."""
    if STEP.value is not None:
        raise ValueError("--step: expected a single --workdir, received several")
    if jax.process_count() > 1:
        raise ValueError("--workdir: expected a single one for several processes, received several")
    models: list[TrainedModel] = []
    for path in WORKDIR.value:
        workdir = Workdir(path)
        config = program.recorded_config(workdir)
        config.batch_size = models[0].config.batch_size if models else config.batch_size
        models.append(TrainedModel(config, workdir))
    split, (metrics, records) = default_split.on_split(
        SPLIT.value, TrainedCaptioner(models).evaluate
    )
    if OUT.value:
        lines = [json.dumps(record) + "\n" for record in records]
        write_text_atomically(Path(OUT.value).with_suffix(".jsonl"), "".join(lines))
    return {"split": split, "step": [model.step for model in models], **metrics}


if __name__ == "__main__":
    program.run(main)
