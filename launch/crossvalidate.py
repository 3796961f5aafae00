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
from absl import flags
from ml_collections import config_flags

from launch import program
from launch.folds import Correct, fold_mean, format_table, integers, record, run_fold

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

logger = logging.getLogger(__name__)


@runtime_checkable
class HasBaselines(Protocol):
    """Configuration of an experiment with simpler methods to compare with."""

    def baselines(self) -> dict[str, list[tuple[int, int]]]:
        """Returns (label, prediction) of each test example, in order, by the method's name."""


def main(argv: Sequence[str]) -> int:
    """Runs the missing folds and seeds and prints the table; returns the exit code."""
    spec, base_config = program.experiment_of_flag(argv)
    folds, seeds = integers("folds", FOLDS.value), integers("seeds", SEEDS.value)
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
            outcome = run_fold(spec, config, base / f"fold{fold:02d}_seed{seed}")
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


def _progress(correct: Mapping[str, Correct], fold: int) -> str:
    return ", ".join(f"{name} {fold_mean(by_fold, fold):.0f}" for name, by_fold in correct.items())


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    program.run(main)
