"""Folds of a cross-validation: their runs, and the table of their accuracies."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flaxnets.inference.trained_model import TrainedModel, read_predictions
from flaxnets.training.config import Config
from flaxnets.training.loop import train
from launch import program

Correct = dict[int, dict[int, list[bool]]]
"""Fold → seed → True for each test clip that was classified correctly, in the fold's order."""


def run_fold(spec: str, config: Config, path: Path) -> int | list[tuple[int, int]]:
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


def integers(name: str, values: Sequence[str]) -> list[int]:
    """Returns the numbers of a flag's list.

    Raises:
      ValueError: a value that is none; names the flag.
    """
    try:
        return [int(value) for value in values]
    except ValueError:
        raise ValueError(
            f"--{name}: expected integers separated by commas, received {','.join(values)}"
        ) from None
