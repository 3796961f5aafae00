r"""Cross-validation: trains and tests every fold with several seeds, and prints one table.

    python -m launch.crossvalidate --config=experiments/lrcn_ucf101.py:ut_interaction \
        --workdir=runs/ut --config.data.root=…/ut_interaction/set1

Each fold and seed is a separate run in ``WORKDIR/foldNN_seedN``; the same command resumes. The
table also has the experiment's baselines on the same folds. It is saved as ``crossvalidation.md``,
and the correct test clips of every fold and seed as ``crossvalidation.json``.
"""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from flaxnets.inference.trained_model import TrainedModel, read_predictions
from flaxnets.training.config import Config
from flaxnets.training.loop import train
from launch import program

config_flags.DEFINE_config_file(
    "config", None, "Experiment, FILE[:variant]; --config.FIELD=VALUE overrides a field."
)
WORKDIR = program.define_path(
    "workdir", None, "Folder of all runs; created if missing.", required=True
)
FOLDS = flags.DEFINE_list(
    "folds", [str(fold) for fold in range(1, 11)], "Numbers of the folds, separated by commas."
)
SEEDS = flags.DEFINE_list(
    "seeds", ["0", "1", "2"], "Random seeds of each fold, separated by commas."
)

flags.adopt_module_key_flags(program)

Correct = dict[int, dict[int, list[bool]]]
"""Fold → seed → True for each test clip that was classified correctly, in the fold's order."""

logger = logging.getLogger(__name__)


@runtime_checkable
class HasBaselines(Protocol):
    """Configuration of an experiment with simpler methods to compare with."""

    def baselines(self) -> dict[str, list[tuple[int, int]]]:
        """Returns (label, prediction) of each test example, in order, by the method's name."""


def main(argv: Sequence[str]) -> int:
    """Runs the missing folds and seeds and prints the table; returns the exit code."""
    spec, base_config = program.experiment_of_flag(argv)
    folds, seeds = _integers("folds", FOLDS.value), _integers("seeds", SEEDS.value)
    base = Path(WORKDIR.value)
    base.mkdir(parents=True, exist_ok=True)
    # All folds and seeds run the same program, so compile it only once.
    jax.config.update("jax_compilation_cache_dir", str((base / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

    correct: dict[str, Correct] = {}
    for fold in folds:
        for seed in seeds:
            config = copy.deepcopy(base_config)
            config.set_fold(fold)
            config.seed = seed
            outcome = run(spec, config, base / f"fold{fold:02d}_seed{seed}")
            if isinstance(outcome, int):
                return outcome
            record(correct, config.name, fold, seed, outcome)
            if seed == seeds[0]:
                baselines = config.baselines() if isinstance(config, HasBaselines) else {}
                for name, predictions in baselines.items():
                    record(correct, name, fold, seed, predictions)
        logger.info("fold %d: %s", fold, _progress(correct, fold))
    table = format_table(correct, num_classes=len(base_config.class_names))
    (base / "crossvalidation.md").write_text(table)
    (base / "crossvalidation.json").write_text(json.dumps(correct, indent=1) + "\n")
    print(table)
    return 0


def run(spec: str, config: Config, path: Path) -> int | list[tuple[int, int]]:
    """Trains and tests one fold with one seed, unless it is done already.

    Returns:
      (label, prediction) of each test clip; or the exit code if a signal ended the training.
    """
    with program.open_workdir(path) as workdir:
        workdir.claim(spec, config)
        predictions = workdir.predictions("test")
        if not predictions.exists():
            outcome = train(
                config,
                workdir,
                show_progress=False,
                on_start=lambda: program.record_call(workdir.path),
            )
            if outcome.signal is not None:
                return 128 + outcome.signal
            TrainedModel(config, workdir).evaluate("test")
        return [
            (example["label"], example["prediction"]) for example in read_predictions(predictions)
        ]


def record(
    correct: dict[str, Correct],
    name: str,
    fold: int,
    seed: int,
    predictions: Sequence[tuple[int, int]],
) -> None:
    """Adds the (label, prediction) pairs of one run to ``correct[name]``."""
    hits = [label == prediction for label, prediction in predictions]
    correct.setdefault(name, {}).setdefault(fold, {})[seed] = hits


def format_table(correct: Mapping[str, Correct], *, num_classes: int) -> str:
    """Returns a Markdown table of accuracies in %.

    Columns: the mean over all test clips ± the standard deviation over seeds, and each fold's mean.
    """
    folds = sorted(next(iter(correct.values())))
    clips = sum(len(next(iter(next(iter(correct.values()))[fold].values()))) for fold in folds)
    lines = [
        f"Accuracy in % on {clips} test clips of {len(folds)} folds, "
        f"chance {100 / num_classes:.1f}; ± is the standard deviation over seeds, one clip is "
        f"{100 / clips:.1f} points.",
        "",
        "| | accuracy | " + " | ".join(f"fold {fold}" for fold in folds) + " |",
        "|---|---|" + "---|" * len(folds),
    ]
    for name, by_fold in correct.items():
        seeds = sorted(by_fold[folds[0]])
        over_clips = [
            100 * np.mean([hit for fold in folds for hit in by_fold[fold][seed]]) for seed in seeds
        ]
        spread = f" ± {np.std(over_clips, ddof=1):.1f}" if len(seeds) > 1 else ""
        of_folds = [f"{mean:.0f}" for mean in (fold_mean(by_fold, fold) for fold in folds)]
        lines.append(f"| {name} | {np.mean(over_clips):.1f}{spread} | {' | '.join(of_folds)} |")
    return "\n".join(lines) + "\n"


def fold_mean(by_fold: Correct, fold: int) -> float:
    """Returns the accuracy on one fold in %, the mean over its seeds."""
    return float(100 * np.mean([np.mean(hits) for hits in by_fold[fold].values()]))


def _progress(correct: Mapping[str, Correct], fold: int) -> str:
    return ", ".join(f"{name} {fold_mean(by_fold, fold):.0f}" for name, by_fold in correct.items())


def _integers(name: str, values: Sequence[str]) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError:
        raise ValueError(
            f"--{name}: expected integers separated by commas, received {','.join(values)}"
        ) from None


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    program.run(main)
