"""The table of a cross-validation: which test clips were named rightly, by fold and seed."""

from collections.abc import Mapping, Sequence

import numpy as np

Right = dict[int, dict[int, list[bool]]]
"""Fold → seed → whether each test clip was named rightly, in the order of the fold's list."""


def record(
    right: dict[str, Right],
    name: str,
    fold: int,
    seed: int,
    predictions: Sequence[tuple[int, int]],
) -> None:
    """Enters one run's (label, prediction) pairs."""
    hits = [label == prediction for label, prediction in predictions]
    right.setdefault(name, {}).setdefault(fold, {})[seed] = hits


def format_table(right: Mapping[str, Right], *, num_classes: int) -> str:
    """A Markdown table: mean accuracy over all test clips, spread over seeds, each fold's mean."""
    folds = sorted(next(iter(right.values())))
    clips = sum(len(next(iter(next(iter(right.values()))[fold].values()))) for fold in folds)
    lines = [
        f"Accuracy in % on {clips} test clips of {len(folds)} folds, "
        f"chance {100 / num_classes:.1f}; ± is the standard deviation over seeds, one clip is "
        f"{100 / clips:.1f} points.",
        "",
        "| | accuracy | " + " | ".join(f"fold {fold}" for fold in folds) + " |",
        "|---|---|" + "---|" * len(folds),
    ]
    for name, by_fold in right.items():
        seeds = sorted(by_fold[folds[0]])
        over_clips = [
            100 * np.mean([hit for fold in folds for hit in by_fold[fold][seed]]) for seed in seeds
        ]
        spread = f" ± {np.std(over_clips, ddof=1):.1f}" if len(seeds) > 1 else ""
        of_folds = [f"{mean:.0f}" for mean in (fold_mean(by_fold, fold) for fold in folds)]
        lines.append(f"| {name} | {np.mean(over_clips):.1f}{spread} | {' | '.join(of_folds)} |")
    return "\n".join(lines) + "\n"


def fold_mean(by_fold: Right, fold: int) -> float:
    """Accuracy on one fold, a mean over its seeds, in %."""
    return float(100 * np.mean([np.mean(hits) for hits in by_fold[fold].values()]))
