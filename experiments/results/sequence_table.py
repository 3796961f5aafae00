r"""Table of the study of sequences from the workdirs of its runs, published figures beside.

    python -m launch.train --config=experiments/tcn_sequences.py:jsb,lstm --workdir=runs/jsb_lstm …
    python -m launch.evaluate --workdir=runs/jsb_lstm --split=test --out=runs/jsb_lstm/test.json
    python -m experiments.results.sequence_table --out=runs/sequences.md runs/* \
        --previous=experiments/results/sequences.md

Each argument is a workdir of ``experiments/tcn_sequences.py`` or ``experiments/deep_conv_lstm.py``
with the metrics of ``launch.evaluate`` in its ``test.json`` or, of data whose test split is not
there, ``validation.json``. Runs of one variant with other seeds make one row. A variant without a
run keeps its row of the table in ``--previous``, if it is given and its network still has as many
parameters, and is else written as not run.
"""

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags

from experiments import deep_conv_lstm, tcn_sequences
from experiments.results.write_results import format_rows, read_previous
from experiments.sequences.config import Problem, SequenceExperiment
from experiments.tcn_sequences import MUSIC
from flaxnets.configuration import local_path
from flaxnets.models.sequence_model import make_sequence_model
from flaxnets.training.config import update
from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.workdir import Workdir, WorkdirError, write_text_atomically

HEADER = (
    "task",
    "network",
    "parameters",
    "published",
    "measured, mean ± s.d.",
    "split",
    "seeds",
    "steps",
    "s a step",
)
SENSORS = {"basic_motions": (6, 4), "japanese_vowels": (12, 9)}
"""Channels and classes of the tasks of ``deep_conv_lstm.py``."""
ACCURACIES = ("sequential_mnist", "permuted_mnist", *SENSORS)
"""Tasks whose metric is the accuracy; ``loss`` of the others."""
PUBLISHED: dict[str, dict[str, float]] = {
    "adding": {"lstm": 0.164, "gru": 5.3e-5, "elman": 0.177, "tcn": 5.8e-5},
    "copy": {"lstm": 0.0204, "gru": 0.0197, "elman": 0.0202, "tcn": 3.5e-5},
    "sequential_mnist": {"lstm": 0.872, "gru": 0.962, "elman": 0.215, "tcn": 0.990},
    "permuted_mnist": {"lstm": 0.857, "gru": 0.873, "elman": 0.253, "tcn": 0.972},
    "jsb": {"lstm": 8.45, "gru": 8.43, "elman": 8.91, "tcn": 8.10},
    "nottingham": {"lstm": 3.29, "gru": 3.46, "elman": 4.05, "tcn": 3.07},
}
"""Bai et al. (1803.01271), table 1, test split."""

FAMILIES = {
    **dict.fromkeys((*PUBLISHED, "characters"), tcn_sequences.FAMILIES),
    **dict.fromkeys(SENSORS, deep_conv_lstm.FAMILIES),
}
"""Families of the tasks of the table, in its order."""
DEFAULTS = {
    "tcn_sequences.py": ("adding", "tcn"),
    "deep_conv_lstm.py": ("folder", "deep_conv_lstm"),
}
"""Task and family where a variant does not name them, by file."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      variant: (task, family).
      parameters: of the network, flags of the run included.
      seed: of the training.
      split: on which it was evaluated.
      value: of the task's metric.
      steps: of the checkpoint that was evaluated.
      seconds: median wall time of a training step, those of evaluations left out.
    """

    variant: tuple[str, str]
    parameters: int
    seed: int
    split: str
    value: float
    steps: int
    seconds: float


def read_run(path: str | Path) -> Run:
    """Reads a workdir.

    Raises:
      ValueError: a workdir of another experiment, or one without an evaluation.
      WorkdirError: no workdir.
    """
    recorded = Workdir(path).read_config()
    file, _, variant = recorded["experiment"].partition(":")
    task, family = DEFAULTS.get(Path(file).name, ("", ""))
    named = variant.split(",")
    if variant and task:
        task, family = named[0], named[1] if len(named) > 1 else family
    if family not in FAMILIES.get(task, ()):
        raise ValueError(
            f"{path}: expected a run of {' or '.join(DEFAULTS)} on one of {', '.join(FAMILIES)}, "
            f"received one of {recorded['experiment']}"
        )
    found = [Path(path) / f"{split}.json" for split in ("test", "validation")]
    results = [json.loads(file.read_text()) for file in found if file.is_file()]
    if not results:
        raise ValueError(
            f"{path}: expected test.json or validation.json of launch.evaluate --out, received "
            "neither"
        )
    config = config_of(task, family)
    update(config, recorded["config"])
    rates = [
        record["steps_per_second"]
        for record in read_metrics(Path(path))
        if record["split"] == "train" and record.get("steps_per_second")
    ]
    return Run(
        (task, family),
        count_parameters(task, config),
        config.seed,
        results[0]["split"],
        results[0]["accuracy" if task in ACCURACIES else "loss"],
        results[0]["step"],
        1 / statistics.median(rates) if rates else math.nan,
    )


def config_of(task: str, family: str) -> SequenceExperiment:
    """Returns the configuration of a variant."""
    if task in SENSORS:
        return deep_conv_lstm.get_config(f"{task},{family}")
    return tcn_sequences.get_config(f"{task},{family}")


def problem_of(task: str) -> tuple[Problem, int]:
    """Returns the problem of a task and its input channels, without its data.

    ``characters`` has the 65 of tiny Shakespeare.
    """
    if task in SENSORS:
        channels, classes = SENSORS[task]
        return Problem("classification", classes), channels
    if task in MUSIC:
        return Problem("steps", 88, distribution="bernoulli"), 88
    if task == "characters":
        return Problem("stream", 65, 65), 0
    problem = tcn_sequences.get_config(task).read_problem()
    return problem, {"adding": 2, "copy": 0}.get(task, 1)


def count_parameters(task: str, config: SequenceExperiment) -> int:
    """Returns the number of parameters of a task's network, without its data."""
    problem, channels = problem_of(task)
    model = make_sequence_model(config.model, problem.num_outputs, num_tokens=problem.num_tokens)
    inputs = jnp.zeros((1, 2, channels)) if channels else jnp.zeros((1, 2), jnp.int32)
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), inputs)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def make_row(variant: tuple[str, str], runs: Sequence[Run]) -> list[str]:
    """Returns the cells of a variant; ``not run`` without runs.

    Raises:
      ValueError: two runs of one seed, or of different splits.
    """
    task, family = variant
    published = PUBLISHED.get(task, {}).get(family)
    if not runs:
        parameters = count_parameters(task, config_of(*variant))
        row = [task, family, f"{parameters:,}", format_value(task, published)]
        return [*row, "not run", "", "", "", ""]
    sizes, splits = {run.parameters for run in runs}, {run.split for run in runs}
    if len({run.seed for run in runs}) < len(runs) or len(sizes) > 1 or len(splits) > 1:
        raise ValueError(
            f"{task},{family}: expected runs of different seeds with one network on one split, "
            f"received seeds {sorted(run.seed for run in runs)}, {sorted(sizes)} parameters and "
            f"{', '.join(sorted(splits))}"
        )
    row = [task, family, f"{sizes.pop():,}", format_value(task, published)]
    values = [run.value for run in runs]
    measured = format_value(task, statistics.mean(values))
    if len(values) > 1:
        measured += f" ± {format_value(task, statistics.stdev(values))}"
    steps = sorted(run.steps for run in runs)
    return [
        *row,
        measured,
        splits.pop(),
        str(len(runs)),
        f"{steps[0]:,}" if steps[0] == steps[-1] else f"{steps[0]:,}–{steps[-1]:,}",
        f"{statistics.median(run.seconds for run in runs):.2g}",
    ]


def format_value(task: str, value: float | None) -> str:
    """Returns an accuracy in %, a loss in nats a step or a squared error; a dash for None."""
    if value is None:
        return "–"
    if task in ACCURACIES:
        return f"{100 * value:.1f} %"
    return f"{value:.2f}" if task in (*MUSIC, "characters") else f"{value:.3g}"


def format_table(runs: Sequence[Run], previous: Sequence[list[str]] = ()) -> str:
    """Returns the table of all variants in Markdown.

    Args:
      runs: whose rows are new.
      previous: rows of variants without a run; those of another number of parameters, or of no
        variant, are left out.
    """
    earlier = {(row[0], row[1]): row for row in previous}
    rows = []
    for variant in [(task, family) for task, names in FAMILIES.items() for family in names]:
        own = [run for run in runs if run.variant == variant]
        row, kept = make_row(variant, own), earlier.get(variant)
        rows.append(kept if kept and not own and kept[2] == row[2] else row)
    return format_rows(HEADER, rows)


def main(argv: Sequence[str]) -> None:
    """Writes the table."""
    try:
        runs = [read_run(path) for path in argv[1:]]
        previous = read_previous(flags.FLAGS.previous, HEADER)
        table = format_table(runs, previous)
    except (ValueError, WorkdirError) as error:
        raise SystemExit(f"error: {error}") from error
    write_text_atomically(local_path("out", flags.FLAGS.out), table)


if __name__ == "__main__":
    # Not of a module that imports its functions.
    flags.DEFINE_string("out", None, "File for the table, Markdown.", required=True)
    flags.DEFINE_string("previous", None, "Page or table with the rows of earlier runs.")
    app.run(main)
